"""Runs that were interrupted go on, and end as they would have without."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load, load_file
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from finetune import build
from finetune.errors import RequestError
from finetune.runs.resume import read_resume_state
from finetune.training.checkpoint import Checkpoints
from support.ended import Ended
from support.killed import at_checkpoint, in_phase
from support.older import as_older
from support.privilege import without_privilege
from support.processes import Started
from support.runs import SMALL, checkpoint, summary_of, trained, whole_state

Command = Callable[..., Ended]
RUN = (
    "data=folder",
    "data.root=pictures",
    "data.image_size=32",
    SMALL,
    "weights=random",
    "freeze=through:layer3",
    "head_dropout=0.3",
    "epochs=4",
    "batch_size=32",
    "hydra.run.dir=run",
)


@pytest.fixture(scope="session")
def many_pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise in three colours, 210 pictures, so that features take several batches."""
    root = tmp_path_factory.mktemp("many") / "pictures"
    generator = np.random.default_rng(0)
    for channel, name in enumerate(("red", "green", "blue")):
        (root / name).mkdir(parents=True)
        for number in range(70):
            pixels = generator.integers(0, 200, (16, 16, 3), dtype=np.uint8)
            pixels[..., channel] += 20
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


@pytest.fixture(autouse=True)
def pictures(many_pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`pictures` in the working directory of each test."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").symlink_to(many_pictures)


@pytest.fixture(scope="module")
def whole(many_pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was never interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "pictures").symlink_to(many_pictures)
    with contextlib.chdir(folder):
        assert Started("train", *RUN, "cache_dir=cache").ended().code == 0
    return folder / "run"


def points(folder: Path) -> list[tuple[str, int]]:
    """Tag and step of every point in a run's TensorBoard log, as the files have them."""
    paths = sorted((folder / "tensorboard").glob("events.*"))
    events = [event for path in paths for event in EventFileLoader(str(path)).Load()]
    return sorted((value.tag, event.step) for event in events for value in event.summary.value)


def assert_ended_alike(run: Path, whole: Path) -> None:
    for name in ("best", "last"):
        assert checkpoint(run, name)["epoch"] == checkpoint(whole, name)["epoch"]
        a, b = whole_state(run, name), whole_state(whole, name)
        assert a.keys() == b.keys()
        assert all(value.equal(b[key]) for key, value in a.items())
    assert (run / "metrics.csv").read_text() == (whole / "metrics.csv").read_text()
    found = points(run)
    assert found == points(whole)
    assert len(found) == len(set(found))
    a, b = summary_of(run), summary_of(whole)
    for key in ("status", "val", "test", "best_epoch", "epochs", "steps", "data", "augment", "precision"):
        assert a[key] == b[key]
    left = [path for path in run.rglob(".*") if path.is_file() and ".hydra" not in path.parts]
    assert left == []


def killed(
    folder: Path, phase: str, call: int, delay: float, *arguments: str, number: int = signal.SIGKILL
) -> Ended:
    """Run in a process of its own, in a folder of its own, with a feature store of its own."""
    folder.mkdir(exist_ok=True)
    if not (folder / "pictures").exists():
        (folder / "pictures").symlink_to(Path("pictures").resolve())
    with contextlib.chdir(folder):
        return Started(*arguments, work=partial(in_phase, phase, call, delay, number)).ended()


# killed


