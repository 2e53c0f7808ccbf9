"""Where TensorBoard is to look, and who may write to a folder."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from finetune.errors import Interrupted, RequestError
from finetune.runs.folder import drop_unused, find_run, interruptible, one_writer, start
from finetune.runs.sweeps import logdir
from support.ended import Ended
from support.privilege import without_privilege
from support.runs import QUICK, summary_of


@pytest.mark.parametrize(
    ("folder", "shown"),
    [
        ("outputs/2026-11-21/22-10-03", "outputs"),
        ("runs/one", "runs/one"),
        ("../elsewhere/outputs/one", "../elsewhere/outputs/one"),
        ("outputs/sweeps/2026-11-21/22-30-00/3", "outputs/sweeps/2026-11-21/22-30-00"),
        ("sweep/lr=0.1/seed=0", "sweep"),
    ],
)
def test_tensorboard_is_shown_the_runs_that_belong_together(
    folder: str, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for sweep in ("sweep", "outputs/sweeps/2026-11-21/22-30-00"):
        Path(sweep).mkdir(parents=True)
        (Path(sweep) / "multirun.yaml").touch()
    assert logdir(Path(folder)) == Path(shown)


def test_a_folder_has_one_writer_and_the_second_hears_who_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with one_writer(folder):
        with (
            pytest.raises(RequestError, match=rf"run: .*process {os.getpid()} of \S+ does"),
            one_writer(folder),
        ):
            pass
        (folder / "settings.json").touch()
        assert sorted(path.name for path in folder.iterdir()) == [".lock", "settings.json"]
    with one_writer(folder / "phases" / "1"), pytest.raises(RequestError), one_writer(folder):
        pass
    with one_writer(folder):
        pass
    assert [path.name for path in folder.iterdir()] == ["settings.json"]


def test_where_nothing_can_be_locked_a_run_begins_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacking(*_: Any) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", lacking)
    with one_writer(tmp_path / "run"):
        pass


def test_latest_names_a_folder_whose_name_is_no_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    (folder / "settings.json").touch()
    assert start(folder, ()) is None
    assert find_run("latest") == folder


def test_a_lock_of_a_process_that_was_killed_holds_nobody(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("process 1 of nowhere")
    with one_writer(tmp_path):
        assert (tmp_path / ".lock").read_text().startswith(f"process {os.getpid()} ")


def test_a_lock_that_was_removed_meanwhile_is_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opened before its holder removed it, and locked after: by then a third may hold a new one."""

    def removed_first(file: Any, how: int) -> None:
        (tmp_path / ".lock").unlink()
        flock(file, how)

    flock = fcntl.flock
    monkeypatch.setattr(fcntl, "flock", removed_first)
    with pytest.raises(RequestError, match="nobody writes to"), one_writer(tmp_path):
        pass


def test_a_folder_that_a_wrong_request_made_is_gone_again(tmp_path: Path) -> None:
    with one_writer(tmp_path / "new" / "run"):
        pass
    assert not list(tmp_path.iterdir())


def test_a_wrong_request_takes_nothing_of_what_has_trained(tmp_path: Path) -> None:
    for trained in (False, True):
        with suppress(RequestError), one_writer(tmp_path):
            (tmp_path / "settings.json").touch()
            if trained:
                (tmp_path / "phases/0/checkpoints").mkdir(parents=True)
                (tmp_path / "phases/0/checkpoints/best.ckpt").touch()
            raise RequestError("of a later phase")
        assert (tmp_path / "settings.json").exists() == trained


