"""What a run says on the terminal: a few calm lines."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.filesize import decimal

from finetune.choices.best import NAMES
from finetune.choices.optimizers import OPTIMIZERS
from finetune.config.conflicts import idle
from finetune.config.schema import Settings
from finetune.data.dataset import Dataset
from finetune.data.sources.folder import tell_others
from finetune.errors import brief, counted
from finetune.features.load import ModelInputs
from finetune.model.assemble import Model
from finetune.model.parameters import count_parameters
from finetune.model.preprocessing import Preprocessing
from finetune.model.staged import Staged
from finetune.report.advice import advise
from finetune.runs.folder import is_phase
from finetune.runs.settings import read_settings
from finetune.runs.summary import worse_by_temperature
from finetune.runs.sweeps import logdir
from finetune.say import say
from finetune.training.fit import Options
from finetune.training.solve import SOLVED, STRENGTHS

MAJORITY = 0.6  # share of one class from which accuracy alone misleads


def model_lines(console: Console, model: Model, settings: Settings, classes: int) -> None:
    """The model, the weights really used, what is frozen and what trains, and settings without effect."""
    weights, counts = model.weights, count_parameters(model.network)
    if weights.warning:
        say(console, "warning", f"weights={weights.requested}: {weights.warning}")
    say(console, "model", f"{model.name}, weights: {weights.used}")
    for note in weights.notes:
        say(console, "", note)
    if model.outputs > classes:
        text = f"head: {model.outputs} outputs for {classes} classes; the others can never be right"
        say(console, "warning", text)
    head = "the head is kept"
    if model.head:
        head = f"the new head {model.head} with {counted(model.outputs, 'output')} always trains"
        if isinstance(model.network, Staged):
            head += f" and reads {', '.join(model.network.head_stages)}, too"
    frozen = f"{counts['total'] - counts['trainable']:,} of {counts['total']:,} parameters are frozen"
    say(console, "freeze", f"{', '.join(settings.freeze)}: {frozen}, {counts['trainable']:,} train; {head}")
    for line in idle(settings):
        say(console, "note", line)
    if objects := settings.given():
        text = "only Python can resume this run: fit with the same, its folder and resume='auto'"
        text = "nothing but the name tells whether that is the same as before" if settings.resume else text
        say(console, "note", f"{brief(objects)}: {text}")


def input_lines(console: Console, inputs: ModelInputs, model: Model, class_weights: str) -> None:
    """The data, what the user should know of its classes, and what of the model is computed once."""
    for note in inputs.notes:
        say(console, "note", note)
    _data_lines(console, inputs, model.preprocessing)
    balance_lines(console, inputs.dataset, class_weights)
    if inputs.batchnorm:
        _batchnorm_line(console, model.name, **inputs.batchnorm)
    _feature_line(console, inputs)


def _data_lines(console: Console, inputs: ModelInputs, how: Preprocessing) -> None:
    dataset, skipped, counts = inputs.dataset, inputs.bad, inputs.dataset.counts()
    classes = counted(len(dataset.classes), "label" if dataset.multi_label else "class")
    val, test = (f"{counts[split]:,}" for split in ("val", "test"))
    splits = f"{counted(counts['train'], 'image')} to train, {val} to validate, {test} to test"
    if dataset.folds is not None:
        each = f"each tested in one of {dataset.folds.max() + 1} folds, then all to train"
        splits = f"{counts['train']:,} images, {each}"
    own = ", as the data split them" if dataset.own_split else ""
    prepared = f"{how.crop_size} px, augmentation: {inputs.plan.augment}"
    say(console, "data", f"{dataset.name}: {classes}, {splits}{own}; {prepared}")
    if dataset.passed_over:
        say(console, "", tell_others(dataset.passed_over))
    for note in dataset.notes:
        say(console, "", note)
    for kind, (black, white) in how.brightness.items():
        pixels = "floats" if kind == "F" else "whole numbers of more than 8 bits"
        say(console, "", f"brightness of {pixels}: {black:.10g} is black, {white:.10g} white, in every image")
    if inputs.repaired:
        text = f"broken images shown as far as they go: {len(inputs.repaired):,}"
        say(console, "warning", f"{text} ({brief(list(inputs.repaired), 2)})")
    if skipped:
        number = f"{len(skipped):,} image{'s are' if len(skipped) > 1 else ' is'}"
        paths = brief([bad.path for bad in skipped], 2)
        say(console, "warning", f"{number} broken and left out, listed in skipped.csv: {paths}")


def balance_lines(console: Console, dataset: Dataset, class_weights: str) -> None:
    """What may spoil a training: warnings, classes without images, one that has most of them."""
    for text in dataset.warnings:
        say(console, "warning", text)
    counts = dataset.to_train()
    if none := [name for name, count in counts.items() if not count]:
        say(console, "warning", f"there are no images to train on of {brief(none)}")
    if dataset.multi_label or not counts:
        return
    name = max(counts, key=lambda one: counts[one])
    share = counts[name] / sum(counts.values())
    if share > MAJORITY:
        advice = "class_weights=balanced would weigh it down"
        if class_weights == "balanced":
            advice = "weighed down by class_weights=balanced"
        text = f"{share:.0%} of the images to train on are {name}: always answering so is as often right"
        say(console, "warning", f"{text}; look at the balanced accuracy ({advice})")


def _batchnorm_line(
    console: Console, name: str, adapted: int, images: int, log_loss: dict[str, float] | None = None
) -> None:
    if log_loss:
        both = f"cross-validated log-loss {log_loss['pretrained']:.4f} as pretrained"
        kept = "adapted" if adapted else "the pretrained statistics are kept"
        say(console, "norms", f"{both}, {log_loss['adapt']:.4f} adapted to {images:,} images: {kept}")
    elif adapted:
        layers = f"{adapted} frozen BatchNorm layer{'s have' if adapted > 1 else ' has'}"
        say(console, "norms", f"{layers} the statistics of {counted(images, 'training image')}")
    else:
        say(console, "note", f"batchnorm=adapt has no effect: {name} has no frozen BatchNorm")


def _feature_line(console: Console, inputs: ModelInputs) -> None:
    plan, features = inputs.plan, inputs.features
    if features is None:
        say(console, "cache", f"nothing: {plan.why}")
        return
    found = f"all {features['reused']:,} were in the store"
    if features["computed"]:
        rate = features["computed"] / features["seconds"]
        found = f"{features['computed']:,} computed in {features['seconds']:.1f} s"
        found += f" ({rate:.0f}/s, {features['form']})"
        found += f", {features['reused']:,} from the store" if features["reused"] else ""
    constant = f"{plan.share:.0%} of the forward pass is constant and runs once an image"
    say(console, "cache", f"{constant}; {found}; {decimal(features['bytes'])}, {plan.why}")


def training_line(console: Console, optimizer: dict[str, Any], options: Options) -> None:
    device, processes, threads = options.device, options.rank.world_size, torch.get_num_threads()
    where = f"{device} ({threads} thread{'s' * (threads > 1)})" if device == "cpu" else device
    if processes > 1:
        where += f", {processes} processes"
    precision = options.precision.removesuffix("-true").removesuffix("-mixed")
    how = f"{counted(options.epochs, 'epoch')}, {optimizer['name']}"
    if OPTIMIZERS[optimizer["name"]].solves:
        how = f"the head is solved by {optimizer['name']}"
    how += f" with lr {optimizer['lr']:g}" if "lr" in optimizer else ""
    say(console, "train", f"{how}, on {where}, precision {precision}")


def resume_lines(console: Console, epochs: int, changed: str | None) -> None:
    say(console, "resume", f"after epoch {epochs}")
    if changed:
        say(console, "warning", changed)


def result_lines(console: Console, summary: dict[str, Any], folder: Path) -> None:
    """The result, the proof, where everything is and how to watch it."""
    best = f"best epoch {summary['best_epoch']} of {summary['epochs']}"
    best += ", the averages" * summary["averaged"]
    if solution := summary["solution"]:
        best = f"solved with weight_decay {solution['weight_decay']:.3g}"
        best += f" in {counted(solution['iterations'], 'iteration')}"
        if path := solution["path"]:
            lowest = min(path, key=lambda point: point["log_loss"])
            text = f"the lowest log-loss of {len(path)} strengths, {lowest['log_loss']:.4f}"
            text += ", on images not solved for"
            if lowest["strength"] in (STRENGTHS[0], STRENGTHS[-1]):
                text += "; it is the last that is tried in that direction"
            say(console, "chosen", f"weight_decay {lowest['strength']:.3g}: {text}")
        if solution["gradient"] > SOLVED:
            text = f"the solve ended with a gradient of {solution['gradient']:.1e}, not {SOLVED:.0e}"
            say(console, "warning", f"{text}; a larger optimizer.weight_decay has a clearer optimum")
    if images := summary["refit"]:
        best += f", then refitted on {images:,} images"
    if folds := summary["folds"]:
        best = counted(summary["best_epoch"], "epoch") if not summary["solution"] else best
        say(console, "test", fold_scores(folds))
        say(console, "whole", f"{summary['data']['train']:,} images trained on; {best}, the folds' median")
    elif test := summary["test"]:
        first, _, rest = scores(test).partition(", ")
        images = f"on {counted(summary['data']['test'], 'image')}"
        if groups := summary["data"].get("test_groups"):
            images += f" of {counted(groups, 'group')}"
        say(console, "test", f"{first.replace('(', '(95 %: ')} {images}")
        say(console, "", f"{rest}; {best}")
    else:
        say(console, "done", f"{best}; there is no test split")
    if worse := worse_by_temperature(summary):
        say(console, "note", worse)
    if summary["frozen_proof"]["tensors"]:
        say(console, "frozen", "proven unchanged")
    say(console, "time", f"{summary['timing']['total']:.1f} s")
    if is_phase(folder):  # where everything is is told of the whole run
        return
    say(console, "folder", str(folder))
    if (report := folder / "report.html").exists():
        say(console, "report", str(report))
    if (folder / "tensorboard").exists():
        say(console, "watch", "", f"tensorboard --logdir {shlex.quote(str(logdir(folder)))}")
    for fact, typed in advise(folder, summary, read_settings(folder)) if report.exists() else ():
        say(console, "next", f"{fact}:", typed)


def phase_lines(console: Console, ended: list[dict[str, Any]], names: Sequence[str], kept: int) -> None:
    """What each phase came to in validation, and its time."""
    for number, (name, one) in enumerate(zip(names, ended, strict=False)):
        side = "validation" if one["val"] else "test"
        measured = scores(one["val"] or one["test"] or {}).partition(", ")[0]
        took, mark = minutes(one["timing"]["total"]), "; kept" if number == kept else ""
        say(console, f"phase {number + 1}", f"{name}: {side} {measured}, {took}{mark}")


def minutes(duration: float) -> str:
    """A time in seconds or, from a minute on, in minutes."""
    return f"{duration / 60:.1f} min" if duration >= 60 else f"{duration:.0f} s"


def fold_scores(folds: dict[str, Any]) -> str:
    """5 folds: accuracy 0.71 ± 0.02 (95 %: 0.66 to 0.76), …; with several labels an image mAP first."""
    names = [name for name in ("map", "accuracy", "balanced_accuracy") if name in folds["test"]]
    line = "{} {mean:.3f} ± {standard_error:.3f} (95 %: {interval[0]:.2f} to {interval[1]:.2f})"
    told = ", ".join(line.format(NAMES[name], **folds["test"][name]) for name in names)
    return f"{folds['number']} folds: {told}"


def scores(metrics: dict[str, Any]) -> str:
    """accuracy 0.655 (0.50 to 0.79), balanced …; with several labels an image mAP and macro-F1 first."""
    several = {"map": "mAP", "macro_f1": "macro-F1"} if "map" in metrics else {}
    titles = {**several, "accuracy": "accuracy", "balanced_accuracy": "balanced"}
    titles |= {"log_loss": "log-loss"} if "log_loss" in metrics else {"loss": "loss"}
    told = {name: " ({:.2f} to {:.2f})".format(*ends) for name, ends in metrics.get("intervals", {}).items()}
    shown = {name: title for name, title in titles.items() if name in metrics}
    return ", ".join(f"{title} {metrics[name]:.3f}{told.get(name, '')}" for name, title in shown.items())
