import copy
import os
from contextlib import contextmanager
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image

from finetune.data import sources
from finetune.data.sources import Dataset
from finetune.errors import RunError
from finetune.features.load import LoadSettings, load_inputs
from finetune.features.plan import FeatureSettings, plan_features
from finetune.model.assemble import ModelConfig, assemble
from finetune.model.boundary import split

SIZE = 32


@contextmanager
def silent(*_):
    yield lambda done: None


def digits(count: int) -> Dataset:
    whole = sources.load_dataset("digits", None, 0.15, 0.15)
    return whole.without(range(count, len(whole.images)))


@cache
def assembled(freeze, classes):
    return assemble(ModelConfig("timm/test_resnet", "random", list(freeze), 10, image_size=SIZE), classes)


def prepared(tmp_path, freeze, dataset, **changed):
    model = copy.deepcopy(assembled(tuple(freeze), tuple(dataset.classes)))
    settings = FeatureSettings(
        cache="auto",
        cache_dir=tmp_path / "cache",
        cache_max_gb=20,
        augment="auto",
        precision="32",
        compile=False,
        device="cpu",
        multiplies_bf16=False,
    )
    loading = LoadSettings(
        workers="auto",
        seed=changed.pop("seed", 0),
        memo=tmp_path / "digests.sqlite",
        progress=silent,
        on_wait=lambda: None,
    )
    plan = plan_features(model, dataset, replace(settings, **changed))
    return model, load_inputs(plan, model, dataset, loading)


