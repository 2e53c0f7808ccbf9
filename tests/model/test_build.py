"""Models by name, from torchvision and from timm, as they come before weights."""

import sys

import pytest
import torch
import torchvision

from finetune.errors import RequestError
from finetune.model import build


def test_every_classification_model_of_torchvision_is_there():
    assert len(build.model_names()) >= 80
    assert {"resnet18", "vit_b_16", "swin_v2_t", "maxvit_t", "googlenet"} <= set(build.model_names())


def test_a_model_is_torchvisions_own():
    torch.manual_seed(3)
    ours = build.build_model("resnet18").state_dict()
    torch.manual_seed(3)
    theirs = torchvision.models.resnet18().state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "googlenet", "timm/test_vit"])
def test_where_weights_will_be_loaded_none_are_drawn_and_the_rest_is_as_ever(name):
    state = torch.get_rng_state()
    blank = build.build_model(name, initialised=False)
    assert torch.equal(torch.get_rng_state(), state)
    full = build.build_model(name)
    assert not torch.equal(torch.get_rng_state(), state)
    drawn = [key for key, p in full.named_parameters() if len(p.unique()) > 1]
    assert drawn
    assert not any(blank.get_parameter(key).any() for key in drawn)
    theirs, tensors = full.state_dict() | dict(full.named_buffers()), blank.state_dict()
    assert all(torch.equal(value, theirs[key]) for key, value in tensors.items() if key not in drawn)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_auxiliary_heads_are_gone_and_train_mode_gives_plain_logits(name):
    model = build.build_model(name)
    assert not [key for key in model.state_dict() if key.startswith(("aux", "AuxLogits"))]
    assert model.transform_input  # what all weights of these two were trained with
    logits = model.train()(torch.zeros(2, 3, 75, 75))
    assert isinstance(logits, torch.Tensor)
    assert logits.shape == (2, 1000)


def test_weights_for_another_size_change_a_vision_transformers_size():
    swag = torchvision.models.ViT_B_16_Weights.IMAGENET1K_SWAG_E2E_V1
    with torch.device("meta"):
        assert build.build_model("vit_b_16", swag).image_size == 384
        assert (
            build.build_model("vit_b_16", torchvision.models.ViT_B_16_Weights.IMAGENET1K_V1).image_size == 224
        )


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("resnet19", "model=resnet19: .*resnet18"),
        ("ResNet18", "model=ResNet18: .*resnet18"),
        ("fcn_resnet50", "model=fcn_resnet50: expected a classification model"),
        ("efficientnet_lite", r"model=efficientnet_lite: .* \(efficientnet_lite0, "),
        ("timm/resnet1818", "model=timm/resnet1818: timm has no such model; near are .*resnet"),
        ("timm/", "model=timm/: timm has no such model"),
    ],
)
def test_a_name_that_is_none_is_refused_with_near_ones(name, told):
    with pytest.raises(RequestError, match=told):
        build.build_model(name)


def test_without_timm_its_models_name_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)  # as Python marks what cannot be imported
    with pytest.raises(RequestError, match=r"model=timm/resnet18: .*finetune-toolkit\[timm\]"):
        build.build_model("timm/resnet18")


@pytest.mark.parametrize(
    ("name", "size"),
    [("resnet18", 64), ("vit_small_patch14_dinov2", 518), ("vit_tiny_patch16_224.augreg_in21k", 224)],
)
def test_a_model_of_timms_has_1000_outputs_whatever_its_own_weights_have(name, size):
    # DINOv2's own weights have no head, the other's 21,843 outputs.
    with torch.device("meta"):
        assert build.build_model(f"timm/{name}")(torch.zeros(1, 3, size, size)).shape == (1, 1000)
