"""The jobs of a sweep side by side: ranked by validation alone, repeats as one row."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import api_pb2, list_session_groups
from tensorboard.plugins.hparams.backend_context import Context

from finetune.atomic import write_sealed
from finetune.config.compose import compose
from finetune.errors import RequestError
from finetune.runs.folder import LATEST, begin
from finetune.runs.sweeps import find_latest, find_sweep
from finetune.sweep.leaderboard import compare
from finetune.sweep.tables import as_csv, as_markdown, print_leaderboard
from finetune.training.intervals import wilson
from support.ended import Ended
from support.runs import QUICK, summary_of

Command = Callable[..., Ended]
# What Hydra notes of a search: which jobs there are its folders alone tell.
RUNTIME = {"choices": {"hydra/sweeper": "optuna"}, "config_sources": []}
SEARCH = {"hydra": {"sweeper": {}, "overrides": {"hydra": [], "task": []}, "runtime": RUNTIME}}


def job(sweep: Path, number: int | str, overrides: list[str], summary: dict[str, Any] | None = None) -> Path:
    """A job's folder with what is read of it."""
    folder = sweep / str(number)
    sweep.mkdir(exist_ok=True)
    (sweep / "multirun.yaml").write_text(json.dumps(SEARCH))
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "overrides.yaml").write_text(json.dumps(overrides))  # JSON is YAML
    if summary is not None:
        write_sealed(folder / "summary.json", summary)
    return folder


def finished(accuracy: float, loss: float = 1.0, test: float = 0.5, seconds: float = 2.0) -> dict[str, Any]:
    return {
        "status": "finished",
        "val": {"accuracy": accuracy, "loss": loss},
        "test": {"accuracy": test, "loss": 1.5},
        "timing": {"total": seconds},
        **{"epochs": 1, "best_epoch": 1, "classes": [], "calibration": None, "features": None},
        **{"data": {}, "weights": {}, "preprocessing": {}},
    }


