"""Groups hold exactly what trains; schedules are PyTorch's own, as functions of the step."""

import copy
import itertools
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler
from torchvision.models import get_model

from finetune.choices.optimizers import SGD
from finetune.choices.schedules import SCHEDULES, Span
from finetune.training import optim

OPTIONS = SGD(
    name="sgd",
    lr=0.1,
    momentum=0.9,
    nesterov=False,
    weight_decay=0.01,
    backbone_lr_factor=0.5,
    layer_decay=1,
    decay_norm_and_bias=False,
)


def settings(**changes: float) -> SGD:
    return OPTIONS.model_copy(update=changes)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = {
        "conv": nn.Conv2d(3, 4, 3),
        "bn": nn.BatchNorm2d(4),
        "flat": nn.Flatten(),
        "fc": nn.Linear(36, 5),
    }
    net = nn.Sequential()
    for name, layer in layers.items():
        net.add_module(name, layer)
    return net


def names(net: nn.Module, groups: list[dict]) -> dict[str, set[str]]:
    known = {id(p): name for name, p in net.named_parameters()}
    return {group["name"]: {known[id(p)] for p in group["params"]} for group in groups}


def test_groups_by_part_and_decay() -> None:
    net = network()
    groups = optim.parameter_groups(net, "fc", OPTIONS)
    assert names(net, groups) == {
        "backbone": {"conv.weight"},
        "backbone_without_decay": {"conv.bias", "bn.weight", "bn.bias"},
        "head": {"fc.weight"},
        "head_without_decay": {"fc.bias"},
    }
    assert {g["name"]: (g["lr"], g["weight_decay"]) for g in groups} == {
        "backbone": (0.05, 0.01),
        "backbone_without_decay": (0.05, 0.0),
        "head": (0.1, 0.01),
        "head_without_decay": (0.1, 0.0),
    }


def test_decay_of_norms_and_biases_when_asked() -> None:
    net = network()
    groups = optim.parameter_groups(net, "fc", settings(decay_norm_and_bias=True))
    assert {g["name"]: (len(g["params"]), g["weight_decay"]) for g in groups} == {
        "backbone": (4, 0.01),
        "head": (2, 0.01),
    }


def test_no_decay_no_groups_for_it() -> None:
    groups = optim.parameter_groups(network(), "fc", settings(weight_decay=0))
    assert [g["name"] for g in groups] == ["backbone", "head"]


def test_a_kept_head_is_backbone() -> None:
    assert {g["name"] for g in optim.parameter_groups(network(), None, OPTIONS)} == {
        "backbone",
        "backbone_without_decay",
    }


def test_a_head_is_told_by_its_whole_name() -> None:
    net = nn.Sequential()
    net.add_module("fc", nn.Linear(2, 2))
    net.add_module("fc2", nn.Linear(2, 2))
    found = names(net, optim.parameter_groups(net, "fc", settings(weight_decay=0)))
    assert found == {"head": {"fc.weight", "fc.bias"}, "backbone": {"fc2.weight", "fc2.bias"}}


def test_groups_go_by_identity() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))
    net[1].load_state_dict(net[0].state_dict())  # equal values, other parameters
    net[2].weight = net[0].weight  # the same parameter twice
    net[0].bias.requires_grad_(False)
    held = [p for group in optim.parameter_groups(net, None, OPTIONS) for p in group["params"]]
    expected = [net[0].weight, net[1].weight, net[1].bias, net[2].bias]
    assert sorted(map(id, held)) == sorted(map(id, expected))


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_equals_the_optimiser_over_all_parameters(weight_decay: float) -> None:
    """The notebooks hand SGD every parameter: the gradient of a frozen one is None, so it is passed over."""
    ours, theirs = network().eval(), network().eval()
    for net in (ours, theirs):
        net.conv.requires_grad_(False)
        net.bn.requires_grad_(False)
    groups = optim.parameter_groups(
        ours,
        "fc",
        settings(lr=0.01, weight_decay=weight_decay, backbone_lr_factor=1.0, decay_norm_and_bias=True),
    )
    optimizers = (
        (ours, optim.create_optimizer("sgd", groups, momentum=0.9, nesterov=False)),
        (
            theirs,
            torch.optim.SGD(theirs.parameters(), lr=1e-2, momentum=0.9, weight_decay=weight_decay),
        ),
    )
    before = copy.deepcopy(ours.state_dict())
    for step in range(5):
        x = torch.randn(8, 3, 5, 5, generator=torch.Generator().manual_seed(step))
        for net, optimizer in optimizers:
            optimizer.zero_grad()
            net(x).square().sum().backward()
            optimizer.step()
    after = ours.state_dict()
    assert all(torch.equal(after[name], value) for name, value in theirs.state_dict().items())
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"fc.weight", "fc.bias"}


