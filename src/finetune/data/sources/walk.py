"""Folders as people have them, gone through: without what systems put there, and each folder once."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from finetune.data.images import EXTENSIONS
from finetune.data.pixels import HEIF
from finetune.errors import RequestError, brief
from finetune.private import TAG

# Bins, previews and rests of archives that macOS, Windows, Linux, Python, Synology and QNAP make.
SYSTEM = {
    *("__macosx", "$recycle.bin", "recycler", "system volume information", "lost+found", "__pycache__"),
    *("@eadir", "@tmp", "#recycle", "#snapshot", "@recycle", "@recently-snapshot"),
    *("network trash folder", "temporary items"),
}
CHKDSK = re.compile(r"FOUND\.\d{3}", re.IGNORECASE)  # where Windows puts what it finds on a damaged disk


class Walk:
    """Goes through folders in a stable order; links are followed, but for those that lead back.

    A link leads back where it names one of `tops`, what is above or below it, or what another link has named:
    its images have their own place. back: these links, as they are met.
    """

    def __init__(self, *tops: Path) -> None:
        self.tops = [os.path.realpath(top) for top in tops]
        self.back: list[str] = []

    def folders(self, top: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
        """Each folder from `top` down but hidden ones and systems' own: the names of its folders and files.

        Raises:
            RequestError: one cannot be read.
        """
        followed: set[Path] = set()
        for where, folders, names in os.walk(top, followlinks=True, onerror=_unreadable):
            folders[:] = _gone_through(where, folders)
            for link in [path for one in folders if os.path.islink(path := os.path.join(where, one))]:
                target = Path(os.path.realpath(link))
                if target in followed or self._leads_back(target, os.path.realpath(where)):
                    self.back.append(link)
                    folders.remove(os.path.basename(link))
                followed.add(target)
            yield Path(where), folders, sorted(names)

    def _leads_back(self, target: Path, where: str) -> bool:
        tops = map(Path, (*self.tops, where))
        return any(target.is_relative_to(top) or top.is_relative_to(target) for top in tops)


def _unreadable(error: OSError) -> NoReturn:
    raise RequestError(f"{error.filename} cannot be read: {error.strerror}")


def _gone_through(where: str | Path, names: list[str]) -> list[str]:
    """Which folders of those in one are no hidden ones, systems' own, caches, or those of runs."""
    own = [one for one in sorted(names) if not (one.startswith(".") or CHKDSK.fullmatch(one))]
    own = [one for one in own if one.casefold() not in SYSTEM and not _is_run(f"{where}/{one}")]
    return [one for one in own if not os.path.isfile(f"{where}/{one}/{TAG}")]


def _is_run(folder: str) -> bool:
    """Whether a folder is that of a run of ours, begun or about to; other programs use Hydra, too."""
    if not os.path.isfile(f"{folder}/settings.json"):
        return os.path.isdir(f"{folder}/.hydra") and os.path.isfile(f"{folder}/.lock")
    return any(
        os.path.isdir(f"{folder}/{one}") for one in (".hydra", "checkpoints")
    )  # the second of Python's


def files_below(folder: Path) -> Iterator[Path]:
    """Every file in a folder and below, as `Walk` finds them."""
    return (where / name for where, _, names in Walk(folder).folders(folder) for name in names)


def is_image(path: Path) -> bool:
    """Whether a file's name is that of an image; what is in it is seen when it is decoded."""
    return path.suffix.lower() in EXTENSIONS and not path.name.startswith(".")


def kind_of(path: Path) -> str:
    """A file's extension; its name where it has none."""
    return path.suffix.lower() or path.name


def tell_others(passed_over: Counter[str]) -> str:
    """How many files are no images by their name, by extension; nothing where there are none."""
    if not passed_over:
        return ""
    kinds = brief([f"{number:,} {kind}" for kind, number in passed_over.most_common()])
    total = passed_over.total()
    way = "; pip install 'finetune-toolkit[heif]' reads HEIF" if {*HEIF} & passed_over.keys() else ""
    return f"{total:,} file{'s' if total > 1 else ''} passed over: {kinds}{way}"


def listed(folder: Path) -> tuple[list[Path], list[Path]]:
    """The folders and the images directly in a folder; none where it cannot be read."""
    _, folders, names = next(os.walk(folder), ("", [], []))
    kept = [folder / one for one in _gone_through(folder, folders)]
    return kept, [path for path in map(folder.__truediv__, names) if is_image(path)]
