"""The commands, and the one place where an error becomes a line on stderr and an exit code."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import Annotated, NoReturn

import typer

from finetune import launch, output
from finetune.config.compose import compose
from finetune.errors import RequestError, RunError, brief, tell
from finetune.launch import import_torch
from finetune.report.say import Screen
from finetune.sweep.jobs import find_sweep

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Transfer learning for image classification: what is frozen is computed once.",
)
OVERRIDES = {"allow_extra_args": True, "ignore_unknown_options": True}
RunArgument = Annotated[str, typer.Argument(help="A run's folder, or latest.")]
Images = Annotated[list[str], typer.Argument(help="Images, folders of them, or globs.")]
Raw = Annotated[bool, typer.Option("--raw", help="Leave the probabilities uncalibrated.")]


@contextmanager
def errors_told() -> Iterator[None]:
    """Tell an error of the kinds that users meet in one line, and end with its exit code."""
    try:
        yield
    except (RequestError, RunError) as error:
        sys.exit(tell(error))
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        sys.exit(130)


@errors_told()
def train() -> None:
    """What train.py runs."""
    launch.train()


@app.command("train", context_settings={**OVERRIDES, "help_option_names": []}, add_help_option=False)
@errors_told()
def train_command(context: typer.Context) -> None:
    """Train one run, or a sweep with -m: finetune train freeze=all head=10."""
    sys.argv = ["finetune train", *context.args]
    launch.train()


@app.command(context_settings=OVERRIDES)
@errors_told()
def inspect(
    context: typer.Context,
    every_parameter: Annotated[
        bool, typer.Option("--parameters", help="List every parameter with its requires_grad.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object, every module unfolded.")
    ] = False,
    graph: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Draw the autograd graph of one step: FILE.svg or FILE.png."),
    ] = None,
    depth: Annotated[
        int | None, typer.Option(min=1, help="Unfold modules so deep; 1: the model's own children.")
    ] = None,
) -> None:
    """Say what would train, where gradients begin and what that saves: finetune inspect freeze=all."""
    settings = compose(context.args)
    picture = None if graph is None else _drawing(graph)
    import_torch()
    from finetune.inspection.command import inspect

    inspect(
        settings, Screen(), every_parameter=every_parameter, as_json=as_json, picture=picture, depth=depth
    )


def _drawing(name: str) -> Path:
    """The file that a graph is to be drawn to, after a look, before any work, at whether it can be."""
    file = Path(os.path.expanduser(name))
    if file.suffix.lower() not in (".svg", ".png"):
        raise RequestError(f"--graph {file}: expected a file that ends in .svg or .png")
    try:
        if file.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        with TemporaryFile(dir=file.parent):
            return file
    except OSError as error:
        raise RequestError(f"--graph {file}: cannot be written: {error.strerror}") from None


@app.command()
@errors_told()
def explain(
    run: RunArgument,
    paths: Images,
    out: Annotated[
        Path | None, typer.Option(help="Write to this folder, not to explain in the run's.")
    ] = None,
) -> None:
    """Show what in an image speaks for the answer (Grad-CAM): finetune explain latest photographs."""
    import_torch()
    from finetune.inference.overlay import explain_paths

    explain_paths(run, paths, out)


@app.command(context_settings={"allow_extra_args": True})
@errors_told()
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
    import_torch()
    from finetune.inference.command import evaluate_run

    evaluate_run(run, context.args, out, split, raw)


@app.command()
@errors_told()
def predict(
    run: RunArgument,
    paths: Annotated[list[str], typer.Argument(help="Images, folders, globs, or - for a list on stdin.")],
    out: Annotated[Path | None, typer.Option(help="Write to this .csv or .jsonl, not to stdout.")] = None,
    top: Annotated[int, typer.Option(min=1, help="How many classes an image, the likeliest first.")] = 1,
    raw: Raw = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="End with exit code 1 if an image cannot be read.")
    ] = False,
    format: Annotated[str | None, typer.Option(help="csv or jsonl, whatever the file's extension.")] = None,
) -> None:
    """Classify images: finetune predict latest photographs --out classes.csv."""
    import_torch("finetune.inference.command")
    from finetune.inference.command import predict_paths

    predict_paths(run, paths, out, top, raw, strict, format)


@app.command()
@errors_told()
def resume(run: Annotated[str, typer.Argument(help="A run's folder, a sweep's, or latest.")]) -> None:
    """Resume what was interrupted, a run or a sweep: finetune resume latest."""
    sys.exit(launch.resume(run))


@app.command(context_settings=OVERRIDES)
@errors_told()
def cache(
    context: typer.Context,
    clear: Annotated[bool, typer.Option("--clear", help="Remove all stored features.")] = False,
) -> None:
    """Say what the feature store holds: finetune cache."""
    folder = Path(os.path.expanduser(compose(context.args).cache_dir))
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
        if "row" in one:
            shapes = " + ".join("x".join(map(str, shape)) for shape in one["row"])
            what = (
                f"{one['rows']:>9,} pictures  {one['model']} at {', '.join(one['boundary'])}"
                f" ({shapes}, {one['dtype']}, {one['view']})  {one['folder']}"
            )
        else:
            what = f"{one['folder']}: about.json is damaged or another version's"
        screen.print(f"{readable(one['bytes']):>8}  {what}")
    screen.print(f"{readable(store.size(folder))} in {len(held)} sets of features in {folder}")


@app.command()
@errors_told()
def export(
    run: RunArgument,
    format: Annotated[str, typer.Option(help="safetensors, onnx or torch (a .pt2 program).")] = "safetensors",
    out: Annotated[Path | None, typer.Option(help="A file or a folder; else export/ in the run's.")] = None,
    softmax: Annotated[
        bool, typer.Option("--softmax", help="Calibrated probabilities in place of logits.")
    ] = False,
) -> None:
    """Write a run's model for other programs: finetune export latest --format onnx."""
    import_torch()
    from finetune.inference.command import export_run

    export_run(run, format, out, softmax)


@app.command()
@errors_told()
def report(run: RunArgument) -> None:
    """Write a run's report.html, for a sweep's job too: finetune report latest."""
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
@errors_told()
def leaderboard(sweep: Annotated[str, typer.Argument(help="A sweep's folder, or latest.")]) -> None:
    """Compare the jobs of a sweep, also while it runs: finetune leaderboard latest."""
    launch.show_leaderboard(find_sweep(sweep))


def main() -> None:
    """Run a command as sys.argv has it; raises SystemExit."""
    app()


def at_once(command: Callable[[], object]) -> NoReturn:
    """Run a command and end the process with its exit code, without Python's own clearing up.

    Clearing up after torch takes more than a second and does nothing that ending the process would not.
    """
    code: object = 0
    # No Python that is started on the way, by whatever library, runs what lies in the working folder.
    os.environ["PYTHONSAFEPATH"] = "1"
    output.take_over()
    try:
        command()
    except SystemExit as ended:
        code = ended.code or 0
    except BaseException:  # a fault of ours: told as Python tells it
        traceback.print_exc()
        code = 1
    os._exit(output.end(code if isinstance(code, int) else 1))


def console_script() -> NoReturn:
    """The console script `finetune`."""
    at_once(main)
