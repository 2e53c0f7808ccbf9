"""Images and stores that change while features are computed: no row is of another image, and none is lost."""

from __future__ import annotations

import shutil
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from finetune.data import sources
from finetune.data.dataset import Dataset, Stored
from finetune.data.digests import known_bad
from finetune.data.images import ChangedImage
from finetune.features import inventory
from finetune.features.load import LARGE, LoadSettings, ModelInputs, load_inputs
from finetune.features.plan import FeaturePlan, FeatureSettings, plan_features
from finetune.features.store import Store
from finetune.model.assemble import Model, ModelConfig, assemble
from support.slow import slow

SIZE, COUNT = 32, 40  # three batches


@contextmanager
def silent(*_: Any):
    yield lambda done: None


@cache
def model() -> Model:
    return assemble(ModelConfig("shufflenet_v2_x0_5", "random", ["all"], 2, image_size=SIZE), ["a", "b"])


@cache
def plan(kept: str) -> FeaturePlan:
    settings = FeatureSettings(
        cache=kept,
        cache_dir=Path("/"),
        cache_max_gb=20,
        augment="none",
        precision="32",
        compile=False,
        device="cpu",
        multiplies_bf16=False,
    )
    return plan_features(model(), sources.load_dataset("digits", None, 0.15, 0.15), settings)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for number in range(COUNT):
        paint(tmp_path / "images" / "ab"[number % 2] / f"{number:02}.png", number)
    return tmp_path / "images"


def paint(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def load(root: Path, memo: Path | None = None) -> Dataset:
    return sources.load_dataset("folder", str(root), 0.15, 0.15, memo)


def prepared(dataset: Dataset, folder: Path, kept: str = "disk") -> ModelInputs:
    settings = LoadSettings(
        workers=1, seed=0, memo=folder / "digests.sqlite", progress=silent, on_wait=lambda: None
    )
    return load_inputs(replace(plan(kept), cache_dir=folder / "cache"), model(), dataset, settings)


def by_name(ready: ModelInputs) -> dict[str, torch.Tensor]:
    rows = ready.inputs(torch.arange(len(ready.dataset.images)))
    assert isinstance(rows, torch.Tensor)
    return {str(path): row for path, row in zip(ready.dataset.images, rows, strict=True)}


def check_store(folder: Path, root: Path) -> None:
    """What the next run takes from the store is what a run without one computes."""
    stored, computed = prepared(load(root), folder), prepared(load(root), folder, "memory")
    assert by_name(stored).keys() == by_name(computed).keys()
    for name, row in by_name(computed).items():
        assert torch.equal(by_name(stored)[name], row), name


@pytest.mark.parametrize(
    "memory", [1 << 40, pytest.param(1000, marks=pytest.mark.slow)], ids=["held", "in blocks"]
)
@pytest.mark.parametrize("removed", [slow("clear"), "rm"])
def test_a_store_removed_between_two_appends_harms_neither_this_run_nor_the_next(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, removed: str, memory: int
) -> None:
    append, calls = Store.append, []

    def interfered(self: Store, *arguments: Any) -> None:
        append(self, *arguments)
        calls.append(1)
        if len(calls) == 1:
            if removed == "clear":
                inventory.clear(tmp_path / "cache")
            else:
                shutil.rmtree(tmp_path / "cache" / "features")
            monkeypatch.setattr(Store, "append", append)
            if removed == "rm":  # and another run begins, of other images, before this one goes on
                prepared(load(root).without(range(0, COUNT, 3)), tmp_path)

    monkeypatch.setattr("finetune.features.plan.ram", lambda: memory)
    monkeypatch.setattr(Store, "append", interfered)
    mine = prepared(load(root), tmp_path)
    wanted = by_name(prepared(load(root), tmp_path, "memory"))
    for name, row in by_name(mine).items():
        assert torch.equal(row, wanted[name]), name
    assert mine.notes == ((LARGE,) if memory == 1000 else ())
    check_store(tmp_path, root)


@pytest.mark.parametrize("kept", ["disk", slow("memory"), "none"])
@pytest.mark.parametrize("broken", [False, slow(True)])
def test_an_image_replaced_after_it_was_hashed_ends_the_run_and_is_not_stored(
    root: Path, tmp_path: Path, kept: str, broken: bool
) -> None:
    dataset, replaced = load(root), root / "a" / "20.png"
    if broken:
        replaced.write_bytes(b"no image at all")
    else:
        paint(replaced, 999)
    with pytest.raises(ChangedImage, match=f"^{replaced}: changed since the run began"):
        prepared(dataset, tmp_path, kept)
    assert known_bad(dataset.digests, tmp_path / "digests.sqlite") == {}
    paint(replaced, 20)  # the first image again, whose digest the wrong row would have
    check_store(tmp_path, root)


@pytest.mark.parametrize("kept", ["disk", "memory", "none"])
def test_a_folder_that_is_gone_after_it_was_hashed_ends_the_run_with_a_name(
    root: Path, tmp_path: Path, kept: str
) -> None:
    """It may be on a disk of the network; with all features in the store, too."""
    dataset = load(root)
    for stored in (False, True):
        if stored:
            prepared(dataset, tmp_path, kept)
        root.rename(tmp_path / "gone")
        with pytest.raises(ChangedImage, match="no such file or directory, though it could be read when the"):
            prepared(dataset, tmp_path, kept)
        (tmp_path / "gone").rename(root)


def test_a_file_that_was_never_there_is_a_broken_image(root: Path, tmp_path: Path) -> None:
    (root / "a" / "gone.png").symlink_to("nowhere.png")
    inputs = prepared(load(root), tmp_path)
    assert [bad.reason for bad in inputs.bad] == ["no such file or directory"]


@pytest.mark.slow
def test_rows_computed_before_the_image_that_was_replaced_are_kept(root: Path, tmp_path: Path) -> None:
    dataset = load(root)
    paint(root / "b" / "39.png", 999)  # in the last batch
    with pytest.raises(ChangedImage):
        prepared(dataset, tmp_path)
    again = prepared(load(root), tmp_path)
    assert again.features is not None
    assert again.features["reused"] >= 16
    check_store(tmp_path, root)


def test_an_image_of_an_archive_that_was_replaced_ends_the_run_too(root: Path, tmp_path: Path) -> None:
    dataset = load(root)
    contents = {str(path): Path(str(path)).read_bytes() for path in dataset.images}
    images = [Stored(name, lambda name=name: contents[name]) for name in contents]
    contents[images[7].name] = contents[images[8].name]
    with pytest.raises(ChangedImage, match=f"^{images[7].name}: changed"):
        prepared(replace(dataset, images=images), tmp_path)


def test_pixels_that_are_not_those_that_were_hashed_end_the_run_too(tmp_path: Path) -> None:
    dataset = sources.load_dataset("digits", None, 0.15, 0.15)
    dataset = dataset.without(range(20, len(dataset.images)))
    dataset.images[3][0, 0] ^= 1
    with pytest.raises(ChangedImage, match="changed since the run began"):
        prepared(dataset, tmp_path)


def test_rows_that_are_not_read_back_as_they_were_written_are_not_used(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = Store.append

    def flipping(self: Store, *arguments: Any) -> None:
        append(self, *arguments)
        with (self.folder / "data.bin").open("r+b") as file:
            file.seek(100)
            byte = file.read(1)[0]
            file.seek(100)
            file.write(bytes([byte ^ 1]))

    monkeypatch.setattr(Store, "append", flipping)
    with pytest.raises(RuntimeError, match="not read back as they were written"):
        prepared(load(root), tmp_path)
    monkeypatch.undo()
    check_store(tmp_path, root)
