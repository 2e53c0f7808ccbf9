"""Jobs that train together come to what each comes to alone, by Lightning, in float64."""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from finetune.choices.schedules import Span
from finetune.data.module import Batches, Examples, StackedBatches
from finetune.data.views import views
from finetune.errors import RunError
from finetune.model.freeze import Frozen, freeze
from finetune.training import losses, optim
from finetune.training.classifier import Classifier
from finetune.training.fit import Fitted, Options, fit
from finetune.training.learner import Job
from finetune.training.stacked import JobConfig, Network, StackedClassifier, why_not_stacked
from support.slow import slow
from support.small import stepped

FEATURES, OUTPUTS = 6, 3
SIDES = {"train": np.arange(33), "val": np.arange(33, 50), "test": np.arange(50, 64)}


class Net(nn.Module):
    """A frozen layer, and a suffix of hidden layer, BatchNorm and head."""

    def __init__(self, hidden: bool = True, norm: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        self.base = nn.Linear(FEATURES, FEATURES)
        width = 5 if hidden else FEATURES
        middle: list[nn.Module] = [nn.Linear(FEATURES, width), nn.ReLU()] if hidden else []
        middle += [nn.BatchNorm1d(width)] if norm else []
        middle += [nn.Dropout(dropout)] if dropout else []
        self.suffix = nn.Sequential(*middle, nn.Linear(width, OUTPUTS))

    def forward(self, x: Tensor) -> Tensor:
        return self.suffix(self.base(x))


@dataclass
class Case:
    """One job's numbers."""

    seed: int = 0
    lr: float = 0.1
    decay: float = 0.0
    spared: bool = False
    schedule: str = "cosine"
    smoothing: float = 0.0
    weights: Tensor | None = None
    options: dict[str, Any] = field(default_factory=lambda: {"momentum": 0.9, "nesterov": False})


class Group:
    """Jobs over one network, to be trained together or one alone."""

    def __init__(self, net: dict[str, Any], optimizer: str, cases: list[Case], batch_size: int = 8) -> None:
        self.net, self.optimizer, self.cases, self.batch_size = net, optimizer, cases, batch_size
        chance = torch.Generator().manual_seed(1)
        self.features = torch.randn(64, FEATURES, generator=chance, dtype=torch.float64)
        self.labels = (self.features[:, :OUTPUTS] + self.features[:, 3:]).argmax(1)

    def model(self, seed: int) -> tuple[Net, Frozen]:
        torch.manual_seed(0)
        model = Net(**self.net).double()
        torch.manual_seed(seed)
        for layer in model.suffix:
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()
        example = torch.zeros(2, FEATURES, dtype=torch.float64)
        return model, freeze(model, ["base"], None, example)

    def batches(self, case: Case) -> Batches:
        rows = views(lambda chosen: self.features[chosen], None, 64, case.seed)
        examples = Examples(rows, self.labels, SIDES, lambda x, *_: x)
        return Batches(examples, self.batch_size, case.seed)

    def config(self, case: Case, model: Net) -> JobConfig:
        steps = len(self.batches(case).train_dataloader())
        groups = optim.parameter_groups(
            model,
            "suffix",
            stepped(case.lr, weight_decay=case.decay, decay_norm_and_bias=not case.spared),
        )
        warmup_epochs = 1 if case.schedule == "cosine" else 0
        schedule = optim.create_schedule(case.schedule, Span(4 * steps, steps, 2), warmup_epochs)
        return JobConfig(
            loss="cross_entropy",
            optimizer=self.optimizer,
            groups=groups,
            options=case.options,
            schedule=schedule,
            label_smoothing=case.smoothing,
            class_weights=case.weights,
        )

    def alone(self, place: int, folder: Path, patience: int | None = None, **options: Any) -> Fitted:
        case = self.cases[place]
        model, frozen = self.model(case.seed)
        config = self.config(case, model)
        (folder / "checkpoints").mkdir(parents=True)
        classifier = Classifier(
            model,
            model.suffix,
            frozen,
            losses.create_loss("cross_entropy", case.smoothing, case.weights),
            lambda: (
                optim.create_optimizer(config.optimizer, config.groups, **config.options),
                config.schedule,
            ),
        )
        with SummaryWriter(str(folder / "tensorboard")) as writer:
            job = Job(folder, writer, "abc", patience)
            (fitted,) = fit(classifier, self.batches(case), [job], Options(4, **options))
        assert isinstance(fitted, Fitted)
        return fitted

    def together(self, folder: Path, patience: int | None = None, **options: Any) -> list[Fitted | RunError]:
        model, frozen = self.model(0)
        network = Network(model, model.suffix, frozen)
        jobs = []
        for place in range(len(self.cases)):
            own = folder / str(place)
            (own / "checkpoints").mkdir(parents=True)
            jobs.append(Job(own, SummaryWriter(str(own / "tensorboard")), "abc", patience))
        names = frozen.others(model)
        states = [
            {name: self.model(case.seed)[0].state_dict()[name] for name in names} for case in self.cases
        ]
        self.failures: list[tuple[int, str]] = []
        learner = StackedClassifier(
            network,
            [self.config(case, model) for case in self.cases],
            states,
            lambda place, error: self.failures.append((place, str(error))),
        )
        batches = StackedBatches([self.batches(case) for case in self.cases])
        found = fit(learner, batches, jobs, Options(4, **options))
        for job in jobs:
            assert job.writer is not None
            job.writer.close()
        return found


def checkpoint(folder: Path, name: str) -> dict[str, Any]:
    return torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)


