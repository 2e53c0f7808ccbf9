"""What cannot be traced: the part stays whole, or the model is refused in one line."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from finetune.model.boundary import NotTraceable, split
from support.halves import equal_in_train_mode, images


class Doubling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, image: Tensor) -> Tensor:
        b = self.conv(image)
        while b.norm() < 1000:
            b = b * 2
        return b


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 4, 1), torch.zeros(())
        self.register_buffer("runs", torch.zeros(()))

    def forward(self, image: Tensor) -> Tensor:
        self.runs = self.runs + 1
        self.last = self.conv(image)
        return self.last


def test_a_model_that_assigns_a_buffer_is_refused_and_left_as_it_was() -> None:
    net = Counting()
    with pytest.raises(NotTraceable, match=r"^Counting: forward assigns a buffer, which no graph would do$"):
        split(net, images(1, 4))
    assert type(net.runs) is type(net.last) is Tensor
    whole = nn.Sequential(nn.Conv2d(3, 3, 1), Counting(), nn.Conv2d(4, 2, 1))
    whole[:2].requires_grad_(False)
    assert [crossing.name for crossing in split(whole, images(2, 4)).crossings] == ["_1"]


def test_control_flow_on_data_is_refused() -> None:
    with pytest.raises(NotTraceable, match=r"^Doubling: .*control flow") as refusal:
        split(Doubling(), images(1, 4))
    assert "\n" not in str(refusal.value)
    assert isinstance(refusal.value, ValueError)


class Picky(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, image: Tensor) -> Tensor:
        if image.shape[1] != 3:
            raise ValueError("expected three channels")
        return self.conv(image)


@pytest.mark.parametrize(
    ("part", "trains", "crossing"), [(Doubling, True, "_0"), (Picky, True, "_0"), (Picky, False, "_1")]
)
def test_a_part_that_cannot_be_traced_stays_whole(part: type[nn.Module], trains: bool, crossing: str) -> None:
    net = nn.Sequential(nn.Conv2d(3, 3, 1), part(), nn.Conv2d(4, 2, 1))
    net[0].requires_grad_(False)
    net[1].requires_grad_(trains)
    parts = split(net, images(2, 4))
    assert [tensor.name for tensor in parts.crossings] == [crossing]
    equal_in_train_mode(net, parts, images(3, 4))


class Gate(nn.Module):
    """Reads its mode, and keeps nothing that depends on other images."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, image: Tensor) -> Tensor:
        return F.dropout(self.conv(image), 0.5, self.training) * (2 if self.training else 1)


class LayerDrop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, image: Tensor) -> Tensor:
        return image if torch.rand(()) < 0.5 else self.conv(image)


@pytest.mark.parametrize("part", [Gate, LayerDrop])
def test_a_part_whose_trace_would_not_hold_stays_whole(part: type[nn.Module]) -> None:
    net = nn.Sequential(nn.Conv2d(3, 3, 1), part(), part(), nn.Conv2d(3, 2, 1))
    net[:3].requires_grad_(False)
    parts = split(net, images(2, 4))
    assert [crossing.name for crossing in parts.crossings] == ["_0"]
    equal_in_train_mode(net, parts, images(3, 4))
    net.eval()
    equal_in_train_mode(net, parts, images(3, 4))
    if part is Gate:
        assert split(net, images(2, 4)).crossings[0].name == "_2"


def test_a_model_that_reads_its_mode_is_refused() -> None:
    with pytest.raises(NotTraceable, match=r"^Gate: forward depends on self.training"):
        split(Gate(), images(1, 4))
