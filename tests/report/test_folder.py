"""Where TensorBoard is to look."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune.report.folder import logdir


@pytest.mark.parametrize(
    ("folder", "shown"),
    [
        ("outputs/2026-11-21/22-10-03", "outputs"),
        ("runs/one", "runs/one"),
        ("../elsewhere/outputs/one", "../elsewhere/outputs/one"),
        ("outputs/sweeps/2026-11-21/22-30-00/3", "outputs/sweeps/2026-11-21/22-30-00"),
        ("sweep/lr=0.1/seed=0", "sweep"),
    ],
)
def test_tensorboard_is_shown_the_runs_that_belong_together(
    folder: str, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for sweep in ("sweep", "outputs/sweeps/2026-11-21/22-30-00"):
        Path(sweep).mkdir(parents=True)
        (Path(sweep) / "multirun.yaml").touch()
    assert logdir(Path(folder)) == Path(shown)
