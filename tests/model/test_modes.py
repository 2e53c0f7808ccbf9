"""The modes that follow from `freeze`: what keeps its statistics, and what stays active."""

import re

import pytest
import torch
from torch import nn
from torchvision.ops import StochasticDepth

from finetune.model.freeze import freeze

PICTURE = torch.zeros(1, 3, 64, 64)
NOTHING, EVERYTHING = "(?!)", ".*"


def active(model: nn.Module, kind: type[nn.Module]) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, kind) and module.training]


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["all"], NOTHING),
        (["none"], EVERYTHING),
        (["-layer4"], r"layer4\..*"),
        (["-@norm"], EVERYTHING),
        (["@norm"], NOTHING),
        (["@bias"], NOTHING),  # its weight alone trains: the statistics stay
        (["-@bias"], NOTHING),
        (["bn1.weight", "layer1"], r"layer[2-4]\..*"),
        (["through:layer2.0.bn1"], r"layer2\.0\.(bn2|downsample\.1)|layer2\.1\..*|layer[34]\..*"),
    ],
    ids=str,
)
@pytest.mark.parametrize("head", [None, "fc"], ids=["head kept", "new head"])
def test_a_batchnorm_is_in_train_mode_only_if_weight_and_bias_train(kept, replaced, patterns, expected, head):
    model = replaced("resnet18") if head else kept("resnet18")
    frozen = freeze(model, patterns, head, PICTURE)
    norms = [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    moving = [name for name in norms if re.fullmatch(expected, name)]
    assert active(model, nn.BatchNorm2d) == moving
    assert {name for name, _ in model.named_buffers()} - frozen.buffers == {
        f"{name}.{buffer}"
        for name in moving
        for buffer in ("running_mean", "running_var", "num_batches_tracked")
    }


DROPS = (nn.Dropout, StochasticDepth)


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["all"], NOTHING),
        (["none"], EVERYTHING),
        (["-features.2.1.block.0.0"], r"features\.2\.1\.stochastic_depth|classifier\.0"),
        (["-features.8"], r"classifier\.0"),
        (["through:features.6"], r"features\.7\..*|classifier\.0"),
        (["through:features"], NOTHING),
    ],
    ids=str,
)
def test_dropout_and_stochastic_depth_are_active_only_where_backbone_parameters_move(
    replaced, patterns, expected
):
    model = replaced("efficientnet_b0")
    freeze(model, patterns, "classifier.1", PICTURE)
    drops = [name for name, module in model.named_modules() if isinstance(module, DROPS)]
    assert len(drops) == 17
    assert active(model, DROPS) == [name for name in drops if re.fullmatch(expected, name)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["all"], []),
        (["features"], ["classifier.2", "classifier.5"]),
        (["all", "-features"], []),
        (["classifier"], []),
    ],
    ids=str,
)
def test_dropout_before_the_replaced_layer_belongs_to_the_backbone(replaced, patterns, expected):
    model = replaced("vgg11")
    freeze(model, patterns, "classifier.6", PICTURE)
    assert active(model, nn.Dropout) == expected


def test_the_new_heads_own_dropout_is_active(replaced):
    model = replaced("efficientnet_b0", (8,), 0.5)
    freeze(model, ["all"], "classifier.1", PICTURE)
    assert active(model, DROPS) == ["classifier.1.0", "classifier.1.3"]
    pictures = torch.randn(4, 3, 32, 32)
    assert not torch.equal(model(pictures), model(pictures))
    model.classifier[1].eval()
    assert torch.equal(model(pictures), model(pictures))


def test_a_dropout_written_into_the_models_forward_belongs_to_the_backbone():
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(nn.functional.dropout(self.conv(x).mean((2, 3)), training=self.training))

    model = Functional()
    freeze(model, ["all"], "fc", PICTURE)
    assert not model.training
    assert model.fc.training
    freeze(model, ["none"], "fc", PICTURE)
    assert model.training


def test_hold_after_train_brings_the_modes_back(replaced):
    model = replaced("efficientnet_b0")
    frozen = freeze(model, ["-features.8"], "classifier.1", PICTURE)
    modes = {name: module.training for name, module in model.named_modules()}
    model.eval()
    model.train()
    assert all(module.training for module in model.modules())
    frozen.hold(model)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert len(set(modes.values())) == 2
