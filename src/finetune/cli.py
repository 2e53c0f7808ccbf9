"""The commands, and the one place where an error becomes a line on stderr and an exit code."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, NoReturn

from typer import Argument, Context, Option, Typer

from finetune import launch, output
from finetune.config.compose import compose
from finetune.errors import RequestError, RunError, tell
from finetune.evaluation.formats import FORMATS
from finetune.evaluation.options import IMAGES, RAW, RUN, PredictOptions
from finetune.launch import import_torch
from finetune.runs.sweeps import find_sweep
from finetune.say import Screen

app = Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Transfer learning for image classification: what is frozen is computed once.",
)
Work = Callable[..., None]
OVERRIDES = {"allow_extra_args": True, "ignore_unknown_options": True}


@contextmanager
def errors_told() -> Iterator[None]:
    """Tell an error of the kinds that users meet in one line, and end with its exit code."""
    try:
        yield
    except (RequestError, RunError) as error:
        sys.exit(tell(error))
    except PermissionError as error:  # a folder that may not be searched
        sys.exit(tell(RequestError(f"{error.filename}: cannot be read: {error.strerror}")))
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        sys.exit(130)


def command(name: str | None = None, **options: Any) -> Callable[[Work], Work]:
    """Register a command of `finetune`, whose errors are told."""
    return lambda work: app.command(name, **options)(errors_told()(work))


@errors_told()
def train() -> None:
    """What train.py runs."""
    launch.run_hydra()


@command("train", context_settings={**OVERRIDES, "help_option_names": []}, add_help_option=False)
def train_command(context: Context) -> None:
    """Train one run, or a sweep with -m: finetune train freeze=all head=10."""
    sys.argv = ["finetune train", *context.args]
    launch.run_hydra()


@command(context_settings=OVERRIDES)
def inspect(
    context: Context,
    parameters: bool = Option(False, "--parameters", help="List every parameter with its requires_grad."),
    json: bool = Option(False, "--json", help="Print one JSON object, every module unfolded."),
    graph: str | None = Option(None, metavar="FILE", help="Draw one step's autograd graph: .svg or .png."),
    depth: int | None = Option(None, min=1, help="Unfold modules so deep; 1: the model's own children."),
) -> None:
    """Say what would train, where gradients begin and what that saves: finetune inspect freeze=all."""
    settings, drawing = compose(context.args), _drawing(graph)
    import_torch()
    from finetune.inspection.command import inspect

    inspect(settings, Screen(), every_parameter=parameters, as_json=json, drawing=drawing, depth=depth)


def _drawing(name: str | None) -> Path | None:
    """The file that a graph is to be drawn to, after a look, before any work, at whether it can be."""
    if name is None:
        return None
    file = Path(os.path.expanduser(name))
    if file.suffix.lower() not in (".svg", ".png"):
        raise RequestError(f"--graph {file}: expected a file that ends in .svg or .png")
    if file.is_dir():
        raise RequestError(f"--graph {file}: cannot be written: Is a directory")
    try:
        with TemporaryFile(dir=file.parent):
            return file
    except OSError as error:
        raise RequestError(f"--graph {file}: cannot be written: {error.strerror}") from None


@command()
def explain(
    run: str = RUN,
    paths: list[str] = IMAGES,
    out: Path | None = Option(None, help="Write to this folder, not to explain in the run's."),
) -> None:
    """Show what in an image speaks for the answer (Grad-CAM): finetune explain latest photographs."""
    import_torch()
    from finetune.evaluation.overlay import explain_paths

    explain_paths(run, paths, out)


@command(context_settings={"allow_extra_args": True})
def evaluate(
    context: Context,
    run: str = RUN,
    out: Path | None = Option(None, help="Write all of it to this file, as JSON."),
    split: str | None = Option(None, help="train, val, test or all; by default test, all of other data."),
    raw: bool = RAW,
) -> None:
    """Measure a run's model: finetune evaluate latest data=folder data.root=new_images."""
    import_torch()
    from finetune.evaluation.command import evaluate_run

    evaluate_run(run, context.args, out=out, split=split, raw=raw)


def predict(**given: Any) -> None:
    """Classify images: finetune predict latest photographs --out classes.csv."""
    import_torch("finetune.evaluation.predict")
    from finetune.evaluation.predict import predict_paths

    predict_paths(PredictOptions(**given))


predict.__signature__ = signature(PredictOptions, eval_str=True)  # type: ignore[attr-defined]
command()(predict)


@command(context_settings={"allow_extra_args": True})
def audit(
    context: Context,
    out: Path = Option("audit", help="The folder to write audit.html and audit.csv to."),
    write: Path | None = Option(
        None, help="Write a table, for data=csv, of the images without the findings of --drop."
    ),
    drop: str = Option("exact,leaks", help="Findings to leave out of that table, separated by commas."),
) -> None:
    """Say what is wrong with images: finetune audit data=folder data.root=images, or a run's."""
    import_torch()
    from finetune.evaluation.audit import audit_images

    audit_images(context.args, out, write, drop)


@command(context_settings={"allow_extra_args": True})
def resume(context: Context, run: str = Argument(help="A run's folder, a sweep's, or latest.")) -> None:
    """Resume what was interrupted, a run or a sweep; a run to more epochs: finetune resume RUN epochs=9."""
    sys.exit(launch.resume_any(run, context.args))


@command(context_settings=OVERRIDES)
def cache(
    context: Context, clear: bool = Option(False, "--clear", help="Remove all stored features.")
) -> None:
    """Say what the feature store holds: finetune cache."""
    from finetune.features.command import clear_store, list_store

    folder = Path(os.path.expanduser(compose(context.args).cache_dir))
    (clear_store if clear else list_store)(folder, Screen())


@command()
def export(
    run: str = RUN,
    format: str = Option(
        "safetensors", help="; ".join(f"{key}: {one.about}" for key, one in FORMATS.items())
    ),
    out: Path | None = Option(None, help="A file or a folder; else export/ in the run's."),
    softmax: bool = Option(False, "--softmax", help="Calibrated probabilities in place of logits."),
) -> None:
    """Write a run's model for other programs: finetune export latest --format onnx."""
    import_torch()
    from finetune.evaluation.command import export_run

    export_run(run, format, out, softmax)


@command()
def report(run: str = RUN) -> None:
    """Write a run's report.html, for a sweep's job too: finetune report latest."""
    import_torch()
    from finetune.evaluation.command import report_run

    report_run(run)


@command(context_settings={"allow_extra_args": True})
def compare(context: Context) -> None:
    """Say which model's features suit the images: finetune compare 'models=[resnet18,efficientnet_b0]'."""
    import_torch()
    from finetune.evaluation.compare import compare_models

    compare_models(context.args)


@command()
def curve(run: str = RUN) -> None:
    """Say whether more images would help, in the run's report, too: finetune curve latest."""
    import_torch()
    from finetune.evaluation.learning import curve_run

    curve_run(run)
    report(run)


@command()
def leaderboard(sweep: str = Argument(help="A sweep's folder, latest, or a folder of runs.")) -> None:
    """Compare a sweep's jobs, also while it runs, or all runs in a folder: finetune leaderboard latest."""
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
    output.in_utf8()
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
