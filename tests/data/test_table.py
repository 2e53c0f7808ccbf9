"""Tables of images: paths, labels and sides, and what is said of those that are no such tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unicodedata import normalize

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


def csv(path: Path, **knobs: Any) -> Dataset:
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


@pytest.mark.parametrize("before", ["\n \r\n", "sep=;\n", '"sep=;"\r\n\n', "\nsep=;\r\n"])
def test_what_stands_before_the_header_and_spaces_before_quotes(folder: Path, before: str) -> None:
    lines = [f'my images/{n}.png; "{"cd"[n % 2]}; e"' for n in range(12)]
    found = csv(table(folder, f"{before}path; label", *lines))
    assert found.classes == ("c; e", "d; e")


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


WAY = "; data.label_separator='|' takes them as images without any"


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (
            ["filename,kind,split", "a.png,b,train", "b.PNG,c,val"],
            "expected a column path (data.image_column); there are filename, kind, split",
        ),
        (
            ["path,kind,age", "a.png,b,1"],
            "expected a column label (data.label_column); there are path, kind, age",
        ),
        (["path,label"], "expected rows below the names of its columns; there are none"),
        (["path,label", "a.png,b", "b.png"], "row 2: expected a path and a label" + WAY),
        (
            ["path,label", "a.png,b", "b.png,nan", "c.png,"],
            "row 2: expected a path and a label, not 'nan'; 2 of 3 rows have no label" + WAY,
        ),
        (
            ["path,label,label", "a.png,b,c"],
            "expected a column label (data.label_column); there are 2 of this name",
        ),
        (["Path,label,LABEL", "a.png,b,c", "b.png,b,c"], "expected two classes or more; there is only b"),
        (
            ["a.png,b", "b.png,c"],
            "expected a column path (data.image_column); there are a.png, b;"
            " its first row is to name the columns",
        ),
        (
            ["path,label", "a.png,b", "b.png,c, d"],
            "row 2: expected 2 cells, as its header (path, label) has, not 3;"
            " a cell with ',' in it goes into quotes",
        ),
        (["path,label", "a.png,[b c]"], "row 1: expected a list such as ['cat', 'dog'], not [b c]"),
        (
            ["path,label", "D:\\x\\gone.png,c", "D:\\x\\1.png,b"],
            "row 1: D:\\x\\gone.png is a path of another machine; expected one of this, or a file below"
            " {folder} (data.image_folder) that has the end of it as its path",
        ),
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
    assert str(raised.value) == f"data.root={path}: {told.format(folder=folder)}"


@pytest.mark.parametrize("name", ["gone.csv", "folder.csv", "labels.txt"])
def test_what_is_no_table_is_told(folder: Path, name: str) -> None:
    (folder / "folder.csv").mkdir()
    (folder / "labels.txt").touch()
    with pytest.raises(
        RequestError, match=r"expected a table \(.csv, .tsv, .parquet, .arrow, .feather\); th"
    ):
        csv(folder / name)


def test_another_encoding_is_told(folder: Path) -> None:
    found = csv(table(folder, "path,label", *rows(*["Kätzchen", "Hund"] * 6), encoding="cp1252"))
    assert found.classes == ("Hund", "Kätzchen")
    assert found.warnings == ("the table is not in UTF-8: read as cp1252, as Windows writes it",)


@pytest.mark.parametrize("source", ["folder", "torchvision", "webdataset"])
def test_a_knob_of_another_source_is_refused(folder: Path, source: str) -> None:
    with pytest.raises(RequestError, match=r"^data.label_column=kind: expected data=csv or hf with it$"):
        load_dataset(source, str(folder), 0.15, 0.15, label_column="kind")


# As they come from other hands


@pytest.mark.parametrize("separator", [";", "\t", "|", ","])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_separator_and_encoding_are_found(folder: Path, separator: str, encoding: str) -> None:
    lines = [f"my images/{number}.png{separator}{'äb'[number % 2]}" for number in range(12)]
    found = csv(table(folder, f" Path {separator}LABEL", *lines, encoding=encoding))
    assert found.classes == ("b", "ä")
    assert all(Path(str(path)).exists() for path in found.images)
    assert found.warnings == found.notes == ()


def test_lines_may_end_in_a_carriage_return_alone(folder: Path) -> None:
    path = folder / "labels.csv"
    path.write_text("\r".join(["path;label", *(line.replace(",", ";") for line in rows(*"ab" * 6))]))
    assert csv(path).labels.tolist() == [0, 1] * 6


@pytest.mark.parametrize(
    "written",
    [
        "my images\\{}.png",
        "file://{folder}/my%20images/{}.png",
        "file://localhost{folder}/my%20images/{}.png",
        "{}",
        "{}.png",
        "C:\\Users\\me\\My images\\{}.PNG",
        "/home/me/my images/{}.png",
    ],
)
def test_paths_as_others_write_them(folder: Path, written: str) -> None:
    lines = [f"{written.format(number, folder=folder)},{'ab'[number % 2]}" for number in range(12)]
    found = csv(table(folder, "path,label", *lines))
    assert list(found.images) == [folder / "my images" / f"{number}.png" for number in range(12)]
    told = f"no path in it is a file; found 12 of 12 images by the ends of their paths below {folder}"
    assert found.warnings == (() if "my images" in written[:9] or "file:" in written else (told,))


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_an_accent_may_be_coded_otherwise_than_in_the_files_name(folder: Path, form: Any) -> None:
    for number in (1, 2):  # the others are found as they are written
        image = folder / "my images" / f"{number}.png"
        image.rename(image.with_name(normalize("NFC" if number == 1 else "NFD", f"été {number}.png")))
    names = [f"été {number}" if number in (1, 2) else str(number) for number in range(12)]
    lines = [normalize(form, f"my images/{name},a") for name in names[:6]]
    lines += [f"my images\\{name},b" for name in names[6:]]
    found = csv(table(folder, "path,label", *lines), image_suffix=".png")
    assert all(Path(str(image)).is_file() for image in found.images)


def test_a_folder_and_a_suffix_make_paths_of_ids(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    path = table(folder, "path,label", *(f"{number},{'ab'[number % 2]}" for number in range(12)))
    found = csv(path, image_folder="my images", image_suffix=".png")
    assert [str(image) for image in found.images] == [f"my images/{number}.png" for number in range(12)]
    assert found.warnings == ()
    with pytest.raises(RequestError, match=r"^data.image_folder=gone: expected a folder; there is none$"):
        csv(path, image_folder="gone")


def test_addresses_are_found_in_the_folder_that_is_given(folder: Path) -> None:
    lines = [f"https://example.org/{number}.png,{'ab'[number % 2]}" for number in range(12)]
    found = csv(table(folder, "path,label", *lines), image_folder=str(folder / "my images"))
    assert list(found.images) == [folder / "my images" / f"{number}.png" for number in range(12)]


def test_an_id_that_two_images_have_is_no_image(folder: Path) -> None:
    (folder / "copies").mkdir()
    (folder / "copies" / "0.png").write_bytes((folder / "my images" / "0.png").read_bytes())
    path = table(folder, "path,label", *(f"{number},{'ab'[number % 2]}" for number in range(12)))
    found = csv(path)
    assert found.images[:2] == [folder / "0", folder / "my images" / "1.png"]
    assert "; found 11 of 12 images" in found.warnings[0]


def test_a_name_in_another_folder_is_another_image(folder: Path) -> None:
    (folder / "my images").rename(folder / "dog")
    paths = [f"/home/me/pics/{'cat' if n < 6 else 'dog'}/{n}.png" for n in range(12)]
    lines = [f"{path},{path.split('/')[4]}" for path in paths]
    found = csv(table(folder, "path,label", *lines))
    assert found.images[:6] == [Path(path) for path in paths[:6]]
    assert found.images[6:] == [folder / "dog" / f"{n}.png" for n in range(6, 12)]
    assert csv(table(folder, "path,label", *lines), image_folder=str(folder / "dog")).warnings == ()
    with pytest.raises(RequestError, match=r"row 1: C:.*0.png is a path of another machine"):
        csv(table(folder, "path,label", *(f"C:\\d\\train\\{n}.png,{n % 2}" for n in range(12))))


def test_one_path_of_another_machine_is_a_bad_image(folder: Path) -> None:
    found = csv(table(folder, "path,label", *rows(*"ab" * 6), "D:\\x\\gone.png,a"))
    assert found.images[-1] == folder / "D:/x/gone.png"


def test_one_image_is_not_found_for_two_paths(folder: Path) -> None:
    paths = ["cat/0", "dog/0", *map(str, range(1, 11))]
    found = csv(table(folder, "path,label", *(f"{path},{'ab'[n % 2]}" for n, path in enumerate(paths))))
    assert found.images[:3] == [folder / "cat/0", folder / "dog/0", folder / "my images" / "1.png"]


def test_columns_that_are_not_read_are_named(folder: Path) -> None:
    lines = [f"{row},3,4" for row in rows(*"ab" * 6)]
    assert csv(table(folder, "path,label,width,", *lines)).notes == ("columns that are not read: width",)


# Several labels, written otherwise


@pytest.mark.parametrize(
    ("separator", "written"),
    [
        (" ", "red blue"),
        (",", '"red, blue"'),
        (";", "red;blue"),
        (None, "\"['red', 'blue']\""),
        (" ", "red  blue"),
    ],
)
def test_several_labels_are_told_apart(folder: Path, separator: str | None, written: str) -> None:
    single = ["['red']", "['blue']", "[]"] if separator is None else ["red", "blue", ""]
    path = table(folder, "path,label", *rows(*[written, *single] * 3))
    found = csv(path) if separator is None else csv(path, label_separator=separator)
    assert found.classes == ("blue", "red")
    assert found.labels[:4].tolist() == [[1, 1], [0, 1], [1, 0], [0, 0]]
    assert found.warnings == ()


@pytest.mark.parametrize(
    "written",
    [
        """["O'Neil", "cat"]""",
        """("O'Neil", 'cat')""",
        """{'cat', "O'Neil"}""",
        """["O'Neil" 'cat']""",
        """['cat', "O'Neil", None]""",
    ],
)
def test_lists_as_json_and_python_write_them(folder: Path, written: str) -> None:
    cells = [f"my images/{n}.png\t{one}" for n, one in enumerate([written, "dog", "['dog']", ""] * 3)]
    found = csv(table(folder, "path\tlabel", *cells, name="labels.tsv"))
    assert found.classes == ("O'Neil", "cat", "dog")
    assert found.labels[:4].tolist() == [[1, 1, 0], [0, 0, 1], [0, 0, 1], [0, 0, 0]]


def test_lists_of_one_and_plain_labels_are_one_class_each(folder: Path) -> None:
    found = csv(table(folder, "path,label", *rows(*["['cat']", "cat", "(dog)"] * 4)))
    assert found.classes == ("(dog)", "cat")
    with pytest.raises(RequestError, match=r"row 2: expected a list such as \['cat', 'dog'\], not \[b c\]$"):
        csv(table(folder, "path,label", *rows("[]", "[b c]", "cat")))


def test_a_column_of_marks_for_each_label(folder: Path) -> None:
    lines = [f"my images/{n}.png,{n % 2},{float(n // 2 % 2)},{n % 3 == 0}" for n in range(12)]
    found = csv(table(folder, "path,scab,rust,spot", *lines), label_column=["scab", "rust", "spot"])
    assert found.classes == ("rust", "scab", "spot")
    assert found.labels.tolist() == [[n // 2 % 2, n % 2, n % 3 == 0] for n in range(12)]
    one = csv(
        table(folder, "path,a,b", *(f"my images/{n}.png,{n % 2},{1 - n % 2}" for n in range(12))),
        label_column=["a", "b"],
    )
    assert one.labels.tolist() == [1, 0] * 6  # a class each, so an image has one of them
    none = table(folder, "path,a,b,c", *(f"my images/{n}.png,{n % 2},0,{n % 3 == 0}" for n in range(12)))
    with pytest.raises(RequestError, match=r"or of every column's label; none in b$"):
        csv(none, label_column=["a", "b", "c"])
    with pytest.raises(RequestError, match=r"row 1: expected 0 or 1 below a, b, not 'yes'$"):
        csv(table(folder, "path,a,b", "1.png,yes,1"), label_column=["a", "b"])


@pytest.mark.parametrize("separator", [" ", ",", ";"])
def test_labels_that_seem_to_be_several_are_told(folder: Path, separator: str) -> None:
    joint = f'"scab{separator}rust"'
    (told,) = csv(table(folder, "path,label", *rows(*["scab", "rust", joint] * 4))).warnings
    assert told == (
        f"scab{separator}rust: classes of their own, and so are their parts;"
        f" data.label_separator='{separator}' takes them apart"
    )
    assert not csv(table(folder, "path,label", *rows(*["scab", "black rust", "rust"] * 4))).warnings


def test_a_separator_that_parts_nothing_is_told(folder: Path) -> None:
    found = csv(table(folder, "path,label", *rows(*"ab" * 6)), label_separator=";")
    assert found.warnings == ("data.label_separator=;: no image has several labels",)


def test_a_separator_takes_images_of_one_label_or_none(folder: Path) -> None:
    found = csv(table(folder, "path,label", *rows(*["a", "", "nan", "a"] * 3)), label_separator="|")
    assert (found.classes, found.warnings) == (("a",), ())
    assert found.labels.tolist() == [[1], [0], [0], [1]] * 3


def test_several_columns_are_of_tables_alone(folder: Path) -> None:
    with pytest.raises(
        RequestError, match=r"^data.label_column=\[a,b\]: expected data=csv with several columns$"
    ):
        load_dataset("hf", str(folder), 0.15, 0.15, label_column=["a", "b"])


def test_text_for_a_path_is_a_bad_image(folder: Path) -> None:
    found = csv(table(folder, "path,label", *(f"{n} {'long ' * 80},{'ab'[n % 2]}" for n in range(12))))
    assert len(found.images) == 12


# Tables with images in them


@pytest.mark.parametrize("kind", ["parquet", "arrow", "feather"])
@pytest.mark.parametrize("held", ["bytes", "struct"])
def test_images_within_a_table(folder: Path, kind: str, held: str) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    contents = [(folder / "my images" / f"{n}.png").read_bytes() for n in range(12)]
    images = (
        contents
        if held == "bytes"
        else [{"bytes": one, "path": f"{n}.png"} for n, one in enumerate(contents)]
    )
    plain = pyarrow.table(
        {"image": images, "kind": pyarrow.array([0, 1] * 6).cast("int8"), "md5": [b"x"] * 12}
    )
    write(plain, folder / f"images.{kind}")
    found = csv(folder / f"images.{kind}", image_column="image", label_column="kind")
    same = csv(table(folder, "path,label", *rows(*"01" * 6)))
    assert found.fingerprint() == same.fingerprint()
    assert found.notes == ("columns that are not read: md5",)
    with pytest.raises(
        RequestError, match=r"expected a column md5 \(data.label_column\) of another type than it has"
    ):
        csv(folder / f"images.{kind}", image_column="image", label_column="md5")


def write(plain: Any, path: Path) -> None:
    """As the file's extension says; .arrow is a stream, as Hugging Face has it."""
    import pyarrow.feather
    import pyarrow.ipc
    import pyarrow.parquet

    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(plain, path)
    elif path.suffix == ".feather":
        pyarrow.feather.write_feather(plain, path)
    else:
        with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, plain.schema) as stream:
            stream.write_table(plain)


