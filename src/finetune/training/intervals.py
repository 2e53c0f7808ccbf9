"""How sure a number is: 95 % intervals, Wilson's of a share, else by drawing the images again and again.

Of images in groups the groups are what is drawn: `groups` has the number of each image's, (N,), or is None.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np

DRAWS, FEWEST = 500, 5  # samples of the images, or of so many groups or more
Z, ENDS = 1.959964, (0.025, 0.975)
SHARES = ("accuracy", "balanced_accuracy", "macro_f1", "map")
BLOCK = 4_000_000  # counts that are in use at once


def wilson(share: float, total: float) -> tuple[float, float]:
    """The interval of a share of so many images: Wilson 1927."""
    scale = 1 + Z**2 / total
    middle = (share + Z**2 / (2 * total)) / scale
    half = Z / scale * math.sqrt(share * (1 - share) / total + Z**2 / (4 * total**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def of_share(right: Any, groups: np.ndarray | None) -> tuple[float, float]:
    """Wilson's of a share of images (N,), which count as fewer where those of a group are alike."""
    right = np.asarray(right, float)
    return wilson(float(right.mean()), counted_as(right, groups))


def counted_as(right: np.ndarray, groups: np.ndarray | None) -> float:
    """As how many images without groups these (N,) count, each as far right as it says, from 0 to 1.

    As many as Korn and Graubard (1998) have it: by the variance between groups, with Student's t of so few.
    """
    share, images = float(right.mean()), len(right)
    if groups is None:
        return images
    off, count = np.bincount(groups, right - share), int(groups.max()) + 1
    if share in (0, 1) or count == 1:
        return count
    between = count / (count - 1) * max(float(off @ off), 1e-9)
    return images * min(1.0, share * (1 - share) * images / between / _wider(count) ** 2)


def _wider(groups: int) -> float:
    """Student's t of so many groups, in deviations of the normal distribution."""
    from scipy.special import stdtrit  # a twentieth of a second that who only compares runs does without

    return float(stdtrit(groups - 1, ENDS[1])) / Z


@lru_cache(maxsize=2)
def draws(images: int) -> np.ndarray:
    """How often each image is in each of 500 samples, always the same ones: (images, 500)."""
    random, counts = np.random.default_rng(0), np.empty((images, DRAWS), np.uint8)
    for number in range(DRAWS):
        counts[:, number] = np.bincount(random.integers(images, size=images), minlength=images)
    return counts


def bootstrap(
    measure: Callable[[Any], Mapping[str, Any]], images: int, groups: np.ndarray | None = None
) -> dict[str, tuple[float, float]]:
    """The interval of each measure, which takes what images weigh, (images, draws), and gives (draws,).

    What drawing adds to a measure by itself, as to a calibration error, is taken off twice: of the draws, and
    of the value, which is of images that were drawn, too. The value is inside. Of groups the ends are further
    off (Hesterberg 2015), of too few there are none; where no draw differs Wilson's of shares alone.
    """
    from torch import from_numpy  # whoever has no network to measure does without

    step, found, parts = max(1, BLOCK // images), {}, []
    places = np.arange(images) if groups is None else groups
    units = int(places.max()) + 1
    if groups is not None and units < FEWEST:
        return {}
    wider = 1.0 if groups is None else _wider(units) * math.sqrt(units / (units - 1))
    for at in range(0, DRAWS, step):
        drawn = draws(units)[places, at : at + step].astype(float)
        parts.append(measure(from_numpy(drawn * (images / drawn.sum(0)))))
    for name, value in measure(from_numpy(np.ones((images, 1)))).items():
        drawn = np.concatenate([part[name] for part in parts])
        value, ends = float(value), np.nanquantile(drawn, ENDS)
        if ends[0] < ends[1]:
            low, high = (value + wider * (ends - value - 2 * (np.nanmean(drawn) - value))).tolist()
            top = 1.0 if name in (*SHARES, "calibration_error") else math.inf
            found[name] = (min(max(low, 0.0), value), max(min(high, top), value))
        elif name in SHARES:
            found[name] = wilson(value, units)
    return found


def told_apart(first: np.ndarray, second: np.ndarray, groups: np.ndarray | None = None) -> bool:
    """Whether the means of two values of each image (N,) differ: 0 is outside the difference's interval."""
    sums = first - second if groups is None else np.bincount(groups, first - second)
    low, high = np.quantile(sums @ draws(len(sums)), ENDS)
    return bool(low > 0 or high < 0)
