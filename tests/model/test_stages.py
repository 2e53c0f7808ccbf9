"""What the head reads with `head_features`: against hooks by hand, through the split, and what is refused."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Sequence

import pytest
import torch
import torchvision
from torch import Tensor, nn

from finetune.errors import RequestError
from finetune.model.assemble import Model, ModelConfig, assemble
from finetune.model.boundary import split
from finetune.model.build import build_model
from finetune.model.head import find_head
from finetune.model.stages import read_stages
from finetune.model.tracing import trace
from support.halves import backbone, check, images

# The stages of each, named by hand, and how many numbers the head then reads.
STAGES = {
    "resnet18": (["layer1", "layer2", "layer3"], 960),
    "mobilenet_v3_small": (["features.1", "features.3", "features.8", "features"], 1688),
    "densenet121": ([f"features.denseblock{number}" for number in (1, 2, 3)], 2816),
    "efficientnet_b0": (["features.2", "features.3", "features.5"], 1456),
    "convnext_tiny": (["features.1", "features.3", "features.5", "features"], 2208),
}


def made(name: str = "resnet18", wanted: str | Sequence[str] = "all", size: int = 64, **more: str) -> Model:
    weights = more.get("weights", "random")
    return assemble(ModelConfig(name, weights, ["all"], image_size=size, head_features=wanted), ["a", "b"])


def by_hand(network: nn.Module, stages: Sequence[str], batch: Tensor) -> Tensor:
    """What the modules of a plain network gave last, averaged over the pixels, and what its head reads."""
    found: dict[str, Tensor] = {}

    def note(name: str) -> Callable[..., None]:
        return lambda *call: found.update({name: call[2].mean((2, 3))})

    for name in stages:
        network.get_submodule(name).register_forward_hook(note(name))
    head = network.get_submodule(find_head(network))
    head.register_forward_pre_hook(lambda _, inputs: found.update(head=inputs[0]))
    with torch.no_grad():
        network.eval()(batch)
    return torch.cat([found[name] for name in [*stages, "head"]], 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", STAGES)
def test_the_head_reads_the_pooled_stages_and_they_alone_are_stored(name: str) -> None:
    weights, (stages, width) = "bundled" if name == "resnet18" else "random", STAGES[name]
    model = made(name, weights=weights)
    expected = by_hand(made(name, "last", weights=weights).network, stages, images(2, 64))
    head = model.network.eval().get_submodule(model.head or "")
    halves = split(model.network, model.example)
    assert [crossing.shape for crossing in halves.crossings] == [(width,)]
    assert halves.prefix is not None
    with torch.no_grad():
        torch.testing.assert_close(halves.prefix(images(2, 64)), expected)
        torch.testing.assert_close(model.network(images(2, 64)), head(expected))


@pytest.mark.parametrize(
    ("wanted", "stages", "width"),
    [
        (["layer4", "layer3"], ["layer3"], 768),  # of layer4 the head reads just that already
        (["layer2.0.bn1"], ["layer2.0.bn1"], 640),
        (["conv1", "layer1.1.relu"], ["conv1", "layer1.1.relu"], 640),  # its last call
        (["layer4"], [], 512),
        ("last", [], 512),
    ],
)
def test_modules_by_name(wanted: str | list[str], stages: list[str], width: int) -> None:
    model, plain = made(wanted=wanted), made(wanted="last")
    assert model.network.fc.in_features == width
    assert (type(model.network) is torchvision.models.ResNet) == (not stages)
    expected = by_hand(plain.network, stages, images(2, 64))
    with torch.no_grad():
        torch.testing.assert_close(model.network.eval()(images(2, 64)), model.network.fc(expected))


@pytest.mark.parametrize(
    "kind", ["all", "half", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("norms", "none"))]
)
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
def test_the_halves_do_what_the_model_does(name: str, kind: str) -> None:
    built = backbone(name)
    read_stages(built.network, built.head, "all", images(1, built.size))
    check(built, kind)


@pytest.mark.slow
def test_the_weights_play_no_part_in_which_stages_there_are() -> None:
    for name in ("resnet18", "densenet121", "mobilenet_v3_small"):
        empty = build_model(name, initialised=False)  # zeros, as where a run is opened again
        read_stages(empty, find_head(empty), "all", images(1, 64))
        assert empty.head_stages == made(name).network.head_stages


@pytest.mark.parametrize(
    ("name", "same"), [("resnet18", "all"), ("timm/test_vit", "last"), ("squeezenet1_1", "last")]
)
def test_auto_takes_all_where_there_are_stages(name: str, same: str) -> None:
    auto, expected = made(name, "auto").network, made(name, same).network
    assert {key: one.shape for key, one in auto.state_dict().items()} == {
        key: one.shape for key, one in expected.state_dict().items()
    }
    assert getattr(auto, "head_stages", ()) == getattr(expected, "head_stages", ())


@pytest.mark.slow
def test_copies_pickles_and_names_are_a_plain_models() -> None:
    network = made().network.eval()
    expected = network(images(2, 64))
    for other in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert other.conv1.weight is not network.conv1.weight
        assert torch.equal(other(images(2, 64)), expected)
        assert isinstance(other, torchvision.models.ResNet)
    assert list(network.state_dict()) == list(torchvision.models.resnet18().state_dict())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_a_graph_has_the_hooks_of_the_modules_that_it_keeps_whole() -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    network[0].register_forward_pre_hook(lambda _, inputs: inputs[0] * 2)
    network[1].register_forward_hook(lambda _, inputs, output: output + inputs[0])
    batch = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    traced = trace(network)
    for module in network:
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    linear = network[0](batch * 2)
    torch.testing.assert_close(traced(batch), linear.relu() + linear)


FEW = (
    "{} gives no feature map; there are conv1, bn1, relu, maxpool, layer1, layer2, layer3, layer4, avgpool,"
    " layer1.0, layer1.1, layer2.0 and"
)
STEPS = "expected last, as this model, like transformers, has no stages of maps"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "wanted", "line"),
    [
        ("resnet18", ["layer3", "layer9"], f"head_features=[layer3,layer9]: {FEW.format('layer9')}"),
        ("resnet18", ["fc"], f"head_features=[fc]: {FEW.format('fc')}"),
        ("swin_t", "all", f"head_features=all: {STEPS}"),
        ("swin_t", ["features.0.0"], f"head_features=[features.0.0]: {STEPS}"),
        ("timm/test_vit", "all", f"head_features=all: {STEPS}"),
        ("squeezenet1_1", "all", "head_features=all: expected last, as this model's head is a convolution"),
    ],
)
def test_what_there_is_not_is_told(name: str, wanted: str | list[str], line: str) -> None:
    with pytest.raises(RequestError) as refused:
        made(name, wanted, 160 if "vit" in name else 64)
    assert str(refused.value).startswith(line)
