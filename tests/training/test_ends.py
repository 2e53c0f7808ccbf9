"""How trainings end, well or badly, and what is then kept."""

import threading
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.plugins import MixedPrecision
from sklearn.metrics import balanced_accuracy_score, f1_score
from torch import Tensor

from finetune.errors import RunError
from finetune.training import optim
from finetune.training.fit import Fitted
from support.small import Small, Training, per_image, same

# the end


def test_the_best_epoch_has_the_highest_accuracy_then_the_lowest_loss(tmp_path: Path) -> None:
    training = Training(tmp_path, lr=0.05)
    fitted = training.fit(epochs=8)
    rows = training.rows()
    best = max(rows, key=lambda row: (row["accuracy/val"], -row["loss/val"]))
    assert fitted.best_epoch == best["epoch"] == training.checkpoint("best")["epoch"] + 1
    assert fitted.val == pytest.approx(
        {name: best[f"{name}/val"] for name in ("loss", "accuracy", "balanced_accuracy", "macro_f1")}
    )
    assert (fitted.epochs, fitted.steps, len(rows)) == (8, 32, 8)


def test_ties_in_accuracy_go_to_the_lower_loss(tmp_path: Path) -> None:
    training = Training(tmp_path, freeze_=("all",), lr=1e-6)  # too small to change an answer
    fitted = training.fit(epochs=3)
    assert len({row["accuracy/val"] for row in training.rows()}) == 1
    losses = [row["loss/val"] for row in training.rows()]
    assert len(set(losses)) == 3
    assert fitted.best_epoch == losses.index(min(losses)) + 1


def test_the_first_of_equal_epochs_is_best_and_patience_counts_from_it(tmp_path: Path) -> None:
    training = Training(tmp_path, freeze_=("all",), schedule=lambda step: 0.0)
    fitted = training.fit(epochs=10, patience=2)
    assert (fitted.best_epoch, fitted.epochs) == (1, 3)
    assert training.checkpoint("best")["epoch"] == 0
    assert training.checkpoint("last")["epoch"] == 2


def test_the_test_split_is_judged_with_the_best_epoch(tmp_path: Path) -> None:
    training = Training(tmp_path, lr=0.3)
    fitted = training.fit(epochs=6)
    assert fitted.best_epoch < 6
    fresh = Small().double()
    fresh.load_state_dict(
        {**training.frozen.tensors(training.net), **training.checkpoint("best")["state_dict"]}
    )
    part = training.batches.split["test"]
    with torch.no_grad():
        logits = fresh.eval()(training.x[part])
    assert fitted.test_logits is not None
    torch.testing.assert_close(fitted.test_logits, logits)
    present = training.y[part].unique().tolist()
    assert fitted.test == pytest.approx(
        {
            "loss": F.cross_entropy(logits, training.y[part]).item(),
            "accuracy": (logits.argmax(1) == training.y[part]).double().mean().item(),
            "balanced_accuracy": balanced_accuracy_score(training.y[part], logits.argmax(1)),
            "macro_f1": f1_score(training.y[part], logits.argmax(1), labels=present, average="macro"),
        }
    )


@pytest.mark.parametrize("max_steps", [4, 5, 6, 8, 100])
def test_max_steps_ends_training_wherever_it_falls(tmp_path: Path, max_steps: int) -> None:
    training = Training(tmp_path)
    fitted = training.fit(epochs=3, max_steps=max_steps)
    steps = min(max_steps, 12)
    assert (fitted.steps, fitted.epochs) == (steps, -(-steps // 4))
    assert training.checkpoint()["global_step"] == steps
    assert [row["step"] for row in training.rows()] == [*range(4, steps, 4), steps]
    assert all("loss/val" in row for row in training.rows())  # the epoch cut short is validated, too


def test_without_validation_the_last_epoch_counts(tmp_path: Path) -> None:
    training = Training(tmp_path, sides=(32, 0, 0))
    fitted = training.fit(epochs=3)
    assert fitted == Fitted(best_epoch=3, epochs=3, steps=12, val=None, test=None, test_logits=None)
    assert same(training.checkpoint("best")["state_dict"], training.checkpoint("last")["state_dict"])
    assert "val" not in training.text.getvalue()


# when something goes wrong


def blown_up_at(step: int) -> optim.Schedule:
    return lambda now: 1e300 if now == step else 1.0


@pytest.mark.parametrize(
    ("step", "sides", "named"),
    [
        (5, (32, 16, 16), "the loss of batch 3 became nan in epoch 2"),
        (7, (32, 16, 16), "the validation loss became nan in epoch 2"),
        (7, (32, 0, 0), r"a value of \S+ became (nan|inf) in epoch 2"),
    ],
)
def test_a_number_that_is_not_finite_ends_the_run_and_keeps_the_last_good_checkpoint(
    tmp_path: Path, step: int, sides: tuple[int, int, int], named: str
) -> None:
    training = Training(tmp_path, sides=sides, schedule=blown_up_at(step), lr=1e10, momentum=0.0)
    with pytest.raises(RunError, match=rf"{named}.*optimizer\.lr.*the checkpoint of epoch 1 is kept$"):
        training.fit(epochs=5)
    for name in ("best", "last"):
        kept = training.checkpoint(name)
        assert kept["epoch"] == 0
        assert all(value.isfinite().all() for value in kept["state_dict"].values())


class Fp16(pl.Callback):
    """Trains in fp16 on a CPU, which Lightning has for GPUs alone; in epoch 2 activations overflow it."""

    def setup(self, trainer: pl.Trainer, *args: Any, **stage: Any) -> None:
        trainer.strategy.precision_plugin = MixedPrecision("16-mixed", "cpu")

    def on_train_epoch_start(self, trainer: pl.Trainer, learner: Any) -> None:
        if trainer.current_epoch == 1:
            learner.model.late[1].weight.data.mul_(1e6)


def test_what_overflows_in_fp16_ends_the_run_and_is_told_which_formats_hold_more(tmp_path: Path) -> None:
    training = Training(tmp_path)
    training.net.float()
    training.x = training.x.float()
    told = r"batch 1 became \S+ in epoch 2.*; or precision=bf16 or 32, .*the checkpoint of epoch 1 is kept$"
    with pytest.raises(RunError, match=told):
        training.fit(epochs=3, also=[Fp16()])
    assert training.checkpoint("last")["epoch"] == training.checkpoint("best")["epoch"] == 0


def test_nothing_is_kept_where_no_epoch_was_finished(tmp_path: Path) -> None:
    training = Training(tmp_path, loss=per_image(lambda logits, labels: logits.sum() * torch.nan))
    with pytest.raises(RunError, match=r"batch 1 became nan in epoch 1.*so there is no checkpoint$"):
        training.fit()
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_full_memory_is_one_line(tmp_path: Path) -> None:
    calls = 0

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 8:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return F.cross_entropy(logits, labels)

    training = Training(tmp_path, loss=per_image(loss))
    with pytest.raises(RunError, match=r"memory is full, expected a smaller batch_size.*epoch 1 is kept"):
        training.fit()


def test_runs_outside_the_main_thread(tmp_path: Path) -> None:
    results = []
    thread = threading.Thread(target=lambda: results.append(Training(tmp_path).fit(epochs=1)))
    thread.start()
    thread.join()
    assert results[0].epochs == 1
