"""report.html of a sweep: its leaderboard, and what the settings that vary came to."""

import html
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from finetune.sweep.leaderboard import compare
from finetune.sweep.page import what_mattered
from support.ended import Ended
from sweep.test_leaderboard import finished, job


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Of lr and momentum; lr matters more."""
    for number, (lr, momentum, accuracy) in enumerate(
        [("0.1", "0", 0.5), ("0.1", "0.9", 0.6), ("0.01", "0", 0.8), ("0.01", "0.9", 0.9)]
    ):
        job(tmp_path, number, [f"optimizer.momentum={momentum}", f"lr={lr}"], finished(accuracy))
    job(tmp_path, 4, ["lr=<b>0"], {"status": "failed", "reason": "lr=<b>0: expected a number"})
    return tmp_path


def test_the_setting_that_matters_most_comes_first(sweep: Path) -> None:
    found = what_mattered(compare(sweep))
    assert [*zip(*found.values(), strict=True)] == [
        ("lr", "0.01", "0.850", "2"),
        ("lr", "0.1", "0.550", "2"),
        ("optimizer.momentum", "0.9", "0.750", "2"),
        ("optimizer.momentum", "0", "0.650", "2"),
    ]
    assert [*found] == ["setting", "value", "mean val acc", "rows"]


def test_the_page_has_leaderboard_what_mattered_and_failures(
    sweep: Path, command: Callable[..., Ended]
) -> None:
    ended = command("report", str(sweep))
    assert (ended.code, ended.out.replace("\n", "")) == (0, f"{sweep}/report.html")
    source = (sweep / "report.html").read_text()
    assert re.findall("<h2>(.+)</h2>", source) == ["Leaderboard", "What mattered", "Without a result"]
    assert "Ranked by validation accuracy" in source
    cells = [html.unescape(one) for one in re.findall("<td>(.*?)</td>", source)]
    assert cells[:4] == ["1", "0.9", "0.01", "0.900"]
    assert "lr=<b>0: expected a number" in cells
    assert source.count('class="numbers sortable"') == 3
    assert source.count("<script>") == 1


def test_a_sweep_of_which_nothing_has_finished_has_a_page(
    tmp_path: Path, command: Callable[..., Ended]
) -> None:
    job(tmp_path, 0, ["lr=1"], {"status": "failed", "reason": "no"})
    assert command("leaderboard", str(tmp_path)).code == 0
    assert re.findall("<h2>(.+)</h2>", (tmp_path / "report.html").read_text()) == ["Without a result"]
