"""What in a picture speaks for the answer: Grad-CAM, and input gradients where a model has no feature map."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules import pooling

from finetune.data.augment import Prepare
from finetune.inspection.gradients import vjp
from finetune.saved import Saved

POOLING = (pooling._MaxPoolNd, pooling._AvgPoolNd, pooling._AdaptiveAvgPoolNd, pooling._AdaptiveMaxPoolNd)
BATCH = 16


@dataclass(frozen=True)
class Explained:
    """Pictures explained.

    maps: (N, H, W) in [0, 1], each divided by its largest value; all zero where nothing speaks for the class.
    logits: (N, outputs).
    method: what was done, as it is told.
    """

    maps: Tensor
    logits: Tensor
    method: str


@dataclass(frozen=True)
class Place:
    """Where a forward pass puts out a feature map: at which call of which module, and the map's shape."""

    module: str
    call: int
    shape: tuple[int, ...]


def heatmaps(saved: Saved, pictures: Tensor, classes: Tensor | None = None) -> Explained:
    """What in each picture speaks for a class: Grad-CAM, or input gradients where there is no feature map.

    Grad-CAM (Selvaraju et al. 2017) weights the channels of the last feature map by the mean gradient of the
    class's logit. Input gradients (Simonyan et al. 2014) are the largest of the three channels' at each
    pixel, averaged twice over a sixteenth of the picture's side and cut off at the 99th percentile.

    pictures: uint8 (N, 3, H, W) as `Reader` gives them, of the run's size.
    classes: (N,) indices of outputs; None for the predicted ones.
    """
    sizes = saved.preprocessing
    normalise = Prepare(sizes.crop_size, sizes.mean, sizes.std, "none", 0).normalise
    device = next(saved.network.parameters()).device
    place = last_map(saved.network, torch.zeros(1, 3, sizes.crop_size, sizes.crop_size, device=device))
    maps, logits = [], []
    for start in range(0, len(pictures), BATCH):
        chosen = None if classes is None else classes[start : start + BATCH].to(device)
        inputs = normalise(pictures[start : start + BATCH].to(device))
        heat, answers = (
            grad_cam(saved.network, place, inputs, chosen)
            if place
            else input_gradients(saved.network, inputs, chosen)
        )
        maps.append((heat / heat.amax((1, 2), keepdim=True).clamp(min=1e-12)).cpu())
        logits.append(answers.cpu())
    if place:
        method = f"Grad-CAM at {place.module} ({place.shape[1]} x {place.shape[2]})"
    else:
        method = f"input gradients, as {saved.settings.model} has no last feature map for Grad-CAM"
    return Explained(torch.cat(maps), torch.cat(logits), method)


def last_map(network: nn.Module, example: Tensor) -> Place | None:
    """The last feature map (C, H, H), H > 1, of a forward pass in eval mode, before pooling.

    None where what comes last of all that still tells places apart is no such map, but tokens as in a ViT.
    example: a square picture, (1, 3, S, S).
    """
    outputs: list[tuple[Place, Tensor]] = []
    pooled: list[Tensor] = []  # a container that ends with pooling puts out the same tensor
    names = {module: name for name, module in network.named_modules()}
    calls = dict.fromkeys(names, 0)

    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        calls[module] += 1
        if not isinstance(output, Tensor):
            return
        if isinstance(module, POOLING):
            pooled.append(output)
        elif output.dim() > 2 and output[0, 0].numel() > 1 and not any(output is one for one in pooled):
            outputs.append((Place(names[module], calls[module], tuple(output.shape[1:])), output))

    hooks = [module.register_forward_hook(note) for module in network.modules() if module is not network]
    with torch.no_grad():
        network(example)
    for hook in hooks:
        hook.remove()
    last = outputs[-1][0] if outputs else None
    return last if last and len(last.shape) == 3 and last.shape[1] == last.shape[2] else None


def grad_cam(
    network: nn.Module, place: Place, inputs: Tensor, classes: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Heat (B, H, W), 0 or more, and logits (B, outputs), for inputs (B, 3, H, W)."""
    kept: dict[str, Tensor] = {}

    def of_map(shift: Tensor) -> Tensor:
        with _shifted(network, place, shift, kept):
            kept["logits"] = _constant(network, inputs)
        return _logits_of(kept["logits"], classes)

    # The gradient by what is added to the map is the map's own, and one forward pass gives all.
    shift = torch.zeros(len(inputs), *place.shape, device=inputs.device)
    gradient = vjp(of_map, shift, torch.ones(len(inputs), device=inputs.device))
    weights = gradient.mean((2, 3), keepdim=True)
    heat = (weights * kept["map"]).sum(1, keepdim=True).relu()
    heat = F.interpolate(heat, inputs.shape[2:], mode="bilinear", align_corners=False)[:, 0]
    return heat, kept["logits"].detach()


def input_gradients(network: nn.Module, inputs: Tensor, classes: Tensor | None) -> tuple[Tensor, Tensor]:
    """Heat (B, H, W), 0 or more, and logits (B, outputs), for inputs (B, 3, H, W)."""
    kept: dict[str, Tensor] = {}

    def of_inputs(inputs: Tensor) -> Tensor:
        kept["logits"] = _constant(network, inputs)
        return _logits_of(kept["logits"], classes)

    ones = torch.ones(len(inputs), device=inputs.device)
    gradient = vjp(of_inputs, inputs, ones).abs().amax(1, keepdim=True)
    window = max(inputs.shape[-1] // 16, 1) | 1
    for _ in range(2):  # once leaves the edges of patches to be seen
        gradient = F.avg_pool2d(gradient, window, 1, window // 2, count_include_pad=False)
    heat = gradient[:, 0]
    most = heat.flatten(1).quantile(0.99, 1).view(-1, 1, 1)
    return heat.minimum(most), kept["logits"].detach()


def _constant(network: nn.Module, inputs: Tensor) -> Tensor:
    """The logits with every parameter a constant: the graph begins where something else needs a gradient."""
    constants = {name: parameter.detach() for name, parameter in network.named_parameters()}
    return functional_call(network, constants, (inputs,))


def _logits_of(logits: Tensor, classes: Tensor | None) -> Tensor:
    chosen = logits.argmax(1) if classes is None else classes
    return logits.gather(1, chosen[:, None])[:, 0]


@contextmanager
def _shifted(network: nn.Module, place: Place, shift: Tensor, kept: dict[str, Tensor]) -> Iterator[None]:
    """Add something to a feature map on its way through the network, and keep the map."""
    calls = 0

    def add(module: nn.Module, inputs: Any, output: Tensor) -> Tensor | None:
        nonlocal calls
        calls += 1
        if calls != place.call:
            return None
        kept["map"] = output.detach()
        return output + shift

    hook = network.get_submodule(place.module).register_forward_hook(add)
    try:
        yield
    finally:
        hook.remove()
