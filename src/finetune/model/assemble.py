"""A model ready to train: built, weighted, with its head, frozen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from finetune.errors import RequestError, brief
from finetune.model import head as heads
from finetune.model.build import build
from finetune.model.freeze import Frozen, freeze
from finetune.model.preprocessing import Preprocessing
from finetune.model.weights import Weights, enum_of, load


@dataclass(frozen=True)
class Model:
    """A network with what is known of it.

    head: full name of the new head; None where the old one was kept.
    classes: names of the outputs, in their order; those beyond the classes have none.
    example: one black picture of the right size, (1, 3, H, W).
    """

    name: str
    network: nn.Module
    weights: Weights
    preprocessing: Preprocessing
    head: str | None
    outputs: int
    frozen: Frozen
    example: Tensor
    classes: tuple[str, ...] = ()

    def backbone_trains(self) -> bool:
        """Whether anything but a new head trains."""
        head = f"{self.head}."
        return any(
            p.requires_grad and not name.startswith(head) for name, p in self.network.named_parameters()
        )


def assemble(
    name: str,
    weights: str,
    patterns: Sequence[str],
    head: int | str,
    classes: Sequence[str],
    *,
    seed: int,
    hidden: Sequence[int] = (),
    dropout: float = 0.0,
    image_size: int | str = "auto",
) -> Model:
    """Build a model, load its weights, replace its head and freeze it.

    Raises:
        RequestError: the model, weights, head, freeze or size of the pictures are not as they must be.
    """
    torch.manual_seed(seed)
    network = build(name, enum_of(name, weights))
    loaded = load(network, name, weights, keep_head=head == "keep")
    preprocessing = loaded.preprocessing if image_size == "auto" else loaded.preprocessing.to(int(image_size))
    place = heads.find(network)
    names = (loaded.classes if head == "keep" else ()) or tuple(classes)
    if unknown := [name for name in classes if name not in names]:
        raise RequestError(
            f"head=keep: expected classes that weights={weights} know ({brief(names)}), not {brief(unknown)};"
            " head=auto makes a new head"
        )
    outputs = (
        heads.outputs(network, place) if head == "keep" else len(classes) if head == "auto" else int(head)
    )
    if outputs < len(names):
        raise RequestError(
            f"head={head}: expected {len(names)} outputs or more, one for each class"
            f" ({brief(names, 3)}), not {outputs}"
        )
    if head != "keep":
        torch.manual_seed(seed)  # the same head, whatever building the backbone has drawn
        heads.replace(network, place, outputs, hidden, dropout)
    example = torch.zeros(1, 3, preprocessing.crop_size, preprocessing.crop_size)
    _check_size(network, example, name)
    replaced = None if head == "keep" else place
    frozen = freeze(network, patterns, replaced, example)
    network.to(memory_format=torch.channels_last)
    return Model(name, network, loaded, preprocessing, replaced, outputs, frozen, example, names)


def _check_size(network: nn.Module, example: Tensor, name: str) -> None:
    network.eval()
    try:
        with torch.no_grad():
            network(example)
    except (RuntimeError, AssertionError) as error:
        raise RequestError(
            f"data.image_size={example.shape[-1]}: {name} cannot take pictures of that size"
            f" ({str(error).splitlines()[0]}); expected another, or auto"
        ) from None
