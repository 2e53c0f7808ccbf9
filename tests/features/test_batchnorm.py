"""`batchnorm=adapt`: frozen BatchNorm layers take on the statistics of the training images, and keep them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import finetune
from finetune.data.dataset import Dataset
from finetune.data.digests import content_digest
from finetune.data.images import decode
from finetune.errors import RequestError
from finetune.features import batchnorm
from finetune.features.batchnorm import Statistics, find_statistics
from finetune.features.load import LoadSettings
from finetune.model.assemble import Model, ModelConfig, assemble
from finetune.runs.open import open_run
from support.ended import Ended
from support.runs import SMALL, newest, summary_of, whole_state

NAME = SMALL.partition("=")[2]
Command = Callable[..., Ended]


@contextmanager
def silent(*_: Any) -> Iterator[Callable[[int], None]]:
    yield lambda done: None


def assembled(*freeze: str) -> Model:
    return assemble(ModelConfig(NAME, "random", freeze, image_size=32), tuple("abc"))


def pictures(count: int) -> Dataset:
    """Of noise, some to train on and one each to validate and to test."""
    images = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    split = {"train": np.arange(count - 2), "val": np.array([count - 2]), "test": np.array([count - 1])}
    digests = [content_digest(image) for image in images]
    return Dataset("noise", tuple("abc"), list(images), np.arange(count) % 3, split, digests)


def found(folder: Path, model: Model, dataset: Dataset, cached: bool = True) -> Statistics:
    loading = LoadSettings("auto", 0, folder / "digests.sqlite", silent, lambda: None)
    return find_statistics(model, dataset, "cpu", folder / "cache" if cached else None, loading)


def inputs(model: Model, dataset: Dataset, order: list[int]) -> Tensor:
    read = [decode(dataset.images[index], model.preprocessing) for index in order]
    return model.preprocessing.normalise(torch.stack(read))


def in_order(dataset: Dataset) -> list[int]:
    return sorted(dataset.split["train"].tolist(), key=lambda index: dataset.digests[index])


def norms(network: nn.Module) -> dict[str, nn.BatchNorm2d]:
    return {name: one for name, one in network.named_modules() if isinstance(one, nn.BatchNorm2d)}


@pytest.mark.parametrize("cached", [True, False])
def test_they_are_the_mean_and_variance_of_all_that_a_layer_takes_in(tmp_path: Path, cached: bool) -> None:
    model, dataset = assembled("all"), pictures(152)
    before = {name: value.clone() for name, value in model.network.state_dict().items()}
    statistics = found(tmp_path, model, dataset, cached)
    network, taken = copy.deepcopy(model.network).eval(), dict[str, list[Tensor]]()
    for name, layer in norms(network).items():
        taken[name] = []
        layer.train().register_forward_pre_hook(
            lambda _, args, seen=taken[name]: seen.append(args[0].double())
        )
    with torch.no_grad():
        for batch in inputs(model, dataset, in_order(dataset)).split(64):
            network(batch)
    assert statistics.images == 150
    assert len(statistics.tensors) == 2 * len(taken) == 30
    for name, seen in taken.items():
        channels = torch.cat(seen).transpose(0, 1).flatten(1)
        for kind, value in (("running_mean", channels.mean(1)), ("running_var", channels.var(1))):
            torch.testing.assert_close(
                statistics.tensors[f"{name}.{kind}"], value.float(), rtol=1e-5, atol=1e-6
            )
    assert all(value.equal(before[name]) for name, value in model.network.state_dict().items())


@pytest.mark.parametrize(
    ("freeze", "adapted"),
    [(("through:layer3",), 12), (("all", "-layer4"), 12), (("all", "-@norm"), 0), (("none",), 0)],
)
def test_only_what_is_frozen_takes_them_on(tmp_path: Path, freeze: tuple[str, ...], adapted: int) -> None:
    model, dataset = assembled(*freeze), pictures(20)
    before = {name: value.clone() for name, value in model.network.state_dict().items()}
    whole = assembled("all")
    expected = found(tmp_path, whole, dataset).tensors
    statistics = found(tmp_path, model, dataset)
    assert statistics.put_into(model) == {"adapted": adapted, "images": 18 if adapted else 0}
    changed = {name for name, value in model.network.state_dict().items() if not value.equal(before[name])}
    assert changed == statistics.tensors.keys()
    assert all(value.equal(expected[name]) for name, value in statistics.tensors.items())


def test_one_more_image_seldom_changes_the_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batchnorm, "SAMPLE", 30)
    model, dataset = assembled("all"), pictures(60)
    order = in_order(dataset)

    def of(*indices: int) -> dict[str, Tensor]:
        chosen = replace(dataset, split={**dataset.split, "train": np.array(indices)})
        return found(tmp_path, model, chosen).tensors

    first = of(*order[:-1])
    assert same(first, of(*order))
    assert same(first, of(*reversed(order), *order))  # neither does the order of the data set, nor copies
    assert not same(first, of(*order[1:]))


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(value.equal(b[name]) for name, value in a.items())


def test_they_are_computed_once_for_as_long_as_nothing_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, dataset = assembled("all"), pictures(20)
    first, compute, passes = found(tmp_path, model, dataset).tensors, batchnorm._compute, list[int]()
    monkeypatch.setattr(batchnorm, "_compute", lambda *given: passes.append(1) or compute(*given))
    assert same(first, found(tmp_path, model, dataset).tensors)
    other_head = assemble(ModelConfig(NAME, "random", ["all"], 7, image_size=32), tuple("abc"))
    assert same(first, found(tmp_path, other_head, dataset).tensors)
    assert passes == []
    (data,) = tmp_path.glob("cache/features/*/data.bin")
    data.write_bytes(data.read_bytes()[:-1] + b"?")
    assert same(first, found(tmp_path, model, dataset).tensors)
    assert len(passes) == 1
    model.network.get_parameter("conv1.0.weight").data[0] += 1
    assert not same(first, found(tmp_path, model, dataset).tensors)
    assert len(passes) == 2


def test_broken_images_are_left_out(tmp_path: Path) -> None:
    model, dataset = assembled("all"), pictures(20)
    broken = in_order(dataset)[3]
    file = tmp_path / "broken.png"
    file.write_bytes(b"no image")
    images: list[Any] = list(dataset.images)
    images[broken] = file
    digests = [
        content_digest(file.read_bytes()) if i == broken else one for i, one in enumerate(dataset.digests)
    ]
    spoilt = found(tmp_path, model, replace(dataset, images=images, digests=digests))
    left = np.setdiff1d(dataset.split["train"], broken)
    whole = found(tmp_path, model, replace(dataset, split={**dataset.split, "train": left}))
    assert (spoilt.images, whole.images) == (17, 17)
    assert same(spoilt.tensors, whole.tensors)


def test_of_one_image_there_are_none(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"^batchnorm=adapt: expected two images"):
        found(tmp_path, assembled("all"), pictures(3))


# whole runs

RUN = ("data=folder", "data.root=pictures", "data.image_size=32", SMALL, "epochs=2", "cache_dir=cache")


@pytest.mark.slow
def test_a_run_and_all_that_comes_of_it_has_them(
    command: Command, few_pictures: Path, small_weights: str
) -> None:
    Path("pictures").symlink_to(few_pictures)
    run = (*RUN, small_weights, "freeze=through:layer3")
    assert command("train", *run, "hydra.run.dir=pretrained").code == 0
    for name in ("first", "second"):
        ended = command("train", *run, "batchnorm=adapt", f"hydra.run.dir={name}")
        assert (ended.code, ended.err) == (0, "")
        assert "norms    12 frozen BatchNorm layers have the statistics of 47 training images\n" in ended.out
    before, first, second = (summary_of(Path(name)) for name in ("pretrained", "first", "second"))
    assert (before["batchnorm"], first["batchnorm"]) == (None, {"adapted": 12, "images": 47})
    computed = [one["features"]["computed"] for one in (before, first, second)]
    assert computed == [60, 60, 0]
    assert first["frozen_proof"] == second["frozen_proof"] != before["frozen_proof"]
    old, new = whole_state(Path("pretrained")), whole_state(Path("first"))
    frozen = {name for name in old if "running_" in name and not name.startswith("layer4")}
    assert not any(old[name].equal(new[name]) for name in frozen)
    state = open_run("first").network.state_dict()
    assert all(state[name].equal(new[name]) for name in frozen)
    Path("file").touch()  # where nothing can be kept
    assert command("train", *run[:-3], *run[-2:], "cache_dir=file", "batchnorm=adapt").code == 0
    assert command("export", "first", "--out", "out").code == 0  # checked against the run's own model
    assert finetune.load("first").predict("pictures/red/0.png")[0].label in ("red", "green", "blue")


@pytest.mark.slow
def test_where_there_is_none_it_is_said(command: Command, few_pictures: Path) -> None:
    Path("pictures").symlink_to(few_pictures)
    ended = command(
        "train", *RUN, "model=timm/test_vit", "data.image_size=160", "weights=random", "batchnorm=adapt"
    )
    assert (ended.code, ended.err) == (0, "")
    told = "note     batchnorm=adapt has no effect: timm/test_vit has no frozen BatchNorm\n"
    assert ended.out.count(told) == 1
    assert summary_of(newest())["batchnorm"] == {"adapted": 0, "images": 0}
