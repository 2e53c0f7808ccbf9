"""The whole plan of a sweep is on disk before a job begins: whatever stops it, no job is lost."""

from __future__ import annotations

import csv
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune.atomic import write_sealed
from finetune.errors import RequestError
from finetune.runs.sweeps import find_sweep
from finetune.sweep import resume
from finetune.sweep.leaderboard import compare
from finetune.sweep.planned import planned
from finetune.sweep.plans import Plan
from support.ended import Ended
from support.killed_sweep import main as killed
from support.processes import Started
from support.runs import SMALL, summary_of

Command = Callable[..., Ended]


@pytest.fixture
def knobs(few_pictures: Path, tmp_path: Path) -> list[str]:
    (tmp_path / "pictures").symlink_to(few_pictures)
    return [
        *("data=folder", "data.root=pictures", "data.image_size=32", "weights=random", SMALL),
        *("epochs=1", "trainer=cpu", "cache_dir=store"),
    ]


def stopped(point: str, call: int, number: int, *arguments: str) -> Ended:
    return Started(point, str(call), str(int(number)), "train", "-m", *arguments, work=killed).ended()


def open_jobs(sweep: str) -> list[tuple[int, int]]:
    """Number and seed of each job that resuming would train."""
    return [(plan.number, plan.settings.seed) for plan in unfinished(sweep) if plan.settings]


def table(sweep: Path) -> list[dict[str, str]]:
    with (sweep / "leaderboard.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def unfinished(sweep: str) -> list[Plan]:
    return resume._unfinished(Path(sweep))


@pytest.mark.parametrize(
    ("point", "call", "launcher"),
    [
        pytest.param("folder", 1, "batched", marks=pytest.mark.slow),
        pytest.param(
            "folder", 3, "basic", marks=pytest.mark.slow
        ),  # in the midst of what Hydra writes of a job
        pytest.param("job", 3, "batched", marks=pytest.mark.slow),
    ],
)
def test_a_sweep_killed_before_it_trains_has_lost_no_job(
    command: Command, knobs: list[str], point: str, call: int, launcher: str
) -> None:
    arguments = (*knobs, "seed=shuffle(range(6))", f"hydra/launcher={launcher}", "hydra.sweep.dir=cut")
    assert stopped(point, call, signal.SIGKILL, *arguments).code == -signal.SIGKILL
    seeds = [int(job.overrides[-1].removeprefix("seed=")) for job in planned(Path("cut"))]
    assert sorted(seeds) == list(range(6))
    assert command("leaderboard", "cut").code == 0
    rows = table(Path("cut"))
    assert [row["jobs"] for row in rows] == list("012345")
    assert {(row["status"], row["reason"]) for row in rows} == {("unfinished", "not begun")}
    assert open_jobs("cut") == list(enumerate(seeds))
    for number, seed in enumerate(seeds):
        job = Path("cut") / str(number) / ".hydra"
        assert yaml.safe_load((job / "config.yaml").read_text())["seed"] == seed
        assert f"seed={seed}" in yaml.safe_load((job / "overrides.yaml").read_text())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "number", "code"),
    [
        ("batched", signal.SIGKILL, -9),
        pytest.param("basic", signal.SIGINT, 130, marks=pytest.mark.slow),
    ],
)
def test_resume_trains_every_planned_job(
    command: Command, knobs: list[str], launcher: str, number: int, code: int
) -> None:
    ended = stopped("job", 2, number, *knobs, "seed=0,1,2,3", f"hydra/launcher={launcher}")
    assert ended.code == code, ended.err
    sweep = find_sweep("latest")
    assert [job.status for job in compare(sweep).others].count("finished") == 0
    ended = command("resume", "latest")
    assert (ended.code, ended.err) == (0, "")
    assert [summary_of(sweep / str(job))["status"] for job in range(4)] == ["finished"] * 4
    assert [row["n"] for row in table(sweep)] == ["4"]
    assert command("resume", str(sweep)).out.startswith("done     every job of")


@pytest.mark.slow
def test_a_job_that_does_not_finish_ends_resume_with_1(command: Command, knobs: list[str]) -> None:
    stopped("job", 1, signal.SIGKILL, *knobs, "optimizer.lr=0.1,0", "hydra.sweep.dir=cut")
    ended = command("resume", "cut")
    assert ended.code == 1
    assert ended.err == "error: job 1 (optimizer.lr=0): optimizer.lr=0: expected a number above 0\n"
    assert [summary_of(Path("cut") / str(job))["status"] for job in range(2)] == ["finished", "failed"]


