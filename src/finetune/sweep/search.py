"""A search that goes on: its command as it was stored, of which nothing but what we know is typed again."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser

from finetune.config.compose import GROUPS
from finetune.config.messages import known_keys
from finetune.errors import RequestError
from finetune.runs.sweeps import read_yaml

STORAGE = "hydra.sweeper.storage"
# What a search may have been told of Hydra's own and be told again; anything else could run what is not ours.
SEARCH = (
    *("hydra/sweeper", "hydra/launcher", "hydra.launcher.n_jobs", "hydra.sweep.subdir", STORAGE),
    *(f"hydra.sweeper.{key}" for key in ("n_trials", "batch", "sampler", "seed", "study")),
)


def search_again(folder: Path, typed: Sequence[str] = ()) -> list[str] | None:
    """The overrides with which a search in a folder goes on; None where the sweep there is no search.

    typed: where its study is, if it is not in there; None where more than that is typed.
    RequestError: what is stored would do more than set a value, or open a study that lies elsewhere.
    """
    sweeper, overrides = recorded(folder)
    if sweeper == "basic" or not all(one.startswith(f"{STORAGE}=") for one in typed):
        return None
    again = [one for one in overrides if not one.startswith(("hydra.sweep.dir=", "hydra.mode="))]
    for one in again:
        check_stored(one)
    parse = OverridesParser.create().parse_override
    stored = [one for one in again if one.lstrip("+~").startswith(STORAGE)]
    for value in [] if typed else [parse(one).value() for one in stored] or [None]:
        file = str(folder / "study.db" if value in (None, "") else value)
        inside = folder.resolve() in Path(os.path.expanduser(file)).resolve().parents
        if "://" in file or "?" in file or not inside:  # a URL may have a query
            raise RequestError(
                f"{STORAGE}={file}: expected a study in {folder}, as it was stored; to open another one, type"
                f" finetune resume {shlex.quote(str(folder))} {STORAGE}=…"
            )
    escaped = str(folder).replace("\\", "\\\\").replace("'", "\\'")
    return [*(one for one in again if one not in stored), *(typed or stored), f"hydra.sweep.dir='{escaped}'"]


def recorded(folder: Path) -> tuple[str, list[str]]:
    """The sweeper, `basic` of a list of jobs, and the overrides that Hydra noted; RequestError: damaged."""
    held = read_yaml(file := folder / "multirun.yaml")
    try:
        overrides = held["hydra"]["overrides"]
        sweeper = held["hydra"]["runtime"]["choices"]["hydra/sweeper"]
        return sweeper, [str(one) for one in (*overrides["hydra"], *overrides["task"])]
    except (AttributeError, KeyError, TypeError):
        raise RequestError(f"{file}: expected what Hydra wrote there; it is damaged") from None


def check_stored(override: str) -> None:
    """Raise RequestError where a stored override would do more than set a value.

    What lies in a folder may be somebody else's: it is neither interpolated, nor does it choose what else is
    read or run.
    """
    key, _, value = override.lstrip("+~").partition("=")
    key = key.partition("@")[0]
    away = (key in GROUPS or "/" in key) and ("/" in value or ".." in value)
    if "${" in override.replace("\\", "") or away or key not in (*known_keys(), *GROUPS, *SEARCH):
        raise RequestError(
            f"{override}: expected a plain value, as it was stored; what does more must be typed again"
        )
