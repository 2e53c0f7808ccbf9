"""The table of modules: their order, shapes, sums and where gradients begin."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from finetune.features.plan import macs
from finetune.inspection.modules import Group, ModuleRow, boundary_index, execute_modules, module_rows
from finetune.model.assemble import Model, ModelConfig, assemble
from finetune.model.boundary import split
from finetune.training import optim
from support.small import stepped

CLASSES = [f"class {i}" for i in range(10)]


def assembled(name: str, *patterns: str, head: int | str = 10, size: int = 32) -> Model:
    return assemble(ModelConfig(name, "random", patterns, head, image_size=size), CLASSES)


def table(model: Model, depth: int | None = None) -> list[ModuleRow]:
    groups = optim.parameter_groups(model.network, model.head, stepped(backbone_lr_factor=0.1))
    constant = split(model.network, model.example).frozen
    return module_rows(model.network, execute_modules(model.network, model.example), groups, constant, depth)


def test_resnet18_in_order_of_execution() -> None:
    found = table(assembled("resnet18", "all"))
    blocks = [f"layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1)]
    assert [row.name for row in found] == ["conv1", "bn1", "relu", "maxpool", *blocks, "avgpool", "fc"]
    assert [found[0].output, found[7].output, found[-2].output] == [(64, 16, 16), (128, 4, 4), (512, 1, 1)]
    assert found[-1] == ModuleRow(
        "fc", "Linear", (10,), 1, 5_130, 5_130, "train", (Group("head", 0.01),), 5_120.0, constant=False
    )
    assert found[4].type == "BasicBlock"
    assert found[4].parameters == sum(
        p.numel() for p in assembled("resnet18", "all").network.layer1[0].parameters()
    )
    assert {row.mode for row in found[:-1]} == {"eval"}
    assert {row.trainable for row in found[:-1]} == {0}
    assert boundary_index(found) == len(found) - 1  # between avgpool and fc


def test_the_convolution_costs_what_the_formula_says() -> None:
    model = assembled("resnet18", "all")
    found = table(model)
    assert found[0].macs == 64 * 16 * 16 * 3 * 7 * 7
    with FlopCounterMode(display=False) as counter:
        model.network(torch.zeros(1, 3, 32, 32))
    assert sum(row.macs for row in found) == counter.get_total_flops() / 2


def test_a_module_that_is_given_a_parameter_is_counted_and_all_goes_on_training() -> None:
    class Query(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.layer = nn.Parameter(torch.ones(1, 2)), nn.Linear(2, 2)

        def forward(self, image: Tensor) -> Tensor:
            return self.layer(self.query)

    model = Query()
    model.layer.bias.requires_grad_(False)
    assert execute_modules(model, torch.zeros(1, 3, 2, 2))["layer"].macs == macs(model, torch.zeros(1)) == 4
    assert model.training
    assert [p.requires_grad for p in model.parameters()] == [True, True, False]


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("resnet18", 32),
        ("squeezenet1_1", 32),
        ("mobilenet_v3_small", 32),
        pytest.param("densenet121", 32, marks=pytest.mark.slow),
        pytest.param("swin_t", 64, marks=pytest.mark.slow),
    ],
)
def test_every_parameter_is_in_one_row_however_deep(name: str, size: int) -> None:
    model = assembled(name, "all", size=size)
    seen, constant = execute_modules(model.network, model.example), split(model.network, model.example).frozen
    total = sum(p.numel() for p in model.network.parameters())
    for depth in (None, 1, 2, 3, 2**31):
        found = module_rows(model.network, seen, [], constant, depth)
        assert sum(row.parameters for row in found) == total
        assert len({row.name for row in found}) == len(found)
    assert len(module_rows(model.network, seen, [], constant)) <= 40


@pytest.mark.slow
def test_depth_folds_and_unfolds() -> None:
    model = assembled("resnet18", "all")
    assert len(table(model, 1)) == 10
    assert len(table(model, 2)) == 14
    names = [row.name for row in table(model, 4)]
    assert names[4:9] == [f"layer1.0.{name}" for name in ("conv1", "bn1", "relu", "conv2", "bn2")]


def test_a_module_with_the_boundary_in_it_is_unfolded() -> None:
    found = table(assembled("resnet18", "all", "-layer4.1.bn2"), depth=1)
    at = boundary_index(found)
    assert [row.name for row in found[at - 1 : at + 1]] == ["layer4.1.conv2", "layer4.1.bn2"]
    assert not any(row.name.startswith("layer3.") for row in found)


def test_a_branch_beside_what_trains_is_constant_too() -> None:
    found = {row.name: row for row in table(assembled("resnet18", "all", "-layer2.0.conv1"), depth=3)}
    assert found["layer2.0.downsample"].constant
    assert not found["layer2.0.bn2"].constant


def test_rates_and_modes_of_partly_frozen_blocks() -> None:
    found = {row.name: row for row in table(assembled("resnet18", "all", "-@norm"))}
    assert 0 < found["layer1.0"].trainable < found["layer1.0"].parameters
    assert found["layer1.0"].mode == "mixed"
    assert found["layer1.0"].groups == (Group("backbone", 0.001),)
    assert (found["conv1"].mode, found["bn1"].mode) == ("eval", "train")


class Branching(nn.Module):
    """Calls one module twice and another never, and one that has parameters of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Linear(3, 5)
        self.twice = nn.Linear(3, 3)
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.twice(self.twice(x.mean((2, 3)))) * self.scale


def test_what_is_called_twice_or_never_or_no_module() -> None:
    model = Branching()
    seen = execute_modules(model, torch.zeros(1, 3, 8, 8))
    found = {row.name: row for row in module_rows(model, seen, [], ())}
    assert [(row.name, row.calls) for row in found.values()] == [("scale", 0), ("unused", 0), ("twice", 2)]
    assert found["scale"].type == "Parameter"
    assert found["twice"].macs == 18


def test_looking_leaves_the_model_as_it_was() -> None:
    model = assembled("resnet18", "none").network
    before = {name: value.clone() for name, value in model.state_dict().items()}
    execute_modules(model, torch.zeros(1, 3, 32, 32))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
