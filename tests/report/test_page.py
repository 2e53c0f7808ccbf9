"""report.html: everything of a run on one page that loads nothing, runs what sorts alone and fits a phone."""

from __future__ import annotations

import base64
import csv
import hashlib
import html
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from finetune.atomic import write_sealed
from finetune.errors import RequestError
from finetune.report import page, predictions, terminal
from finetune.runs.folder import digests
from finetune.say import Screen
from support.ended import Ended
from support.runs import QUICK, newest, summary_of, trained
from support.slow import slow

Command = Callable[..., Ended]
HOSTILE = "<script>alert('1')</script> \"zwölf\" & 日本"
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


class Page(HTMLParser):
    """What a page says and what it would load."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.links: list[str] = []
        self.words: list[str] = []
        self.source = (folder / "report.html").read_text(encoding="utf-8")
        self.feed(self.source)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [value or "" for name, value in attributes if name in ("src", "srcset")]
        self.links += [value or "" for name, value in attributes if name == "href"]

    def handle_data(self, data: str) -> None:
        if self.tags[-1:] not in (["style"], ["script"]):
            self.words.append(data)


@pytest.fixture
def guessing(finished_run: Callable[..., Path]) -> Path:
    """A run that has learned nothing, and so makes mistakes."""
    return finished_run("optimizer.lr=1e-9")


@pytest.fixture
def run(guessing: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that run, seen from where it was trained."""
    monkeypatch.chdir(guessing.parent)
    return Path(shutil.copytree(guessing, tmp_path / "run"))


