"""The proof that what is frozen did not move."""

from __future__ import annotations

from torch import nn

from finetune.errors import RunError, brief
from finetune.model.freeze import Frozen, digest, fingerprints


class Proof:
    """Hashes of every frozen parameter and buffer, taken before training and compared after.

    each: SHA-256 by name. sha256: one over all. tensors: the frozen tensors themselves.
    """

    def __init__(self, network: nn.Module, frozen: Frozen) -> None:
        self.frozen = frozen
        self.tensors = frozen.tensors(network)
        self.each = fingerprints(self.tensors)
        self.sha256 = digest(self.tensors)

    def check(self, network: nn.Module) -> None:
        """Raise RunError where anything frozen differs by a bit."""
        after = fingerprints(self.frozen.tensors(network))
        if moved := [name for name in self.each if after[name] != self.each[name]]:
            raise RunError(f"frozen tensors changed in training, which must never happen: {brief(moved)}")
