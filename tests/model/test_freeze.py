"""The language of `freeze`: which parameters each entry means, and what is said of one that means none."""

import copy
import re

import pytest
import torch
from torch import nn

from finetune.errors import RequestError
from finetune.model.build import build_model
from finetune.model.freeze import freeze
from finetune.model.hashing import digest
from finetune.model.head import find_head, replace_head

PICTURE = torch.zeros(1, 3, 64, 64)


def trainable(model: nn.Module) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def assert_trains(model: nn.Module, expected: str) -> None:
    names = [name for name, _ in model.named_parameters()]
    assert trainable(model) == [name for name in names if re.fullmatch(expected, name)]


NOTHING, EVERYTHING = "(?!)", ".*"
NORMS = r"(layer\d\.\d\.)?(bn\d|downsample\.1)\.(weight|bias)"
LATER = r"encoder\.layers\.encoder_layer_([6-9]|10|11)\..*|encoder\.ln\..*|heads\..*"
LANGUAGE = [
    ("resnet18", ["all"], NOTHING),
    ("resnet18", ["none"], EVERYTHING),
    ("resnet18", ["layer1"], r"(?!layer1\.).*"),
    ("resnet18", ["layer1.0"], r"(?!layer1\.0\.).*"),
    ("resnet18", ["layer1.0.conv1.weight"], r"(?!layer1\.0\.conv1\.weight).*"),
    ("resnet18", ["conv1", "bn1", "layer1"], r"(layer[2-4]|fc)\..*"),
    ("resnet18", ["fc"], r"(?!fc\.).*"),
    # a list that begins with a minus begins from all
    ("resnet18", ["-layer4"], r"layer4\..*"),
    ("resnet18", ["-layer4", "-fc"], r"(layer4|fc)\..*"),
    ("resnet18", ["all", "-layer4"], r"layer4\..*"),
    ("resnet18", ["layer3", "-layer3.1"], r"(?!layer3\.0\.).*"),
    # later entries win
    ("resnet18", ["all", "-layer4", "layer4.0"], r"layer4\.1\..*"),
    ("resnet18", ["-layer4", "layer4.0", "-layer4.0.bn1"], r"layer4\.(1\..*|0\.bn1\..*)"),
    ("resnet18", ["-all", "conv1"], r"(?!conv1\.).*"),
    ("resnet18", ["all", "none"], EVERYTHING),
    ("resnet18", ["all", "-all"], EVERYTHING),
    ("resnet18", ["-layer4", "all"], NOTHING),
    # wildcards: a star crosses dots, a question mark is one letter
    ("resnet18", ["layer?"], r"(conv1|bn1|fc)\..*"),
    ("resnet18", ["layer*"], r"(conv1|bn1|fc)\..*"),
    ("resnet18", ["-*.bn?"], r"layer\d\.\d\.bn\d\..*"),
    ("resnet18", ["-*bn?"], r"(layer\d\.\d\.)?bn\d\..*"),
    ("resnet18", ["*.bias"], r".*\.weight"),
    ("resnet18", ["all", "-layer?.0.conv1"], r"layer\d\.0\.conv1\.weight"),
    ("resnet18", ["*"], NOTHING),
    # kinds
    ("resnet18", ["@norm"], rf"(?!{NORMS}).*"),
    ("resnet18", ["all", "-@norm"], NORMS),
    ("resnet18", ["-@norm", "@bias"], NORMS.replace("|bias", "")),
    ("resnet18", ["@bias"], r".*\.weight"),
    ("resnet18", ["-@bias"], r".*\.bias"),
    # in the order of the forward pass
    ("resnet18", ["through:layer2"], r"(layer[34]|fc)\..*"),
    ("resnet18", ["through:conv1"], r"(?!conv1\.).*"),
    ("resnet18", ["through:maxpool"], r"(layer\d|fc)\..*"),
    ("resnet18", ["through:avgpool"], r"fc\..*"),
    ("resnet18", ["through:fc"], NOTHING),
    ("resnet18", ["through:layer2.0.bn2"], r"(layer2\.0\.downsample|layer2\.1|layer[34]|fc)\..*"),
    ("resnet18", ["through:layer2", "-layer1"], r"(layer[134]|fc)\..*"),
    ("resnet18", ["all", "-through:layer2"], r"(conv1|bn1|layer[12])\..*"),
    ("efficientnet_b0", ["through:features.3"], r"(features\.[4-8]|classifier)\..*"),
    ("efficientnet_b0", ["features.?"], r"classifier\..*"),
    ("efficientnet_b0", ["all", "-features.8"], r"features\.8\..*"),
    # parameters of a module itself, and modules that their parent only reads (attention's out_proj)
    ("vit_b_16", ["class_token"], r"(?!class_token).*"),
    ("vit_b_16", ["all", "-*.pos_embedding"], r"encoder\.pos_embedding"),
    ("vit_b_16", ["through:encoder.layers.encoder_layer_5"], LATER),
    (
        "vit_b_16",
        ["through:encoder.layers.encoder_layer_5.self_attention.out_proj"],
        rf"encoder\.layers\.encoder_layer_5\.(ln_2|mlp)\..*|{LATER}",
    ),
    ("vit_b_16", ["through:encoder.ln"], r"heads\..*"),
    ("vit_b_16", ["-@bias"], r".*bias"),
    ("vit_b_16", ["-*.in_proj_bias"], r".*\.in_proj_bias"),
    ("convnext_tiny", ["through:features.0"], r"(features\.[1-7]|classifier)\..*"),
    # layer_scale belongs to the block, which has begun, but is multiplied after what the entry names
    (
        "convnext_tiny",
        ["through:features.1.0.block", "features.1.1", "features.1.2"],
        r"features\.1\.0\.layer_scale|(features\.[2-7]|classifier)\..*",
    ),
    ("convnext_tiny", ["through:features.1.0"], r"(features\.1\.[12]|features\.[2-7]|classifier)\..*"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "patterns", "expected"), LANGUAGE, ids=lambda value: str(value)[:60])
