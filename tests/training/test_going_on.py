"""A training that goes on from a checkpoint ends as the one that was never interrupted, bit for bit."""

from pathlib import Path
from typing import Any

import pytest
import torch

from finetune.atomic import write_atomically
from finetune.errors import RunError
from finetune.training.checkpoint import newest
from finetune.training.fit import Fitted
from support.slow import slow
from support.small import Training, same


class Killed(BaseException):
    """Ends a training as a kill would: nothing is written after it."""


def killed_in(training: Training, hook: str, epoch: int, **options: Any) -> None:
    """Train until that hook of the LightningModule is called in an epoch, counted from 1."""
    classifier = training.classifier
    original = getattr(classifier, hook)

    def kill(*args: Any) -> Any:
        if classifier.trainer.current_epoch == epoch - 1:
            raise Killed
        return original(*args)

    setattr(classifier, hook, kill)
    with pytest.raises(Killed):
        training.fit(**options)


def gone_on(training: Training, **options: Any) -> Fitted:
    found = newest(training.folder)
    assert found is not None
    if found[1]["curves"]:
        write_atomically(training.folder / "metrics.csv", found[1]["curves"].encode())
    return training.fit(resume_state=found[0], **options)


def assert_the_same(one: Training, other: Training) -> None:
    for name in ("best", "last"):
        a, b = one.checkpoint(name), other.checkpoint(name)
        assert same(a["state_dict"], b["state_dict"])
        assert a["lr_schedulers"] == b["lr_schedulers"]
        assert a["callbacks"] == b["callbacks"]
        assert torch.equal(a["rng"]["cpu"], b["rng"]["cpu"])
        for x, y in zip(a["optimizer_states"], b["optimizer_states"], strict=True):
            assert x["param_groups"] == y["param_groups"]
            assert all(same(x["state"][i], y["state"][i]) for i in x["state"] if "step" in x["state"][i])
            assert all(
                torch.equal(v["momentum_buffer"], y["state"][i]["momentum_buffer"])
                for i, v in x["state"].items()
                if "momentum_buffer" in v
            )
    assert one.rows() == other.rows()


def assert_fitted_alike(one: Fitted, other: Fitted) -> None:
    plain = ("best_epoch", "epochs", "steps", "val", "test")
    assert [getattr(one, name) for name in plain] == [getattr(other, name) for name in plain]
    assert one.test_logits is not None
    assert other.test_logits is not None
    assert torch.equal(one.test_logits, other.test_logits)


KINDS: list[Any] = [
    ({}, {}),
    slow({"freeze_": ("none",), "optimizer": "adamw", "lr": 0.01}, {}),
    slow({"freeze_": ("all",)}, {}),
    ({"schedule": lambda step: 1 / (1 + step)}, {"clip_norm": 0.5}),
    slow({"batch_size": 5}, {"accumulate_batches": 2}),
    ({"batch_size": 5}, {"accumulate_batches": 4, "max_steps": 9}),
    slow({"sides": (32, 0, 16)}, {}),
    ({"schedule": lambda step: float(step < 8)}, {"patience": 3}),
]


@pytest.mark.parametrize(("kind", "options"), KINDS)
@pytest.mark.parametrize(
    ("hook", "epoch"),
    [("training_step", 3), pytest.param("on_train_epoch_start", 2, marks=pytest.mark.slow)],
)
def test_it_ends_the_same(
    kind: dict[str, Any], options: dict[str, Any], hook: str, epoch: int, tmp_path: Path
) -> None:
    options = {"epochs": 8, **options}
    whole = Training(tmp_path / "whole", **kind)
    fitted = whole.fit(**options)
    killed_in(Training(tmp_path / "cut", **kind), hook, epoch, **options)
    again = Training(tmp_path / "cut", **kind)
    assert_fitted_alike(gone_on(again, **options), fitted)
    assert_the_same(again, whole)


def test_however_often_it_is_killed(tmp_path: Path) -> None:
    whole = Training(tmp_path / "whole")
    fitted = whole.fit(epochs=6)
    killed_in(Training(tmp_path / "cut"), "training_step", 2, epochs=6)
    for epoch, hook in ((2, "validation_step"), (4, "on_validation_epoch_end"), (6, "training_step")):
        kill_and_go_on(Training(tmp_path / "cut"), hook, epoch)
    again = Training(tmp_path / "cut")
    assert_fitted_alike(gone_on(again, epochs=6), fitted)
    assert_the_same(again, whole)


def kill_and_go_on(training: Training, hook: str, epoch: int) -> None:
    found = newest(training.folder)
    assert found is not None
    if found[1]["curves"]:
        write_atomically(training.folder / "metrics.csv", found[1]["curves"].encode())
    killed_in(training, hook, epoch, epochs=6, resume_state=found[0])


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ({}, {"epochs": 3}),
        ({}, {"epochs": 9, "max_steps": 6}),
        ({"freeze_": ("all",), "schedule": lambda step: 0.0}, {"epochs": 9, "patience": 2}),
    ],
)
def test_a_training_killed_while_it_was_tested_only_lacks_the_test(
    kind: dict[str, Any], options: dict[str, Any], tmp_path: Path
) -> None:
    whole = Training(tmp_path / "whole", **kind)
    fitted = whole.fit(**options)
    cut = Training(tmp_path / "cut", **kind)
    cut.classifier.test_step = lambda *args: (_ for _ in ()).throw(Killed)  # type: ignore[method-assign]
    with pytest.raises(Killed):
        cut.fit(**options)
    again = Training(tmp_path / "cut", **kind)
    assert_fitted_alike(gone_on(again, **options), fitted)
    assert "epoch" not in again.text.getvalue()
    assert_the_same(again, whole)


def test_a_kill_between_the_two_checkpoints_goes_on_from_the_newer(tmp_path: Path) -> None:
    whole, cut = Training(tmp_path / "whole", lr=0.05), Training(tmp_path / "cut", lr=0.05)
    fitted = whole.fit(epochs=4)
    cut.fit(epochs=1)
    first = (tmp_path / "cut/checkpoints/last.ckpt").read_bytes()
    gone_on(Training(tmp_path / "cut", lr=0.05), epochs=2)
    assert cut.checkpoint("best")["epoch"] == 1
    (tmp_path / "cut/checkpoints/last.ckpt").unlink()  # a name of best.ckpt
    (tmp_path / "cut/checkpoints/last.ckpt").write_bytes(first)
    again = Training(tmp_path / "cut", lr=0.05)
    assert_fitted_alike(gone_on(again, epochs=4), fitted)
    assert "epoch 2/" not in again.text.getvalue()
    assert_the_same(again, whole)


def test_a_damaged_checkpoint_is_not_gone_on_from(tmp_path: Path) -> None:
    training = Training(tmp_path)
    training.fit(epochs=1)
    whole = (tmp_path / "checkpoints/last.ckpt").read_bytes()
    (tmp_path / "checkpoints/last.ckpt").write_bytes(whole[:-100])
    with pytest.raises(RunError, match=r"last\.ckpt: is missing or damaged"):
        newest(tmp_path)
    assert newest(tmp_path / "nowhere") is None
