"""State dicts fitted into models: what fits computes the same as its source, what does not is named."""

import re
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from finetune.errors import RequestError
from finetune.model.hashing import digest
from finetune.model.head import find_head
from finetune.model.statedict import fit_state_dict, read_state_dict
from support.states import same_outputs, state_of, untrained


def test_a_fitted_model_computes_what_its_source_does(trained):
    model = untrained("resnet18")
    loaded, notes = fit_state_dict(model, state_of(trained("resnet18")), "w.pth", keep_head=False)
    assert notes == []
    assert digest(loaded) == digest(model.state_dict()) == digest(state_of(trained("resnet18")))
    same_outputs(model, trained("resnet18"))


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "model.", "model._orig_mod.", "module.model.", "net."]
)
def test_wrapper_prefixes_are_taken_off(trained, prefix: str):
    model = untrained("resnet18")
    wrapped = {prefix + key: value for key, value in state_of(trained("resnet18")).items()}
    assert fit_state_dict(model, wrapped, "w.pth", keep_head=False)[1] == []
    assert digest(model.state_dict()) == digest(state_of(trained("resnet18")))


def test_a_prefix_that_only_some_keys_have_is_no_wrapper(trained):
    state = {
        ("module." if key.startswith("layer1") else "") + key: value
        for key, value in state_of(trained("resnet18")).items()
    }
    with pytest.raises(RequestError, match=r"missing \(layer1\..* unexpected \(module\.layer1"):
        fit_state_dict(untrained("resnet18"), state, "w.pth", keep_head=False)


def test_a_prefix_that_is_the_models_own_stays():
    model = nn.Sequential(OrderedDict(model=nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(4, 2))))
    state = {key: torch.randn_like(value) for key, value in model.state_dict().items()}
    fit_state_dict(model, state, "w.pth", keep_head=True)
    assert digest(model.state_dict()) == digest(state)
    fit_state_dict(
        model, {f"model.{key}": value * 2 for key, value in state.items()}, "w.pth", keep_head=True
    )
    assert digest(model.state_dict()) == digest({key: value * 2 for key, value in state.items()})


def test_half_precision_files_become_float32(trained):
    model = untrained("resnet18")
    half = {
        key: value.half() if value.is_floating_point() else value
        for key, value in state_of(trained("resnet18")).items()
    }
    fit_state_dict(model, half, "w.safetensors", keep_head=False)
    assert {value.dtype for value in model.parameters()} == {torch.float32}
    assert torch.equal(model.conv1.weight, half["conv1.weight"].float())


def test_counters_of_batches_may_lack(trained):
    state = {key: value for key, value in state_of(trained("resnet18")).items() if "num_batches" not in key}
    assert fit_state_dict(untrained("resnet18"), state, "w.pth", keep_head=True)[1] == []


def test_auxiliary_heads_are_left_out(trained):
    state = state_of(trained("googlenet")) | {
        "aux1.fc1.weight": torch.zeros(3),
        "aux2.conv.bn.bias": torch.zeros(3),
    }
    assert fit_state_dict(untrained("googlenet"), state, "w.pth", keep_head=True)[1] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("mnasnet0_5", None),
        ("densenet121", (r"\.(norm|conv)([12])\.", r".\1.\2.")),
        pytest.param("vit_b_32", (r"\.mlp\.0\.", ".mlp.linear_1."), marks=pytest.mark.slow),
    ],
)
def test_what_torchvisions_own_loaders_see_to_is_seen_to(
    trained, tmp_path: Path, name: str, pattern: tuple[str, str] | None
):
    # MNASNet refuses a state dict without its version; older files call some layers otherwise.
    state = state_of(trained(name))
    if pattern:
        old = {re.sub(*pattern, key) for key in state} - state.keys()
        assert old
        state = {
            re.sub(*pattern, key).replace(".mlp.3.", ".mlp.linear_2."): value for key, value in state.items()
        }
    save_file(state, tmp_path / "w.safetensors")
    model = untrained(name)
    _, notes = fit_state_dict(
        model, read_state_dict(tmp_path / "w.safetensors")[0], "w.safetensors", keep_head=True
    )
    assert notes == []
    assert digest(model.state_dict()) == digest(state_of(trained(name)))


# --- the head in the weights

TEN = {"fc.weight": torch.zeros(10, 512), "fc.bias": torch.zeros(10)}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda s: s | TEN, "has 10 outputs and was left out"),
        (lambda s: {k: v for k, v in s.items() if not k.startswith("fc.")}, "the weights have no head"),
        (lambda s: {k.replace("fc.", "fc.2."): v for k, v in s.items()}, "has layers of its own and was"),
    ],
    ids=["ten outputs", "none", "hidden layers"],
)  # fmt: skip
def test_another_head_is_left_out_with_one_note(trained, change, told: str):
    model, state = untrained("resnet18"), change(state_of(trained("resnet18")))
    before = digest({"w": model.fc.weight})
    loaded, notes = fit_state_dict(model, state, "w.pth", keep_head=False)
    assert len(notes) == 1
    assert told in notes[0]
    assert digest({"w": model.fc.weight}) == before
    assert torch.equal(model.conv1.weight, state["conv1.weight"])
    assert loaded.keys() == {key for key in state_of(trained("resnet18")) if not key.startswith("fc.")}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "maxvit_t"])
def test_a_kept_head_of_another_size_replaces_the_models(trained, name: str):
    model = untrained(name)
    _, notes = fit_state_dict(model, state_of(trained(name, 10)), "w.pth", keep_head=True)
    assert notes == []
    assert len(model.get_parameter(f"{find_head(model)}.weight")) == 10
    assert digest(model.state_dict()) == digest(state_of(trained(name, 10)))


