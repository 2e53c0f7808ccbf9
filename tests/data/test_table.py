"""Tables of images: paths, labels and sides, and what is said of those that are no such tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finetune.data.dataset import Dataset
from finetune.data.sources import load_dataset
from finetune.errors import RequestError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve images, 0.png to 11.png, in a folder below a table's."""
    (tmp_path / "my images").mkdir()
    for number in range(12):
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "my images" / f"{number}.png")
    return tmp_path


def table(folder: Path, *rows: str, name: str = "labels.csv", encoding: str = "utf-8") -> Path:
    path = folder / name
    path.write_text("\n".join(rows) + "\n", encoding=encoding)
    return path


def csv(path: Path, **knobs: str) -> Dataset:
    return load_dataset("csv", str(path), 0.15, 0.15, **knobs)


def rows(*labels: str) -> list[str]:
    return [f"my images/{number}.png,{label}" for number, label in enumerate(labels)]


def test_paths_start_at_the_tables_folder_and_labels_are_classes(folder: Path) -> None:
    found = csv(table(folder, "path,label", *rows(*["Hund", "Kätzchen", "猫"] * 4)))
    assert found.classes == ("Hund", "Kätzchen", "猫")
    assert found.labels.tolist() == [0, 1, 2] * 4
    assert found.images[3] == folder / "my images" / "3.png"
    assert not found.multi_label
    assert sum(found.counts().values()) == 12


