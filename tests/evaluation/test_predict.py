"""`finetune predict` as a user types it."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import finetune
from finetune.errors import RunError
from finetune.evaluation.forward import Answer, Predictor
from finetune.runs.open import Saved
from support.ended import Ended
from support.typed import typed

Command = Callable[..., Ended]


@pytest.fixture
def predict(command: Command, run: finetune.Run, few_pictures: Path) -> Command:
    """`finetune predict RUN ARGUMENTS…` beside `pictures`."""
    Path("pictures").symlink_to(few_pictures)
    return lambda *arguments: command("predict", str(run.folder), *arguments)


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_a_folder_as_csv_on_stdout(predict: Command, run: finetune.Run) -> None:
    ended = predict("pictures")
    assert ended.code == 0
    found = rows(ended.out)
    assert list(found[0]) == ["path", "class", "probability", "error", "familiar"]
    assert [row["path"] for row in found] == sorted(str(path) for path in Path("pictures").rglob("*.png"))
    assert {row["class"] for row in found} <= set(run.summary["classes"])
    assert all(1 / 3 <= float(row["probability"]) <= 1 and row["error"] == "" for row in found)
    temperature = run.summary["calibration"]["temperature"]
    assert ended.err.startswith("predict  60 images in ")
    assert ended.err.endswith(f"logits divided by {temperature:.3f}\n")


def test_files_that_are_passed_over_are_named_by_extension(predict: Command) -> None:
    for name in ("a/1.raw", "a/2.raw", "a/3.txt"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).touch()
    Path("a/4.png").symlink_to("../pictures/red/0.png")
    ended = predict("a")
    assert ended.code == 0
    assert ended.err.startswith("note     3 files passed over: 2 .raw, 1 .txt\n")


@pytest.mark.parametrize("verb", ["predict", "explain"])
def test_how_a_tables_images_were_found_is_told(
    command: Command, run: finetune.Run, predict: Command, verb: str
) -> None:
    Path("t.csv").write_text("path\n/gone/pictures/red/0.png\n")
    ended = command(verb, str(run.folder), "t.csv", "--out", f"{verb}.csv")
    told = "t.csv: no path in it is a file; found 1 of 1 image by the ends of their paths below ."
    assert ended.code == 0
    assert f"warning  {told}" in (ended.err + ended.out).splitlines()


def test_json_lines_hold_what_the_model_says(predict: Command, run: finetune.Run) -> None:
    for _ in range(2):  # its own file may be written again
        ended = predict("pictures/red", "--out", "found.jsonl", "--top", "2")
        assert (ended.code, ended.err.splitlines()[-1]) == (0, "written  found.jsonl")
    found = [json.loads(line) for line in Path("found.jsonl").read_text().splitlines()]
    expected = finetune.load(run).predict(sorted(Path("pictures/red").iterdir()), top=2)
    assert len(found) == 20
    for row, prediction in zip(found, expected, strict=True):
        assert [one["class"] for one in row["predictions"]] == [name for name, _ in prediction.top]
        probabilities = [value for _, value in prediction.top]
        assert [one["probability"] for one in row["predictions"]] == pytest.approx(probabilities, abs=1e-6)
    assert [path.name for path in Path().iterdir() if path.name.startswith("found")] == ["found.jsonl"]


def test_json_lines_are_json_whatever_the_bytes_of_a_name(predict: Command) -> None:
    name = os.fsdecode(b"V\xf6gel.png")
    Path(name).symlink_to("pictures/red/0.png")
    assert predict(name, "--out", "found.jsonl").code == 0
    assert json.loads(Path("found.jsonl").read_text(encoding="utf-8"))["path"] == name


def test_raw_probabilities_are_those_of_no_temperature(predict: Command, run: finetune.Run) -> None:
    calibrated, raw = (rows(predict("pictures", *options).out) for options in ((), ("--raw",)))
    assert [row["class"] for row in calibrated] == [row["class"] for row in raw]
    expected = finetune.load(run, raw=True).predict(raw[0]["path"])[0].probability
    assert float(raw[0]["probability"]) == pytest.approx(expected, abs=1e-6)
    assert raw[0]["probability"] != calibrated[0]["probability"]


@pytest.mark.parametrize("strict", [False, True])
def test_a_bad_file_is_a_row_with_a_reason(predict: Command, strict: bool) -> None:
    Path("bad, and.png").write_bytes(b"no picture")
    options = ["--strict"] * strict
    ended = predict("pictures/red/0.png", "bad, and.png", "pictures/red/1.png", "--top", "2", *options)
    assert ended.code == int(strict)
    found = rows(ended.out)
    assert list(found[0]) == ["path", "class", "probability", "class_2", "probability_2", "error", "familiar"]
    assert found[1] == {
        **dict.fromkeys(found[0], ""),
        "path": "bad, and.png",
        "error": "not an image, or of an unknown format",
    }
    assert found[0]["class"]
    assert found[2]["class"]
    lines = ended.err.splitlines()
    assert "1 of them cannot be read" in lines[0]
    told = "error: --strict: 1 of 3 images cannot be read; the first is bad, and.png: not an image, or of"
    assert [line[: len(told)] for line in lines[1:]] == [told] * strict


def test_a_list_on_stdin(predict: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", typed(b"pictures/blue/3.png\ngone.png\n"))
    ended = predict("-", "--format", "jsonl")
    first, second = map(json.loads, ended.out.splitlines())
    assert (ended.code, first["path"]) == (0, "pictures/blue/3.png")
    assert second == {"path": "gone.png", "error": "no such file or directory"}


def test_what_an_interrupted_command_has_written_is_kept(
    predict: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranked, calls = Predictor.rank, []

    def interrupted(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) > 32:
            raise KeyboardInterrupt
        return ranked(*arguments)

    monkeypatch.setattr(Predictor, "rank", interrupted)
    Path("out.csv").write_text(before := "path,class,probability,error\nof another day")
    ended = predict("pictures", "--out", "out.csv")
    part, _, told = ended.err.rstrip("\n").removeprefix("error: interrupted; in ").partition(": ")
    assert (ended.code, told) == (130, "the first 32 rows")
    assert len(rows(Path(part).read_text())) == 32
    assert Path("out.csv").read_text() == before


def test_what_fails_otherwise_leaves_no_part_and_nothing_in_the_way_is_followed(
    predict: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("victim").write_text("of value")
    for name in ("out.csv", "out.csv.part"):
        Path(name).symlink_to("victim")
    before = set(os.listdir())
    assert predict("pictures", "--out", "out.csv").code == 0
    assert not Path("out.csv").is_symlink()
    assert Path("victim").read_text() == "of value"

    def failing(*arguments: Any) -> Any:
        raise RunError("no memory left")

    monkeypatch.setattr(Predictor, "rank", failing)
    assert predict("pictures", "--out", "out.csv").code == 1
    assert set(os.listdir()) == before


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("nowhere.png",), "nowhere.png: expected a file, a folder, a glob or -; there is no such file"),
        (
            ("pictures", "--out", "x.txt"),
            "--out=x.txt: expected csv or jsonl, as --format or by",
        ),
        (("pictures", "--format", "xml"), "--format=xml: expected csv or jsonl"),
        (("pictures", "--out", "mine.csv"), "--out=mine.csv: expected a new file, or one of predict's; this"),
        (("pictures", "--out", "."), "--out=.: expected a file; this is a folder"),
        (("pictures", "--out", "no/x.csv"), "--out=no/x.csv: cannot be written: No such file or directory"),
    ],
)
def test_a_wrong_request_is_one_line(predict: Command, arguments: tuple[str, ...], line: str) -> None:
    Path("mine.csv").write_text("path,label\n")
    ended = predict(*arguments)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith(f"error: {line}")
    assert ended.err.count("\n") == 1


def test_answers_too_sure_to_differ_are_ranked_by_their_logits(saved: Saved) -> None:
    bce = replace(saved, settings=saved.settings.model_copy(update={"loss": "bce"}))
    ranked = Predictor(bce, raw=True).rank(Answer(Path("x"), torch.tensor([40.0, 60.0, 1.0])), 2)
    assert ranked == [("green", 1.0), ("blue", 1.0)]


def test_an_unknown_run_is_one_line(command: Command, few_pictures: Path) -> None:
    ended = command("predict", "nowhere", str(few_pictures))
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == "error: nowhere: expected the folder of a run, there is no such folder\n"