def test_the_language(kept, name, patterns, expected):
    model = kept(name)
    size = 224 if name == "vit_b_16" else 64
    frozen = freeze(model, patterns, None, torch.zeros(1, 3, size, size))
    assert_trains(model, expected)
    assert frozen.parameters == {name for name, p in model.named_parameters() if not p.requires_grad}


def test_norms_of_every_kind_are_meant():
    with torch.device("meta"):
        swin = build_model("swin_t")
        replace_head(swin, "head", 10)
        group = nn.Sequential(
            nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4), nn.InstanceNorm2d(4, affine=True), nn.RMSNorm(4)
        )
    freeze(swin, ["-@norm"], "head", PICTURE)
    assert_trains(swin, r"features\.0\.2\..*|.*\.norm\d?\..*|norm\..*|head\..*")
    freeze(group, ["-@norm"], None, PICTURE)
    assert_trains(group, r"[123]\..*")


def test_a_new_head_always_trains(replaced):
    model = replaced("resnet18")
    for patterns in (["all"], ["*"], ["through:avgpool"], ["through:layer4"], ["@bias", "@norm", "*.weight"]):
        freeze(model, patterns, "fc", PICTURE)
        assert {"fc.weight", "fc.bias"} <= set(trainable(model))
    deep = replaced("resnet18", (8,))
    freeze(deep, ["all"], "fc", PICTURE)
    assert trainable(deep) == ["fc.0.weight", "fc.0.bias", "fc.2.weight", "fc.2.bias"]


