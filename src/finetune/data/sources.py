"""Where pictures and labels come from."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from finetune.data import splits
from finetune.data.digests import file_digests
from finetune.data.images import EXTENSIONS
from finetune.errors import RequestError, brief

CLIPART = Path(__file__).parents[1] / "assets" / "clipart"
SPLITS = ("train", "val", "test")

Picture = Path | np.ndarray


@dataclass(frozen=True)
class Dataset:
    """Pictures with labels and a split.

    images: files, or uint8 arrays (H, W) or (H, W, 3).
    labels: int64 (N,) class indices, or float32 (N, outputs) label vectors.
    split: indices into images for train, val and test.
    digests: SHA-256 of each picture's content.
    ignored_files: how many files beside the pictures were passed over.
    """

    name: str
    classes: tuple[str, ...]
    images: Sequence[Picture]
    labels: np.ndarray
    split: dict[str, np.ndarray]
    digests: Sequence[str]
    ignored_files: int = 0

    def counts(self) -> dict[str, int]:
        return {side: len(self.split[side]) for side in SPLITS}

    def kept(self, bad: Sequence[int]) -> np.ndarray:
        """The places that stay when some are left out."""
        return np.setdiff1d(np.arange(len(self.images)), bad)

    def without(self, bad: Sequence[int]) -> Dataset:
        """The same without some pictures; the rest keep their side.

        Raises:
            RequestError: nothing is left to train on.
        """
        kept = self.kept(bad)
        split = {side: np.flatnonzero(np.isin(kept, indices)) for side, indices in self.split.items()}
        images, digests = [self.images[i] for i in kept], [self.digests[i] for i in kept]
        rest = replace(self, images=images, labels=self.labels[kept], split=split, digests=digests)
        if not len(split["train"]):
            raise RequestError(
                f"data.root: expected pictures to train on; {len(bad)} of {len(self.images)} are broken"
                f" ({self.images[bad[0]]} for one), and none of the others falls to train"
            )
        return rest

    def fingerprint(self) -> str:
        """SHA-256 that changes when and only when pictures, labels or split do."""
        side = {int(i): name for name, indices in self.split.items() for i in indices}
        rows = [f"{digest} {self._label(i)} {side[i]}" for i, digest in enumerate(self.digests)]
        return splits.digest_of_text("\n".join(sorted(rows)))

    def _label(self, index: int) -> str:
        label = self.labels[index]
        return self.classes[label] if label.ndim == 0 else label.tobytes().hex()


def load(
    name: str, root: str | None, val_fraction: float, test_fraction: float, memo: Path | None = None
) -> Dataset:
    """Find the pictures of a source by the knobs `data.name` and `data.root`; nothing is decoded yet.

    memo: the file that remembers the digests of pictures.

    Raises:
        RequestError: the folder is missing, empty, or has fewer than two classes.
    """
    if name == "folder":
        dataset = _folder(root, val_fraction, test_fraction, memo)
    elif root is not None:
        raise RequestError(
            f"data.root={root}: expected data=folder with it; data={name} brings its own pictures"
        )
    elif name == "clipart":
        dataset = _clipart()
    elif name == "digits":
        dataset = _digits(val_fraction, test_fraction)
    else:
        dataset = _random()
    if not len(dataset.split["train"]):
        raise RequestError(
            f"data.val_fraction and data.test_fraction: expected pictures to train on; none of the"
            f" {len(dataset.images)} falls to train"
        )
    return dataset


def _clipart() -> Dataset:
    with (CLIPART / "manifest.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    classes = tuple(sorted({row["class"] for row in rows}))
    split = {side: np.array([i for i, row in enumerate(rows) if row["split"] == side]) for side in SPLITS}
    return Dataset(
        "clipart",
        classes,
        [CLIPART / row["file"] for row in rows],
        np.array([classes.index(row["class"]) for row in rows]),
        split,
        [row["sha256"] for row in rows],
    )


def _digits(val_fraction: float, test_fraction: float) -> Dataset:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = [np.round(image * (255 / 16)).astype(np.uint8) for image in digits.images]
    digests = [splits.digest(image) for image in images]
    return Dataset(
        "digits",
        tuple("0123456789"),
        images,
        digits.target.astype(np.int64),
        splits.by_content(digests, val_fraction, test_fraction),
        digests,
    )


def _random() -> Dataset:
    """One picture of noise with a random label vector, as PyTorch's introduction to autograd has it."""
    generator = np.random.default_rng(0)
    image = generator.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    labels = generator.random((1, 1000), dtype=np.float32)
    none = np.array([], dtype=np.int64)
    return Dataset(
        "random",
        tuple(f"output {i}" for i in range(1000)),
        [image],
        labels,
        {"train": np.array([0]), "val": none, "test": none},
        [splits.digest(image)],
    )


