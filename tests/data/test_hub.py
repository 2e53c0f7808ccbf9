"""Hugging Face data sets, small ones on disk, through their own library."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from finetune.data.dataset import Dataset, Stored
from finetune.data.images import decode
from finetune.data.sources import load_dataset
from finetune.errors import RequestError
from finetune.model.preprocessing import Preprocessing

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def pixels(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)


def png(seed: int) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels(seed)).save(content, format="PNG")
    return content.getvalue()


def table(labels: list[Any], kind: Any, first: int = 0, column: str = "label") -> Any:
    rows = {"image": [{"bytes": png(first + n), "path": None} for n in range(len(labels))], column: labels}
    return datasets.Dataset.from_dict(rows, datasets.Features({"image": datasets.Image(), column: kind}))


def hf(root: Path | None, **knobs: str) -> Dataset:
    return load_dataset("hf", None if root is None else str(root), 0.15, 0.15, **knobs)


NAMES = datasets.ClassLabel(names=["zebra", "ape", "never"])


def test_a_folder_per_class_by_imagefolder(few_pictures: Path) -> None:
    found, ours = hf(few_pictures, name="imagefolder"), load_dataset("folder", str(few_pictures), 0.15, 0.15)
    assert found.name == "imagefolder"
    assert found.classes == ours.classes
    assert found.fingerprint() == ours.fingerprint()  # the same images, labels and split


def test_a_saved_set_with_sides_keeps_its_classes_and_order(tmp_path: Path) -> None:
    parts = {
        "train": table([0, 1] * 5, NAMES),
        "validation": table([0, 1], NAMES, 10),
        "test": table([1], NAMES, 12),
    }
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "saved"))
    found = hf(tmp_path / "saved")
    assert found.classes == ("zebra", "ape", "never")
    assert found.counts() == {"train": 10, "val": 2, "test": 1}
    image = found.images[11]
    assert isinstance(image, Stored)
    assert np.array_equal(decode(image, Preprocessing(8, 8)).permute(1, 2, 0).numpy(), pixels(11))


def test_sides_are_known_by_any_spelling_and_none_hides_another(tmp_path: Path) -> None:
    parts = {
        "Training": table([0, 1] * 5, NAMES),
        "val": table([0, 1], NAMES, 10),
        "validation": table([0, 1, 0], NAMES, 12),
        "TESTING": table([1], NAMES, 15),
    }
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "saved"))
    found = hf(tmp_path / "saved")
    assert found.counts() == {"train": 10, "val": 2, "test": 1}
    assert found.warnings == ("parts that are not train, val or test are left out: validation",)


def test_a_single_part_is_split_by_content(tmp_path: Path) -> None:
    table(["b", "a", "a"] * 20, datasets.Value("string")).save_to_disk(str(tmp_path / "saved"))
    found = hf(tmp_path / "saved")
    assert found.classes == ("a", "b")
    assert all(found.counts().values())


def test_parquet_files_in_a_folder(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    table([0, 1] * 10, NAMES).to_parquet(str(tmp_path / "files" / "train.parquet"))
    table([0, 1] * 2, NAMES, 20).to_parquet(str(tmp_path / "files" / "test.parquet"))
    assert len(hf(tmp_path / "files").split["test"]) == 4


def test_several_labels(tmp_path: Path) -> None:
    labels = [[0], [1, 0], [], [1]] * 5
    table(labels, datasets.Sequence(NAMES), column="labels").save_to_disk(str(tmp_path / "saved"))
    found = hf(tmp_path / "saved")
    assert found.multi_label
    assert found.classes == ("zebra", "ape", "never")
    assert found.labels[:4].tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 0], [0, 1, 0]]


def test_a_side_without_labels_is_left_out_and_told(tmp_path: Path) -> None:
    parts = {"train": table([0, 1] * 10, NAMES), "test": table([-1] * 4, NAMES, 20)}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "saved"))
    found = hf(tmp_path / "saved")
    assert sum(found.counts().values()) == 20
    assert "test has no labels and is left out" in found.warnings


@pytest.mark.parametrize(
    ("labels", "kind"),
    [
        ([0, 1, -1, 0], NAMES),
        ([0, 1, None, 0], NAMES),
        (["a", "b", "", "a"], datasets.Value("string")),
        ([0.0, 1.0, float("nan"), 0.0], datasets.Value("float32")),
        ([[0], [1, 0], [0, -1], []], datasets.Sequence(NAMES)),
        ([[0], [1, 0], None, []], datasets.Sequence(NAMES)),
    ],
)
def test_a_row_without_its_label_is_told(tmp_path: Path, labels: list[Any], kind: Any) -> None:
    table(labels, kind).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(RequestError, match=r"expected a label for every image; row 2 of train has none$"):
        hf(tmp_path / "saved")


def test_a_row_without_its_image_is_told(tmp_path: Path) -> None:
    rows = {"image": [{"bytes": png(0), "path": None}, None], "label": [0, 1]}
    kinds = datasets.Features({"image": datasets.Image(), "label": NAMES})
    datasets.Dataset.from_dict(rows, kinds).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(RequestError, match=r"expected an image in every row; row 1 of train has none$"):
        hf(tmp_path / "saved")


def test_minus_one_is_a_number_like_others_where_numbers_are_no_classes(tmp_path: Path) -> None:
    table([-1, 1] * 10, datasets.Value("int64")).save_to_disk(str(tmp_path / "saved"))
    assert hf(tmp_path / "saved").classes == ("-1", "1")


def test_sides_may_name_classes_in_another_order_but_none_of_their_own(tmp_path: Path) -> None:
    def turned(label: int) -> Any:
        names = datasets.ClassLabel(names=["ape", "zebra", "new"])
        parts = {"train": table([0, 1] * 5, NAMES), "test": table([0, label], names, 10)}
        datasets.DatasetDict(parts).save_to_disk(str(tmp_path / str(label)))
        return hf(tmp_path / str(label))

    found = turned(1)
    assert found.classes == ("zebra", "ape", "never", "new")
    assert found.labels[-2:].tolist() == [1, 0]
    with pytest.raises(RequestError, match=r"expected images to train on for every class; none for new$"):
        turned(2)


@pytest.mark.parametrize(
    ("knobs", "told"),
    [
        ({"label_column": "kind"}, "data.label_column=kind: expected one of its columns, image, label"),
        ({"image_column": "label"}, "data.image_column=label: expected a column of images"),
    ],
)
def test_a_wrong_column_is_told(tmp_path: Path, knobs: dict[str, str], told: str) -> None:
    table([0, 1] * 5, NAMES).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(RequestError) as raised:
        hf(tmp_path / "saved", **knobs)
    assert str(raised.value) == told


def test_columns_that_cannot_be_told_apart_are_asked_for(tmp_path: Path) -> None:
    table(["a", "b"] * 5, datasets.Value("string"), column="kind").save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(
        RequestError, match=r"expected data.label_column=… with it, one of its columns, image, kind"
    ):
        hf(tmp_path / "saved")
    assert hf(tmp_path / "saved", label_column="kind").classes == ("a", "b")


def test_pictures_without_labels_are_told(tmp_path: Path) -> None:
    table([0, 1] * 5, NAMES).select_columns(["image"]).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(RequestError, match=r"expected a column of labels beside its images; there is none$"):
        hf(tmp_path / "saved")


def test_neither_name_nor_root() -> None:
    with pytest.raises(RequestError, match=r"^data.name: expected a data set of the hub, or imagefolder"):
        hf(None)


def test_what_cannot_be_loaded_is_told_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(
        RequestError, match=r"^data.name=nobody/nothing: cannot be loaded by the package datasets"
    ):
        hf(None, name="nobody/nothing")
    with pytest.raises(RequestError, match=r"^data.root=.*gone: expected a folder; there is none$"):
        hf(tmp_path / "gone")


def test_a_hub_that_does_not_answer_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A port of this machine at which nobody listens; the library's own attempts would take a minute."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    for module in ("datasets.config", "huggingface_hub.constants"):
        monkeypatch.setattr(f"{module}.HF_HUB_OFFLINE", False)
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(RequestError, match=r"^data.name=nobody/nothing: .* \(no connection\)\)$"):
        hf(None, name="nobody/nothing")
    assert not datasets.config.HF_HUB_OFFLINE  # for what comes after
