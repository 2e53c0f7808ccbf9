"""`finetune curve`: would more images help, by heads solved on parts of those to train on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from rich.console import Console
from sklearn.model_selection import train_test_split
from torch import Tensor

from finetune.atomic import not_written
from finetune.build import find_data, make_model
from finetune.data.dataset import SPLITS, Dataset
from finetune.errors import RequestError, RunError
from finetune.evaluation.embeddings import embed, model_of
from finetune.model.standardize import statistics
from finetune.runs.folder import one_writer
from finetune.runs.open import open_run
from finetune.runs.summary import read_summary, write_summary
from finetune.say import Screen, progress, say
from finetune.training.device import threads
from finetune.training.intervals import counted_as, wilson
from finetune.training.losses import create_loss
from finetune.training.solve import STRENGTHS, Problem, follow_path

SIZES, DRAWS, RESAMPLED = 5, 5, 500
RANGE = 8  # all are so many times the smallest part, and so many times as many as classes


def curve_run(run: str) -> None:
    """Say what twice the images would give a run, and write it to the run's summary."""
    console, saved = Screen(), open_run(run)
    if saved.summary is None or saved.summary["status"] != "finished":
        raise RequestError(f"{saved.folder}: expected a finished run")
    settings, dataset = saved.settings, find_data(saved.settings).numbered_as(saved.classes)
    if dataset.labels.ndim != 1:
        raise RequestError(f"data={dataset.name}: expected images of one class each, not of several labels")
    model = model_of(saved)
    if settings.freeze != ["all"]:  # what has learned from all images says nothing of fewer
        model = make_model(settings.model_copy(update={"freeze": ["all"]}), dataset)
        said = "heads are solved on the frozen weights that the run began with"
        say(console, "note", f"{said}: {model.weights.used}")
    found = embed(model, settings, dataset, console)
    train, held = _sides(found.dataset, settings.refit)
    right = solve_parts(found.values, found.dataset, train, held, console=console)
    labels, groups = found.dataset.labels[held], found.dataset.together(held)
    curve = measure_curve(right, labels, found.dataset.classes, groups)
    console.print(f"{'images':>9}  accuracy  95 % interval")
    for one in (*curve["points"], curve["twice"]):
        console.print("{images:>9,}  {value:8.3f}  {low:.3f} to {high:.3f}".format(**one))
    say(console, "answer", curve["sentence"])
    try:
        with one_writer(saved.folder):
            if read_summary(saved.folder) != saved.summary:
                raise RunError(f"{saved.folder}: has been trained further meanwhile")
            write_summary(saved.folder, saved.summary | {"curve": curve})
    except (RunError, OSError) as error:
        told = not_written(saved.folder, error) if isinstance(error, OSError) else str(error)
        raise RunError(f"{told}; the answer is not kept") from None


def _sides(dataset: Dataset, refit: bool) -> tuple[np.ndarray, np.ndarray]:
    """The images to train on and to measure on, as the run has them; RequestError of too few."""
    if dataset.folds is not None:
        told = "was tested in folds; one without them (data.folds=null) has images to measure on"
        raise RequestError(f"data.folds: expected a run with a split; this one {told}")
    train, val, test = (dataset.split[side] for side in SPLITS)
    if refit:
        train, val = np.union1d(train, val), val[:0]
    held, fewest = np.concatenate([val, test]), RANGE * len(dataset.classes)
    there = len(np.unique(np.asarray(dataset.units or dataset.digests)[train]))
    if there < fewest or not len(held):
        what = f"{fewest:,} {'groups' if dataset.groups else 'different images'} to train on"
        wanted = f"expected {what}, {RANGE} times the classes, and others to measure on"
        raise RequestError(f"data={dataset.name}: {wanted}; there are {there:,} and {len(held):,}")
    return train, held


def solve_parts(
    features: Tensor, dataset: Dataset, train: np.ndarray, held: np.ndarray, *, console: Console
) -> dict[int, np.ndarray]:
    """By the number of images solved for, which held-out images each draw's head is right about, (draws, M).

    Of each size the strength of the penalty is that of the lowest log-loss. features: (N, D).
    """
    mean, scale = statistics([features[train]])
    values, labels = ((features - mean) * scale).float(), torch.from_numpy(dataset.labels)
    loss, outputs, strengths, right = create_loss("cross_entropy"), len(dataset.classes), STRENGTHS, {}
    units = len(np.unique(np.asarray(dataset.units or dataset.digests)[train]))
    shares = np.geomspace(max(1 / RANGE, 2 * outputs / units), 1, SIZES)
    sizes = (shares * len(train)).round().astype(int).tolist()
    with progress(console, "solving", SIZES, unit="sizes") as advance, threads(1):
        for size in sizes:
            parts = [
                draw_training(dataset, train, size, number)
                for number in range(DRAWS if size < len(train) else 1)
            ]
            rows = np.unique(np.concatenate([*parts, held]))
            *places, measured = (torch.from_numpy(np.searchsorted(rows, part)) for part in (*parts, held))
            problem = Problem(values[rows], labels[rows], loss, outputs)
            path = follow_path(problem, [(place, measured) for place in places], loss, strengths)
            best = min(path, key=lambda point: point.log_loss)
            answers = best.logits.unflatten(0, (len(parts), -1)).argmax(2)
            right[size] = (answers == labels[held]).numpy()
            near = STRENGTHS.index(best.strength)  # a few more images want about the same
            strengths = STRENGTHS[max(near - 1, 0) : near + 3]
            advance(1)
    return right


