"""What a run says on the terminal: a few calm lines."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from finetune.data.dataset import Dataset
from finetune.data.images import BadImage
from finetune.errors import brief
from finetune.features.load import ModelInputs
from finetune.features.plan import readable
from finetune.model.assemble import Model
from finetune.model.parameters import count_parameters
from finetune.report.folder import logdir
from finetune.say import say

MAJORITY = 0.6  # share of one class from which accuracy alone misleads


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
    counts = count_parameters(model.network)
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
    own = ", as the data split them" if dataset.own_split else ""
    say(
        console,
        "data",
        f"{dataset.name}: {len(dataset.classes)} {'labels' if dataset.multi_label else 'classes'},"
        f" {counts['train']:,} pictures to train,"
        f" {counts['val']:,} to validate, {counts['test']:,} to test{own}; {size} px,"
        f" augmentation: {augment}",
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
            f"{len(skipped):,} picture{'s are' if len(skipped) > 1 else ' is'} broken and left out, listed in"
            " skipped.csv:"
            f" {brief([bad.path for bad in skipped], 2)}",
        )


def balance_lines(console: Console, dataset: Dataset, class_weights: str) -> None:
    """What the user should know of the classes: too few pictures, none, or nearly all in one."""
    for text in dataset.warnings:
        say(console, "warning", text)
    counts = dataset.to_train()
    if none := [name for name, count in counts.items() if not count]:
        say(console, "warning", f"there are no pictures to train on of {brief(none)}")
    if dataset.multi_label or not counts:
        return
    name = max(counts, key=lambda one: counts[one])
    share = counts[name] / sum(counts.values())
    if share > MAJORITY:
        weighed = "weighed down by class_weights=balanced"
        advice = weighed if class_weights == "balanced" else "class_weights=balanced would weigh it down"
        say(
            console,
            "warning",
            f"{share:.0%} of the pictures to train on are {name}: always answering so is as often right;"
            f" look at the balanced accuracy ({advice})",
        )


def feature_line(console: Console, ready: ModelInputs) -> None:
    """What of the model runs once, and where its output is kept."""
    plan, features = ready.plan, ready.features
    if features is None:
        say(console, "cache", f"nothing: {plan.why}")
        return
    text = f"{ready.plan.share:.0%} of the forward pass is constant and runs once a picture; "
    if features["computed"]:
        rate = features["computed"] / features["seconds"]
        text += f"{features['computed']:,} computed in {features['seconds']:.1f} s"
        text += f" ({rate:.0f}/s, {features['form']})"
        text += f", {features['reused']:,} from the store" if features["reused"] else ""
    else:
        text += f"all {features['reused']:,} were in the store"
    say(console, "cache", f"{text}; {readable(features['bytes'])}, {plan.why}")


def training_line(
    console: Console, epochs: int, optimizer: dict[str, Any], device: str, precision: str, processes: int = 1
) -> None:
    """What the training will be."""
    number = torch.get_num_threads()
    threads = f" ({number} thread{'s' * (number > 1)})" if device == "cpu" else ""
    precision = precision.removesuffix("-true").removesuffix("-mixed")
    say(
        console,
        "train",
        f"{epochs} epochs, {optimizer['name']} with lr {optimizer['lr']:g},"
        f" on {device}{threads}{f', {processes} processes' * (processes > 1)}, precision {precision}",
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
        say(console, "test", f"{scores(test)}, loss {test['loss']:.4f} ({best})")
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
    if (report := folder / "report.html").exists():
        say(console, "report", str(report))
    say(console, "watch", f"tensorboard --logdir {shlex.quote(str(logdir(folder)))}")


def scores(metrics: dict[str, Any]) -> str:
    """accuracy 0.655, balanced 0.650; with several labels a picture mAP and macro-F1 first."""
    several = f"mAP {metrics['map']:.3f}, macro-F1 {metrics['macro_f1']:.3f}, " if "map" in metrics else ""
    return f"{several}accuracy {metrics['accuracy']:.3f}, balanced {metrics['balanced_accuracy']:.3f}"
