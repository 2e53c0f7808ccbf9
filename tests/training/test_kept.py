"""What a training leaves in its checkpoints, and says."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from finetune.errors import RunError
from support.small import Training, same

# what is kept


def test_a_checkpoint_holds_what_trains_and_nothing_else(tmp_path: Path) -> None:
    training = Training(tmp_path)
    training.fit(epochs=2)
    checkpoint = training.checkpoint("best")
    assert set(checkpoint["state_dict"]) == {
        *(f"late.0.{name}" for name in ("weight", "bias")),
        *(
            f"late.1.{name}"
            for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
        ),
        "head.weight",
        "head.bias",
    }
    assert checkpoint["frozen_sha256"] == "abc"
    (optimizer,) = checkpoint["optimizer_states"]
    assert [group["name"] for group in optimizer["param_groups"]] == ["backbone", "head"]
    assert len(optimizer["state"]) == 6
    written = {path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("*") if path.is_file()}
    assert written == {"checkpoints", "metrics.csv", "tensorboard"}
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}


def test_a_checkpoint_suffices_to_go_on_bit_for_bit(tmp_path: Path) -> None:
    """From the first epoch's checkpoint, by hand: weights, momentum and random numbers are all in it."""
    whole = Training(tmp_path / "whole")
    whole.fit(epochs=2)
    first = Training(tmp_path / "first")
    first.fit(epochs=1)
    kept = first.checkpoint()

    again = Training(tmp_path / "again")
    again.classifier.load_state_dict(kept["state_dict"])
    optimizer, _ = again.classifier.make_optimizer()
    optimizer.load_state_dict(kept["optimizer_states"][0])
    torch.set_rng_state(kept["rng"]["cpu"])  # for dropout
    again.classifier.train()
    order = np.random.default_rng([0, 1]).permutation(again.batches.split["train"])
    for part in np.split(order, 4):
        optimizer.zero_grad()
        F.cross_entropy(again.net(again.x[part]), again.y[part]).backward()
        optimizer.step()
    assert same(again.classifier.state_dict(), whole.checkpoint()["state_dict"])


def test_the_same_training_gives_the_same_bits(tmp_path: Path) -> None:
    runs = [Training(tmp_path / name) for name in "ab"]  # fit seeds dropout itself
    for training in runs:
        training.fit()
    assert same(*(training.checkpoint()["state_dict"] for training in runs))
    a, b = ((training.folder / "metrics.csv").read_bytes() for training in runs)
    assert a == b


def test_a_checkpoint_of_another_freeze_is_refused(tmp_path: Path) -> None:
    state = Training(tmp_path / "a").classifier.state_dict()
    other = Training(tmp_path / "b", freeze_=("all",)).classifier
    with pytest.raises(RunError, match=r"of another model or freeze: late\.0\.bias"):
        other.load_state_dict(state)


# what is said


def test_a_line_an_epoch(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    training = Training(tmp_path)
    training.fit(epochs=2)
    lines = training.text.getvalue().splitlines()
    assert [line.split("  ")[0] for line in lines] == ["epoch 1/2", "epoch 2/2"]
    row = training.rows()[1]
    assert f"train loss {row['loss/train']:.4f} acc {row['accuracy/train']:.3f}" in lines[1]
    assert f"val loss {row['loss/val']:.4f} acc {row['accuracy/val']:.3f}" in lines[1]
    assert capfd.readouterr() == ("", "")  # Lightning itself says nothing
