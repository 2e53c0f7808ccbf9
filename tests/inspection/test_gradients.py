"""Vector-Jacobian products, norms by layer, and every loss and head against finite differences."""

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.autograd.gradcheck import GradcheckError

from finetune.inspection.gradients import check_gradients, gradient_norms, jacobian, layers, vjp
from finetune.model import head as heads
from finetune.model.freeze import freeze
from finetune.training import losses

# products


def test_a_product_is_what_backward_leaves_in_grad() -> None:
    a, b = torch.tensor([2.0, 3.0]), torch.tensor([6.0, 4.0])

    def q(a: Tensor, b: Tensor) -> Tensor:
        return 3 * a**3 - b**2

    of_a, of_b = vjp(q, (a, b), torch.ones(2))
    assert of_a.tolist() == [36, 81]
    assert of_b.tolist() == [-12, -8]
    summed = vjp(lambda a, b: q(a, b).sum(), (a, b))
    assert [one.tolist() for one in summed] == [[36, 81], [-12, -8]]
    x, v = torch.randn(2, 3), torch.randn(2, 4)
    weight = torch.randn(3, 4, requires_grad=True)
    torch.testing.assert_close(vjp(lambda x: x @ weight, x, v), v @ weight.detach().T)
    assert not a.requires_grad
    assert a.grad is None
    assert weight.grad is None


def test_what_an_output_does_not_depend_on_has_gradient_zero() -> None:
    of_a, of_b = vjp(lambda a, b: a * a + 0 * b, (torch.ones(2), torch.ones(2)), torch.ones(2))
    assert of_a.tolist() == [2, 2]
    assert of_b.tolist() == [0, 0]


def test_a_product_is_the_vector_times_the_jacobian() -> None:
    matrix, x, v = torch.randn(4, 3), torch.randn(3), torch.randn(4)
    whole = jacobian(lambda x: matrix @ x, x)
    torch.testing.assert_close(whole, matrix)
    torch.testing.assert_close(v @ whole, vjp(lambda x: matrix @ x, x, v))
    assert [tuple(one.shape) for one in jacobian(lambda a, b: a @ b, (torch.ones(2, 3), torch.ones(3)))] == [
        (2, 2, 3),
        (2, 3),
    ]


# layers


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
    found = layers(model)
    assert list(found)[: len(first)] == first
    assert len(found) == number
    names = [name for layer in found.values() for name in layer]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())


def test_a_small_model_has_its_modules_as_layers() -> None:
    assert list(layers(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))) == ["0", "2"]


# norms


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return torchvision.models.resnet18(num_classes=3).double()


def test_norms_are_those_of_the_gradients_that_backward_gives(network: nn.Module) -> None:
    freeze(network, ["all", "-layer4"], "fc", torch.zeros(1, 3, 32, 32))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    batch = torch.randn(4, 3, 32, 32).double(), torch.tensor([0, 1, 2, 2])
    norms = gradient_norms(network, batch)
    assert list(norms) == ["conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "fc"]
    assert [layer for layer, value in norms.items() if value is None] == list(norms)[:5]
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())
    plain = deepcopy(network)
    F.cross_entropy(plain(batch[0]), batch[1]).backward()
    for layer in ("layer4", "fc"):
        gradients = [p.grad for name, p in plain.named_parameters() if name.split(".")[0] == layer]
        values = torch.cat([gradient.flatten() for gradient in gradients])
        assert norms[layer] == pytest.approx(values.norm().item(), rel=1e-10)


def test_norms_of_another_loss_and_of_a_frozen_model(network: nn.Module) -> None:
    batch = torch.randn(2, 3, 32, 32).double(), torch.rand(2, 3)
    freeze(network, ["none"], "fc", torch.zeros(1, 3, 32, 32))
    norms = gradient_norms(network, batch, losses.sum_difference)
    assert norms["fc"] is not None
    assert norms["fc"] > 0
    freeze(network, ["all"], None, torch.zeros(1, 3, 32, 32))
    assert set(gradient_norms(network, batch, losses.sum_difference).values()) == {None}


# finite differences

LABELS = torch.tensor([0, 3, 1, 1, 2, 0])
VECTORS = torch.eye(4)[LABELS] * 0.9 + 0.025
LOSSES = {
    **losses.LOSSES,
    "cross_entropy": losses.build("cross_entropy"),
    "cross_entropy, smoothed": losses.build("cross_entropy", 0.2),
    "cross_entropy, weighted": losses.build("cross_entropy", 0.1, torch.tensor([0.5, 1.0, 2.0, 4.0])),
}


@pytest.mark.parametrize("labels", [LABELS, VECTORS], ids=["classes", "vectors"])
@pytest.mark.parametrize("name", LOSSES)
def test_every_loss(name: str, labels: Tensor) -> None:
    assert check_gradients(LOSSES[name], torch.randn(6, 4), labels)


@pytest.mark.parametrize("hidden", [[], [5], [5, 4]])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("convolution", [False, True])
def test_every_head(hidden: list[int], dropout: float, convolution: bool) -> None:
    """Linear and hidden, with and without dropout, which is off: over both kinds of classifier."""
    torch.manual_seed(0)
    last = nn.Conv2d(6, 9, 1) if convolution else nn.Linear(6, 9)
    model = nn.Sequential(last)
    head = heads.replace(model, heads.find(model), 3, hidden, dropout)
    state = {name: value.clone() for name, value in head.state_dict().items()}
    assert check_gradients(head, torch.randn(2, 6, 2, 2) if convolution else torch.randn(4, 6))
    assert all(torch.equal(value, state[name]) for name, value in head.state_dict().items())
    assert head.training


def test_a_wrong_gradient_is_found() -> None:
    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):  # type: ignore[no-untyped-def]
            return x**2

        @staticmethod
        def backward(ctx, gradient):  # type: ignore[no-untyped-def]
            return gradient

    with pytest.raises(GradcheckError, match="Jacobian mismatch"):
        check_gradients(Wrong.apply, torch.randn(3))
    with pytest.raises(GradcheckError):  # the loss as a constant of the logits
        check_gradients(lambda z, y: losses.bce(z.detach(), y) + 0 * z.sum(), torch.randn(6, 4), LABELS)
