"""The shipped configs: where they are, and what they say."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf


def configs_folder() -> Path:
    """The shipped configs: inside the package when installed from a wheel, else the checkout's."""
    package = Path(__file__).parents[1]
    inside = package / "configs"
    return inside if inside.is_dir() else package.parents[1] / "configs"


def choices_of(group: str) -> list[str]:
    """The names of the shipped configs in a group."""
    return sorted(file.stem for file in (configs_folder() / group).glob("*.yaml"))


@cache
def _shipped(name: str) -> dict[str, Any]:
    file = configs_folder() / name
    return cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(file))) if file.is_file() else {}


def shipped(name: str) -> dict[str, Any]:
    """The values in a shipped config; none where there is no such file."""
    return dict(_shipped(name))
