"""What stands on a real terminal: each line whole, from its first word, and none mixed with a bar."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from finetune import cli
from support.runs import QUICK
from support.screen import Terminal, mixed, words

On = Callable[..., tuple[int, list[str]]]


@pytest.fixture(params=[80, pytest.param(120, marks=pytest.mark.slow)])
def on_terminal(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few_pictures: Path
) -> On:
    """`finetune ARGUMENTS…` in this process beside `pictures`, what it prints on a terminal."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", str(request.param))
    Path("pictures").symlink_to(few_pictures)

    def call(*arguments: str, stdout: io.TextIOBase | None = None) -> tuple[int, list[str]]:
        terminal = Terminal(request.param)
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", stdout or terminal.file)
            patch.setattr(sys, "stderr", terminal.file)
            patch.setattr(sys, "argv", ["finetune", *arguments])
            with pytest.raises(SystemExit) as ended:
                cli.main()
        lines = terminal.end()
        assert mixed(lines) == []
        assert words(lines).count("freeze") == sum("outputs always trains" in line for line in lines)
        return int(ended.value.code or 0), lines

    return call


def test_a_run_and_its_predictions(on_terminal: On) -> None:
    code, lines = on_terminal("train", *QUICK)
    assert code == 0
    run = ["model", "freeze", "data", "cache", "train", "epoch", "epoch"]
    after = ["time", "folder", "report", "watch"]
    assert words(lines) == [*run, "test", "frozen", *after, "next", "next", "next"]
    code, lines = on_terminal("predict", "latest", "pictures", "--out", "found.csv")
    assert (code, words(lines)) == (0, ["predict", "written"])
    # With rows in a file and a bar on the terminal, each is where it belongs.
    with Path("rows.csv").open("w", newline="", encoding="utf-8") as file:
        code, lines = on_terminal("predict", "latest", "pictures", stdout=file)
    assert (code, words(lines)) == (0, ["predict"])
    assert Path("rows.csv").read_text() == Path("found.csv").read_text()
    assert len(Path("rows.csv").read_text().splitlines()) == 61
    code, lines = on_terminal("evaluate", "latest")
    assert (code, words(lines)[:3]) == (0, ["model", "data", "scaling"])


def test_a_sweep_of_jobs_together_and_alone_and_one_that_fails(on_terminal: On) -> None:
    swept = ("freeze=all,none", "optimizer.lr=0.1,0")
    code, lines = on_terminal("train", "-m", *QUICK, "epochs=1", *swept)
    assert code == 1
    told = "expected a number above 0"
    assert [line for line in lines if line.startswith("error: job") and told in "".join(lines)][1:]
    found = words(lines)
    alone = ["model", "freeze", "data", "cache", "train", "epoch", "test", "frozen", "time", "folder"]
    for word in [*alone, "watch", "job 2", "best", "failed", "table"]:
        assert word in found, word
    assert found.count("model") == 2


@pytest.mark.slow
def test_a_search(on_terminal: On) -> None:
    pytest.importorskip("optuna")
    search = ("hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", "optimizer.lr=tag(log, interval(1e-3,1))")
    code, lines = on_terminal("train", "-m", *QUICK, *search)
    assert code == 0
    found = words(lines)
    for word in ("model", "freeze", "data", "cache", "together", "epoch", "done", "search", "best", "table"):
        assert word in found, word


def test_a_wrong_request_is_one_line(on_terminal: On) -> None:
    assert on_terminal("train", *QUICK, "optimizer.lr=0") == (
        2,
        ["error: optimizer.lr=0: expected a number above 0"],
    )