@pytest.mark.parametrize(
    ("phase", "call", "delay"),
    [
        pytest.param("extraction", 2, 0.0, marks=pytest.mark.slow),
        pytest.param("epoch", 4, 0.1, marks=pytest.mark.slow),
        pytest.param("checkpoint", 3, 0.001, marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_ends_as_one_that_was_not(
    command: Command, tmp_path: Path, whole: Path, phase: str, call: int, delay: float
) -> None:
    ended = killed(tmp_path / "cut", phase, call, delay, "train", *RUN, "cache_dir=cache")
    assert ended.code == -signal.SIGKILL, ended.err
    os.chdir("cut")
    ended = command("resume", "run")
    assert (ended.code, ended.err) == (0, "")
    os.chdir("..")
    assert_ended_alike(Path("cut/run"), whole)


@pytest.mark.slow
def test_kills_in_each_phase(command: Command, tmp_path: Path, whole: Path) -> None:
    """At random moments of every phase, each with a feature store of its own; some twice, as luck has it."""
    chance, table = random.Random(0), []
    most = {"extraction": 4, "epoch": 20, "validation": 4, "checkpoint": 4, "test": 1}
    for number in range(7):
        phase = list(most)[number % len(most)]
        call, delay = chance.randint(1, most[phase]), chance.choice([0.001, 0.01, 0.1]) * chance.random()
        delay *= number >= len(most)  # at once the first time
        folder = tmp_path / f"cut{number}"
        ended = killed(folder, phase, call, delay, "train", *RUN, "cache_dir=cache")
        assert ended.code == -signal.SIGKILL, ended.err
        was = (folder / "phase").read_text().splitlines()[-1]
        os.chdir(folder)
        ended = command("resume", "run")
        os.chdir("..")
        assert (ended.code, ended.err) == (0, ""), (phase, call, delay)
        assert_ended_alike(folder / "run", whole)
        at = next(
            (line for line in ended.out.splitlines() if line.startswith("resume")), "resume   from the start"
        )
        table.append(
            f"{number + 1:>2}  {phase:<10} call {call:>2} + {delay * 1000:6.2f} ms  in {was:<10}  {at}"
        )
        shutil.rmtree(folder)
    with Path("kills").open("w") as file:
        file.write("\n".join(table))
    print("\n".join(table))
    assert {line.split(" in ")[1].split()[0] for line in table} == set(most)


@pytest.mark.slow
@pytest.mark.parametrize("after", [pytest.param(False, marks=pytest.mark.slow), True])
def test_each_epochs_gradients_stand_once_after_a_kill_around_its_checkpoint(
    command: Command, after: bool
) -> None:
    work = partial(at_checkpoint, 2, after)
    ended = Started("train", *RUN, "epochs=3", "cache_dir=cache", "monitor_gradients=true", work=work).ended()
    assert ended.code == -signal.SIGKILL, ended.err
    ended = command("resume", "run")
    assert (ended.code, ended.err) == (0, "")
    found = [point for point in points(Path("run")) if point[0].startswith(("gradients/", "updates/"))]
    layers = [f"{tag}/{layer}" for tag in ("gradients", "updates") for layer in ("fc", "layer4")]
    assert found == sorted((layer, step) for layer in layers for step in (5, 10, 15))


@pytest.mark.slow
def test_adapted_statistics_are_read_back(
    command: Command, many_pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    knobs = (*RUN, "freeze=all", "epochs=2", "cache_dir=cache", "batchnorm=adapt")
    (tmp_path / "whole").mkdir()
    whole = trained(tmp_path / "whole", many_pictures, *knobs)
    assert Started("train", *knobs, work=partial(at_checkpoint, 1, True)).ended().code == -signal.SIGKILL
    shutil.rmtree("cache")
    monkeypatch.setattr(build, "find_statistics", None)
    ended = command("resume", "run")
    assert (ended.code, ended.err) == (0, "")
    assert_ended_alike(Path("run"), whole)
    assert (
        summary_of(Path("run"))["batchnorm"]
        == summary_of(whole)["batchnorm"]
        == {"adapted": 15, "images": 152}
    )


# by the command


QUICKER = (*RUN, "epochs=1", "max_steps=2", "cache_dir=cache")


@pytest.fixture(scope="module")
def quicker(many_pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that has ended, and its feature store."""
    folder = tmp_path_factory.mktemp("quicker")
    return trained(folder, many_pictures, *QUICKER).parent


@pytest.fixture
def ended_run(quicker: Path, tmp_path: Path) -> Path:
    """A copy of them in the working directory."""
    shutil.copytree(quicker / "cache", "cache")
    return Path(shutil.copytree(quicker / "run", "run"))


def test_resume_auto_starts_then_says_that_all_is_done(command: Command) -> None:
    first = command("train", *QUICKER, "resume=auto")
    assert (first.code, first.err) == (0, "")
    before = {path: path.read_bytes() for path in Path("run/checkpoints").iterdir()}
    for again in (
        command("train", *QUICKER, "resume=auto"),
        command("resume", "run"),
        command("resume", "latest"),
    ):
        assert (again.code, again.err) == (0, "")
        assert again.out == "finished run has ended, after epoch 1; nothing to do\n"
    assert {path: path.read_bytes() for path in Path("run/checkpoints").iterdir()} == before

    asked = {path: path.read_bytes() for path in Path("run/.hydra").iterdir()}
    ended = command("train", *QUICKER, "resume=auto", "freeze=all")
    assert {path: path.read_bytes() for path in Path("run/.hydra").iterdir()} == asked
    assert ended.code == 2
    assert ended.err.startswith("error: freeze=[all]: expected [through:layer3], as run/settings.json has it")
    assert command("train", *QUICKER).code == 2  # without resume nothing is trained into


@pytest.mark.slow
def test_what_has_changed_is_named_and_refused(command: Command, tmp_path: Path) -> None:
    shutil.copytree(Path("pictures").resolve(), "mine")
    assert command("train", *QUICKER, "data.root=mine").code == 0
    Path("run/summary.json").unlink()  # as if it had been killed before its last words
    as_older(Path("run"))  # else a change of its settings is seen before what it would lead to
    settings = json.loads(Path("run/settings.json").read_text())

    def refused(**changed: Any) -> str:
        Path("run/settings.json").write_text(json.dumps({**settings, **changed}))
        ended = command("resume", "run")
        assert ended.code == 2
        (line,) = [line for line in ended.err.splitlines() if not line.startswith("note ")]
        return line

    assert refused(freeze=["all"]).startswith("error: freeze: what is frozen (SHA-256) differs")
    assert refused(head=7).startswith(
        "error: head: its number of outputs differs from the run's beginning: 3 then"
    )
    assert refused(model="timm/resnet18").startswith("error: model differs")
    assert refused(seed=1).startswith("error: weights: what is loaded")
    picture = Path("mine/red/0.png")
    content = picture.read_bytes()
    picture.write_bytes(Path("mine/red/1.png").read_bytes())
    assert refused().startswith("error: data: the images, their labels or their split (SHA-256) differs")
    picture.write_bytes(content)
    whole = Path("run/checkpoints/last.ckpt").read_bytes()
    for path in Path("run/checkpoints").glob("*.ckpt"):
        path.unlink()
        path.write_bytes(whole[: len(whole) // 2])
    assert "last.ckpt: is missing or damaged" in refused()


@pytest.mark.slow
def test_what_is_frozen_is_checked_and_written_again_where_it_is_gone(
    command: Command, ended_run: Path
) -> None:
    file = Path("run/checkpoints/frozen.safetensors")
    whole = file.read_bytes()

    def resumed() -> Ended:
        Path("run/summary.json").unlink(missing_ok=True)
        return command("resume", "run")

    for damaged in (whole[:-1], whole[:-1] + bytes([whole[-1] ^ 1]), whole.replace(b"green", b"greem", 1)):
        file.write_bytes(damaged)
        assert resumed().err == (
            f"error: {file}: expected what was frozen in that run; it is damaged or another run's; without it"
            " the run writes it again\n"
        )
    file.unlink()
    assert resumed().code == 0
    assert load_file(file).keys() == load(whole).keys()
    assert all(value.equal(load(whole)[name]) for name, value in load_file(file).items())
    assert command("evaluate", "run").code == 0


@pytest.mark.slow
def test_a_damaged_table_of_an_interrupted_run_is_what_it_was_at_its_checkpoint(
    command: Command, ended_run: Path
) -> None:
    table = Path("run/metrics.csv")
    whole = table.read_bytes()
    table.write_bytes(whole.replace(b"0.", b"1.") + b"2,4,0.5")
    Path("run/summary.json").unlink()
    assert command("resume", "run").code == 0
    assert table.read_bytes() == whole


@pytest.mark.parametrize(
    ("run", "words"),
    [
        ("nowhere", "nowhere: expected the folder of a run, there is no such folder"),
        ("pictures", "pictures: expected the folder of a run, settings.json in it"),
        ("latest", "latest: expected outputs/latest"),
    ],
)
def test_what_is_no_run_is_one_line(command: Command, run: str, words: str) -> None:
    ended = command("resume", run)
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert ended.err.startswith(f"error: {words}")


@pytest.mark.parametrize(
    "changed",
    [
        *({"origin": 5}, {"origin": {}}, {"loops": None}, {"callbacks": 5}, {"state_dict": 3}, {"epoch": -5}),
        *({"optimizer_states": None}, {"curves": "junk"}),
    ],
    ids=str,
)
def test_a_checkpoint_without_a_digest_holds_what_a_run_goes_on_with(
    tmp_path: Path, changed: dict[str, Any]
) -> None:
    golden = Path(__file__).parent / "golden" / "runs" / "interrupted"
    run = shutil.copytree(golden, tmp_path / "run")
    assert read_resume_state(run)
    last = run / "checkpoints" / "last.ckpt"
    torch.save(torch.load(last, weights_only=True) | changed, last)
    shutil.copyfile(last, last.with_name("best.ckpt"))
    with pytest.raises(RequestError, match=r"last\.ckpt: expected a checkpoint that says how to go on"):
        read_resume_state(run)


@pytest.mark.parametrize(("phase", "code"), [("extraction", signal.SIGTERM), ("checkpoint", signal.SIGINT)])
def test_a_signal_says_how_to_go_on(tmp_path: Path, phase: str, code: int) -> None:
    ended = killed(
        tmp_path / "cut", phase, 1, 0.0, "train", *RUN, "cache_dir=cache", "epochs=1000", number=code
    )
    assert ended.code == 128 + code, ended.err
    assert ended.err.splitlines()[-1].startswith(f"error: interrupted by {signal.Signals(code).name}; ")
    assert ended.err.endswith("; finetune resume run goes on\n")
    assert summary_of(tmp_path / "cut" / "run")["status"] == "interrupted"


# disks


def test_a_full_disk_is_one_line_and_a_run_goes_on_once_there_is_room(
    command: Command, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = (*RUN, "cache_dir=cache", "hydra.run.dir=disk/run", "freeze=all", "epochs=3")
    keep = Checkpoints.on_train_epoch_end

    def fill(self: Checkpoints, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch == 1:
            free = shutil.disk_usage(small_disk).free
            (small_disk / "filler").write_bytes(b"0" * free)
        keep(self, trainer, pl_module)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "on_train_epoch_end", fill)
        ended = command("train", *run)
    assert ended.code == 1
    assert ended.err.count("\n") == 1
    assert "cannot be written: No space left on device; the checkpoint of epoch 1 is kept" in ended.err
    assert checkpoint(small_disk / "run", "last")["epoch"] == 0
    (small_disk / "filler").unlink()
    assert command("resume", "disk/run").code == 0
    assert command("train", *RUN, "cache_dir=cache", "freeze=all", "epochs=3").code == 0
    assert_ended_alike(small_disk / "run", Path("run"))


def test_a_folder_that_may_not_be_written_is_one_line(command: Command, ended_run: Path) -> None:
    Path("run/summary.json").unlink()
    for folder in ("run", "run/checkpoints", "run/tensorboard"):
        os.chmod(folder, 0o500)
    try:
        with without_privilege():
            ended = command("resume", "run")
    finally:
        for folder in ("run", "run/checkpoints", "run/tensorboard"):
            os.chmod(folder, 0o700)
    assert ended.code == 1
    assert ended.err.count("\n") == 1
    assert "cannot be written: Permission denied" in ended.err
    assert command("resume", "run").code == 0
