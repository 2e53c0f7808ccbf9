"""A loss, schedule, optimiser or augmentation is one entry in one file: added to a copy, it trains."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from shutil import copytree, ignore_patterns

import pytest
import yaml

import finetune
from finetune.config.shipped import configs_folder
from support.runs import CHECKOUT, QUICK

CONTRIBUTING = CHECKOUT / "CONTRIBUTING.md"
ADDED = {
    "losses": re.findall(r"```python\n(.*?)```", CONTRIBUTING.read_text("utf-8"), re.DOTALL)[0],
    "schedules": """
SCHEDULES["linear"] = ScheduleEntry(lambda step, span: 1 - step / span.steps)
""",
    "optimizers": """
class RMSprop(SteppedSettings):
    name: Literal["rmsprop"]
    alpha: Fraction


OPTIMIZERS["rmsprop"] = OptimizerEntry(RMSprop, "torch.optim.RMSprop")
""",
    "augmentations": """
AUGMENTATIONS["darker"] = Augmentation(lambda images, size, generator: images[..., :size, :size] // 2)
""",
}
RMSPROP = {
    "name": "rmsprop",
    "lr": 0.01,
    "weight_decay": 0,
    "alpha": 0.9,
    "backbone_lr_factor": 1,
    "layer_decay": 1,
    "decay_norm_and_bias": False,
}


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with an entry more in each table."""
    root = tmp_path_factory.mktemp("package")
    copy = root / "finetune"
    copytree(Path(finetune.__file__).parent, copy, ignore=ignore_patterns("__pycache__"))
    copytree(configs_folder(), copy / "configs", dirs_exist_ok=True)
    for name, text in ADDED.items():
        with (copy / "choices" / f"{name}.py").open("a") as file:
            file.write(text)
    (copy / "configs" / "optimizer" / "rmsprop.yaml").write_text(yaml.safe_dump(RMSPROP))
    return root


def train(package: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-c", "from finetune.cli import train; train()", *arguments],
        env={**os.environ, "PYTHONPATH": str(package)},
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_it_trains(
    package: Path, few_pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pictures").symlink_to(few_pictures)
    added = ("loss=focal", "schedule=linear", "optimizer=rmsprop", "data.augment=darker", "cache=none")
    ended = train(package, *QUICK, *added, "hydra.run.dir=run")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert json.loads(Path("run/summary.json").read_text())["augment"] == "darker"
    rows = Path("run/metrics.csv").read_text().splitlines()
    assert len(rows) == 3
    assert "rmsprop with lr 0.01" in ended.stdout


@pytest.mark.slow
def test_help_and_refusals_name_it(package: Path) -> None:
    text = train(package, "--help").stdout
    for name in ("focal", "linear", "rmsprop", "darker"):
        assert name in text
    for setting, expected in (
        ("data.augment=blur", "auto, none, flip, standard, trivial, rand or darker"),
        ("optimizer.name=lion", "sgd, adamw, lbfgs or rmsprop"),
    ):
        ended = train(package, setting)
        assert (ended.returncode, ended.stderr) == (2, f"error: {setting}: expected {expected}\n")
