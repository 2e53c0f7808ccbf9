"""The commands."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import hydra
import typer
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig
from rich.console import Console

from finetune.door import at_once, check_picture, compose, guarded, import_torch, refusal, settings_of
from finetune.errors import RequestError, RunError, brief
from finetune.settings import Settings, configs_folder
from finetune.sweep.plans import Plan

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Transfer learning for image classification: what is frozen is computed once.",
)
OVERRIDES = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


class Job:
    """What Hydra calls for each job; keeps exit codes, as an exception would lose the other jobs' results."""

    def __init__(self) -> None:
        self.began = False
        self.codes: list[int] = []
        self.plans: list[Plan] = []

    def __call__(self, config: DictConfig) -> float | Plan | None:
        """Train a run and return its validation accuracy; under the launcher `batched` only plan it."""
        self.began = True
        hydra_config = HydraConfig.get()
        folder = Path(os.path.relpath(hydra_config.runtime.output_dir))
        if hydra_config.mode != RunMode.MULTIRUN:
            code, result = guarded(lambda: _run(settings_of(config), folder))
            self.codes.append(code)
            return None if result is None or result["val"] is None else result["val"]["accuracy"]
        plan = Plan(hydra_config.job.num, folder, list(hydra_config.overrides.task), None)
        self.plans.append(plan)
        try:
            plan.settings = settings_of(config)
        except RequestError as error:
            plan.fail(error)
        if hydra_config.runtime.choices["hydra/launcher"] == "batched":
            return plan
        train_plans([plan])
        return plan.accuracy

    def code(self) -> int:
        """The exit code of all that ran."""
        return max([*self.codes, *(plan.code for plan in self.plans)], default=0)


def _run(settings: Settings, folder: Path) -> dict[str, Any]:
    import_torch()
    from finetune.run import run

    return run(settings, folder, Console(soft_wrap=True))


def train_plans(plans: Sequence[Plan]) -> None:
    """Train the jobs of a sweep, together where they can be; ends the process when it is interrupted."""
    if all(plan.ended for plan in plans):
        return
    import_torch()
    from finetune.sweep.train import train_all

    code, _ = guarded(lambda: train_all(plans, Console(soft_wrap=True)))
    if code:
        raise SystemExit(code)


def train() -> NoReturn:
    """Train one run, or a sweep with -m, from the command line's overrides; ends the process."""
    job = Job()
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
        sys.exit(2)
    sys.exit(job.code())


@app.command("train", context_settings=OVERRIDES, add_help_option=False)
def train_command(context: typer.Context) -> None:
    """Train one run, or a sweep with -m: finetune train freeze=all head=10."""
    sys.argv = ["finetune train", *context.args]
    train()


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def inspect(
    context: typer.Context,
    every_parameter: bool = typer.Option(
        False, "--parameters", help="List every parameter with its requires_grad."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object, every module unfolded."),
    graph: str | None = typer.Option(
        None, metavar="FILE", help="Draw the autograd graph of one step: FILE.svg or FILE.png."
    ),
    depth: int | None = typer.Option(
        None, min=1, help="Unfold modules so deep; 1: the model's own children."
    ),
) -> None:
    """Say what would train, where gradients begin and what that saves: finetune inspect freeze=all."""

    def work() -> None:
        settings = compose(context.args)
        picture = check_picture(graph) if graph is not None else None
        import_torch()
        from finetune.inspection.command import inspect

        inspect(
            settings,
            Console(soft_wrap=True),
            every_parameter=every_parameter,
            as_json=as_json,
            picture=picture,
            depth=depth,
        )

    sys.exit(guarded(work)[0])


@app.command()
def explain(
    run: Annotated[str, typer.Argument(help="A run's folder, or latest.")],
    paths: Annotated[list[str], typer.Argument(help="Pictures, or folders of them.")],
    out: Annotated[
        Path | None, typer.Option(help="Write to this folder, not to explain in the run's.")
    ] = None,
) -> None:
    """Show what in a picture speaks for the answer: finetune explain latest photographs."""
    code, _ = guarded(lambda: _explain(run, paths, out))
    sys.exit(code)


def _explain(run: str, paths: list[str], out: Path | None) -> None:
    import_torch()
    from finetune.inspection import overlay
    from finetune.report.terminal import progress, say
    from finetune.saved import open_run

    console = Console(soft_wrap=True)
    pictures, saved = overlay.pictures_at(paths), open_run(run)
    folder = out or saved.folder / "explain"
    with progress(console, "explain", len(pictures)) as advance:
        written = overlay.explain(saved, pictures, folder, advance)
    if written.pictures:
        say(console, "explain", f"{written.pictures:,} pictures, {written.method}")
        say(console, "folder", f"{folder}, the first {min(written.pictures, overlay.IN_GRID)} in grid.png")
    if written.bad:
        shown = brief([f"{one.path} ({one.reason})" for one in written.bad], 10)
        raise RunError(f"{len(written.bad):,} of {len(pictures):,} pictures cannot be read: {shown}")


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def cache(
    context: typer.Context, clear: bool = typer.Option(False, "--clear", help="Remove all stored features.")
) -> None:
    """Say what the feature store holds: finetune cache."""
    code, _ = guarded(lambda: _cache(Path(os.path.expanduser(compose(context.args).cache_dir)), clear))
    sys.exit(code)


def _cache(folder: Path, clear: bool) -> None:
    from finetune.features import store
    from finetune.features.plan import readable

    if clear:
        print(f"{readable(store.clear(folder))} removed from {folder}")
        return
    held = store.contents(folder)
    for one in held:
        shapes = " + ".join("x".join(map(str, shape)) for shape in one["row"])
        print(
            f"{readable(one['bytes']):>8}  {one['rows']:>9,} pictures  {one['model']}"
            f" at {', '.join(one['boundary'])}"
            f" ({shapes}, {one['dtype'].removeprefix('torch.')}, {one['view']})  {one['folder']}"
        )
    print(f"{readable(store.size(folder))} in {len(held)} sets of features in {folder}")


def main() -> None:
    """Run a command as sys.argv has it; raises SystemExit."""
    app()


def console_script() -> NoReturn:
    """The console script `finetune`."""
    at_once(main)