@pytest.mark.parametrize(
    "change",
    [
        lambda s: {k: v for k, v in s.items() if not k.startswith("fc.")},
        lambda s: {k.replace("fc.", "fc.2."): v for k, v in s.items()},
        lambda s: {k: v for k, v in s.items() if k != "fc.bias"},
        lambda s: s | {"fc.weight": torch.zeros(1000, 100)},
    ],
    ids=["none", "hidden layers", "no bias", "another width"],
)
def test_a_head_to_keep_that_is_not_there_is_refused(trained, change):
    state = change(state_of(trained("resnet18")))
    with pytest.raises(
        RequestError, match=r"head=keep: expected weights whose head is the single layer fc; weights=w\.pth"
    ):
        fit_state_dict(untrained("resnet18"), state, "w.pth", keep_head=True)


# --- what does not fit


SMALLER = {"conv1.weight": torch.zeros(64, 3, 3, 3)}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda s: s.pop("conv1.weight"), [r"1 missing \(conv1\.weight\)"]),
        (
            lambda s: [s.pop(key) for key in list(s) if key.startswith("layer4")],
            [r"25 missing \(layer4\.0\.conv1\.weight, .* and 22 more\)"],
        ),
        (lambda s: s.update({"layer4.2.b": torch.zeros(1)}), [r"1 unexpected \(layer4\.2\.b\)"]),
        (lambda s: s.update({"token": torch.zeros(1)}), [r"1 unexpected \(token\)"]),
        (lambda s: s.update(SMALLER), [r"1 of another shape \(conv1\.weight\)"]),
        (
            lambda s: s.update(SMALLER | {"bn1.b": s.pop("bn1.bias")}),
            [r"1 missing \(bn1\.bias\)", r"1 unexpected \(bn1\.b\)", r"1 of another shape \(conv1\.weight\)"],
        ),
    ],
    ids=["missing", "many missing", "unexpected", "of the model", "misshapen", "all three"],
)
@pytest.mark.parametrize("keep_head", [True, False])
def test_misfits_of_the_backbone_are_counted_and_named(trained, change, told: list[str], keep_head: bool):
    state, model = state_of(trained("resnet18")), untrained("resnet18")
    change(state)
    before = digest(model.state_dict())
    with pytest.raises(
        RequestError, match=r"weights=w\.pth: expected the 120 tensors of this model's backbone"
    ) as refused:
        fit_state_dict(model, state, "w.pth", keep_head)
    for part in told:
        assert re.search(part, str(refused.value))
    assert digest(model.state_dict()) == before


def test_another_architecture_is_refused(trained):
    with pytest.raises(RequestError, match=r"missing .* unexpected"):
        fit_state_dict(untrained("resnet18"), state_of(trained("squeezenet1_1")), "w.pth", keep_head=False)


def test_timms_resnet18_has_torchvisions_names(trained):
    model = untrained("resnet18")
    assert fit_state_dict(model, state_of(trained("timm/resnet18")), "w.pth", keep_head=True)[1] == []
    same_outputs(model, trained("timm/resnet18"))


def test_another_librarys_names_are_refused(trained):
    state = state_of(trained("timm/efficientnet_b0"))
    with pytest.raises(RequestError, match=r"missing \(features.* unexpected \(conv_stem"):
        fit_state_dict(untrained("efficientnet_b0"), state, "w.pth", keep_head=False)


# --- tensors of other kinds

KINDS = {
    "meta": lambda w: w.to("meta"),
    "sparse": lambda w: w.to_sparse(),
    "quantized": lambda w: torch.quantize_per_tensor(w, 0.01, 0, torch.qint8),
    "nested": lambda w: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
    "integer": lambda w: (w * 100).to(torch.int8),
    "bool": lambda w: w > 0,
    "complex": lambda w: w * 1j,
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors", "ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("kind", KINDS)
def test_tensors_that_are_no_plain_floating_point_numbers_are_refused(trained, kind: str):
    state = state_of(trained("resnet18"))
    state["conv1.weight"] = KINDS[kind](state["conv1.weight"])
    with pytest.raises(RequestError, match=r"^weights=w\.pth: expected plain .* in conv1\.weight, not torch"):
        fit_state_dict(untrained("resnet18"), state, "w.pth", keep_head=False)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_nan_and_infinity_are_refused(trained, number: float):
    state = state_of(trained("resnet18"))
    state["conv1.weight"] = state["conv1.weight"].index_fill(0, torch.tensor([3]), number)
    with pytest.raises(RequestError, match=r"^weights=w\.pth: expected finite .* in conv1\.weight$"):
        fit_state_dict(untrained("resnet18"), state, "w.pth", keep_head=False)
    state = state_of(trained("resnet18")) | {"fc.weight": torch.full((10, 512), number)}
    fit_state_dict(untrained("resnet18"), state, "w.pth", keep_head=False)  # a head that is left out


@pytest.mark.parametrize(("rows", "biases"), [(7, 5), (0, 0)])
def test_a_head_that_is_no_layer_is_not_kept(trained, rows: int, biases: int):
    head = {"fc.weight": torch.zeros(rows, 512), "fc.bias": torch.zeros(biases)}
    with pytest.raises(RequestError, match=rf"have fc\.weight \[{rows}, 512\], fc\.bias \[{biases}\]"):
        fit_state_dict(untrained("resnet18"), state_of(trained("resnet18")) | head, "w.pth", keep_head=True)


def test_a_name_of_a_million_letters_is_cut(trained):
    with pytest.raises(RequestError, match=r"1 unexpected .k*…") as refused:
        fit_state_dict(untrained("resnet18"), {"k" * 10**6: torch.zeros(2)}, "w.pth", keep_head=False)
    assert len(str(refused.value)) < 1000
