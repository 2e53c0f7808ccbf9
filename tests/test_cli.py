"""The commands: help that costs nothing, sweeps that go on, folders that never collide, exit codes."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.main import get_command

import finetune
from finetune import cli
from finetune.choices.optimizers import OPTIMIZERS
from finetune.config.compose import compose
from finetune.config.schema import Data, Settings, Trainer
from finetune.config.shipped import configs_folder
from support.ended import Ended
from support.processes import Started
from support.runs import CHECKOUT, SMALL

Train = Callable[..., Ended]
FINETUNE = Path(sys.executable).with_name("finetune")

# One picture of noise, one step: the fastest run there is.
STEP = ("data=random", "weights=random", "data.image_size=32", "epochs=1", "trainer=cpu", "cache=memory")


LIGHT = [
    ("train", "--help"),
    ("train", "--cfg", "job"),
    ("train", "hydra.run.dir=/proc/nowhere"),
    ("train", "optimizer.lrr=1"),
    ("train", "epochs=0", "hydra.run.dir=begun"),
    ("main", "--help"),
    ("main", "--version"),
    ("main", "train", "--help"),
    ("main", "inspect", "--help"),
    ("main", "inspect", "epochs=0"),
    ("main", "leaderboard", "latest"),
]
PROBE = """
import contextlib, json, sys
from finetune import cli
for function, *arguments in json.loads(sys.argv[1]):
    sys.argv[1:] = arguments
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(sys.stderr):
        getattr(cli, function)()
    print(json.dumps([*sys.modules]))
