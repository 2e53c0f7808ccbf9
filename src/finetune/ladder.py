"""`freeze=auto`: how far to unfreeze, rung by rung, as long as held-out images tell that it helps."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from finetune.atomic import read_json
from finetune.build import find_data, is_light
from finetune.config.phases import phase_settings, seconds
from finetune.config.schema import Settings
from finetune.data.dataset import Dataset
from finetune.errors import RequestError
from finetune.prepared import Prepared
from finetune.refit import initial_state, put_back
from finetune.report.predictions import read_predictions
from finetune.report.terminal import minutes
from finetune.runs import folder as folders
from finetune.runs.open import SEEN
from finetune.say import say
from finetune.training import device as devices
from finetune.training.intervals import told_apart

RUNGS = ("the head, solved for", "the last stage", "all but the norms")
STEPS = 2  # that a forecast measures, after one that is not counted


class Ladder:
    """The rungs of one run; kept: the one whose model is the run's so far."""

    def __init__(self, settings: Settings, folder: Path, console: Console) -> None:
        self.limit = seconds(settings.time_limit) if settings.time_limit else None
        self.settings, self.folder, self.console = settings, folder, console
        self.kept, self.rung, self.spent, self.why = 0, 0, 0.0, "every rung was better than the one before"
        self.right = list[np.ndarray]()

    def may_begin(self, prepared: Prepared) -> bool:
        """Whether a rung that stands ready ends within the time limit; says how long it will take."""
        refuse_undecided(prepared.dataset)
        if self.rung == 0:  # solved in seconds
            return True
        expected = forecast(prepared)
        say(self.console, "forecast", f"about {minutes(expected)} of training")
        if self.limit is None or self.spent + expected <= self.limit:
            return True
        self.why = f"no time is left to train {RUNGS[self.rung]} (time_limit)"
        return False

    def goes_on(self, summary: dict[str, Any]) -> bool:
        """Whether the rung that has ended is better than the one that is kept, so that the next is tried."""
        if not summary:
            return False
        self.spent += summary["timing"]["total"]
        answers = read_predictions(self.folder / folders.PHASES / str(self.rung))
        self.right.append(np.array([one.right for one in answers if one.split == "val"], float))
        name, own, best = RUNGS[self.rung], self.right[self.rung], self.right[self.kept]
        if self.rung and not (own.mean() > best.mean() and told_apart(own, best, self._groups())):
            self.why = f"training {name} cannot be told from before on {len(own)} validation images"
            return False
        self.kept, self.rung = self.rung, self.rung + 1
        return True

    def _groups(self) -> np.ndarray | None:
        """The number of the group of each validation image, in their order; None without groups."""
        place, data = self.folder / folders.PHASES, find_data(phase_settings(self.settings, self.rung))
        seen = read_json(place / str(self.rung) / SEEN, "the images of a run")["val"].split()
        rows = {digest[:16]: row for row, digest in enumerate(data.digests)}
        if missing := set(seen) - rows.keys():
            raise RequestError(f"data: expected the images of before; {len(missing):,} are not there")
        return data.together(np.array([rows[digest] for digest in seen]))


def refuse_undecided(dataset: Dataset) -> None:
    """Raise RequestError of images by which no rung can be told from another."""
    if not len(dataset.split["val"]) or dataset.labels.ndim > 1:
        raise RequestError("expected validation images with one label each, by which it chooses")


def forecast(prepared: Prepared) -> float:
    """The seconds that training will take, from a few steps that are measured and taken back."""
    batches, classifier, options = prepared.batches, prepared.classifier, prepared.options
    initial, threads = initial_state(prepared), 1 if is_light(prepared.settings, prepared.inputs) else None
    half = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(options.precision)
    autocast = torch.autocast(options.device, half or torch.bfloat16, enabled=half is not None)
    rows = torch.from_numpy(batches.examples.split["train"][: prepared.settings.batch_size])
    classifier.to(options.device)
    with devices.threads(threads), autocast:
        each = [_step(prepared, rows) for _ in range(1 + STEPS)][1:]
    put_back(prepared.model, initial)
    step, forward = (min(one[which] for one in each) for which in (0, 1))
    measured = len(batches.split["val"]) / len(rows)  # in batches
    most = (options.max_steps or sys.maxsize) * options.accumulate_batches
    steps = min(options.epochs * len(batches.train_dataloader()), most)
    return (1 + prepared.settings.refit) * (steps * step + options.epochs * measured * forward)


def _step(prepared: Prepared, rows: Tensor) -> tuple[float, float]:
    """The seconds of a training step, and of its forward pass alone."""
    examples, classifier, device = prepared.batches.examples, prepared.classifier, prepared.options.device
    began = time.perf_counter()
    inputs = examples.inputs(rows, 0)
    inputs = inputs.to(device) if isinstance(inputs, Tensor) else tuple(one.to(device) for one in inputs)
    measured = classifier.measure((examples.prepare(inputs, True, 1), examples.labels[rows].to(device)))
    measured.losses.tolist()  # waits for a GPU
    forward = time.perf_counter()
    measured.backward.backward()
    classifier.zero_grad()
    return time.perf_counter() - began, forward - began
