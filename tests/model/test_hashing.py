"""Frozen means frozen, bit for bit, in real training; and the figures of the notebooks."""

import copy

import pytest
import torch
from torch import nn

from finetune.errors import RunError
from finetune.model.freeze import Frozen, freeze
from finetune.model.hashing import Proof, digest, fingerprints
from finetune.model.head import find_head
from finetune.model.parameters import count_parameters
from finetune.training import optim
from support.small import stepped

PICTURE = torch.zeros(1, 3, 64, 64)


def trainable(model: nn.Module) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def epoch(model: nn.Module, frozen: Frozen, hold: bool = True) -> None:
    """Some steps of training on pictures far from the usual statistics, as Lightning makes them."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    for seed in range(3):
        model.train()
        if hold:
            frozen.hold(model)
        pictures = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(seed)) * 3 + 1
        optimizer.zero_grad()
        model(pictures).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize(
    ("name", "patterns"),
    [
        ("resnet18", ["all"]),
        pytest.param("resnet18", ["through:layer3"], marks=pytest.mark.slow),
        ("resnet18", ["all", "-@norm"]),
        pytest.param("resnet18", ["@bias"], marks=pytest.mark.slow),
        ("efficientnet_b0", ["through:features.7"]),
        ("convnext_tiny", ["-features.7"]),
    ],
    ids=str,
)
def test_frozen_means_frozen_bit_for_bit(replaced, name, patterns):
    model = copy.deepcopy(replaced(name))
    frozen = freeze(model, patterns, find_head(model), PICTURE)
    tensors = frozen.tensors(model)
    assert list(tensors) == [
        name for name in [*dict(model.named_parameters()), *dict(model.named_buffers())] if name in tensors
    ]
    before, everything = fingerprints(tensors), fingerprints(model.state_dict())
    epoch(model, frozen)
    assert fingerprints(frozen.tensors(model)) == before
    after = fingerprints(model.state_dict())
    changed = {key for key in everything if after[key] != everything[key]}
    assert changed == set(everything) - set(before)  # and all the rest did move


def test_without_hold_the_statistics_move_and_the_proof_sees_it(replaced):
    model = copy.deepcopy(replaced("resnet18"))
    frozen = freeze(model, ["all"], "fc", PICTURE)
    proof = Proof(model, frozen)
    epoch(model, frozen)
    proof.check_unchanged(model)
    epoch(model, frozen, hold=False)
    after = fingerprints(frozen.tensors(model))
    moved = {name for name in proof.each if after[name] != proof.each[name]}
    assert moved == {name for name, _ in model.named_buffers()}
    assert len(moved) == 60
    with pytest.raises(RunError, match=r"frozen tensors changed .* bn1\.running_mean, .* and 54 more"):
        proof.check_unchanged(model)


def test_a_fingerprint_sees_one_bit_and_ignores_the_memory_format():
    value = torch.randn(4, 3, 2, 2)
    other = value.clone()
    other.view(torch.int32)[0, 0, 0, 0] ^= 1
    same = value.to(memory_format=torch.channels_last)
    assert fingerprints({"x": value}) == fingerprints({"x": same})
    assert digest({"x": value}) == digest({"x": same})
    assert fingerprints({"x": value}) != fingerprints({"x": other})
    assert digest({"x": value}) != digest({"x": other})
    assert digest({"x": value}) != digest({"y": value})
    assert digest({"x": value}) != digest({"x": value.reshape(4, 12)})
    assert digest({"x": torch.zeros(2)}) != digest({"x": torch.zeros(2, dtype=torch.int32)})
    assert digest({"x": torch.arange(6)[::2]}) == digest({"x": torch.tensor([0, 2, 4])})
    assert digest({"a": value, "b": other}) == digest({"b": other, "a": value})


def test_a_whole_resnet18_has_62_parameters_that_all_train(kept):
    model = kept("resnet18")
    freeze(model, ["none"], None, PICTURE)
    assert len(trainable(model)) == 62
    assert count_parameters(model) == {"total": 11_689_512, "trainable": 11_689_512}


def test_a_frozen_resnet18_trains_its_new_head_alone(replaced):
    model = replaced("resnet18")
    freeze(model, ["all"], "fc", PICTURE)
    assert trainable(model) == ["fc.weight", "fc.bias"]
    assert count_parameters(model) == {"total": 11_181_642, "trainable": 5_130}


@pytest.mark.slow
@pytest.mark.parametrize("patterns", [["all"], ["all", "-layer4"], ["all", "-@norm"]], ids=str)
def test_our_groups_train_as_an_optimiser_over_all_parameters_does(replaced, patterns):
    def trained(ours: bool) -> nn.Module:
        model = copy.deepcopy(replaced("resnet18"))
        frozen = freeze(model, patterns, "fc", PICTURE)
        options = {"lr": 0.01, "momentum": 0.9}
        if ours:
            groups = optim.parameter_groups(model, "fc", stepped())
            optimizer = optim.create_optimizer("sgd", groups, momentum=0.9)
        else:
            optimizer = torch.optim.SGD(model.parameters(), **options)
        generator = torch.Generator().manual_seed(1)
        for _ in range(3):
            model.train()
            frozen.hold(model)
            pictures = torch.randn(4, 3, 64, 64, generator=generator)
            loss = nn.functional.cross_entropy(model(pictures), torch.arange(4))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert all(parameter.grad is None for parameter in model.parameters() if not parameter.requires_grad)
        return model

    mine, theirs, start = trained(True), trained(False), replaced("resnet18")
    assert fingerprints(mine.state_dict()) == fingerprints(theirs.state_dict())
    assert not torch.equal(mine.fc.weight, start.fc.weight)


def test_with_everything_frozen_the_loss_carries_no_gradient(kept):
    model = kept("resnet18")
    freeze(model, ["all"], None, PICTURE)
    logits = model(torch.zeros(1, 3, 64, 64))
    assert logits.grad_fn is None
    assert not logits.requires_grad
