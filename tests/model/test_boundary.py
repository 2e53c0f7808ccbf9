"""The halves together do what the model does: outputs, gradients, statistics, in both modes, any batch."""

import copy

import pytest
import torch

from finetune.model.boundary import split
from finetune.model.hashing import fingerprint
from support.halves import MODELS, SMALL, Backbone, backbone, check, images, with_head

# Residuals, stochastic depth, concatenations, windows, tokens.
KINDS_OF_MODELS = ["resnet18", "efficientnet_b0", "densenet121", "small swin", "small vit"]
# Nothing but wider than others of their families.
WIDER = {
    name
    for name in MODELS.list_models(module=MODELS)
    if MODELS.get_model_weights(name).DEFAULT.meta["num_params"] > 50_000_000
}
OTHERS = sorted({*SMALL, *MODELS.list_models(module=MODELS)} - {*KINDS_OF_MODELS, *WIDER})
TIMM = ["resnet18", "convnext_atto", "efficientnet_lite0", "vit_tiny_patch16_224"]
KINDS = ["all", "half", "norms", "none"]
# One of each family, its smallest; resnet50 for the bottlenecks of the ResNets, ResNeXts and wide ResNets.
FAMILIES = [
    *("alexnet", "convnext_tiny", "efficientnet_v2_s", "googlenet", "inception_v3", "small maxvit"),
    *("mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "regnet_x_400mf", "regnet_y_400mf", "resnet50"),
    *("shufflenet_v2_x0_5", "squeezenet1_1", "swin_v2_t", "vgg11", "vgg11_bn", "vit_b_32"),
]


@pytest.fixture(scope="module")
def built(request: pytest.FixtureRequest) -> Backbone:
    torch.manual_seed(0)
    return backbone(request.param)


@pytest.mark.parametrize(
    "kind", ["all", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("half", "norms", "none"))]
)
@pytest.mark.parametrize("built", KINDS_OF_MODELS, indirect=True)
def test_halves_equal_the_whole(built: Backbone, kind: str) -> None:
    check(built, kind)


@pytest.mark.slow
@pytest.mark.parametrize("built", OTHERS, indirect=True)
def test_halves_equal_the_whole_everywhere(built: Backbone) -> None:
    check(built, "half")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["all", "norms", "none"])
@pytest.mark.parametrize("built", FAMILIES, indirect=True)
def test_halves_equal_the_whole_in_every_family(built: Backbone, kind: str) -> None:
    check(built, kind)


@pytest.fixture(scope="module")
def built_by_timm(request: pytest.FixtureRequest) -> Backbone:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    extra = {"img_size": 32} if request.param.startswith("vit") else {}
    return with_head(timm.create_model(request.param, pretrained=False, **extra), 32)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("built_by_timm", TIMM, indirect=True)
def test_halves_equal_the_whole_in_timm(built_by_timm: Backbone, kind: str) -> None:
    check(built_by_timm, kind)


# where it is cut


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


# fingerprint


@pytest.mark.slow
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
