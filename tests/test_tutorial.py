"""docs/tutorial.md is typed as it stands.

`python tests/test_tutorial.py FOLDER` types it and writes down what came. FOLDER has what the page tells of:
`photos`, a folder for each kind, and `new`; with `--stamps` both are made of Debian's
tuxpaint-stamps-default.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from support.runs import SMALL

PAGE = Path(__file__).parents[1] / "docs" / "tutorial.md"
BLOCK = re.compile(r"```console\n\$ (.*)\n((?:.*\n)*?)```")
BLOCKS = BLOCK.findall(PAGE.read_text("utf-8"))
KINDS = {
    "birds": ("birds",),
    "fish": ("fish",),
    "flowers": ("flowers",),
    "invertebrates": ("insects", "shellfish"),
    "mammals": ("mammals",),
}
ASIDE = ("owl", "quetzal", "squirrel", "hornet")
UNKNOWN = ("frog", "frog-1", "cep", "cep-1")
NO_FISH = ("lobster", "shrimp")


def words(line: str) -> list[str]:
    """What finetune is given, without what the shell does with its answer."""
    return shlex.split(line.partition(" | ")[0])[1:]


@pytest.mark.slow
def test_the_tutorial_is_typed_in_order(
    command: Callable[..., Any], few_pictures: Path, tmp_path: Path
) -> None:
    for colour, kind in zip(("red", "green", "blue"), KINDS, strict=False):
        shutil.copytree(few_pictures / colour, tmp_path / "photos" / kind)
    shutil.copytree(few_pictures / "red", tmp_path / "new")
    small = ("data.image_size=32", SMALL, "weights=random")
    for line, shown in BLOCKS:
        given = small[:1] if "inspect" in line else small * (" photos" in line)
        ended = command(*words(line), *given)
        assert ended.code == 0, ended.err
        said = {text.split()[0] for text in (ended.out + ended.err).splitlines() if text[:1].isalpha()}
        named = {text.split()[0] for text in shown.splitlines() if re.match(r"[a-z]+ {2,}", text)}
        # What is said of these images only: that there are findings, weak weights, few of a class.
        assert named - said <= {"warning", "next", "labels", "across", "outliers", "cropped", "blurred"}, line


def test_every_command_shows_what_came() -> None:
    assert len(BLOCKS) >= 6
    assert all(shown.strip() for _, shown in BLOCKS)


def make(folder: Path, stamps: Path = Path("/usr/share/tuxpaint/stamps")) -> None:
    """The photographs of the page."""
    found = {path.stem: path for path in sorted(stamps.rglob("*.png"))}
    for kind, names in KINDS.items():
        (folder / "photos" / kind).mkdir(parents=True, exist_ok=True)
        for path in found.values():
            if {*path.parts} & {*names} and path.stem not in ASIDE and "_mirror" not in path.stem:
                place = "invertebrates" if path.stem in NO_FISH else kind
                (folder / "photos" / place).mkdir(exist_ok=True)
                shutil.copy(path, folder / "photos" / place)
    (folder / "new").mkdir()
    for name in (*ASIDE, *UNKNOWN):
        shutil.copy(found[name], folder / "new")
    with Image.open(found["crow"]) as crow:
        white = Image.new("RGBA", crow.size, "white")
        white.alpha_composite(crow.convert("RGBA"))
    white.convert("RGB").save(folder / "photos" / "mammals" / "IMG_0412.jpg", quality=90)


def shorter(text: str) -> str:
    """Of many lines that begin alike the first two and the last."""
    kept: list[str] = []
    for start, group in groupby(text.splitlines(), key=lambda line: line.partition(" ")[0]):
        run = [line.rstrip() for line in group]
        kept += [*run[:2], "…", run[-1]] if start == "epoch" and len(run) > 4 else run
    return "\n".join(kept)


def write_down(folder: Path) -> None:
    def typed(block: re.Match[str]) -> str:
        ended = subprocess.run(
            ["bash", "-c", block[1]],
            cwd=folder,
            env={**os.environ, "HOME": str(folder.absolute() / "home")},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=True,
        )
        return f"```console\n$ {block[1]}\n{shorter(ended.stdout)}\n```"

    PAGE.write_text(BLOCK.sub(typed, PAGE.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    if "--stamps" in sys.argv:
        make(Path(sys.argv[1]))
    write_down(Path(sys.argv[1]))
