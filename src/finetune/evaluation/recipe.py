"""predict.py, which lies beside an export: the toolkit's own preprocessing as text, and the model's."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from torch import nn

from finetune.cells import FORMULA, cells, like_a_formula
from finetune.choices.losses import LOSSES
from finetune.data import pixels
from finetune.model import staged
from finetune.model.build import OPTIONS, timm_name
from finetune.model.staged import Staged
from finetune.runs.open import Saved

FUTURE = "from __future__ import annotations\n"
RECIPE = '''# Classifies images: python predict.py picture.jpg ...
# Written by finetune export; it needs what it imports, and {model!r} beside it.
{pixels}

import csv
import sys
from collections.abc import Iterable
from pathlib import Path

from PIL import ImageFile

RESIZE, CROP, INTERPOLATION = {resize}, {crop}, {interpolation!r}
MEAN, STD = np.float32({mean}), np.float32({std})
BRIGHTNESS: Brightness = {brightness}
CLASSES = {classes}
if REPAIR := {repair}:  # files that are cut off are shown as far as they go
    ImageFile.LOAD_TRUNCATED_IMAGES = True
FORMULA = re.compile({formula!r})


def prepare(file: Any) -> np.ndarray:
    """An image file, or its path, as the network takes it, (1, 3, H, W)."""
    content = file.read() if hasattr(file, "read") else Path(file).read_bytes()
    if content.startswith(JPEG) and (REPAIR or (not content.endswith(END) and lacks_only_its_end(content))):
        content += END
    if ends_in_zeros(content):
        raise OSError("the file is cut off: zeros stand for the rest of it")
    with Image.open(io.BytesIO(content), formats=tuple(FORMATS)) as image:
        whole = rgb(image, RESIZE, BRIGHTNESS)
    seen = square(whole, RESIZE, CROP, INTERPOLATION, fit={fit!r}, mean=MEAN.tolist())
    return ((np.float32(seen) / 255 - MEAN) / STD).transpose(2, 0, 1)[None]
{network}

def probabilities(file: Any) -> np.ndarray:
    """Of each class, as CLASSES names them."""
    (outputs,) = outputs_of(prepare(file))
    return {activation}


{cells}

if __name__ == "__main__":
    failed = False
    for stream in (sys.stdout, sys.stderr):  # names of any bytes
        stream.reconfigure(encoding="utf-8", errors="surrogateescape")
    rows = csv.writer(sys.stdout, lineterminator="\\n")
    rows.writerow(["path", "class", "probability"])
    for path in sys.argv[1:]:
        try:
            found = probabilities(path)
        except Exception as error:  # there is no telling what a decoder raises
            failed = True
            print(f"{{path}}: {{error}}", file=sys.stderr)
            continue
        rows.writerow(cells([path, CLASSES[found.argmax()], f"{{found.max():.6f}}"]))
    sys.exit(failed)
'''
SOFTMAX = "np.exp(outputs - outputs.max()) / np.exp(outputs - outputs.max()).sum()"
SIGMOID = "1 / (1 + np.exp(-outputs))"
ONNX = """

import onnxruntime

MODEL = Path(__file__).with_name({model!r})
SESSION = onnxruntime.InferenceSession(MODEL, providers=["CPUExecutionProvider"])


def outputs_of(images: np.ndarray) -> np.ndarray:
    return SESSION.run(None, {{"pictures": images}})[0]

"""
TORCH = """

import torch

NETWORK = torch.export.load(Path(__file__).with_name({model!r})).module()
"""
OUTPUTS = """

def outputs_of(images: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return NETWORK(torch.from_numpy(images)).numpy()

"""
STATE_DICT = '''
{staged}
import torch
import {library}
from safetensors.torch import load_file
from torch import nn


def load(weights: Path = Path(__file__).with_name({model!r})) -> nn.Module:
    """The trained network, in eval mode: normalised images (B, 3, H, W) to logits."""
    network = {plain}
    network.set_submodule("{head}", {layers}){add_stages}
    network.load_state_dict(load_file(weights))
    return network.eval()


NETWORK = load()
'''


def recipe(saved: Saved, model: str, softmax: bool) -> str:
    """The text of predict.py for a model's file; softmax: whether its outputs are probabilities."""
    how, ending = saved.preprocessing, model.rpartition(".")[2].lower()
    network = {"onnx": ONNX, "pt2": TORCH + OUTPUTS}.get(ending, STATE_DICT + OUTPUTS)
    activation = SOFTMAX if LOSSES[saved.settings.loss].softmax else SIGMOID
    return RECIPE.format(
        model=model,
        pixels=inspect.getsource(pixels),
        resize=how.resize_size,
        crop=how.crop_size,
        interpolation=how.interpolation,
        mean=list(how.mean),
        fit=how.fit,
        std=list(how.std),
        brightness=dict(how.brightness),
        classes=saved.names,
        repair=how.repair,
        formula=FORMULA.pattern,
        cells="\n\n".join(map(inspect.getsource, (like_a_formula, cells))),
        network=network.format(model=model, **(_network(saved) if "{plain}" in network else {})),
        activation="outputs" if softmax else activation,
    )


def loads_into(saved: Saved) -> str:
    """The model that an exported state dict loads into, as one writes it."""
    head, network = saved.network.get_submodule(saved.head), saved.network
    text = _plain(saved, num_classes=isinstance(head, nn.Linear | nn.Conv2d))
    if isinstance(network, Staged):
        stages = ", ".join(network.head_stages)
        return (
            f"what load() in predict.py beside it makes, not into {text}, whose head does not read {stages}"
        )
    if isinstance(head, nn.Sequential):
        layers = ", ".join(map(str, head))
        text += f" with {saved.head} = Sequential({layers})"
    return text


def _network(saved: Saved) -> dict[str, str]:
    """What builds the network, of torch and the model's library only."""
    head, network = saved.network.get_submodule(saved.head), saved.network
    layers = ", ".join(f"nn.{layer}" for layer in (head if isinstance(head, nn.Sequential) else [head]))
    stages: Sequence[str] = network.head_stages if isinstance(network, Staged) else ()
    add_stages = f'\n    add_stages(network, "{saved.head}", {tuple(stages)})' if stages else ""
    return {
        "library": "timm" if timm_name(saved.settings.model) else "torchvision",
        "plain": _plain(saved, num_classes=False),
        "head": saved.head,
        "layers": f"nn.Sequential({layers})" if isinstance(head, nn.Sequential) else layers,
        "add_stages": add_stages,
        "staged": inspect.getsource(staged).replace(FUTURE, "") if stages else "",
    }


def _plain(saved: Saved, num_classes: bool) -> str:
    """The call that builds the architecture."""
    name, network = saved.settings.model, saved.network
    options: dict[str, Any] = {"num_classes": saved.outputs} if num_classes else {}
    options |= OPTIONS.get(name, {})
    if getattr(network, "image_size", 224) != 224:  # a vision transformer of torchvision
        options["image_size"] = network.image_size
    own = getattr(network, "pretrained_cfg", {}).get("input_size", (3, 0))[1]
    if hasattr(network, "set_input_size") and own != saved.preprocessing.crop_size:
        options["img_size"] = saved.preprocessing.crop_size
    arguments = [f"{key}={value}" for key, value in options.items()]
    if theirs := timm_name(name):
        return f"timm.create_model({', '.join([repr(theirs), *arguments])})"
    return f"torchvision.models.{name}({', '.join(arguments)})"
