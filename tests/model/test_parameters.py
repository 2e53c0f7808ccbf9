"""A model's parameters by layer."""

import pytest
import torch
import torchvision
from torch import nn

from finetune.model.parameters import parameters_by_layer


@pytest.mark.parametrize(
    ("name", "first", "number"),
    [
        ("resnet18", ["conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "fc"], 7),
        ("densenet121", ["features.conv0", "features.norm0", "features.denseblock1"], 11),
        ("mobilenet_v3_small", ["features.0", "features.1", "features.2"], 15),
        ("vit_b_32", ["class_token", "conv_proj", "encoder.pos_embedding"], 17),
        ("alexnet", ["features.0", "features.3", "features.6", "features.8"], 8),
    ],
)
def test_the_layers_of_architectures(name: str, first: list[str], number: int) -> None:
    with torch.device("meta"):
        model = torchvision.models.get_model(name)
    found = parameters_by_layer(model)
    assert list(found)[: len(first)] == first
    assert len(found) == number
    names = [name for layer in found.values() for name in layer]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())


def test_a_small_model_has_its_modules_as_layers() -> None:
    assert list(parameters_by_layer(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))) == ["0", "2"]
