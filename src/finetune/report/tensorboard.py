"""A run in TensorBoard, beside its curves: settings, parameters, images, confusion matrix, final metrics."""

from __future__ import annotations

import csv
import io
import json
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams.api_pb2 import STATUS_FAILURE, STATUS_SUCCESS
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.summary.writer import event_file_writer
from tensorboard.summary.writer.record_writer import RecordWriter
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams, scalar
from torchvision.transforms.functional import to_pil_image

from finetune.atomic import write_atomically
from finetune.choices.best import deciding
from finetune.config.schema import flat
from finetune.data.dataset import Dataset
from finetune.errors import RequestError, shown
from finetune.model.assemble import Model
from finetune.model.parameters import list_parameters
from finetune.report.charts import shortened
from finetune.report.predictions import name_of
from finetune.runs.sweeps import name_in_sweep
from finetune.training.callbacks import close_log
from finetune.training.metrics import confusion_matrix

# What `Board.start` and `Board.finish` write.
ENDS = (
    "_hparams_/",
    "settings/",
    "parameters/",
    "images/",
    "custom_scalars__config__",
    "Final/",
    "hp/",
    "confusion/",
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
    """Writes a run's log in `tensorboard/`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.writer = SummaryWriter(str(log_folder(folder)))

    def __enter__(self) -> Board:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind and vars(self.writer)["file_writer"]:  # else training has told it
            with suppress(OSError):  # the disk may be what failed
                close_log(self.writer, STATUS_FAILURE)

    def start(
        self, settings: dict[str, Any], model: Model, images: Tensor | None, captions: Sequence[str]
    ) -> None:
        """Settings, parameters and some images (B, 3, H, W), if any, with the names of their classes."""
        # By hand: SummaryWriter.add_hparams makes a second run and wants the metrics now. It also writes an
        # experiment, which would keep TensorBoard from putting first the settings that differ between runs.
        _, session, _ = hparams(flat(settings), {})
        if name := name_in_sweep(self.folder):  # a row's, of its own: sweeps may have jobs alike
            metadata = session.value[0].metadata.plugin_data
            held = HParamsPluginData.FromString(metadata.content)
            held.session_start_info.group_name = f"{name} {self.folder.parent.name}/{self.folder.name}"
            metadata.content = held.SerializeToString()
        self.writer._get_file_writer().add_summary(session)
        self.writer.add_text("settings", f"```json\n{json.dumps(settings, indent=2)}\n```")
        table = "| parameter | shape | values | requires_grad |\n|---|---|---:|---|"
        for one in list_parameters(model.network):
            table += "\n| {name} | {shape} | {values:,} | {requires_grad} |".format(**one)
        self.writer.add_text("parameters", table)
        self.writer.add_custom_scalars(LAYOUT)
        if images is not None:
            grid = image_grid(images, model.preprocessing.mean, model.preprocessing.std, captions)
            self._add_image("images/train", grid)

    def finish(
        self, summary: dict[str, Any], logits: Tensor | None, labels: Tensor, classes: Sequence[str]
    ) -> None:
        """The final metrics beside the settings, and the test split's confusion matrix."""
        for split in ("val", "test"):
            measures = summary[split] or {}
            for name, value in measures.items():
                if isinstance(value, float):  # of all curves HPARAMS shows the first five, capitals first
                    group = "Final" if name == deciding("accuracy", measures) else "hp"
                    self.writer.add_scalar(f"{group}/{split}_{name}", value, summary["steps"])
        if logits is not None and labels.ndim == 1:
            matrix = confusion_matrix(labels, logits.argmax(1), len(classes), logits.shape[1])
            drawn = confusion_image(matrix, classes)
            self._add_image("confusion/test", drawn, summary["steps"])
        close_log(self.writer, STATUS_SUCCESS)

    def _add_image(self, tag: str, pixels: np.ndarray, step: int = 0) -> None:
        """As SummaryWriter does, which takes a third of a second to compress some more."""
        content, (height, width, _) = io.BytesIO(), pixels.shape
        Image.fromarray(pixels).save(content, "PNG", compress_level=1)
        image = Summary.Image(height=height, width=width, colorspace=3)
        image.encoded_image_string = content.getvalue()
        summary = Summary(value=[Summary.Value(tag=tag, image=image)])
        self.writer._get_file_writer().add_summary(summary, step)

    def project(self, values: Tensor, rows: np.ndarray, dataset: Dataset) -> None:
        """What the head reads (N, D) of these images for PROJECTOR, as its first 32 principal components."""
        table, sides = [], dict.fromkeys(dataset.split["val"].tolist(), "val")
        for row in rows.tolist():
            label = str(dataset.label_of(row)) if dataset.to_train() else ""
            cells = (label, sides.get(row, "train"), name_of(dataset.images[row], row))
            table.append([shown(cell) or "-" for cell in cells])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            directions, lengths, _ = torch.pca_lowrank(values, min(32, *values.shape))
        points = (directions * lengths).double().round(decimals=4)
        log, header = Path(self.writer.log_dir), ["class", "split", "file"]
        shutil.rmtree(log / "00000", ignore_errors=True)  # of a run that went on: it would be a second one
        (log / "projector_config.pbtxt").unlink(missing_ok=True)
        self.writer.add_embedding(points, table, tag="features", metadata_header=header)


def log_folder(run: Path) -> Path:
    """Where a run's log is or will be; of a sweep's job in a folder whose name TensorBoard shows."""
    folder = run / "tensorboard"
    found = next(folder.rglob("events.out.tfevents.*"), None)
    return found.parent if found else folder / name_in_sweep(run)


def restore_log(folder: Path, step: int, curves: str) -> bool:
    """Make a run's log what it was after a step, in one file, without what `Board` writes at either end.

    Records are read until the first whose checksum is wrong. Points that are missing then are written again.
    Telling TensorBoard to drop what came after the step (`purge_step`) would not: it purges nothing at the
    first restart of a run.

    curves: metrics.csv as it was after that step. Returns: whether none of its points was missing.
    RequestError: a folder has the name of a log.
    """
    log = log_folder(folder)
    log.mkdir(parents=True, exist_ok=True)
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
            if not text:  # a phase's own
                continue
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


def confusion_image(matrix: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """The confusion matrix (H, W, 3); shares of each true class as colour, counts and names of at most 40."""
    (rows, columns), font = matrix.shape, _font()
    cell = max(1, min(max(30, 240 // columns), 1000 // columns))
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    colours = (255 + shares[..., None] * (np.array([8, 48, 107]) - 255)).astype(np.uint8)
    squares = Image.fromarray(colours).resize((columns * cell, rows * cell), Image.Resampling.NEAREST)
    if columns > 40:
        return np.asarray(squares)
    names = [shortened(shown(name)) for name in [*classes, "other"][:columns]]
    margin = int(max(map(font.getlength, [*names, "predicted"]))) + 12
    image = Image.new("RGB", (margin + columns * cell, margin + rows * cell), "white")
    turned = image.rotate(-90, expand=True)  # to write the names of columns from below
    for place, name in enumerate(names):
        middle = margin + (place + 0.5) * cell
        ImageDraw.Draw(turned).text((turned.width - margin + 6, middle), name, "black", font, anchor="lm")
    image = turned.rotate(90, expand=True)
    image.paste(squares, (margin, margin))
    draw = ImageDraw.Draw(image)
    draw.text((6, 6), "true /\npredicted", "grey", font)
    for place, name in enumerate(names[:rows]):
        draw.text((margin - 6, margin + (place + 0.5) * cell), name, "black", font, anchor="rm")
    for row, column in np.argwhere(matrix):
        middle = (margin + (column + 0.5) * cell, margin + (row + 0.5) * cell)
        ink = "white" if shares[row, column] > 0.5 else "black"
        draw.text(middle, str(matrix[row, column]), ink, font, anchor="mm")
    return np.asarray(image)


def image_grid(
    inputs: Tensor, mean: Sequence[float], std: Sequence[float], captions: Sequence[str]
) -> np.ndarray:
    """Normalised inputs (B, 3, H, W), eight in a row, 128 px each, with a line below each: (H, W, 3)."""
    images = inputs.cpu().float() * torch.tensor(std).view(3, 1, 1) + torch.tensor(mean).view(3, 1, 1)
    grid = Image.new("RGB", (8 * 132, -(-len(images) // 8) * 150), "white")
    for place, (one, caption) in enumerate(zip(images.clamp(0, 1), captions, strict=True)):
        left, top = place % 8 * 132, place // 8 * 150
        grid.paste(to_pil_image(one).resize((128, 128)), (left, top))
        text = shortened(shown(caption), 18)
        ImageDraw.Draw(grid).text((left, top + 130), text, "black", _font())
    return np.asarray(grid)


def _font() -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), 13)
