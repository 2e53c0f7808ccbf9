"""A trained model for other programs: a state dict, ONNX, or a program of torch.export."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from finetune.atomic import write_atomically, write_json
from finetune.data.augment import Prepare
from finetune.data.dataset import Dataset
from finetune.data.images import Reader
from finetune.errors import RequestError, RunError
from finetune.model.build import OPTIONS
from finetune.model.statedict import sealed_text
from finetune.model.weights import Preprocessing
from finetune.saved import Saved

ENDINGS = {"safetensors": ".safetensors", "onnx": ".onnx", "torch": ".pt2"}
TOLERANCE = 1e-4
ONNX_BYTES = 2**31  # what a file of ONNX holds in one piece

Outputs = Callable[[Tensor], Tensor]


class Exported(nn.Module):
    """Normalised pictures (B, 3, H, W) to logits or, with a temperature, to probabilities (B, outputs)."""

    def __init__(self, network: nn.Module, temperature: float | None) -> None:
        super().__init__()
        self.network, self.temperature = network, temperature

    def forward(self, pictures: Tensor) -> Tensor:
        logits = self.network(pictures)
        return logits if self.temperature is None else torch.softmax(logits / self.temperature, 1)


def target_of(saved: Saved, kind: str, out: Path | None, softmax: bool) -> Path:
    """The file to write: `out`, a file or a folder, or `export/model.<ending>` in the run's folder.

    Raises:
        RequestError: the format does not exist, needs packages that are not there, or does not fit the rest.
    """
    if kind not in ENDINGS:
        raise RequestError(f"--format {kind}: expected {', '.join(ENDINGS)}")
    if kind == "onnx" and not all(map(find_spec, ("onnx", "onnxscript", "onnxruntime"))):
        raise RequestError(
            "--format onnx: expected onnx, onnxscript and onnxruntime to be installed:"
            " pip install 'finetune-toolkit[onnx]'"
        )
    if softmax and kind == "safetensors":
        raise RequestError(
            "--softmax: expected --format onnx or torch with it; safetensors holds weights only"
        )
    if softmax and saved.settings.loss != "cross_entropy":
        raise RequestError(
            f"--softmax: expected a run with loss=cross_entropy; the outputs of loss={saved.settings.loss}"
            " are not the logits of classes that exclude each other"
        )
    path = out or saved.folder / "export"
    if path.suffix.lower() == ENDINGS[kind] and not path.is_dir():
        return path
    if path.suffix.lower() in ENDINGS.values():
        raise RequestError(f"--out {out}: expected a folder or a file ending in {ENDINGS[kind]}")
    return path / f"model{ENDINGS[kind]}"


def examples(dataset: Dataset | None, preprocessing: Preprocessing, most: int = 16) -> tuple[Tensor, str]:
    """Inputs to check an export on, and what they are: pictures of the run's data where it is still there.

    Returns: normalised (B, 3, H, W), test pictures first, then validation, then training; else noise.
    """
    size = preprocessing.crop_size
    if dataset is not None:
        read = Reader(dataset.images, preprocessing.resize_size, size, preprocessing.interpolation)
        order = [int(index) for side in ("test", "val", "train") for index in dataset.split[side]]
        decoded = [picture for index in order[:most] if isinstance(picture := read(index), Tensor)]
        if decoded:
            prepare = Prepare(size, preprocessing.mean, preprocessing.std, "none", 0)
            several = f"{len(decoded)} pictures" if len(decoded) > 1 else "a picture"
            return prepare.normalise(torch.stack(decoded)).contiguous(), f"{several} of {dataset.name}"
    noise = torch.randn(most, 3, size, size, generator=torch.Generator().manual_seed(0))
    return noise, f"{most} random inputs"


def write(
    saved: Saved, kind: str, target: Path, inputs: Tensor, temperature: float | None = None
) -> float | None:
    """Write the model and return the largest difference of its outputs from the model's own on `inputs`.

    A state dict is itself the model: None is returned. Its labels and preprocessing are in two files beside
    it, named after it where it is not `model`; the others carry them inside.
    temperature: of the softmax that ends the graph; None for logits.

    Raises:
        RequestError: the folder cannot be made.
        RunError: the model cannot be exported, differs by more than 1e-4, or a file cannot be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(f"--out={target.parent}: cannot be made: {error.strerror}") from None
    about = {"labels.json": list(saved.classes), "preprocessing.json": asdict(saved.preprocessing)}
    if kind == "safetensors":
        own = "" if target.stem == "model" else f"{target.stem}."  # in a folder there may be several
        for name, value in about.items():
            write_json(target.with_name(f"{own}{name}"), value)
        text = {**saved.preprocessing.metadata(), "classes": json.dumps(saved.classes)}
        state = {
            name: value.clone(memory_format=torch.contiguous_format)
            for name, value in saved.network.state_dict().items()
        }
        write_atomically(target, safetensors.torch.save(state, sealed_text(state, text)))
        return None
    model = Exported(saved.network, temperature).requires_grad_(False).eval()
    program = _program(model, inputs.shape[1:])
    text = {name: json.dumps(value) for name, value in about.items()}
    output = "logits" if temperature is None else "probabilities"
    stored, run = _as_onnx(program, output, text) if kind == "onnx" else _as_program(program, text)
    differences = []
    for some in (inputs[:1], inputs):  # the batch's size is free
        with torch.no_grad():
            differences.append(float((run(some) - model(some)).abs().max()))
    largest = float(torch.tensor(differences).max())
    if not largest <= TOLERANCE:  # a NaN is no difference that is small
        raise RunError(
            f"{target}: not written: its outputs differ from the model's by {largest:.1e}, expected"
            f" {TOLERANCE:g} at most"
        )
    write_atomically(target, stored)
    return largest


