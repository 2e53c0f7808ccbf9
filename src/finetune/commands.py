"""The commands of `finetune`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from inspect import signature
from pathlib import Path
from typing import Any

from typer import Argument, Context, Option, Typer

from finetune import __version__, launch
from finetune.atomic import check_out
from finetune.config.compose import compose
from finetune.errors import RequestError, errors_told
from finetune.evaluation.formats import FORMATS
from finetune.evaluation.options import IMAGES, RAW, RUN, PredictOptions
from finetune.launch import import_torch
from finetune.runs.folder import is_sweep
from finetune.runs.sweeps import find_sweep
from finetune.say import Screen
from finetune.sweep import leaderboard as boards

app = Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Transfer learning for image classification: what is frozen is computed once. With any command,"
    " --plugin MODULE imports this first, for the losses, schedules and sources that it adds.",
)
Work = Callable[..., None]
EXTRA = {"allow_extra_args": True}
OVERRIDES = {**EXTRA, "ignore_unknown_options": True}


def command(*examples: str, name: str | None = None, **options: Any) -> Callable[[Work], Work]:
    """Register a command of `finetune`, whose errors are told; its help ends with examples to paste."""
    typed = "\n".join(f"  finetune {one}" for one in examples)
    epilog = f"\b\nExamples:\n{typed}\nAll settings with their meanings: finetune train --help"
    return lambda work: app.command(name, epilog=epilog, **options)(errors_told()(work))


@app.callback(invoke_without_command=True, no_args_is_help=True)
def _version(version: bool = Option(False, "--version", help="Say which version this is.")) -> None:
    if version:
        print(f"finetune {__version__}")
        sys.exit(0)


@command(name="train", context_settings={**OVERRIDES, "help_option_names": []}, add_help_option=False)
def train_command(context: Context) -> None:
    """Train one run, or a sweep with -m."""
    sys.argv = ["finetune train", *context.args]
    launch.run_hydra()


@command("inspect pictures", "inspect 'freeze=[all,-layer4]' --graph graph.svg", context_settings=OVERRIDES)
def inspect(
    context: Context,
    parameters: bool = Option(False, "--parameters", help="List every parameter with its requires_grad."),
    json: bool = Option(False, "--json", help="Print one JSON object, every module unfolded."),
    graph: Path | None = Option(None, metavar="FILE", help="Draw one step's autograd graph: .svg or .png."),
    depth: int | None = Option(None, min=1, help="Unfold modules so deep; 1: the model's own children."),
) -> None:
    """Say what would train, and what the rest saves."""
    settings = compose(context.args)
    if graph and graph.suffix.lower() not in (".svg", ".png"):
        raise RequestError(f"--graph {graph}: expected a file that ends in .svg or .png")
    if graph:
        check_out("--graph ", graph)
    import_torch()
    from finetune.inspection.command import inspect

    inspect(settings, Screen(), every_parameter=parameters, as_json=json, drawing=graph, depth=depth)


@command("explain latest photographs", "explain latest one.jpg --out maps")
def explain(
    run: str = RUN,
    paths: list[str] = IMAGES,
    out: Path | None = Option(None, help="Write to this folder, not to explain in the run's."),
) -> None:
    """Show what in an image speaks for the answer (Grad-CAM)."""
    import_torch()
    from finetune.evaluation.overlay import explain_paths

    explain_paths(run, paths, out)


@command("evaluate latest", "evaluate latest new_images --out found.json", context_settings=EXTRA)
def evaluate(
    context: Context,
    run: str = RUN,
    out: Path | None = Option(None, help="Write all of it to this file, as JSON."),
    split: str | None = Option(None, help="train, val, test or all; by default test, all of other data."),
    raw: bool = RAW,
) -> None:
    """Measure a run's model, on its own images or on others."""
    import_torch()
    from finetune.evaluation.command import evaluate_run

    evaluate_run(run, context.args, out=out, split=split, raw=raw)


def predict(**given: Any) -> None:
    """Classify images."""
    import_torch("finetune.evaluation.predict")
    from finetune.evaluation.predict import predict_paths

    predict_paths(PredictOptions(**given))


predict.__signature__ = signature(PredictOptions, eval_str=True)  # type: ignore[attr-defined]
command("predict latest photographs --out classes.csv", "predict latest 'new/*.jpg' --reject 0.05")(predict)


