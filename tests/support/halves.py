"""A network, what of it is frozen, and whether its halves together do what it does."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torchvision
from torch import Tensor, nn

from finetune.errors import RequestError
from finetune.model.boundary import Split, split
from finetune.model.freeze import Frozen, freeze
from finetune.model.head import find_head, replace_head

MODELS = torchvision.models
# The smallest image that a family takes, where that is not 32 px.
SIZES = {"alexnet": 64, "inception": 75, "maxvit": 224, "vit_b_32": 64, "vit_l_32": 64, "vit_h_14": 28}
SMALL: dict[str, Callable[[], nn.Module]] = {  # by themselves these families begin large
    "small maxvit": lambda: MODELS.MaxVit((32, 32), 8, 1, [8, 8, 16, 16], [1, 1, 1, 2], 8, 0.2),
    "small swin": lambda: MODELS.SwinTransformer(
        [4, 4], 16, [2, 2], [2, 2], [2, 2], stochastic_depth_prob=0.2
    ),
    "small vit": lambda: MODELS.VisionTransformer(32, 8, 3, 2, 16, 32, dropout=0.1, attention_dropout=0.1),
}


@dataclass
class Backbone:
    network: nn.Module
    head: str
    size: int

    def freeze(self, *patterns: str) -> Frozen:
        return freeze(self.network, patterns, self.head, images(1, self.size))

    def freeze_kind(self, kind: str) -> Frozen:
        if kind == "half":
            return self.freeze(f"through:{middle(self.network, images(1, self.size))}")
        if kind == "norms":
            try:
                return self.freeze("all", "-@norm")
            except RequestError:  # AlexNet and SqueezeNet have none
                return self.freeze("all", "-@bias")
        return self.freeze(kind)


def images(number: int, size: int) -> Tensor:
    return torch.randn(number, 3, size, size, generator=torch.Generator().manual_seed(number))


def middle(network: nn.Module, example: Tensor) -> str:
    """The module that holds the middle parameter in order of execution."""
    order: list[str] = []
    hooks = [
        module.register_forward_pre_hook(lambda *_, name=name: order.append(name))
        for name, module in network.named_modules()
        if list(module.parameters(recurse=False))
    ]
    with torch.no_grad():
        network.eval()(example)
    for hook in hooks:
        hook.remove()
    return order[len(order) // 2]


def backbone(name: str) -> Backbone:
    if name in SMALL:
        return with_head(SMALL[name](), 32)
    size = next((size for prefix, size in SIZES.items() if name.startswith(prefix)), 32)
    extra = {"image_size": size} if name.startswith("vit") else {}
    if name in ("googlenet", "inception_v3"):
        extra = {"aux_logits": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        network = torchvision.models.get_model(name, weights=None, **extra)
    return with_head(network, size)


def with_head(network: nn.Module, size: int) -> Backbone:
    place = find_head(network)
    replace_head(network, place, 5)
    return Backbone(network, place, size)


def check(built: Backbone, kind: str) -> None:
    frozen = built.freeze_kind(kind)
    network = built.network
    before = {name: value.clone() for name, value in network.named_buffers()}
    modes = [module.training for module in network.modules()]
    names = [set(vars(module)) for module in network.modules()]
    random_state = torch.get_rng_state()

    parts = split(network, images(1, built.size))

    assert torch.equal(random_state, torch.get_rng_state())
    assert modes == [module.training for module in network.modules()]
    assert names == [set(vars(module)) for module in network.modules()]
    assert_same(before, dict(network.named_buffers()), rtol=0, atol=0)
    trains = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    if kind == "none" or "features.0.bias" in trains:
        assert parts.prefix is None
        assert parts.suffix is network
        return
    assert parts.prefix is not None
    assert {id(p) for p in parts.suffix.parameters()} <= {id(p) for p in network.parameters()}
    batch = images(4, built.size)
    equal_in_train_mode(network, parts, batch)

    network.eval()
    with torch.no_grad():
        whole = network(batch)
        stored = parts.prefix(batch)
        assert_same({"out": whole}, {"out": parts.suffix(stored)})
        three = tuple(part[:3] for part in stored) if isinstance(stored, tuple) else stored[:3]
        # other batches sum in another order; the nets here are untrained and amplify that
        scale = float(whole.abs().max())
        assert_same({"out": whole[:3]}, {"out": parts.suffix(three)}, rtol=1e-3, atol=1e-4 * scale)
    network.train()
    frozen.hold(network)


def equal_in_train_mode(network: nn.Module, parts: Split, batch: Tensor) -> None:
    before = {name: value.clone() for name, value in network.named_buffers()}
    whole = step(network, network, batch)
    for name, value in network.named_buffers():
        value.copy_(before[name])

    def halves(batch: Tensor) -> Tensor:
        assert parts.prefix is not None
        stored = parts.prefix(batch)
        tensors = stored if isinstance(stored, tuple) else (stored,)
        kept = [tensor.clone() for tensor in tensors]
        assert not any(tensor.requires_grad for tensor in tensors)
        assert [tuple(tensor.shape[1:]) for tensor in tensors] == [shape for _, shape, _ in parts.crossings]
        out = parts.suffix(stored)
        assert all(map(torch.equal, kept, tensors)), "the suffix wrote into what is stored"
        return out

    assert_same(whole, step(network, halves, batch))


def step(network: nn.Module, function: Callable[[Tensor], Tensor], batch: Tensor) -> dict[str, Tensor]:
    """The output, every gradient and every buffer after one step forward and back."""
    network.zero_grad()
    torch.manual_seed(3)
    out = function(batch)
    (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
    gradients = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    network.zero_grad()
    return {"out": out.detach(), **gradients, **{name: b.clone() for name, b in network.named_buffers()}}


def assert_same(
    expected: dict[str, Tensor], got: dict[str, Tensor], rtol: float = 1e-5, atol: float = 1e-7
) -> None:
    torch.testing.assert_close(got, expected, rtol=rtol, atol=atol)


class Toy(nn.Module):
    """`a` and `b` are frozen, `c` trains; what is done with them is given."""

    def __init__(self, function: Callable[["Toy", Tensor], Tensor], trains: Sequence[str] = ("c",)) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(3, 4, 1) for _ in range(3))
        self.d = nn.Conv2d(4, 4, 1)
        self.token = nn.Parameter(torch.randn(4, 1, 1))
        self.function = function
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name.split(".")[0] in trains)

    def forward(self, image: Tensor) -> Tensor:
        return self.function(self, image)


def check_toy(function: Callable[[Toy, Tensor], Tensor], *trains: str) -> Split:
    torch.manual_seed(0)
    toy = Toy(function, trains)
    parts = split(toy, images(5, 4))
    for number in (1, 2, 3):
        equal_in_train_mode(toy, parts, images(number, 4))
    return parts
