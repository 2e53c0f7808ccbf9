"""Where the last feature map is, Grad-CAM and input gradients against what they are by hand."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.models.swin_transformer import SwinTransformer

from finetune.config.compose import compose
from finetune.errors import RequestError
from finetune.evaluation.explain import grad_cam, heatmaps, input_gradients, last_feature_map
from finetune.model.hooks import ModuleCall
from finetune.model.preprocessing import Preprocessing
from finetune.model.staged import add_stages
from finetune.runs.open import Saved


class Cam(nn.Module):
    """A map, its mean, a linear head: here Grad-CAM is the class activation map of Zhou et al. 2016."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 5, 3, 2, 1), nn.ReLU(inplace=True), nn.MaxPool2d(2))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.features(x)).flatten(1))


class Shared(nn.Module):
    """One ReLU for all: its last output is the map."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.relu = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 6, 3), nn.ReLU()
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.relu(self.second(self.relu(self.first(x)))).mean((2, 3)))


def transformer() -> nn.Module:
    return torchvision.models.VisionTransformer(16, 4, 2, 2, 8, 16, num_classes=3).eval()


def saved(network: nn.Module, size: int = 16) -> Saved:
    settings = compose(["model=vit_b_32"])
    return Saved(
        Path(), settings, network.eval(), "head", 3, ("a", "b", "c"), Preprocessing(size, size), None
    )


# the last feature map


@pytest.mark.parametrize(
    ("name", "module", "shape"),
    [
        ("resnet18", "layer4", (512, 2, 2)),
        ("squeezenet1_1", "classifier.2", (1000, 3, 3)),
        ("mobilenet_v3_small", "features", (576, 2, 2)),
        ("densenet121", "features", (1024, 2, 2)),
        ("shufflenet_v2_x0_5", "conv5", (1024, 2, 2)),
    ],
)
def test_the_map_of_architectures(name: str, module: str, shape: tuple[int, ...]) -> None:
    with torch.device("meta"):
        network = torchvision.models.get_model(name).eval()
        place = last_feature_map(network, torch.zeros(1, 3, 64, 64))
    assert place is not None
    assert (place.call.name, place.shape) == (module, shape)


def test_where_the_last_stage_has_a_single_place_the_map_is_the_one_before() -> None:
    with torch.device("meta"):
        place = last_feature_map(torchvision.models.resnet18().eval(), torch.zeros(1, 3, 32, 32))
    assert place is not None
    assert (place.call.name, place.shape) == ("layer3", (256, 2, 2))


def test_the_map_lies_before_pooling_also_inside_a_container() -> None:
    place = last_feature_map(Cam(), torch.zeros(1, 3, 16, 16))
    assert place is not None
    assert (*place.call, place.shape) == ("features.1", 1, (5, 8, 8))


def test_one_module_called_twice() -> None:
    place = last_feature_map(Shared(), torch.zeros(1, 3, 16, 16))
    assert place is not None
    assert (*place.call, place.shape) == ("relu", 2, (6, 12, 12))


def test_windows_of_a_swin_transformer_end_in_a_map() -> None:
    swin = SwinTransformer([4, 4], 8, [1, 1], [2, 2], [2, 2], num_classes=3).eval()
    place = last_feature_map(swin, torch.zeros(1, 3, 32, 32))
    assert place is not None
    assert (place.call.name, place.shape) == ("permute", (16, 4, 4))


def test_tokens_are_no_map() -> None:
    assert last_feature_map(transformer(), torch.zeros(1, 3, 16, 16)) is None


CONVOLUTIONAL = [
    name
    for name in torchvision.models.list_models(module=torchvision.models)
    if not name.startswith(("vit_", "regnet_")) or name == "regnet_y_400mf"
]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_every_model_of_torchvision_but_vit_has_one(name: str) -> None:
    extra = {"aux_logits": False} if name in ("googlenet", "inception_v3") else {}
    with torch.device("cpu" if name.startswith("regnet_") else "meta"):  # RegNet cannot be built on meta
        network = torchvision.models.get_model(name, **extra).eval()
        place = last_feature_map(network, torch.zeros(1, 3, 224, 224))
    assert place is not None
    assert place.shape[0] >= 64
    assert 5 <= place.shape[1] <= 14


# the maps themselves


def test_with_a_linear_head_on_the_mean_it_is_the_class_activation_map() -> None:
    """Selvaraju et al. 2017, section 3.1."""
    torch.manual_seed(0)
    network, inputs = Cam().eval(), torch.randn(4, 3, 16, 16)
    network.features[2] = nn.Identity()
    place = last_feature_map(network, inputs[:1])
    assert place is not None
    heat, logits = grad_cam(network, place.call, inputs, None)
    torch.testing.assert_close(logits, network(inputs))
    maps, weights = network.features(inputs), network.head.weight[logits.argmax(1)] / 64
    cam = torch.einsum("bk,bkhw->bhw", weights, maps).relu()
    expected = F.interpolate(cam[:, None], (16, 16), mode="bilinear", align_corners=False)[:, 0]
    torch.testing.assert_close(heat, expected)


def test_it_follows_the_way_by_which_a_head_reads_an_earlier_stage() -> None:
    network, inputs = torchvision.models.resnet18().eval(), torch.randn(2, 3, 64, 64)
    network.fc = nn.Linear(256 + 512, 3)
    add_stages(network, "fc", ["layer3"])
    with torch.no_grad():
        network.fc.weight[:, 256:] = 0  # only what comes from layer3 directly counts
    maps: list[Tensor] = []
    hook = network.layer3.register_forward_hook(lambda *call: maps.append(call[2]))
    network(inputs)
    hook.remove()
    heat, logits = grad_cam(network, ModuleCall("layer3", 1), inputs, None)
    cam = torch.einsum("bk,bkhw->bhw", network.fc.weight[logits.argmax(1), :256] / 16, maps[0]).relu()
    expected = F.interpolate(cam[:, None], (64, 64), mode="bilinear", align_corners=False)[:, 0]
    torch.testing.assert_close(heat, expected)


def test_through_a_shared_module_it_is_what_backward_gives() -> None:
    torch.manual_seed(0)
    network, inputs = Shared().eval(), torch.randn(2, 3, 16, 16)
    place = last_feature_map(network, inputs[:1])
    assert place is not None
    chosen = torch.tensor([2, 0])
    heat, _ = grad_cam(network, place.call, inputs, chosen)
    maps = network.relu(network.second(network.relu(network.first(inputs)))).detach().requires_grad_()
    network.head(maps.mean((2, 3)))[[0, 1], chosen].sum().backward()
    cam = (maps.grad.mean((2, 3), keepdim=True) * maps).sum(1, keepdim=True).relu().detach()
    expected = F.interpolate(cam, (16, 16), mode="bilinear", align_corners=False)[:, 0]
    torch.testing.assert_close(heat, expected)


def test_input_gradients_are_those_of_the_logit() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 3))
    heat, logits = input_gradients(network, torch.randn(2, 3, 8, 8), None)
    gradient = network[1].weight[logits.argmax(1)].view(2, 3, 8, 8).abs().amax(1).detach()
    most = gradient.flatten(1).quantile(0.99, 1).view(2, 1, 1)
    torch.testing.assert_close(heat, gradient.minimum(most))


@pytest.mark.parametrize("explain", [input_gradients, partial(grad_cam, call=ModuleCall("0", 1))])
def test_a_model_that_turns_gradients_off_is_told(explain: Any) -> None:
    class Off(nn.Sequential):
        @torch.no_grad()
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)

    network = Off(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    with pytest.raises(RequestError, match=r"^no heat maps: expected a model that gradients go through; its"):
        explain(network, inputs=torch.randn(2, 3, 8, 8), classes=None)


def test_a_square_that_decides_is_what_lights_up() -> None:
    """The logit of class 1 counts white; each picture has one white square."""
    network = Cam()
    for parameter in network.parameters():
        nn.init.zeros_(parameter)
    nn.init.ones_(network.features[0].weight)
    nn.init.ones_(network.head.weight[1])
    pictures = torch.zeros(20, 3, 32, 32, dtype=torch.uint8)
    corners = [(8 * (n % 3), 8 * (n // 7)) for n in range(20)]
    for picture, (y, x) in zip(pictures, corners, strict=True):
        picture[:, y : y + 8, x : x + 8] = 255
    explained = heatmaps(saved(network, 32), pictures)
    assert explained.method == "Grad-CAM at features.1 (16 x 16)"
    assert explained.logits.argmax(1).tolist() == [1] * 20
    assert explained.maps.shape == (20, 32, 32)
    assert explained.maps.amax((1, 2)).tolist() == pytest.approx([1.0] * 20)
    for heat, (y, x) in zip(explained.maps, corners, strict=True):
        inside = heat[y : y + 8, x : x + 8].sum()
        assert inside > 0.6 * heat.sum()
    nothing = heatmaps(saved(network, 32), pictures, torch.zeros(20, dtype=torch.int64))
    assert float(nothing.maps.abs().max()) == 0  # nothing speaks for a class without weights


def test_a_vision_transformer_gets_input_gradients_and_is_told_so() -> None:
    network = transformer()
    nn.init.normal_(network.heads.head.weight)
    explained = heatmaps(saved(network), torch.randint(256, (3, 3, 16, 16), dtype=torch.uint8))
    assert explained.method == "input gradients, as vit_b_32 has no last feature map for Grad-CAM"
    assert explained.maps.amax((1, 2)).tolist() == pytest.approx([1.0] * 3)
    assert float(explained.maps.min()) >= 0


def test_the_model_is_left_as_it_was() -> None:
    network = Cam()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    heatmaps(saved(network), torch.randint(256, (2, 3, 16, 16), dtype=torch.uint8))
    assert all(p.grad is None and p.requires_grad for p in network.parameters())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any(module._forward_hooks for module in network.modules())
