"""What is wrong with the images of a data set, found by comparing them and by a look at each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from scipy.fft import dctn
from scipy.ndimage import laplace
from sklearn.neighbors import NearestNeighbors
from torch import Tensor
from torch.nn.functional import cosine_similarity

from finetune.data.dataset import SPLITS, Dataset
from finetune.data.images import opened
from finetune.data.splits import find_units
from finetune.errors import RequestError
from finetune.learners import stratified_folds
from finetune.model.preprocessing import Preprocessing
from finetune.model.standardize import statistics
from finetune.training.losses import create_loss
from finetune.training.metrics import probabilities
from finetune.training.solve import Problem, follow_path

ALIKE, HASHES = 0.9, 0.97  # copies: the least cosine of their features, and of their hashes
UNLIKE = 2  # deviations above the median, for an image that is as far from its nearest five
CUT, LIGHT, SHARPNESS = 1 / 3, 64, 0.25  # see look_at; the last a share of the median
BLANK, FAINT = 3, 8  # contrast that shows nothing, and that says too little of copies

Look = tuple[np.ndarray, np.ndarray]


class Finding(NamedTuple):
    """image, other: indices; score: the larger the surer; likelier: label."""

    kind: str
    image: int
    score: float
    other: int | None = None
    likelier: str = ""


def look_at(data: Dataset, how: Preprocessing, index: int) -> Look:
    """A hash (255,) of length 1 that copies of an image share: its low frequencies. The share of it outside
    its central square, the deviation and the 99th percentile of its grey, of 255, how sharp its edges are."""
    with opened(data.images[index], how, data.digests[index]) as image:
        cut, shades = 1 - min(image.size) / max(image.size), image.convert("L")
        cut *= how.fit == "center"
    waves = dctn(np.asarray(shades.resize((32, 32), Image.Resampling.BOX), np.float32))[:16, :16].ravel()[1:]
    shades.thumbnail((256, 256))  # about what a model sees
    grey = np.asarray(shades, np.float32)
    sharpness = np.percentile(abs(laplace(grey)), 99.9) / max(1, np.ptp(grey))
    measures = np.array([cut, grey.std(), np.percentile(grey, 99), sharpness])
    return waves / max(np.linalg.norm(waves), 1e-6), measures


def faults(measures: np.ndarray) -> Iterator[Finding]:
    """Images that show little, by what `look_at` measures, (N, 4)."""
    cut, contrast, light, sharpness = measures.T
    blank, sharpness = contrast < BLANK, sharpness / max(np.median(sharpness), 1e-6)
    for kind, score, found in (
        ("cropped", cut, cut > CUT),
        ("blank", 1 - contrast / 255, blank),
        ("dark", 1 - light / 255, ~blank & (light < LIGHT)),
        ("blurred", 1 - sharpness, ~blank & (sharpness < SHARPNESS)),
    ):
        yield from (Finding(kind, int(i), float(score[i])) for i in np.flatnonzero(found))


def compare_images(
    data: Dataset, sides: Sequence[str], features: Tensor, looks: Sequence[Look], seed: int
) -> Iterator[Finding]:
    """All findings; data: all of it to train on. sides, looks: of each image. features: (N, D)."""
    hashes, measures = (np.array(part) for part in zip(*looks, strict=True))
    yield from faults(measures)
    mean, scale = statistics([features])
    features = ((features - mean) * scale).float()
    # Of copies that of test may stay, before that of val and that of train.
    order = sorted(range(len(sides)), key=lambda i: (-SPLITS.index(sides[i]), i))
    first: dict[str, int] = {}
    same = [(first.setdefault(data.digests[i], i), i, 1.0) for i in order]
    single = np.array([*first.values()])
    if len(single) < 2:
        raise RequestError(f"{data.name}: expected two different images or more")
    search = NearestNeighbors(n_neighbors=min(10, len(single) - 1), algorithm="brute")
    distances, nearest = search.fit(features[single]).kneighbors()
    ends = np.stack([np.repeat(np.arange(len(single)), nearest.shape[1]), nearest.ravel()], 1)
    ends = single[np.unique(np.sort(ends), axis=0)]
    ends = ends[(measures[ends, 1] >= FAINT).all(1)]
    ends = ends[(hashes[ends[:, 0]] * hashes[ends[:, 1]]).sum(1) >= HASHES]
    cosines = cosine_similarity(features[ends[:, 0]], features[ends[:, 1]]).tolist()
    near = [(a, b, how) for (a, b), how in zip(ends.tolist(), cosines, strict=True) if how >= ALIKE]
    yield from copies(data, sides, near + [pair for pair in same if pair[0] != pair[1]])
    yield from wrong_labels(copies_together(data, near), features, seed)
    far = np.log(distances[:, :5].mean(1).clip(1e-12))
    far -= np.median(far)
    for place in np.flatnonzero(far > UNLIKE * np.quantile(far, 0.75) / 0.6745):
        yield Finding("outliers", int(single[place]), float(np.exp(far[place])))


def copies_together(data: Dataset, near: Sequence[tuple[int, int, float]]) -> Dataset:
    """The same where no copy of an image is solved for while it is held out, nor what stays with either."""
    keys, ends = data.units or data.digests, [end for pair in near for end in pair[:2]]
    pairs = [""] * len(keys) + [str(i // 2) for i in range(len(ends))]
    joined = find_units([*keys, *(keys[end] for end in ends)], pairs, None)
    return replace(data, digests=joined[: len(keys)], units=())


def copies(data: Dataset, sides: Sequence[str], pairs: Sequence[tuple[int, int, float]]) -> Iterator[Finding]:
    """Each copy once of a kind, with what it is most like; pairs: what may stay, the copy, how alike."""
    told: set[tuple[str, int]] = set()
    for stays, copy, how in sorted(pairs, key=lambda pair: -pair[2]):
        same, relabelled = data.digests[stays] == data.digests[copy], data.labels[stays] != data.labels[copy]
        found = [Finding("leaks", copy, how, stays)] if sides[stays] != sides[copy] else []
        if relabelled.any() and same:
            found += [Finding("conflict", copy, how, stays), Finding("conflict", stays, how, copy)]
        elif relabelled.any() or not found:
            kind = "across" if relabelled.any() else "exact" if same else "near"
            found += [Finding(kind, copy, how, stays)]
        yield from (one for one in found if one[:2] not in told)
        told |= {one[:2] for one in found}


def wrong_labels(data: Dataset, features: Tensor, seed: int) -> Iterator[Finding]:
    """Probably wrong labels, by a head not solved for them; of several an image has one after the other."""
    if not (folds := stratified_folds(data, seed)):
        return
    rows, logits = held_out_answers(data, features, folds)
    answers, labels = probabilities(logits, not data.multi_label).numpy(), data.labels[rows]
    parts = [(answers, labels, data.classes)]
    if data.multi_label:
        parts = [
            (np.stack([1 - of, of], 1), has.astype(np.int64), (f"without {name}", f"with {name}"))
            for of, has, name in zip(answers.T, labels.T, data.classes, strict=True)
        ]
    for answers, labels, names in parts:
        for row, guess, sure in probably_wrong(answers, labels):
            yield Finding("labels", int(rows[row]), sure, likelier=names[guess])


def held_out_answers(
    data: Dataset, features: Tensor, folds: list[tuple[Tensor, Tensor]]
) -> tuple[np.ndarray, Tensor]:
    """Rows (M,) of the folds, and the logits (M, K) of heads not solved for them, of the best strength.

    features: (N, D), standardised.
    """
    loss = create_loss("bce" if data.multi_label else "cross_entropy")
    problem = Problem(features, torch.from_numpy(data.labels), loss, len(data.classes))
    best = min(follow_path(problem, folds, loss), key=lambda point: point.log_loss)
    return torch.cat([held for _, held in folds]).numpy(), best.logits


def probably_wrong(answers: np.ndarray, labels: np.ndarray) -> Iterator[tuple[int, int, float]]:
    """Rows whose label is probably wrong, the likelier class, and how sure that is, from 0 to 1.

    Confident learning (Northcutt et al. 2021): an image is counted to the likeliest class whose probability
    is at least its mean over the images with that label. As many as are counted to another class than theirs
    are told: those whose own class has the least probability, as a share of its mean.

    answers: (M, K). labels: (M,) indices.
    """
    present = np.unique(labels)
    means = np.full(answers.shape[1], np.inf)
    means[present] = [answers[labels == one, one].mean() for one in present]
    counted = np.where(answers >= means, answers, 0)
    wrong = (counted.any(1) & (counted.argmax(1) != labels)).sum()
    own, guess = answers[np.arange(len(labels)), labels] / means[labels], answers.argmax(1)
    for row in np.argsort(own, kind="stable")[:wrong].tolist():
        if guess[row] != labels[row]:
            yield row, int(guess[row]), 1 - min(1.0, float(own[row]))
