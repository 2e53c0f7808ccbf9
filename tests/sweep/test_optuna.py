"""Searching with Optuna: Hydra's syntax, batches, failures, resuming; most of it without any training."""

from __future__ import annotations

import csv
import math
import statistics
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import hydra
import optuna
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from finetune.config.shipped import configs_folder
from finetune.errors import RequestError
from finetune.runs.sweeps import find_sweep
from finetune.sweep.leaderboard import compare
from hydra_plugins.finetune._study import SAMPLERS, Space, ended_trials, open_study, read_space, tell_trial
from support import killed_sweep
from support.ended import Ended
from support.processes import Started
from support.runs import QUICK, summary_of

LOG = "optimizer.lr=tag(log, interval(1e-4,1))"


def space(*overrides: str) -> Space:
    return read_space(OverridesParser.create().parse_overrides(list(overrides)))


def search(
    monkeypatch: pytest.MonkeyPatch, folder: Path, task: Callable[[DictConfig], Any], *arguments: str
) -> list[dict[str, Any]]:
    """Search with a function in the place of a training; what was tried, in its order."""
    tried: list[dict[str, Any]] = []

    def job(config: DictConfig) -> Any:
        tried.append({"lr": config.optimizer.lr, "momentum": config.optimizer.momentum, "seed": config.seed})
        return task(config)

    dir_ = f"hydra.sweep.dir={folder}"
    monkeypatch.setattr(
        sys, "argv", ["t", "-m", "hydra/sweeper=optuna", "hydra/launcher=basic", dir_, *arguments]
    )
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    hydra.main(version_base="1.3", config_path=str(configs_folder()), config_name="config")(
        lambda c: job(c)
    )()
    return tried


def study_in(folder: Path) -> optuna.Study:
    return optuna.load_study(study_name="finetune", storage=f"sqlite:///{folder / 'study.db'}")


def test_overrides_become_distributions() -> None:
    found = space(
        *("model=resnet18", LOG, "optimizer.momentum=interval(0,0.9)", "batch_size=int(interval(8,64))"),
        *("epochs=range(5,21,5)", "head_dropout=range(0,0.5,step=0.1)", "freeze=all,[all,-layer4]"),
        *("optimizer=choice(sgd,adamw)", "patience=tag(log,range(1,10))", "+x=tag(log,int(interval(1,9)))"),
    )
    assert found.distributions == {
        "optimizer.lr": FloatDistribution(1e-4, 1, log=True),
        "optimizer.momentum": FloatDistribution(0, 0.9),
        "batch_size": IntDistribution(8, 64),
        "epochs": IntDistribution(5, 20, step=5),
        "head_dropout": FloatDistribution(0, 0.4, step=0.1),
        "freeze": CategoricalDistribution(["all", "[all,-layer4]"]),
        "optimizer": CategoricalDistribution(["sgd", "adamw"]),
        "patience": IntDistribution(1, 9, log=True),
        "+x": IntDistribution(1, 9, log=True),
    }
    assert found.fixed == ["model=resnet18"]


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("optimizer.lr=0.1", "expected something to search"),
        ("optimizer.lr=tag(log, interval(0,1))", r"^optimizer.lr=tag\(log, interval\(0,1\)\): .*low"),
        ("optimizer.lr=interval(1,0)", r"^optimizer.lr=interval\(1,0\): "),
        ("epochs=range(5,5)", "expected a range with numbers in it"),
    ],
)
def test_what_cannot_be_searched_is_told(override: str, reason: str) -> None:
    with pytest.raises(RequestError, match=reason):
        space(override)


def tried(sampler: str, seed: int, number: int) -> list[float]:
    """The rates that a sampler tries, in batches of five, where a hundredth is best."""
    wanted = space(LOG, "optimizer.momentum=0.5,0.9")
    study = open_study("sqlite:///:memory:", "finetune", sampler, seed)
    rates: list[float] = []
    while len(rates) < number:
        for trial in [study.ask({**wanted.distributions}) for _ in range(5)]:
            rates.append(trial.params["optimizer.lr"])
            tell_trial(study, trial, [-abs(math.log10(rates[-1]) + 2)], [trial.number])
    return rates


@pytest.mark.slow
def test_it_learns_where_the_best_is() -> None:
    distances = [abs(math.log10(rate) + 2) for rate in tried("tpe", 1, 30)]
    assert statistics.fmean(distances[15:]) < 0.7 * statistics.fmean(distances[:10])