def _folder(root: str | None, val_fraction: float, test_fraction: float, memo: Path | None) -> Dataset:
    if root is None:
        raise RequestError(
            "data.root: expected the folder of your pictures with data=folder: data.root=path/to/pictures"
        )
    folder, asked = Path(os.path.expanduser(root)), f"data.root={root}"
    if not os.path.isdir(folder):
        there = "this is a file" if os.path.exists(folder) else "there is none"
        raise RequestError(f"{asked}: expected a folder; {there}")
    given = _given_sides(folder, asked)
    tops = given or {"train": folder}
    classes = tuple(sorted({child.name for top in tops.values() for child in _subfolders(top, asked)}))
    pictures: list[Path] = []
    labels, sides = [], []
    ignored = sum(map(os.path.isfile, (path for top in tops.values() for path in top.iterdir())))
    for side, top in tops.items():
        for label, name in enumerate(classes):
            files = list(files_below(top / name))
            found = [path for path in files if is_picture(path)]
            ignored += len(files) - len(found)
            pictures += found
            labels += [label] * len(found)
            sides += [side] * len(found)
    _check_classes(
        classes, {label for label, side in zip(labels, sides, strict=True) if side == "train"}, asked
    )
    digests = file_digests(pictures, memo)
    if given:
        split = {side: np.flatnonzero(np.array(sides) == side) for side in SPLITS}
        if "val" not in given:  # validation is taken out of train, never out of test
            split = splits.take_validation(split, digests, val_fraction)
    else:
        split = splits.by_content(digests, val_fraction, test_fraction)
    return Dataset(str(folder), classes, pictures, np.array(labels), split, digests, ignored)


def _given_sides(folder: Path, asked: str) -> dict[str, Path]:
    """The folders train, val and test where the user has split the pictures."""
    subfolders = _subfolders(folder, asked)
    given = {path.name: path for path in subfolders if path.name in SPLITS}
    others = [p.name for p in subfolders if p.name not in SPLITS and any(map(is_picture, files_below(p)))]
    if given and ("train" not in given or others):
        raise RequestError(
            f"{asked}: expected either a folder per class, or only train, val and test with the classes below"
            f" them; there are {brief([*given, *others])}"
        )
    return given


def _check_classes(classes: Sequence[str], present: set[int], asked: str) -> None:
    if not classes:
        raise RequestError(f"{asked}: expected a folder per class with pictures in it; there are no folders")
    if not present:
        raise RequestError(
            f"{asked}: expected pictures ({', '.join(EXTENSIONS)}) in its class folders; there are none"
        )
    if empty := [name for label, name in enumerate(classes) if label not in present]:
        raise RequestError(
            f"{asked}: expected pictures to train on in every class folder; none in {brief(empty)}"
        )
    if len(classes) < 2:
        raise RequestError(f"{asked}: expected two classes or more; there is only {classes[0]}")


def is_picture(path: Path) -> bool:
    """Whether a file's name is that of a picture; what is in it is seen when it is decoded."""
    return path.suffix.lower() in EXTENSIONS and not path.name.startswith(".")


def _subfolders(folder: Path, asked: str) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError as error:
        raise RequestError(f"{asked}: {folder} cannot be read: {error.strerror}") from None


def files_below(folder: Path) -> Iterator[Path]:
    """Every file below a folder but those in hidden folders, links followed, in a stable order."""
    seen = set()
    for where, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(where)) in seen:  # a link to a folder above would go round for ever
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(where) / name for name in sorted(names))