def test_what_holds_a_new_head_beside_backbone_is_no_head(replaced):
    model = replaced("alexnet")
    freeze(model, ["all", "-classifier"], "classifier.6", PICTURE)
    assert_trains(model, r"classifier\..*")
    freeze(model, ["classifier"], "classifier.6", PICTURE)
    assert_trains(model, r"features\..*|classifier\.6\..*")


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ("layer5", r"freeze=layer5: matches nothing; there is conv1, bn1, layer1, .*, layer4, fc "),
        ("-layer5", r"freeze=-layer5: matches nothing"),
        ("layer4.2.conv1", r"freeze=layer4\.2\.conv1: .* there is layer4\.0, layer4\.1 \("),
        ("layer4.0.conv9", r"there is layer4\.0\.conv1, layer4\.0\.bn1, .*downsample"),
        ("conv1.bias", r"there is conv1\.weight \("),
        ("layer", "freeze=layer: matches nothing"),
        ("*.bn4", r"freeze=\*\.bn4: matches nothing; there is conv1"),
        ("relu", "freeze=relu: matches nothing"),
        ("--layer4", "freeze=--layer4: matches nothing"),
        ("All", "freeze=All: matches nothing"),
        ("@norms", "freeze=@norms: expected @norm, @bias or @last"),
        ("through:layer5", r"freeze=through:layer5: expected the name of a module; there is conv1, bn1"),
        ("-through:layer2.7", r"freeze=-through:layer2\.7: .* there is layer2\.0, layer2\.1"),
        ("through:", r"freeze=through:: expected the name of a module"),
        ("-none", r"^freeze=-none: matches nothing; there is conv1"),
        ("through:layer1.0.conv1.weight", r"the name of a module; there is layer1\.0\.conv1\.weight"),
    ],
)  # fmt: skip
def test_an_entry_that_matches_nothing_lists_what_there_is(kept, entry, told):
    with pytest.raises(RequestError, match=told) as refused:
        freeze(kept("resnet18"), ["all", entry], None, PICTURE)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("entry", ["@last", "-@last", "through:0"])
def test_a_stage_or_a_module_without_parameters_matches_nothing(entry):
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 2), nn.ReLU(), nn.Linear(2, 2))
    for model, head in ((flat, "3"), (flat[:2], "1")):
        with pytest.raises(RequestError, match=f"^freeze={entry}: matches nothing; there is 1"):
            freeze(model, ["all", entry], head, torch.zeros(1, 3, 64, 64))


def test_what_there_is_names_a_modules_own_parameters(kept):
    with pytest.raises(RequestError, match=r"there is class_token, conv_proj, encoder, heads \("):
        freeze(kept("vit_b_16"), ["cls_token"], None, PICTURE)


@pytest.mark.parametrize(
    ("name", "entry"),
    [
        ("resnet18", "fc"),
        ("resnet18", "-fc"),
        ("resnet18", "fc.weight"),
        ("resnet18", "f?"),
        ("resnet18", "through:fc"),
        ("efficientnet_b0", "classifier"),  # holds the new head and nothing else that has parameters
        ("efficientnet_b0", "classifier.1"),
    ],
)
def test_naming_the_new_head_is_explained(replaced, name, entry):
    model = replaced(name)
    with pytest.raises(RequestError, match=f"freeze={re.escape(entry)}: .*is the new head, which"):
        freeze(model, [entry], find_head(model), PICTURE)


def test_a_module_that_the_forward_pass_never_uses_ends_nothing():
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.used(x)

    with pytest.raises(
        RequestError, match="freeze=through:idle: expected a module that the forward pass uses"
    ):
        freeze(Idle(), ["through:idle"], None, PICTURE)


def test_the_first_of_several_executions_counts():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.late, self.early, self.again = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:  # executed in another order than registered
            return self.late(self.again(self.early(self.again(x))))

    model = Twice()
    freeze(model, ["through:again"], None, PICTURE)
    assert trainable(model) == ["late.weight", "late.bias", "early.weight", "early.bias"]
    freeze(model, ["through:early"], None, PICTURE)
    assert trainable(model) == ["late.weight", "late.bias"]


def test_asking_a_parameter_for_its_type_is_no_use_of_it():
    class Asking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.early, self.late = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.late(self.early(x.to(self.late.weight.dtype)))

    model = Asking()
    freeze(model, ["through:early"], None, PICTURE)
    assert trainable(model) == ["late.weight", "late.bias"]


def test_finding_the_order_leaves_the_model_as_it_was(kept):
    model = copy.deepcopy(kept("resnet18"))
    before = digest(model.state_dict())
    freeze(model, ["through:layer2"], None, torch.randn(2, 3, 64, 64))
    assert digest(model.state_dict()) == before
    assert not any(module._forward_hooks for module in model.modules())