def test_a_second_command_is_refused_while_the_first_trains(
    command: Callable[..., Ended], finished_run: Callable[..., Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(finished_run(), tmp_path / "run")
    (folder / "summary.json").unlink()
    (tmp_path / "pictures").symlink_to(finished_run().parent / "pictures")
    rows = (folder / "metrics.csv").read_bytes()
    with one_writer(folder):
        ended = command("resume", "run")
        assert ended.code == 2
        assert ended.err.startswith("error: run: expected a folder that nobody writes to; process")
        assert ended.err.count("\n") == 1
    assert (folder / "metrics.csv").read_bytes() == rows
    assert command("resume", "run").code == 0
    assert not (folder / ".lock").exists()


@pytest.mark.slow
@pytest.mark.parametrize("cold", [False, True])
def test_a_working_folder_and_a_warm_cache_that_may_only_be_read_are_enough(
    command: Callable[..., Ended], few_pictures: Path, tmp_path_factory: pytest.TempPathFactory, cold: bool
) -> None:
    out = tmp_path_factory.mktemp("out")
    request = [*QUICK, f"data.root={few_pictures}", "cache=disk", "cache_dir=store", "epochs=1"]
    assert cold or command("train", *request, f"hydra.run.dir={out}/first").code == 0
    Path("store").mkdir(exist_ok=True)
    shutil.rmtree("outputs", ignore_errors=True)
    paths = [Path(), Path("store"), *Path("store").rglob("*")]
    before = [path.stat().st_mode for path in paths]
    try:
        for path in paths:
            path.chmod(0o500 if path.is_dir() else 0o400)
        with without_privilege():
            ended = command("train", *request, f"hydra.run.dir={out}/second")
    finally:
        for path, mode in zip(paths, before, strict=True):
            path.chmod(mode)
    if cold:
        assert (ended.code, ended.err.count("\n")) == (2, 1)
        assert "cache_dir=store: expected a folder that can be written to" in ended.err
        assert ended.err.endswith("; another cache_dir, or cache=memory, does without it\n")
        return
    assert ended.code == 0, ended.err
    assert "latest does not mean this run" in " ".join(ended.out.split())
    first, second = summary_of(out / "first"), summary_of(out / "second")
    assert second["features"]["computed"] == 0
    assert second["test"] == first["test"]


@pytest.mark.slow
def test_a_job_that_something_else_trains_is_told_and_the_others_finish(
    command: Callable[..., Ended], few_pictures: Path, tmp_path: Path
) -> None:
    request = [*QUICK, f"data.root={few_pictures}", "cache=disk", "cache_dir=store", "hydra.sweep.dir=sweep"]
    with one_writer(tmp_path / "sweep" / "1"):
        ended = command("train", "-m", *request, "seed=0,1,2")
    assert ended.code == 1
    assert ended.err.startswith("error: job 1 (seed=1): sweep/1: expected a folder that nobody writes to;")
    assert [summary_of(tmp_path / "sweep" / name)["status"] for name in "02"] == ["finished"] * 2
    with one_writer(tmp_path / "sweep"):
        ended = command("resume", "sweep")
        assert (ended.code, ended.out) == (2, "")
        assert ended.err.startswith("error: sweep: expected a folder that nobody writes to;")
    assert command("resume", "sweep").code == 0


def test_only_what_hydra_wrote_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    for place in ("outputs/day/time", ".", "../beside/run"):
        (Path(place) / ".hydra").mkdir(parents=True)
        drop_unused(Path(place))
    assert [path.name for path in here.iterdir()] == [".hydra"]
    assert [*(tmp_path / "beside").iterdir()] == []
    Path("kept/.hydra").mkdir(parents=True)
    Path("kept/notes.txt").touch()
    drop_unused(Path("kept"))
    assert Path("kept/.hydra").is_dir()


@pytest.mark.parametrize(
    ("loss", "told"),
    [
        ("bce", "finetune resume 'a b' goes on"),
        ("python:mean", "finetune.fit with the same objects, folder='a b' and resume='auto' goes on"),
    ],
)
def test_what_resumes_a_run_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss: str, told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a b").mkdir()
    Path("a b/settings.json").write_text(json.dumps({"loss": loss}))
    with pytest.raises(Interrupted) as error, interruptible(Path("a b")):
        signal.raise_signal(signal.SIGINT)
    assert str(error.value) == f"interrupted by SIGINT; {told}"