def renamed(run: Path, name: str) -> None:
    """Give the class `red` another name, as the run would have written it."""
    for file in ("summary.json", "settings.json"):
        text = (run / file).read_text(encoding="utf-8").replace('"red"', json.dumps(name))
        write_sealed(run / file, {key: one for key, one in json.loads(text).items() if key != "sha256"})
    rows = list(csv.reader((run / "predictions.csv").open(newline="", encoding="utf-8")))
    with (run / "predictions.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([[name if cell == "red" else cell for cell in row] for row in rows])


def again(run: Path) -> Page:
    page.write_report(run, {**summary_of(run), "files": digests(run)}, [])
    return Page(run)


def test_a_run_writes_a_report_with_its_result(guessing: Path) -> None:
    told = Page(guessing)
    summary = summary_of(guessing)
    test = summary["test"]["accuracy"]
    assert f"it classifies {test * 100:.1f} % of {summary['data']['test']} test images correctly" in told.text
    assert "372,688 of its 372,979 parameters stayed frozen (freeze=all)" in told.text
    assert {"blue", "green", "red"} <= set(told.words)
    assert told.source.count("<svg") == 4  # loss, accuracy, confusion, calibration
    wrong = [one for one in predictions.read_predictions(guessing) if one.split == "test" and not one.right]
    right = {one.label for one in predictions.read_predictions(guessing) if one.split == "test" and one.right}
    assert (
        told.tags.count("img") == 2 * len(wrong) + len(right) > len(right)
    )  # each with its map, and examples
    for one in wrong:
        assert f"{one.predicted} {100 * one.probability:.0f} % → {one.label}" in told.text
    files = sorted((guessing / unquote(link)).resolve() for link in told.links)
    assert files == sorted((guessing.parent / one.picture).resolve() for one in wrong)
    assert not any(link.startswith(("/", "file:")) for link in told.links)  # it may be sent to others
    assert "finetune audit run" in told.text
    order = [
        "What to try",
        "Confusion",
        "Per class",
        "Most confident",
        "mislabelled",
        "Calibration",
        "Settings",
    ]
    assert [told.text.index(one) for one in order] == sorted(told.text.index(one) for one in order)
    assert "class train test recall precision F1" in told.text
    for name, count in summary["data"]["to_train"].items():
        assert f" {name} {count} " in told.text
    assert f"after, error {summary['calibration']['ece_after'] * 100:.1f} %" in told.text
    assert f"before scaling, error {summary['calibration']['ece_before'] * 100:.1f} %" in told.text


def test_a_temperature_that_made_it_worse_is_said_to(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = summary_of(run)
    fitted = {**summary["calibration"], "log_loss_before": 1.0, "log_loss_after": 1.5, "ece_before": 0.25}
    for ece, more in ((0.5, " and the calibration error from 0.250 to 0.500"), (0.125, "")):
        told = {**summary, "files": digests(run), "calibration": {**fitted, "ece_after": ece}}
        page.write_report(run, told, [])
        line = f"on test images the temperature raised the log-loss from 1.000 to 1.500{more}"
        assert f"But {line}; predict --raw leaves it out." in Page(run).text
        terminal.result_lines(Screen(), told, run)
        assert f"note     {line}\n" in capsys.readouterr().out
    page.write_report(run, told | {"calibration": {**fitted, "log_loss_after": 0.5, "ece_after": 0.125}}, [])
    assert "raised" not in Page(run).text


def test_predictions_are_those_of_the_run(guessing: Path) -> None:
    found = predictions.read_predictions(guessing)
    summary = summary_of(guessing)
    for side in ("val", "test"):
        mine = [one for one in found if one.split == side]
        assert len(mine) == summary["data"][side]
        assert np.mean([one.right for one in mine]) == pytest.approx(summary[side]["accuracy"])
        assert all(Path(one.picture).parent.name == one.label for one in mine)
    assert all(1 / 3 <= one.probability <= 1 for one in found)


def test_nothing_is_loaded_and_no_name_becomes_markup(run: Path) -> None:
    renamed(run, HOSTILE)
    told = again(run)
    assert told.tags.count("script") == 1  # which the page's policy knows by its hash
    script = told.source[told.source.index("<script>") + 8 : told.source.index("</script>")]
    known = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{known}'" in told.source
    assert told.tags.count("img") > 0
    assert all(source.startswith("data:image/jpeg;base64,") for source in told.loads)
    assert not re.search(r"url\(|@import|https?:", told.source)
    assert HOSTILE in told.text
    assert "default-src 'none'" in told.source
    assert "prefers-color-scheme: dark" in told.source


@pytest.mark.slow
def test_the_command_to_run_it_again_is_as_a_shell_takes_it(command: Command, few_pictures: Path) -> None:
    Path("pictures").symlink_to(few_pictures)
    ended = command("train", *QUICK, "epochs=1", "freeze=[all,-layer4]")
    assert ended.code == 0, ended.err
    assert f"report   {newest()}/report.html" in ended.out
    told = Page(newest())
    assert f"finetune train {' '.join(QUICK)} epochs=1 'freeze=[all,-layer4]'" in told.text
    before = told.source
    (newest() / "report.html").unlink()
    ended = command("report", "latest")
    assert ended.code == 0, ended.err
    assert ended.out == f"{newest()}/report.html\n"
    assert Page(newest()).source == before


@pytest.mark.slow
def test_a_sweeps_jobs_make_theirs_on_demand(command: Command, few_pictures: Path) -> None:
    Path("pictures").symlink_to(few_pictures)
    ended = command("train", "-m", *QUICK, "epochs=1", "seed=0,1", "hydra.sweep.dir=both")
    assert ended.code == 0, ended.err
    assert [*Path("both").rglob("report.html")] == [Path("both/report.html")]  # of the sweep
    assert len(list(Path("both").rglob("predictions.csv"))) == 2
    assert command("report", "both/1").out == "both/1/report.html\n"


def test_what_was_left_out_is_named(run: Path) -> None:
    (run / "skipped.csv").write_text("path,reason\n<b>.png,not a picture\n", encoding="utf-8")
    told = again(run)
    assert "1 broken image: <b>.png : not a picture" in told.text
    assert "b" not in told.tags


def test_pictures_that_are_gone_are_said_to_be(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run)
    told = again(run)
    assert "img" not in told.tags
    assert "no longer there" in told.text


@pytest.mark.slow
def test_several_labels_a_picture_have_figures_of_their_own(command: Command, few_pictures: Path) -> None:
    rows = [(path, path.parent.name) for path in few_pictures.rglob("*.png")]
    with Path("table.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("path", "label"))
        table.writerows((path, f"{name}|<b>noise" if name != "red" else name) for path, name in rows)
    knobs = [knob for knob in QUICK if not knob.startswith("data.root")]
    ended = command("train", *knobs, "data=csv", "data.root=table.csv", "loss=bce")
    assert ended.code == 0, ended.err
    told = Page(newest())
    found = summary_of(newest())["test"]["map"]
    assert f"mean average precision of {found * 100:.1f} % on" in told.text
    assert "<b>noise" in told.words
    assert "Per label" in told.text


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (("data.test_fraction=0",), "validation images correctly"),
        slow(("data.val_fraction=0",), "No temperature was fitted."),
        slow(("loss=bce",), "as it answers, error"),
        slow(("head=40", "optimizer.lr=1e-9"), "predicted as output"),
        (("freeze=none",), "No part of the model was kept"),
    ],
)
def test_every_kind_of_run_has_a_report(
    tmp_path: Path, few_pictures: Path, overrides: tuple[str, ...], told: str
) -> None:
    assert told in Page(trained(tmp_path, few_pictures, "epochs=1", *overrides)).text


@pytest.mark.slow
def test_with_nothing_to_test_on_the_report_says_so(command: Command) -> None:
    knobs = ("data=random", "weights=random", "data.image_size=32", "epochs=1", "cache=none")
    assert command("train", *knobs, "loss=sum_squares").code == 0
    told = Page(newest())
    assert "Trained on 1 image; there were none to test it on." in told.text
    assert "No part of the model was kept" in told.text
    assert not (newest() / "predictions.csv").exists()


def test_an_unfinished_run_has_no_report_yet(command: Command, run: Path) -> None:
    (run / "summary.json").write_text('{"status": "interrupted", "reason": "SIGTERM"}', encoding="utf-8")
    ended = command("report", str(run))
    assert ended.code == 2
    assert ended.err.startswith(f"error: {run}: expected a finished run")


def test_a_damaged_table_is_named(command: Command, run: Path) -> None:
    (run / "predictions.csv").write_text("split,picture\ntest,a.png\n", encoding="utf-8")
    ended = command("report", str(run))
    assert ended.code == 2
    assert "predictions.csv: expected what the run wrote" in ended.err


def test_damaged_curves_are_named(run: Path) -> None:
    (run / "metrics.csv").write_text("epoch,loss/train\n1,zero\n", encoding="utf-8")
    with pytest.raises(RequestError, match=r"metrics.csv: expected what the run wrote; damaged"):
        again(run)


def test_each_figure_has_the_interval_of_the_summary(guessing: Path, run: Path) -> None:
    told, measures = Page(guessing), summary_of(guessing)["test"]
    for name in ("accuracy", "balanced_accuracy", "macro_f1", "log_loss"):
        assert "95 %: {:.2f} to {:.2f}".format(*measures["intervals"][name]) in told.text
    assert f"log-loss {measures['log_loss']:.3f}" in told.text
    older = summary_of(run)
    for split in ("val", "test"):
        older[split] = {name: older[split][name] for name in ("loss", "accuracy", "balanced_accuracy")}
    page.write_report(run, {**older, "files": digests(run)}, [])
    again = Page(run)
    assert "95 %: {:.2f} to {:.2f}".format(*measures["intervals"]["accuracy"]) in again.text
    assert again.text.count("95 %:") == 1
    assert f" loss {measures['loss']:.3f}" in again.text


def chromium(target: Path, *options: str) -> Ended:
    assert CHROMIUM
    ended = subprocess.run(
        [
            *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
            *("--disable-background-networking", "--enable-logging=stderr", "--v=0"),
            *(f"--user-data-dir={target.parent / 'browser'}", "--virtual-time-budget=3000", *options),
            target.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    return Ended(ended.returncode, ended.stdout, ended.stderr)


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the path")
def test_a_browser_shows_it_without_errors_and_a_phone_without_scrolling(run: Path, tmp_path: Path) -> None:
    renamed(run, HOSTILE + " an endless name without a break " + "x" * 80)
    inside = html.escape(again(run).source)
    # The frame is as wide as a small phone; this page around it, which may run scripts, measures it.
    probe = """
        const sorted = (page) => {
            page.querySelectorAll(".sortable th")[2].click();
            return [...page.querySelectorAll(".sortable tbody tr")].map((row) => +row.cells[2].innerText);
        };
        frame.onload = () => {
            const page = frame.contentDocument, root = page.documentElement;
            const images = [...page.images];
            out.textContent = JSON.stringify({
                width: root.scrollWidth, scripts: page.scripts.length, title: page.title,
                sorted: sorted(page), again: sorted(page),
                images: images.length, shown: images.filter(one => one.naturalWidth).length,
            });
        }"""
    frame = f'<iframe id="frame" style="width:360px;height:900px;border:0" srcdoc="{inside}"></iframe>'
    outer = tmp_path / "outer.html"
    outer.write_text(f'<meta charset="utf-8"><pre id="out"></pre>{frame}<script>{probe}</script>')
    ended = chromium(outer, "--dump-dom")
    assert ended.code == 0
    match = re.search(r'<pre id="out">(.+?)</pre>', ended.out)
    assert match, ended.err
    seen: dict[str, Any] = json.loads(html.unescape(match[1]))
    assert seen["width"] <= 360
    assert seen["images"] == seen["shown"] > 0
    assert seen["scripts"] == 1
    assert seen["sorted"] == sorted(seen["sorted"], reverse=True)
    assert seen["again"] == sorted(seen["sorted"])
    assert len({*seen["sorted"]}) > 1
    assert seen["title"] == "timm/test_resnet on pictures · finetune"
    assert "CONSOLE" not in ended.err


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the path")
def test_a_browser_would_have_told_an_error(tmp_path: Path) -> None:
    faulty = tmp_path / "faulty.html"
    faulty.write_text("<script>nonsense()</script>")
    assert "CONSOLE" in chromium(faulty, "--dump-dom").err


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the path")
def test_light_and_dark_are_each_others_opposite(run: Path, tmp_path: Path) -> None:
    again(run)
    paper = []
    for scheme in (0, 1):
        shot = tmp_path / f"{scheme}.png"
        chromium(
            run / "report.html",
            f"--screenshot={shot}",
            "--window-size=400,400",
            f"--blink-settings=preferredColorScheme={scheme}",
        )
        paper.append(np.asarray(Image.open(shot).convert("L"))[2, 2])
    assert paper[0] < 60
    assert paper[1] > 200


def test_of_many_classes_the_matrix_is_of_those_most_often_confused() -> None:
    matrix = np.diag(np.full(1000, 9))
    matrix[7, 900] = 5
    drawn = page._matrix(matrix, [f"class {one}" for one in range(1000)])
    assert drawn.count('class="wrong"') == 1
    assert "5 of class 7 answered as class 900" in drawn
    assert 'fill-opacity="0.434"' in drawn  # 5 of the 14 of that class
    assert drawn.count('class="right"') == page.CONFUSED
    assert page._matrix(matrix[:2, :2], ["cat", "dog"]).count('class="right"') == 2
