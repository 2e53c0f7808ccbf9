"""The formats that `finetune export` writes: a new one is an entry in FORMATS, with what converts to it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from finetune.errors import RunError

if TYPE_CHECKING:  # the command line reads this table for its help, quickly
    from torch import Tensor
    from torch.export import ExportedProgram

    Outputs = Callable[[Tensor], Tensor]
    Convert = Callable[[ExportedProgram, str, dict[str, str]], tuple[bytes, Outputs]]

ONNX_BYTES = 2**31  # what a file of ONNX holds in one piece


@dataclass(frozen=True)
class Format:
    """A format to export to.

    about: for the help. packages: what must be installed for it, as the extra of the format's name.
    convert: a program, the name of its output and texts to store, to the file's content and a function that
        runs it. None: the file holds the weights alone.
    """

    ending: str
    about: str
    convert: Convert | None = None
    packages: tuple[str, ...] = ()


def _as_program(program: ExportedProgram, output: str, text: dict[str, str]) -> tuple[bytes, Outputs]:
    import torch

    with TemporaryDirectory() as folder:
        file = Path(folder) / "model.pt2"
        torch.export.save(program, file, extra_files={f"{name}.json": value for name, value in text.items()})
        return file.read_bytes(), torch.export.load(file).module()


def _as_onnx(program: ExportedProgram, output: str, text: dict[str, str]) -> tuple[bytes, Outputs]:
    import onnxruntime
    import torch

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
    converted.model.metadata_props.update(text)
    stored = converted.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(stored, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"pictures": images.numpy()})[0])

    return stored, run


FORMATS = {
    "safetensors": Format(".safetensors", "a state dict"),
    "onnx": Format(".onnx", "an ONNX model", _as_onnx, ("onnx", "onnxscript", "onnxruntime")),
    "torch": Format(".pt2", "a .pt2 program", _as_program),
}
