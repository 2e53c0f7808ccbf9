"""A run opened again: the same model, by its folder or as the latest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from ended import Ended
from runs import QUICK, newest, whole_state

from finetune.errors import RequestError
from finetune.saved import find, open_run

Train = Callable[..., Ended]


@pytest.mark.parametrize(
    "overrides",
    [(), ("head_hidden=[8]", "head_dropout=0.1", "freeze=through:layer3"), ("head=keep", "freeze=[all,-fc]")],
)
def test_a_run_opened_again_is_the_model_that_its_best_epoch_left(
    train: Train, few_pictures: Path, overrides: tuple[str, ...]
) -> None:
    Path("pictures").symlink_to(few_pictures)
    assert train(*QUICK, *overrides).code == 0
    saved = open_run("latest")
    assert saved.folder == newest()
    assert saved.classes == ("blue", "green", "red")
    assert saved.preprocessing.crop_size == 32
    assert saved.settings.epochs == 2
    assert saved.summary is not None
    assert saved.summary["status"] == "finished"
    kept = whole_state(saved.folder)
    own = saved.network.state_dict()
    assert own.keys() == kept.keys()
    assert all(torch.equal(own[name], kept[name]) for name in own)
    assert not any(module.training for module in saved.network.modules())


def test_a_run_without_a_checkpoint_cannot_be_opened(train: Train, few_pictures: Path) -> None:
    Path("pictures").symlink_to(few_pictures)
    assert train(*QUICK).code == 0
    (newest() / "checkpoints" / "best.ckpt").unlink()
    with pytest.raises(RequestError, match="expected a run with a finished epoch"):
        open_run("latest")


@pytest.mark.parametrize("run", ["latest", "nowhere", "."])
def test_what_is_no_run_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RequestError, match=rf"^{run.replace('.', '[.]')}: expected"):
        find(run)