def shown(sweep: Path, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width)
    print_leaderboard(compare(sweep), console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_folds_and_splits_are_repeats_as_seeds_are(tmp_path: Path) -> None:
    for number, repeat in enumerate(("data.fold=0", "data.fold=1", "data.split_seed=1", "seed=1")):
        for rate in (1, 2):
            job(tmp_path, 2 * number + rate, [f"lr={rate}", repeat], finished((number + rate) / 8))
    board = compare(tmp_path)
    assert board.varying == ["lr"]
    assert [(row.settings["lr"], len(row.jobs), row.score) for row in board.rows] == [
        ("2", 4, 7 / 16),
        ("1", 4, 5 / 16),
    ]
    assert f"best     {tmp_path}/8: lr=2, the best of its 4 repeats, by validation\n" in shown(tmp_path)


def test_ranked_by_validation_and_never_by_test(tmp_path: Path) -> None:
    job(tmp_path, 0, ["lr=1"], finished(0.7, loss=0.9, test=0.99))
    job(tmp_path, 1, ["lr=2"], finished(0.8, loss=0.9, test=0.1))
    job(tmp_path, 2, ["lr=3"], finished(0.8, loss=0.8, test=0.2))
    job(tmp_path, 10, ["lr=4"], finished(0.1, test=1.0))
    assert [row.settings["lr"] for row in compare(tmp_path).rows] == ["3", "2", "1", "4"]


def test_a_folder_of_a_refused_request_is_no_job(tmp_path: Path) -> None:
    refused = job(tmp_path, 0, ["freeze=layr4"])
    started = job(tmp_path, 1, [])
    begin(started, compose([]).model_dump())
    assert [one.folder for one in compare(tmp_path).others] == [refused, started]  # of a sweep: it waits
    (tmp_path / "multirun.yaml").unlink()
    assert [one.folder for one in compare(tmp_path).others] == [started]


def test_seeds_are_one_row_with_mean_and_sample_deviation(tmp_path: Path) -> None:
    accuracies = [0.5, 0.9, 0.7]
    for seed, accuracy in enumerate(accuracies):
        job(tmp_path, seed, ["lr=1", f"seed={seed}"], finished(accuracy))
    job(tmp_path, 3, ["lr=2", "seed=0"], finished(0.8))
    board = compare(tmp_path)
    first, second = board.rows
    assert first.settings == {"lr": "2"}
    assert second.spread("val_accuracy") is not None
    spread = second.spread("val_accuracy")
    assert spread is not None
    assert (spread.mean, spread.std) == (pytest.approx(0.7), pytest.approx(statistics.stdev(accuracies)))
    assert second.best.folder.name == "1"  # the best of the seeds by validation
    (alone,) = (line for line in csv.DictReader(io.StringIO(as_csv(board).decode())) if line["lr"] == "2")
    assert (alone["n"], alone["val_accuracy"], alone["val_accuracy_std"]) == ("1", "0.8", "")
    assert "0.700 ± 0.200" in shown(tmp_path)


def test_jobs_without_a_result_come_last_with_their_reason(tmp_path: Path) -> None:
    job(tmp_path, 0, ["lr=1"], {"status": "failed", "reason": "the loss is not finite"})
    job(tmp_path, 1, ["lr=-1"], {"status": "failed", "reason": "lr=-1: expected a number above 0"})
    job(tmp_path, 2, ["lr=2"], finished(0.5))
    running = job(tmp_path, 3, ["lr=3"])
    begin(running, compose(["epochs=20"]).model_dump())
    (running / "metrics.csv").write_text("epoch,loss\n1,1\n2,1\n")
    job(tmp_path, 4, ["lr=4"])
    damaged = job(tmp_path, 5, ["lr=5"])
    begin(damaged, compose([]).model_dump())
    (damaged / "metrics.csv").write_text("epoch,loss\n1,1\n?,1\n")
    board = compare(tmp_path)
    told = [(one.folder.name, one.status, one.reason) for one in board.others]
    assert told == [
        ("0", "failed", "the loss is not finite"),
        ("1", "failed", "lr=-1: expected a number above 0"),
        ("3", "unfinished", "2 of 20 epochs so far"),
        ("4", "unfinished", "not begun"),
        ("5", "unfinished", "metrics.csv is damaged; finetune resume mends it"),
    ]
    lines = list(csv.DictReader(io.StringIO(as_csv(board).decode())))
    assert [line["status"] for line in lines] == ["finished", "failed", "failed", *["unfinished"] * 3]
    assert lines[1]["rank"] == ""
    text = shown(tmp_path)
    assert "failed   job 0 (lr=1): the loss is not finite\n" in text
    assert f"open     3 jobs have not ended: 3-5; finetune resume {tmp_path} goes on\n" in text


def test_a_stopped_job_that_another_made_up_for_is_left_out(tmp_path: Path) -> None:
    stopped = {"status": "interrupted", "reason": "interrupted by SIGINT"}
    job(tmp_path, 0, ["lr=1"], stopped)
    job(tmp_path, 1, ["lr=2"], stopped)
    job(tmp_path, 2, ["lr=3"])
    for number, rate in enumerate(("lr=1", "lr=3"), 3):
        job(tmp_path, number, [rate], finished(0.5))
    assert [other.folder.name for other in compare(tmp_path).others] == ["1"]


def test_a_job_without_a_validation_split_cannot_win(tmp_path: Path) -> None:
    job(tmp_path, 0, ["data.val_fraction=0"], {**finished(0), "val": None})
    job(tmp_path, 1, ["data.val_fraction=0.1"], finished(0.1))
    assert [row.best.folder.name for row in compare(tmp_path).rows] == ["1", "0"]


def answered(folder: Path, right: int, images: int = 40, first: int = 0) -> None:
    """The answers of a job on test images, so many of them right."""
    rows = [f"test,{first + n}.png,cat,{'cat' if n < right else 'dog'},0.9,0.9\n" for n in range(images)]
    header = "split,picture,label,predicted,probability,uncalibrated\n"
    (folder / "predictions.csv").write_text(header + "".join(rows))


def test_what_cannot_be_told_from_the_best_is_marked(tmp_path: Path) -> None:
    """By the same test images; the sixth answered others. The spread over seeds is called what it is."""
    rights = {"1": (36, 35), "2": (34,), "3": (20,), "4": (35,)}
    number = 0
    for rate, each in rights.items():
        for seed, right in enumerate(each):
            summary = finished(0.9 - int(rate) / 10, test=right / 40)
            summary["test"]["intervals"] = {"accuracy": wilson(right / 40, 40)}
            folder = job(tmp_path, number, [f"lr={rate}", f"seed={seed}"], summary)
            answered(folder, right, first=100 * (rate == "4"))
            number += 1
    board = compare(tmp_path)
    assert [row.level for row in board.rows] == [None, True, False, None]
    assert board.rows[1].interval == pytest.approx(wilson(0.85, 40))
    text = shown(tmp_path, 120)
    assert [line.split("  ")[0].strip() for line in text.splitlines()[4:8]] == ["1", "2 =", "3", "4"]
    assert "0.71 to 0.93" in text
    assert "note     =: its accuracy may be the best one's (paired bootstrap on the same test images" in text
    assert "note     1 of 3 rows are not compared with the best: they have other test images" in text
    assert "note     ±: the spread over repeats, not how sure a number is\n" in text
    lines = list(csv.DictReader(io.StringIO(as_csv(board).decode())))
    assert [line["level_with_best"] for line in lines] == ["", "True", "False", ""]
    assert float(lines[1]["low"]) == pytest.approx(wilson(0.85, 40)[0])
    (tmp_path / "0" / "predictions.csv").write_text("split\ntest\n")
    seal = {**summary_of(tmp_path / "0"), "files": {"predictions.csv": "0" * 64}}
    write_sealed(tmp_path / "0" / "summary.json", seal)
    with pytest.raises(RequestError, match=r"predictions.csv: expected what the run wrote"):
        compare(tmp_path)


def test_runs_below_any_folder_are_compared_by_all_their_settings(
    finished_run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those from Python, which have no overrides; what one of them left at its default has its value."""
    (tmp_path / ".vscode").mkdir()
    (tmp_path / ".vscode" / "settings.json").write_text("{}")
    for number, overrides in enumerate(((), ("optimizer.lr=1e-9",))):
        folder = Path(shutil.copytree(finished_run(*overrides), tmp_path / "day" / str(number)))
        shutil.rmtree(folder / ".hydra", ignore_errors=True)
    board = compare(tmp_path)
    assert board.varying == ["optimizer.lr"]
    assert {row.settings["optimizer.lr"] for row in board.rows} == {"0.01", "1e-09"}
    assert {board.name(row.best) for row in board.rows} == {"day/0", "day/1"}
    assert board.rows[1].level in (True, False)
    monkeypatch.chdir(tmp_path / "day" / "0")
    assert len(compare(Path(".")).rows) == 1


def test_several_labels_are_ranked_by_mean_average_precision(tmp_path: Path) -> None:
    for number, (precision, exact) in enumerate([(0.6, 0.3), (0.8, 0.1), (0.7, 0.2)]):
        metrics = {"accuracy": exact, "map": precision, "loss": 1.0}
        job(tmp_path, number, [f"lr={number}"], {**finished(0), "val": metrics, "test": metrics})
    board = compare(tmp_path)
    assert [row.best.folder.name for row in board.rows] == ["1", "2", "0"]
    lines = as_markdown(board).splitlines()
    assert lines[2].startswith("Ranked by validation mAP, ties by")
    assert lines[4] == "| # | lr | val mAP | val loss | test mAP | test loss | time | jobs |"
    assert lines[6] == "| 1 | 1 | 0.800 | 1.0000 | 0.800 | 1.0000 | 2.0 s | 1 |"
    assert "val acc" not in shown(tmp_path)
    # Below a folder with runs of every kind each is ranked by what decides for it.
    job(tmp_path, 3, ["lr=3"], finished(0.75))
    board = compare(tmp_path)
    assert [row.best.folder.name for row in board.rows] == ["1", "3", "2", "0"]
    lines = as_markdown(board).splitlines()
    assert lines[2].startswith("Ranked by validation mAP or accuracy, ties by")
    assert "| val mAP | val acc | val loss |" in lines[4]
    assert "| 2 | 3 |  | 0.750 | 1.0000 |" in lines[7]


@pytest.mark.parametrize("settings", [1, 3, 8])
@pytest.mark.parametrize("width", [30, 60, 80, 200])
def test_the_table_fits_the_terminal_and_loses_no_setting(tmp_path: Path, settings: int, width: int) -> None:
    keys = [f"section{number}.knob{number}" for number in range(settings)]
    for number in range(4):
        overrides = [f"{key}=value{number // 2}" for key in keys]
        job(tmp_path, number, [*overrides, f"seed={number}"], finished(number / 4))
    table = shown(tmp_path, width).partition("best ")[0]
    assert max(map(len, table.splitlines())) <= width
    assert all(f"knob{number}" in table for number in range(settings))
    assert "0.625 ± 0.177" in table.replace("\n", "")
    assert ("test loss" in table) == (width == 200)


def test_the_terminal_shows_the_best_and_the_files_all(tmp_path: Path) -> None:
    for number in range(33):
        job(tmp_path, number, [f"lr={number}"], finished(number / 100))
    text, board = shown(tmp_path), compare(tmp_path)
    assert "more     3 rows below these\n" in text
    assert " 0.030 " in text
    assert " 0.020 " not in text
    assert len(as_csv(board).splitlines()) == 1 + 33
    assert " 0.020 " in as_markdown(board)


def test_markdown_has_every_column_and_the_best_runs_folder(tmp_path: Path) -> None:
    job(tmp_path, 0, ["freeze=[all,-layer4]", "optimizer.lr=0.00123456789"], finished(0.5))
    job(tmp_path, 1, ["freeze=all", "optimizer.lr=0.1"], finished(0.25))
    lines = as_markdown(compare(tmp_path)).splitlines()
    assert lines[4] == "| # | freeze | lr | val acc | val loss | test acc | test loss | time | jobs |"
    assert lines[6] == "| 1 | [all,-layer4] | 0.001235 | 0.500 | 1.0000 | 0.500 | 1.5000 | 2.0 s | 0 |"
    assert f"Best run: `{tmp_path / '0'}`" in lines


def test_settings_stand_without_hydras_backslashes(tmp_path: Path) -> None:
    for number, freeze in enumerate((r"freeze=through\:layer3", "freeze=all")):
        job(tmp_path, number, [freeze], finished(0.5))
    board = compare(tmp_path)
    for text in (shown(tmp_path, 120), as_csv(board).decode(), as_markdown(board)):
        assert "through:layer3" in text
        assert "\\" not in text


def test_the_best_of_jobs_that_differ_in_nothing_has_no_settings(tmp_path: Path) -> None:
    for seed in range(2):
        job(tmp_path, seed, [f"seed={seed}"], finished(seed / 2))
    assert f"best     {tmp_path}/1: the best of its 2 repeats, by validation\n" in shown(tmp_path)
    job(tmp_path / "one", 0, [], finished(0.5))
    assert f"best     {tmp_path}/one/0: by validation\n" in shown(tmp_path / "one")


def test_many_failed_jobs_are_counted(tmp_path: Path) -> None:
    for number in range(100):
        job(tmp_path, number, [f"lr={number}"], {"status": "failed", "reason": "no disk"})
    text = shown(tmp_path)
    assert text.count("failed   job") == 30
    assert "more     70 jobs without a result, as the table has them\n" in text


def test_what_a_setting_says_is_no_formula_and_no_markup(tmp_path: Path) -> None:
    roots = ["=1+1", "[x](javascript:a)", "<b>`b|", "\x1b[2J:smile:[red]r[/]", "-0.5"]
    for number, root in enumerate(roots):
        job(tmp_path, number, [f"data.root={root}"], finished(number / 10))
    board = compare(tmp_path)
    rows = list(csv.DictReader(io.StringIO(as_csv(board).decode())))
    assert [row["data.root"] for row in rows] == ["-0.5", *roots[3:0:-1], "'=1+1"]
    written = as_markdown(board)
    assert all(line.count("|") == 9 for line in written.splitlines() if line.startswith("|"))
    for part in ("](", "<b", "`b"):
        assert part not in written
    text = shown(tmp_path, 120)
    assert "\x1b" not in text
    assert ":smile:[red]r[/]" in text


def test_of_the_same_request_made_twice_the_later_counts(tmp_path: Path) -> None:
    for number, (seed, accuracy) in enumerate(((0, 0.1), (1, 0.5), (0, 0.7))):
        job(tmp_path, number, [f"seed={seed}"], finished(accuracy))
    (row,) = compare(tmp_path).rows
    assert sorted(one.folder.name for one in row.jobs) == ["1", "2"]


@pytest.mark.parametrize("name", ["202401011{}", "2024_01_1{}", "1_000.123{}"])
def test_numbers_that_are_names_are_left_as_they_are(tmp_path: Path, name: str) -> None:
    for number in range(2):
        job(tmp_path, number, [f"data.root={name.format(number)}"], finished(0.5))
    assert all(name.format(number) in shown(tmp_path) for number in range(2))


def test_jobs_without_validation_and_test_stand_on_a_narrow_terminal(tmp_path: Path) -> None:
    for number in ("²", "1"):
        job(tmp_path, number, [f"freeze={'x' * 50}{number}"], finished(0) | {"val": None, "test": None})
    text = shown(tmp_path, 40)
    assert "settings" in text
    assert "note     Not ranked" in text


def test_the_latest_sweep_is_that_of_the_newest_run_wherever_it_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    older, newer = Path("outputs/sweeps/day/time"), Path("elsewhere")
    (older.parent).mkdir(parents=True)
    for sweep in (older, newer):
        begin(job(sweep, 0, ["seed=0"]), {})
    LATEST.write_text("elsewhere/0\n")
    os.utime(older / "multirun.yaml", (0, 0))
    assert find_sweep("latest") == find_latest(LATEST) == newer
    os.utime(LATEST, (0, 0))
    os.utime(older / "multirun.yaml", (1, 1))
    assert find_sweep("latest") == find_latest(LATEST) == older


@pytest.mark.parametrize(
    ("file", "text"),
    [(".hydra/overrides.yaml", "[a: b: c"), ("settings.json", "{"), ("summary.json", "{")],
)
def test_a_damaged_file_is_named(tmp_path: Path, file: str, text: str) -> None:
    folder = job(tmp_path, 0, ["seed=0"])
    (folder / file).write_text(text)
    with pytest.raises(RequestError, match=str(Path("0") / file)):
        compare(tmp_path)


def test_what_is_no_sweep_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        RequestError, match=r"^latest: expected a sweep in outputs/sweeps; there is none here$"
    ):
        find_sweep("latest")
    with pytest.raises(
        RequestError, match=r"^nowhere: expected the folder of a sweep; there is no such folder$"
    ):
        find_sweep("nowhere")
    with pytest.raises(RequestError, match=r"there are no jobs in it$"):
        compare(tmp_path)


def hparams_page(sweep: Path) -> tuple[list[str], list[dict[str, Any]]]:
    """What TensorBoard's HPARAMS page shows of a folder: the settings' order, and a line for each run."""
    runs = EventMultiplexer().AddRunsFromDirectory(str(sweep))
    runs.Reload()
    context = RequestContext()
    backend = Context(TBContext(data_provider=MultiplexerDataProvider(runs, str(sweep))))
    metadata = backend.hparams_metadata(context, "")
    experiment = backend.experiment_from_metadata(context, "", True, metadata, [])
    request = api_pb2.ListSessionGroupsRequest(
        slice_size=100,
        allowed_statuses=[api_pb2.STATUS_UNKNOWN, api_pb2.STATUS_SUCCESS, api_pb2.STATUS_RUNNING],
        col_params=[api_pb2.ColParams(metric=info.name) for info in experiment.metric_infos],
    )
    groups = list_session_groups.Handler(context, backend, "", request).run().session_groups
    lines = [
        {
            "run": group.sessions[0].name,
            "name": group.name,
            "lr": group.hparams["optimizer.lr"].number_value,
            "seed": group.hparams["seed"].number_value,
            **{metric.name.tag: metric.value for metric in group.metric_values},
        }
        for group in groups
    ]
    return [info.name for info in experiment.hparam_infos], lines


@pytest.mark.slow
def test_a_sweep_ends_with_its_leaderboard_and_tensorboard_compares_its_jobs(
    train: Command, command: Command, few_pictures: Path, tmp_path: Path
) -> None:
    (tmp_path / "pictures").symlink_to(few_pictures)
    ended = train("-m", *QUICK, "optimizer.lr=0.1,0,0.001", "seed=0,1")
    assert ended.code == 1
    assert ended.err.count("): optimizer.lr=0: expected a number above 0") == 2
    (sweep,) = Path("outputs/sweeps").glob("*/*")
    lines = list(csv.DictReader((sweep / "leaderboard.csv").open()))
    assert [line["status"] for line in lines] == ["finished"] * 2 + ["failed"] * 2
    for line in lines[:2]:
        summaries = [summary_of(sweep / number) for number in line["jobs"].split()]
        for side in ("val", "test"):
            for name in ("accuracy", "loss"):
                values = [summary[side][name] for summary in summaries]
                assert float(line[f"{side}_{name}"]) == pytest.approx(statistics.fmean(values))
                assert float(line[f"{side}_{name}_std"]) == pytest.approx(statistics.stdev(values))
    assert float(lines[0]["val_accuracy"]) >= float(lines[1]["val_accuracy"])
    assert f"best     {lines[0]['best_run']}: optimizer.lr=" in ended.out
    assert "failed   job 2 (optimizer.lr=0 seed=0): optimizer.lr=0: expected a number above 0" in ended.out
    settings, runs = hparams_page(sweep)
    assert settings[:2] == ["optimizer.lr", "seed"]  # what differs stands first
    assert len(runs) == 4
    for run in runs:
        summary = summary_of(sweep / run["run"].partition("/")[0])
        assert run["seed"] == summary["seed"]
        assert run["name"].startswith(f"lr={run['lr']:g},seed={run['seed']:g} ")
        for side in ("val", "test"):
            assert run[f"Final/{side}_accuracy"] == pytest.approx(summary[side]["accuracy"])
    assert {(run["lr"], run["seed"]) for run in runs} == {(0.1, 0), (0.1, 1), (0.001, 0), (0.001, 1)}
    (sweep / "leaderboard.csv").unlink()
    again = command("leaderboard", "latest")
    assert again.code == 0
    assert again.out in ended.out
    assert (sweep / "leaderboard.csv").exists()
    assert command("leaderboard", "elsewhere").code == 2


@pytest.mark.slow
def test_a_sweep_over_several_labels(train: Command, several: Path) -> None:
    table = ("data=csv", f"data.root={several.name}", "loss=bce")
    ended = train("-m", *QUICK, *table, "optimizer.lr=0.001,0.1", "epochs=4")
    assert (ended.code, ended.err) == (0, "")
    (sweep,) = Path("outputs/sweeps").glob("*/*")
    lines = list(csv.DictReader((sweep / "leaderboard.csv").open()))
    assert [line["optimizer.lr"] for line in lines] == ["0.1", "0.001"]
    for line in lines:
        summary = summary_of(Path(line["best_run"]))
        for side in ("val", "test"):
            assert float(line[f"{side}_map"]) == summary[side]["map"]
    assert "val mAP" in ended.out
    assert "val acc" not in ended.out.partition("best ")[0]
