"""The features of a data set: those the store has, and those computed now."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finetune import signals
from finetune.data.views import Inputs
from finetune.errors import RunError
from finetune.features.extract import DTYPES, Form, extract, settle
from finetune.features.rows import Layout, MemoryStore
from finetune.features.store import opened
from finetune.model.boundary import Split

RESIDENT = 2 << 30  # rows of up to so many bytes are held where they are used; more are mapped from the disk


@dataclass(frozen=True)
class Features:
    """One view of every picture of a data set: `features(chosen)` gives the tensors of some, (B, ...) each.

    form: how they were computed. difference: from fp32 eager, relative; None where none was computed now.
    computed, reused: how many different pictures were computed now, and how many were in the store.
    seconds: the time that both took.
    """

    layout: Layout
    rows: Tensor
    places: np.ndarray
    form: Form
    difference: float | None
    computed: int
    reused: int
    seconds: float

    def inputs(self, chosen: Tensor) -> Inputs:
        """The features of pictures by their indices (B,), in fp32: a tensor (B, ...), or a tuple of them."""
        rows = self.rows[torch.from_numpy(self.places[chosen.numpy()]).to(self.rows.device)]
        tensors = tuple(tensor.float() for tensor in self.layout.unpack(rows))
        return tensors if len(tensors) > 1 else tensors[0]

    def select(self, kept: np.ndarray) -> Features:
        """The same for some of the pictures, renumbered."""
        return replace(self, places=self.places[kept])


@dataclass(frozen=True)
class Pictures:
    """What features are computed of.

    read: decodes a picture by its index to uint8 (3, H, W); None where it is broken, which gets no row.
    digests: SHA-256 of each picture's content.
    normalise: uint8 (B, 3, H, W) to what the prefix takes.
    """

    read: Callable[[int], Tensor | None]
    digests: Sequence[str]
    normalise: Callable[[Tensor], Tensor]


def gather(
    halves: Split,
    pictures: Pictures,
    form: Form,
    device: str,
    cache: tuple[Path, dict[str, Any]] | None,
    advance: Callable[[int], None],
    say: Callable[[str], None],
) -> Features:
    """Take from the store what it has, then compute and add the rest; without a store compute all.

    cache: where the stores are, and all that decides the features beside their form; None: in memory only.
    advance: called with the number of pictures done. say: called with what the user should know.
    """
    started = time.perf_counter()
    assert halves.prefix is not None
    layout = Layout(tuple(crossing.shape for crossing in halves.crossings), DTYPES[form.dtype])

    def wait() -> None:
        say("another run is computing the same features; waiting for it")

    if cache is None:
        context: Any = nullcontext(MemoryStore(layout))
    else:
        context = opened(cache[0], {**cache[1], **form.describe()}, layout, wait)
    with context as store:
        if damaged := store.verify(pictures.digests):
            say(f"{len(damaged)} stored features are damaged and are computed again")
        first = {digest: i for i, digest in reversed(list(enumerate(pictures.digests)))}
        todo = sorted(i for digest, i in first.items() if digest not in store.place)
        reused = len(first) - len(todo)
        advance(reused)
        difference, computed = None, 0
        if sample := _sample(pictures, todo, form.batch):
            forward, actual, difference = settle(
                halves.prefix, form, device, pictures.normalise(torch.stack(sample))
            )
            if actual != form:
                say(f"features in {form} differ by {difference:.1%} from fp32, too much; using fp32")
                return gather(halves, pictures, actual, device, cache, advance, say)
            batches = extract(forward, pictures.read, pictures.normalise, todo, form.batch, device)
            for done, tensors in batches:
                signals.check()
                if done:  # a batch may be of broken pictures alone
                    store.append([pictures.digests[row] for row in done], tensors)
                computed += len(done)
                advance(len(done))
        if computed and store.verify(pictures.digests):
            raise RunError("cache_dir: features are not read back as they were written; is the disk failing?")
        if store.removed():
            say("the stored features were removed meanwhile; they serve this run alone")
        places = np.array([store.place.get(digest, -1) for digest in pictures.digests])
        rows = torch.from_numpy(store.mapped())
    if 0 < rows.nbytes <= RESIDENT:
        rows, places = rows[torch.from_numpy(places)], np.arange(len(places))
        if device == "cuda" and rows.nbytes <= torch.cuda.mem_get_info()[0] // 4:
            rows = rows.to(device)
    seconds = time.perf_counter() - started
    return Features(layout, rows, places, form, difference, computed, reused, seconds)


def _sample(pictures: Pictures, todo: Sequence[int], most: int) -> list[Tensor]:
    """One batch, on which the fast form is compared with fp32."""
    found: list[Tensor] = []
    for index in todo:
        if len(found) == most:
            break
        if (picture := pictures.read(index)) is not None:
            found.append(picture)
    return found
