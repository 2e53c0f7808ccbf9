"""Which layer reads the constant features, and may take a map of them into its parameters."""

import pytest
from torch import Tensor, nn

from finetune.model.boundary import split
from finetune.model.standardize import direct_layer
from support.halves import images


class Net(nn.Module):
    def __init__(self, **options: bool) -> None:
        super().__init__()
        self.conv, self.late = nn.Conv2d(3, 4, 4).requires_grad_(False), nn.Linear(4, 4)
        self.fc = nn.Linear(4, 4, **options)

    def forward(self, image: Tensor) -> Tensor:
        return self.late(self.fc(self.conv(image).flatten(1)).relu())


def test_the_layer_that_reads_the_vector() -> None:
    assert direct_layer(split(Net(), images(1, 4))) == "fc"


@pytest.mark.parametrize(
    "lacks", ["bias", "training of the weight", "training of the bias", "its own weight"]
)
def test_a_layer_that_could_not_take_the_map_in(lacks: str) -> None:
    net = Net(bias=lacks != "bias")
    if lacks == "its own weight":
        net.late.weight = net.fc.weight
    elif lacks != "bias":
        net.fc.get_parameter(lacks.split()[-1]).requires_grad_(False)
    assert direct_layer(split(net, images(1, 4))) is None
