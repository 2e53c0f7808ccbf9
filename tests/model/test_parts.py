"""Checkpoints of others: the one network in them that fits is taken, and what is left out is named."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from finetune.errors import RequestError
from finetune.model.hashing import digest
from finetune.model.parts import State
from finetune.model.statedict import fit_state_dict, read_state_dict
from finetune.model.weights import load_weights
from support.states import state_of, untrained

NAME = "timm/test_resnet"


@pytest.fixture(scope="module")
def state(trained) -> State:
    return state_of(trained(NAME))


def under(prefix: str, state: State, factor: float = 1.0, head: bool = True) -> State:
    return {prefix + k: v * factor for k, v in state.items() if head or not k.startswith("fc.")}


def loaded(content: Any, folder: Path, part: str = "") -> tuple[State, list[str]]:
    """The model's state after a file with that content was loaded, and the notes."""
    torch.save(content, folder / "w.pth")
    model = untrained(NAME)
    weights = load_weights(model, NAME, f"{folder / 'w.pth'}{part}")
    return state_of(model), weights.notes


def same_backbone(found: State, state: State, factor: float = 1.0) -> bool:
    return digest(under("", found, head=False)) == digest(under("", state, factor, head=False))


OTHER = {"criterion.weight": torch.ones(3), "val_acc.tp": torch.zeros(3)}
LAYOUTS: dict[str, tuple[Callable[[State], Any], str]] = {
    "torchvision": (lambda s: {"model": s, "optimizer": {"state": {0: {"m": torch.ones(2)}}}}, ""),
    "ignite": (lambda s: {"model_state_dict": s, "epoch": 3}, ""),
    "net": (lambda s: {"net": under("module.", s), "acc": 91.2}, ""),
    "params": (lambda s: {"params": s}, ""),
    "lightning": (
        lambda s: {"state_dict": under("model.", s) | OTHER},
        "criterion.weight, .*val_acc.tp",
    ),
    "bare": (lambda s: s | OTHER, "network: criterion.weight, val_acc.tp"),
    "encoder": (lambda s: {"state_dict": under("encoder.", s, head=False)}, "the weights have no head"),
    "swav": (
        lambda s: under("module.", s, head=False) | {"module.prototypes.weight": torch.ones(3)},
        "network: module.prototypes.weight",
    ),
    "compiled": (lambda s: {"model": under("module._orig_mod.", s)}, ""),
    "detector": (
        lambda s: under("backbone.body.", s, head=False) | {"rpn.w": torch.ones(2)},
        "rpn.w",
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_of_others_is_understood(state: State, tmp_path: Path, layout: str) -> None:
    made, told = LAYOUTS[layout]
    found, notes = loaded(made(state), tmp_path)
    assert same_backbone(found, state)
    assert bool(notes) == bool(told)
    assert re.search(told, " ".join(notes))


TWO: dict[str, tuple[Callable[[State, State], Any], str, str]] = {
    "timm": (lambda a, b: {"state_dict": a, "state_dict_ema": b}, "state_dict_ema", "state_dict"),
    "torchvision": (
        lambda a, b: {"model": a, "model_ema": under("module.", b) | {"n_averaged": torch.ones(1)}},
        "model_ema.module",
        "model",
    ),
    "lightning": (
        lambda a, b: {"state_dict": under("net.", a) | under("ema_model.", b)},
        "state_dict.ema_model",
        "state_dict.net",
    ),
    "basicsr": (lambda a, b: {"params": a, "params_ema": b}, "params_ema", "params"),
    "moco": (
        lambda a, b: {"state_dict": under("module.encoder_k.", a) | under("module.encoder_q.", b)},
        "state_dict.module.encoder_q",
        "state_dict.module.encoder_k",
    ),
    "moco alone": (lambda a, b: under("encoder_k.", a) | under("encoder_q.", b), "encoder_q", "encoder_k"),
    "dino": (
        lambda a, b: {"student": under("module.backbone.", a), "teacher": under("backbone.", b)},
        "teacher.backbone",
        "student.module.backbone",
    ),
}


@pytest.mark.parametrize("layout", TWO)
def test_of_two_networks_the_better_is_taken_and_told_and_the_other_can_be_asked_for(
    state: State, tmp_path: Path, layout: str
) -> None:
    made, better, other = TWO[layout]
    content = made(state, under("", state, 2.0))
    found, notes = loaded(content, tmp_path)
    assert same_backbone(found, state, 2.0)
    assert notes[0] == f"{better} is taken of what fits; weights=FILE:NAME takes another: {other}"
    for part, factor in ((other, 1.0), (better, 2.0)):
        found, notes = loaded(content, tmp_path, f":{part}")
        assert same_backbone(found, state, factor)
        assert not any("is taken" in note for note in notes)


def test_two_of_which_neither_is_better_have_to_be_named(state: State, tmp_path: Path) -> None:
    content = {"online": state, "target": under("", state, 2.0)}
    with pytest.raises(RequestError, match=r"w\.pth: expected one network, not online, target;"):
        loaded(content, tmp_path)
    assert same_backbone(loaded(content, tmp_path, ":target")[0], state, 2.0)
    with pytest.raises(RequestError, match=r"w\.pth:tar: expected one of online, target after the colon"):
        loaded(content, tmp_path, ":tar")


def test_a_name_that_is_not_there_is_answered_with_those_that_are(state: State, tmp_path: Path) -> None:
    content = {
        "state_dict": under("module.encoder_k.", state) | under("module.encoder_q.", state),
        "epoch": 1,
    }
    with pytest.raises(
        RequestError,
        match=r"w\.pth:encoder_k: expected one of state_dict after the colon",
    ):
        loaded(content, tmp_path, ":encoder_k")
    with pytest.raises(RequestError, match=r"n\.pth:model: expected a file that is there,"):
        load_weights(untrained(NAME), NAME, f"{tmp_path}/n.pth:model")


def test_a_dict_with_two_names_is_one_network(state: State, tmp_path: Path) -> None:
    content = {"model": {"net": state}, "other": {"net": state}}
    model, notes = loaded(content, tmp_path)
    assert same_backbone(model, state)
    assert notes == []


@pytest.mark.parametrize("prefix", ["", "module.", "state_dict:model."])
def test_an_incomplete_backbone_is_an_error_that_names_what_there_is(state: State, prefix: str) -> None:
    half = {key: value for key, value in under(prefix, state).items() if "layer4" not in key}
    with pytest.raises(RequestError, match=r"missing \(layer4\.0\.conv1\.weight"):
        fit_state_dict(untrained(NAME), half | OTHER, "w.pth", keep_head=False)


def test_an_unknown_network_is_told_by_its_names(tmp_path: Path) -> None:
    content = {"net": {"stem.weight": torch.ones(3)}, "other": {"a": {"b": torch.ones(2)}}, "epoch": 2}
    with pytest.raises(RequestError, match=r"missing \(.* 2 unexpected \(net\.stem\.weight, other\.a\.b\)"):
        loaded(content, tmp_path)


@pytest.mark.parametrize(
    "hollow",
    [torch.zeros(1, 1).expand(10**9, 96), torch.zeros(10**9, 96, device="meta")],
    ids=["stride 0", "meta"],
)
def test_a_head_of_a_billion_outputs_without_numbers_is_refused(
    state: State, tmp_path: Path, hollow: Tensor
) -> None:
    torch.save(state | {"fc.weight": hollow, "fc.bias": torch.zeros(1).expand(10**9)}, tmp_path / "w.pth")
    read, _ = read_state_dict(tmp_path / "w.pth")
    for keep_head in (True, False):
        with pytest.raises(
            RequestError, match=r"w\.pth: expected .*one for each place, in fc\.weight, not torch"
        ):
            fit_state_dict(untrained(NAME), read, "w.pth", keep_head)