@pytest.mark.parametrize("name", ["timm/test_resnet", pytest.param("resnet18", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "freeze", [["all"], ["through:layer2"], ["all", "-layer4"], ["all", "-@norm"]], ids=str
)
def test_training_on_features_follows_training_on_pictures(freeze, name):
    """Promise: in float64, nothing folded, 20 steps agree to 1e-6 for every kind of freeze."""
    model = assemble(ModelConfig(name, "random", freeze, 10, image_size=SIZE), "abcdefghij")
    network = model.network.double()
    generator = torch.manual_seed(1)
    images = torch.randn(24, 3, SIZE, SIZE, dtype=torch.float64, generator=generator)
    labels = torch.randint(0, 10, (24,), generator=generator)
    finals = []
    for cached in (False, True):
        net = copy.deepcopy(network)
        model.frozen.hold(net.train())
        forward, inputs = net, images
        if cached:
            halves = split(net, images[:1])
            assert halves.prefix is not None
            with torch.no_grad():
                crossing = halves.prefix(images)
            forward = halves.suffix
            inputs = crossing
        optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.05, momentum=0.9)
        for step in range(20):
            chosen = torch.arange(step * 5, step * 5 + 8) % 24
            batch = tuple(t[chosen] for t in inputs) if isinstance(inputs, tuple) else inputs[chosen]
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(forward(batch), labels[chosen]).backward()
            optimizer.step()
        finals.append({name: value.clone() for name, value in net.state_dict().items()})
    moved = 0
    for name, value in finals[0].items():
        assert torch.allclose(value, finals[1][name], rtol=1e-6, atol=1e-6), name
        moved += not torch.equal(value, network.state_dict()[name])
    assert moved >= 2


def test_a_second_run_computes_nothing_and_gets_the_same_bits(tmp_path):
    dataset = digits(90)
    first = prepared(tmp_path, ["all"], dataset)[1]
    second = prepared(tmp_path, ["all"], dataset)[1]
    assert (first.features["computed"], first.features["reused"]) == (90, 0)
    assert (second.features["computed"], second.features["reused"]) == (0, 90)
    everything = torch.arange(90)
    assert torch.equal(first.inputs(everything), second.inputs(everything))


def test_pictures_of_the_same_content_are_computed_once_and_are_not_said_to_be_from_the_store(tmp_path):
    dataset = digits(20)
    doubled = replace(
        dataset,
        images=[*dataset.images, *dataset.images],
        labels=np.concatenate([dataset.labels, dataset.labels]),
        digests=[*dataset.digests, *dataset.digests],
        split={**dataset.split, "train": np.arange(40)},
    )
    ready = prepared(tmp_path, ["all"], doubled)[1]
    assert (ready.features["computed"], ready.features["reused"]) == (20, 0)
    assert torch.equal(ready.inputs(torch.arange(20)), ready.inputs(torch.arange(20, 40)))


@pytest.mark.parametrize(
    ("change", "computed"),
    [
        ({"seed": 7}, 0),
        ({"cache_max_gb": 10}, 0),
        ({"freeze": ["through:layer4"]}, 0),  # the same boundary
        pytest.param({"freeze": ["through:layer3"]}, 90, marks=pytest.mark.slow),
        ({"precision": "bf16"}, 90),
        ({"augment": "flip"}, 90),  # the mirrored view is new, the plain one is there
        pytest.param({"cache": "memory"}, 90, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_what_invalidates_the_store_and_what_does_not(tmp_path, change, computed):
    dataset = digits(90)
    prepared(tmp_path, ["all"], dataset)
    change = dict(change)
    ready = prepared(tmp_path, change.pop("freeze", ["all"]), dataset, **change)[1]
    assert ready.features["computed"] == computed


def folder(tmp_path, count=12):
    generator = np.random.default_rng(0)
    for i in range(count):
        path = tmp_path / "images" / "ab"[i % 2] / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(path)
    return tmp_path / "images"


def load(root) -> Dataset:
    return sources.load_dataset("folder", str(root), 0.15, 0.15)


@pytest.mark.slow
def test_a_changed_file_is_computed_anew_and_an_added_one_alone(tmp_path):
    root = folder(tmp_path)
    assert prepared(tmp_path, ["all"], load(root))[1].features["computed"] == 12
    Image.new("RGB", (30, 30), "red").save(root / "a" / "00.png")
    assert prepared(tmp_path, ["all"], load(root))[1].features["computed"] == 1
    Image.new("RGB", (30, 30), "blue").save(root / "b" / "new.png")
    (root / "b" / "copy.png").write_bytes((root / "b" / "new.png").read_bytes())
    ready = prepared(tmp_path, ["all"], load(root))[1]
    assert ready.features["computed"] == 1  # the copy has the same content, so the same features
    assert len(ready.dataset.images) == 14
    (root / "b" / "new.png").rename(root / "b" / "renamed.png")
    assert prepared(tmp_path, ["all"], load(root))[1].features["computed"] == 0


def test_broken_pictures_are_left_out_and_the_others_keep_their_features(tmp_path):
    root = folder(tmp_path)
    whole = prepared(tmp_path, ["all"], load(root))[1]
    broken = root / "a" / "04.png"
    broken.write_bytes(broken.read_bytes()[:100])
    ready = prepared(tmp_path, ["all"], load(root))[1]
    assert [bad.path for bad in ready.bad] == [str(broken)]
    assert (ready.features["computed"], ready.features["reused"]) == (0, 11)
    assert len(ready.dataset.images) == 11
    old = {str(path): i for i, path in enumerate(whole.dataset.images)}
    for i, path in enumerate(ready.dataset.images):
        assert torch.equal(ready.inputs(torch.tensor([i])), whole.inputs(torch.tensor([old[str(path)]])))


def test_a_batch_of_broken_pictures_alone_is_left_out(tmp_path):
    root = folder(tmp_path)
    for i in range(40):
        (root / "a" / f"000{i}.png").write_bytes(f"broken {i}".encode())
    ready = prepared(tmp_path, ["all"], load(root))[1]
    assert len(ready.bad) == 40
    assert ready.features["computed"] == len(ready.dataset.images) == 12


@pytest.mark.slow
def test_what_fills_most_of_the_cache_serves_the_next_run(tmp_path):
    root = folder(tmp_path)
    size = prepared(tmp_path / "measured", ["all"], load(root))[1].plan.size
    for computed in (12, 0):
        ready = prepared(tmp_path, ["all"], load(root), cache_max_gb=1.5 * size / 1e9)[1]
        assert (ready.plan.where, ready.features["computed"]) == ("disk", computed)


@pytest.mark.parametrize("cache", ["disk", "memory"])
def test_flip_on_features_shows_in_each_epoch_what_flip_on_pictures_shows(tmp_path, cache):
    dataset = digits(70)
    model, images = prepared(tmp_path, ["all"], dataset, augment="flip", cache="none")
    _, features = prepared(tmp_path, ["all"], dataset, augment="flip", cache=cache)
    halves = features.plan.split
    model.network.eval()
    chosen = torch.arange(70)
    shown = []
    for epoch in (None, 0, 1, 2):
        with torch.no_grad():
            wanted = halves.prefix(images.prepare(images.inputs(chosen, epoch), True, 1))
        got = features.inputs(chosen, epoch)
        assert torch.allclose(got, wanted, rtol=1e-4, atol=1e-5)
        shown.append(got)
    plain, first, second, third = shown
    assert torch.equal(first, third)
    assert not torch.equal(first, second)
    mirrored = (first != plain).any(1)
    assert 15 < mirrored.sum() < 55
    assert torch.equal((second != plain).any(1), ~mirrored)


@pytest.mark.slow
def test_augmentation_follows_from_what_is_kept(tmp_path):
    dataset = digits(20)
    choices = [
        (["all"], {}, "none"),
        (["all"], {"cache": "none"}, "none"),
        (["through:layer3"], {}, "none"),
        (["through:layer3"], {"cache": "none"}, "standard"),
        (["none"], {}, "standard"),
        (["all", "-@norm"], {}, "standard"),
        (["all"], {"augment": "standard", "fresh": "data.augment=standard"}, "standard"),
    ]
    for freeze, knobs, augment in choices:
        ready = prepared(tmp_path, freeze, dataset, **knobs)[1]
        assert ready.plan.augment == augment, (freeze, knobs)
        assert (ready.features is None) == (augment == "standard" or knobs.get("cache") == "none")


def test_a_damaged_store_is_mended_and_said(tmp_path):
    dataset = digits(30)
    first = prepared(tmp_path, ["all"], dataset)[1]
    (data,) = (tmp_path / "cache").glob("features/*/data.bin")
    content = bytearray(data.read_bytes())
    content[3 * 384 + 7] ^= 255
    data.write_bytes(content)
    again = prepared(tmp_path, ["all"], dataset)[1]
    assert again.features["computed"] == 1
    assert again.notes == ("1 stored features are damaged and are computed again",)
    assert torch.equal(first.inputs(torch.arange(30)), again.inputs(torch.arange(30)))


def test_rows_too_large_for_memory_are_mapped(tmp_path, monkeypatch):
    monkeypatch.setattr("finetune.features.plan.ram", lambda: 1000)
    dataset = digits(20)
    mapped = prepared(tmp_path, ["all"], dataset)[1]
    monkeypatch.undo()
    held = prepared(tmp_path, ["all"], dataset)[1]
    chosen = torch.tensor([3, 19, 0, 3])
    assert torch.equal(mapped.inputs(chosen), held.inputs(chosen))
    (data,) = (tmp_path / "cache").glob("features/*/data.bin")
    os.truncate(data, data.stat().st_size - 1)
    with pytest.raises(RunError, match=r"^cache_dir: the stored features were cut short by something else;"):
        mapped.inputs(chosen)
    assert len(held.inputs(chosen)) == 4


def test_features_are_constants(tmp_path):
    ready = prepared(tmp_path, ["all"], digits(10))[1]
    assert not ready.inputs(torch.arange(3)).requires_grad


def test_images_too_large_for_memory_are_decoded_for_each_batch(tmp_path, monkeypatch):
    dataset = digits(20)
    held = prepared(tmp_path, ["none"], dataset)[1]
    monkeypatch.setattr("finetune.features.load.ram", lambda: 1000)
    streamed = prepared(tmp_path, ["none"], dataset)[1]
    batches = [torch.tensor([19, 0, 7]), torch.tensor([3])]
    for epoch in (None, 0, 1):
        for one, other in zip(
            held.inputs.each(batches, epoch), streamed.inputs.each(batches, epoch), strict=True
        ):
            assert torch.equal(one, other)
    assert torch.equal(held.sample, streamed.sample)
    assert torch.equal(held.inputs(batches[0]), streamed.inputs(batches[0]))
