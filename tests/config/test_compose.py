"""Settings as a command line composes them, and the folders that are spelled on the way."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune.config.compose import TABLES, compose, free_folder, override_settings, quoted, spelled
from finetune.data.sources.cells import READERS
from finetune.errors import RequestError


def test_two_runs_of_the_same_second_have_folders_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert [free_folder("outputs/day/12-00-00") for _ in range(3)] == [
        "outputs/day/12-00-00",
        "outputs/day/12-00-00-2",
        "outputs/day/12-00-00-3",
    ]


def test_compose_checks_what_it_composes() -> None:
    with pytest.raises(RequestError, match=r"^epochs=0: expected 1 or more$"):
        compose(["epochs=0"])


def test_hydras_refusal_is_told_in_our_words() -> None:
    with pytest.raises(RequestError, match=r"^lr: there is no such setting; did you mean optimizer.lr\?$"):
        compose(["lr=1"])


@pytest.mark.parametrize(
    ("root", "kept"),
    [
        ("München/Bilder", "München/Bilder"),
        ("it's here", "it's here"),
        ("a=b", "a=b"),
        ("'two words'", "two words"),
        ("~/images", "~/images"),
        ("a,b", "a,b"),
        ("2026,11", "2026,11"),
        ("007", "007"),
    ],
)
def test_a_path_need_not_be_quoted_for_hydra(root: str, kept: str) -> None:
    assert compose(["data=folder", f"data.root={root}"]).data.root == kept


@pytest.mark.parametrize(
    "name", ["${x}", "a${b", "[one]", "'quoted'", "a,b", "it's, ${here}", "back\\slash", "a, b\\"]
)
@pytest.mark.parametrize("sweeps", [True, False])
def test_what_is_there_is_meant_whatever_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, sweeps: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).mkdir()
    assert compose([quoted(f"data.root={name}", sweeps)]).data.root == name


def test_a_comma_stands_between_the_values_of_a_sweep_and_else_in_a_name() -> None:
    assert quoted("data.root=a,b", sweeps=True) == "data.root=a,b"
    assert quoted("data.root=2024_01_15,München,a", sweeps=True) == "data.root='2024_01_15','München',a"
    assert quoted("data.root=a,b") == "data.root='a,b'"
    for separator in (",", " ", ";", "|"):
        for sweeps in (True, False):
            override = quoted(f"data.label_separator={separator}", sweeps)
            assert compose([override]).data.label_separator == separator


@pytest.mark.parametrize("name", ["patient (code)", "Größe", "patient,id", "case: 1", "007"])
def test_a_column_is_named_as_it_stands(name: str) -> None:
    for key in ("image_column", "label_column", "group_column"):
        assert getattr(compose([f"data.{key}={name}"]).data, key) == name


def test_a_table_that_can_be_read_is_one_by_its_bare_name() -> None:
    assert (*READERS,) == TABLES


def test_a_run_may_lie_below_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/mine")
    assert quoted("hydra.run.dir=~/x") == "hydra.run.dir=/home/mine/x"
    assert quoted("hydra.sweep.dir=~/x") == "hydra.sweep.dir=/home/mine/x"


def test_a_name_in_bytes_of_another_encoding_is_refused() -> None:
    with pytest.raises(RequestError, match=r"^data.root=k\udce4: expected text in UTF-8$"):
        compose(["data=folder", "data.root=k\udce4"])


def test_what_refers_to_another_setting_still_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERE", "/there")
    assert compose(["data.root=${oc.env:HERE}/images"]).data.root == "/there/images"


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("epoch=1", "epoch: there is no such setting; did you mean epochs?"),
        ("epochs=1", "epochs: this is the run's own; expected data, data.root"),
        ("data.root=[a", "data.root=[a: this value cannot be read; expected brackets that are closed"),
        ("data=nowhere", "data=nowhere: expected one of cifar10"),
        ("data.root=${nothing}", "data.root=${nothing}: Interpolation key 'nothing' not found"),
    ],
)
def test_what_may_not_be_changed_of_a_run_is_told_in_one_line(override: str, line: str) -> None:
    with pytest.raises(RequestError) as told:
        override_settings(compose([]), [override], ["data", "data.root"])
    assert str(told.value).startswith(line)
    assert "\n" not in str(told.value)


NAMES = (
    "My photos 2024",
    "a=b",
    "x,y",
    "[one] (2)",
    "München",
    "日本",
    'it\'s "here"',
    "${x}",
    "back\\",
    "data",
    "-x",
    "1.5",
    "inf",
    "True",
)


@pytest.mark.parametrize("name", NAMES)
def test_a_path_alone_is_where_the_images_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).mkdir()
    data = compose([name, "epochs=3"]).data
    assert (data.source, data.root) == ("folder", name)
    table = Path(f"{name}.CSV")
    table.touch()
    for typed in (str(table), str(table.absolute())):
        data = compose([typed]).data
        assert (data.source, data.root) == ("csv", typed)


def test_a_path_alone_goes_into_the_data_that_was_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("shards", "epochs=3", "seed"):
        Path(name).mkdir()
    assert spelled(["shards", "data=webdataset"]) == ["data=webdataset", "data.root=shards"]
    assert spelled(["epochs=3"]) == ["epochs=3"]  # a setting, whatever lies here
    assert spelled(["seed"]) == ["data=folder", "data.root=seed"]
    assert spelled(["nowhere", "seed=1"]) == ["nowhere", "seed=1"]
    kept = override_settings(compose([]), ["shards"], ["data", "data.root"])
    assert (kept.data.source, kept.data.root) == ("folder", "shards")


def test_two_paths_or_one_of_another_kind_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        Path(name).mkdir()
    Path("c.zip").touch()
    for typed in (["a", "b"], ["c.zip"]):
        with pytest.raises(RequestError, match=rf"^{typed[0]}: expected one folder of images, or a table"):
            compose(typed)
    with pytest.raises(RequestError, match=r"^photos: expected KEY=VALUE, or a folder or a table; there is"):
        compose(["photos"])


def test_a_path_and_another_place_are_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("shards", "null", "a\\'b"):
        Path(name).mkdir()
    with pytest.raises(RequestError, match=r"data.root=other: expected no other place"):
        spelled(["shards", "data.root=other"])
    for name in ("null", "a\\'b"):
        assert compose([name]).data.root == name