@command("audit pictures", "audit latest --write clean.csv", context_settings=EXTRA)
def audit(
    context: Context,
    out: Path | None = Option(None, help="Write to this new folder; else to audit, or audit-2, …"),
    write: Path | None = Option(
        None, help="Write a table, for data=csv, of the images without the findings of --drop."
    ),
    drop: str = Option("exact,leaks", help="Findings to leave out of that table, separated by commas."),
) -> None:
    """Say what is wrong with images, or a run's."""
    import_torch()
    from finetune.evaluation.audit import audit_images

    audit_images(context.args, out, write, drop)


@command("resume latest", "resume latest epochs=50", context_settings=EXTRA)
def resume(context: Context, run: str = Argument(help="A run's folder, a sweep's, or latest.")) -> None:
    """Resume a run or a sweep, a run to more epochs, too."""
    sys.exit(launch.resume_any(run, context.args))


@command("cache", "cache --clear", "cache --fill pictures freeze=all", context_settings=OVERRIDES)
def cache(
    context: Context,
    clear: bool = Option(False, "--clear", help="Remove all stored features."),
    fill: bool = Option(False, "--fill", help="Store what a run with these settings would; train nothing."),
    share: str | None = Option(None, metavar="K/N", help="With --fill: part K of N alone, from 0/N on."),
) -> None:
    """Say what the feature store holds."""
    settings = compose(context.args)
    if fill and clear:
        raise RequestError("--fill: expected no --clear with it")
    if fill:
        import_torch("finetune.fill")
        from finetune.fill import fill_store

        return fill_store(settings, Screen(), _share(share) if share else None)
    if share:
        raise RequestError("--share: expected --fill with it")
    from finetune.features.inventory import clear_store, list_store

    (clear_store if clear else list_store)(Path(os.path.expanduser(settings.cache_dir)), Screen())


def _share(text: str) -> tuple[int, int]:
    which, slash, of = text.partition("/")
    if not (slash and which.isdecimal() and of.isdecimal() and int(which) < int(of)):
        raise RequestError(f"--share {text}: expected K/N, as 0/4 for the first of four parts")
    return int(which), int(of)


@command("export latest --format onnx", "export latest --format torch --out model.pt --softmax")
def export(
    run: str = RUN,
    format: str = Option(
        "safetensors", help="; ".join(f"{key}: {one.about}" for key, one in FORMATS.items())
    ),
    out: Path | None = Option(None, help="A file or a folder; else export/ in the run's."),
    softmax: bool = Option(False, "--softmax", help="Calibrated probabilities in place of logits."),
) -> None:
    """Write a run's model for other programs."""
    import_torch()
    from finetune.evaluation.command import export_run

    export_run(run, format, out, softmax)


@command("report latest")
def report(run: str = RUN) -> None:
    """Write report.html of a run, a sweep's job or a sweep."""
    if is_sweep(Path(run)):
        from finetune.sweep.page import write_page

        return Screen().print(str(write_page(boards.compare(Path(run)))))
    import_torch()
    from finetune.evaluation.command import report_run

    report_run(run)


@command("compare 'models=[resnet18,efficientnet_b0]' pictures", name="compare", context_settings=EXTRA)
def compare_command(context: Context) -> None:
    """Say which model's frozen features suit the images best."""
    import_torch()
    from finetune.evaluation.compare import compare_models

    compare_models(context.args)


@command("curve latest")
def curve(run: str = RUN) -> None:
    """Say whether more images would help, in the run's report, too."""
    import_torch()
    from finetune.evaluation.learning import curve_run

    curve_run(run)
    report(run)


@command("leaderboard latest", "leaderboard outputs/2026-11-21")
def leaderboard(sweep: str = Argument(help="A sweep's folder, latest, or a folder of runs.")) -> None:
    """Compare a sweep's jobs, or all runs in a folder."""
    launch.show_leaderboard(find_sweep(sweep))


@command("models", "models resnet", "models 'timm/convnext*tiny*'")
def models(pattern: str = Argument("", help="A part of their names, or a pattern with * and ?.")) -> None:
    """Say what models there are, and whose weights are at hand."""
    import_torch("finetune.model.listing")
    from finetune.model.listing import list_models

    list_models(pattern, Screen())
