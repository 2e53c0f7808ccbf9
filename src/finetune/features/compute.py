"""The features of one view of the images: those that the store has, and those computed now."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from io import FileIO
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finetune import signals
from finetune.data.augment import Prepare
from finetune.data.dataset import Dataset
from finetune.data.images import BadImage
from finetune.data.reader import Reader
from finetune.data.sources.labeled import Progress
from finetune.data.views import Inputs
from finetune.errors import RunError
from finetune.features.extract import DTYPES, Form, Tensors, Told, extract, settle
from finetune.features.plan import FeaturePlan
from finetune.features.rows import MemoryStore, RowLayout, read_rows
from finetune.features.store import Store, open_part, open_store


@dataclass(frozen=True)
class Features:
    """One view of every image of a data set: `inputs(chosen)` gives the tensors of some, (B, ...) each.

    difference: of the form from fp32 eager, relative; None where none was computed now.
    computed, reused: how many different images were computed now or in the store, in so many seconds.
    file: where all the rows lie, if memory cannot hold those of this data set.
    """

    layout: RowLayout
    rows: Tensor
    places: np.ndarray
    form: Form
    difference: float | None
    computed: int
    reused: int
    seconds: float
    file: FileIO | None = None

    def inputs(self, chosen: Tensor) -> Inputs:
        """The features of images by their indices (B,), in fp32: a tensor (B, ...), or a tuple of them."""
        if self.file:
            return self.hold(chosen).inputs(chosen)
        rows = self.rows[torch.from_numpy(self.places[chosen.numpy()]).to(self.rows.device)]
        tensors = tuple(tensor.float() for tensor in self.layout.unpack(rows))
        return tensors if len(tensors) > 1 else tensors[0]

    def hold(self, chosen: Tensor) -> Features:
        """The same of these images, and no others, in memory."""
        if self.file is None:
            return self
        places, index = np.empty_like(self.places), chosen.numpy()
        stored, places[index] = np.unique(self.places[index], return_inverse=True)
        rows = torch.from_numpy(read_rows(self.file, stored, self.layout.row_bytes))
        return replace(self, rows=rows, places=places, file=None)


class FeatureComputer:
    """Takes from the store what it has, then computes and adds the rest.

    on_wait: called where another run computes the same features and is waited for.
    notes: for the user, a line each. bad: images that cannot be decoded, of each content the first.
    """

    def __init__(
        self,
        plan: FeaturePlan,
        dataset: Dataset,
        reader: Reader,
        prepare: Prepare,
        progress: Progress,
        on_wait: Callable[[], None],
    ) -> None:
        self.plan, self.dataset, self.reader = plan, dataset, reader
        self.progress, self.on_wait = progress, on_wait
        # From uint8 (B, 3, H, W) to what the prefix takes.
        self.normalise = {"plain": prepare.normalise, "mirrored": prepare.turned}
        self.notes: list[str] = []
        self.bad: dict[int, BadImage] = {}

    def every_bad_image(self) -> list[BadImage]:
        """Those that cannot be decoded, in order: all whose content is that of a bad one."""
        digests = self.dataset.digests
        by_content = {digests[index]: one for index, one in self.bad.items()}
        return [
            replace(by_content[digest], index=index, path=str(self.dataset.images[index]))
            for index, digest in enumerate(digests)
            if digest in by_content
        ]

    def compute(self, view: str, form: Form) -> Features:
        """The features of a view, in the form or, where that is too far from fp32, in fp32.

        ChangedImage: an image is not what it was when it was hashed. RunError: the store cannot be written or
        read back.
        """
        started, digests = time.perf_counter(), self.dataset.digests
        with open_store(*self._known_by(view, form), self.on_wait) as store:
            if damaged := store.verify(digests):
                self.notes.append(f"{len(damaged)} stored features are damaged and are computed again")
            first = self._first()
            lacking = sorted(i for digest, i in first.items() if digest not in store.place)
            missing = [index for index in lacking if index not in self.bad]
            actual, difference, computed = self._add_missing(store, view, form, missing, total=len(first))
            if actual != form:
                return self.compute(view, actual)
            file = None
            if isinstance(store, Store) and self.plan.parts(store.layout.row_bytes) > 1:
                file = os.fdopen(os.dup(store.data.fileno()), "rb", buffering=0)
            rows, places = self._rows(store, file)
        return Features(
            layout=store.layout,
            rows=rows,
            places=places,
            form=form,
            difference=difference,
            computed=computed,
            reused=len(first) - len(lacking),
            seconds=time.perf_counter() - started,
            file=file,
        )

    def compute_share(self, view: str, form: Form, share: tuple[int, int]) -> int:
        """Store what of a view falls to one of several processes, in a part that whoever comes next takes in.

        share: which, of how many; the digest of an image says whose it is. Returns of how many images.
        """
        cache, about, layout = self._known_by(view, form)
        assert cache
        with open_store(cache, about, layout, self.on_wait) as store:
            known = set(store.place)
        which, of = share
        mine = [
            index
            for digest, index in self._first().items()
            if digest not in known and int(digest[:8], 16) % of == which and index not in self.bad
        ]
        with open_part(cache, about, layout) as part:
            actual, _, computed = self._add_missing(part, view, form, sorted(mine), total=len(mine))
        return computed if actual == form else self.compute_share(view, actual, share)

    def _known_by(self, view: str, form: Form) -> tuple[Path | None, dict[str, Any], RowLayout]:
        """The folder of the stores, None for memory; what a view's is known by; what its rows are."""
        plan = self.plan
        assert plan.split
        layout = RowLayout(tuple(crossing.shape for crossing in plan.split.crossings), DTYPES[form.dtype])
        key = plan.keys[plan.views.index(view)] if plan.keys else {}
        return plan.cache_dir if plan.where == "disk" else None, {**key, **asdict(form)}, layout

    def _first(self) -> dict[str, int]:
        """Of each content the first image."""
        return {digest: i for i, digest in reversed(list(enumerate(self.dataset.digests)))}

    def _add_missing(
        self,
        store: Store | MemoryStore,
        view: str,
        form: Form,
        missing: Sequence[int],
        total: int,
    ) -> tuple[Form, float | None, int]:
        """Compute what a store lacks: the form, its difference from fp32, and of how many images.

        Nothing is computed where that is too large: then the form is the one to be used instead.
        """
        plan, normalise = self.plan, self.normalise[view]
        readable = (image for image in map(self._read, missing) if isinstance(image, Tensor))
        if not (sample := list(islice(readable, form.batch))):
            return form, None, 0
        assert plan.split
        assert plan.split.prefix
        batch = normalise(torch.stack(sample))
        forward, actual, difference = settle(plan.split.prefix, form, plan.device, batch)
        if actual != form:
            off = f"differ by {difference:.1%} from fp32, too much"
            wrong = off if difference < np.inf else "cannot be computed"
            self.notes.append(f"features in {form} {wrong}; using fp32")
            return actual, difference, 0
        batches = extract(
            lambda images: forward(normalise(images)),
            *(self._read, missing),
            batch=form.batch,
            device=plan.device,
            pure=self.reader.pure,
        )
        with self.progress("computing features", total) as advance:
            advance(total - len(missing))
            computed = self._add(store, batches, advance)
        if computed and store.verify(self.dataset.digests):
            raise RunError("cache_dir: features are not read back as they were written; is the disk failing?")
        return form, difference, computed

    def _read(self, index: int) -> Tensor | BadImage:
        image = self.reader(index)
        if isinstance(image, BadImage):
            self.bad[index] = image
        return image

    def _add(
        self,
        store: Store | MemoryStore,
        batches: Iterable[tuple[Told[int], Tensors]],
        advance: Callable[[int], None],
    ) -> int:
        """Add features to the store as they are computed; returns of how many images."""
        computed = 0
        for told, tensors in batches:
            signals.check()
            self.bad |= {index: bad for index, bad in told if bad}  # of images that other processes read
            good = [self.dataset.digests[index] for index, bad in told if bad is None]
            if good:  # a batch may be of broken images alone
                store.append(good, tensors)
            computed += len(good)
            advance(len(good))
        return computed

    def _rows(self, store: Store | MemoryStore, file: FileIO | None) -> tuple[Tensor, np.ndarray]:
        """All rows (N, row_bytes), on the GPU where they fit well, and where the row of each image is."""
        places = np.array([store.place.get(digest, -1) for digest in self.dataset.digests])
        rows = torch.from_numpy(store.mapped())
        if len(rows) and file is None:
            rows, places = rows[torch.from_numpy(places)], np.arange(len(places))
            if fits_on_gpu(self.plan.device, rows):
                rows = rows.to(self.plan.device)
        return rows, places


def fits_on_gpu(device: str, values: Tensor) -> bool:
    """Whether training may keep them on the GPU, and leave most of its memory for itself."""
    return device == "cuda" and values.nbytes <= torch.cuda.mem_get_info()[0] // 4
