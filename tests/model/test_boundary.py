"""The halves together do what the model does: outputs, gradients, statistics, in both modes, any batch."""

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from finetune.errors import RequestError
from finetune.model import head
from finetune.model.boundary import NotTraceable, Split, fingerprint, split
from finetune.model.freeze import Frozen, freeze

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
FAMILIES = [
    *SMALL, "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "googlenet", "inception_v3",
    "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "regnet_y_400mf", "resnet18", "shufflenet_v2_x0_5",
    "squeezenet1_1",
]  # fmt: skip
OTHERS = [name for name in MODELS.list_models(module=MODELS) if name not in FAMILIES]
TIMM = ["resnet18", "convnext_atto", "efficientnet_lite0", "vit_tiny_patch16_224"]
KINDS = ["all", "half", "norms", "none"]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """These nets are too small for more: with other processes about, threads mostly wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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
    place = head.find(network)
    head.replace(network, place, 5)
    return Backbone(network, place, size)


@pytest.fixture(scope="module")
def built(request: pytest.FixtureRequest) -> Backbone:
    torch.manual_seed(0)
    return backbone(request.param)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("built", FAMILIES, indirect=True)
def test_halves_equal_the_whole(built: Backbone, kind: str) -> None:
    check(built, kind)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("built", OTHERS, indirect=True)
def test_halves_equal_the_whole_everywhere(built: Backbone, kind: str) -> None:
    check(built, kind)


@pytest.fixture(scope="module")
def built_by_timm(request: pytest.FixtureRequest) -> Backbone:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    extra = {"img_size": 32} if request.param.startswith("vit") else {}
    return with_head(timm.create_model(request.param, pretrained=False, **extra), 32)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("built_by_timm", TIMM, indirect=True)
def test_halves_equal_the_whole_in_timm(built_by_timm: Backbone, kind: str) -> None:
    check(built_by_timm, kind)


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


# ------------------------------------------------------------------------------------------- where it is cut


def crossings(built: Backbone, *patterns: str) -> list[str]:
    built.freeze(*patterns)
    return [crossing.name for crossing in split(built.network, images(1, built.size)).crossings]


@pytest.mark.parametrize("built", ["resnet18"], indirect=True)
def test_where_resnet_is_cut(built: Backbone) -> None:
    assert crossings(built, "all") == ["flatten"]
    assert crossings(built, "all", "-layer4") == ["layer3_1_relu_1"]
    assert crossings(built, "all", "-bn1") == ["conv1"]
    # within a residual block both its branches cross
    assert crossings(built, "through:layer2.0.conv1") == ["layer1_1_relu_1", "layer2_0_conv1"]
    built.freeze("through:layer2.0.conv1")
    parts = split(built.network, images(1, built.size))
    assert parts.frozen == ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2.0.conv1")
    assert parts.crossings[1] == ("layer2_0_conv1", (128, 4, 4), 128 * 4 * 4 * 4)


@pytest.mark.parametrize("built", ["efficientnet_b0"], indirect=True)
def test_inactive_stochastic_depth_is_constant(built: Backbone) -> None:
    assert crossings(built, "all") == ["classifier_0"]


@pytest.mark.parametrize("built", ["small vit"], indirect=True)
def test_parameters_read_in_forward_follow_the_rule(built: Backbone) -> None:
    assert crossings(built, "all") == ["getitem_11"]
    # the class token joins the patches, which are constant before that; its batch size is not stored
    assert crossings(built, "all", "-class_token") == ["permute"]


@pytest.mark.parametrize("built", ["densenet121"], indirect=True)
def test_concatenations_are_not_stored_beside_their_parts(built: Backbone) -> None:
    names = crossings(built, "through:features.denseblock3.denselayer2")
    assert names == [
        "features_transition2_pool",
        "features_denseblock3_denselayer1_conv2",
        "features_denseblock3_denselayer2_conv2",
    ]


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


# ------------------------------------------------------------------------------------------- writing in place


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


# ------------------------------------------------------------------------------------ what is not a constant


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


# ----------------------------------------------------------------------------------------- what is not traced


class Doubling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, image: Tensor) -> Tensor:
        b = self.conv(image)
        while b.norm() < 1000:
            b = b * 2
        return b


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


# ----------------------------------------------------------------------------------------------- fingerprint


def test_fingerprint() -> None:
    def build() -> Backbone:
        return with_head(SMALL["small swin"](), 32)

    def of(built: Backbone, *patterns: str) -> str:
        built.freeze(*patterns)
        prefix = split(built.network, images(1, 32)).prefix
        assert prefix is not None
        text = fingerprint(prefix)
        assert text == fingerprint(prefix.eval()) == fingerprint(copy.deepcopy(prefix))
        return text

    whole = of(build(), "all")
    assert len(whole) == 64
    other = build()  # other random weights
    assert of(other, "all") == whole
    assert of(other, "all", "-features.3") != whole
    other.network.features[1][1].attn.shift_size = [0, 0]  # in no repr
    assert of(other, "all") != whole
