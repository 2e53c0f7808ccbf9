"""Averages are timm's; what is kept is the better of both; a run goes on with both."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from pathlib import Path

import pytest
import torch
from torch import nn

from finetune.cells import read_table
from finetune.training.averages import Averages, decay_at
from finetune.training.best import Best
from support.ended import Ended
from support.runs import QUICK, checkpoint, summary_of

Command = Callable[..., Ended]


class Trained:
    """As much of a classifier and its trainer as the callback looks at."""

    def __init__(self) -> None:
        self.model, self.frozen, self.global_step = nn.BatchNorm1d(3), self, 0

    def others(self, model: nn.Module) -> dict[str, torch.Tensor]:
        return model.state_dict()


def test_they_are_timms() -> None:
    ema = pytest.importorskip("timm.utils.model_ema")
    torch.manual_seed(0)
    ours, trained = Averages(0.9), Trained()
    theirs = ema.ModelEmaV3(trained.model, decay=0.9, use_warmup=True)
    ours.on_train_epoch_start(trained, trained)
    for step in range(1, 60):
        with torch.no_grad():
            trained.model.weight += torch.randn(3)
            trained.model.running_mean += torch.randn(3)
            trained.model.num_batches_tracked += 1
        trained.global_step = step
        ours.on_train_batch_end(trained, trained)
        ours.on_train_batch_end(trained, trained)  # of batches that are accumulated
        theirs.update(trained.model, step)
        for name, value in theirs.module.state_dict().items():
            assert torch.allclose(ours.values[name], value, atol=1e-6), name
    assert decay_at(1, 0.9) == 0
    assert decay_at(10_000, 0.9) == 0.9


def test_the_better_of_both_is_best_and_the_averages_where_nothing_validates() -> None:
    best, epoch = Best("accuracy"), {"loss/val": 1.0, "accuracy/val": 0.5, "loss/ema": 2.0}
    assert best.of_averages({**epoch, "accuracy/ema": 0.5}) is None
    better = best.of_averages({**epoch, "accuracy/ema": 0.6})
    assert better
    assert (better["accuracy/val"], better["loss/val"]) == (0.6, 2.0)
    assert best.of_averages({"loss/train": 1.0}) == {"loss/train": 1.0}


KNOBS = (
    "ema=0.8",
    "optimizer.lr=0.5",
    "schedule=constant",
    "epochs=6",
    "batch_size=8",
    "freeze=[all,-layer4]",
    "best=loss",
)


def test_what_is_kept_measured_and_answered_are_the_averages(finished_run: Callable[..., Path]) -> None:
    run = finished_run(*KNOBS)
    summary, best, last = summary_of(run), checkpoint(run), checkpoint(run, "last")
    rows = (run / "metrics.csv").read_text().splitlines()
    columns = rows[0].split(",")
    own, averaged = (
        [float(row.split(",")[columns.index(f"loss/{side}")]) for row in rows[1:]] for side in ("val", "ema")
    )
    assert summary["averaged"] == (min(averaged) < min(own))
    assert summary["val"]["loss"] == pytest.approx(min(own + averaged), rel=1e-6)
    assert best["callbacks"]["Averages"]["in_place"] == summary["averaged"]
    if best["epoch"] != last["epoch"]:
        assert not last["callbacks"]["Averages"]["in_place"]


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("standardize=true", "freeze=all")], ids=["layer4", "head"])
def test_a_longer_run_goes_on_with_both(
    few_pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: Command,
    more: tuple[str, ...],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").symlink_to(few_pictures)
    knobs = (*QUICK, *KNOBS, *more)
    assert command("train", *knobs, "hydra.run.dir=whole").code == 0
    resumed_from_averages, best = False, inf
    rows = [{key: float(one) for key, one in row.items()} for row in read_table(Path("whole/metrics.csv"))]
    kept = list[int]()  # after these epochs the averages were the best so far
    for epoch, row in enumerate(rows[:-1], 1):
        kept += [epoch] if row["loss/ema"] < min(best, row["loss/val"]) else []
        best = min(best, row["loss/val"], row["loss/ema"])
    for after in {2, 5, *kept[:1]}:
        cut = f"cut{after}"
        assert command("train", *knobs, f"epochs={after}", f"hydra.run.dir={cut}").code == 0
        resumed_from_averages |= checkpoint(Path(cut), "last")["callbacks"]["Averages"]["in_place"]
        assert command("resume", cut, "epochs=6").code == 0
        for name in ("best", "last"):
            one, two = checkpoint(Path("whole"), name), checkpoint(Path(cut), name)
            assert one["epoch"] == two["epoch"]
            for key, value in one["state_dict"].items():
                assert value.equal(two["state_dict"][key]), (after, name, key)
            for key, value in one["callbacks"]["Averages"]["values"].items():
                assert value.equal(two["callbacks"]["Averages"]["values"][key]), (after, name, key)
    assert resumed_from_averages or more
