"""From the command line to runs and sweeps, by way of Hydra; and how both are resumed."""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import env_override
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from finetune.atomic import write_atomically
from finetune.config import compose
from finetune.config.messages import unknown_option
from finetune.config.shipped import configs_folder
from finetune.errors import RequestError, RunError, one_line, tell
from finetune.runs.folder import drop_unused, find_run, is_sweep, pointer
from finetune.runs.settings import read_settings
from finetune.runs.sweeps import find_latest
from finetune.say import Screen
from finetune.sweep import tables
from finetune.sweep.callback import BEFORE, SWEEP, refuse_hydras
from finetune.sweep.leaderboard import compare
from finetune.sweep.planned import folder_of
from finetune.sweep.plans import Plan, refuse_several, tell_apart
from finetune.sweep.search import search_again


def import_torch(module: str = "finetune.run") -> None:
    """Import what trains, or another module that needs torch; late, so that a wrong setting is told at once.

    Importing makes a million objects that stay. Told not to look through them again and again, the garbage
    collector costs a second less.
    """
    if "torch" not in sys.modules:
        gc.disable()
        importlib.import_module(module)
        gc.freeze()
        gc.enable()


class Task:
    """What Hydra calls for each job.

    began: whether a job has begun in this process. plans: a sweep's, of those that have. error: what ended a
    single run; Hydra would print lines of its own about an exception, and of a sweep's job it would lose the
    results of the others.
    """

    def __init__(self) -> None:
        self.began, self.plans = False, list[Plan]()
        self.error: RequestError | RunError | None = None

    def __call__(self, config: DictConfig) -> float | None:
        """Train a run, or one job of a sweep; returns the job's score in validation."""
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            plan = self.plan(config)
            try:
                train_plans([plan])
            except (RequestError, RunError) as error:
                raise SystemExit(tell(error)) from None
            return plan.score
        self.began, folder = True, _folder_of(HydraConfig.get())
        try:
            settings = compose.settings_from_config(config)
            import_torch()
            from finetune.run import run

            run(settings, folder, Screen())
            if settings.fast_dev_run:
                drop_unused(folder)
        except (RequestError, RunError) as error:
            self.error = error
            for file, content in BEFORE.get({}).items() if isinstance(error, RequestError) else ():
                write_atomically(file, content)
            drop_unused(folder)
        return None

    def plan(self, config: DictConfig) -> Plan:
        """What a job of a sweep is to do, or what is wrong with it."""
        self.began = True
        job = HydraConfig.get()
        plan = Plan(job.job.num, _folder_of(job), list(job.overrides.task))
        try:
            settings = compose.settings_from_config(config)
            refuse_several(settings)
            plan.settings = settings
        except RequestError as error:
            plan.wrong = error
        self.plans.append(plan)
        return plan


def _folder_of(job: Any) -> Path:
    """A run's folder as it is told: below the working folder by the way from there, else in full."""
    folder = Path(job.runtime.output_dir)
    return folder.relative_to(Path.cwd()) if Path.cwd() in folder.parents else folder


def train_plans(plans: Sequence[Plan]) -> None:
    """Train jobs of a sweep, together where they can be; raises Interrupted where some have not ended."""
    tell_apart(plans)
    for plan in plans:
        if plan.wrong:
            plan.fail(plan.wrong)
    if not all(plan.ended for plan in plans):
        import_torch()
        from finetune.sweep.train import train_all

        train_all(plans, Screen())


