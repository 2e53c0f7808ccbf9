"""A trained model for other programs: a state dict, ONNX, or a program of torch.export."""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from torch import Tensor, nn

from finetune.atomic import write_atomically, write_json
from finetune.choices.fields import names_where
from finetune.choices.losses import LOSSES
from finetune.data.dataset import Dataset
from finetune.data.reader import Reader
from finetune.errors import RequestError, RunError
from finetune.evaluation.formats import FORMATS
from finetune.model import staged
from finetune.model.build import OPTIONS
from finetune.model.preprocessing import Preprocessing
from finetune.model.staged import Staged
from finetune.model.statedict import sealed_text
from finetune.runs.open import Saved

if TYPE_CHECKING:
    from finetune.evaluation.formats import Convert

TOLERANCE = 1e-4
EXAMPLES = 16
LOADER = '''

import {library}
from pathlib import Path
from safetensors.torch import load_file


def load(weights: Path = Path(__file__).with_suffix(".safetensors")) -> nn.Module:
    """The trained network, in eval mode: normalised images (B, 3, H, W) to logits."""
    network = {plain}
    network.set_submodule("{head}", {layers})
    add_stages(network, "{head}", {stages})
    network.load_state_dict(load_file(weights))
    return network.eval()
'''


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

    Raises:
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

    A state dict is itself the model: None is returned.
    temperature: of the softmax that ends the graph; None for logits.

    Raises:
        RequestError: the folder cannot be made.
        RunError: the model cannot be exported, differs by more than 1e-4, or a file cannot be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(f"--out={target.parent}: cannot be made: {error.strerror}") from None
    about = {"labels": list(saved.classes), "preprocessing": asdict(saved.preprocessing)}
    convert = FORMATS[format].convert
    if convert is None:
        _write_state_dict(saved, target, about)
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
    return difference


def _write_state_dict(saved: Saved, target: Path, about: dict[str, Any]) -> None:
    """The weights; labels and preprocessing are in two files beside, named after it unless it is `model`.

    No library has a network whose head reads several stages: a .py file beside the weights builds it.
    """
    prefix = "" if target.stem == "model" else f"{target.stem}."  # in a folder there may be several
    for name, value in about.items():
        write_json(target.with_name(f"{prefix}{name}.json"), value)
    text = {**saved.preprocessing.metadata(), "classes": json.dumps(saved.classes)}
    state = {
        name: value.clone(memory_format=torch.contiguous_format)
        for name, value in saved.network.state_dict().items()
    }
    write_atomically(target, safetensors.torch.save(state, sealed_text(state, text)))
    if isinstance(saved.network, Staged):
        write_atomically(target.with_suffix(".py"), _loader(saved, saved.network.head_stages).encode())


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


def loads_into(saved: Saved) -> str:
    """The model that an exported state dict loads into, as one writes it."""
    head, network = saved.network.get_submodule(saved.head), saved.network
    text = _plain(saved, num_classes=isinstance(head, nn.Linear | nn.Conv2d))
    if isinstance(network, Staged):
        stages = ", ".join(network.head_stages)
        return (
            f"what load() in the .py file beside it makes, not into {text}, whose head does not read {stages}"
        )
    if isinstance(head, nn.Sequential):
        layers = ", ".join(map(str, head))
        text += f" with {saved.head} = Sequential({layers})"
    return text


def _loader(saved: Saved, stages: Sequence[str]) -> str:
    """The text of a module whose `load()` gives the network, of torch and the model's library only."""
    head = saved.network.get_submodule(saved.head)
    layers = ", ".join(f"nn.{layer}" for layer in (head if isinstance(head, nn.Sequential) else [head]))
    return inspect.getsource(staged) + LOADER.format(
        library="timm" if saved.settings.model.startswith("timm/") else "torchvision",
        plain=_plain(saved, num_classes=False),
        head=saved.head,
        layers=f"nn.Sequential({layers})" if isinstance(head, nn.Sequential) else layers,
        stages=tuple(stages),
    )


def _plain(saved: Saved, num_classes: bool) -> str:
    """The call that builds the architecture."""
    name, network = saved.settings.model, saved.network
    options: dict[str, Any] = {"num_classes": saved.outputs} if num_classes else {}
    options |= OPTIONS.get(name, {})
    if getattr(network, "image_size", 224) != 224:  # a vision transformer of torchvision
        options["image_size"] = network.image_size
    arguments = [f"{key}={value}" for key, value in options.items()]
    if name.startswith("timm/"):
        return f"timm.create_model({', '.join([repr(name.removeprefix('timm/')), *arguments])})"
    return f"torchvision.models.{name}({', '.join(arguments)})"
