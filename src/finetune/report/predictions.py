"""What the best epoch answers for the images it did not train on: predictions.csv."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
from torch import Tensor

from finetune.atomic import write_atomically
from finetune.cells import read_table, table_of
from finetune.data.dataset import Dataset, RawImage
from finetune.errors import RequestError
from finetune.training.metrics import probabilities

FILE = "predictions.csv"


@dataclass(frozen=True)
class Prediction:
    """An answer; picture: as `name_of` has it; uncalibrated: the probability without temperature.

    fold: whose model, which was not trained on the image, answered; empty in a run without folds.
    of_label: the calibrated probability of the true class; older files have none.
    """

    split: str
    picture: str
    label: str
    predicted: str
    probability: float
    uncalibrated: float
    fold: str = ""
    of_label: float | None = None

    @property
    def right(self) -> bool:
        return self.label == self.predicted


COLUMNS = [field.name for field in fields(Prediction)]


def write_predictions(
    folder: Path, dataset: Dataset, logits: Mapping[str, Tensor | None], softmax: bool, temperature: float
) -> list[Prediction]:
    """Write the answers for each split with logits (N, outputs), in its order; none for label vectors."""
    found = [
        one
        for split, values in logits.items()
        if values is not None and dataset.labels.ndim == 1
        for one in _predictions(dataset, split, values, softmax=softmax, temperature=temperature)
    ]
    if found:
        rows = [[*asdict(one).values()] for one in found]
        write_atomically(folder / FILE, table_of([COLUMNS, *rows]))
    return found


def _predictions(
    dataset: Dataset, split: str, logits: Tensor, *, softmax: bool, temperature: float
) -> Iterator[Prediction]:
    classes = dataset.classes
    calibrated = probabilities(logits, softmax, temperature)
    raw = probabilities(logits, softmax).amax(1).tolist()
    for row, (index, answer) in enumerate(
        zip(dataset.answered(split), logits.argmax(1).tolist(), strict=True)
    ):
        yield Prediction(
            split=split,
            picture=name_of(dataset.images[index], int(index)),
            label=classes[int(dataset.labels[index])],
            predicted=output_name(classes, answer),
            probability=round(float(calibrated[row].amax()), 6),
            uncalibrated=round(raw[row], 6),
            fold="" if dataset.folds is None else str(dataset.folds[index]),
            of_label=round(float(calibrated[row, dataset.labels[index]]), 6),
        )


def output_name(classes: Sequence[str], output: int) -> str:
    """The class that an output stands for; a head may have more of them than there are classes."""
    return classes[output] if output < len(classes) else f"output {output}"


def name_of(image: RawImage, index: int) -> str:
    """An image's file, its name in an archive or, lacking both, its place in the data set as `#12`."""
    return f"#{index}" if isinstance(image, np.ndarray) else str(image)


def read_predictions(folder: Path) -> list[Prediction]:
    """What `write_predictions` wrote, nothing where there is no file; RequestError where it is damaged."""
    file = folder / FILE
    try:
        return [
            Prediction(
                **{name: row[name] for name in COLUMNS[:4]},
                probability=float(row["probability"]),
                uncalibrated=float(row["uncalibrated"]),
                fold=row.get("fold", ""),
                of_label=float(row["of_label"]) if row.get("of_label") else None,
            )
            for row in read_table(file)
        ]
    except (KeyError, ValueError) as error:
        raise RequestError(f"{file}: expected what the run wrote ({type(error).__name__}: {error})") from None
