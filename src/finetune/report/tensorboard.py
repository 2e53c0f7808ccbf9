"""A run in TensorBoard, beside its curves: settings, parameters, images, confusion matrix, final metrics."""

from __future__ import annotations

import csv
import io
import json
import time
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.summary.writer import event_file_writer
from tensorboard.summary.writer.record_writer import RecordWriter
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams, image, scalar
from torchvision.utils import make_grid

from finetune.atomic import write_atomically
from finetune.config.schema import flat
from finetune.errors import RequestError
from finetune.model.assemble import Model
from finetune.model.parameters import list_parameters
from finetune.training.metrics import confusion_matrix

# What `Board.start` and `Board.finish` write.
ENDS = (
    "_hparams_/",
    "settings/",
    "parameters/",
    "pictures/",
    "custom_scalars__config__",
    "hp/",
    "confusion/",
    "path",
)
# Train and val on one chart: TensorBoard draws them together only where a layout says so.
LAYOUT = {
    "curves": {
        "loss": ["Multiline", ["loss/train", "loss/val"]],
        "accuracy": ["Multiline", ["accuracy/train", "accuracy/val"]],
        "balanced accuracy": ["Multiline", ["balanced_accuracy/train", "balanced_accuracy/val"]],
    }
}


class _Thread(event_file_writer._AsyncWriterThread):
    """TensorBoard's, but for a traceback where the disk is full: the next call raises the error, too."""

    def run(self) -> None:
        with suppress(OSError):
            super().run()


event_file_writer._AsyncWriterThread = _Thread


class Board:
    """Writes a run's folder `tensorboard/`; figures: take longer to draw than a small training."""

    def __init__(self, folder: Path, figures: bool = True) -> None:
        self.folder, self.figures = folder, figures
        self.writer = SummaryWriter(str(folder / "tensorboard"))
        self.images: Any = None

    def start(
        self, settings: dict[str, Any], model: Model, images: Tensor, like: Board | None = None
    ) -> None:
        """Settings, parameters and some images (B, 3, H, W); like: another board, with the same images."""
        # By hand: SummaryWriter.add_hparams makes a second run and wants the metrics now. It also writes an
        # experiment, which would keep TensorBoard from putting first the settings that differ between runs.
        _, session, _ = hparams(flat(settings), {})
        files = self.writer._get_file_writer()
        files.add_summary(session)
        self.writer.add_text("settings", f"```json\n{json.dumps(settings, indent=2)}\n```")
        table = "| parameter | shape | values | requires_grad |\n|---|---|---:|---|"
        for one in list_parameters(model.network):
            table += "\n| {name} | {shape} | {values:,} | {requires_grad} |".format(**one)
        self.writer.add_text("parameters", table)
        self.writer.add_custom_scalars(LAYOUT)
        self.images = like and like.images
        if self.images is None:
            grid = image_grid(images, model.preprocessing.mean, model.preprocessing.std)
            self.images = image("pictures/train", grid, dataformats="CHW")
        files.add_summary(self.images)

    def finish(
        self, summary: dict[str, Any], logits: Tensor | None, labels: Tensor, classes: Sequence[str]
    ) -> None:
        """The final metrics beside the settings, and the test split's confusion matrix."""
        for split in ("val", "test"):
            for name, value in (summary[split] or {}).items():
                if isinstance(value, float):
                    self.writer.add_scalar(f"hp/{split}_{name}", value, summary["steps"])
        if self.figures and logits is not None and labels.ndim == 1:
            matrix = confusion_matrix(labels, logits.argmax(1), len(classes), logits.shape[1])
            with warnings.catch_warnings():  # of letters that no font here has
                warnings.filterwarnings("ignore", "Glyph .* missing from font")
                figure = confusion_figure(matrix, classes)
                self.writer.add_figure("confusion/test", figure, summary["steps"])
        solution = summary["solution"]
        if self.figures and solution and len(solution["path"]) > 1:
            self.writer.add_figure("path", path_figure(solution), summary["steps"])
        self.writer.close()


def restore_log(folder: Path, step: int, curves: str) -> bool:
    """Make a run's log what it was after a step, in one file, without what `Board` writes at either end.

    Records are read until the first whose checksum is wrong. Points that are missing then are written again.
    Telling TensorBoard to drop what came after the step (`purge_step`) would not: it purges nothing at the
    first restart of a run.

    curves: metrics.csv as it was after that step. Returns: whether none of its points was missing.
    RequestError: a folder has the name of a log.
    """
    log = folder / "tensorboard"
    log.mkdir(exist_ok=True)
    paths = sorted(log.glob("events.out.tfevents.*"))
    events: dict[tuple[str, int], Event] = {}
    for path in paths:
        if path.is_dir():
            raise RequestError(
                f"{path}: expected a log of TensorBoard, not a folder; without it the run goes on"
            )
        for event in map(Event.FromString, RawEventFileLoader(str(path)).Load()):
            for value in event.summary.value:  # torch writes one an event
                if event.step <= step and not value.tag.startswith(ENDS):
                    events.setdefault((value.tag, event.step), event)
    found = len(events)
    for row in csv.DictReader(io.StringIO(curves)):
        at = int(row.pop("step"))
        for tag, text in row.items():
            summary = scalar(tag, float(text))
            events.setdefault((tag, at), Event(wall_time=time.time(), step=at, summary=summary))
    content = io.BytesIO()
    records = RecordWriter(content)
    records.write(Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())
    for event in sorted(events.values(), key=lambda one: one.step):
        records.write(event.SerializeToString())
    write_atomically(paths[0] if paths else log / "events.out.tfevents.0", content.getvalue())
    for path in paths[1:]:
        path.unlink()
    return len(events) == found


def confusion_figure(matrix: np.ndarray, classes: Sequence[str]) -> Figure:
    """The confusion matrix as a figure; shares of each true class as colour, counts as text."""
    size = min(max(4.0, 0.5 * len(classes) + 2), 14)
    figure = Figure(figsize=(size, size), layout="constrained")
    axes = figure.add_subplot()
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="predicted", ylabel="true")
    if len(classes) > 40:
        return figure
    columns = [*classes, "other"][: matrix.shape[1]]
    style: dict[str, Any] = {"rotation": 60, "ha": "right", "rotation_mode": "anchor", "parse_math": False}
    axes.set_xticks(range(len(columns)), columns, **style)
    axes.set_yticks(range(len(classes)), classes, parse_math=False)
    for (row, column), count in np.ndenumerate(matrix):
        if count:
            color = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(count), ha="center", va="center", fontsize=9, color=color)
    return figure


def path_figure(solution: dict[str, Any]) -> Figure:
    figure = Figure(figsize=(8, 3.5), layout="constrained")
    strengths = [point["strength"] for point in solution["path"]]
    for axes, name in zip(figure.subplots(1, 2), ("log_loss", "accuracy"), strict=True):
        axes.semilogx(strengths, [point[name] for point in solution["path"]], marker="o")
        axes.axvline(solution["weight_decay"], color="grey", linestyle=":")
        axes.set(xlabel="weight_decay", title=f"{name.replace('_', '-')} on images not solved for")
    return figure


def image_grid(inputs: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Normalised inputs (B, 3, H, W) as one image in [0, 1], eight in a row, 128 px each at most."""
    images = inputs.cpu().float() * torch.tensor(std).view(3, 1, 1) + torch.tensor(mean).view(3, 1, 1)
    if inputs.shape[-1] > 128:
        images = F.interpolate(images, (128, 128), mode="bilinear", antialias=True)
    return make_grid(images.clamp(0, 1), nrow=8, padding=2, pad_value=1.0)