"""


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, ...], set[str]]:
    """The modules that a process has imported once it has run each of the commands, in turn."""
    folder = tmp_path_factory.mktemp("light")
    typed = [sys.executable, "-c", PROBE, json.dumps(LIGHT)]
    ended = subprocess.run(typed, cwd=folder, capture_output=True, text=True, timeout=120)
    assert not (folder / "begun").exists()
    return {
        command: set(json.loads(line)) for command, line in zip(LIGHT, ended.stdout.splitlines(), strict=True)
    }


@pytest.mark.parametrize("command", LIGHT, ids=" ".join)
def test_torch_is_not_imported_for(loaded: dict[tuple[str, ...], set[str]], command: tuple[str, ...]) -> None:
    assert "finetune.cli" in loaded[command]
    assert not loaded[command] & {"torch", "torchvision", "pytorch_lightning", "sklearn", "matplotlib", "PIL"}


@pytest.mark.slow
def test_what_takes_long_to_import_is_imported_for_what_needs_it_alone(
    tmp_path: Path, few_pictures: Path
) -> None:
    """The run of shufflenet is of a golden folder, from which is only read."""
    run, image = CHECKOUT / "tests" / "golden" / "runs" / "all", few_pictures / "red" / "0.png"
    commands = [("main", "predict", str(run), str(image)), ("main", "train", *STEP, "hydra.run.dir=trained")]
    typed = [sys.executable, "-c", PROBE, json.dumps(commands)]
    ended = subprocess.run(typed, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert "predict  1 image" in ended.stderr
    assert (tmp_path / "trained" / "summary.json").exists()
    predict, train = (set(json.loads(line)) for line in ended.stdout.splitlines())
    never = {"sklearn", "pandas", "pyarrow", "joblib", "networkx", "onnx", "timm"}
    assert train & never == set()
    assert predict & {"pytorch_lightning", "torchmetrics", "scipy", "matplotlib", "tensorboard"} == set()


def test_help_shows_the_groups_and_every_knob(train: Train) -> None:
    ended = train("--help", "optimizer=adamw")
    assert (ended.code, ended.err) == (0, "")
    for line in (
        "optimizer: adamw, lbfgs, sgd",
        "model: resnet18               # any classification model of torchvision;",
        "                              # timm/<name> with the timm extra",
        "  weight_decay: 0.01          # penalty on large weights",
        "  momentum: 0.9",
    ):
        assert (line in ended.out.splitlines()) == ("momentum" not in line), line
    assert str(configs_folder()) in ended.out
    assert "$" not in ended.out


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "lbfgs"])
def test_help_has_a_meaning_for_each_setting(train: Train, optimizer: str) -> None:
    lines = train("--help", f"optimizer={optimizer}").out.split("they are:")[1].splitlines()
    told = [line for line in lines if re.match(r" *\w+:", line)]
    assert [
        line for line in told if "#" not in line and line not in ("data:", "  name: adamw", "  name: sgd")
    ] == []
    names = {line.partition(":")[0].strip() for line in told}
    optimizers = {one: set(entry.settings.model_fields) for one, entry in OPTIMIZERS.items()}
    wanted = {*Settings.model_fields, *Data.model_fields, *Trainer.model_fields} | optimizers[optimizer]
    assert wanted - names == {"optimizer", "trainer", "source"}  # which are chosen, and told as groups
    assert max(map(len, lines)) <= 80


COMMANDS = get_command(cli.app).commands


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_helps_with_examples_that_it_takes(command: Train, name: str) -> None:
    lines = command(name, "--help").out.splitlines()
    assert max(map(len, lines)) <= 80 or name == "train"  # some names of data are listed in one line
    examples = [shlex.split(line, comments=True) for line in lines if line.startswith("    finetune ")]
    examples += [shlex.split(line, comments=True) for line in lines if line.startswith("  finetune train ")]
    assert examples
    for _, called, *arguments in examples:
        assert called == name
        taken = COMMANDS[name].make_context(name, arguments)  # no option that there is not
        settings = [one for one in taken.args if "=" in one and not one.startswith("models=")]
        single = [one for one in settings if "," not in one or "[" in one]
        compose(single)


def test_the_list_of_commands_fits_and_the_version_is_told(command: Train) -> None:
    lines = command("--help").out.splitlines()
    assert max(map(len, lines)) <= 80
    assert not [line for line in lines[1:] if line.endswith("...")]
    assert command("--version") == Ended(0, f"finetune {finetune.__version__}\n", "")


@pytest.mark.parametrize("arguments", [["--help"], ["help"], ["help", "inspect"], []])
def test_finetune_helps(command: Train, arguments: list[str], tmp_path: Path) -> None:
    ended = command(*arguments)
    assert "train" in ended.out + ended.err
    assert "Traceback" not in ended.err
    assert not list(tmp_path.iterdir())


def test_the_console_script_helps(tmp_path: Path) -> None:
    ended = subprocess.run([FINETUNE, "--help"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "train" in ended.stdout
    assert not list(tmp_path.iterdir())


def test_a_run_writes_its_folder_and_says_where(train: Train, tmp_path: Path) -> None:
    ended = train(*STEP, SMALL)
    assert ended.code == 0, ended.err
    latest = (tmp_path / "outputs" / "latest").read_text().strip()
    assert latest in ended.out
    assert json.loads((tmp_path / latest / "summary.json").read_text())["status"] == "finished"


def test_a_path_alone_trains_and_the_folder_keeps_what_was_said(
    train: Train, command: Train, tmp_path: Path, few_pictures: Path
) -> None:
    Path("My photos, 2024 = [all]").symlink_to(few_pictures)
    quick = (SMALL, "weights=random", "data.image_size=32", "epochs=1", "cache=memory")
    ended = train("My photos, 2024 = [all]", *quick, "hydra.run.dir=elsewhere/run")
    assert ended.code == 0, ended.err
    assert "watch    tensorboard --logdir elsewhere/run\n" in ended.out
    assert (Path("elsewhere/run/log.txt")).read_text() == ended.out
    (again,) = re.findall(r"next .*: (finetune train .*)\n", ended.out)[:1]
    assert shlex.split(again)[:3] == ["finetune", "train", "My photos, 2024 = [all]"]
    assert compose(shlex.split(again)[2:]).data.root == "My photos, 2024 = [all]"
    resumed = command("resume", "outputs/latest", "epochs=2")
    assert resumed.code == 0, resumed.err
    assert (Path("elsewhere/run/log.txt")).read_text() == ended.out + resumed.out
    for tail in ("latest", str(tmp_path / "outputs" / "latest")):
        assert command("report", tail).out.endswith("elsewhere/run/report.html\n")


@pytest.mark.parametrize(
    "words", ["train {} seed=1", "predict latest {}", "audit {}", "compare models=[a] {}"]
)
def test_a_path_with_spaces_and_without_quotes_is_guessed(command: Train, words: str) -> None:
    Path("My photos 2024").mkdir()
    Path("My").mkdir()
    told = "error: My photos 2024: expected quotes, as its name has spaces: 'My photos 2024'\n"
    assert command(*words.format("My photos 2024").split()) == Ended(2, "", told)
    Path("photos").mkdir()
    assert "quotes" not in command(*words.format("My photos").split()).err


def test_a_run_that_is_not_there_is_named_and_an_option_is_a_setting(command: Train) -> None:
    for words in (["predict", "lastest", "a.jpg"], ["resume", "lates"], ["leaderboard", "lastest"]):
        ended = command(*words)
        assert ended.code == 2
        assert ended.err.endswith("there is no such folder\n")
    assert "did you mean epochs=5?" in command("inspect", "--epochs", "5").err


@pytest.mark.slow
def test_a_path_alone_is_swept_over(train: Train, few_pictures: Path) -> None:
    Path("a,b").symlink_to(few_pictures)
    quick = (SMALL, "weights=random", "data.image_size=32", "epochs=1", "cache=memory")
    ended = train("a,b", "-m", *quick, "seed=0,1", "hydra.sweep.dir=swept")
    assert ended.code == 0, ended.err
    for number in range(2):
        assert "watch    tensorboard --logdir swept\n" in Path(f"swept/{number}/log.txt").read_text()


@pytest.mark.slow
def test_an_error_that_ends_a_run_is_kept_in_its_log(train: Train, few_pictures: Path) -> None:
    ended = train(
        str(few_pictures), SMALL, "weights=random", "freeze=none", "optimizer.lr=1e30", "hydra.run.dir=run"
    )
    assert ended.code == 1
    assert Path("run/log.txt").read_text().splitlines()[-1] == ended.err.strip()
    assert train("here", "hydra.run.dir=none").code == 2
    assert not Path("none").exists()


@pytest.mark.slow
def test_in_a_sweep_a_wrong_request_is_a_failed_job_and_the_others_go_on(
    train: Train, tmp_path: Path
) -> None:
    ended = train("-m", *STEP, "head=0,auto", "model=timm/test_resnet,resnet19")
    assert ended.code == 1
    told = [line.rpartition("): ")[2] for line in ended.err.splitlines()]
    assert told[:2] == ["head=0: expected a number of outputs, 1 or more, auto or keep"] * 2
    assert "job 3 (head=auto model=resnet19): model=resnet19: expected a classification model" in ended.err
    (sweep,) = (tmp_path / "outputs" / "sweeps").glob("*/*")
    states = [json.loads((sweep / str(job) / "summary.json").read_text())["status"] for job in range(4)]
    assert states == ["failed", "failed", "finished", "failed"]  # no outputs in 0 and 1, no model in 3
    assert all((sweep / str(job) / ".hydra" / "overrides.yaml").exists() for job in range(4))
    assert (tmp_path / "outputs" / "latest").read_text().strip() == str((sweep / "2").relative_to(tmp_path))


@pytest.mark.slow
def test_a_sweep_in_which_all_goes_well_ends_with_0(train: Train, tmp_path: Path) -> None:
    assert train("-m", *STEP, SMALL, "seed=0,1").code == 0
    summaries = [json.loads(path.read_text()) for path in tmp_path.rglob("summary.json")]
    assert sorted(summary["seed"] for summary in summaries) == [0, 1]


@pytest.mark.slow
def test_many_processes_that_start_at_once_have_folders_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    started = [Started("train", *STEP) for _ in range(2)] + [Started("train", "epochs=0") for _ in range(2)]
    assert [process.ended().code for process in started] == [0, 0, 2, 2]
    assert len(list(tmp_path.glob("outputs/2*/*/summary.json"))) == 2
    assert len(list(tmp_path.glob("outputs/2*/*"))) == 2  # what is refused leaves none


def test_a_folder_is_chosen_once_however_often_hydra_asks(train: Train, tmp_path: Path) -> None:
    assert train("-m", "epochs=0,-1,-2").code == 1
    (sweep,) = tmp_path.glob("outputs/sweeps/*/*")
    jobs = sorted(path.name for path in sweep.iterdir() if path.is_dir())
    assert jobs == ["0", "1", "2"]


def test_a_sweep_that_is_wrong_as_a_whole_leaves_no_folder(train: Train, tmp_path: Path) -> None:
    ended = train("-m", "epochs=0", "seed=0,1,2")
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert not [*tmp_path.glob("outputs/sweeps/*/*")]


def test_ctrl_c_while_preparing_ends_with_130_and_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    process = Started("train", "data=digits", "weights=random", "data.image_size=224")
    assert any(line.startswith("freeze") for line in process.stdout)  # computing features comes next
    process.send_signal(signal.SIGINT)
    ended = process.ended()
    (folder,) = (path.relative_to(tmp_path) for path in tmp_path.glob("outputs/2*/*"))
    line = f"error: interrupted by SIGINT; finetune resume {folder} goes on\n"
    assert (ended.code, ended.err[-len(line) :]) == (130, line)
    assert not (tmp_path / "outputs" / "latest").exists()


@pytest.mark.slow
def test_a_named_pipe_is_no_picture_and_nobody_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few_pictures: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(few_pictures, tmp_path / "here")
    os.mkfifo(tmp_path / "here" / "red" / "pipe.png")
    ended = Started("train", "data=folder", "data.root=here", "weights=random", SMALL).ended(60)
    assert ended.code == 2
    assert "here/red/pipe.png (is no file)" in ended.err


def test_an_error_of_our_own_is_no_wrong_request(tmp_path: Path) -> None:
    # A torch that cannot be imported stands for whatever nobody has thought of: traceback, exit code 1.
    (tmp_path / "torch.py").write_text("raise RuntimeError('this installation is broken')")
    ended = subprocess.run(
        [sys.executable, CHECKOUT / "train.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 1
    assert "RuntimeError: this installation is broken" in ended.stderr


INSPECT = ("inspect", "data=digits", "weights=random", "data.image_size=32")


def test_inspect_lists_what_trains(command: Train, tmp_path: Path) -> None:
    ended = command(*INSPECT, "freeze=[all,-layer4]", "--parameters")
    assert ended.code == 0, ended.err
    trains = [line.split()[0] for line in ended.out.splitlines() if line.endswith("requires_grad=True")]
    assert len(trains) == 17  # fifteen of layer4, and weight and bias of the head
    assert {name.partition(".")[0] for name in trains} == {"layer4", "fc"}
    assert not (tmp_path / "outputs").exists()


def test_inspect_says_when_nothing_trains(command: Train) -> None:
    ended = command(*INSPECT, "head=keep")
    assert ended.code == 0, ended.err
    assert "nothing trains" in ended.out


def test_no_command_leaves_an_environment_variable_set(train: Train) -> None:
    before = dict(os.environ)
    train("epochs=0")
    train("lr=1")
    assert dict(os.environ) == before


def test_the_store_is_listed_and_cleared(command, few_pictures):
    quick = ("weights=random", SMALL, "data.image_size=32", "epochs=1")
    knobs = ["data=folder", f"data.root={few_pictures}", *quick]
    assert command("cache", "cache_dir=store").out == "0 bytes in 0 sets of features in store\n"
    assert command("train", *knobs, "cache_dir=store").code == 0
    listed = command("cache", "cache_dir=store").out.splitlines()
    assert len(listed) == 2
    assert "60 images  timm/test_resnet at global_pool_flatten (96," in listed[0]
    assert "in 1 sets of features in store" in listed[1]
    assert "removed from store" in command("cache", "--clear", "cache_dir=store").out
    assert command("cache", "cache_dir=store").out == "0 bytes in 0 sets of features in store\n"
