"""A search that goes on: its command as it was stored, of which nothing but what we know is typed again."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser

from finetune.errors import RequestError
from finetune.sweep.planned import check_stored, hydra_request, searched

STORAGE = "hydra.sweeper.storage"
STUDY = "study.db"
# What a search may have been told of Hydra's own and be told again; anything else could run what is not ours.
SEARCH = (
    *("hydra/sweeper", "hydra/launcher", "hydra.launcher.n_jobs", "hydra.sweep.subdir", STORAGE),
    *(f"hydra.sweeper.{key}" for key in ("n_trials", "batch", "sampler", "seed", "study")),
)


def search_again(folder: Path, typed: Sequence[str] = ()) -> list[str] | None:
    """The overrides with which a search in a folder goes on; None where the sweep there is no search.

    typed: where its storage is, which is not taken from what is stored then.
    """
    if not searched(folder):
        return None
    recorded, place = hydra_request(folder), ("hydra.sweep.dir=", "hydra.mode=")
    again = [one for one in (*recorded.hydra, *recorded.task) if not one.startswith(place)]
    for one in again:
        check_stored(one, SEARCH)
    stored = [one for one in again if one.lstrip("+~").startswith(STORAGE)]
    if not typed:
        _expect_inside(folder, stored)
    escaped = str(folder).replace("\\", "\\\\").replace("'", "\\'")
    return [*(one for one in again if one not in stored), *(typed or stored), f"hydra.sweep.dir='{escaped}'"]


def _expect_inside(folder: Path, stored: Sequence[str]) -> None:
    """Raise RequestError where a study would be opened that lies elsewhere than in the sweep's folder."""
    parse = OverridesParser.create().parse_override
    for value in [parse(one).value() for one in stored] or [None]:
        file = str(folder / STUDY if value in (None, "") else value)
        inside = folder.resolve() in Path(os.path.expanduser(file)).resolve().parents
        if "://" in file or "?" in file or not inside:  # a URL may have a query
            raise RequestError(
                f"{STORAGE}={file}: expected a study in {folder}, as it was stored; to open another one, type"
                f" finetune resume {shlex.quote(str(folder))} {STORAGE}=…"
            )
