"""From Hydra's jobs to runs and sweeps."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from finetune.door import guarded, import_torch, readable, refusal, settings_of
from finetune.errors import RequestError, RunError, one_line
from finetune.report.folder import LATEST
from finetune.report.say import Screen
from finetune.settings import Settings, configs_folder
from finetune.sweep import begun, tables
from finetune.sweep.jobs import PLAN, SWEEPS, is_sweep
from finetune.sweep.leaderboard import compare
from finetune.sweep.planned import asked, check_stored, searched
from finetune.sweep.plans import Plan, refuse_several, tell_apart
from finetune.training.best import score

# What a search may have been told of Hydra's own and be told again; anything else could run what is not ours.
SEARCH = (
    *("hydra/sweeper", "hydra/launcher", "hydra.launcher.n_jobs", "hydra.sweep.subdir"),
    *(f"hydra.sweeper.{key}" for key in ("n_trials", "batch", "sampler", "seed", "storage", "study")),
)


class Job:
    """What Hydra calls for each job; keeps exit codes, as an exception would lose the other jobs' results."""

    def __init__(self) -> None:
        self.began = False
        self.codes: list[int] = []
        self.plans: list[Plan] = []

    def __call__(self, config: DictConfig) -> float | Plan | None:
        """Train a run and return its score in validation; under the launcher `batched` only plan it."""
        self.began = True
        hydra_config = HydraConfig.get()
        folder = Path(os.path.relpath(hydra_config.runtime.output_dir))
        if hydra_config.mode != RunMode.MULTIRUN:
            code, result = guarded(lambda: _run(settings_of(config), folder))
            self.codes.append(code)
            return score(result["val"]) if result and result["val"] else None
        plan = Plan(hydra_config.job.num, folder, list(hydra_config.overrides.task))
        self.plans.append(plan)
        try:
            settings = settings_of(config)
            refuse_several(settings)
            plan.settings = settings
        except RequestError as error:
            plan.wrong = error
        if hydra_config.runtime.choices["hydra/launcher"] == "batched":
            return plan
        train_plans([plan])
        return plan.score

    def code(self) -> int:
        """The exit code of all that ran."""
        return max([*self.codes, *(plan.code for plan in self.plans)], default=0)


def _run(settings: Settings, folder: Path) -> dict[str, Any]:
    import_torch()
    from finetune.run import run

    return run(settings, folder, Screen())


def train_plans(plans: Sequence[Plan], whole: bool = False) -> None:
    """Train jobs of a sweep, together where they can be; ends the process when it is interrupted.

    whole: these are all of it, so that what is wrong with each of them alike is wrong with the sweep: the
    process then ends, too.
    """
    tell_apart(plans)
    lines = {str(plan.wrong) for plan in plans}
    if whole and len(lines) == 1 and plans[0].wrong:
        print(f"error: {one_line(plans[0].wrong)}", file=sys.stderr)
        begun.forget()  # there is nothing to compare
        raise SystemExit(2)
    for plan in plans:
        if plan.wrong:
            plan.fail(plan.wrong)
    if all(plan.ended for plan in plans):
        return
    import_torch()
    from finetune.sweep.train import train_all

    code, _ = guarded(lambda: train_all(plans, Screen()))
    if code:
        raise SystemExit(code)


def train() -> NoReturn:
    """Train one run, or a sweep with -m, from the command line's overrides; ends the process."""
    job = Job()
    begun.Begun.config = None  # an earlier one in this process
    # Hydra understands -m before or after all overrides only.
    arguments = sorted(sys.argv[1:], key=lambda one: one not in ("-m", "--multirun"))
    sys.argv[1:] = map(readable, arguments)
    debugging = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises its refusals, where it would print a traceback
    try:
        # Hydra names its job after the function and reads the source file of a plain one only.
        hydra.main(version_base="1.3", config_path=str(configs_folder().resolve()), config_name="config")(
            lambda config: job(config)
        )()
    except Exception as error:
        if job.began or debugging:
            raise
        print(refusal(error, sys.argv[1:]), file=sys.stderr)
        sys.exit(1 if isinstance(error, RunError) else 2)
    except KeyboardInterrupt:  # while jobs run elsewhere
        print("error: interrupted", file=sys.stderr)
        _end_sweep()
        sys.exit(130)
    except SystemExit:  # raised by an interrupted job
        _end_sweep()
        raise
    sys.exit(max(_end_sweep(), job.code()))


def search_again(folder: Path) -> list[str] | None:
    """The overrides with which a search in a folder goes on; None where the sweep there is no search."""
    if not searched(folder):
        return None
    recorded, place = asked(folder), ("hydra.sweep.dir=", "hydra.mode=")
    again = [one for one in (*recorded.hydra, *recorded.task) if not one.startswith(place)]
    for one in again:
        check_stored(one, SEARCH)
    quoted = str(folder).replace("\\", "\\\\").replace("'", "\\'")
    return [*again, f"hydra.sweep.dir='{quoted}'"]


def _end_sweep() -> int:
    """Write and show the leaderboard of the sweep that Hydra has run, if any; 1 where a job did not finish.

    Jobs that ran in other processes or on other machines are known by their folders alone.
    """
    begun.end_workers()
    folder = begun.folder()
    if folder is None:
        return 0
    code, finished = guarded(lambda: leaderboard(folder))
    return code or int(not finished)


def leaderboard(folder: Path) -> bool:
    """Write and show a leaderboard; whether every job finished."""
    board = compare(folder)
    tables.write(board)
    tables.show(board, Screen())
    return not board.others


def resume(run: str) -> int:
    """Go on with a run or a sweep, and return the exit code; `latest` is a sweep where that came last.

    Raises:
        RequestError, RunError: as of a run; a sweep's jobs fail by themselves.
    """
    folder = Path(run)
    if run == "latest" and not folder.exists():
        folder = _latest(run)
    sweep = is_sweep(folder)
    if sweep and (search := search_again(folder)):
        sys.argv = ["finetune train", "-m", *search]  # the study must hear what its trials come to
        train()
    import_torch()
    from finetune import run as runs
    from finetune.saved import find
    from finetune.sweep.resume import resume_sweep

    console = Screen()
    if not sweep:
        runs.resume(find(str(folder)), console)
        return 0
    code = resume_sweep(folder, console)
    return max(code, int(not leaderboard(folder)))


def _latest(run: str) -> Path:
    plans = {file.stat().st_mtime: file.parent for file in SWEEPS.glob(f"*/*/{PLAN}")}
    if plans and not (LATEST.exists() and LATEST.stat().st_mtime >= max(plans)):
        return plans[max(plans)]  # stopped before any of its jobs had begun
    import_torch()
    from finetune.saved import find

    last = find(run)
    return next(filter(is_sweep, last.parents), last)
