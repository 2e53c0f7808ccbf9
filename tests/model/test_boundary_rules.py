"""What is a constant and what is stored of it, shown by small networks made for one question each."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from finetune.model.boundary import NotTraceable, split
from support.halves import Toy, check_toy, equal_in_train_mode, images


def test_a_sum_needs_a_gradient_iff_one_of_its_terms_does() -> None:
    def forward(toy: Toy, image: Tensor) -> Tensor:
        x, y, z = toy.a(image), toy.b(image), toy.c(image)
        return (x + y) * (x + z)

    parts = check_toy(forward, "c")
    # z needs the image; x is needed for x + z; x + y is a constant, and y does not cross
    assert [crossing.name for crossing in parts.crossings] == ["image", "a", "add"]
    assert parts.frozen == ("a", "b")


def test_sizes_follow_the_batch() -> None:
    def forward(toy: Toy, image: Tensor) -> Tensor:
        x = toy.a(image)
        n, c, h, w = x.shape
        tokens = toy.token.expand(n, -1, h, w)
        return torch.cat([tokens, x]).view(2 * n, c * h * w)[: x.shape[0]]

    assert [crossing.name for crossing in check_toy(forward, "token").crossings] == ["a"]


def test_rows_that_share_an_image_are_kept_together() -> None:
    def forward(toy: Toy, image: Tensor) -> Tensor:
        n, c, h, w = image.shape
        windows = toy.a(image.view(n, c, 2, h // 2, w).transpose(1, 2).reshape(2 * n, c, h // 2, w)).relu()
        return toy.d(windows).view(n, 2, -1)

    parts = check_toy(forward, "d")
    assert [crossing.shape for crossing in parts.crossings] == [(2, 4, 2, 4)]


def test_views_are_stored_once() -> None:
    def forward(toy: Toy, image: Tensor) -> Tensor:
        x = toy.a(image)
        return toy.d(x).flatten(1) + x.flatten(1) * toy.d(x[:, :, :1]).mean()

    assert [crossing.name for crossing in check_toy(forward, "d").crossings] == ["a"]


def test_the_part_is_stored_where_only_a_part_is_needed() -> None:
    def forward(toy: Toy, image: Tensor) -> Tensor:
        return toy.d(toy.a(image)[:, :, :1])

    assert [crossing.shape for crossing in check_toy(forward, "d").crossings] == [(4, 1, 4)]


def test_what_is_frozen_but_of_no_use_makes_no_prefix() -> None:
    def forward(toy: Toy, image: Tensor) -> Tensor:
        toy.a(image)
        return toy.c(image)

    assert split(Toy(forward, ["c"]), images(2, 4)).prefix is None


def test_nothing_trains() -> None:
    parts = split(Toy(lambda toy, image: toy.a(image), ()), images(2, 4))
    batch = images(2, 4)
    assert parts.prefix is not None
    assert torch.equal(parts.suffix(parts.prefix(batch)), parts.prefix(batch))


# writing in place


def test_suffix_does_not_write_into_what_is_stored() -> None:
    def forward(toy: Toy, image: Tensor) -> Tensor:
        x = toy.a(image)
        first = x[:, 0]
        x += toy.c(image)
        return x.flatten(1).sum(1) + first.flatten(1).sum(1)  # `first` has changed with x

    check_toy(forward, "c")


def test_dropout_in_place_does_not_write_into_what_is_stored() -> None:
    class Net(nn.Sequential):
        def __init__(self) -> None:
            dropout = nn.Dropout(0.5, inplace=True)
            super().__init__(nn.Conv2d(3, 4, 1), dropout, nn.Flatten(), nn.Linear(64, 2))

    net = Net()
    net[0].requires_grad_(False)
    parts = split(net, images(1, 4))
    assert [crossing.name for crossing in parts.crossings] == ["_0"]
    equal_in_train_mode(net, parts, images(3, 4))
    net.eval()
    equal_in_train_mode(net, parts, images(3, 4))


def test_constant_written_into_after_the_suffix_read_it() -> None:
    def forward(toy: Toy, image: Tensor) -> Tensor:
        x = toy.a(image)
        early = x + toy.token
        return early + x.relu_() + x

    check_toy(forward, "token")


def test_shared_memory_written_into_is_refused() -> None:
    def forward(toy: Toy, image: Tensor) -> Tensor:
        x = toy.a(image)
        y = x.relu_()
        y += toy.c(image)
        return x + y

    with pytest.raises(NotTraceable, match="share memory"):
        check_toy(forward, "c")


def test_buffers_that_forward_updates_are_no_constants() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1).requires_grad_(False)
            self.head = nn.Conv2d(4, 2, 1)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, image: Tensor) -> Tensor:
            x = self.conv(image)
            self.calls.add_(1)
            return self.head(x * self.calls)

    net = Counting()
    parts = split(net, images(2, 4))
    assert net.calls == 0
    assert [crossing.name for crossing in parts.crossings] == ["conv"]
    equal_in_train_mode(net, parts, images(3, 4))


# what is not a constant


def test_random_numbers_are_not_constant() -> None:
    def forward(toy: Toy, image: Tensor) -> Tensor:
        x = toy.a(image)
        return toy.d(F.dropout(x + torch.randn_like(x), 0.5, training=True))

    assert [crossing.name for crossing in check_toy(forward, "d").crossings] == ["a"]


def test_statistics_of_the_batch_are_not_constant() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.InstanceNorm2d(4), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
    net[:3].requires_grad_(False)
    assert split(net, images(2, 4)).crossings[0].name == "_1"
    net[2].eval()
    assert split(net, images(2, 4)).crossings[0].name == "_2"


def test_mixing_the_images_of_a_batch_is_refused() -> None:
    def forward(toy: Toy, image: Tensor) -> Tensor:
        x = toy.a(image)
        return toy.d(x - x.mean(0))

    with pytest.raises(NotTraceable, match="sub is not computed image by image"):
        check_toy(forward, "d")


@pytest.mark.parametrize("place", ["", "a", "d"])
def test_what_hooks_do_beside_the_graph_is_not_left_out(place: str) -> None:
    toy = Toy(lambda toy, image: toy.d(toy.a(image)).flatten(1))
    for name, parameter in toy.named_parameters():
        parameter.requires_grad = name.startswith("d.")
    toy.get_submodule(place).register_forward_pre_hook(lambda _, given: (given[0] * 2,))
    with pytest.raises(NotTraceable, match="its graph computes something else"):
        split(toy, images(1, 8))


class _Straight(torch.autograd.Function):
    """Signs with the gradient of what they are of, as binary codes are trained."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.sign()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class _Reversed(torch.autograd.Function):
    """Nothing, but for the gradient (Ganin and Lempitsky 2015)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return -gradient / 2


def _without_gradient(x: Tensor, layer: nn.Module) -> Tensor:
    with torch.no_grad():
        return layer(x)


@pytest.mark.parametrize(
    "through",
    [
        lambda toy, x: _Straight.apply(toy.d(x)),
        lambda toy, x: _Reversed.apply(toy.d(x)),
        lambda toy, x: _without_gradient(x, toy.d) + toy.token,
    ],
    ids=["straight through", "reversed", "no_grad"],
)
def test_gradients_that_are_not_the_graphs_are_not_replaced_by_those(through: Any) -> None:
    toy = Toy(lambda toy, image: through(toy, toy.a(image)).flatten(1), ("d", "token"))
    with pytest.raises(NotTraceable, match="its graph computes something else"):
        split(toy, images(1, 8))


@pytest.mark.filterwarnings("ignore:For backward hooks")  # of tracing
def test_a_gradient_changed_by_a_hook_is_not_left_out() -> None:
    toy = Toy(lambda toy, image: toy.d(toy.a(image)).flatten(1))
    toy.a.requires_grad_(False)
    toy.register_full_backward_hook(lambda *_: None)  # changes nothing
    split(toy, images(1, 8))
    block = nn.Sequential(
        nn.Conv2d(3, 2, 1).requires_grad_(False), nn.Sequential(nn.Conv2d(2, 2, 1), nn.ReLU())
    )
    block[1].register_full_backward_pre_hook(lambda _, given: (given[0] / 10,))
    with pytest.raises(NotTraceable, match="its graph computes something else"):
        split(block, images(1, 8))


def test_a_forward_that_is_replaced_is_not_split_as_it_was() -> None:
    toy = Toy(lambda toy, image: toy.a(image).flatten(1))
    toy.requires_grad_(False)
    toy.forward = lambda image: 2 * toy.a(image).flatten(1)  # type: ignore[method-assign]
    with pytest.raises(NotTraceable, match="its graph computes something else"):
        split(toy, images(1, 8))


@pytest.mark.parametrize(
    ("make", "kind"),
    [(torch.fft.fft2, "complex64"), (lambda x: x > 0, "bool"), (lambda x: x.long(), "int64")],
)
def test_what_is_no_real_number_is_not_stored_and_the_model_is_left_as_it_was(make, kind) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 2, 1).requires_grad_(False), nn.BatchNorm2d(2)

        def forward(self, image: Tensor) -> Tensor:
            x = self.conv(image)
            return self.norm(x) * make(x)

    net = Net()
    with pytest.raises(NotTraceable, match=rf"is no real numbers \(torch\.{kind}\)$"):
        split(net, images(2, 4))
    assert net.norm.num_batches_tracked == 0
