"""`finetune evaluate` as a user types it: on the run's own data and on others, by class name."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import finetune
from support.ended import Ended
from support.runs import SMALL, summary_of

Command = Callable[..., Ended]


@pytest.fixture
def evaluate(command: Command, run: finetune.Run) -> Callable[..., tuple[Ended, dict[str, Any]]]:
    """`finetune evaluate RUN ARGUMENTS…` and what it wrote to --out."""

    def call(*arguments: str) -> tuple[Ended, dict[str, Any]]:
        ended = command("evaluate", str(run.folder), *arguments, "--out", "found.json")
        file = Path("found.json")
        return ended, json.loads(file.read_text()) if file.exists() else {}

    return call


def test_the_runs_own_test_split_gives_what_the_summary_says(evaluate: Any, run: finetune.Run) -> None:
    ended, found = evaluate()
    assert (ended.code, ended.err) == (0, "")
    assert found["accuracy"] == pytest.approx(run.summary["test"]["accuracy"])
    assert found["pictures"] == run.summary["data"]["test"]
    assert found["data"]["split"] == "test"
    assert found["data"]["as_trained"] is True
    calibration = run.summary["calibration"]
    assert found["calibration_error"] == pytest.approx(calibration["ece_after"], abs=1e-5)
    assert found["log_loss"] == pytest.approx(calibration["log_loss_after"], abs=1e-5)
    for name in ("log_loss", "calibration_error"):  # one name, one number, one interval
        assert run.summary["test"]["intervals"][name] == pytest.approx(found["intervals"][name], abs=1e-4)
    assert found["log_loss"] == pytest.approx(run.summary["test"]["log_loss"], abs=1e-5)
    low, high = found["intervals"]["accuracy"]
    assert f"accuracy           {found['accuracy']:.4f}  {low:.3f} to {high:.3f}\n" in ended.out
    assert found["temperature"] == calibration["temperature"]
    assert [row["name"] for row in found["per_class"]] == ["blue", "green", "red"]
    for told in ("test split", f"accuracy           {found['accuracy']:.4f}", "recall", "1  blue"):
        assert told in ended.out
    assert "warning" not in ended.out
    _, raw = evaluate("--raw")
    assert raw["log_loss"] == pytest.approx(run.summary["test"]["loss"], abs=1e-5)
    assert raw["accuracy"] == found["accuracy"]


@pytest.mark.slow
def test_where_the_backbone_trains_images_are_cut_as_in_training(command: Command) -> None:
    """Training crops at random from larger squares; what it measures on is what every command sees."""
    random = np.random.default_rng(0)
    for name in ("dark", "light"):
        (Path("odd") / name).mkdir(parents=True)
        for number, (height, width) in enumerate([(37, 41), (45, 60), (61, 40), (33, 33)] * 5):
            pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(Path("odd") / name / f"{number}.png")
    run = finetune.fit(
        {"root": "odd", "image_size": 32},
        freeze="none",
        model=SMALL.partition("=")[2],
        weights="random",
        epochs=2,
        optimizer={"name": "sgd", "lr": 0.1},
        precision="32",
        quiet=True,
    )
    assert run.summary["augment"] == "standard"
    ended = command("evaluate", "latest", "--raw", "--out", "found.json")
    assert (ended.code, ended.err) == (0, "")
    found, said = json.loads(Path("found.json").read_text()), run.summary["test"]
    for name in ("accuracy", "balanced_accuracy"):
        assert found[name] == said[name]
    assert found["log_loss"] == pytest.approx(said["loss"], abs=1e-6)


def test_the_same_data_elsewhere_are_known_again(evaluate: Any, few_pictures: Path) -> None:
    shutil.copytree(few_pictures, "moved")
    ended, found = evaluate("data.root=moved", "--split", "val")
    assert ended.code == 0
    assert found["data"] == {"name": "moved", "split": "val", "as_trained": True}


@pytest.mark.slow
def test_a_split_that_was_redrawn_is_found_again_elsewhere(
    finished_run: Callable[..., Path], command: Command, few_pictures: Path
) -> None:
    run = finished_run("data.split_seed=1")
    shutil.copytree(few_pictures, "moved")
    ended = command("evaluate", str(run), "data.root=moved", "--raw", "--out", "found.json")
    assert ended.code == 0, ended.err
    found, wanted = json.loads(Path("found.json").read_text()), summary_of(run)
    assert found["accuracy"] == wanted["test"]["accuracy"]
    assert found["pictures"] == wanted["data"]["test"]


@pytest.mark.slow
def test_of_the_runs_own_data_it_is_the_test_split_though_they_have_changed_or_it_was_interrupted(
    command: Command, few_pictures: Path
) -> None:
    shutil.copytree(few_pictures, "grows")
    small = {"model": SMALL.partition("=")[2], "weights": "random"}
    run = finetune.fit({"root": "grows", "image_size": 32}, epochs=1, quiet=True, **small)
    (run.folder / "summary.json").write_text('{"status": "interrupted", "reason": "SIGTERM"}')
    assert command("evaluate", str(run.folder), "--out", "found.json").code == 0
    data = {"name": "grows", "split": "test", "as_trained": True}
    assert json.loads(Path("found.json").read_text())["data"] == data
    (Path("grows") / "red" / "0.png").unlink()
    for root in (None, str(Path("grows").resolve())):
        named = () if root is None else ("data=folder", f"data.root={root}")
        ended = command("evaluate", str(run.folder), *named, "--out", "found.json")
        found = json.loads(Path("found.json").read_text())["data"]
        assert found == data | {"as_trained": False, "name": found["name"]}
        assert "trained on" not in ended.out  # an image keeps its side, as the run's digests show
    (run.folder / "checkpoints" / "seen.json").unlink()  # an older run, which keeps none
    assert "images measured here may have been trained on" in command("evaluate", str(run.folder)).out


@pytest.mark.slow
def test_other_data_are_matched_by_name(evaluate: Any, few_pictures: Path) -> None:
    """Classes before, between and after those of the run, one of the run's missing, one file broken."""
    for name in ("blue", "red"):
        shutil.copytree(few_pictures / name, Path("new") / name)
    for name in ("aqua", "pink", "yellow"):
        shutil.copytree(few_pictures / "green", Path("new") / name)
    _, alone = evaluate("data=folder", f"data.root={few_pictures}", "--split", "all")
    ended, found = evaluate("data=folder", "data.root=new")
    assert (ended.code, ended.err) == (0, "")
    assert found["data"] == {"name": "new", "split": "all", "as_trained": False}
    assert found["pictures"] == 40
    assert found["unknown_classes"] == {"aqua": 20, "pink": 20, "yellow": 20}
    assert found["classes_without_pictures"] == ["green"]
    assert found["confusion"][0] == alone["confusion"][0]
    assert found["confusion"][2] == alone["confusion"][2]
    assert found["confusion"][1] == [0, 0, 0]
    assert found["balanced_accuracy"] == pytest.approx(
        (alone["per_class"][0]["recall"] + alone["per_class"][2]["recall"]) / 2
    )
    assert "does not know, left out with their images: aqua (20), pink (20), yellow (20)" in ended.out
    assert "without images, left out of the means: green" in ended.out


