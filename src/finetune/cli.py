"""The commands."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any, NoReturn

import hydra
import typer
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig
from rich.console import Console

from finetune.door import (
    at_once,
    check_picture,
    compose,
    guarded,
    import_torch,
    override,
    refusal,
    settings_of,
)
from finetune.errors import RequestError, RunError, brief
from finetune.settings import Settings, configs_folder
from finetune.sweep import begun, tables
from finetune.sweep.jobs import find_sweep
from finetune.sweep.leaderboard import compare
from finetune.sweep.plans import Plan, tell_apart

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
        plan = Plan(hydra_config.job.num, folder, list(hydra_config.overrides.task))
        self.plans.append(plan)
        try:
            plan.settings = settings_of(config)
        except RequestError as error:
            plan.wrong = error
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
    tell_apart(plans)
    for plan in plans:
        if plan.wrong:
            plan.fail(plan.wrong)
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
    begun.Begun.config = None  # an earlier one in this process
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
    except KeyboardInterrupt:  # while jobs run elsewhere
        print("error: interrupted", file=sys.stderr)
        _end_sweep()
        sys.exit(130)
    except SystemExit:  # raised by an interrupted job
        _end_sweep()
        raise
    sys.exit(max(_end_sweep(), job.code()))


def _end_sweep() -> int:
    """Write and show the leaderboard of the sweep that Hydra has run, if any; 1 where a job did not finish.

    Jobs that ran in other processes or on other machines are known by their folders alone.
    """
    begun.end_workers()
    folder = begun.folder()
    if folder is None:
        return 0
    code, finished = guarded(lambda: _leaderboard(folder))
    return code or int(not finished)


def _leaderboard(folder: Path) -> bool:
    """Write and show a leaderboard; whether every job finished."""
    board = compare(folder)
    tables.write(board)
    tables.show(board, Console())
    return not board.others


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
    from finetune.inference.paths import find
    from finetune.inspection import overlay
    from finetune.report.terminal import progress, say
    from finetune.saved import open_run

    console = Console(soft_wrap=True)
    pictures, saved = list(find(paths, sys.stdin)), open_run(run)
    folder = out or saved.folder / "explain"
    with progress(console, "explain", len(pictures)) as advance:
        written = overlay.explain(saved, pictures, folder, advance)
    if written.pictures:
        say(console, "explain", f"{written.pictures:,} pictures, {written.method}")
        say(console, "folder", f"{folder}, the first {min(written.pictures, overlay.IN_GRID)} in grid.png")
    if written.bad:
        shown = brief([f"{one.path} ({one.reason})" for one in written.bad], 10)
        raise RunError(f"{len(written.bad):,} of {len(pictures):,} pictures cannot be read: {shown}")


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
    chosen = choose(find_data(settings), saved.folder, saved.summary, saved.classes, settings.loss, split)
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


@app.command()
def resume(run: str = typer.Argument(..., help="A run's folder, a sweep's, or latest.")) -> None:
    """Go on with what was interrupted, a run or a sweep: finetune resume latest."""
    code, ended = guarded(lambda: _resume(run))
    sys.exit(code or ended)


def _resume(run: str) -> int:
    import_torch()
    from finetune.run import resume
    from finetune.saved import find
    from finetune.sweep.resume import resume_sweep

    console = Console(soft_wrap=True)
    if not Path(run, "multirun.yaml").is_file():
        resume(find(run), console)
        return 0
    code = resume_sweep(Path(run), console)
    return max(code, int(not _leaderboard(Path(run))))


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


@app.command()
def export(
    run: RunArgument,
    format: Annotated[str, typer.Option(help="safetensors, onnx or torch (a .pt2 program).")] = "safetensors",
    out: Annotated[Path | None, typer.Option(help="A file or a folder; else export/ in the run's.")] = None,
    softmax: Annotated[
        bool, typer.Option("--softmax", help="Calibrated probabilities in place of logits.")
    ] = False,
) -> None:
    """Write a run's model for other programs: finetune export latest --format onnx."""
    code, _ = guarded(lambda: _export(run, format, out, softmax))
    sys.exit(code)


def _export(run: str, kind: str, out: Path | None, softmax: bool) -> None:
    import_torch()
    from finetune.inference import export as exports
    from finetune.inference.calibration import temperature_of
    from finetune.prepare import find_data
    from finetune.report.terminal import say
    from finetune.saved import open_run

    console = Console(soft_wrap=True)
    saved = open_run(run)
    target = exports.target_of(saved, kind, out, softmax)
    dataset = None
    if kind != "safetensors":
        try:
            dataset = find_data(saved.settings)
        except RequestError as gone:
            say(console, "note", f"the run's pictures are not there ({gone})")
    inputs, what = exports.examples(dataset, saved.preprocessing)
    temperature = temperature_of(saved.summary)
    difference = exports.write(saved, kind, target, inputs, temperature if softmax else None)
    say(console, "export", str(target))
    if softmax:
        say(console, "softmax", f"of the logits divided by the temperature {temperature:.4g}")
    if difference is None:
        say(console, "loads", f"into {exports.loads_into(saved)}")
    else:
        say(console, "check", f"on {what} its outputs differ from the model's by {difference:.1e} at most")


@app.command()
def report(run: RunArgument) -> None:
    """Write a run's report.html, for a sweep's job too: finetune report latest."""
    code, _ = guarded(lambda: _report(run))
    sys.exit(code)


def _report(run: str) -> None:
    import_torch()
    from finetune.prepare import find_data
    from finetune.report import page
    from finetune.saved import find, settings_of, summary_of

    folder = find(run)
    summary = summary_of(folder)
    if summary is None or summary["status"] != "finished":
        raise RequestError(f"{folder}: expected a finished run; finetune resume {folder} goes on with it")
    try:
        pictures = find_data(settings_of(folder)).images
    except RequestError:  # only the thumbnails are lacking then
        pictures = []
    print(page.write(folder, summary, pictures))


@app.command()
def leaderboard(sweep: str = typer.Argument(help="A sweep's folder, or latest.")) -> None:
    """Compare the jobs of a sweep, also while it runs: finetune leaderboard latest."""
    code, _ = guarded(lambda: _leaderboard(find_sweep(sweep)))
    sys.exit(code)


def main() -> None:
    """Run a command as sys.argv has it; raises SystemExit."""
    app()


def console_script() -> NoReturn:
    """The console script `finetune`."""
    at_once(main)
