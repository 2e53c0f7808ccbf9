"""docs/faq.md shows the lines that are really said."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "faq.md"
SHOWN = re.findall(r"```console\n\$ finetune (.*)\n(error: .*)\n```", PAGE.read_text("utf-8"))
NEEDS_TORCH = ("data.root=holiday", "labels.csv", "weights=", "trainer=", "model=")


def test_every_block_is_a_command_and_its_line() -> None:
    assert len(SHOWN) == PAGE.read_text("utf-8").count("```console") >= 15


@pytest.mark.parametrize(
    ("line", "said"),
    [
        pytest.param(*one, marks=[pytest.mark.slow] * any(part in one[0] for part in NEEDS_TORCH))
        for one in SHOWN
    ],
)
def test_the_line_is_said(
    command: Callable[..., Any], few_pictures: Path, tmp_path: Path, line: str, said: str
) -> None:
    for folder in ("pictures", "holiday"):
        shutil.copytree(few_pictures, tmp_path / folder)
    shutil.copytree(few_pictures / "red", tmp_path / "heap")
    (tmp_path / "holiday" / "blue" / "IMG_0007.jpg").write_text("no image")
    rows = [f"pictures/red/{number}.png,red|blue" for number in range(20)]
    (tmp_path / "labels.csv").write_text("\n".join(["path,label", *rows]))
    (tmp_path / "outputs" / "mine" / "checkpoints").mkdir(parents=True)
    (tmp_path / "outputs" / "mine" / "checkpoints" / "last.ckpt").touch()
    ended = command(*shlex.split(line))
    assert ended.code == 2
    pattern = ".*".join(re.escape(part) for part in said.split("…"))
    assert re.fullmatch(pattern, ended.err.splitlines()[-1])
