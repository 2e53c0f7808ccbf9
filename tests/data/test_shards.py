"""WebDataset shards: archives whose files belong together by their names."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finetune.data.dataset import Dataset
from finetune.data.images import decode
from finetune.data.sources import load_dataset
from finetune.errors import RequestError
from finetune.model.preprocessing import Preprocessing


def pixels(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)


def png(seed: int) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels(seed)).save(content, format="PNG")
    return content.getvalue()


def write(path: Path, files: dict[str, bytes]) -> None:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def write_samples(path: Path, seeds: range, labels: int = 2, **more: bytes) -> None:
    files = {}
    for seed in seeds:
        sample = {"png": png(seed), "cls": str(seed % labels).encode(), **more}
        files |= {f"some/{seed:04}.{extension}": content for extension, content in sample.items()}
    write(path, files)


def shards(root: Path) -> Dataset:
    return load_dataset("webdataset", str(root), 0.2, 0.2)


def test_samples_of_all_shards(tmp_path: Path) -> None:
    write_samples(tmp_path / "set" / "a-0.tar", range(12), labels=12)
    write_samples(tmp_path / "set" / "a-1.tar", range(12, 36), labels=12)
    found = shards(tmp_path / "set")
    assert found.classes == tuple(map(str, range(12)))
    assert len(found.images) == 36
    assert sum(map(len, found.split.values())) == 36
    assert str(found.images[13]).endswith("a-1.tar/some/0013.png")
    assert np.array_equal(decode(found.images[13], Preprocessing(8, 8)).permute(1, 2, 0).numpy(), pixels(13))


def test_names_of_shards_are_sides(tmp_path: Path) -> None:
    for name, seeds in (
        ("train-00", range(8)),
        ("train-01", range(8, 12)),
        ("val-0", range(12, 16)),
        ("test-0", range(16, 18)),
    ):
        write_samples(tmp_path / "set" / f"{name}.tar", seeds)
    assert shards(tmp_path / "set").counts() == {"train": 12, "val": 4, "test": 2}


def test_a_side_is_a_word_of_a_shards_name_in_any_spelling(tmp_path: Path) -> None:
    """As people name them; what macOS puts beside them is no shard."""
    names = ("imagenet-Train-000000", "imagenet-train-000001", "imagenet-validation-0", "testing00", "c#test")
    for number, name in enumerate(names):
        write_samples(tmp_path / "set" / f"{name}.tar", range(4 * number, 4 * number + 4))
    (tmp_path / "set" / "._testing00.tar").write_bytes(b"no archive")
    assert shards(tmp_path / "set").counts() == {"train": 8, "val": 4, "test": 8}
    whole = load_dataset("webdataset", str(tmp_path / "set"), 0.0, 0.0, split="none")
    assert whole.counts() == {"train": 20, "val": 0, "test": 0}


def test_shards_to_test_with_alone_train_nothing(tmp_path: Path) -> None:
    write_samples(tmp_path / "set" / "test-0.tar", range(4))
    with pytest.raises(RequestError, match=r"expected images to train on; there are only those of test$"):
        shards(tmp_path / "set")
    measured = load_dataset("webdataset", str(tmp_path / "set"), 0.2, 0.2, measured=True)
    assert measured.counts() == {"train": 0, "val": 0, "test": 4}


def test_only_some_shards_named_as_sides_is_refused(tmp_path: Path) -> None:
    write_samples(tmp_path / "set" / "train-0.tar", range(8))
    write_samples(tmp_path / "set" / "more-0.tar", range(8, 16))
    with pytest.raises(
        RequestError,
        match=r"in the names of all shards, or of none; there are more-0.tar, train-0.tar \(data.split=none",
    ):
        shards(tmp_path / "set")


def test_other_files_of_a_sample_do_no_harm(tmp_path: Path) -> None:
    write_samples(tmp_path / "set" / "0.tar", range(8), json=b"{}")
    assert len(shards(tmp_path / "set").images) == 8


def test_files_that_are_no_sample_are_passed_over(tmp_path: Path) -> None:
    others = {
        "a.b/c.d/e.PNG": png(1),
        "a.b/c.d/e.cls": b" ape\n",
        "README": b"",
        ".hidden.png": b"",
        "x.json": b"",
    }
    write(tmp_path / "set" / "0.tar", {"f.seg.png": b"", "f.png": png(2), "f.cls": b"bee", **others})
    found = shards(tmp_path / "set")
    assert found.classes == ("ape", "bee")
    assert [str(image).partition("0.tar/")[2] for image in found.images] == ["f.png", "a.b/c.d/e.png"]
    assert found.passed_over.total() == 1


def test_an_image_without_a_label_is_named(tmp_path: Path) -> None:
    write(tmp_path / "set" / "0.tar", {"a.png": png(0)})
    with pytest.raises(RequestError, match=r"expected a.cls in 0.tar, an image's label$"):
        shards(tmp_path / "set")


def test_an_empty_label_is_none(tmp_path: Path) -> None:
    write(tmp_path / "set" / "0.tar", {"a.png": png(0), "a.cls": b" \n", "b.png": png(1), "b.cls": b"bee"})
    with pytest.raises(RequestError, match=r"expected a label in UTF-8 for .*0.tar/a.png$"):
        shards(tmp_path / "set")


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    write_samples(tmp_path / "set" / "0.tar", range(8))
    content = (tmp_path / "set" / "0.tar").read_bytes()
    (tmp_path / "set" / "0.tar").write_bytes(content[: len(content) // 2 + 100])
    with pytest.raises(RequestError, match=r"0.tar is damaged \("):
        shards(tmp_path / "set")


def test_a_folder_without_shards_is_told(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"expected a folder of .tar shards; there are none$"):
        shards(tmp_path)


def test_a_label_is_text_in_utf_8(tmp_path: Path) -> None:
    for number, label in enumerate(("café".encode(), "\ufeffdog".encode())):
        write_samples(tmp_path / "set" / f"{number}.tar", range(4 * number, 4 * number + 4), cls=label)
    assert shards(tmp_path / "set").classes == ("café", "dog")
    write_samples(tmp_path / "set" / "2.tar", range(8, 12), cls=b"caf\xe9")
    with pytest.raises(RequestError, match=r"expected a label in UTF-8 for .*2.tar/.*"):
        shards(tmp_path / "set")