def run_hydra() -> NoReturn:
    """Train a run, or a sweep with -m, as sys.argv has it; raises SystemExit, RequestError or RunError."""
    task = Task()
    SWEEP.set(None)  # a command may have run in this process before
    # Hydra understands -m before or after all overrides only.
    arguments = sorted(sys.argv[1:], key=lambda one: one not in ("-m", "--multirun"))
    sweeps = not {"-m", "--multirun", "hydra.mode=MULTIRUN"}.isdisjoint(arguments)
    parsed, unknown = get_args_parser().parse_known_intermixed_args(arguments)
    if unknown:
        raise RequestError(unknown_option(*arguments[arguments.index(unknown[0]) :][:2]))
    if parsed.experimental_rerun:
        raise RequestError("--experimental-rerun: expected the command itself, typed again")
    refuse_hydras(parsed.overrides)
    options = [one for one in arguments if one not in parsed.overrides]
    sys.argv[1:] = options + [compose.quoted(one, sweeps) for one in compose.spelled(parsed.overrides)]
    hydras = hydra.main(version_base="1.3", config_path=str(configs_folder().resolve()), config_name="config")
    try:
        # Hydra raises what it refuses, and prints nothing.
        with env_override({"HYDRA_FULL_ERROR": "1"}):
            hydras(task)()
    except RequestError:
        _drop_sweep()
        raise
    except (KeyboardInterrupt, RunError, SystemExit) as error:  # interrupted
        _end_sweep(told=isinstance(error, RunError))
        raise
    except (*compose.REFUSALS, RuntimeError) as error:
        if task.began:
            if isinstance(error, OSError) and (config := SWEEP.get()):
                error.filename = error.filename or folder_of(config)  # Hydra's own writing names none
            raise
        if isinstance(error, RuntimeError):  # a launcher's processes have gone
            raise RunError(one_line(error)) from None
        _drop_sweep()
        raise compose.refused(error, sys.argv[1:]) from None
    if task.error:
        raise task.error
    # A job that could write nothing in its folder is known here alone.
    sys.exit(max(_end_sweep(), *(plan.code for plan in task.plans), 0))


def _drop_sweep() -> None:
    """Remove the folder of a sweep that was compose.refused, if there is one."""
    if config := SWEEP.get():
        with suppress(OmegaConfBaseException):  # it could not be made
            drop_unused(folder_of(config))


def _end_sweep(told: bool = False) -> int:
    """Write and show the leaderboard of the sweep that Hydra has run, if any; 1 where a job did not finish.

    Jobs that ran in other processes or on other machines are known by their folders alone.
    told: an error is told anyway, so that none of the leaderboard's is.
    """
    if (config := SWEEP.get()) is None:
        return 0
    if config.hydra.runtime.choices["hydra/launcher"] == "joblib":
        from joblib.externals.loky import get_reusable_executor

        # They would stay for minutes with all that they hold.
        get_reusable_executor().shutdown(kill_workers=True)
    try:
        return int(not show_leaderboard(folder_of(config)))
    except (RequestError, RunError) as error:
        return error.exit_code if told else tell(error)


def show_leaderboard(folder: Path) -> bool:
    """Write and show a leaderboard; whether every job finished."""
    board = compare(folder)
    tables.write_leaderboard(board)
    tables.print_leaderboard(board, Screen())
    return not board.others


def resume_any(run: str, overrides: Sequence[str] = ()) -> int:
    """Resume a run or a sweep, and return the exit code; `latest` is a sweep where that came last.

    overrides: of a run, `epochs` alone; of a search, where its study is.
    RequestError, RunError: as of a run; a sweep's jobs fail by themselves.
    """
    folder = find_latest(last) if (last := pointer(run)) else Path(run)
    sweep = is_sweep(folder)
    search = search_again(folder, overrides) if sweep else None
    if sweep and overrides and not search:
        way = f"its command typed again with {overrides[0]} trains another sweep"
        raise RequestError(
            f"{overrides[0]}: expected a run; {folder} is a sweep, whose jobs keep theirs; {way}"
        )
    if search:
        sys.argv = ["finetune train", "-m", *search]  # the study must hear what its trials come to
        run_hydra()
    import_torch()
    from finetune import run as runs
    from finetune.sweep.resume import resume_sweep

    console = Screen()
    if not sweep:
        folder = find_run(str(folder))
        settings = compose.override_settings(read_settings(folder), overrides, ["epochs"])
        runs.run(settings.model_copy(update={"resume": "auto"}), folder, console)
        return 0
    code = resume_sweep(folder, console)
    return max(code, int(not show_leaderboard(folder)))
