"""The commands."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import hydra
import typer
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig
from rich.console import Console

from finetune.door import at_once, compose, guarded, import_torch, refusal, settings_of
from finetune.settings import Settings, configs_folder

if TYPE_CHECKING:
    from finetune.model.assemble import Model

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

    def __call__(self, config: DictConfig) -> float | None:
        self.began = True
        console = Console(soft_wrap=True)
        sweep = HydraConfig.get().mode == RunMode.MULTIRUN
        folder = Path(os.path.relpath(HydraConfig.get().runtime.output_dir))
        if sweep:
            console.print(f"\n[bold]job {HydraConfig.get().job.num}[/]  ", end="")
            console.print(" ".join(HydraConfig.get().overrides.task), markup=False, highlight=False)
        code, result = guarded(lambda: _run(settings_of(config), folder, console))
        # In a sweep a wrong request is a failed job like any other.
        self.codes.append(1 if sweep and code == 2 else code)
        if code >= 128:
            raise SystemExit(code)  # an interrupt ends a sweep, too
        return None if result is None or result["val"] is None else result["val"]["accuracy"]


def _run(settings: Settings, folder: Path, console: Console) -> dict[str, Any]:
    import_torch()
    from finetune.run import run

    return run(settings, folder, console)


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
    sys.exit(max(job.codes, default=0))


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
) -> None:
    """Say what would train: finetune inspect freeze=all head=10 --parameters."""
    code, _ = guarded(lambda: _inspect(compose(context.args), every_parameter))
    sys.exit(code)


def _inspect(settings: Settings, every_parameter: bool) -> None:
    import_torch()
    from finetune.inspection.parameters import table
    from finetune.prepare import find_data, make_model
    from finetune.report.terminal import model_lines, say

    console = Console(soft_wrap=True)
    dataset = find_data(settings)
    model: Model = make_model(settings, dataset)
    model_lines(console, model, settings.freeze, len(dataset.classes))
    rows = table(model.network)
    if every_parameter:
        width = max(len(name) for name, *_ in rows)
        for name, shape, number, trains in rows:
            print(f"{name:<{width}}  {shape:>14}  {number:>10,}  requires_grad={trains}")
    total = sum(number for _, _, number, _ in rows)
    trainable = sum(number for _, _, number, trains in rows if trains)
    say(console, "count", f"{len(rows)} named parameters, {total:,} values, {trainable:,} of them trainable")
    if not trainable:
        say(console, "warning", "the loss carries no gradient: nothing trains, and training would be refused")


@app.command()
def resume(run: str = typer.Argument(..., help="A run's folder, or latest.")) -> None:
    """Go on with an interrupted run: finetune resume latest."""
    code, _ = guarded(lambda: _resume(run))
    sys.exit(code)


def _resume(run: str) -> None:
    import_torch()
    from finetune.run import resume
    from finetune.saved import find

    resume(find(run), Console(soft_wrap=True))


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
