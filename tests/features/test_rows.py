"""Rows of a store, read from disk by their numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from finetune.errors import RunError
from finetune.features import rows


def test_rows_are_read_by_their_numbers_and_a_file_that_is_cut_short_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "BLOCK", 8)  # two rows, and one that lies in two blocks
    stored, path = np.arange(60, dtype=np.uint8).reshape(20, 3), tmp_path / "data.bin"
    stored.tofile(path)
    with path.open("rb", buffering=0) as file:
        for wanted in ([0, 1, 2, 5, 19], [7], [], range(20)):
            numbers = np.array(wanted, dtype=np.int64)
            assert np.array_equal(rows.read_rows(file, numbers, 3), stored[numbers])
        with path.open("r+b") as other:
            other.truncate(58)
        with pytest.raises(RunError, match="were cut short by something else; run again"):
            rows.read_rows(file, np.array([4, 19]), 3)
