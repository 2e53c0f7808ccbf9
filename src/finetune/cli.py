"""The commands."""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import hydra
import typer
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig
from rich.console import Console

from finetune.door import at_once, compose, guarded, import_torch, override, refusal, settings_of
from finetune.errors import RunError
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


RunArgument = Annotated[str, typer.Argument(help="A run's folder, or latest.")]
Raw = Annotated[bool, typer.Option("--raw", help="Leave the probabilities uncalibrated.")]


@app.command(context_settings={"allow_extra_args": True})
def evaluate(
    context: typer.Context,
    run: RunArgument,
    out: Annotated[Path | None, typer.Option(help="Write all of it to this file, as JSON.")] = None,
    split: Annotated[
        str | None,
        typer.Option(help="train, val, test or all; test by default, all of other data than the run's."),
    ] = None,
    raw: Raw = False,
) -> None:
    """Measure a run's model: finetune evaluate latest data=folder data.root=new_pictures."""
    code, _ = guarded(lambda: _evaluate(run, context.args, out, split, raw))
    sys.exit(code)


def _evaluate(run: str, overrides: list[str], out: Path | None, split: str | None, raw: bool) -> None:
    import_torch()
    from finetune.inference import tables
    from finetune.inference.calibration import temperature_of
    from finetune.inference.evaluate import choose, evaluate
    from finetune.inference.forward import Predictor
    from finetune.prepare import find_data
    from finetune.report.terminal import progress, say
    from finetune.saved import open_run

    tables.check(out)
    console, saved = Console(soft_wrap=True), open_run(run)
    settings = override(saved.settings, overrides, ("data", "cache_dir", "precision", "trainer"))
    predictor = Predictor(saved, settings.precision, settings.trainer.accelerator)
    chosen = choose(find_data(settings), saved.folder, saved.summary, saved.classes, split)
    temperature = 1.0 if raw else temperature_of(saved.summary)
    say(console, "model", f"{settings.model} of {saved.folder}, {len(saved.classes)} classes")
    with progress(console, "reading pictures", len(chosen.rows)) as advance:
        evaluation = evaluate(
            predictor, chosen, settings.data.bad_images, settings.loss, temperature, advance
        )
    tables.show(console, chosen, evaluation, temperature)
    if out:
        tables.write(out, saved.folder, chosen, evaluation, temperature)


@app.command()
def predict(
    run: RunArgument,
    paths: Annotated[list[str], typer.Argument(help="Pictures, folders, globs, or - for a list on stdin.")],
    out: Annotated[Path | None, typer.Option(help="Write to this .csv or .jsonl, not to stdout.")] = None,
    top: Annotated[int, typer.Option(min=1, help="How many classes a picture, the likeliest first.")] = 1,
    raw: Raw = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="End with exit code 1 if a picture cannot be read.")
    ] = False,
    format: Annotated[str | None, typer.Option(help="csv or jsonl, whatever the file's extension.")] = None,
) -> None:
    """Classify pictures: finetune predict latest photographs --out classes.csv."""
    try:
        code, _ = guarded(lambda: _predict(run, paths, out, top, raw, strict, format))
    except BrokenPipeError:  # whoever read has enough, as head has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    sys.exit(code)


def _predict(
    run: str, paths: list[str], out: Path | None, top: int, raw: bool, strict: bool, format: str | None
) -> None:
    import_torch("finetune.inference.predict")
    from finetune.inference.calibration import temperature_of
    from finetune.inference.forward import Predictor
    from finetune.inference.paths import find
    from finetune.inference.predict import format_of, predict
    from finetune.report.terminal import progress
    from finetune.saved import open_run

    kind, pictures, saved = format_of(out, format), find(paths, sys.stdin), open_run(run)
    predictor = Predictor(saved, saved.settings.precision)
    temperature = 1.0 if raw else temperature_of(saved.summary)
    console = Console(stderr=True, soft_wrap=True)
    # Rows and a bar on one terminal would be in each other's way.
    total = pictures.total
    bar = (
        nullcontext(lambda _: None)
        if not out and sys.stdout.isatty()
        else progress(console, "predict", total)
    )
    with bar as advance:
        tally = predict(predictor, pictures, out, kind, top, saved.settings.loss, temperature, advance)
    tally.tell(console, predictor.form, temperature)
    if strict and tally.broken:
        told = f"{tally.broken:,} of {tally.pictures:,} pictures cannot be read"
        raise RunError(f"--strict: {told}; the first is {tally.first}")


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
