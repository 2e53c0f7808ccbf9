"""Folders that version 0.1.0 wrote are opened, gone on with, measured and exported by today's code."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from omegaconf import OmegaConf
from safetensors.torch import load_file

from finetune.runs.open import open_run
from finetune.runs.summary import read_summary
from support.ended import Ended

GOLDEN = Path(__file__).parent / "golden"
SINGLE = ("all", "through", "norms", "none", "several")
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("none", "norms", "through", "sweep/2")]
CLASSES = ("electronics", "fruit", "mammal")
ROUNDING = 1e-3  # another CPU may round otherwise than the one that the folders come from
# Where the backbone trains, version 0.1.0 measured on the middle cut out of a resized image. Every command
# now measures on the middle resized alone: at 32 pixels the edge shows.
EDGES = {"norms": 0.02, "none": 0.02}

Command = Callable[..., Ended]
Golden = Callable[[str], Path]


@pytest.fixture
def golden(command: Command) -> Golden:
    """A copy of a golden run; what its settings name is in the working folder."""
    for name in ("images", "several", "several.csv", "backbone.safetensors"):
        Path(name).symlink_to(GOLDEN / name)
    return lambda name: Path(shutil.copytree(GOLDEN / "runs" / name, Path("runs") / name))


def done(ended: Ended) -> Ended:
    assert ended.code == 0, ended.err
    return ended


def summary_of(folder: Path) -> dict[str, Any]:
    summary = read_summary(folder)
    assert summary is not None
    return summary


def assert_same_metrics(found: dict[str, Any], wanted: dict[str, Any], rounding: float = ROUNDING) -> None:
    """Counts exactly, what is computed from logits up to rounding; keys of today alone are let pass."""
    for name, value in wanted.items():
        if isinstance(value, dict):
            assert_same_metrics(found[name], value, rounding)
        else:
            near = rounding if "loss" in name else 1e-6 if name in ("map", "average_precision") else 1e-12
            assert found[name] == pytest.approx(value, abs=near), name


def assert_ended_as(run: Path, golden: Path) -> None:
    """Another run of the same request came to the same as the golden one."""
    here, there = summary_of(run), summary_of(golden)
    for key in ("status", "epochs", "steps", "best_epoch", "classes", "parameters"):
        assert here[key] == there[key], key
    assert there["weights"].items() <= here["weights"].items()
    assert here["data"]["fingerprint"] == there["data"]["fingerprint"]
    for side in ("val", "test"):
        assert_same_metrics(here[side], there[side])


def content_of(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def board_of(sweep: Path) -> dict[str, tuple[float, ...]]:
    """Each row of a leaderboard by its learning rate: rank, repeats, and what it came to."""
    with (sweep / "leaderboard.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["status"] for row in rows} == {"finished"}
    names = ("rank", "n", "val_accuracy", "test_accuracy", "val_loss", "test_loss")
    return {row["optimizer.lr"]: tuple(float(row[name]) for name in names) for row in rows}


def answers(run: Path) -> dict[str, tuple[str, float]]:
    """The run's own word on its test images: the likeliest class and its probability, by name."""
    with (run / "predictions.csv").open(newline="", encoding="utf-8") as file:
        return {
            row["picture"]: (row["predicted"], float(row["probability"]))
            for row in csv.DictReader(file)
            if row["split"] == "test"
        }


@pytest.mark.parametrize("name", SINGLE)
def test_a_finished_run_has_nothing_left_to_do(name: str, golden: Golden, command: Command) -> None:
    run = golden(name)
    before = content_of(run)
    done(command("resume", str(run)))
    assert content_of(run) == before


@pytest.mark.parametrize("name", ["all", "several", *SLOW])
def test_a_run_measures_as_it_did(name: str, golden: Golden, command: Command) -> None:
    run = golden(name)
    done(command("evaluate", str(run), "--raw", "--out", "found.json"))
    found = json.loads(Path("found.json").read_text(encoding="utf-8"))
    found["loss"] = found["log_loss"]
    found["per_label"] = {row.pop("name"): row for row in found["per_class"]}
    assert_same_metrics(found, summary_of(run)["test"], EDGES.get(name, ROUNDING))


