"""A trained model for other programs: a state dict, ONNX, or a program of torch.export."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from torch import Tensor, nn

from finetune.atomic import make_out, write_atomically, write_json
from finetune.choices.fields import names_where
from finetune.choices.given import is_given
from finetune.choices.losses import LOSSES
from finetune.data.dataset import Dataset
from finetune.data.reader import Reader
from finetune.errors import RequestError, RunError
from finetune.evaluation.formats import FORMATS
from finetune.evaluation.recipe import RUNS, recipe
from finetune.model.build import brought
from finetune.model.preprocessing import Preprocessing
from finetune.model.statedict import sealed_text
from finetune.runs.open import Saved

if TYPE_CHECKING:
    from finetune.evaluation.formats import Convert

TOLERANCE = 1e-4
EXAMPLES = 16


class Exported(nn.Module):
    """Normalised images (B, 3, H, W) to logits or, with a temperature, to probabilities (B, outputs)."""

    def __init__(self, network: nn.Module, temperature: float | None) -> None:
        super().__init__()
        self.network, self.temperature = network, temperature

    def forward(self, pictures: Tensor) -> Tensor:
        logits = self.network(pictures)
        return logits if self.temperature is None else torch.softmax(logits / self.temperature, 1)


def export_target(saved: Saved, format: str, out: Path | None, softmax: bool) -> Path:
    """The file to write: `out`, a file or a folder, or `export/model.<ending>` in the run's folder.

    RequestError: the format does not exist, needs packages that are not there, or does not fit the rest.
    """
    if format not in FORMATS:
        raise RequestError(f"--format {format}: expected {', '.join(FORMATS)}")
    wanted = FORMATS[format]
    if not all(map(find_spec, wanted.packages)):
        raise RequestError(
            f"--format {format}: expected {', '.join(wanted.packages[:-1])} and {wanted.packages[-1]} to be"
            f" installed: pip install 'finetune-toolkit[{format}]'"
        )
    own = {"model": brought(saved.settings.model), "head": is_given(saved.settings.head)}
    if wanted.convert is None and (key := next((key for key, mine in own.items() if mine), None)):
        told = f"expected a format that holds the model, too, as {key}={getattr(saved.settings, key)} is"
        raise RequestError(f"--format {format}: {told} your own")
    if softmax and wanted.convert is None:
        others = " or ".join(name for name, one in FORMATS.items() if one.convert)
        raise RequestError(f"--softmax: expected --format {others} with it; {format} holds weights only")
    if softmax and not LOSSES[saved.settings.loss].calibrates:
        expected = names_where(LOSSES, lambda entry: entry.calibrates)
        raise RequestError(
            f"--softmax: expected a run with loss={expected}; the outputs of loss={saved.settings.loss}"
            " are not the logits of classes that exclude each other"
        )
    path = out or saved.folder / "export"
    ending = path.suffix.lower()
    if ending == wanted.ending and not path.is_dir():
        return path
    if ending in [one.ending for one in FORMATS.values()]:
        raise RequestError(f"--out {out}: expected a folder or a file ending in {wanted.ending}")
    return path / f"model{wanted.ending}"


def example_inputs(dataset: Dataset | None, preprocessing: Preprocessing) -> tuple[Tensor, str]:
    """Inputs to check an export on, and what they are: images of the run's data where it is still there.

    Returns: normalised (B, 3, H, W), test images first, then validation, then training; else noise.
    """
    if dataset is not None:
        read = Reader(dataset.images, preprocessing)
        order = [int(index) for split in ("test", "val", "train") for index in dataset.split[split]]
        decoded = [image for index in order[:EXAMPLES] if isinstance(image := read(index), Tensor)]
        if decoded:
            several = f"{len(decoded)} images" if len(decoded) > 1 else "an image"
            return preprocessing.normalise(torch.stack(decoded)).contiguous(), f"{several} of {dataset.name}"
    shape = (EXAMPLES, 3, preprocessing.crop_size, preprocessing.crop_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)), f"{EXAMPLES} random inputs"


def write_export(
    saved: Saved, format: str, target: Path, inputs: Tensor, temperature: float | None = None
) -> float | None:
    """Write the model and return the largest difference of its outputs from the model's own on `inputs`.

    A state dict is itself the model: None is returned. A script beside it, predict.py, classifies
    images, where it can run such a file.
    temperature: of the softmax that ends the graph; None for logits.
    RequestError: the folder cannot be made, or has a predict.py of somebody's own.
    RunError: the model cannot be exported, differs by more than 1e-4, or a file cannot be written.
    """
    make_out(target.parent)
    prefix = "" if target.stem == "model" else f"{target.stem}."  # in a folder there may be several
    script = target.with_name(f"{prefix}predict.py")
    if script.exists() and b"# Written by finetune export" not in script.read_bytes()[:500]:
        raise RequestError(f"{script}: expected none but one of finetune's; it is somebody's own")
    about = {"labels": list(saved.classes), "preprocessing": asdict(saved.preprocessing)}
    convert = FORMATS[format].convert
    if convert is None:
        _write_state_dict(saved, target, {f"{prefix}{name}.json": value for name, value in about.items()})
        _write_script(saved, target, script, temperature)
        return None
    model = Exported(saved.network, temperature).requires_grad_(False).eval()
    text = {name: json.dumps(value) for name, value in about.items()}
    content, difference = _converted(model, convert, text, inputs)
    if not difference <= TOLERANCE:  # a NaN is no difference that is small
        raise RunError(
            f"{target}: not written: its outputs differ from the model's by {difference:.1e}, expected"
            f" {TOLERANCE:g} at most"
        )
    write_atomically(target, content)
    _write_script(saved, target, script, temperature)
    return difference


def _write_script(saved: Saved, target: Path, script: Path, temperature: float | None) -> None:
    if target.suffix.lower() not in RUNS:
        return
    text = recipe(saved, target.name, is_probability=temperature is not None)
    write_atomically(script, text.encode())


def _write_state_dict(saved: Saved, target: Path, about: dict[str, Any]) -> None:
    """The weights, and files of these names with labels and preprocessing beside them."""
    for name, value in about.items():
        write_json(target.with_name(name), value)
    text = {**saved.preprocessing.metadata(), "classes": json.dumps(saved.classes)}
    state = {
        name: value.clone(memory_format=torch.contiguous_format)
        for name, value in saved.network.state_dict().items()
    }
    write_atomically(target, safetensors.torch.save(state, sealed_text(state, text)))


def _converted(
    model: Exported, convert: Convert, text: dict[str, str], inputs: Tensor
) -> tuple[bytes, float]:
    """The file's content, and how far its outputs are from the model's on one input and on all."""
    output = "logits" if model.temperature is None else "probabilities"
    content, run = convert(_program(model, inputs.shape[1:]), output, text)
    with torch.no_grad():
        apart = [(run(some) - model(some)).abs().max() for some in (inputs[:1], inputs)]
    return content, float(torch.stack(apart).max())


def _program(model: nn.Module, shape: Sequence[int]) -> torch.export.ExportedProgram:
    """The model as a graph for images of a shape (3, H, W) in batches of any size."""
    # The example is stored with the program, so no image of the user's. One would fix the size at one.
    pair = torch.zeros(2, *shape)
    free = {"pictures": {0: torch.export.Dim.DYNAMIC}}
    model = model.to(memory_format=torch.contiguous_format)
    try:
        program = torch.export.export(model, (pair,), dynamic_shapes=free)
    except (RuntimeError, ValueError) as error:  # whatever of Python a graph cannot hold
        line = (str(error).splitlines() or [""])[0]
        raise RunError(f"this model has no graph for a batch of any size: {line}") from None
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # the paths of this machine are nobody's business
    return program
