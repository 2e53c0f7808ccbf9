"""What in an image speaks for an answer: Grad-CAM, and input gradients where a model has no feature map."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules import pooling

from finetune.errors import RequestError
from finetune.model.hooks import ModuleCall, watch_calls
from finetune.runs.open import Saved

POOLING = (pooling._MaxPoolNd, pooling._AvgPoolNd, pooling._AdaptiveAvgPoolNd, pooling._AdaptiveMaxPoolNd)
BATCH = 16


class Explanation(NamedTuple):
    """Maps (N, H, W) in [0, 1], zero where nothing speaks for the class; logits (N, outputs)."""

    maps: Tensor
    logits: Tensor
    method: str


class FeatureMap(NamedTuple):
    """The call of a module that puts out a feature map, and the map's shape (C, H, W)."""

    call: ModuleCall
    shape: tuple[int, ...]


def heatmaps(saved: Saved, images: Tensor, classes: Tensor | None = None) -> Explanation:
    """What in each image speaks for a class: Grad-CAM, or input gradients where there is no feature map.

    images: uint8 (N, 3, H, W) as `Reader` gives them, of the run's size.
    classes: (N,) indices of outputs; None for the predicted ones.
    """
    sizes, network = saved.preprocessing, saved.network
    size, device = sizes.crop_size, next(network.parameters()).device
    feature_map = last_feature_map(network, torch.zeros(1, 3, size, size, device=device))
    maps, logits = [], []
    for start in range(0, len(images), BATCH):
        inputs = sizes.normalise(images[start : start + BATCH].to(device))
        chosen = None if classes is None else classes[start : start + BATCH].to(device)
        if feature_map:
            heat, answers = grad_cam(network, feature_map.call, inputs, chosen)
        else:
            heat, answers = input_gradients(network, inputs, chosen)
        maps.append((heat / heat.amax((1, 2), keepdim=True).clamp(min=1e-12)).cpu())
        logits.append(answers.cpu())
    if feature_map:
        _, height, width = feature_map.shape
        method = f"Grad-CAM at {feature_map.call.name} ({height} x {width})"
    else:
        method = f"input gradients, as {saved.settings.model} has no last feature map for Grad-CAM"
    return Explanation(torch.cat(maps), torch.cat(logits), method)


def last_feature_map(network: nn.Module, example: Tensor) -> FeatureMap | None:
    """The last feature map (C, H, H), H > 1, of a forward pass in eval mode, before pooling.

    None where the last output that still tells positions apart is no such map, but tokens as in a ViT.
    """
    found: list[FeatureMap] = []
    outputs: list[Tensor] = []  # kept alive, or an id would be given twice
    pooled: set[int] = set()  # a container that ends with pooling puts out the same tensor

    def note(call: ModuleCall, output: Any) -> None:
        if not isinstance(output, Tensor):
            return
        outputs.append(output)
        if isinstance(network.get_submodule(call.name), POOLING):
            pooled.add(id(output))
        elif output.dim() > 2 and output[0, 0].numel() > 1 and id(output) not in pooled:
            found.append(FeatureMap(call, tuple(output.shape[1:])))

    with torch.no_grad(), watch_calls(network, after=note):
        network(example)
    if not found:
        return None
    shape = found[-1].shape
    return found[-1] if len(shape) == 3 and shape[1] == shape[2] else None


def grad_cam(
    network: nn.Module, call: ModuleCall, inputs: Tensor, classes: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Grad-CAM (Selvaraju et al. 2017) at the output of a module's call.

    It weights the channels of the feature map by the mean gradient of the class's logit.
    Returns: heat (B, H, W), 0 or more, and logits (B, outputs), for inputs (B, 3, H, W).
    """
    maps: list[Tensor] = []

    def replace(ended: ModuleCall, output: Any) -> Tensor | None:
        if ended != call:
            return None
        maps.append(output.detach().requires_grad_())
        return maps[0].clone()  # what follows may change its input in place

    with watch_calls(network, after=replace):
        logits = _logits(network, inputs)
    weights = _gradient(logits, classes, maps[0]).mean((2, 3), keepdim=True)
    heat = (weights * maps[0].detach()).sum(1, keepdim=True).relu()
    heat = F.interpolate(heat, inputs.shape[2:], mode="bilinear", align_corners=False)[:, 0]
    return heat, logits.detach()


def input_gradients(network: nn.Module, inputs: Tensor, classes: Tensor | None) -> tuple[Tensor, Tensor]:
    """Input gradients (Simonyan et al. 2014) of the class's logit: heat and logits as `grad_cam` gives them.

    The largest of the three channels' at each pixel, averaged twice over a sixteenth of the image's side and
    cut off at the 99th percentile.
    """
    inputs = inputs.detach().requires_grad_()
    logits = _logits(network, inputs.clone())
    gradient = _gradient(logits, classes, inputs).abs().amax(1, keepdim=True)
    window = max(inputs.shape[-1] // 16, 1) | 1
    for _ in range(2):  # after one pass the edges of a ViT's patches still show
        gradient = F.avg_pool2d(gradient, window, 1, window // 2, count_include_pad=False)
    heat = gradient[:, 0]
    most = heat.flatten(1).quantile(0.99, 1).view(-1, 1, 1)
    return heat.minimum(most), logits.detach()


@torch.enable_grad()
def _logits(network: nn.Module, inputs: Tensor) -> Tensor:
    """The logits with every parameter a constant: the graph begins where something else needs a gradient."""
    constants = {name: parameter.detach() for name, parameter in network.named_parameters()}
    return functional_call(network, constants, (inputs,))


def _gradient(logits: Tensor, classes: Tensor | None, by: Tensor) -> Tensor:
    """The gradient of each image's logit of its class, or of its largest logit."""
    if not logits.requires_grad:
        raise RequestError(
            "no heat maps: expected a model that gradients go through; its forward turns them off (no_grad)"
        )
    chosen = logits.argmax(1) if classes is None else classes
    logit = logits.gather(1, chosen[:, None])[:, 0]
    return torch.autograd.grad(logit.sum(), by, materialize_grads=True)[0]
