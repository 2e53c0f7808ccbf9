"""Runs whose head reads several stages: cached as uncached, used, explained, swept, and begun from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from finetune.runs.open import open_run
from support.ended import Ended
from support.runs import QUICK, summary_of, whole_state

Train = Callable[..., Ended]
RESNET = ("model=resnet18", "precision=32", "head_features=all")


@pytest.mark.slow
def test_a_run_on_the_clip_art(train: Train, command: Train) -> None:
    knobs = ("weights=bundled", "data.image_size=32", "epochs=2", "hydra.run.dir=run", "cache=memory")
    ended = train(*RESNET, *knobs)
    assert ended.code == 0, ended.err
    assert "10 outputs always trains and reads layer1, layer2, layer3, too\n" in ended.out
    summary = summary_of(Path("run"))
    images = sum(summary["data"][side] for side in ("train", "val", "test"))
    assert summary["features"]["bytes"] == images * 960 * 4
    assert summary["frozen_proof"]["identical"] is True
    assert summary["parameters"]["trainable"] == 961 * 10
    assert command("evaluate", "run", "--split", "test", "--raw", "--out", "found.json").code == 0
    found = json.loads(Path("found.json").read_text())
    assert found["accuracy"] == summary["test"]["accuracy"]
    assert found["log_loss"] == pytest.approx(summary["test"]["loss"], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("freeze", ["all", pytest.param("[all,-layer4]", marks=pytest.mark.slow)])
def test_features_train_as_images_do(train: Train, few_pictures: Path, freeze: str) -> None:
    Path("pictures").symlink_to(few_pictures)
    for name in ("memory", "none"):
        knobs = (f"freeze={freeze}", f"cache={name}", "data.augment=none", f"hydra.run.dir={name}")
        assert train(*QUICK, *RESNET, *knobs).code == 0
    ours, theirs = (whole_state(Path(name)) for name in ("memory", "none"))
    assert ours["fc.weight"].shape == (3, 960)
    for name in ("fc.weight", "layer4.1.conv2.weight"):
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_what_comes_after_a_run(
    finished_run: Callable[..., Path], train: Train, command: Train, few_pictures: Path
) -> None:
    run = finished_run("model=resnet18", "head_features=[layer2,layer3]")
    Path("pictures").symlink_to(few_pictures)
    ended = command("explain", str(run), "pictures/red/1.png", "--out", "explained")
    assert "explain  1 image, Grad-CAM at layer3 (2 x 2)\n" in ended.out
    ended = train(*QUICK, "model=resnet18", f"weights={run}", "epochs=1")
    assert "the head in the weights has 3 outputs and was left out (" in ended.out
    ended = train(*QUICK, "model=resnet18", f"weights={run}", "head=keep", "freeze=[all,-fc]")
    assert ended.code == 2
    assert "whose head is the single layer fc; weights=" in ended.err
    assert ended.err.endswith(" have fc.weight [3, 896], fc.bias [3]\n")


@pytest.mark.slow
def test_the_jobs_of_a_sweep_train_together(train: Train, few_pictures: Path) -> None:
    Path("pictures").symlink_to(few_pictures)
    knobs = (*QUICK, "head_features=last,all", "seed=1,2", "precision=32", "hydra.sweep.dir=sweep")
    ended = train("-m", *knobs)
    assert ended.code == 0, ended.err
    widths = [open_run(f"sweep/{job}").network.fc.in_features for job in range(4)]
    assert widths == [96, 96, 368, 368]
    assert train(*QUICK, "head_features=all", "seed=2", "precision=32", "hydra.run.dir=one").code == 0
    together, alone = (whole_state(Path(name))["fc.weight"] for name in ("sweep/3", "one"))
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-5)
