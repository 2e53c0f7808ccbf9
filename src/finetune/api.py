"""The Python interface, for notebooks: train with `fit`, open with `load`, then `predict`."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf
from PIL import Image, ImageOps
from torch import Tensor, nn

from finetune.config.compose import GROUPS, choices_of, compose_config, free_folder
from finetune.config.messages import unknown_setting, validate
from finetune.config.schema import SECTIONS, Settings
from finetune.data.dataset import RawImage
from finetune.data.images import BadImage
from finetune.data.pixels import Brightness, on_white
from finetune.errors import RequestError
from finetune.evaluation.details import Details
from finetune.evaluation.forward import Predictor
from finetune.run import run
from finetune.runs.folder import drop_unused
from finetune.runs.open import Saved, open_run
from finetune.say import Screen

Given = str | Path | Image.Image | np.ndarray


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, and what summary.json has."""

    folder: Path
    summary: dict[str, Any]

    def load(self) -> Model:
        """The model as the best epoch left it."""
        return load(self)


@dataclass(frozen=True)
class Prediction:
    """The likeliest class of an image, and the `top` likeliest with their probabilities.

    familiar: the share of known images held out that are less familiar; None for runs of older versions.
    """

    label: str
    probability: float
    top: list[tuple[str, float]]
    familiar: float | None = None


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

        pictures: paths, PIL images, or uint8 arrays (H, W) or (H, W, 3).

        Raises:
            RequestError: an image cannot be read, or top is below 1.
        """
        if top < 1:
            raise RequestError(f"top={top}: expected 1 or more")
        many: Iterable[Any] = [pictures] if _is_one(pictures) else pictures  # type: ignore[assignment]
        found = []
        for answers in self._predictor(map(self._image, many)):
            for answer in answers:
                if answer.logits is None:
                    raise RequestError(f"{answer.image}: expected an image; {answer.reason}")
            each = zip(self._predictor.rank(answers, top), map(self._details, answers), strict=True)
            found += [Prediction(*ranked[0], ranked, more.get("familiar")) for ranked, more in each]
        return found

    def preprocess(self, picture: Given) -> Tensor:
        """An image as the network takes it: normalised float32, (3, H, W)."""
        decoded = self._predictor.read(self._image(picture))
        if isinstance(decoded, BadImage):
            raise RequestError(f"{decoded.path}: expected an image; {decoded.reason}")
        return self._predictor.normalise(decoded[None])[0]

    def _image(self, given: Any) -> RawImage:
        return _image(given, self._saved.preprocessing.brightness)

    def to_torch(self) -> nn.Module:
        """A copy of the network itself, in eval mode: preprocessed images (B, 3, H, W) to logits."""
        return copy.deepcopy(self._saved.network)


def fit(
    data: str | Path | Mapping[str, Any] = "clipart",
    freeze: str | list[str] = "all",
    head: int | str = "auto",
    *,
    folder: str | Path | None = None,
    quiet: bool = False,
    **settings: Any,
) -> Run:
    """Train as `finetune train` does, with the same settings, and leave the same folder.

    data: a name such as `clipart`, a folder of images, or a dict of the settings below `data`, as
        `{"source": "csv", "root": "images.csv"}`.
    folder: where the run is kept; a new one below outputs by default.
    settings: any other, as `epochs=5`; a section as its choice, `optimizer="adamw"`, or as a dict,
        `optimizer={"name": "adamw", "lr": 0.001}`.

    Raises:
        RequestError: a setting or the data are not as they must be.
        RunError: the run failed.
    """
    given = {"data": _data(data), "freeze": freeze, "head": head, **settings}
    asked = settings_from(given)
    wanted = time.strftime("outputs/%Y-%m-%d/%H-%M-%S")
    brought = folder is not None and Path(folder).exists()
    place = Path(free_folder(wanted)) if folder is None else Path(folder)
    try:
        return Run(place, run(asked, place, Screen(quiet=quiet)))
    except RequestError:
        if not brought:
            drop_unused(place)
        raise


def load(run: Run | str | Path, raw: bool = False) -> Model:
    """Open a run by its folder, as `latest`, or as `fit` returned it.

    raw: leave the probabilities uncalibrated.

    Raises:
        RequestError: there is no such run, or it has no checkpoint yet.
    """
    return Model(open_run(str(run.folder if isinstance(run, Run) else run)), raw)


def settings_from(settings: Mapping[str, Any]) -> Settings:
    """The settings that keyword arguments amount to: shipped defaults, chosen groups, then single values."""
    groups, values = [], dict[tuple[str, ...], Any]()
    for name, value in settings.items():
        choice = "source" if name == "data" else "name"
        chosen = value.get(choice) if isinstance(value, Mapping) else value
        if name in GROUPS and chosen is not None:
            if not isinstance(chosen, str):
                raise RequestError(
                    f"{name}={chosen}: expected the name of a choice, or a dict of its settings"
                )
            groups.append(f"{name}={chosen}")
        if isinstance(value, Mapping) and name in SECTIONS:
            values.update({(name, key): one for key, one in value.items() if key != choice})
        elif name not in GROUPS:
            values[tuple(name.split(".", 1))] = value
    plain: Any = OmegaConf.to_container(compose_config(groups), resolve=True)
    for (*section, name), value in values.items():
        if section and section[0] not in SECTIONS:
            raise RequestError(unknown_setting(".".join((*section, name))))
        (plain[section[0]] if section else plain)[name] = _plain(value)
    return validate(plain)


def _plain(value: Any) -> Any:
    """A value as a command line could have it: no tuples, paths or numbers of NumPy's."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, list | tuple):
        return [*map(_plain, value)]
    return str(value) if isinstance(value, Path) else value


def _data(data: str | Path | Mapping[str, Any]) -> str | Mapping[str, Any]:
    if isinstance(data, Mapping):
        return {"source": "folder", **data} if "root" in data else data
    names = choices_of("data")
    if data in names:
        return str(data)
    if not Path(data).expanduser().is_dir():
        raise RequestError(f"data={data}: expected a folder of images, or one of {', '.join(names)}")
    return {"source": "folder", "root": str(data)}


def _is_one(pictures: Any) -> bool:
    one_array = isinstance(pictures, np.ndarray) and pictures.ndim < 4
    return one_array or isinstance(pictures, str | Path | Image.Image)


def _image(given: Any, brightness: Brightness) -> RawImage:
    if isinstance(given, str):
        return Path(given)
    if isinstance(given, Image.Image):
        try:
            return np.asarray(on_white(ImageOps.exif_transpose(given), brightness))
        except (OSError, ValueError) as error:  # it is decoded only now
            name = getattr(given, "filename", "") or "a PIL image"
            raise RequestError(f"{name}: expected an image; {error}") from None
    if isinstance(given, np.ndarray) and (
        given.dtype != np.uint8
        or given.shape[2:] not in ((), (3,))
        or given.ndim not in (2, 3)
        or not given.size
    ):
        raise RequestError(
            f"an array {given.shape} of {given.dtype}: expected uint8 of shape (H, W) or (H, W, 3)"
        )
    if not isinstance(given, Path | np.ndarray):
        raise RequestError(f"{type(given).__name__}: expected a path, a PIL image or an array of uint8")
    return given