def draw_training(dataset: Dataset, train: np.ndarray, size: int, number: int) -> np.ndarray:
    """About so many of the training images, stratified, of those of a unit all or none."""
    if size == len(train):
        return train
    keys = np.asarray(dataset.units or dataset.digests)[train]
    units, first, unit = np.unique(keys, return_index=True, return_inverse=True)
    labels = dataset.labels[train][first]
    counts = np.bincount(labels)
    kinds = np.where(counts[labels] > 1, labels, counts.argmax())  # one image makes no stratum
    each, part = np.arange(len(units)), round(size / len(train) * len(units))
    chosen, _ = train_test_split(each, train_size=part, stratify=kinds, random_state=number)
    return train[np.isin(unit, chosen)]


def measure_curve(
    right: dict[int, np.ndarray], labels: np.ndarray, classes: Sequence[str], groups: np.ndarray | None = None
) -> dict[str, Any]:
    """What `solve_parts` found as accuracies, and what twice the images would give.

    The 95 % intervals are over resampled held-out images, with labels (M,), or groups of them, and draws.
    """
    random, sizes, scores = np.random.default_rng(0), [*right], []
    counted = np.column_stack([np.ones_like(labels), labels[:, None] == np.arange(len(classes))])
    places = np.arange(len(labels)) if groups is None else groups
    weights = _resampled(random, int(places.max()) + 1)[:, places]
    alone = counted_as(right[sizes[-1]].mean(0), groups)
    for heads in right.values():  # scores: the accuracy and each class's recall, (1 + RESAMPLED, 1 + classes)
        share = _resampled(random, len(heads)) / len(heads)
        scores.append((weights * (share @ heads)) @ counted / (weights @ counted).clip(1))
    now, spread = scores[-1][:, 0].copy(), right[sizes[-2]].mean(1).std(ddof=1)
    scores[-1][1:] += random.normal(0, spread, (RESAMPLED, 1))  # all the images are a draw, too
    gains = extrapolated_gain(sizes, np.stack(scores), 0.5 / len(labels))
    after = (scores[-1][:, 0] + gains[:, 0]).clip(0, 1)
    twice, gain = (_estimate(2 * sizes[-1], values) for values in (after, after - now))
    points = [_estimate(size, part[:, 0].clip(0, 1)) for size, part in zip(sizes, scores, strict=True)]
    for one in (*points, twice):  # so few images cannot tell more
        low, high = wilson(one["value"], alone)
        one |= {"low": min(one["low"], low), "high": max(one["high"], high)}
    said = "With twice the images about {value:.2f}, between {low:.2f} and {high:.2f}".format(**twice)
    said += f", against {now[0]:.2f} now"
    most = int(gains[0, 1:].argmax())
    if gain["low"] <= 0:
        said += "; the gain, {low:+.2f} to {high:+.2f}, may be nothing".format(**gain)
    elif np.quantile(gains[1:, 1 + most], 0.05 / len(classes)) > 0:  # the largest of so many
        said += f"; class {classes[most]} would gain most"
    return {"held_out": len(labels), "points": points, "twice": twice, "gain": gain, "sentence": said}


def extrapolated_gain(sizes: Sequence[int], scores: np.ndarray, least: float) -> np.ndarray:
    """What scores (sizes, …) gain from the last size to twice that, by a power law through their errors.

    A floor below the errors could not be told from so few. least: what an error counts at least.
    """
    errors = np.log((1 - scores).clip(least)).reshape(len(sizes), -1)
    exponent, level = np.polyfit(np.log(np.array(sizes) / sizes[-1]), errors, 1)
    return (np.exp(level) * (1 - 2**exponent)).reshape(scores.shape[1:])


def _resampled(random: np.random.Generator, number: int) -> np.ndarray:
    """How often each of so many is drawn, (1 + RESAMPLED, number); in the first row once."""
    drawn = random.multinomial(number, np.full(number, 1 / number), RESAMPLED)
    return np.concatenate([np.ones((1, number)), drawn])


def _estimate(images: int, values: np.ndarray) -> dict[str, float]:
    low, high = np.quantile(values[1:], (0.025, 0.975)).tolist()
    return {"images": images, "value": float(values[0]), "low": low, "high": high}