def assert_same(ours: Path, theirs: Path, tolerance: float = 1e-8) -> None:
    """Checkpoints and curves of two folders agree."""
    for name in ("best", "last"):
        mine, other = checkpoint(ours, name), checkpoint(theirs, name)
        assert mine["epoch"] == other["epoch"]
        assert mine["global_step"] == other["global_step"]
        assert mine["state_dict"].keys() == other["state_dict"].keys()
        for key, value in other["state_dict"].items():
            torch.testing.assert_close(mine["state_dict"][key], value, rtol=0, atol=tolerance)
        states = mine["optimizer_states"][0]["state"], other["optimizer_states"][0]["state"]
        kept = {k: v for k, v in states[1].items() if v.get("momentum_buffer", 0) is not None}
        torch.testing.assert_close(states[0], kept, rtol=0, atol=tolerance)
    tables = [list(csv.DictReader((folder / "metrics.csv").open(newline=""))) for folder in (ours, theirs)]
    assert len(tables[0]) == len(tables[1])
    for mine_row, other_row in zip(*tables, strict=True):
        assert list(mine_row) == list(other_row)
        for key in other_row:
            assert float(mine_row[key]) == pytest.approx(float(other_row[key]), abs=1e-6), key


SGD_CASES = [
    Case(options={"momentum": 0.0, "nesterov": False}),
    Case(seed=3, lr=0.03, decay=0.1, spared=True, schedule="onecycle"),
    Case(seed=3, options={"momentum": 0.9, "nesterov": True}, schedule="step", smoothing=0.1),
    Case(seed=5, decay=0.05, weights=torch.tensor([0.5, 2.0, 1.0]), smoothing=0.2, schedule="constant"),
]
ADAMW_CASES = [
    Case(lr=0.01, decay=0.1, options={}),
    Case(seed=1, lr=0.05, decay=0.3, spared=True, options={}, schedule="onecycle"),
    Case(seed=1, lr=0.02, options={}, weights=torch.tensor([1.0, 2.0, 0.3])),
]


@pytest.mark.parametrize(("optimizer", "cases"), [("sgd", SGD_CASES), ("adamw", ADAMW_CASES)])
@pytest.mark.parametrize("net", [slow({"hidden": False}), slow({"hidden": True}), {"norm": True}])
def test_each_job_ends_where_it_would_alone(
    net: dict[str, Any], optimizer: str, cases: list[Case], tmp_path: Path
) -> None:
    group = Group(net, optimizer, cases)
    found = group.together(tmp_path / "together")
    for place in range(len(cases)):
        alone = group.alone(place, tmp_path / f"alone{place}")
        assert_same(tmp_path / "together" / str(place), tmp_path / f"alone{place}")
        ours = found[place]
        assert isinstance(ours, Fitted)
        assert (ours.best_epoch, ours.epochs, ours.steps) == (alone.best_epoch, alone.epochs, alone.steps)
        assert ours.val == pytest.approx(alone.val, abs=1e-8)
        assert ours.test == pytest.approx(alone.test, abs=1e-8)
        assert ours.test_logits is not None
        assert alone.test_logits is not None
        torch.testing.assert_close(ours.test_logits, alone.test_logits, rtol=0, atol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{"max_steps": 6}, {"patience": 1}, {"clip_norm": 0.05}, {"accumulate_batches": 3}]
)
def test_early_ends_are_those_of_a_job_alone(options: dict[str, Any], tmp_path: Path) -> None:
    cases = [Case(lr=0.3), Case(seed=2, lr=3.0), Case(seed=4, lr=1e-6)]
    group = Group({"hidden": False}, "sgd", cases)
    found = group.together(tmp_path / "together", **options)
    for place, ours in enumerate(found):
        alone = group.alone(place, tmp_path / f"alone{place}", **options)
        assert_same(tmp_path / "together" / str(place), tmp_path / f"alone{place}")
        assert isinstance(ours, Fitted)
        assert (ours.best_epoch, ours.epochs, ours.steps) == (alone.best_epoch, alone.epochs, alone.steps)


def test_a_job_that_diverges_says_so_and_the_others_do_not_notice(tmp_path: Path) -> None:
    good, bad = Case(seed=1), Case(seed=2, lr=1e200)
    net = {"hidden": True}
    with_bad = Group(net, "sgd", [good, bad, Case(seed=3)])
    found = with_bad.together(tmp_path / "a")
    ((place, reason),) = with_bad.failures
    assert place == 1
    assert reason.startswith("the loss of batch ")
    with pytest.raises(RunError) as alone:
        with_bad.alone(1, tmp_path / "alone")
    assert reason == str(alone.value)
    assert isinstance(found[1], RunError)
    Group(net, "sgd", [good, Case(seed=2), Case(seed=3)]).together(tmp_path / "b")
    for place in (0, 2):
        ours, theirs = (checkpoint(tmp_path / name / str(place), "last")["state_dict"] for name in "ab")
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_what_draws_random_numbers_cannot_be_stacked() -> None:
    for net, can in (({"norm": True}, True), ({"dropout": 0.5}, False)):
        model, frozen = Group(net, "sgd", []).model(0)
        network = Network(model, model.suffix, frozen)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        why = why_not_stacked(network, torch.randn(4, FEATURES, dtype=torch.float64))
        assert (why is None) == can, why
        assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
