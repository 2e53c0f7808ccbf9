"""Wrong requests: each ends with exit code 2 and one line naming the knob or file and what was expected."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from finetune.config.compose import compose, override_settings
from finetune.config.messages import known_keys
from finetune.config.schema import Settings
from finetune.errors import RequestError
from support.ended import Ended
from support.privilege import without_privilege
from support.processes import Started
from support.refused import DIGITS, FOLDER, ONE_LINE, REFUSED_BY_HYDRA, WRONG_VALUES, broken_picture
from support.runs import CHECKOUT, SMALL
from support.slow import slow

Train = Callable[..., Ended]
# Values are checked in one place, whoever asks; some of them go the whole way.
WHOLE_WAY = [
    *ONE_LINE,
    *((*row, None) for number, row in enumerate(WRONG_VALUES) if number % 10 == 0 or row[0][0] == "+"),
]
IDS = [f"{overrides} {finds.__name__ if finds else ''}" for overrides, _, finds in WHOLE_WAY]


@pytest.fixture(scope="module")
def digits() -> Settings:
    return compose([*DIGITS])


@pytest.mark.parametrize(("overrides", "words"), WRONG_VALUES)
def test_a_wrong_value_is_told_in_one_line(digits: Settings, overrides: str, words: str) -> None:
    with pytest.raises(RequestError) as told:
        override_settings(digits, overrides.split(), known_keys())
    assert "\n" not in str(told.value)
    for word in words.split():
        assert word in str(told.value)


@pytest.mark.parametrize(("overrides", "words", "finds"), WHOLE_WAY, ids=IDS)
def test_one_line_says_what_is_wrong(
    train: Train, tmp_path: Path, overrides: str, words: str, finds: Callable[[Path], None] | None
) -> None:
    if finds:
        finds(tmp_path / "here")
    before = contents(tmp_path)
    ended = train(*DIGITS, *overrides.split())
    assert ended.code == 2, ended.err
    assert ended.err.startswith("error: ")
    assert ended.err.count("\n") == 1
    for word in words.split():
        assert word in ended.err
    assert_nothing_was_touched(tmp_path, before)


@pytest.mark.parametrize(("overrides", "line"), REFUSED_BY_HYDRA)
def test_what_hydra_refuses_is_told_in_our_line_alone(
    train: Train, tmp_path: Path, overrides: str, line: str
) -> None:
    (tmp_path / "here").write_text("a file, not a folder")
    before = contents(tmp_path)
    ended = train(*DIGITS[1:], *overrides.split())
    assert ended.code == 2, ended.err
    assert ended.err.startswith(f"error: {line}")
    assert ended.err.count("\n") == 1
    assert_nothing_was_touched(tmp_path, before)


@pytest.mark.parametrize(("overrides", "kind"), [("seed=1", "run"), ("-m seed=1,2", "sweep")])
def test_outputs_cannot_be_made(train: Train, tmp_path: Path, overrides: str, kind: str) -> None:
    (tmp_path / "outputs").write_text("a file, not a folder")
    ended = train(*overrides.split())
    assert ended.code == 2
    assert ended.err.startswith(f"error: hydra.{kind}.dir: outputs")
    assert ended.err.count("\n") == 1
    assert contents(tmp_path) == {Path("outputs"): b"a file, not a folder"}


def test_outputs_may_be_a_link_to_nowhere(train: Train) -> None:
    Path("outputs").symlink_to("gone")
    ended = train("seed=1")
    assert (ended.code, ended.err) == (2, "error: hydra.run.dir: outputs cannot be made: File exists\n")


def test_outputs_may_not_be_written_to(train: Train, tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with without_privilege():
        ended = train("seed=1")
    assert ended.code == 2
    assert ended.err == "error: hydra.run.dir: outputs cannot be made: Permission denied\n"


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        ("hydra.run.dir=disk/run", "hydra.run.dir: nothing can be written there"),
        ("-m seed=1,2 hydra.sweep.dir=disk/sweep", "hydra.sweep.dir: nothing can be written there"),
    ],
)
def test_a_disk_that_is_full_from_the_beginning(
    train: Train, small_disk: Path, overrides: str, line: str
) -> None:
    (small_disk / "filler").write_bytes(b"0" * shutil.disk_usage(small_disk).free)
    ended = train(*overrides.split())
    assert (ended.code, ended.err) == (2, f"error: {line}: No space left on device\n")


@pytest.mark.parametrize(
    ("files", "code", "line"),
    [(2, 2, "hydra.sweep.dir: nothing can be written there"), (5, 1, "sweep: cannot be written")],
)
def test_a_disk_that_is_full_when_hydra_writes_what_a_job_is(
    train: Train, monkeypatch: pytest.MonkeyPatch, files: int, code: int, line: str
) -> None:
    left = iter(range(files))

    def save(*arguments: object) -> None:
        if next(left, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("hydra.core.utils._save_config", save)
    ended = train("-m", "seed=1,2", "hydra.sweep.dir=sweep")
    assert (ended.code, ended.err) == (code, f"error: {line}: No space left on device\n")


@pytest.mark.skipif(torch.cuda.is_available() or torch.backends.mps.is_available(), reason="there is a GPU")
def test_a_gpu_is_asked_for_and_there_is_none(train: Train) -> None:
    ended = train("trainer=gpu", "data=digits")
    assert (ended.code, ended.err[:35]) == (2, "error: trainer=gpu: expected a GPU ")


@pytest.mark.slow
def test_a_compiler_is_needed_and_there_is_none(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    ended = train("data=random", *DIGITS[1:], "compile=true")
    assert ended.code == 2
    assert ended.err.startswith("error: compile=true: expected a C++ compiler")
    assert_nothing_was_touched(tmp_path, {})


def test_a_finished_run_is_not_trained_into(train: Train, tmp_path: Path) -> None:
    run = ("data=random", "weights=random", SMALL, "data.image_size=32", "epochs=1")
    run = (*run, "hydra.run.dir=outputs/mine")
    assert train(*run).code == 0
    kept = {
        path: content
        for path, content in contents(tmp_path).items()
        if ".hydra" not in path.parts  # Hydra writes its own folder before any code of ours runs
    }
    assert Path("outputs/mine/checkpoints/best.ckpt") in kept
    ended = train(*run)
    assert ended.code == 2
    assert ended.err.startswith("error: hydra.run.dir=outputs/mine: expected a new folder")
    assert {path: content for path, content in contents(tmp_path).items() if path in kept} == kept


@pytest.mark.parametrize("options", ["", "data=folder data.root=here"])
def test_what_is_no_run_is_not_trained_into(train: Train, tmp_path: Path, options: str) -> None:
    (tmp_path / "here").mkdir()
    if not options:
        (tmp_path / "here" / "report.html").write_text("mine")
    before = contents(tmp_path)
    ended = train(*options.split(), "hydra.run.dir=here")
    told = (
        "another folder than data.root" if options else "a new folder; this one holds report.html of no run"
    )
    assert (ended.code, ended.err) == (2, f"error: hydra.run.dir=here: expected {told}\n")
    assert contents(tmp_path) == before


def test_a_path_that_breaks_lines_is_told_in_one(train: Train, tmp_path: Path) -> None:
    ended = train(*FOLDER[2:], "data=folder", "data.root='two\nlines'")
    assert ended.code == 2
    assert ended.err == "error: data.root=two lines: expected a folder; there is none\n"


@pytest.mark.parametrize("way", ["{}", "data=folder data.root={}"])
def test_a_misspelled_folder_is_told_with_the_one_there(train: Train, tmp_path: Path, way: str) -> None:
    (tmp_path / "a" / "Field photos 2024").mkdir(parents=True)
    ended = train(*(one.format("a/Feild photos 2024") for one in way.split()))
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.endswith("; did you mean a/Field photos 2024?\n")


@pytest.mark.parametrize("cache", ["none", "memory"])
def test_skip_trains_without_the_broken_pictures(train: Train, tmp_path: Path, cache: str) -> None:
    broken_picture(tmp_path / "here")
    for name in ("dog/1.png", "cat/2.png", "cat/4.png"):  # the same content, and so the same digest
        (tmp_path / "here" / name).write_bytes(b"")
    ended = train(*FOLDER, SMALL, "data.bad_images=skip", f"cache={cache}")
    assert ended.code == 0, ended.err
    (skipped,) = tmp_path.rglob("skipped.csv")
    rows = [line.split(",")[0] for line in skipped.read_text().splitlines()]
    assert rows == ["path", "here/cat/0.png", "here/cat/2.png", "here/cat/4.png", "here/dog/1.png"]
    summary = json.loads((skipped.parent / "summary.json").read_text())
    assert summary["data"]["skipped"] == 4
    assert sum(summary["data"][side] for side in ("train", "val", "test")) == 20


@pytest.mark.slow
@pytest.mark.parametrize("cache", ["disk", pytest.param("none", marks=pytest.mark.slow)])
def test_repair_shows_what_there_is_and_tells_it_each_time(train: Train, tmp_path: Path, cache: str) -> None:
    broken_picture(tmp_path / "here")
    (tmp_path / "here" / "cat" / "0.png").write_bytes(b"no image")
    cut = tmp_path / "here" / "dog" / "1.png"
    cut.write_bytes(cut.read_bytes()[:-60])
    for asked, counts in (("repair", (1, 1)), ("repair", (1, 1)), ("lost", (1, 1)), ("skip", (0, 2))):
        if asked == "lost":  # what is known of files, but not the features
            asked = "repair"
            (tmp_path / "store" / "digests.sqlite").unlink()
        run = tmp_path / f"{asked}{len(list(tmp_path.iterdir()))}"
        settings = (f"data.bad_images={asked}", f"cache={cache}", f"hydra.run.dir={run}", "cache_dir=store")
        ended = train(*FOLDER, SMALL, *settings)
        assert ended.code == 0, ended.err
        summary = json.loads((run / "summary.json").read_text())
        assert (summary["data"]["repaired"], summary["data"]["skipped"]) == counts
        assert ("broken images shown as far as they go: 1 (here/dog/1.png)" in ended.out) == bool(counts[0])


FINETUNE = Path(sys.executable).with_name("finetune")
COMMANDS = [
    ([sys.executable, CHECKOUT / "train.py", "epochs=0"], "error: epochs=0: expected 1 or more\n"),
    ([FINETUNE, "train", "lr=0.1"], "error: lr: there is no such setting; did you mean optimizer.lr?\n"),
    (
        ["bash", "-c", f"{sys.executable} {CHECKOUT}/train.py freeze={{}}"],
        "error: freeze={}: expected all, none,",
    ),
    (["bash", "-c", f"'{FINETUNE}' train 'freeze=[all,-'"], "[all,-"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("command", "words"), COMMANDS, ids=range(len(COMMANDS)))
def test_a_wrong_command_as_a_shell_starts_it(command: list[str], words: str, tmp_path: Path) -> None:
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2, ended.stderr
    assert words in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "outputs" / "latest").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "freeze=[all"], "[all"),
        (["train", "-m", "optimizer=sgd,foo"], "error: optimizer=foo: expected one of adamw, lbfgs, sgd\n"),
        slow(["train", "data=folder", "data.root=no"], "error: data.root=no: expected a folder"),
        slow(["train", "head=ten"], "error: head=ten: expected a number of outputs"),
        slow(["inspect", "+epoch=1"], "error: epoch: there is no such setting; did you mean epochs?\n"),
        slow(["inspect", "data=foo"], "error: data=foo: expected one of "),
        (["trian"], "No such command 'trian'"),
    ],
    ids=" ".join,
)
def test_a_wrong_command_in_a_process_of_its_own(
    arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = Started(*arguments).ended()
    assert ended.code == 2, ended.err
    assert words in ended.err
    assert "Traceback" not in ended.err
    assert not (tmp_path / "outputs" / "latest").exists()


def contents(folder: Path) -> dict[Path, bytes]:
    return {
        path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def assert_nothing_was_touched(folder: Path, before: dict[Path, bytes]) -> None:
    """What was there is as it was, no run counts as the latest, and no foreign code has run."""
    after = contents(folder)
    assert {path: content for path, content in after.items() if path in before} == before
    assert after.keys() == before.keys()
    assert not (folder / "outputs").exists()  # not even a folder


def test_there_are_enough_of_them() -> None:
    assert len(WRONG_VALUES) + len(ONE_LINE) + len(REFUSED_BY_HYDRA) >= 120


def test_m_may_stand_anywhere(train: Train) -> None:
    ended = train("seed=0", "-m", "epochs=0")
    assert ended.code == 2
    assert ended.err == "error: epochs=0: expected 1 or more\n"