def test_a_file_of_hugging_face_keeps_its_names(folder: Path) -> None:
    datasets = pytest.importorskip("datasets")
    files = [str(folder / "my images" / f"{n}.png") for n in range(12)]
    features = datasets.Features(image=datasets.Image(), tag=datasets.ClassLabel(names=["zebra", "ant"]))
    made = datasets.Dataset.from_dict({"image": files, "tag": [0, 1] * 6}, features=features)
    made.to_parquet(folder / "set.parquet")
    found = csv(folder / "set.parquet", image_column="image", label_column="tag")
    assert found.classes == ("ant", "zebra")
    assert found.labels.tolist() == [1, 0] * 6


def test_lists_and_missing_labels_of_parquet(folder: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    paths = [f"my images/{n}.png" for n in range(12)]
    several = {"path": paths, "label": [["a", "b"], ["b", None], []] * 4}
    parquet.write_table(pyarrow.table(several), folder / "several.parquet")
    assert csv(folder / "several.parquet").labels[:3].tolist() == [[1, 1], [0, 1], [0, 0]]
    for missing in (None, float("nan")):
        columns = {"path": paths, "label": [1.0, 2.0, missing] * 4}
        parquet.write_table(pyarrow.table(columns), folder / "missing.parquet")
        with pytest.raises(
            RequestError, match=r"row 3: expected a path and a label.*; 4 of 12 rows have no label"
        ):
            csv(folder / "missing.parquet")


def test_a_damaged_file_of_arrow_is_told(folder: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    offsets, letters = (pyarrow.py_buffer(one) for one in (np.array([0, 5, 2], np.int32), b"hello"))
    broken = pyarrow.StringArray.from_buffers(2, offsets, letters)
    write(pyarrow.table({"path": broken, "label": ["a", "b"]}), folder / "broken.arrow")
    with pytest.raises(RequestError, match=r"cannot be read as .arrow \("):
        csv(folder / "broken.arrow")


# Names


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (("1", "1.0", "2"), "classes that differ in their spelling alone: '1' and '1.0'"),
        (("Cat", "cat", "dog"), "classes that differ in their spelling alone: 'Cat' and 'cat'"),
        (("é", "e\u0301", "dog"), r"classes that differ in their spelling alone: 'e\u0301' and '\xe9'"),
        (
            ("black bear", "black_Bear", "x"),
            "classes that differ in their spelling alone: 'black bear' and 'black_Bear'",
        ),
        (
            ("0.25", "1.5", "2.0"),
            "the labels are decimals (0.25, 1.5): each is trained as a class of its own, not as a number",
        ),
        (("a", "a\u200b", "x"), r"classes that differ in their spelling alone: 'a' and 'a\u200b'"),
        (
            ("None", "a", "b"),
            "a class named None: if that means a missing label, empty its cells",
        ),
        (
            ("a", r"\N", "N/A"),
            r"a class named N/A, \N: if that means a missing label, empty its cells",
        ),
        (("1.0", "2.0", "3.0"), None),
        (("v1.5", "v2.5", "1.5"), None),
        (("-1", "1", "0"), None),
        (("snan", "1e9999999999", "Infinity"), None),
    ],
)
def test_odd_names_of_classes_are_told(folder: Path, names: tuple[str, ...], told: str | None) -> None:
    assert csv(table(folder, "path,label", *rows(*names * 4))).warnings == ((told,) if told else ())


def test_a_space_behind_a_folders_name_is_told(tmp_path: Path) -> None:
    for name in ("cat", "cat ", "dog"):
        (tmp_path / name).mkdir()
        for number in range(3):
            pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")
    found = load_dataset("folder", str(tmp_path), 0, 0)
    assert "classes that differ in their spelling alone: 'cat' and 'cat '" in found.warnings
