"""What is fitted on images held out: the temperature of probabilities, and each label's threshold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from finetune.training.metrics import calibration, once
from finetune.training.several import ranked

BOUNDS = (0.05, 20.0)
FEWEST = 5  # images with a label, and without, that a threshold is chosen on


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature that makes labels (N,), of two classes or more, most likely under logits (N, outputs).

    Logits are to be divided by it. Guo et al. 2017, "On Calibration of Modern Neural Networks", section 4.2.
    As in Platt 1999, section 2.2, a label counts 1 - 1 / (N + 2) and the rest goes to the other classes: else
    a few images that are all answered rightly would make every later answer certain.
    The likelihood is concave in 1 / temperature, so its slope has one zero; it is found by bisection.
    """
    logits = logits.double()
    logits = logits - logits.mean(1, keepdim=True)
    present = labels.unique()
    doubt = 1 / (len(labels) + 2)
    targets = torch.zeros_like(logits)
    targets[:, present] = doubt / (len(present) - 1)
    targets.scatter_(1, labels[:, None], 1 - doubt)
    wanted = float((targets * logits).sum(1).mean())

    def too_sure(temperature: float) -> bool:
        return float(((logits / temperature).softmax(1) * logits).sum(1).mean()) > wanted

    low, high = map(math.log, BOUNDS)
    for _ in range(24):
        middle = (low + high) / 2
        low, high = (middle, high) if too_sure(math.exp(middle)) else (low, middle)
    return math.exp((low + high) / 2)


def calibrate(val: tuple[Tensor | None, Tensor], test: tuple[Tensor | None, Tensor]) -> dict[str, Any] | None:
    """Fit the temperature on validation and measure what it does on test or, without one, on validation.

    val, test: logits (N, outputs), None where there are none, and labels (N,).
    Returns: what summary.json has of it; None where validation has fewer than two classes.
    """
    if val[0] is None or val[1].ndim != 1 or len(val[1].unique()) < 2:
        return None
    temperature = fit_temperature(val[0], val[1])
    split, (logits, labels) = ("val", val) if test[0] is None else ("test", test)
    assert logits is not None
    before, after = (calibration(logits, labels, temperature=t) for t in (1.0, temperature))
    return {
        "temperature": temperature,
        "fitted_on": len(val[1]),
        "measured_on": split,
        "ece_before": before["calibration_error"],
        "ece_after": after["calibration_error"],
        "log_loss_before": before["log_loss"],
        "log_loss_after": after["log_loss"],
    }


def temperature_of(summary: dict[str, Any] | None) -> float:
    """What a run's logits are to be divided by; 1 where nothing was fitted."""
    fitted = (summary or {}).get("calibration")
    return fitted["temperature"] if fitted else 1.0


def fit_thresholds(logits: Tensor, labels: Tensor, names: Sequence[str]) -> dict[str, float]:
    """The probability of each label above which giving it has the best F1 on (N, labels) of 0 and 1.

    Half way between two images; of several as good the nearest to 0.5, which it is with too few images.
    """
    found = dict.fromkeys(names, 0.5)
    for name, scores, true in zip(names, logits.double().sigmoid().T, (labels == 1).T, strict=False):
        if FEWEST <= int(true.sum()) <= len(true) - FEWEST:
            hits, alarms = ranked(scores, true, once(true))
            f1 = (2 * hits / (hits + alarms + hits[-1]))[1:, 0]
            levels = torch.cat([scores.unique().flip(0), torch.zeros(1)])
            best = ((levels[:-1] + levels[1:]) / 2)[f1 == f1.max()]
            found[name] = float(best[(best - 0.5).abs().argmin()])
    return found
