"""The features of one view of the images: those that the store has, and those computed now."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from finetune import signals
from finetune.data.dataset import Dataset
from finetune.data.images import BadImage
from finetune.data.reader import Reader
from finetune.data.sources.labeled import Progress
from finetune.data.views import Inputs
from finetune.errors import RunError
from finetune.features.extract import DTYPES, Form, Tensors, Told, extract, settle
from finetune.features.plan import FeaturePlan
from finetune.features.rows import MemoryStore, RowLayout
from finetune.features.store import Store, open_store

RESIDENT = 2 << 30  # rows of up to so many bytes are held where they are used; more are mapped from the disk


@dataclass(frozen=True)
class Features:
    """One view of every image of a data set: `inputs(chosen)` gives the tensors of some, (B, ...) each.

    difference: of the form from fp32 eager, relative; None where none was computed now.
    computed, reused: how many different images were computed now or in the store, in so many seconds.
    """

    layout: RowLayout
    rows: Tensor
    places: np.ndarray
    form: Form
    difference: float | None
    computed: int
    reused: int
    seconds: float

    def inputs(self, chosen: Tensor) -> Inputs:
        """The features of images by their indices (B,), in fp32: a tensor (B, ...), or a tuple of them."""
        rows = self.rows[torch.from_numpy(self.places[chosen.numpy()]).to(self.rows.device)]
        tensors = tuple(tensor.float() for tensor in self.layout.unpack(rows))
        return tensors if len(tensors) > 1 else tensors[0]


class FeatureComputer:
    """Takes from the store what it has, then computes and adds the rest.

    notes: for the user, a line each. bad: images that cannot be decoded, of each content the first.
    """

    def __init__(
        self,
        plan: FeaturePlan,
        dataset: Dataset,
        reader: Reader,
        progress: Progress,
        on_wait: Callable[[], None],
    ) -> None:
        self.plan, self.dataset, self.reader = plan, dataset, reader
        self.progress, self.on_wait = progress, on_wait
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

    def compute(self, view: str, form: Form, normalise: Callable[[Tensor], Tensor]) -> Features:
        """The features of a view, in the form or, where that is too far from fp32, in fp32.

        normalise: uint8 (B, 3, H, W) to what the prefix takes. ChangedImage: an image is not what it was when
        it was hashed. RunError: the store cannot be written or read back.
        """
        started, plan, digests = time.perf_counter(), self.plan, self.dataset.digests
        assert plan.split
        assert plan.split.prefix
        layout = RowLayout(tuple(crossing.shape for crossing in plan.split.crossings), DTYPES[form.dtype])
        key = plan.keys[plan.views.index(view)] if plan.keys else {}
        cache = plan.cache_dir if plan.where == "disk" else None
        with open_store(cache, {**key, **form.describe()}, layout, self.on_wait) as store:
            if damaged := store.verify(digests):
                self.notes.append(f"{len(damaged)} stored features are damaged and are computed again")
            first = {digest: i for i, digest in reversed(list(enumerate(digests)))}
            lacking = sorted(i for digest, i in first.items() if digest not in store.place)
            missing = [index for index in lacking if index not in self.bad]
            difference, computed = None, 0
            if sample := self._sample(missing, form.batch):
                batch = normalise(torch.stack(sample))
                forward, actual, difference = settle(plan.split.prefix, form, plan.device, batch)
                if actual != form:
                    told = f"features in {form} differ by {difference:.1%} from fp32, too much; using fp32"
                    self.notes.append(told)
                    return self.compute(view, actual, normalise)
                batch_size, device = form.batch, plan.device
                batches = extract(forward, self._read, normalise, missing, batch=batch_size, device=device)
                with self.progress(f"computing {view} features", len(first)) as advance:
                    advance(len(first) - len(missing))
                    computed = self._add(store, batches, advance)
            if computed and store.verify(digests):
                raise RunError(
                    "cache_dir: features are not read back as they were written; is the disk failing?"
                )
            if store.removed():
                self.notes.append("the stored features were removed meanwhile; they serve this run alone")
            rows, places = self._rows(store)
        return Features(
            layout=layout,
            rows=rows,
            places=places,
            form=form,
            difference=difference,
            computed=computed,
            reused=len(first) - len(lacking),
            seconds=time.perf_counter() - started,
        )

    def _read(self, index: int) -> Tensor | BadImage:
        image = self.reader(index)
        if isinstance(image, BadImage):
            self.bad[index] = image
        return image

    def _sample(self, indices: Sequence[int], most: int) -> list[Tensor]:
        """The first of these images that are not broken."""
        readable = (image for image in map(self._read, indices) if isinstance(image, Tensor))
        return list(islice(readable, most))

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
            good = [self.dataset.digests[index] for index, bad in told if bad is None]
            if good:  # a batch may be of broken images alone
                store.append(good, tensors)
            computed += len(good)
            advance(len(good))
        return computed

    def _rows(self, store: Store | MemoryStore) -> tuple[Tensor, np.ndarray]:
        """All rows (N, row_bytes), on the GPU where they fit well, and where the row of each image is."""
        places = np.array([store.place.get(digest, -1) for digest in self.dataset.digests])
        rows = torch.from_numpy(store.mapped())
        if 0 < rows.nbytes <= RESIDENT:
            rows, places = rows[torch.from_numpy(places)], np.arange(len(places))
            if self.plan.device == "cuda" and rows.nbytes <= torch.cuda.mem_get_info()[0] // 4:
                rows = rows.to(self.plan.device)
        return rows, places
