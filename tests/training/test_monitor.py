"""Gradient norms and update ratios by layer: in TensorBoard, against steps done by hand, and the warnings."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from finetune.training.monitor import warnings
from support.ended import Ended
from support.runs import QUICK, newest
from support.small import Training

Train = Callable[..., Ended]
MONITORED = ("gradients/", "updates/")


def points(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What the monitor wrote, read back: steps and values by tag."""
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if tag.startswith(MONITORED)]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


@pytest.mark.slow
def test_a_point_an_epoch_for_each_layer_that_trains(train: Train, few_pictures: Path) -> None:
    overrides = (
        *QUICK,
        f"data.root={few_pictures}",
        "freeze=[all,-layer4]",
        "cache=none",
        "data.augment=none",
    )
    assert train(*overrides, "monitor_gradients=true", "batch_size=16").code == 0
    written = points(newest())
    assert written.keys() == {f"{tag}{layer}" for tag in MONITORED for layer in ("layer4", "fc")}
    assert all([step for step, _ in each] == [3, 6] for each in written.values())
    assert all(value > 0 for each in written.values() for _, value in each)
    assert all(value < 1 for tag, each in written.items() if tag.startswith("updates/") for _, value in each)


@pytest.mark.slow
def test_off_by_default(train: Train, few_pictures: Path) -> None:
    assert train(*QUICK, f"data.root={few_pictures}", "epochs=1").code == 0
    assert points(newest()) == {}


def test_the_values_are_those_of_the_step(tmp_path: Path) -> None:
    """One batch an epoch, no momentum: a step is the rate times the gradient, computed here by hand."""
    training = Training(tmp_path, ("all",), lr=0.1, momentum=0.0, batch_size=32)
    net, part = training.net.eval(), training.batches.split["train"]
    F.cross_entropy(net(training.x[part]), training.y[part]).backward()
    gradient = torch.cat([p.grad.flatten() for p in net.head.parameters()]).norm().item()
    weights = torch.cat([p.detach().flatten() for p in net.head.parameters()]).norm().item()
    net.zero_grad()
    training.fit(epochs=1, monitor_gradients=True)
    assert points(tmp_path) == {
        "gradients/head": [(1, pytest.approx(gradient, rel=1e-5))],
        "updates/head": [(1, pytest.approx(0.1 * gradient / weights, rel=1e-5))],
    }


def test_accumulated_batches_are_one_step(tmp_path: Path) -> None:
    written = []
    for size, accumulate in ((16, 1), (4, 4)):
        training = Training(tmp_path / str(size), ("all",), batch_size=size)
        training.fit(epochs=2, accumulate_batches=accumulate, monitor_gradients=True)
        written.append(points(tmp_path / str(size)))
    for tag, each in written[0].items():
        assert written[1][tag] == [(step, pytest.approx(value, rel=1e-5)) for step, value in each]


def test_weights_that_begin_at_zero_are_no_explosion(tmp_path: Path) -> None:
    training = Training(tmp_path, ("all",), lr=1e-3)
    torch.nn.init.zeros_(training.net.head.weight)
    torch.nn.init.zeros_(training.net.head.bias)
    training.fit(epochs=1, monitor_gradients=True)
    ((_, ratio),) = points(tmp_path)["updates/head"]
    assert 0 < ratio < 2


def test_each_warning_comes_once(tmp_path: Path) -> None:
    """A rate that grows tenfold with every step: each is longer than the weights that it meets."""
    training = Training(tmp_path, ("early",), lr=1e3, schedule=lambda step: 10.0**step)
    training.fit(epochs=3, monitor_gradients=True)
    assert all(ratio > 0.5 for _, ratio in points(tmp_path)["updates/head"])
    (line,) = [line for line in training.text.getvalue().splitlines() if "gradients explode" in line]
    assert line.startswith("warning  epoch 1: gradients explode: a step moves ")
    assert line.endswith("try a smaller optimizer.lr or trainer.clip_norm=1")


def test_a_calm_training_is_not_warned_of(tmp_path: Path) -> None:
    training = Training(tmp_path, ("early",), lr=0.01)
    training.fit(monitor_gradients=True)
    assert "warning" not in training.text.getvalue()


def test_a_dead_layer_is_told() -> None:
    said = warnings({"late": 0.0, "head": 3.0}, {"late": 0.0, "head": 1e-3})
    assert list(said) == ["vanishing"]
    assert said["vanishing"].startswith("gradients vanish: 0.0e+00 in late against 3.0e+00 in head")
    assert warnings({"late": 1e-4, "head": 3.0}, {"late": 1e-4, "head": 0.3}) == {}
