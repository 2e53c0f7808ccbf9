"""What a run says on the terminal: a few calm lines."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from finetune.data.images import BadImage
from finetune.data.sources import Dataset
from finetune.errors import brief
from finetune.features.inputs import Ready
from finetune.features.plan import readable
from finetune.inspection import parameters
from finetune.model.assemble import Model


def say(console: Console, word: str, text: str) -> None:
    """One line: a word of eight letters at most, then what there is to say."""
    style = "yellow" if word == "warning" else "bold"
    console.print(f"[{style}]{word:<8}[/] ", end="")
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def model_lines(console: Console, model: Model, patterns: Sequence[str], classes: int) -> None:
    """The model, the weights really used, what is frozen and what trains."""
    if model.weights.warning:
        say(console, "warning", f"weights={model.weights.requested}: {model.weights.warning}")
    say(console, "model", f"{model.name}, weights: {model.weights.used}")
    for note in model.weights.notes:
        say(console, "", note)
    if model.outputs > classes:
        say(
            console,
            "warning",
            f"head: {model.outputs} outputs for {classes} classes; the others can never be right",
        )
    counts = parameters.counts(model.network)
    frozen = counts["total"] - counts["trainable"]
    head = (
        f"the new head {model.head} with {model.outputs} outputs always trains"
        if model.head
        else "the head is kept"
    )
    say(
        console,
        "freeze",
        f"{', '.join(patterns)}: {frozen:,} of {counts['total']:,} parameters are frozen,"
        f" {counts['trainable']:,} train; {head}",
    )


def data_lines(
    console: Console, dataset: Dataset, skipped: Sequence[BadImage], size: int, augment: str
) -> None:
    """Classes, pictures and how they are prepared."""
    counts = dataset.counts()
    say(
        console,
        "data",
        f"{dataset.name}: {len(dataset.classes)} classes, {counts['train']:,} pictures to train,"
        f" {counts['val']:,} to validate, {counts['test']:,} to test; {size} px, augmentation: {augment}",
    )
    if dataset.ignored_files:
        say(
            console,
            "",
            f"{dataset.ignored_files:,} files that are no pictures by their name were passed over",
        )
    if skipped:
        say(
            console,
            "warning",
            f"{len(skipped)} pictures are broken and left out, listed in skipped.csv:"
            f" {brief([bad.path for bad in skipped], 2)}",
        )


def feature_line(console: Console, ready: Ready) -> None:
    """What of the model runs once, and where its output is kept."""
    plan, features = ready.plan, ready.features
    if features is None:
        say(console, "cache", f"nothing: {plan.why}")
        return
    text = f"{ready.boundary.share:.0%} of the forward pass is constant and runs once a picture; "
    if features["computed"]:
        rate = features["computed"] / features["seconds"]
        text += f"{features['computed']:,} computed in {features['seconds']:.1f} s"
        text += f" ({rate:.0f}/s, {features['form']})"
        text += f", {features['reused']:,} from the store" if features["reused"] else ""
    else:
        text += f"all {features['reused']:,} were in the store"
    say(console, "cache", f"{text}; {readable(features['bytes'])}, {plan.why}")


def training_line(
    console: Console, epochs: int, optimizer: dict[str, Any], device: str, precision: str
) -> None:
    """What the training will be."""
    number = torch.get_num_threads()
    threads = f" ({number} thread{'s' * (number > 1)})" if device == "cpu" else ""
    precision = precision.removesuffix("-true").removesuffix("-mixed")
    say(
        console,
        "train",
        f"{epochs} epochs, {optimizer['name']} with lr {optimizer['lr']:g},"
        f" on {device}{threads}, precision {precision}",
    )


def resume_lines(console: Console, epochs: int, changed: str | None) -> None:
    """Where an interrupted run goes on, and why its numbers may differ."""
    say(console, "resume", f"after epoch {epochs}")
    if changed:
        say(console, "warning", changed)


def result_lines(console: Console, summary: dict[str, Any], folder: Path) -> None:
    """The result, the proof, where everything is and how to watch it."""
    best = f"best epoch {summary['best_epoch']} of {summary['epochs']}"
    if summary["test"]:
        test = summary["test"]
        say(console, "test", f"accuracy {test['accuracy']:.3f}, loss {test['loss']:.4f} ({best})")
    else:
        say(console, "done", f"{best}; there is no test split")
    proof = summary["frozen_proof"]
    if proof["tensors"]:
        say(
            console,
            "proof",
            f"{proof['tensors']} frozen parameters and buffers are bit-identical after training",
        )
    say(console, "time", f"{summary['timing']['total']:.1f} s")
    say(console, "folder", str(folder))
    say(console, "watch", "tensorboard --logdir outputs")


@contextmanager
def progress(console: Console, what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on a terminal, nothing elsewhere; yields the function that advances it."""
    bar = Progress(
        TextColumn(what),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.advance(task, done)
