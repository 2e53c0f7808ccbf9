"""A run in TensorBoard, beside its curves: settings, parameters, pictures, confusion, final metrics."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.summary.writer.record_writer import RecordWriter
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams, image

from finetune.atomic import write_atomically
from finetune.model.assemble import Model
from finetune.model.parameters import parameters_as_markdown
from finetune.report.figures import confusion_figure, picture_grid
from finetune.training.metrics import confusion_matrix

FINAL = ("hp/", "confusion/")  # what `finish` writes, beside a session's start


class Board:
    """Writes one run's folder `tensorboard/`; `writer` takes the curves.

    figures: whether to draw the confusion matrix, which takes longer than a small training.
    """

    def __init__(self, folder: Path, figures: bool = True) -> None:
        self.folder, self.figures = folder, figures
        self.writer = SummaryWriter(str(folder / "tensorboard"))

    def start(self, settings: dict[str, Any], model: Model, pictures: Tensor | Board) -> None:
        """Settings and parameters as text, and some pictures (B, 3, H, W) as the model sees them.

        pictures: another run's board where they are the same, as compressing them takes a while.
        """
        # By hand: SummaryWriter.add_hparams makes a second run and wants the metrics now. It also writes an
        # experiment, which would keep TensorBoard from putting first the settings that differ between runs.
        _, session, _ = hparams(flat(settings), {})
        files = self.writer._get_file_writer()
        files.add_summary(session)
        self.writer.add_text("settings", f"```json\n{json.dumps(settings, indent=2)}\n```")
        self.writer.add_text("parameters", parameters_as_markdown(model.network))
        if isinstance(pictures, Board):
            self.pictures: Any = pictures.pictures
        else:
            grid = picture_grid(pictures, model.preprocessing.mean, model.preprocessing.std)
            self.pictures = image("pictures/train", grid, dataformats="CHW")
        files.add_summary(self.pictures)

    def finish(
        self, summary: dict[str, Any], logits: Tensor | None, labels: Tensor, classes: Sequence[str]
    ) -> None:
        """The final metrics beside the settings, and the test split's confusion matrix."""
        for side in ("val", "test"):
            numbers = {name: value for name, value in (summary[side] or {}).items() if name != "per_label"}
            for name, value in numbers.items():
                self.writer.add_scalar(f"hp/{side}_{name}", value, summary["steps"])
        if self.figures and logits is not None and labels.ndim == 1:
            matrix = confusion_matrix(labels, logits.argmax(1), len(classes), logits.shape[1])
            figure = confusion_figure(matrix, classes)
            with warnings.catch_warnings():  # of letters that no font here has
                warnings.filterwarnings("ignore", "Glyph .* missing from font")
                self.writer.add_figure("confusion/test", figure, summary["steps"])
        self.writer.close()


def drop_after(folder: Path, step: int) -> None:
    """Take out of a run's log what came after a step, and its final metrics: they are written again.

    Telling TensorBoard to do so (`purge_step`) would not: it purges nothing at the first restart of a run.
    """
    for path in (folder / "tensorboard").glob("events.out.tfevents.*"):
        kept = io.BytesIO()
        records = RecordWriter(kept)
        for record in RawEventFileLoader(str(path)).Load():
            event = Event.FromString(record)
            final = any(value.tag.startswith(FINAL) for value in event.summary.value)
            if event.step <= step and not final:
                records.write(record)
        write_atomically(path, kept.getvalue())


def flat(settings: dict[str, Any], above: str = "") -> dict[str, float | str]:
    """Settings by dotted names, as the HPARAMS page takes them: what is no number as on the command line."""
    found: dict[str, float | str] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            found |= flat(value, f"{above}{key}.")
        elif isinstance(value, list):
            found[above + key] = f"[{','.join(map(str, value))}]"
        elif value is None or isinstance(value, bool):
            found[above + key] = json.dumps(value)
        else:
            found[above + key] = value
    return found
