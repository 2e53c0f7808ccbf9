"""A model ready to train: the steps in their order, and what is refused on the way."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from finetune.errors import RequestError
from finetune.model.assemble import Model, ModelConfig, assemble
from finetune.model.hashing import digest, fingerprints
from finetune.model.parameters import count_parameters
from finetune.model.preprocessing import Preprocessing

TEN = [f"class {i}" for i in range(10)]


def made(
    name: str = "resnet18", head: int | str = "auto", size: int | str = 64, seed: int = 0, **more
) -> Model:
    patterns = more.pop("freeze", ["all"])
    classes = more.pop("classes", TEN)
    config = ModelConfig(
        name, more.pop("weights", "random"), patterns, head, seed=seed, image_size=size, **more
    )
    return assemble(config, classes)


def test_the_main_job():
    model = made(head=10)
    assert (model.name, model.head, model.outputs) == ("resnet18", "fc", 10)
    assert count_parameters(model.network) == {"total": 11_181_642, "trainable": 5_130}
    assert len(model.frozen.parameters) == 60
    assert len(model.frozen.buffers) == 60
    assert not model.backbone_trains()
    assert model.example.shape == (1, 3, 64, 64)
    assert model.network(model.example).shape == (1, 10)
    assert model.network.conv1.weight.is_contiguous(memory_format=torch.channels_last)


def test_the_head_has_one_output_per_class_or_as_many_as_asked_for():
    assert made(classes=["a", "b", "c"]).outputs == 3
    assert made(head=12).outputs == 12
    kept = made(head="keep", freeze=["none"])
    assert (kept.head, kept.outputs) == (None, 1000)
    assert count_parameters(kept.network) == {"total": 11_689_512, "trainable": 11_689_512}
    assert kept.backbone_trains()


@pytest.mark.parametrize("head", [3, 1])
def test_fewer_outputs_than_classes_are_refused(head: int):
    told = rf"^head={head}: expected 10 outputs .* \(class 0, class 1, class 2 and 7 more\), not {head}"
    with pytest.raises(RequestError, match=told):
        made(head=head)


def test_a_kept_head_needs_an_output_for_each_class_too():
    with pytest.raises(RequestError, match=r"^head=keep: expected 1001 outputs or more"):
        made(head="keep", classes=[str(i) for i in range(1001)])


def test_a_kept_head_is_backbone():
    model = made(head="keep", freeze=["fc"])
    assert {"fc.weight", "fc.bias"} == model.frozen.parameters
    assert not any(p.requires_grad for p in made(head="keep").network.parameters())


def test_the_seed_decides_the_numbers():
    first, again, other = made(seed=1), made(seed=1), made(seed=2)
    assert digest(first.network.state_dict()) == digest(again.network.state_dict())
    assert not torch.equal(first.network.fc.weight, other.network.fc.weight)
    assert not torch.equal(first.network.conv1.weight, other.network.conv1.weight)


def test_a_new_head_does_not_depend_on_the_weights(tmp_path):
    torch.save(made(seed=5, head="keep").network.state_dict(), tmp_path / "w.pth")
    ours, theirs = made(seed=1), made(seed=1, weights=str(tmp_path / "w.pth"))
    torch.manual_seed(1)
    expected = nn.Linear(512, 10).weight  # nor on the random numbers that making the backbone took
    assert torch.equal(ours.network.fc.weight, expected)
    assert torch.equal(theirs.network.fc.weight, expected)
    assert not torch.equal(ours.network.conv1.weight, theirs.network.conv1.weight)


def test_hidden_layers_of_the_head():
    model = made(hidden=[32], dropout=0.5)
    kinds = [type(layer) for layer in model.network.fc]
    assert kinds == [nn.Dropout, nn.Linear, nn.ReLU, nn.Dropout, nn.Linear]
    assert count_parameters(model.network)["trainable"] == 512 * 32 + 32 + 32 * 10 + 10
    assert all(module.training for module in model.network.fc.modules())


def test_pictures_have_the_weights_size_or_the_one_asked_for():
    assert made(size="auto").preprocessing == Preprocessing()
    assert made(size=112).preprocessing == Preprocessing(112, 128)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), [("vit_b_32", 100), ("alexnet", 32), ("inception_v3", 64)])
def test_a_size_that_the_model_cannot_take_is_refused(name: str, size: int):
    with pytest.raises(
        RequestError, match=rf"^data\.image_size={size}: ({name}|this model) cannot take images of that size"
    ) as refused:
        made(name, size=size)
    assert "\n" not in str(refused.value)


def test_looking_at_the_size_changes_nothing_of_the_network():
    model = made(freeze=["none"])
    assert int(model.network.bn1.num_batches_tracked) == 0
    assert all(module.training for module in model.network.modules())
    assert set(fingerprints(model.frozen.tensors(model.network))) == set()


@pytest.mark.slow
def test_a_kept_head_names_its_outputs_and_refuses_classes_that_it_does_not_know(tmp_path):
    first, file = made(head=3, classes=["a", "b", "c"], seed=3), tmp_path / "w.safetensors"
    state = {k: v.contiguous() for k, v in first.network.state_dict().items()}
    save_file(state, file, {**first.preprocessing.metadata(), "classes": '["a", "b", "c"]'})
    kept = made(weights=str(file), head="keep", classes=["c", "a"])
    assert kept.classes == ("a", "b", "c")
    assert made(weights=str(file), classes=["c", "d"]).classes == ("c", "d")
    with pytest.raises(RequestError) as refused:
        made(weights=str(file), head="keep", classes=["c", "d", "e"])
    assert str(refused.value) == (
        f"head=keep: expected classes that weights={file} know (a, b, c), not d, e; head=auto makes a new"
        " head"
    )


def test_a_run_of_other_classes_serves_as_weights(tmp_path):
    first = made(head=4, classes=["a", "b", "c", "d"], seed=3)
    text = first.preprocessing.metadata()
    save_file(
        {k: v.contiguous() for k, v in first.network.state_dict().items()}, tmp_path / "w.safetensors", text
    )
    second = made(weights=str(tmp_path / "w.safetensors"), size="auto")
    assert second.preprocessing.crop_size == 64
    assert second.weights.notes == [
        "the head in the weights has 4 outputs and was left out (head=keep keeps it, -fc in freeze trains it)"
    ]
    assert torch.equal(second.network.conv1.weight, first.network.conv1.weight)
    kept = made(weights=str(tmp_path / "w.safetensors"), head="keep", classes=["a", "b"])
    assert kept.outputs == 4
    assert torch.equal(kept.network.fc.weight, first.network.fc.weight)
