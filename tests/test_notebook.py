"""What the autograd tutorials do by hand, done with this toolkit: the same figures."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from typer.testing import CliRunner

from finetune import cli
from finetune.model.assemble import ModelConfig, assemble
from support.runs import newest

Train = Callable[..., Any]


class Doubling(nn.Module):
    """Its forward loops for as long as the data ask for it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        while x.norm() < 1000:
            x = x * 2
        return self.fc(x.mean((2, 3)))


@pytest.mark.slow
def test_the_loss_falls_at_every_step(train: Train) -> None:
    """Sum of squares, SGD with lr=1e-7 and momentum=0.9, the whole network in train mode."""
    assert train("experiment=notebook_step", "weights=bundled").code == 0
    with (newest() / "metrics.csv").open(newline="") as file:
        losses = [float(row["loss/train"]) for row in csv.DictReader(file)]
    assert len(losses) == 3
    assert losses[0] > losses[1] > losses[2]


@pytest.mark.slow
def test_steps_are_those_of_the_plain_loop(train: Train) -> None:
    """The tutorial's loop, written as there, on the picture and labels of data=random."""
    train("experiment=notebook_step", "weights=random")
    with (newest() / "metrics.csv").open(newline="") as file:
        ours = [float(row["loss/train"]) for row in csv.DictReader(file)]

    from finetune.data import sources
    from finetune.data.augment import Prepare
    from finetune.data.reader import Reader
    from finetune.model.preprocessing import Preprocessing

    dataset, sizes = sources.load_dataset("random", None, 0.15, 0.15), Preprocessing().to(64)
    reader = Reader(dataset.images, sizes)
    picture = Prepare(sizes, "none", 0)(reader(0)[None], False, 0)
    labels = torch.from_numpy(dataset.labels)
    torch.manual_seed(0)
    model = torchvision.models.resnet18()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-7, momentum=0.9)
    theirs = []
    for _ in range(3):
        loss = ((model(picture) - labels) ** 2).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        theirs.append(loss.item())
    assert ours == pytest.approx(theirs, rel=1e-4)
    assert ours[0] > ours[1] > ours[2]


@pytest.mark.slow
def test_one_step_moves_all_62_parameters(train: Train) -> None:
    """Sum of differences, SGD with lr=1e-2: the loss itself is of no use, its gradient reaches everything."""
    options = ("loss=sum_difference", "optimizer.lr=1e-2", "weights=random", "epochs=1")
    assert train("experiment=notebook_step", *options).code == 0
    torch.manual_seed(0)
    before = dict(torchvision.models.resnet18().named_parameters())
    after = torch.load(newest() / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert len(before) == 62
    assert [name for name in before if torch.equal(before[name], after[name])] == []


def test_with_everything_frozen_the_loss_carries_no_gradient(train: Train) -> None:
    model = assemble(ModelConfig("resnet18", "random", ["all"], "keep", image_size=64), ["a", "b"])
    assert not any(p.requires_grad for p in model.network.parameters())
    loss = model.network(torch.randn(1, 3, 64, 64)).square().sum()
    assert loss.grad_fn is None
    with pytest.raises(RuntimeError, match="does not require grad"):
        loss.backward()
    ended = train("experiment=notebook_step", "freeze=all", "weights=random")
    assert ended.code == 2
    assert ended.err.startswith("error: freeze: nothing is left to train, so the loss carries no gradient")
    assert not Path("outputs/latest").exists()


def test_inspect_says_so_and_is_content() -> None:
    ended = CliRunner().invoke(
        cli.app, ["inspect", "data=random", "freeze=all", "head=keep", "weights=random", "data.image_size=32"]
    )
    assert ended.exit_code == 0
    assert "the loss carries no gradient" in ended.output


def test_the_parameter_list() -> None:
    """62 named parameters, 11,689,512 values, all of them with requires_grad."""
    ended = CliRunner().invoke(
        cli.app,
        [
            "inspect",
            "data=random",
            "freeze=none",
            "head=keep",
            "weights=random",
            "data.image_size=32",
            "--parameters",
        ],
    )
    assert ended.exit_code == 0
    listed = [line for line in ended.output.splitlines() if "requires_grad=" in line]
    assert len(listed) == 62
    assert all(line.endswith("requires_grad=True") for line in listed)
    assert "62 named parameters, 11,689,512 values, 11,689,512 of them trainable" in ended.output


def test_a_forward_that_branches_on_its_data_trains_uncached_and_one_line_says_why(
    train: Train, few_pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No model of torchvision does so: one of our own is put in the place of resnet18."""
    monkeypatch.setattr("finetune.model.assemble.build_model", lambda *_, **_options: Doubling())
    data = ("data=folder", f"data.root={few_pictures}", "data.image_size=32", "epochs=8")
    ended = train(*data, "weights=random", "optimizer.lr=0.001", "freeze=all", "batch_size=16")
    assert ended.code == 0
    (line,) = [line for line in ended.out.splitlines() if line.startswith("cache ")]
    assert line.startswith("cache    nothing: the model cannot be split: Doubling: ")
    assert "control flow" in line
    with (newest() / "metrics.csv").open(newline="") as file:
        losses = [float(row["loss/train"]) for row in csv.DictReader(file)]
    assert losses[-1] < losses[0]
    assert "frozen   proven unchanged" in ended.out


def test_the_defaults_are_the_tutorials(train: Train, few_pictures: Path) -> None:
    """SGD with lr=1e-2 and momentum=0.9, over the new head alone."""
    few = ("data=folder", f"data.root={few_pictures}", "data.image_size=32")
    quick = (*few, "weights=random", "epochs=1", "cache=memory")
    assert train(*quick, "freeze=all", "head=10", "schedule=constant").code == 0
    checkpoint = torch.load(newest() / "checkpoints" / "last.ckpt", weights_only=True)
    (group,) = checkpoint["optimizer_states"][0]["param_groups"]
    expected = {"lr": 1e-2, "momentum": 0.9, "weight_decay": 0, "nesterov": False, "dampening": 0}
    assert {key: group[key] for key in expected} == expected
    assert set(checkpoint["state_dict"]) == {"fc.weight", "fc.bias"}
    assert sum(value.numel() for value in checkpoint["state_dict"].values()) == 5_130
