"""A linear layer that reads features standardised: a fixed affine map that can be folded into it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from finetune.errors import RequestError
from finetune.model.boundary import Split


class StandardizedLinear(nn.Linear):
    """A linear layer of (x - mean) * scale, with the parameters, and so the names, of the one it replaces.

    mean, scale: (in_features,) of the features, as `statistics` gives them; no part of the state dict.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, layer: nn.Linear, mean: Tensor, scale: Tensor) -> None:
        super().__init__(layer.in_features, layer.out_features, device="meta")
        self.weight, self.bias = layer.weight, layer.bias
        for name, value in (("mean", mean), ("scale", scale)):
            self.register_buffer(name, value.to(layer.weight), persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        return F.linear((input - self.mean) * self.scale, self.weight, self.bias)

    def fold(self) -> None:
        """Take the map into weight and bias: the layer computes the same, and is a plain one."""
        with torch.no_grad():
            weight, bias = folded(self.weight, self.bias, self.mean, self.scale)
            self.weight.copy_(weight)
            self.bias.copy_(bias)
            self.mean.zero_()
            self.scale.fill_(1)


# Of each standardised layer, by name: its parameters as they train, and the map before it.
Raw = dict[str, dict[str, Tensor]]


def standardized_layers(model: nn.Module) -> dict[str, StandardizedLinear]:
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, StandardizedLinear)}


def folded_state(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state of the model, its parameters as they train, as a plain model has it."""
    plain = dict(state)
    for name, raw in raw_tensors(model, state).items():
        plain[f"{name}.weight"], plain[f"{name}.bias"] = folded(**raw)
    return plain


def raw_tensors(model: nn.Module, state: Mapping[str, Tensor]) -> Raw:
    """What of a state a checkpoint must hold beside the plain one to be resumed from."""
    return {
        name: {
            "weight": state[f"{name}.weight"],
            "bias": state[f"{name}.bias"],
            "mean": layer.mean.clone(),
            "scale": layer.scale.clone(),
        }
        for name, layer in standardized_layers(model).items()
    }


@torch.no_grad()
def take_raw(model: nn.Module, raw: Raw) -> None:
    """Put a model's standardised layers back as they were."""
    for name, tensors in raw.items():
        layer = model.get_submodule(name)
        for key, value in tensors.items():
            getattr(layer, key).copy_(value)


def folded(weight: Tensor, bias: Tensor, mean: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Weight (outputs, D) and bias (outputs,) that do to raw features what these do to standardised."""
    exact = [value.cpu().double() for value in (weight, bias, mean, scale)]  # not every GPU has doubles
    whole = exact[0] * exact[3]
    return whole.to(weight), (exact[1] - whole @ exact[2]).to(bias)


def statistics(features: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and 1 / standard deviation of features that come in batches (B, D), 0 where they do not vary.

    RequestError: a feature is infinite or none.
    """
    count, total, squares = 0, torch.zeros(()), torch.zeros(())
    shift: Tensor | None = None
    for batch in features:
        values = batch.double()
        shift = values[0] if shift is None else shift  # or squares of large means would cancel
        values = values - shift
        count, total, squares = count + len(values), total + values.sum(0), squares + values.square().sum(0)
    assert shift is not None
    if not squares.isfinite().all():
        what = "the features of some image are infinite or no numbers: expected finite ones;"
        raise RequestError(f"{what} try precision=32, or other weights")
    mean = total / count
    deviation = (squares / count - mean.square()).clamp(min=0).sqrt()
    varies = deviation > 1e-7 * (mean + shift).abs().clamp(min=1e-30)
    return mean + shift, torch.where(varies, 1 / deviation, 0.0)


def direct_layer(halves: Split) -> str | None:
    """The name of the linear layer that reads the vector that crosses, and alone does; None without one.

    One without a bias that trains could not take the map in, nor may one whose parameters are others', too.
    """
    if not isinstance(halves.suffix, fx.GraphModule) or [len(c.shape) for c in halves.crossings] != [1]:
        return None
    readers = list(next(iter(halves.suffix.graph.nodes)).users)
    if len(readers) != 1 or readers[0].op != "call_module":
        return None
    layer = halves.suffix.get_submodule(str(readers[0].target))
    used = [id(p) for half in halves[:2] if half for _, p in half.named_parameters(remove_duplicate=False)]
    own = (layer.weight, layer.bias) if isinstance(layer, nn.Linear) else (None,)
    fits = all(p is not None and p.requires_grad and used.count(id(p)) == 1 for p in own)
    return str(readers[0].target) if fits else None
