"""The head of every architecture: found, replaced, and the only thing between features and logits."""

import pytest
import torch
import torchvision
from torch import nn

from finetune.errors import RequestError
from finetune.model.build import build_model, model_names
from finetune.model.head import find_head, replace_head

# The smallest pictures that some families take; the others take 32 pixels.
SIZES = {"alexnet": 64, "inception_v3": 75, "maxvit_t": 224, "vit_h_14": 224}
SIZES |= {name: 224 for name in model_names() if name.startswith("vit_")}
FAMILIES = {
    "alexnet": "classifier.6",
    "convnext_tiny": "classifier.2",
    "densenet121": "classifier",
    "efficientnet_b0": "classifier.1",
    "googlenet": "fc",
    "inception_v3": "fc",
    "maxvit_t": "classifier.5",
    "mnasnet0_5": "classifier.1",
    "mobilenet_v2": "classifier.1",
    "mobilenet_v3_small": "classifier.3",
    "regnet_y_400mf": "fc",
    "resnet18": "fc",
    "shufflenet_v2_x0_5": "fc",
    "squeezenet1_1": "classifier.1",
    "swin_t": "head",
    "vgg11": "classifier.6",
    "vit_b_32": "heads.head",
}
WITHOUT_BIAS = "maxvit_t"


def blank(name: str) -> nn.Module:
    """A model with every parameter and buffer zero: fast to make, and its logits are its head's bias."""
    if name.startswith("regnet"):  # reads numbers from tensors while it is built
        model = build_model(name, initialised=False)
    else:
        with torch.device("meta"):
            model = build_model(name)
        model = model.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.zero_()
    return model.eval()


def assert_head_gives_the_logits(name: str, hidden: list[int], dropout: float = 0.0) -> None:
    model = blank(name)
    place = find_head(model)
    assert len(model.get_parameter(f"{place}.weight")) == 1000
    new = replace_head(model, place, 10, hidden, dropout)
    last = new[-1] if isinstance(new, nn.Sequential) else new
    expected = torch.arange(1.0, 11)
    with torch.no_grad():
        last.weight.zero_()
        if last.bias is None:
            assert (name, hidden) == (WITHOUT_BIAS, [])
            expected.zero_()
        else:
            last.bias.copy_(expected)
    size = SIZES.get(name, 32)
    with torch.no_grad():
        logits = model(torch.randn(2, 3, size, size))
    assert logits.shape == (2, 10)
    assert torch.equal(logits, expected.expand(2, 10))


LARGE = ("convnext_tiny", "densenet121", "inception_v3", "maxvit_t", "vgg11", "vit_b_32")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] if name in LARGE else []) for name in FAMILIES],
)
def test_each_family_of_torchvision(name):
    with torch.device("meta") if not name.startswith("regnet") else torch.device("cpu"):
        assert find_head(build_model(name)) == FAMILIES[name]
    assert_head_gives_the_logits(name, [])


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({*model_names()} - {*FAMILIES}))
def test_every_model_of_torchvision(name):
    assert_head_gives_the_logits(name, [])


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_each_family_with_hidden_layers(name):
    assert_head_gives_the_logits(name, [24, 16], dropout=0.5)


@pytest.mark.parametrize("name", ["resnet18", "maxvit_t", "mobilenet_v3_small", "squeezenet1_1", "swin_t"])
def test_a_plain_new_head_leaves_the_state_dict_of_the_architecture(name):
    with torch.device("meta"):
        model = build_model(name)
        replace_head(model, find_head(model), 10)
        theirs = torchvision.models.get_model(name, num_classes=10)
    assert {key: value.shape for key, value in model.state_dict().items()} == {
        key: value.shape for key, value in theirs.state_dict().items()
    }


def test_resnet18_with_a_new_head_loads_into_torchvisions():
    model = build_model("resnet18")
    replace_head(model, "fc", 10)
    theirs = torchvision.models.resnet18(num_classes=10)
    theirs.load_state_dict(model.state_dict())
    pictures = torch.randn(2, 3, 64, 64)
    assert torch.equal(model.eval()(pictures), theirs.eval()(pictures))


@pytest.mark.parametrize(
    ("name", "layer", "width"), [("resnet18", nn.Linear, 512), ("squeezenet1_1", nn.Conv2d, 512)]
)
def test_hidden_layers_and_dropout(name, layer, width):
    model = blank(name)
    new = replace_head(model, find_head(model), 10, [32, 16], dropout=0.25)
    kinds = [type(part) for part in new]
    assert kinds == [nn.Dropout, layer, nn.ReLU, nn.Dropout, layer, nn.ReLU, nn.Dropout, layer]
    assert [part.weight.shape[:2] for part in new if isinstance(part, layer)] == [
        (32, width),
        (16, 32),
        (10, 16),
    ]
    assert {part.p for part in new if isinstance(part, nn.Dropout)} == {0.25}
    assert_head_gives_the_logits(name, [32, 16], 0.25)


def test_dropout_alone_stands_before_the_one_layer():
    model = blank("resnet18")
    new = replace_head(model, "fc", 10, dropout=0.5)
    assert [type(part) for part in new] == [nn.Dropout, nn.Linear]


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("resnet18", "fc"),
        ("vit_tiny_patch16_224", "head"),
        ("convnext_atto", "head.fc"),
        pytest.param("vgg11", "head.fc", marks=pytest.mark.slow),
        ("resnetv2_50x1_bit", "head.fc"),  # a 1x1 convolution
        ("mobilenetv3_small_050", "classifier"),
        pytest.param("vit_small_patch14_dinov2", "head", marks=pytest.mark.slow),
    ],
)
def test_timms_models_say_which_their_head_is(name, place):
    with torch.device("meta"):
        model = build_model(f"timm/{name}")
        assert find_head(model) == place
        replace_head(model, place, 10)
        size = model.pretrained_cfg["input_size"][-1]
        assert model(torch.zeros(2, 3, size, size)).shape == (2, 10)


def test_two_heads_are_refused():
    with torch.device("meta"):
        model = build_model("timm/deit_tiny_distilled_patch16_224")
    with pytest.raises(RequestError, match=r"model: expected one head; this model has 2 \(head, head_dist\)"):
        find_head(model)


@pytest.mark.parametrize("told", ["head", None])
def test_a_linear_layer_that_is_not_the_head_of_a_model_of_timms_is_not_taken_for_it(told):
    # As in timm's encoders that come without a head.
    model = nn.Sequential(nn.Flatten(), nn.Linear(3, 4))
    model.head = nn.Identity()
    model.pretrained_cfg = {"classifier": told}
    with pytest.raises(RequestError, match="model: expected a linear or 1x1-convolution layer"):
        find_head(model)


def test_no_head_is_refused():
    with pytest.raises(RequestError, match="model: expected a linear or 1x1-convolution layer"):
        find_head(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()))


@pytest.mark.parametrize("hidden", [[], [5], [5, 4]])
@pytest.mark.parametrize("convolution", [False, True])
def test_gradient_of_a_new_head_equals_finite_differences(hidden: list[int], convolution: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(6, 9, 1) if convolution else nn.Linear(6, 9))
    new = replace_head(model, find_head(model), 3, hidden, 0.5).double().eval()
    inputs = torch.randn(*((2, 6, 2, 2) if convolution else (4, 6)), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *_: new(inputs), (inputs, *new.parameters()))
