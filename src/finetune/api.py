"""The Python interface, for notebooks: train with `fit`, open with `load`, then `predict`."""

from __future__ import annotations

import copy
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np
import pytorch_lightning as pl
from PIL import Image
from torch import Tensor, nn
from torch.optim import Optimizer

from finetune.config.compose import free_folder
from finetune.data.dataset import RawImage
from finetune.data.images import BadImage
from finetune.data.sources.given import pixels_of
from finetune.errors import RequestError
from finetune.evaluation.command import measure_run
from finetune.evaluation.familiar import Details
from finetune.evaluation.forward import Predictor
from finetune.evaluation.paths import find_images
from finetune.objects import data_settings, named, settings_from
from finetune.run import run
from finetune.runs.folder import drop_unused
from finetune.runs.open import Saved, open_run
from finetune.say import Screen

Given = str | Path | Image.Image | np.ndarray | Tensor
P = ParamSpec("P")
T = TypeVar("T")
_ALONE = threading.RLock()


def _one_at_a_time(function: Callable[P, T]) -> Callable[P, T]:
    """Other threads wait: objects have their names, and Hydra its settings, once in a process."""

    @wraps(function)
    def waiting(*args: P.args, **kwargs: P.kwargs) -> T:
        with _ALONE:
            return function(*args, **kwargs)

    return waiting


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, and what summary.json has."""

    folder: Path
    summary: dict[str, Any] = field(repr=False)  # some 20 kB

    def load(self) -> Model:
        """The model as the best epoch left it."""
        return load(self)


@dataclass(frozen=True)
class Prediction:
    """The likeliest class of an image, and the `top` likeliest with their probabilities.

    familiar: the share of known images held out that are less familiar; None for runs of older versions.
    path: of the image, where it is a file.
    """

    label: str
    probability: float
    top: list[tuple[str, float]]
    familiar: float | None = None
    path: Path | None = field(default=None, compare=False, repr=False)


class Model:
    """A run's trained model; `finetune.load` opens it.

    classes: their names, in the order of the outputs.
    """

    def __init__(self, saved: Saved, raw: bool = False) -> None:
        self.classes = saved.classes
        self._saved, self._predictor = saved, Predictor(saved, saved.settings.precision, raw=raw)
        self._details = Details(self._predictor)

    def predict(self, pictures: Given | Iterable[Given], top: int = 1) -> list[Prediction]:
        """Classify one image or many, with as little memory as the command needs.

        pictures: files, folders, PIL images, or uint8 arrays and tensors (H, W), (H, W, 3) or (3, H, W);
            with four dimensions they are many.

        Raises:
            RequestError: an image cannot be read, or top is below 1.
        """
        if top < 1:
            raise RequestError(f"top={top}: expected 1 or more")
        found = []
        for answers in self._predictor(self._images(pictures)):
            for answer in answers:
                if answer.logits is None:
                    raise RequestError(f"{answer.image}: expected an image; {answer.reason}")
                ranked = self._predictor.rank(answer, top)
                path = answer.image if isinstance(answer.image, Path) else None
                found.append(Prediction(*ranked[0], ranked, self._details(answer).get("familiar"), path))
        return found

    def evaluate(self, data: Any = None, split: str | None = None) -> dict[str, Any]:
        """Measure the model as `finetune evaluate` does, on the run's own data or as `fit` takes them.

        split: train, val, test or all; by default test, all of other data.
        Returns: accuracy, macro_f1, per_class … by name, as the command's --out has it.

        Raises:
            RequestError: the data are not there, or have none of the model's classes.
        """
        asked = self._saved.settings
        if data is not None:
            asked = asked.model_copy(update={"data": settings_from({"data": data_settings(data)}).data})
        return measure_run(self._saved, asked, self._predictor, split=split, console=Screen(quiet=True))

    def preprocess(self, picture: Given) -> Tensor:
        """An image as the network takes it: normalised float32, (3, H, W)."""
        decoded = self._predictor.read(self._image(picture))
        if isinstance(decoded, BadImage):
            raise RequestError(f"{decoded.path}: expected an image; {decoded.reason}")
        return self._predictor.normalise(decoded[None])[0]

    def _images(self, given: Any) -> Iterator[RawImage]:
        array = isinstance(given, np.ndarray | Tensor) and given.ndim != 4
        alone = array or isinstance(given, str | Path | Image.Image) or not isinstance(given, Iterable)
        for one in [given] if alone else given:
            folder = isinstance(one, str | Path) and os.path.isdir(one)
            yield from find_images([str(one)], sys.stdin) if folder else [self._image(one)]

    def _image(self, given: Any) -> RawImage:
        if isinstance(given, str | Path):
            return Path(given)
        return pixels_of(given, type(given).__name__, self._saved.preprocessing.brightness)

    def to_torch(self) -> nn.Module:
        """A copy of the network itself, in eval mode: preprocessed images (B, 3, H, W) to logits."""
        return copy.deepcopy(self._saved.network)


@_one_at_a_time
def fit(  # noqa: PLR0913  # an editor completes them
    data: Any = "clipart",
    freeze: str | list[str] = "all",
    head: int | str | nn.Module = "auto",
    *,
    model: str | nn.Module | None = None,
    weights: str | Path | None = None,
    loss: str | Callable[[Tensor, Tensor], Tensor] | None = None,
    optimizer: str | Mapping[str, Any] | Callable[[list[nn.Parameter]], Optimizer] | None = None,
    transform: Callable[[Tensor], Tensor] | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    seed: int | None = None,
    callbacks: Sequence[str | pl.Callback] | None = None,
    logger: Any = None,
    folder: str | Path | None = None,
    quiet: bool = False,
    **settings: Any,
) -> Run:
    """Train as `finetune train` does, with the same settings or objects (docs/extend.md), into such a folder.

    data: a name such as `clipart`, a folder of images, a DataFrame with columns path and label, a torch
        Dataset or a pair of arrays (images, labels), `{"train": …, "test": …}` of these, or a dict of the
        settings below `data`, as `{"source": "csv", "root": "images.csv"}`.
    model, head: names, or networks, of which a copy is trained.
    loss: a name, or what gives a mean of logits (B, outputs) and labels (B,).
    optimizer: its choice, `"adamw"`, with settings, `{"name": "adamw", "lr": 0.001}`, or what makes one.
    transform: of a training image, uint8 (3, R, R), anew in each epoch, so that nothing is cached.
    callbacks, logger: names, or Lightning's own.
    folder: where the run is kept; a new one below outputs by default.
    settings: any other, as `patience=5`.

    Raises:
        RequestError: a setting or the data are not as they must be.
        RunError: the run failed.
    """
    told: dict[str, Any] = {"data": data_settings(data), "freeze": freeze, "head": head, "model": model}
    told |= {"weights": weights, "loss": loss, "optimizer": optimizer, "data.augment": transform}
    told |= {"epochs": epochs, "batch_size": batch_size, "seed": seed}
    told |= {"callbacks": callbacks, "logger": logger}
    if transform is not None and ("data.augment" in settings or "augment" in told["data"]):
        raise RequestError("transform: expected no data.augment with it")
    asked = settings_from({key: one for key, one in told.items() if one is not None} | settings)
    wanted = time.strftime("outputs/%Y-%m-%d/%H-%M-%S")
    brought = folder is not None and Path(folder).expanduser().exists()
    place = Path(free_folder(wanted)) if folder is None else Path(folder).expanduser()
    try:
        return Run(place, run(asked, place, Screen(quiet=quiet)))
    finally:
        if not brought:
            drop_unused(place)


def load(
    run: Run | str | Path,
    raw: bool = False,
    model: nn.Module | None = None,
    head: nn.Module | None = None,
) -> Model:
    """Open a run by its folder, as `latest`, or as `fit` returned it.

    raw: leave the probabilities uncalibrated. model, head: networks that another process gave `fit`.

    Raises:
        RequestError: there is no such run, or it has no checkpoint yet.
    """
    for key, one in (("model", model), ("head", head)):
        if one is not None:
            named(key, one)
    return Model(open_run(str(run.folder if isinstance(run, Run) else run)), raw)