@pytest.mark.slow
@pytest.mark.parametrize(
    "sampler", [pytest.param(name, marks=pytest.mark.slow) if name != "tpe" else name for name in SAMPLERS]
)
def test_every_sampler_tries_the_same_again_with_the_same_seed(sampler: str) -> None:
    first = tried(sampler, 0, 10)
    assert len(set(first)) == 10
    assert tried(sampler, 0, 10) == first
    assert tried(sampler, 1, 5) != first[:5]


@pytest.mark.slow
def test_a_batch_is_asked_for_and_launched_together(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    states: list[list[TrialState]] = []

    def task(config: DictConfig) -> float:
        states.append([trial.state for trial in study_in(tmp_path).trials])
        return config.optimizer.lr

    tried = search(monkeypatch, tmp_path, task, LOG, "hydra.sweeper.n_trials=5", "hydra.sweeper.batch=3")
    running, complete = TrialState.RUNNING, TrialState.COMPLETE
    assert states == [[running] * 3] * 3 + [[complete] * 3 + [running] * 2] * 2
    trials = study_in(tmp_path).trials
    rates = [one["lr"] for one in tried]
    assert len(set(rates)) == 5
    assert [trial.value for trial in trials] == [trial.params["optimizer.lr"] for trial in trials] == rates
    assert [trial.user_attrs["jobs"] for trial in trials] == [[number] for number in range(5)]
    assert sorted(job.name for job in tmp_path.iterdir() if job.is_dir()) == list("01234")


@pytest.mark.slow
def test_no_value_no_number_and_a_fault_are_failed_trials(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def task(config: DictConfig) -> float | None:
        if config.epochs == 3:
            raise ZeroDivisionError("by zero")
        return {1: math.nan, 2: None, 4: 0.5}[config.epochs]

    tried = search(
        *(monkeypatch, tmp_path, task, "epochs=1,2,3,4"),
        *("hydra.sweeper.sampler=random", "hydra.sweeper.n_trials=4", "hydra.sweeper.seed=9"),
    )
    trials = study_in(tmp_path).trials
    assert len(tried) == len(trials) == 4
    states = {trial.params["epochs"]: trial.state for trial in trials}
    assert states == {
        "1": TrialState.FAIL,
        "2": TrialState.FAIL,
        "3": TrialState.FAIL,
        "4": TrialState.COMPLETE,
    }
    assert "epochs=3: ZeroDivisionError: by zero" in capsys.readouterr().err


@pytest.mark.slow
def test_seeds_repeat_each_trial_and_their_mean_counts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tried = search(
        *(monkeypatch, tmp_path, lambda config: config.seed / 10, LOG, "seed=1,2,6"),
        "hydra.sweeper.n_trials=2",
    )
    assert [one["seed"] for one in tried] == [1, 2, 6] * 2
    assert len({one["lr"] for one in tried}) == 2
    trials = study_in(tmp_path).trials
    assert [trial.user_attrs["jobs"] for trial in trials] == [[0, 1, 2], [3, 4, 5]]
    assert [trial.value for trial in trials] == [pytest.approx(0.3)] * 2


@pytest.mark.slow
def test_a_stopped_search_goes_on_with_what_was_being_tried(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def task(config: DictConfig) -> float:
        if (tmp_path / "3").exists() and not (tmp_path / "4").exists():
            raise SystemExit(130)
        return 0.5

    few = (LOG, "hydra.sweeper.batch=2", "hydra.sweeper.n_trials=5")
    with pytest.raises(SystemExit):
        search(monkeypatch, tmp_path, task, *few)
    before = [trial.params["optimizer.lr"] for trial in study_in(tmp_path).trials]
    resumed = [one["lr"] for one in search(monkeypatch, tmp_path, task, *few)]
    assert resumed[:2] == before[2:]  # the batch that was stopped
    assert len(resumed) == 3
    assert resumed[2] not in before  # nothing is drawn twice
    trials = study_in(tmp_path).trials
    assert sum(trial.state == TrialState.COMPLETE for trial in trials) == 5
    jobs = [number for trial in trials for number in trial.user_attrs.get("jobs", [])]
    assert jobs == [0, 1, 4, 5, 6]  # 2 and 3 were stopped
    with pytest.raises(RequestError, match=r"^hydra.sweeper.n_trials=5: expected more than 5 trials"):
        search(monkeypatch, tmp_path, task, *few)
    more = (LOG, "hydra.sweeper.n_trials=6", f"hydra.sweeper.storage={tmp_path / 'study.db'}")
    assert len(search(monkeypatch, tmp_path / "elsewhere", lambda config: 0.5, *more)) == 1


@pytest.mark.parametrize(
    ("knob", "line"),
    [
        ("hydra.sweeper.n_trials=0", "error: hydra.sweeper.n_trials=0: expected 1 or more\n"),
        ("hydra.sweeper.sampler=best", "error: hydra.sweeper.sampler=best: expected tpe, gp, random\n"),
        ("hydra.sweeper.storage=text", "error: hydra.sweeper.storage=text: expected a study's SQLite file ("),
        ("optimizer=sgd,foo", "error: optimizer=foo: expected one of adamw, lbfgs, sgd\n"),
        ("optimizer.lrr=interval(0,1)", "did you mean optimizer.lr?"),
    ],
)
def test_a_wrong_request_is_told_before_anything_trains(
    train: Callable[..., Ended], tmp_path: Path, knob: str, line: str
) -> None:
    (tmp_path / "text").write_text("no data base")
    ended = train("-m", "hydra/sweeper=optuna", LOG, knob)
    assert ended.code == 2
    assert line in ended.err
    assert "job" not in ended.out


def test_without_optuna_one_line_says_what_to_install(
    train: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    ended = train("-m", "hydra/sweeper=optuna", LOG)
    assert ended.code == 2
    assert ended.err == (
        "error: hydra/sweeper=optuna: expected Optuna; pip install 'finetune-toolkit[sweeps]' brings it\n"
    )
    assert not (tmp_path / "outputs").exists()


@pytest.mark.slow
def test_a_search_trains_and_ends_with_its_leaderboard(
    train: Callable[..., Ended], few_pictures: Path, tmp_path: Path
) -> None:
    (tmp_path / "pictures").symlink_to(few_pictures)
    ended = train(
        *("-m", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "hydra.sweeper.batch=3", *QUICK),
        *("optimizer.lr=tag(log, interval(1e-3,1))", "optimizer.momentum=interval(0.9,1.05)"),
    )
    (sweep,) = Path("outputs/sweeps").glob("*/*")
    trials = study_in(sweep).trials
    lines = list(csv.DictReader((sweep / "leaderboard.csv").open()))
    values = {trial.user_attrs["jobs"][0]: trial.value for trial in trials}
    assert {int(line["jobs"]): float(line["val_accuracy"] or "nan") for line in lines if line["rank"]} == {
        number: value for number, value in values.items() if value is not None
    }
    wrong = [trial.params["optimizer.momentum"] >= 1 for trial in trials]
    assert any(wrong)  # with this sampler's seed
    assert not all(wrong)
    assert ended.code == 1
    assert ended.err.count("expected a number below 1") == sum(wrong)
    assert "search   3 of 3 trials; best: val accuracy" in ended.out


@pytest.mark.slow
def test_a_search_without_validation_ends_with_its_first_batch(
    train: Callable[..., Ended], few_pictures: Path, tmp_path: Path
) -> None:
    (tmp_path / "pictures").symlink_to(few_pictures)
    ended = train(
        *("-m", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=4", "hydra.sweeper.batch=2", *QUICK),
        *(LOG, "data.val_fraction=0"),
    )
    assert ended.code == 2
    assert ended.err.startswith("error: hydra/sweeper=optuna: expected images to validate with")
    assert ended.err.count("\n") == 1
    assert "Not ranked" in ended.out
    assert "by validation" not in ended.out
    (sweep,) = Path("outputs/sweeps").glob("*/*")
    assert len(study_in(sweep).trials) == 2


@pytest.mark.slow
def test_a_study_goes_on_with_the_choices_that_it_began_with(
    train: Callable[..., Ended], few_pictures: Path, tmp_path: Path
) -> None:
    (tmp_path / "pictures").symlink_to(few_pictures)
    common = ("-m", "hydra/sweeper=optuna", "hydra.sweeper.batch=1", *QUICK, "hydra.sweep.dir=here")
    assert train(*common, "hydra.sweeper.n_trials=1", "label_smoothing=0,0.1").code == 0
    for other in ("label_smoothing=0,0.2", "label_smoothing=interval(0,1)"):
        ended = train(*common, "hydra.sweeper.n_trials=2", other)
        assert ended.code == 2
        assert ended.err.startswith("error: hydra.sweep.dir=here: expected what its study began with")
        assert ended.err.count("\n") == 1


@pytest.mark.slow
def test_resume_goes_on_with_the_study(
    command: Callable[..., Ended], few_pictures: Path, tmp_path: Path
) -> None:
    (tmp_path / "pictures").symlink_to(few_pictures)
    ended = command(
        *("train", "-m", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", "hydra.sweeper.batch=2", *QUICK),
        *(LOG, "hydra.sweep.dir=its search"),
    )
    assert ended.code == 0, ended.err
    folder = Path("its search")
    study = study_in(folder)
    stopped = study.ask({"optimizer.lr": FloatDistribution(1e-4, 1, log=True)})  # as when a process is killed
    text = (folder / "multirun.yaml").read_text()
    (folder / "multirun.yaml").write_text(text.replace("n_trials=2", "n_trials=3"))
    ended = command("resume", str(folder))
    assert ended.code == 0, ended.err
    assert "search   3 of 3 trials" in ended.out
    done = [trial for trial in study_in(folder).trials if trial.state == TrialState.COMPLETE]
    assert len(done) == 3
    assert done[2].params == stopped.params
    assert (folder / "2" / "summary.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["batched", "basic"])
def test_a_search_over_several_labels_looks_for_mean_average_precision(
    train: Callable[..., Ended], several: Path, launcher: str
) -> None:
    ended = train(
        *("-m", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", f"hydra/launcher={launcher}", *QUICK),
        *(
            "data=csv",
            f"data.root={several.name}",
            "loss=bce",
            "optimizer.lr=0.1,0.001",
            "hydra.sweeper.seed=1",
        ),
    )
    assert (ended.code, ended.err) == (0, "")
    (sweep,) = Path("outputs/sweeps").glob("*/*")
    study = study_in(sweep)
    for trial in study.trials:
        (number,) = trial.user_attrs["jobs"]
        assert trial.value == summary_of(sweep / str(number))["val"]["map"]
    assert f"search   2 of 2 trials; best: val mAP {study.best_value:.3f}, job" in ended.out


@pytest.mark.slow
@pytest.mark.parametrize(
    "call", [0, 3, *(pytest.param(call, marks=pytest.mark.slow) for call in (1, 2, 4, 5))]
)
def test_a_kill_while_a_study_is_opened_again_loses_no_trial(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, call: int
) -> None:
    place = (str(tmp_path / "study.db"), "finetune", "random", 0)
    wanted = {**space(LOG).distributions}
    study = open_study(*place)
    asked = [study.ask(wanted).params["optimizer.lr"] for _ in range(2)]
    seen = 0

    def killed(original: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            nonlocal seen
            seen += 1
            if seen == call + 1:
                raise KeyboardInterrupt
            return original(*arguments, **options)

        return counted

    with monkeypatch.context() as patch:
        for name in ("tell", "enqueue_trial"):
            patch.setattr(optuna.Study, name, killed(getattr(optuna.Study, name)))
        patch.setattr(optuna.Trial, "set_user_attr", killed(optuna.Trial.set_user_attr))
        with suppress(KeyboardInterrupt):
            open_study(*place)
    again = open_study(*place)
    assert [again.ask(wanted).params["optimizer.lr"] for _ in range(2)] == asked
    assert again.ask(wanted).params["optimizer.lr"] not in asked


def test_what_a_kill_left_half_asked_or_half_told_is_asked_again(tmp_path: Path) -> None:
    place = (str(tmp_path / "study.db"), "finetune", "random", 0)
    study = open_study(*place)
    half = study.ask()
    rate = half.suggest_float("optimizer.lr", 1e-4, 1, log=True)
    study.enqueue_trial({"optimizer.lr": 0.5, "optimizer.momentum": 0.25})
    study.ask()  # has what it is to try, and has drawn nothing
    told = study.ask({**space(LOG).distributions})
    told.set_user_attr("jobs", [2])  # all but the result
    again = open_study(*place)
    assert ended_trials(again) == 0
    wanted = {**space(LOG, "optimizer.momentum=interval(0,0.9)").distributions}
    first, second, third = (again.ask(wanted).params for _ in range(3))
    assert first["optimizer.lr"] == rate
    assert second == {"optimizer.lr": 0.5, "optimizer.momentum": 0.25}
    assert third["optimizer.lr"] == told.params["optimizer.lr"]


@pytest.mark.slow
def test_a_search_killed_while_it_plans_a_batch_tries_all_of_it(
    command: Callable[..., Ended], few_pictures: Path, tmp_path: Path
) -> None:
    (tmp_path / "pictures").symlink_to(few_pictures)
    arguments = ("hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "hydra.sweeper.batch=3", *QUICK, LOG)
    killed = Started("folder", "4", "9", "train", "-m", *arguments, work=killed_sweep.main).ended()
    assert killed.code == -9, killed.err
    sweep = find_sweep("latest")
    asked = [trial.params for trial in study_in(sweep).trials]
    assert [job.folder.name for job in compare(sweep).others] == list("012")
    ended = command("resume", "latest")
    assert (ended.code, ended.err) == (0, "")
    complete = [trial for trial in study_in(sweep).trials if trial.state == TrialState.COMPLETE]
    assert [trial.params for trial in complete] == asked
    assert not compare(sweep).others
