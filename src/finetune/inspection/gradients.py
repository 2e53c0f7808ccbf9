"""Gradients looked at by themselves: vector-Jacobian products, norms by layer, checks against differences."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import functional, gradcheck
from torch.func import functional_call

Function = Callable[..., Tensor]


def vjp(function: Function, inputs: Any, vector: Tensor | None = None) -> Any:
    """The vector-Jacobian product: what `function(*inputs).backward(vector)` would add to each `grad`.

    inputs: a tensor or a tuple of tensors; whether they require gradients does not matter.
    vector: of the output's shape; None where the output is a single number.
    Returns: the vector times the Jacobian, shaped as the inputs; zero where the output depends on none of it.
    """
    return functional.vjp(function, inputs, vector)[1]


def jacobian(function: Function, inputs: Any) -> Any:
    """The derivative of each output by each input: (*output.shape, *input.shape), a tuple for a tuple.

    It takes one vector-Jacobian product for each number of the output: dear where there are many.
    """
    return functional.jacobian(function, inputs)


def layers(model: nn.Module, least: int = 7) -> dict[str, dict[str, nn.Parameter]]:
    """A model's parameters by layer, in the model's order.

    The layers are its modules at the smallest depth that tells `least` or more apart: conv1, bn1, layer1 to
    layer4 and fc of resnet18, features.0 to features.8 and classifier.1 of EfficientNet.
    """
    # A parameter of a module that has modules below it, such as class_token, is a layer of its own.
    innermost = {name for name, module in model.named_modules() if not any(module.children())}
    owners = [
        owner if (owner := name.rpartition(".")[0]) in innermost else name
        for name, _ in model.named_parameters()
    ]

    def cut(depth: int) -> list[str]:
        return [".".join(owner.split(".")[:depth]) for owner in owners]

    deepest = max((owner.count(".") + 1 for owner in owners), default=1)
    depth = next((depth for depth in range(1, deepest) if len(set(cut(depth))) >= least), deepest)
    found: dict[str, dict[str, nn.Parameter]] = {}
    for layer, (name, parameter) in zip(cut(depth), model.named_parameters(), strict=True):
        found.setdefault(layer, {})[name] = parameter
    return found


def gradient_norms(
    model: nn.Module, batch: tuple[Tensor, Tensor], loss: Function = F.cross_entropy
) -> dict[str, float | None]:
    """The Euclidean norm of the loss's gradient by layer (as in `layers`); None where nothing of it trains.

    batch: inputs (B, …) and labels, as the loss takes them.
    The modes are taken as they are. The model is left as it was, running statistics and `.grad` included.
    """
    inputs, labels = batch
    training = {name: p for name, p in model.named_parameters() if p.requires_grad}
    gradients: dict[str, Tensor] = {}
    if training:
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        value = loss(functional_call(model, buffers, (inputs,)), labels)
        found = torch.autograd.grad(value, list(training.values()), materialize_grads=True)
        gradients = dict(zip(training, found, strict=True))
    return {
        layer: norm([gradients[name] for name in parameters if name in gradients])
        for layer, parameters in layers(model).items()
    }


def norm(tensors: list[Tensor]) -> float | None:
    """The Euclidean norm of all values of some tensors together; None where there are none."""
    return float(torch.nn.utils.get_total_norm(tensors)) if tensors else None


def check_gradients(function: Function | nn.Module, *inputs: Tensor) -> bool:
    """Compare autograd's gradient with finite differences in float64, for every input that is no integer.

    function: a loss of logits and labels, a head, or whatever else gives a tensor. Of a module a copy in eval
        mode is checked (no dropout), and the gradients of its parameters with those of its inputs.
    Returns: True.
    Raises:
        torch.autograd.gradcheck.GradcheckError: they differ; it shows both.
    """
    values = [one.detach().double() if one.is_floating_point() else one for one in inputs]
    names: list[str] = []
    if isinstance(function, nn.Module):
        module = deepcopy(function).double().eval()
        names = [name for name, _ in module.named_parameters()]
        values += [parameter.detach() for parameter in module.parameters()]

    def of_all(*values: Tensor) -> Tensor:
        given, own = values[: len(inputs)], values[len(inputs) :]
        if isinstance(function, nn.Module):
            return functional_call(module, dict(zip(names, own, strict=True)), given)
        return function(*given)

    return gradcheck(of_all, [one.requires_grad_() if one.is_floating_point() else one for one in values])