def test_an_absolute_path_is_taken_as_it_is(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    lines = [f"{folder}/{row}" for row in rows(*"abababababab")]
    assert csv(table(elsewhere, "path,label", *lines)).images[0] == folder / "my images" / "0.png"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_tabs_quotes_and_the_mark_of_spreadsheets(folder: Path, encoding: str) -> None:
    lines = ['"my images/0.png"\t"a, b"', "my images/1.png\tc", "my images/2.png\tc"]
    found = csv(table(folder, "path\tlabel", *lines, name="labels.TSV", encoding=encoding))
    assert found.classes == ("a, b", "c")


def test_numbers_stand_in_their_order(folder: Path) -> None:
    found = csv(table(folder, "path,label", *rows("10", "9", "100", "9")))
    assert found.classes == ("9", "10", "100")


def test_a_split_in_the_table_is_taken(folder: Path) -> None:
    sides = ["train"] * 4 + ["Training"] * 2 + ["val"] * 2 + ["Validation"] + ["TEST", "test", "testing"]
    lines = [f"{row},{side}" for row, side in zip(rows(*"ab" * 6), sides, strict=True)]
    found = csv(table(folder, "path,label,split", *lines))
    assert {side: indices.tolist() for side, indices in found.split.items()} == {
        "train": [0, 1, 2, 3, 4, 5],
        "val": [6, 7, 8],
        "test": [9, 10, 11],
    }


def test_data_split_none_leaves_the_column_aside(folder: Path) -> None:
    lines = [f"{row},fold {n}" for n, row in enumerate(rows(*"ab" * 6))]
    path = table(folder, "path,label,split", *lines)
    assert load_dataset("csv", str(path), 0.0, 0.0, split="none").counts()["train"] == 12


def test_a_table_of_one_class_or_to_test_with_alone_can_be_measured(folder: Path) -> None:
    one = str(table(folder, "path,label", *rows(*"aaaa")))
    alone = str(
        table(folder, "path,label,split", *(f"{row},test" for row in rows(*"abab")), name="alone.csv")
    )
    for path, told in ((one, "there is only a"), (alone, "there are only those of test")):
        with pytest.raises(RequestError, match=told):
            load_dataset("csv", path, 0.15, 0.15)
    assert len(load_dataset("csv", one, 0.15, 0.15, measured=True).images) == 4
    assert load_dataset("csv", alone, 0.15, 0.15, measured=True).counts() == {"train": 0, "val": 0, "test": 4}


def test_columns_have_the_names_the_knobs_give_them(folder: Path) -> None:
    lines = [f"{n},{row}" for n, row in enumerate(rows(*"abababababab"))]
    found = csv(table(folder, "id,file,kind", *lines), image_column="file", label_column="kind")
    assert found.classes == ("a", "b")


def test_several_labels_are_vectors(folder: Path) -> None:
    labels = (
        "red|blue",
        "blue",
        "",
        "red | green",
        "red",
        "blue",
        "green",
        "",
        "red",
        "blue",
        "green",
        "red",
    )
    found = csv(table(folder, "path,label", *rows(*labels)))
    assert found.classes == ("blue", "green", "red")
    assert found.multi_label
    assert found.labels.dtype == np.float32
    assert found.labels[:4].tolist() == [[1, 0, 1], [1, 0, 0], [0, 0, 0], [0, 1, 1]]


def test_parquet_says_the_same(folder: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    labels = ["a", "b", "b", "a"] * 3
    columns = {"path": [f"my images/{n}.png" for n in range(12)], "label": labels}
    parquet.write_table(pyarrow.table(columns), folder / "labels.parquet")
    same = csv(table(folder, "path,label", *rows(*labels)))
    assert csv(folder / "labels.parquet").fingerprint() == same.fingerprint()


def test_the_fingerprint_of_several_labels_does_not_depend_on_their_order(folder: Path) -> None:
    labels = ["a|b", "b", "a", "c|a"] * 3
    turned = ["b|a", "b", "a", "a|c"] * 3
    first, second, third = (
        csv(table(folder, "path,label", *rows(*some))).fingerprint()
        for some in (labels, turned, ["a|c", *labels[1:]])
    )
    assert first == second != third


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (["path,kind", "a.png,b"], "expected a column label (data.label_column); there are path, kind"),
        (["file,label", "a.png,b"], "expected a column path (data.image_column); there are file, label"),
        (["path,label"], "expected rows below the names of its columns; there are none"),
        (["path,label", "a.png,b", "b.png"], "row 2: expected a path and a label"),
        (["path,label", "a.png,b", ",c"], "row 2: expected a path and a label"),
        (
            ["path,label,split", "a.png,b,later"],
            "row 1: expected train, val or test as its split, not 'later'; data.split=none does without",
        ),
        (["path,label", 'a.png,"b'], "cannot be read as .csv (unexpected end of data)"),
        (["path,label", "a.png,b", "b.png,b"], "expected two classes or more; there is only b"),
        (
            ["path,label,split", "a,x,train", "b,y,test", "c,z,train"],
            "expected images to train on for every class; none for y",
        ),
    ],
)
def test_what_is_wrong_with_a_table_is_told(folder: Path, lines: list[str], told: str) -> None:
    path = table(folder, *lines)
    with pytest.raises(RequestError) as raised:
        csv(path)
    assert str(raised.value) == f"data.root={path}: {told}".replace(": row", ": row")


@pytest.mark.parametrize("name", ["gone.csv", "folder.csv", "labels.txt"])
def test_what_is_no_table_is_told(folder: Path, name: str) -> None:
    (folder / "folder.csv").mkdir()
    (folder / "labels.txt").touch()
    with pytest.raises(RequestError, match=r"expected a table, .csv, .tsv or .parquet"):
        csv(folder / name)


def test_another_encoding_is_told(folder: Path) -> None:
    path = table(folder, "path,label", "a.png,Kätzchen", encoding="latin-1")
    with pytest.raises(RequestError, match=r"cannot be read as .csv \('utf-8' codec can't decode"):
        csv(path)


@pytest.mark.parametrize("source", ["folder", "torchvision", "webdataset"])
def test_a_knob_of_another_source_is_refused(folder: Path, source: str) -> None:
    with pytest.raises(RequestError, match=r"^data.label_column=kind: expected data=csv or hf with it$"):
        load_dataset(source, str(folder), 0.15, 0.15, label_column="kind")
