from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from finetune.data import sources
from finetune.errors import RequestError
from finetune.features.plan import (
    FeaturePlan,
    FeatureSettings,
    decide,
    macs,
    plan_features,
)
from finetune.model.assemble import Model, ModelConfig, assemble
from finetune.model.freeze import Frozen
from finetune.model.preprocessing import Preprocessing
from finetune.model.weights import Weights

GB = 10**9


@pytest.mark.parametrize(
    ("requested", "row_bytes", "rows", "row_macs", "room", "where"),
    [
        ("auto", 1024, 1000, 1.8e9, 20 * GB, "disk"),  # pooled features of resnet18
        ("auto", 401_408, 1000, 5.8e8, 20 * GB, "disk"),  # layer1
        ("auto", 1_605_632, 1000, 1.2e8, 20 * GB, "none"),  # conv1: reading takes as long as computing
        ("disk", 1_605_632, 1000, 1.2e8, 20 * GB, "disk"),  # unless asked for
        ("memory", 1024, 1000, 1.8e9, 20 * GB, "memory"),
        ("none", 1024, 1000, 1.8e9, 20 * GB, "none"),
        ("auto", 1_000_000, 1000, 1.8e9, GB, "disk"),
        ("auto", 1_000_000, 1000, 1.8e9, GB - 1, "memory"),
        ("auto", 1_000_000, 30_000, 1.8e9, 20 * GB, "none"),  # nor in a quarter of the memory
        ("memory", 1_000_000, 5000, 1.8e9, 20 * GB, "none"),
    ],
)
def test_the_decision_follows_from_bytes_and_work(
    monkeypatch, requested, row_bytes, rows, row_macs, room, where
):
    monkeypatch.setattr("finetune.features.plan.ram", lambda: 16 * GB)
    decided, why = decide(requested, row_bytes, rows, row_macs, (room, "no more room"))
    assert decided == where
    assert ("no more room" in why) == (requested == "auto" and row_bytes == 10**6 and where != "disk")


@pytest.mark.parametrize(
    ("stored", "reused", "free", "where"),
    [
        (0, 0, 100 * GB, "disk"),
        (20 * GB - 1, 0, 100 * GB, "memory"),  # cache_max_gb
        (0, 0, 10**6, "memory"),  # the disk
        (20 * GB - 1, GB, 100 * GB, "disk"),  # it has them already
        (0, GB, 10**6, "disk"),
        (20 * GB - 1, 10**6, 100 * GB, "memory"),  # not all of them
        (21 * GB, GB, 100 * GB, "disk"),  # others have filled more than there may be
    ],
)
def test_room_in_the_cache(tmp_path, monkeypatch, stored, reused, free, where):
    monkeypatch.setattr("finetune.features.plan.size_of_all", lambda folder: stored)
    monkeypatch.setattr("finetune.features.plan.count_stored", lambda *_: reused // 2048)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=free))
    plan = planned(resnet(["all"]), tmp_path)  # 3.7 MB
    assert plan.where == where
    assert (where == "disk") != ("over cache_max_gb or the free disk, so not stored" in plan.why)


def resnet(freeze: list[str]) -> Model:
    return assemble(ModelConfig("resnet18", "random", freeze, 10, image_size=64), "abcdefghij")


def planned(model: Model, folder: Path, cache: str = "auto", augment: str = "none") -> FeaturePlan:
    settings = FeatureSettings(
        cache=cache,
        cache_dir=folder,
        cache_max_gb=20,
        augment=augment,
        precision="32",
        compile=False,
        device="cpu",
        multiplies_bf16=False,
        fresh="data.augment=standard" if augment == "standard" else None,
    )
    return plan_features(model, sources.load_dataset("digits", None, 0.15, 0.15), settings)


class Scale(nn.Module):
    """Multiplies by a buffer that no state dict has."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.register_buffer("factor", torch.tensor(factor), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def test_buffers_that_are_not_saved_decide_what_features_are(tmp_path):
    keys = []
    for factor in (1.0, 7.0, 1.0):
        model = resnet(["all"])
        model.network.relu = Scale(factor)
        keys.append(planned(model, tmp_path).keys)
    assert keys[0] == keys[2] != keys[1]


@pytest.mark.slow
def test_boundary_of_resnet18_and_its_shares(tmp_path):
    model = resnet(["all"])
    plan = planned(model, tmp_path)
    assert plan.split is not None
    assert [crossing.shape for crossing in plan.split.crossings] == [(512,)]
    assert plan.suffix_macs == 5120
    assert plan.prefix_macs + plan.suffix_macs == macs(model.network, model.example)
    half = planned(resnet(["through:layer3"]), tmp_path)
    assert 0.7 < half.share < 0.85
    none = planned(resnet(["none"]), tmp_path)
    assert none.split is None
    assert "nothing frozen" in none.why


def test_measuring_leaves_the_modes_as_they_are(tmp_path):
    model = resnet(["all", "-@norm"])
    before = {name: module.training for name, module in model.network.named_modules()}
    planned(model, tmp_path)
    assert before == {name: module.training for name, module in model.network.named_modules()}


class Doubling(nn.Module):
    """Doubles until large: the number of steps depends on the data, so no graph can be made of it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        while x.norm() < 1000:
            x = x * 2
        return self.fc(x.mean((2, 3)))


class Shift(nn.Module):
    """No graph can be made of it, so it runs as a whole; what it does is in no state dict."""

    def __init__(self, by: float) -> None:
        super().__init__()
        self._by = by

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 1e30 else x + self._by


def test_features_by_code_that_no_key_names_are_not_stored(tmp_path):
    model = resnet(["all"])
    model.network.layer1.append(Shift(1.0))
    for cache in ("auto", "disk"):
        plan = planned(model, tmp_path, cache)
        assert (plan.where, plan.keys) == ("memory", ())
        assert plan.why.startswith("layer1.2 (Shift) is code whose version is not known, so not stored")


def test_a_model_that_branches_on_its_data_is_not_split_and_says_why(tmp_path):
    network = Doubling()
    network.conv.requires_grad_(False)
    frozen = Frozen(frozenset(["conv.weight", "conv.bias"]), frozenset(), frozenset(["conv"]))
    example = torch.rand(1, 3, 8, 8)
    weights = Weights("random", "random", Preprocessing())
    model = Model("doubling", network, weights, Preprocessing(), "fc", 2, frozen, example)
    plan = planned(model, tmp_path)
    assert plan.split is None
    assert "cannot be split" in plan.why
    assert "\n" not in plan.why


def test_nothing_is_kept_where_every_epoch_shows_other_images(tmp_path):
    assert planned(resnet(["all"]), tmp_path, augment="standard").where == "none"


def test_plan_for_a_cache_folder_that_does_not_exist_yet(tmp_path):
    plan = planned(resnet(["all"]), tmp_path / "a" / "b")
    assert (plan.where, plan.images, plan.size) == ("disk", 1797, 1797 * 2048)


@pytest.mark.slow
def test_a_cache_folder_that_cannot_be_made_is_told_as_such(tmp_path):
    (tmp_path / "file").touch()
    for cache, why in (
        (tmp_path / "file", "File exists"),
        (Path("/proc/none"), "No such file or directory"),
    ):
        plan = planned(resnet(["all"]), cache)
        told = f"cache_dir={cache} cannot be made ({why}), so not stored; in memory for this run"
        assert (plan.where, plan.why) == ("memory", told)
        with pytest.raises(RequestError, match=f"^cache_dir={cache}: expected a folder .*, or cache=memory"):
            planned(resnet(["all"]), cache, "disk")
