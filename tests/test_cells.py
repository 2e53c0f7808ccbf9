"""CSV files that a spreadsheet shows and does not run."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finetune.cells import cells, uncelled
from finetune.data.images import BadImage
from finetune.evaluation.predict import WRITERS
from finetune.report import predictions
from finetune.runs import folder

FORMULA = '=cmd|"/c calc"!A1'


@pytest.mark.parametrize("text", ["=1+1", "+1+1", "-1+1", "@SUM(A1)", "\t=1", "\r=1", "'=1", "-", "-a"])
def test_what_begins_like_a_formula_is_written_as_text(text: str) -> None:
    assert cells([text]) == [f"'{text}"]


@pytest.mark.parametrize("value", [-1, -0.5, "-0.5", "+1e-3", 3, None, "a=b", "it's", "'quoted'", "", "all"])
def test_numbers_and_other_texts_stay_as_they_are(value: object) -> None:
    assert cells([value]) == [value]


@given(st.lists(st.text("'=+-@a1\t", max_size=4), min_size=1))
def test_what_is_read_is_what_was_written(texts: list[str]) -> None:
    file = io.StringIO(newline="")
    names = [f"{place}" for place in range(len(texts))]
    csv.writer(file).writerows([names, cells(texts)])
    file.seek(0)
    assert [uncelled(one) for one in csv.DictReader(file)] == [dict(zip(names, texts, strict=True))]


def test_predictions_and_skipped_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = predictions.Prediction("test", "-a.png", FORMULA, "@cat", 0.5, 0.25, of_label=0.125)
    monkeypatch.setattr(predictions, "_predictions", lambda *_, **__: [one])
    data = type("Data", (), {"labels": np.zeros(1)})()
    predictions.write_predictions(tmp_path, data, {"test": torch.zeros(1, 2)}, softmax=True, temperature=1.0)
    written = (tmp_path / predictions.FILE).read_text()
    assert written.splitlines()[1] == 'test,\'-a.png,"\'=cmd|""/c calc""!A1",\'@cat,0.5,0.25,,0.125'
    assert predictions.read_predictions(tmp_path) == [one]
    folder.list_bad(tmp_path, [BadImage(0, "=a.png", "-no image")])
    assert (tmp_path / "skipped.csv").read_text().splitlines()[1] == "'=a.png,'-no image"


def test_answers_as_csv_and_as_json_lines() -> None:
    csv_file, json_file = io.StringIO(), io.StringIO()
    WRITERS["csv"](csv_file, 1, ["set"])("-a.png", [(FORMULA, 0.5)], "", {"set": ["=b", "c"]})
    WRITERS["jsonl"](json_file, 1, [])("-a.png", [("=b", 0.5)], "", {})
    assert csv_file.getvalue().splitlines()[1] == '\'-a.png,"\'=cmd|""/c calc""!A1",0.500000,,\'=b|c'
    assert '"path": "-a.png"' in json_file.getvalue()
    assert '"class": "=b"' in json_file.getvalue()
