"""What the best epoch answers for the pictures it did not train on: predictions.csv."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import numpy as np
from torch import Tensor

from finetune.atomic import write_atomically
from finetune.cells import cells, plain
from finetune.data.dataset import Dataset, Picture
from finetune.errors import RequestError
from finetune.training.metrics import probabilities

FILE = "predictions.csv"


@dataclass(frozen=True)
class Prediction:
    """One answer.

    picture: as `name_of` has it.
    probability: of the answer, with the run's temperature; uncalibrated: without it.
    """

    split: str
    picture: str
    label: str
    predicted: str
    probability: float
    uncalibrated: float

    @property
    def right(self) -> bool:
        """Whether the class predicted is the picture's own."""
        return self.label == self.predicted


def write(
    folder: Path, dataset: Dataset, logits: Mapping[str, Tensor | None], loss: str, temperature: float
) -> None:
    """Write the answers for each side of the split that has logits (N, outputs), in the order of the split.

    Data with label vectors has no single class to answer with, and gets no file.

    Raises:
        RunError: the file cannot be written.
    """
    rows = [
        prediction
        for side, values in logits.items()
        if values is not None and dataset.labels.ndim == 1
        for prediction in _predictions(dataset, side, values, loss, temperature)
    ]
    if rows:
        text = io.StringIO(newline="")
        table = csv.writer(text)
        table.writerow([field.name for field in fields(Prediction)])
        table.writerows(cells(astuple(one)) for one in rows)
        # Names on disk may be bytes that are no UTF-8; they stay what they are.
        content = text.getvalue().encode("utf-8", "surrogateescape")
        write_atomically(folder / FILE, content)


def _predictions(
    dataset: Dataset, side: str, logits: Tensor, loss: str, temperature: float
) -> Iterator[Prediction]:
    classes = dataset.classes
    sure = probabilities(logits, loss, temperature).amax(1).tolist()
    raw = probabilities(logits, loss).amax(1).tolist()
    chosen = logits.argmax(1).tolist()
    for row, index in enumerate(dataset.split[side]):
        picture, answer = dataset.images[index], chosen[row]
        yield Prediction(
            side,
            name_of(picture, int(index)),
            classes[int(dataset.labels[index])],
            classes[answer] if answer < len(classes) else f"output {answer}",
            round(sure[row], 6),
            round(raw[row], 6),
        )


def name_of(picture: Picture, index: int) -> str:
    """A picture's file, its name in an archive or, lacking both, its place in the data set as `#12`."""
    return f"#{index}" if isinstance(picture, np.ndarray) else str(picture)


def read(folder: Path) -> list[Prediction]:
    """What `write` wrote; nothing where there is no file.

    Raises:
        RequestError: the file is damaged.
    """
    path = folder / FILE
    if not path.exists():
        return []
    try:
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            return [
                Prediction(
                    row["split"],
                    row["picture"],
                    row["label"],
                    row["predicted"],
                    float(row["probability"]),
                    float(row["uncalibrated"]),
                )
                for row in map(plain, csv.DictReader(file))
            ]
    except (KeyError, TypeError, ValueError) as error:
        raise RequestError(f"{path}: expected what the run wrote ({type(error).__name__}: {error})") from None