@pytest.mark.slow
def test_what_nothing_could_learn_from_can_be_measured(evaluate: Any, few_pictures: Path) -> None:
    """One class, a class without images, a side alone, a class named test, a table of one class."""
    for name in ("one/red", "holes/red", "sides/test/red", "sides/test/blue", "classes/red", "classes/blue"):
        shutil.copytree(few_pictures / Path(name).name, name)
    shutil.copytree(few_pictures / "green", Path("classes") / "test")
    (Path("holes") / "blue").mkdir()
    shutil.copy(few_pictures / "blue" / "0.png", "one")
    rows = [f"{few_pictures}/red/{number}.png,red\n" for number in range(20)]
    Path("one.csv").write_text("".join(["path,label\n", *rows]))
    for root, source, number, more in (
        ("one", "folder", 20, ()),
        ("holes", "folder", 20, ()),
        ("sides", "folder", 40, ()),
        ("sides", "folder", 40, ("--split", "test")),
        ("classes", "folder", 40, ("data.split=none",)),
        ("one.csv", "csv", 20, ()),
    ):
        ended, found = evaluate(f"data={source}", f"data.root={root}", *more)
        assert (ended.code, ended.err, found["pictures"]) == (0, "", number)
        assert ("1 image lies directly in one, in no class folder: left out" in ended.out) == (root == "one")
    assert found["classes_without_pictures"] == ["blue", "green"]


