"""Jobs in other processes: Hydra's launchers joblib and submitit, as on a command line."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

from support import hostile
from support.runs import CHECKOUT, QUICK, summary_of

pytestmark = pytest.mark.slow


def left_in(folder: Path) -> list[str]:
    """The processes that still work in a folder (Linux alone tells)."""
    left = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").readlink() == folder:
                left.append((process / "cmdline").read_text())
        except OSError:
            continue  # it has ended, or is another user's
    return left


@pytest.mark.parametrize(
    "launcher",
    [
        ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2"),
        ("hydra/launcher=submitit_local",),
        (
            "hydra/launcher=joblib",
            "hydra.launcher.n_jobs=2",
            "hydra/sweeper=optuna",
            "hydra.sweeper.n_trials=3",
        ),
    ],
    ids=["joblib", "submitit", "optuna"],
)
def test_jobs_in_other_processes_share_one_store(
    launcher: tuple[str, ...], few_pictures: Path, tmp_path: Path
) -> None:
    (tmp_path / "pictures").symlink_to(few_pictures)
    marker = tmp_path.with_name("marker")
    hostile.lay_out(tmp_path, marker)
    quick = (*QUICK[:-1], "cache=disk", "cache_dir=store")
    searched = "hydra/sweeper=optuna" in launcher
    rate = "optimizer.lr=tag(log, interval(1e-3,1e-1))" if searched else "optimizer.lr=0.1,0.01,0"
    ended = subprocess.run(
        [sys.executable, CHECKOUT / "train.py", "-m", *launcher, *quick, rate],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT / "src")},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ended.returncode == (0 if searched else 1), ended.stderr
    assert "Traceback" not in ended.stderr
    (sweep,) = tmp_path.glob("outputs/sweeps/*/*")
    lines = list(csv.DictReader((sweep / "leaderboard.csv").open()))
    assert [line["status"] for line in lines] == [
        "finished",
        "finished",
        "finished" if searched else "failed",
    ]
    assert searched or lines[2]["reason"] == "optimizer.lr=0: expected a number above 0"
    jobs = [summary_of(sweep / line["jobs"]) for line in lines if line["status"] == "finished"]
    # Computed once, by whoever came first; the others waited for it.
    assert sum(job["features"]["computed"] for job in jobs) == 60
    assert not left_in(tmp_path)
    assert not marker.exists()  # nothing of the working folder has run