@pytest.mark.parametrize("name", ["all", *SLOW])
def test_a_run_answers_as_it_did(name: str, golden: Golden, command: Command) -> None:
    run = golden(name)
    wanted = answers(run)
    assert len(wanted) == 9
    done(command("predict", str(run), *wanted, "--out", "answers.csv"))
    with Path("answers.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))[1:]
    for row in rows:
        label, probability = wanted[row[0]]
        assert row[1] == label
        assert float(row[2]) == pytest.approx(probability, abs=EDGES.get(name, ROUNDING))
    assert {row[0] for row in rows} == wanted.keys()


@pytest.mark.parametrize("name", SINGLE)
def test_a_run_is_exported_as_torchvisions_model(name: str, golden: Golden, command: Command) -> None:
    run = golden(name)
    done(command("export", str(run), "--out", "model.safetensors"))
    model = torchvision.models.get_model("shufflenet_v2_x0_5", num_classes=3)
    model.load_state_dict(load_file("model.safetensors"))
    inputs = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(
            model.eval()(inputs), open_run(str(run)).network(inputs), rtol=0, atol=1e-4
        )


@pytest.mark.slow
def test_a_run_is_exported_to_onnx(golden: Golden, command: Command) -> None:
    run = golden("through")
    done(command("export", str(run), "--format", "onnx", "--out", "model.onnx"))
    assert Path("model.onnx").stat().st_size


@pytest.mark.parametrize("name", SINGLE)
def test_a_report_is_written_anew(name: str, golden: Golden, command: Command) -> None:
    run = golden(name)
    (run / "report.html").unlink()
    done(command("report", str(run)))
    page = (run / "report.html").read_text(encoding="utf-8")
    assert all(label in page for label in summary_of(run)["classes"])


@pytest.mark.slow
def test_an_interrupted_run_ends_as_one_that_was_not(golden: Golden, command: Command) -> None:
    run = golden("interrupted")
    done(command("resume", str(run)))
    assert_ended_as(run, GOLDEN / "runs" / "through")
    assert len((run / "metrics.csv").read_text(encoding="utf-8").splitlines()) == 5


def test_a_sweep_that_has_ended_stays_as_it_is(golden: Golden, command: Command) -> None:
    sweep = golden("sweep")
    jobs = [content_of(sweep / str(number)) for number in range(4)]
    done(command("resume", str(sweep)))
    more = command("resume", str(sweep), "epochs=40")
    assert more.code == 2
    assert "expected a run; " in more.err
    assert more.err.endswith("; its command typed again with epochs=40 trains another sweep\n")
    assert [content_of(sweep / str(number)) for number in range(4)] == jobs
    assert board_of(sweep) == board_of(GOLDEN / "runs" / "sweep")


def test_an_interrupted_sweep_ends_as_one_that_was_not(golden: Golden, command: Command) -> None:
    sweep = golden("sweep_interrupted")
    done(command("resume", str(sweep)))
    for number in range(4):
        assert_ended_as(sweep / str(number), GOLDEN / "runs" / "sweep" / str(number))
    whole = board_of(GOLDEN / "runs" / "sweep")
    assert {rate: pytest.approx(row, abs=ROUNDING) for rate, row in whole.items()} == board_of(sweep)


@pytest.mark.parametrize("name", ["sweep", "search"])
def test_a_leaderboard_is_written_anew(name: str, golden: Golden, command: Command) -> None:
    sweep = golden(name)
    for file in sweep.glob("leaderboard.*"):
        file.unlink()
    done(command("leaderboard", str(sweep)))
    assert board_of(sweep) == board_of(GOLDEN / "runs" / name)
    assert (sweep / "leaderboard.md").stat().st_size


@pytest.mark.slow
def test_a_search_goes_on(golden: Golden, command: Command) -> None:
    pytest.importorskip("optuna")
    search = golden("search")
    jobs = {number: content_of(search / str(number)) for number in range(4)}
    place = (f"hydra.sweep.dir={search}", "hydra.sweeper.n_trials=5", "hydra.sweeper.batch=2")
    asked = OmegaConf.load(search / "multirun.yaml").hydra.overrides.task
    done(command("train", "-m", "hydra/sweeper=optuna", *place, *asked))
    assert {number: content_of(search / str(number)) for number in range(4)} == jobs
    assert summary_of(search / "4")["status"] == "finished"
    assert len(board_of(search)) == 5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["all", pytest.param("through", marks=pytest.mark.slow)])
def test_a_run_is_the_beginning_of_another(name: str, golden: Golden, command: Command) -> None:
    run = golden(name)
    done(
        command(
            *("train", "model=shufflenet_v2_x0_5", "data=folder", "data.root=images", "data.image_size=32"),
            *("head=keep", f"weights={run}", "optimizer.lr=1e-12", "precision=32", "epochs=1"),
            *("freeze=through:conv5", "cache=memory", "trainer=cpu", "hydra.run.dir=next"),
        )
    )
    found, wanted = summary_of(Path("next")), summary_of(run)
    assert tuple(found["classes"]) == CLASSES
    assert found["test"]["accuracy"] == wanted["test"]["accuracy"]
    assert found["test"]["loss"] == pytest.approx(wanted["test"]["loss"], abs=ROUNDING)
