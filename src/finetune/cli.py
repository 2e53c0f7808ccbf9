"""The commands."""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from finetune import launch
from finetune.door import at_once, check_picture, compose, guarded, import_torch
from finetune.errors import RequestError, RunError, brief
from finetune.launch import train
from finetune.report.say import Screen
from finetune.sweep.jobs import find_sweep

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Transfer learning for image classification: what is frozen is computed once.",
)
OVERRIDES = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
RunArgument = Annotated[str, typer.Argument(help="A run's folder, or latest.")]
Raw = Annotated[bool, typer.Option("--raw", help="Leave the probabilities uncalibrated.")]


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
            Screen(),
            every_parameter=every_parameter,
            as_json=as_json,
            picture=picture,
            depth=depth,
        )

    sys.exit(guarded(work)[0])


@app.command()
def explain(
    run: RunArgument,
    paths: Annotated[list[str], typer.Argument(help="Pictures, folders of them, or globs.")],
    out: Annotated[
        Path | None, typer.Option(help="Write to this folder, not to explain in the run's.")
    ] = None,
) -> None:
    """Show what in a picture speaks for the answer: finetune explain latest photographs."""

    def work() -> None:
        import_torch()
        from finetune.inference.overlay import explain_paths

        explain_paths(run, paths, out)

    sys.exit(guarded(work)[0])


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

    def work() -> None:
        import_torch()
        from finetune.inference.command import evaluate_run

        evaluate_run(run, context.args, out, split, raw)

    sys.exit(guarded(work)[0])


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

    def work() -> None:
        import_torch("finetune.inference.command")
        from finetune.inference.command import predict_paths

        predict_paths(run, paths, out, top, raw, strict, format)

    sys.exit(guarded(work)[0])


@app.command()
def resume(run: str = typer.Argument(..., help="A run's folder, a sweep's, or latest.")) -> None:
    """Go on with what was interrupted, a run or a sweep: finetune resume latest."""
    code, ended = guarded(lambda: launch.resume(run))
    sys.exit(code or ended)


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

    screen = Screen()
    if clear:
        freed, left = store.clear(folder)
        screen.print(f"{readable(freed)} removed from {folder}")
        if left:
            raise RunError(f"cache_dir: {len(left)} sets of features cannot be removed: {brief(left)}")
        return
    held = store.contents(folder)
    for one in held:
        if "row" not in one:
            screen.print(
                f"{readable(one['bytes']):>8}  {one['folder']}: about.json is damaged or another version's"
            )
            continue
        shapes = " + ".join("x".join(map(str, shape)) for shape in one["row"])
        screen.print(
            f"{readable(one['bytes']):>8}  {one['rows']:>9,} pictures  {one['model']}"
            f" at {', '.join(one['boundary'])}"
            f" ({shapes}, {one['dtype']}, {one['view']})  {one['folder']}"
        )
    screen.print(f"{readable(store.size(folder))} in {len(held)} sets of features in {folder}")


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

    def work() -> None:
        import_torch()
        from finetune.inference.command import export_run

        export_run(run, format, out, softmax)

    sys.exit(guarded(work)[0])


@app.command()
def report(run: RunArgument) -> None:
    """Write a run's report.html, for a sweep's job too: finetune report latest."""
    code, _ = guarded(lambda: _report(run))
    sys.exit(code)


def _report(run: str) -> None:
    import_torch()
    from finetune.inference.overlay import maps
    from finetune.parts import find_data
    from finetune.report import page
    from finetune.saved import find, open_run, settings_of, summary_of
    from finetune.training.device import threads

    folder = find(run)
    summary = summary_of(folder)
    if summary is None or summary.get("status") != "finished":
        raise RequestError(f"{folder}: expected a finished run; finetune resume {folder} goes on with it")
    try:
        pictures = find_data(settings_of(folder)).images
    except RequestError:  # only the thumbnails are lacking then
        pictures = []
    with threads(1):  # as the run itself writes it
        Screen().print(str(page.write(folder, summary, pictures, partial(maps, open_run(run)))))


@app.command()
def leaderboard(sweep: str = typer.Argument(help="A sweep's folder, or latest.")) -> None:
    """Compare the jobs of a sweep, also while it runs: finetune leaderboard latest."""
    code, _ = guarded(lambda: launch.leaderboard(find_sweep(sweep)))
    sys.exit(code)


def main() -> None:
    """Run a command as sys.argv has it; raises SystemExit."""
    app()


def console_script() -> NoReturn:
    """The console script `finetune`."""
    at_once(main)
