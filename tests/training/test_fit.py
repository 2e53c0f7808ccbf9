"""Real trainings of a small network: how they step, and in which modes."""

from pathlib import Path

import pytest
import torch
from pytorch_lightning import Callback, Trainer
from torch import Tensor

from finetune.training.losses import create_loss
from support.small import Training, same


@pytest.mark.parametrize("weights", [None, torch.tensor([0.2, 1.0, 5.0], dtype=torch.float64)])
def test_metrics_are_those_of_the_epoch(tmp_path: Path, weights: Tensor | None) -> None:
    """With rates of 0 nothing changes, so that train and val of each epoch can be computed by hand."""
    loss = create_loss("cross_entropy", class_weights=weights)
    training = Training(tmp_path, freeze_=("all",), schedule=lambda step: 0.0, loss=loss)
    training.fit(epochs=2)
    net = training.net.eval()
    for row in training.rows():
        for side, part in training.batches.split.items():
            if side != "test":
                with torch.no_grad():
                    logits = net(training.x[part])
                assert row[f"loss/{side}"] == pytest.approx(loss(logits, training.y[part])[0].item())
                right = (logits.argmax(1) == training.y[part]).double().mean().item()
                assert row[f"accuracy/{side}"] == right
    assert [(row["epoch"], row["step"]) for row in training.rows()] == [(1, 4), (2, 8)]


def test_lightnings_callbacks_find_the_metrics(tmp_path: Path) -> None:
    seen: list[dict[str, Tensor]] = []

    class Monitor(Callback):
        def on_train_epoch_end(self, trainer: Trainer, *args: object) -> None:
            seen.append(dict(trainer.callback_metrics))

    training = Training(tmp_path)
    training.fit(epochs=2, also=[Monitor()])
    for before, row in zip(seen, training.rows(), strict=True):
        assert before["val/loss"].item() == pytest.approx(row["loss/val"])
        assert before["val/accuracy"].item() == pytest.approx(row["accuracy/val"])
    assert seen[1]["train/loss"].item() == pytest.approx(training.rows()[0]["loss/train"])


def test_a_clusters_variables_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning refuses some of them, and would take a signal of the cluster's for its own."""
    for name, value in {"NTASKS": "4", "JOB_NAME": "train", "PROCID": "0", "LOCALID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    training = Training(tmp_path)
    training.fit(epochs=1)
    assert len(training.rows()) == 1


# stepping


@pytest.mark.parametrize(("big", "small", "accumulate"), [(16, 4, 4), (32, 8, 10)])
def test_accumulated_small_batches_equal_one_big_batch(
    tmp_path: Path, big: int, small: int, accumulate: int
) -> None:
    """Gradients add up until they are cleared; every BatchNorm is frozen, dropout off.

    The mean is over what there is, also where an epoch has fewer batches than a step takes.
    """
    states = []
    for size, batches in ((big, 1), (small, accumulate)):
        training = Training(tmp_path / str(size), freeze_=("all",), batch_size=size)
        training.fit(accumulate_batches=batches)
        states.append(training.checkpoint())
    assert [state["global_step"] for state in states] == [96 // big] * 2
    for name, value in states[0]["state_dict"].items():
        torch.testing.assert_close(states[1]["state_dict"][name], value, rtol=1e-12, atol=1e-12)


def test_a_step_is_taken_for_what_is_left_at_the_end_of_an_epoch(tmp_path: Path) -> None:
    training = Training(tmp_path, batch_size=8)
    assert training.fit(epochs=2, accumulate_batches=3).steps == 4


def test_clipping_bounds_the_step_and_the_norm_is_told_before_it(tmp_path: Path) -> None:
    training = Training(tmp_path, lr=1.0, momentum=0.0, batch_size=32)
    before = {name: p.detach().clone() for name, p in training.net.named_parameters()}
    training.fit(epochs=1, clip_norm=1e-3)
    moved = [p.detach() - before[name] for name, p in training.net.named_parameters()]
    assert torch.nn.utils.get_total_norm(moved).item() == pytest.approx(1e-3, rel=1e-3)
    assert training.rows()[0]["gradient_norm"] > 1e-2


def test_the_gradient_norm_is_the_epochs_own(tmp_path: Path) -> None:
    """With one step an epoch, a rate of 1 and no momentum a step is as long as the gradient."""
    runs = [Training(tmp_path / str(n), ("all",), lr=1.0, momentum=0.0, batch_size=32) for n in (1, 2)]
    for epochs, training in enumerate(runs, start=1):
        training.fit(epochs=epochs)
    first, second = (training.checkpoint()["state_dict"] for training in runs)
    step = torch.nn.utils.get_total_norm([second[name] - first[name] for name in first])
    assert runs[1].rows()[1]["gradient_norm"] == pytest.approx(step.item())


def test_rates_follow_the_schedule_step_by_step(tmp_path: Path) -> None:
    training = Training(tmp_path, lr=0.5, schedule=lambda step: 1 / (1 + step))
    training.fit(epochs=3)
    assert [row["lr/head"] for row in training.rows()] == pytest.approx([0.5, 0.5 / 5, 0.5 / 9])
    assert training.checkpoint()["optimizer_states"][0]["param_groups"][0]["lr"] == pytest.approx(0.5 / 13)


# modes


def test_modes_in_every_epoch(tmp_path: Path) -> None:
    """Also after a validation, which puts everything into eval mode."""
    training = Training(tmp_path)
    seen: list[tuple[bool, bool, bool, bool]] = []
    early, late = training.net.early, training.net.late
    training.net.register_forward_pre_hook(
        lambda *_: seen.append((early[1].training, early[2].training, late[1].training, late[2].training))
    )
    frozen_before = {name: b.clone() for name, b in early.named_buffers()}
    late_before = late[1].running_mean.clone()
    training.fit(epochs=2)
    train, val = [(False, False, True, True)] * 4, [(False,) * 4] * 2
    test, val_logits = val, val
    assert seen == [*train, *val, *train, *val, *test, *val_logits]
    assert same(dict(early.named_buffers()), frozen_before)
    assert not torch.equal(late[1].running_mean, late_before)
