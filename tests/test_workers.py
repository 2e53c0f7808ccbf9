"""trainer=ddp: two real processes on the CPU, in touch by gloo, as on a command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from finetune import worker, workers
from finetune.config.compose import compose
from finetune.errors import RunError
from finetune.worker import GRACE
from support.ended import Ended
from support.processes import Started
from support.runs import CHECKOUT, QUICK, checkpoint, summary_of, whole_state

Train = Callable[..., Ended]
TWO = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2")
# Batches of nine are five and four; a hidden head trains more than one layer and has no BatchNorm.
RUN = (*QUICK[:-1], "cache_dir=cache", "batch_size=9", "precision=32", "head_hidden=[16]", "optimizer.lr=0.1")


@pytest.fixture(autouse=True)
def pictures(few_pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pictures").symlink_to(few_pictures)
    monkeypatch.setenv("PYTHONPATH", str(CHECKOUT / "src"))  # for the processes that are started
    monkeypatch.chdir(tmp_path)


def typed(*arguments: str) -> Ended:
    """As on a command line, with all that its processes print; they themselves start as always."""
    return Started("train", *arguments).ended()


def curve(folder: str) -> list[list[float]]:
    rows = (Path(folder) / "metrics.csv").read_text().splitlines()[1:]
    return [[float(value) for value in row.split(",")] for row in rows]


def close(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        value.allclose(other[name], rtol=1e-4, atol=1e-6) for name, value in one.items()
    )


def children(process: subprocess.Popen[Any]) -> list[str]:
    return Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()


def listening(processes: list[int]) -> set[str]:
    """The addresses at which these processes listen, as /proc has them."""
    inodes = set()
    for process in processes:
        for file in Path(f"/proc/{process}/fd").iterdir():
            with suppress(FileNotFoundError):
                inodes.add(os.readlink(file).removeprefix("socket:[").removesuffix("]"))
    tables = [Path(f"/proc/net/{name}").read_text().splitlines() for name in ("tcp", "tcp6")]
    rows = [row.split() for table in tables for row in table]
    return {row[1].partition(":")[0] for row in rows if row[3] == "0A" and row[9] in inodes}


def gone(processes: list[str]) -> bool:
    """Whether they have ended, within the time that they have for it."""
    until = time.monotonic() + GRACE + 5
    while any(Path(f"/proc/{process}").exists() for process in processes):
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


@pytest.mark.slow
def test_two_processes_train_what_one_does(train: Train) -> None:
    knobs = (*RUN, "class_weights=balanced", "data.val_fraction=0.23", "batchnorm=adapt")
    assert train(*knobs, "hydra.run.dir=one").code == 0
    ended = typed(*knobs, *TWO, "hydra.run.dir=two")
    assert (ended.code, ended.err) == (0, "")
    assert "2 processes, precision 32" in ended.out
    assert ended.out.count("epoch 2/2") == 1  # one of them speaks
    assert close(whole_state(Path("two")), whole_state(Path("one")))
    for two, one in zip(curve("two"), curve("one"), strict=True):
        assert two == pytest.approx(one, rel=1e-4)
    two, one = summary_of(Path("two")), summary_of(Path("one"))
    intervals = two["test"].pop("intervals")
    assert intervals == {
        name: pytest.approx(ends, rel=1e-4) for name, ends in one["test"].pop("intervals").items()
    }
    assert two["test"] == pytest.approx(one["test"], rel=1e-4)
    assert two["status"] == "finished"
    for name in ("report.html", "checkpoints/last.ckpt", "checkpoints/frozen.safetensors"):
        assert (Path("two") / name).exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "knobs",
    [
        # BatchNorm trains, on each one's part of a batch.
        ("freeze=none", "cache=none", "data.augment=standard", "optimizer.lr=0.01"),
        (
            "freeze=through:layer3",
            "trainer.accumulate_batches=2",
            "trainer.clip_norm=1",
            "optimizer=adamw",
            "optimizer.lr=0.01",
            *("head_dropout=0.3", "monitor_gradients=true", "patience=3"),
        ),
    ],
    ids=["none", "through"],
)
def test_two_processes_learn(knobs: tuple[str, ...]) -> None:
    ended = typed(*RUN, *TWO, *knobs, "epochs=4", "hydra.run.dir=two")
    assert (ended.code, ended.err) == (0, "")
    summary = summary_of(Path("two"))
    assert summary["val"]["accuracy"] > 0.5  # by chance 0.33
    if features := summary["features"]:  # each computed a share
        assert (features["computed"], features["reused"]) == (60, 0)
        assert len([*Path("cache/features").iterdir()]) == 1


@pytest.mark.slow
def test_killed_they_go_on_and_end_as_without(command: Callable[..., Ended]) -> None:
    knobs = (*RUN, *TWO, "head_dropout=0.3", "epochs=60", "max_steps=60")
    assert typed(*knobs, "hydra.run.dir=whole").code == 0
    process = subprocess.Popen([sys.executable, CHECKOUT / "train.py", *knobs, "hydra.run.dir=cut"])
    while not Path("cut/checkpoints/last.ckpt").exists():
        time.sleep(0.01)
        assert process.poll() is None
    started = children(process)
    assert listening([process.pid, *map(int, started)]) == {"0100007F"}  # 127.0.0.1
    process.kill()
    process.wait()
    assert gone(started)  # by themselves, as nobody tells them
    assert summary_of(Path("cut"))["status"] == "interrupted"
    assert command("resume", "cut").code == 0
    for name in ("best", "last"):
        whole, cut = (whole_state(Path(folder), name) for folder in ("whole", "cut"))
        assert all(value.equal(cut[key]) for key, value in whole.items())
    assert curve("cut") == curve("whole")


@pytest.mark.slow
@pytest.mark.parametrize("which", ["parent", "1"])
def test_what_ends_one_ends_all(which: str) -> None:
    """SIGTERM for all, by the process that began them, or SIGKILL for one, as when memory runs out."""
    knobs = (*RUN, *TWO, "epochs=100000", "hydra.run.dir=cut")
    command = ["nohup", sys.executable, CHECKOUT / "train.py", *knobs]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while not Path("cut/checkpoints/last.ckpt").exists():
        time.sleep(0.1)
        assert process.poll() is None
    started = children(process)
    ranks = {
        dict(one.partition("=")[::2] for one in Path(f"/proc/{child}/environ").read_text().split("\0"))[
            "RANK"
        ]: int(child)
        for child in started
    }
    if which == "parent":
        process.send_signal(signal.SIGHUP)  # which nohup lets nobody hear
        process.send_signal(signal.SIGTERM)
    else:
        os.kill(ranks[which], signal.SIGKILL)
    assert process.stderr is not None
    told = process.stderr.read()
    process.wait(60)
    assert gone(started)
    summary = json.loads(Path("cut/summary.json").read_text())
    assert checkpoint(Path("cut"), "last")["epoch"] >= 0
    if which == "parent":
        assert process.returncode == 143
        assert (summary["status"], told.count("\n")) == ("interrupted", 1)
        assert "finetune resume cut goes on" in told
    else:
        assert process.returncode == 1
        assert summary["status"] == "failed"
        assert f"process {which} of 2 was killed (SIGKILL)" in told
        assert "Traceback" not in told


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "name", "code", "after"), [(15, "SIGTERM", 143, 0.5), (2, "SIGINT", 130, 0)]
)
def test_a_signal_before_they_have_begun(number: int, name: str, code: int, after: float) -> None:
    process = subprocess.Popen(
        [sys.executable, CHECKOUT / "train.py", *RUN, *TWO, "hydra.run.dir=cut"],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while len(started := children(process)) < 2:
        time.sleep(0.01)
    time.sleep(after)  # the one by itself as it starts them, then all of a terminal while torch is imported
    os.killpg(process.pid, number) if after else process.send_signal(number)
    assert process.stderr is not None
    told = process.stderr.read()
    assert process.wait(60) == code
    assert told == f"error: interrupted by {name}\n"
    assert gone(started)


@pytest.mark.slow
def test_torchrun_starts_them_as_well() -> None:
    starter = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    ended = subprocess.run(
        [*starter, CHECKOUT / "train.py", *RUN, *TWO, "hydra.run.dir=two"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("epoch 2/2") == 1
    assert summary_of(Path("two"))["status"] == "finished"


@pytest.mark.parametrize(
    ("knobs", "told"),
    [
        (("trainer=ddp", "trainer.accelerator=cpu"), "trainer.devices=auto: expected a number of processes"),
        (("trainer=ddp", "trainer.devices=2", "trainer.nodes=3"), "trainer.nodes=3: expected to be started"),
        ((*TWO, "loss=sum_squares"), "loss=sum_squares: expected trainer.devices=1 with it"),
        (("trainer.devices=0",), "trainer.devices=0: expected a number of devices, 1 or more, or auto"),
    ],
)
def test_what_several_processes_need(train: Train, knobs: tuple[str, ...], told: str) -> None:
    ended = train(*RUN, *knobs)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith(f"error: {told}")
    assert ended.err.count("\n") == 1


@pytest.mark.slow
def test_what_is_found_wrong_in_the_processes_is_told_once() -> None:
    ended = typed(*RUN, *TWO, "batch_size=1")
    assert (ended.code, ended.err) == (2, "error: batch_size=1: expected at least 2, one for each process"
                                          " (trainer.devices)\n")  # fmt: skip


@pytest.mark.slow
def test_the_first_to_fail_is_named_with_what_it_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "short").mkdir()
    program = "import os, sys, time\ntime.sleep(60) if os.environ['RANK'] == '0' else sys.exit('the reason')"
    (tmp_path / "short" / "torch.py").write_text(program)  # in the place of what workers import
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'short'}:{CHECKOUT / 'src'}")
    before = signal.getsignal(signal.SIGTERM), dict(os.environ)
    with pytest.raises(RunError, match="process 1 of 2 failed"):
        workers.launch(compose(list(TWO)), tmp_path / "run", quiet=True)
    assert capfd.readouterr().err == "the reason\n"
    assert (signal.getsignal(signal.SIGTERM), dict(os.environ)) == before


def test_a_fault_of_ours_leaves_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request = {"settings": compose(list(TWO)).model_dump(), "folder": "run", "quiet": True}
    (tmp_path / "request.json").write_text(json.dumps(request))
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setattr("finetune.run.run", lambda *given: 1 / 0)
    assert worker.work(tmp_path) == 1
    assert "ZeroDivisionError" in json.loads((tmp_path / "error.json").read_text())["traceback"]


def test_in_a_sweep_they_are_refused_with_the_way_out(train: Train) -> None:
    ended = train("-m", *RUN, *TWO, "seed=0,1,2")
    assert ended.code == 2
    assert ended.err.startswith("error: trainer=ddp: expected without -m")
    assert ended.err.count("\n") == 1
    assert "trainer=auto" in ended.err
    assert not list(Path().rglob("summary.json"))


@pytest.mark.slow
def test_of_a_sweep_the_jobs_that_ask_for_them_alone_fail(train: Train) -> None:
    ended = train("-m", *RUN, "trainer.devices=1,2", "head_hidden=[]")
    assert ended.code == 1
    assert "error: job 1 (trainer.devices=2): trainer=ddp: expected without -m" in ended.err
    told = [summary_of(job)["status"] for job in sorted(Path().glob("outputs/sweeps/*/*/?"))]
    assert told == ["finished", "failed"]