def _program(model: nn.Module, shape: Sequence[int]) -> torch.export.ExportedProgram:
    """The model as a graph for pictures of a shape (3, H, W) in batches of any size."""
    # The example is stored with the program, so no picture of the user's. One would fix the size at one.
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


def _as_program(program: torch.export.ExportedProgram, text: dict[str, str]) -> tuple[bytes, Outputs]:
    with TemporaryDirectory() as folder:
        file = Path(folder) / "model.pt2"
        torch.export.save(program, file, extra_files=text)
        return file.read_bytes(), torch.export.load(file).module()


def _as_onnx(
    program: torch.export.ExportedProgram, output: str, text: dict[str, str]
) -> tuple[bytes, Outputs]:
    import onnxruntime

    size = sum(value.nbytes for value in program.state_dict.values())
    if size >= ONNX_BYTES:
        raise RunError(f"--format onnx: expected weights under 2 GB, not {size / 1e9:.1f} GB; --format torch")
    for name in ("torch.onnx", "onnxscript", "onnx_ir"):  # what they tell is for their own developers
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        converted = torch.onnx.export(
            program,
            dynamo=True,
            verbose=False,
            input_names=["pictures"],
            output_names=[output],
            dynamic_shapes={"pictures": {0: "batch"}},
        )
    assert converted is not None
    converted.model.metadata_props.update({name.removesuffix(".json"): value for name, value in text.items()})
    stored = converted.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(stored, providers=["CPUExecutionProvider"])

    def run(pictures: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"pictures": pictures.numpy()})[0])

    return stored, run


def loads_into(saved: Saved) -> str:
    """The model that an exported state dict loads into, as one writes it."""
    name, network = saved.settings.model, saved.network
    head = network.get_submodule(saved.head)
    options: dict[str, Any] = {}
    if isinstance(head, nn.Linear | nn.Conv2d):
        options["num_classes"] = saved.outputs
    options |= OPTIONS.get(name, {})
    if getattr(network, "image_size", 224) != 224:  # a vision transformer of torchvision
        options["image_size"] = network.image_size
    arguments = [f"{key}={value}" for key, value in options.items()]
    if name.startswith("timm/"):
        text = f"timm.create_model({', '.join([repr(name.removeprefix('timm/')), *arguments])})"
    else:
        text = f"torchvision.models.{name}({', '.join(arguments)})"
    if isinstance(head, nn.Sequential):
        layers = ", ".join(map(str, head))
        text += f" with {saved.head} = Sequential({layers})"
    return text
