"""What trains on a GPU, and what is done with a run that did."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from support.ended import Ended
from support.runs import QUICK, checkpoint, newest, summary_of

Call = Callable[..., Ended]
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]


@pytest.fixture(autouse=True)
def pictures(few_pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "pictures").symlink_to(few_pictures)


@pytest.mark.parametrize("freeze", ["all", "none"])
@pytest.mark.parametrize("precision", ["auto", "32", "16"])
def test_trains(train: Call, precision: str, freeze: str) -> None:
    ended = train(*QUICK, "trainer=gpu", f"precision={precision}", f"freeze={freeze}")
    assert (ended.code, ended.err) == (0, "")
    assert summary_of(newest())["device"] == "cuda"
    assert set(checkpoint(newest())["rng"]) == {"cpu", "cuda"}


SOLVED = ("optimizer=lbfgs", "epochs=1")
KINDS = {
    "solved": SOLVED,
    "refit": (*SOLVED, "refit=true", "head_features=all", "batchnorm=auto", "data.augment=flip"),
    "adapted": ("batchnorm=adapt", "refit=true"),
    "folds": (*SOLVED, "data.folds=3"),
    "uncached": ("cache=none",),
    "augmented": (
        "cache=auto",
        "freeze=none",
        "data.augment=standard",
        "mixup=0.2",
        "ema=0.9",
        "optimizer=adamw",
    ),
    "norms": ("freeze=[all,-@norm]", "optimizer.layer_decay=0.75", "data.augment=flip"),
    "through": ("freeze=through:layer3", "precision=32"),
    "phases": ("experiment=gradual",),
    "ladder": ("freeze=auto",),
    "weighed": ("class_weights=balanced", "label_smoothing=0.1", "monitor_gradients=true"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_training(train: Call, kind: str) -> None:
    ended = train(*QUICK, "trainer=gpu", *KINDS[kind])
    assert (ended.code, ended.err) == (0, "")
    assert summary_of(newest())["device"] == "cuda"


def test_resumes(train: Call, command: Call) -> None:
    assert train(*QUICK, "trainer=gpu", "freeze=none").code == 0
    ended = command("resume", str(newest()), "epochs=3")
    assert (ended.code, ended.err) == (0, "")
    assert summary_of(newest())["epochs"] == 3


def test_a_sweep(train: Call) -> None:
    ended = train(
        "-m",
        *QUICK,
        "trainer=gpu",
        "optimizer.lr=0.1,0.01",
        "seed=0,1",
        "refit=true",
        "hydra.sweep.dir=sweep",
    )
    assert (ended.code, ended.err) == (0, "")
    assert len(list(Path("sweep").rglob("summary.json"))) == 4


@pytest.mark.parametrize("kind", ["solved", "augmented"])
def test_every_command(train: Call, command: Call, kind: str) -> None:
    assert train(*QUICK, "trainer=gpu", *KINDS[kind]).code == 0
    run = str(newest())
    for words in (
        ("predict", run, "pictures"),
        ("evaluate", run),
        ("explain", run, "pictures/red/0.png"),
        ("audit", run),
        ("report", run),
        ("export", run),
        ("cache",),
        ("inspect", *QUICK),
        ("compare", "models=[timm/test_resnet,timm/test_vit]", *QUICK[:4]),
    ):
        ended = command(*words)
        assert ended.code == 0, (words, ended.err)
