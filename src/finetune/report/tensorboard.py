"""A run in TensorBoard, beside its curves: settings, parameters, images, confusion matrix, final metrics."""

from __future__ import annotations

import csv
import io
import json
import math
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
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
from torchvision.utils import make_grid

from finetune.atomic import write_atomically
from finetune.choices.best import deciding
from finetune.config.schema import flat
from finetune.data.dataset import Dataset, RawImage
from finetune.errors import RequestError, shown
from finetune.features.load import SAMPLE
from finetune.model.assemble import Model
from finetune.model.parameters import list_parameters
from finetune.model.preprocessing import Preprocessing
from finetune.report.charts import shortened
from finetune.report.drawings import TILE, confusion_image, image_grid, thumbnails
from finetune.report.predictions import Prediction, name_of, output_name
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
PROJECTOR = f"""embeddings {{
  tensor_name: "features" tensor_path: "projector/tensors.tsv" metadata_path: "projector/metadata.tsv"
  sprite {{ image_path: "projector/sprite.jpg" single_image_dim: [{TILE}, {TILE}] }}
}}"""


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
            self._add_image("images/train", image_grid(model.preprocessing.undo(images), captions))

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

    def show_answers(
        self, answers: Sequence[Prediction], images: Sequence[RawImage], how: Preprocessing, step: int
    ) -> None:
        """Some of the images with their classes and, where they are wrong, what was answered."""
        chosen = np.random.default_rng(0).permutation(len(answers))[:SAMPLE]
        drawn, wrong = [answers[place] for place in chosen], list[str]()
        for one in drawn:
            told = f"→ {shortened(shown(one.predicted), 11)} ({one.probability:.2f})"
            wrong.append("" if one.right else told)
        squares = thumbnails([images[place] for place in chosen], how, 128)
        self._add_image("images/val", image_grid(squares, [one.label for one in drawn], wrong), step)

    def project(
        self, values: Tensor, logits: Tensor, rows: np.ndarray, dataset: Dataset, tiles: Tensor
    ) -> None:
        """What the head reads (N, D) of these images for PROJECTOR, as its first 32 principal components.

        tiles: the images. SummaryWriter.add_embedding would take fifty times as long to write them.
        """
        table, sides = ["class\tpredicted\tsplit\tfile"], dict.fromkeys(dataset.split["val"].tolist(), "val")
        labelled, single = bool(dataset.to_train()), dataset.labels.ndim == 1
        for row, answer in zip(rows.tolist(), logits.argmax(1).tolist(), strict=True):
            label = str(dataset.label_of(row)) if labelled else ""
            predicted = output_name(dataset.classes, answer) if single else ""
            cells = (label, predicted, sides.get(row, "train"), name_of(dataset.images[row], row))
            table.append("\t".join(shown(cell) or "-" for cell in cells))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            directions, lengths, _ = torch.pca_lowrank(values.double(), min(32, *values.shape))
        log = Path(self.writer.log_dir)
        (log / "projector").mkdir(exist_ok=True)
        np.savetxt(log / "projector/tensors.tsv", directions * lengths, "%.4f", "\t")
        (log / "projector/metadata.tsv").write_text("\n".join([*table, ""]), encoding="utf-8")
        side = math.ceil(math.sqrt(len(tiles)))
        # TensorBoard takes other tiles where the whole is no square.
        square = torch.cat([tiles, tiles.new_zeros(side**2 - len(tiles), *tiles.shape[1:])])
        sprite = to_pil_image(make_grid(square, nrow=side, padding=0))
        sprite.save(log / "projector/sprite.jpg", quality=85)
        (log / "projector_config.pbtxt").write_text(PROJECTOR, encoding="utf-8")


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
