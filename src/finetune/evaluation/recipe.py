"""predict.py, which lies beside an export: the toolkit's own preprocessing as text, and the model's."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from finetune.cells import FORMULA, cells, like_a_formula
from finetune.choices.losses import LOSSES
from finetune.data import pixels
from finetune.model import staged
from finetune.model.build import OPTIONS, timm_name
from finetune.model.staged import Staged
from finetune.report.templates import template
from finetune.runs.open import Saved

RUNS = (".onnx", ".pt2", ".safetensors")  # what predict.py can run
FUTURE = "from __future__ import annotations\n"


def recipe(saved: Saved, model: str, is_probability: bool) -> str:
    """The text of predict.py for a model's file; is_probability: whether its outputs are probabilities."""
    kind = model.rpartition(".")[2].lower()
    return template("predict.py.jinja").render(
        model=model,
        kind=kind,
        pixels=inspect.getsource(pixels),
        how=saved.preprocessing,
        classes=saved.names,
        formula=FORMULA.pattern,
        cells="\n\n".join(map(inspect.getsource, (like_a_formula, cells))),
        is_probability=is_probability,
        softmax=LOSSES[saved.settings.loss].softmax,
        **({} if kind in ("onnx", "pt2") else _network(saved)),
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


def _network(saved: Saved) -> dict[str, Any]:
    """What builds the network, of torch and the model's library only."""
    head, network = saved.network.get_submodule(saved.head), saved.network
    layers = ", ".join(f"nn.{layer}" for layer in (head if isinstance(head, nn.Sequential) else [head]))
    return {
        "library": "timm" if timm_name(saved.settings.model) else "torchvision",
        "plain": _plain(saved, num_classes=False),
        "head": saved.head,
        "layers": f"nn.Sequential({layers})" if isinstance(head, nn.Sequential) else layers,
        "stages": tuple(network.head_stages) if isinstance(network, Staged) else (),
        "staged": inspect.getsource(staged).replace(FUTURE, ""),
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
