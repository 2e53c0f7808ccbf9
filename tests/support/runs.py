"""What a run left in its folder, as several tests look at it."""

from contextlib import chdir
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor

from finetune.runs.summary import read_summary

CHECKOUT = Path(__file__).parents[2]
# Half a million parameters, and its layers are called as resnet18's are.
SMALL = "model=timm/test_resnet"
QUICK = (
    "data=folder",
    "data.root=pictures",
    "data.image_size=32",
    "weights=random",
    SMALL,
    "epochs=2",
    "cache=memory",
)


def trained(folder: Path, pictures: Path, *overrides: str) -> Path:
    """The folder of a quick run in `folder`, trained in this process without a command."""
    from finetune.config.compose import compose
    from finetune.run import run

    (folder / "pictures").symlink_to(pictures)
    with chdir(folder):
        run(compose([*QUICK, *overrides]), Path("run"), Console(quiet=True))
    return folder / "run"


def newest() -> Path:
    """The folder of the run just ended."""
    return Path(Path("outputs/latest").read_text(encoding="utf-8").strip())


def summary_of(folder: Path) -> dict[str, Any]:
    summary = read_summary(folder)
    assert summary is not None
    return summary


def checkpoint(folder: Path, name: str = "best") -> dict[str, Any]:
    return torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)


def whole_state(folder: Path, name: str = "best") -> dict[str, Tensor]:
    """The model's state dict from the two halves that a run stores."""
    return {
        **load_file(folder / "checkpoints" / "frozen.safetensors"),
        **checkpoint(folder, name)["state_dict"],
    }
