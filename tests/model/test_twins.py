"""timm's state dicts in torchvision's models and the other way round: right, or refused."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from finetune.errors import RequestError
from finetune.model import statedict
from finetune.model.build import build
from finetune.model.statedict import fit, read
from support.states import same_outputs, state_of, untrained


def test_timms_resnet18_has_torchvisions_names(trained):
    model = untrained("resnet18")
    assert fit(model, "resnet18", state_of(trained("timm/resnet18")), "w.pth", keep_head=True)[1] == []
    same_outputs(model, trained("timm/resnet18"))


TWINS = {ours: theirs for ours, theirs in statedict.TWINS.items() if theirs.startswith("timm/")}


def assert_twins(trained: Callable[..., nn.Module], ours: str, theirs: str) -> None:
    for name, source, twin in ((ours, theirs, theirs), (theirs, ours, f"torchvision's {ours}")):
        model = untrained(name)
        _, notes = fit(model, name, state_of(trained(source)), "w.pth", keep_head=True)
        assert notes == [f"the layers were matched by order and shape, as is right for {twin} and no other"]
        same_outputs(model, trained(source))


def test_timms_efficientnet_b0_and_torchvisions_are_one_network(trained):
    assert_twins(trained, "efficientnet_b0", TWINS["efficientnet_b0"])


@pytest.mark.slow
@pytest.mark.parametrize("ours", TWINS)
def test_every_pair_matched_by_order_is_one_network(trained, ours: str):
    assert_twins(trained, ours, TWINS[ours])


def test_matched_by_order_another_head_is_left_out_or_kept(trained):
    state = state_of(trained("timm/efficientnet_b0", 10))
    model = untrained("efficientnet_b0")
    _, notes = fit(model, "efficientnet_b0", state, "w.pth", keep_head=False)
    assert [note.partition(",")[0] for note in notes] == [
        "the layers were matched by order and shape",
        "the head in the weights has 10 outputs and was left out",
    ]
    model = untrained("efficientnet_b0")
    fit(model, "efficientnet_b0", state, "w.pth", keep_head=True)
    same_outputs(model, trained("timm/efficientnet_b0", 10))
    without = {key: value for key, value in state.items() if not key.startswith("classifier.")}
    model = untrained("efficientnet_b0")
    _, notes = fit(model, "efficientnet_b0", without, "w.pth", keep_head=False)
    assert notes[1:] == ["the weights have no head"]
    assert torch.equal(model.features[0][0].weight, state["conv_stem.weight"])


def test_equal_shapes_alone_prove_nothing():
    # The same tensors in the same order, but not the same network: torchvision's has another epsilon.
    with torch.device("meta"):
        model, theirs = build("efficientnet_v2_s"), build("timm/tf_efficientnetv2_s")
    ours = {
        key: value for key, value in model.state_dict().items() if not key.endswith("num_batches_tracked")
    }
    other = [value for key, value in theirs.state_dict().items() if not key.endswith("num_batches_tracked")]
    assert [value.shape for value in ours.values()] == [value.shape for value in other]
    with pytest.raises(RequestError, match=r"missing .* unexpected"):
        fit(model, "efficientnet_v2_s", dict(theirs.state_dict()), "w.pth", keep_head=False)


def test_tensors_in_another_order_are_not_matched(trained, tmp_path: Path):
    state = state_of(trained("timm/efficientnet_b0"))
    first = "conv_stem.weight"
    moved = {key: value for key, value in state.items() if key != first} | {first: state[first]}
    swapped = {
        key.replace("bn1.weight", "bn1.b")
        .replace("bn1.bias", "bn1.weight")
        .replace("bn1.b", "bn1.bias"): value
        for key, value in state.items()
    }
    save_file(state, tmp_path / "w.safetensors")  # which keeps no order
    for other in (moved, swapped, read(tmp_path / "w.safetensors")[0]):
        with pytest.raises(RequestError, match=r"missing .* unexpected"):
            fit(untrained("efficientnet_b0"), "efficientnet_b0", other, "w", keep_head=False)