@pytest.mark.slow
def test_what_the_configs_were_is_kept_with_the_plan(
    command: Command, knobs: list[str], tmp_path: Path
) -> None:
    (tmp_path / "own" / "experiment").mkdir(parents=True)
    (tmp_path / "own" / "experiment" / "mine.yaml").write_text(
        "# @package _global_\nbatch_size: 7\ndata:\n  root: ${hydra:runtime.cwd}/pictures\n"
    )
    knobs.remove("data.root=pictures")
    arguments = ("--config-dir=own", "experiment=mine", *knobs, "seed=0,1")
    assert stopped("job", 1, signal.SIGKILL, *arguments, "hydra.sweep.dir=cut").code == -signal.SIGKILL
    shutil.rmtree("own")
    found = [one.settings for one in unfinished("cut") if one.settings]
    assert [(one.batch_size, one.data.root) for one in found] == [(7, f"{tmp_path}/pictures")] * 2


@pytest.mark.slow
def test_folders_have_the_names_that_the_plan_has(command: Command, knobs: list[str]) -> None:
    name = "hydra.sweep.subdir=${hydra.job.override_dirname}/${now:%f}"
    few = [one for one in knobs if not one.startswith("data.root")]
    keys = ",".join(one.partition("=")[0] for one in few)
    excluded = f"hydra.job.config.override_dirname.exclude_keys=[{keys}]"
    arguments = (*few, "data.root=nowhere", "seed=0,1", name, excluded, "hydra.sweep.dir=cut")
    assert command("train", "-m", *arguments).code == 1
    jobs = planned(Path("cut"))
    assert [job.folder.parent.name for job in jobs] == [
        "data.root=nowhere,seed=0",
        "data.root=nowhere,seed=1",
    ]
    assert sorted(file.parents[1] for file in Path("cut").rglob(".hydra/config.yaml")) == [
        job.folder for job in jobs
    ]
    for wrong in ("same", "../${hydra.job.num}", "${hydra.job.nothing}"):
        ended = command("train", "-m", *few, "seed=0,1", f"hydra.sweep.subdir={wrong}", "hydra.sweep.dir=no")
        assert (ended.code, ended.err.count("\n")) == (2, 1)
        assert ended.err.startswith("error: hydra.sweep.subdir: expected for each job a folder of its own")


def test_a_request_that_is_refused_leaves_no_plan(command: Command, knobs: list[str]) -> None:
    batches = "hydra.sweeper.max_batch_size=1"
    for wrong in (("optimizer=sgd,nothing", batches), ("trainer=ddp", "seed=0,1"), ("seed=interval(0,1)",)):
        ended = command("train", "-m", *knobs, *wrong, "hydra.sweep.dir=cut")
        assert ended.code == 2, ended.err
        assert not list(Path("cut").glob("plan.json"))
        assert not list(Path("cut").glob("*/settings.json"))


@pytest.mark.slow
def test_a_batch_that_is_wrong_is_not_the_whole_sweep(command: Command, knobs: list[str]) -> None:
    batches = "hydra.sweeper.max_batch_size=1"
    ended = command("train", "-m", *knobs, "optimizer.lr=0,0.1", batches, "hydra.sweep.dir=cut")
    assert ended.code == 1
    assert [summary_of(Path("cut") / str(job))["status"] for job in range(2)] == ["failed", "finished"]


@pytest.mark.slow
def test_a_plan_that_has_been_changed_is_refused(command: Command, knobs: list[str]) -> None:
    stopped("job", 1, signal.SIGKILL, *knobs, "seed=0,1", "hydra.sweep.dir=cut")
    file = Path("cut/plan.json")
    file.write_text(file.read_text().replace('"seed": 1', '"seed": 3'))
    for name in ("resume", "leaderboard"):
        ended = command(name, "cut")
        assert (ended.code, ended.err.count("\n")) == (2, 1)
        assert ended.err.startswith("error: cut/plan.json: expected the jobs of a sweep")


@pytest.mark.parametrize(
    "jobs",
    [
        [{"folder": "../mine", "overrides": [], "settings": {}, "wrong": None}],
        [{"folder": ".", "overrides": [], "settings": {}, "wrong": None}],
        [{"folder": "link", "overrides": [], "settings": {}, "wrong": None}],
        [{"folder": "0", "overrides": [], "settings": {}, "wrong": None}] * 2,
        [{"folder": "0\0", "overrides": [], "settings": {}, "wrong": None}],
        [{"folder": "0", "overrides": "seed=1"}],
        "0",
    ],
)
def test_a_foreign_plan_reaches_nothing_outside(tmp_path: Path, jobs: Any) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    (sweep := tmp_path / "sweep").mkdir()
    (sweep / "link").symlink_to(tmp_path / "mine")
    write_sealed(sweep / "plan.json", {"jobs": jobs})
    with pytest.raises(RequestError, match=r"plan.json: expected the jobs of a sweep"):
        resume._unfinished(sweep)
    assert (tmp_path / "mine" / "file").exists()