@pytest.mark.slow
def test_broken_pictures_are_left_out_or_refused(evaluate: Any, few_pictures: Path) -> None:
    shutil.copytree(few_pictures, "new")
    (Path("new") / "red" / "broken.png").write_bytes(b"no picture")
    ended, _ = evaluate("data.root=new", "--split", "all")
    assert ended.code == 2
    assert ended.err.startswith("error: data.bad_images=error: 1 of 61 images cannot be used: new/red/")
    ended, found = evaluate("data.root=new", "data.bad_images=skip", "--split", "all")
    assert (ended.code, found["pictures"]) == (0, 60)
    assert found["skipped"] == [
        {"path": "new/red/broken.png", "reason": "not an image, or of an unknown format"}
    ]
    assert "1 of 61 images cannot be read and are left out: new/red/broken.png" in ended.out


@pytest.mark.slow
def test_images_that_were_trained_on_are_told_apart_among_others(
    evaluate: Any, run: finetune.Run, few_pictures: Path
) -> None:
    """By their content, wherever they lie and whatever is beside them."""
    shutil.copytree(few_pictures, "new")
    for number in range(5):
        pixels = np.full((32, 32, 3), number, np.uint8)
        Image.fromarray(pixels).save(Path("new") / "red" / f"new{number}.png")
    ended, found = evaluate("data=folder", "data.root=new")
    data = run.summary["data"]
    told = {part: one["pictures"] for part, one in found["parts"].items()}
    assert told == {"train": data["train"], "val": data["val"], "other": data["test"] + 5}
    assert found["parts"]["val"]["accuracy"] == pytest.approx(run.summary["val"]["accuracy"])
    assert f"the run has learned from {data['train']} of these 65 images\n" in ended.out
    assert f"other    not seen, {data['test'] + 5} images: accuracy " in ended.out
    _, found = evaluate("--split", "train")
    assert (found["parts"], found["pictures"]) == ({}, data["train"])


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("data=digits",), "digits: expected images of the run's classes (blue, green, red); the classes"),
        (
            ("data=random",),
            "data=random: expected images of one class each for a run with loss=cross_entropy",
        ),
        (
            ("model=resnet50",),
            "model: this is the run's own; expected data, trainer, precision, cache_dir and ",
        ),
        (("data.image_size=64",), "data.image_size: this is the run's own; expected data, "),
        (("trainer.devices=2",), "trainer.devices: this is the run's own; expected data, "),
        (("precision=16", "trainer=cpu"), "precision=16: expected a GPU with it"),
        (("data.root=a,b",), "data.root=a,b: expected a folder; there is none"),
        (("data.root='interval(0,1)'",), "data.root=interval(0,1): expected"),
        (("data.rot=x",), "data.rot: there is no such setting; did you mean data.root?"),
        (("data=folder", "data.root=nowhere"), "data.root=nowhere: expected a folder; there is none"),
        (("--split", "some"), "--split=some: expected train, val, test or all"),
        (("data=digits", "data.test_fraction=0", "--split", "test"), "--split=test: expected images in it"),
        (("--out", "no/x.json"), "--out=no/x.json: cannot be written: No such file or directory"),
    ],
)
def test_a_wrong_request_is_one_line(
    command: Command, run: finetune.Run, arguments: tuple[str, ...], line: str
) -> None:
    ended = command("evaluate", str(run.folder), *arguments)
    assert ended.code == 2
    assert ended.err.startswith(f"error: {line}")
    assert ended.err.count("\n") == 1


