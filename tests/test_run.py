"""Whole runs: what they leave in their folder and that what is frozen is."""

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from safetensors import safe_open

from finetune.data import sources
from finetune.data.augment import Prepare
from finetune.data.reader import Reader
from finetune.model.head import initial_head
from finetune.model.preprocessing import Preprocessing
from support.runs import CHECKOUT, QUICK, SMALL, checkpoint, newest, summary_of, whole_state
from support.slow import slow

Train = Callable[..., Any]


@pytest.fixture(autouse=True)
def pictures(few_pictures: Path, tmp_path: Path) -> None:
    """`pictures` in the working directory of each test."""
    (tmp_path / "pictures").symlink_to(few_pictures)


# the main job


def test_the_main_job(tmp_path: Path) -> None:
    """`python train.py freeze=all head=10`, started elsewhere than in the checkout, on smaller pictures."""
    command = [sys.executable, str(CHECKOUT / "train.py"), "freeze=all", "head=10"]
    options = ["weights=bundled", "data.image_size=48", "epochs=5", f"cache_dir={tmp_path / 'cache'}"]
    ended = subprocess.run([*command, *options], cwd=tmp_path, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")
    folder = tmp_path / (tmp_path / "outputs/latest").read_text().strip()
    summary = summary_of(folder)
    assert summary["status"] == "finished"
    assert summary["test"]["accuracy"] > 0.3  # ten classes; the head has learnt something
    assert summary["weights"]["requested"] == "bundled"
    assert summary["parameters"] == {"total": 11_181_642, "trainable": 5_130}
    assert summary["frozen_proof"]["tensors"] == 120
    assert sum(summary["data"][side] for side in sources.SPLITS) == len(
        sources.load_dataset("clipart", None, 0, 0).images
    )
    for told in (
        "bundled",
        "11,176,512 of 11,181,642 parameters are frozen",
        "10 classes",
        "epoch 5/5",
        f"accuracy {summary['test']['accuracy']:.3f}",
        "frozen   proven unchanged",
        str(folder.relative_to(tmp_path)),
        "tensorboard --logdir outputs",
    ):
        assert told in ended.stdout


def test_a_run_leaves_a_folder_that_explains_itself(train: Train) -> None:
    ended = train(*QUICK, "model=resnet18", "freeze=all", "head=10", "seed=3")
    assert (ended.code, ended.err) == (0, "")
    folder = newest()
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert {name for name in files if not name.startswith("tensorboard/")} == {
        *(f".hydra/{name}.yaml" for name in ("config", "hydra", "overrides")),
        "reference.safetensors",
        *(f"checkpoints/{name}" for name in ("best.ckpt", "last.ckpt", "frozen.safetensors", "seen.json")),
        "settings.json",
        "log.txt",
        "digests.json",
        "summary.json",
        "metrics.csv",
        "predictions.csv",
        "report.html",
    }
    assert len(files) == 20  # and TensorBoard's log and projector
    assert {path.name for path in Path().iterdir()} == {"outputs", "pictures"}  # no lightning_logs beside it

    summary = summary_of(folder)
    with (folder / "metrics.csv").open(newline="") as file:
        rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    best = max(rows, key=lambda row: (row["accuracy/val"], -row["loss/val"]))
    assert summary["status"] == "finished"
    assert summary["best_epoch"] == best["epoch"]
    for name in ("loss", "accuracy", "balanced_accuracy", "macro_f1"):
        assert summary["val"][name] == best[f"{name}/val"]
    assert summary["model"] == "resnet18"
    assert summary["weights"]["requested"] == "random"
    assert len(summary["weights"]["sha256"]) == 64
    assert (summary["freeze"], summary["head"], summary["seed"]) == (["all"], 10, 3)
    assert summary["classes"] == ["blue", "green", "red"]
    assert summary["parameters"] == {"total": 11_181_642, "trainable": 5_130}
    assert {key: summary["data"][key] for key in ("name", "skipped")} == {"name": "pictures", "skipped": 0}
    assert sum(summary["data"][side] for side in ("train", "val", "test")) == 60
    assert len(summary["data"]["fingerprint"]) == 64
    assert 0 < summary["timing"]["training"] < summary["timing"]["total"]
    assert summary["precision"] in ("32-true", "bf16-mixed")
    assert {"finetune", "python", "torch", "torchvision", "pytorch-lightning"} <= set(summary["versions"])
    settings = json.loads((folder / "settings.json").read_text())
    assert (settings["head"], settings["seed"], settings["optimizer"]["lr"]) == (10, 3, 0.01)


def test_frozen_means_frozen(train: Train) -> None:
    """Against torchvision's own model of the same seed, hashed independently of the run."""
    train(*QUICK, "model=resnet18", "freeze=all", "head=10", "cache=none", "data.augment=flip")
    folder = newest()
    torch.manual_seed(0)
    before = torchvision.models.resnet18().state_dict()
    after = whole_state(folder)
    backbone = {name for name in before if not name.startswith("fc.")}
    assert len(backbone) == 120
    assert all(torch.equal(after[name], before[name]) for name in backbone)
    begun = initial_head(torchvision.models.resnet18(num_classes=10), "fc", seed=0)
    assert not torch.equal(after["fc.weight"], begun["fc.weight"])
    proof = summary_of(folder)["frozen_proof"]
    assert proof["identical"] is True
    assert set(proof["each"]) == backbone
    assert checkpoint(folder)["frozen_sha256"] == proof["sha256"]


@pytest.mark.slow
def test_both_halves_of_a_run_make_the_whole_model_again(train: Train) -> None:
    freeze = ("model=resnet18", "freeze=through:layer2", "head=10")
    train(*QUICK, *freeze, "precision=32", "epochs=1", "cache=none")
    folder = newest()
    model = torchvision.models.resnet18(num_classes=10)
    model.load_state_dict(whole_state(folder), strict=True)
    dataset = sources.load_dataset("folder", "pictures", 0.15, 0.15)
    with safe_open(folder / "checkpoints" / "frozen.safetensors", "pt") as file:
        metadata = file.metadata()
    sizes = Preprocessing().to(32)
    assert metadata == {**sizes.metadata(), "classes": json.dumps(dataset.classes)}
    test = dataset.split["test"]
    reader = Reader(dataset.images, sizes)
    prepare = Prepare(sizes, "none", 0)
    inputs = prepare(torch.stack([reader(int(i)) for i in test]), False, 0)
    with torch.no_grad():
        right = model.eval()(inputs).argmax(1).numpy() == dataset.labels[test]
    assert np.mean(right) == pytest.approx(summary_of(folder)["test"]["accuracy"], abs=0.5 / len(test))


def test_the_same_request_gives_the_same_numbers(train: Train) -> None:
    kept = []
    for _ in range(2):
        train(*QUICK, "freeze=[all,-layer4]", "epochs=1", "head_dropout=0.2", "max_steps=5")
        kept.append((checkpoint(newest())["state_dict"], (newest() / "metrics.csv").read_bytes()))
    assert kept[0][1] == kept[1][1]
    assert all(torch.equal(value, kept[1][0][name]) for name, value in kept[0][0].items())


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_precisions_on_a_cpu(train: Train, precision: str) -> None:
    options = ("trainer=cpu", "freeze=none", "max_steps=2", "epochs=1", f"precision={precision}")
    assert train(*QUICK, *options).code == 0
    assert summary_of(newest())["precision"].startswith(precision)
    state = checkpoint(newest())["state_dict"]
    assert {value.dtype for value in state.values()} == {torch.float32, torch.int64}


@pytest.mark.parametrize(
    "experiment",
    [
        path.stem if path.stem == "last_stage" else slow(path.stem)
        for path in sorted((CHECKOUT / "configs" / "experiment").glob("*.yaml"))
    ],
)
def test_experiments_run(train: Train, experiment: str) -> None:
    data = () if experiment == "notebook_step" else (*QUICK[:3], SMALL)
    options = ("weights=random", "epochs=1", "max_steps=2", "cache=memory")
    ended = train(f"experiment={experiment}", *data, *options)
    assert (ended.code, ended.err) == (0, "")
    assert summary_of(newest())["status"] == "finished"


@pytest.mark.slow
def test_compiled(train: Train) -> None:
    numbers = []
    for choice in ("true", "false"):
        train(*QUICK, "freeze=all", "epochs=1", f"compile={choice}", "precision=32", "cache=none")
        numbers.append(summary_of(newest())["test"]["loss"])
    assert numbers[0] == pytest.approx(numbers[1], abs=1e-4)
    assert not any("_orig_mod" in name for name in checkpoint(newest())["state_dict"])
