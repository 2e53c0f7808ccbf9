import pytest
import torch
from torch import nn

from finetune.errors import RequestError
from finetune.features.plan import Boundary, decide, find_boundary, macs, make_plan, readable
from finetune.model.assemble import Model, assemble
from finetune.model.freeze import Frozen
from finetune.model.preprocessing import Preprocessing
from finetune.model.weights import Weights

GB = 10**9
AMPLE = {"stored": 0, "held": 0, "cap": 20 * GB, "free": 100 * GB, "memory": 16 * GB}


@pytest.mark.parametrize(
    ("requested", "row_bytes", "rows", "row_macs", "machine", "where"),
    [
        ("auto", 1024, 1000, 1.8e9, {}, "disk"),  # pooled features of resnet18
        ("auto", 401_408, 1000, 5.8e8, {}, "disk"),  # layer1
        ("auto", 1_605_632, 1000, 1.2e8, {}, "none"),  # conv1: reading takes as long as computing
        ("disk", 1_605_632, 1000, 1.2e8, {}, "disk"),  # unless asked for
        ("memory", 1024, 1000, 1.8e9, {}, "memory"),
        ("none", 1024, 1000, 1.8e9, {}, "none"),
        ("auto", 1_000_000, 1000, 1.8e9, {"cap": GB // 2}, "memory"),
        ("auto", 1_000_000, 1000, 1.8e9, {"stored": 20 * GB - 1}, "memory"),
        ("auto", 1_000_000, 1000, 1.8e9, {"free": GB}, "memory"),
        ("auto", 1_000_000, 1000, 1.8e9, {"stored": 20 * GB - 1, "held": GB}, "disk"),  # it has them already
        ("auto", 1_000_000, 1000, 1.8e9, {"free": GB // 10, "held": GB}, "disk"),
        ("auto", 1_000_000, 1000, 1.8e9, {"stored": 20 * GB - 1, "held": GB - 3 * 10**8}, "memory"),
        ("auto", 1_000_000, 30_000, 1.8e9, {}, "none"),  # over the cap and a quarter of the memory
        ("memory", 1_000_000, 5000, 1.8e9, {}, "none"),
    ],
)
def test_the_decision_follows_from_bytes_and_work(requested, row_bytes, rows, row_macs, machine, where):
    plan = decide(requested, row_bytes, rows, row_macs, **{**AMPLE, **machine})
    assert plan.where == where
    assert plan.size == row_bytes * rows
    if where != "disk" and machine.keys() & {"cap", "stored", "free"}:
        assert "cache_max_gb" in plan.why


def resnet(freeze: list[str]) -> Model:
    return assemble("resnet18", "random", freeze, 10, "abcdefghij", seed=0, image_size=64)


def test_boundary_of_resnet18_and_its_shares():
    model = resnet(["all"])
    boundary = find_boundary(model)
    assert boundary.split is not None
    assert [crossing.shape for crossing in boundary.split.crossings] == [(512,)]
    assert boundary.suffix_macs == 5120
    assert boundary.prefix_macs + boundary.suffix_macs == macs(model.network, model.example)
    half = find_boundary(resnet(["through:layer3"]))
    assert 0.7 < half.share < 0.85
    none = find_boundary(resnet(["none"]))
    assert none.split is None
    assert "nothing frozen" in none.why


def test_measuring_leaves_the_modes_as_they_are():
    model = resnet(["all", "-@norm"])
    before = {name: module.training for name, module in model.network.named_modules()}
    find_boundary(model)
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


def test_a_model_that_branches_on_its_data_is_not_split_and_says_why():
    network = Doubling()
    network.conv.requires_grad_(False)
    frozen = Frozen(frozenset(["conv.weight", "conv.bias"]), frozenset(), frozenset(["conv"]))
    example = torch.rand(1, 3, 8, 8)
    weights = Weights("random", "random", Preprocessing())
    boundary = find_boundary(Model("doubling", network, weights, Preprocessing(), "fc", 2, frozen, example))
    assert boundary.split is None
    assert "cannot be split" in boundary.why
    assert "\n" not in boundary.why


def test_fresh_augmentation_and_a_cache_exclude_each_other(tmp_path):
    boundary = Boundary(None, 0, 1, "nothing frozen")
    assert make_plan(boundary, "standard", "auto", 10, 4, tmp_path, 20, 0).where == "none"
    with pytest.raises(RequestError, match=r"cache=disk: expected data.augment=none or flip"):
        make_plan(boundary, "standard", "disk", 10, 4, tmp_path, 20, 0)


def test_plan_for_a_cache_folder_that_does_not_exist_yet(tmp_path):
    plan = make_plan(find_boundary(resnet(["all"])), "none", "auto", 100, 4, tmp_path / "a" / "b", 20, 0)
    assert (plan.where, plan.size) == ("disk", 100 * 2048)
    assert not (tmp_path / "a").exists()


def test_sizes_read_as_people_read_them():
    assert [readable(n) for n in (0, 999, 1024, 1.5e6, 2e13)] == [
        "0 B",
        "999 B",
        "1.02 kB",
        "1.5 MB",
        "20 TB",
    ]