@pytest.mark.slow
def test_images_that_were_trained_on_are_told(command: Command, run: finetune.Run) -> None:
    trained = run.summary["data"]["train"]
    told = f"warning  the run has learned from {trained} of these 60 images; --split=test measures on others"
    assert told in command("evaluate", str(run.folder), "--split", "all").out
    assert "has learned from" not in command("evaluate", str(run.folder)).out


def test_what_hydra_refuses_is_told_in_one_line(command: Command, run: finetune.Run) -> None:
    ended = command("evaluate", str(run.folder), "data=nothing")
    assert ended.code == 2
    assert ended.err.startswith("error: data=nothing: expected one of cifar10, ")
    assert "Traceback" not in ended.err


@pytest.mark.slow
def test_several_labels_a_picture(command: Command, few_pictures: Path) -> None:
    Path("pictures").symlink_to(few_pictures)
    names = [f"{color}/{number}.png" for color in ("red", "green", "blue") for number in range(20)]
    labels = [f"{name.partition('/')[0]}|{'even' if i % 2 else 'odd'}" for i, name in enumerate(names)]
    rows = [("path", "label"), *zip((f"pictures/{name}" for name in names), labels, strict=True)]
    Path("train.csv").write_text("".join(f"{path},{label}\n" for path, label in rows))
    run = finetune.fit(
        {"root": "train.csv", "source": "csv", "image_size": 32},
        loss="bce",
        model=SMALL.partition("=")[2],
        weights="random",
        epochs=2,
        cache="memory",
        precision="32",
        quiet=True,
    )
    ended = command("evaluate", "latest", "--out", "found.json")
    assert (ended.code, ended.err) == (0, "")
    found, said = json.loads(Path("found.json").read_text()), run.summary["test"]
    for name in ("accuracy", "balanced_accuracy", "macro_f1", "map"):
        assert found[name] == pytest.approx(said[name], abs=1e-5)
    assert found["log_loss"] == pytest.approx(said["loss"], abs=1e-5)
    assert found["at_thresholds"] == pytest.approx(said["at_thresholds"], abs=1e-5)
    thresholds = run.summary["thresholds"]
    assert {row["name"]: row["threshold"] for row in found["per_class"]} == thresholds
    assert "by the thresholds  mAP" in ended.out
    printed = command("predict", "latest", "pictures/red/0.png", "--top", "5").out.splitlines()
    (answer,) = csv.DictReader(printed)
    ranked = {answer[f"class{n}"]: float(answer[f"probability{n}"]) for n in ("", "_2", "_3", "_4", "_5")}
    given = {name for name, value in ranked.items() if value > thresholds[name]}
    assert set(filter(None, answer["labels"].split("|"))) == given
    for row in found["per_class"]:
        assert row["average_precision"] == pytest.approx(said["per_label"][row["name"]]["average_precision"])
    assert "mean AP" in ended.out

    other = [f"{path},{label.replace('even', 'pair')}\n" for path, label in rows if "green" not in label]
    Path("other.csv").write_text("".join(other))
    ended = command("evaluate", "latest", "data=csv", "data.root=other.csv", "--out", "found.json")
    found = json.loads(Path("found.json").read_text())
    assert (ended.code, found["pictures"], found["data"]["split"]) == (0, 40, "all")
    assert found["unknown_classes"] == {"pair": 20}
    assert found["classes_without_pictures"] == ["even", "green"]
    assert {row["name"]: row["pictures"] for row in found["per_class"]}["odd"] == 20