def test_each_layer_has_a_rate_of_its_own() -> None:
    net = get_model("resnet18", weights=None)
    groups = optim.parameter_groups(net, "fc", settings(layer_decay=0.5, backbone_lr_factor=1))
    rates = {name: group["lr"] for group in groups for name in names(net, [group])[group["name"]]}
    assert rates["fc.weight"] == 0.1
    assert rates["layer4.1.conv2.weight"] == rates["layer4.1.bn2.bias"] == 0.05
    assert rates["layer4.0.conv2.weight"] == 0.025
    assert rates["conv1.weight"] == rates["bn1.weight"] == 0.1 * 0.5**9


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "efficientnet_lite0", "test_convnext"])
def test_layers_have_timms_rates(name: str) -> None:
    timm = pytest.importorskip("timm")
    net = timm.create_model(name)
    from timm.optim import param_groups_layer_decay

    theirs = param_groups_layer_decay(net, layer_decay=0.75)
    scales = {id(p): group["lr_scale"] for group in theirs for p in group["params"]}
    head = net.pretrained_cfg["classifier"]
    ours = optim.parameter_groups(net, head, settings(lr=1, layer_decay=0.75, backbone_lr_factor=1))
    rates = {id(p): group["lr"] for group in ours for p in group["params"]}
    assert rates == pytest.approx(scales, rel=1e-6)


def factors(scheduler: type, total: int, **options: object) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    made = scheduler(optimizer, **options)
    seen = []
    for _ in range(total):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        made.step()
    return seen


@pytest.mark.parametrize("total", [7, 40, 333])
def test_cosine_is_pytorchs(total: int) -> None:
    ours = optim.create_schedule("cosine", Span(total, 10))
    expected = factors(lr_scheduler.CosineAnnealingLR, total, T_max=total)
    assert [ours(i) for i in range(total)] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("total", [7, 40, 333])
def test_onecycle_is_pytorchs(total: int) -> None:
    ours = optim.create_schedule("onecycle", Span(total, 10), warmup_epochs=3)
    with warnings.catch_warnings():  # it takes one step more than there are
        warnings.simplefilter("ignore")
        expected = factors(
            lr_scheduler.OneCycleLR, total - 1, max_lr=1.0, total_steps=total, cycle_momentum=False
        )
    assert [ours(i) for i in range(total - 1)] == pytest.approx(expected, abs=1e-12)
    assert ours(total - 1) == pytest.approx(1 / 250_000)


def test_step_is_pytorchs_epoch_by_epoch() -> None:
    ours = optim.create_schedule("step", Span(60, 4, step_epochs=3, step_gamma=0.5))
    expected = factors(lr_scheduler.StepLR, 15, step_size=3, gamma=0.5)
    assert [ours(i) for i in range(60)] == pytest.approx(
        list(itertools.chain.from_iterable([rate] * 4 for rate in expected))
    )


@pytest.mark.parametrize("name", ["constant", "cosine", "step"])
def test_warmup_rises_evenly_and_then_the_schedule_begins(name: str) -> None:
    ours = optim.create_schedule(name, Span(30, 5, step_epochs=1), warmup_epochs=2)
    assert [ours(i) for i in range(11)] == pytest.approx([(i + 1) / 11 for i in range(11)])
    rest = optim.create_schedule(name, Span(20, 5, step_epochs=1))
    assert [ours(i) for i in range(10, 30)] == pytest.approx([rest(i) for i in range(20)])


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_stay_within_bounds_for_any_length(name: str) -> None:
    for total in range(1, 12):
        ours = optim.create_schedule(name, Span(total, 3), warmup_epochs=1)
        assert all(0 <= ours(i) <= 1 for i in range(total + 2))


def test_adamw_takes_groups_with_their_own_rates() -> None:
    net = network()
    optimizer = optim.create_optimizer("adamw", optim.parameter_groups(net, "fc", OPTIONS))
    before: dict[str, Tensor] = copy.deepcopy(net.state_dict())
    net(torch.randn(4, 3, 5, 5)).square().sum().backward()
    optimizer.step()
    # Adam's first step is the rate, whatever the gradient's size; beside it only decay moves a value.
    for name, rate, decay in (("fc.bias", 0.1, 0.0), ("bn.bias", 0.05, 0.0), ("fc.weight", 0.1, 0.01)):
        change = (net.state_dict()[name] - before[name] * (1 - rate * decay)).abs()
        assert change.max() == pytest.approx(rate, rel=1e-3)
