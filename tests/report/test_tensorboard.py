"""What a run wrote for TensorBoard, read back with TensorBoard's own reader."""

import csv
import io
import json
import os
import shutil
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2
from tensorboard.plugins.projector import projector_config_pb2

from finetune.atomic import read_json
from finetune.config.compose import compose
from finetune.errors import RequestError, RunError, shown
from finetune.report.predictions import read_predictions
from finetune.report.tensorboard import Board, flat, restore_log
from finetune.run import run
from support.small import Training

OVERRIDES = [
    "data=folder",
    "data.image_size=32",
    "weights=random",
    "head=10",
    "freeze=[all,-layer4]",
    "optimizer.weight_decay=0.01",
    "optimizer.backbone_lr_factor=0.5",
    "cache=memory",
    "epochs=3",
    "max_steps=5",
    "batch_size=16",
]


class Written:
    """A finished run's summary and events."""

    def __init__(self, folder: Path, summary: dict[str, Any]) -> None:
        self.folder, self.summary = folder, summary
        self.events = EventAccumulator(str(folder / "tensorboard"), {"images": 0, "tensors": 0, "scalars": 0})
        self.events.Reload()

    def text(self, tag: str) -> str:
        (event,) = self.events.Tensors(f"{tag}/text_summary")
        return event.tensor_proto.string_val[0].decode()

    def image(self, tag: str) -> Image.Image:
        (event,) = self.events.Images(tag)
        return Image.open(io.BytesIO(event.encoded_image_string))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, few_pictures: Path) -> Written:
    where = tmp_path_factory.mktemp("board")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(where)
        shutil.copytree(few_pictures, "pictures")
        Path("pictures/red/0.png").rename(os.fsdecode(b"pictures/red/V\xf6gel.png"))  # no UTF-8
        settings = compose([*OVERRIDES, "data.root=pictures"])
        summary = run(settings, where / "run", Console(file=io.StringIO()))
    return Written(where / "run", summary)


def test_curves_have_one_point_an_epoch_equal_to_the_table(written: Written) -> None:
    with (written.folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["3", "5"]
    curves = {tag for tag in written.events.Tags()["scalars"] if not tag.startswith(("hp/", "Final/"))}
    steps = [(event.step, event.value) for event in written.events.Scalars("loss/step")]
    assert [step for step, _ in steps] == [1, 2, 3, 4, 5]
    weighs = [16, 16, written.summary["data"]["train"] - 32]  # images of a batch
    mean = np.average([loss for _, loss in steps[:3]], weights=weighs)
    assert mean == pytest.approx(float(rows[0]["loss/train"]), rel=1e-5)
    curves -= {"loss/step"}
    assert curves == {*rows[0]} - {"step"}
    assert curves == {
        *(
            f"{name}/{side}"
            for name in ("loss", "accuracy", "balanced_accuracy", "macro_f1")
            for side in ("train", "val")
        ),
        *(f"lr/{part}" for part in ("backbone", "backbone_without_decay", "head", "head_without_decay")),
        "gradient_norm",
        "epoch",
    }
    for tag in curves:
        points = [(event.step, event.value) for event in written.events.Scalars(tag)]
        assert points == [(int(row["step"]), pytest.approx(float(row[tag]), rel=1e-6)) for row in rows]
    assert float(rows[0]["lr/head"]) == 0.01
    assert float(rows[0]["lr/backbone"]) == 0.005
    assert all(float(row["gradient_norm"]) > 0 for row in rows)


def test_train_and_val_share_a_chart(written: Written) -> None:
    content = written.events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0]
    layout = layout_pb2.Layout.FromString(content)
    charts = {
        chart.title: list(chart.multiline.tag) for category in layout.category for chart in category.chart
    }
    assert charts == {
        "loss": ["loss/train", "loss/val"],
        "accuracy": ["accuracy/train", "accuracy/val"],
        "balanced accuracy": ["balanced_accuracy/train", "balanced_accuracy/val"],
    }
    assert {tag for tags in charts.values() for tag in tags} <= set(written.events.Tags()["scalars"])


def test_one_session_with_the_settings_and_the_final_metrics(written: Written) -> None:
    (events,) = (written.folder / "tensorboard").rglob("events.*")  # a second folder would be a second run
    assert events.is_file()
    content = written.events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    session = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info
    shown = {key: getattr(value, value.WhichOneof("kind")) for key, value in session.hparams.items()}
    assert shown["optimizer.lr"] == 0.01
    assert shown["freeze"] == "[all,-layer4]"
    assert shown["max_steps"] == 5
    assert shown["patience"] == "null"
    assert shown["optimizer.nesterov"] == "false"
    tags = written.events.Tags()["scalars"]
    final = {tag: written.events.Scalars(tag) for tag in tags if tag.startswith(("hp/", "Final/"))}
    assert sorted(tags)[:2] == ["Final/test_accuracy", "Final/val_accuracy"]  # what HPARAMS shows first
    assert {tag: [event.value for event in events] for tag, events in final.items()} == {
        f"{'Final' if name == 'accuracy' else 'hp'}/{side}_{name}": [
            pytest.approx(written.summary[side][name], rel=1e-6)
        ]
        for side in ("val", "test")
        for name in ("accuracy", "balanced_accuracy", "macro_f1", "loss", "log_loss")
    }
    # An experiment tag would keep TensorBoard from showing first what differs between runs.
    assert [tag for tag in written.events.Tags()["tensors"] if "hparams" in tag] == []
    assert status(written.events) == api_pb2.STATUS_SUCCESS


def status(events: EventAccumulator) -> int:
    """What HPARAMS shows of how a run ended."""
    held = events._plugin_to_tag_to_content["hparams"]
    assert set(held) == {"_hparams_/session_start_info", "_hparams_/session_end_info"}
    content = held["_hparams_/session_end_info"]
    return plugin_data_pb2.HParamsPluginData.FromString(content).session_end_info.status


def test_a_run_that_failed_is_a_failure(tmp_path: Path) -> None:
    training = Training(tmp_path, lr=1e30)
    with pytest.raises(RunError, match="expected a finite number"):
        training.fit()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    content = events._plugin_to_tag_to_content["hparams"]["_hparams_/session_end_info"]
    ended = plugin_data_pb2.HParamsPluginData.FromString(content).session_end_info
    assert ended.status == api_pb2.STATUS_FAILURE


def test_what_ends_a_run_beside_its_training_is_a_failure(tmp_path: Path) -> None:
    def interrupted() -> None:
        with Board(tmp_path):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    content = events._plugin_to_tag_to_content["hparams"]["_hparams_/session_end_info"]
    ended = plugin_data_pb2.HParamsPluginData.FromString(content).session_end_info
    assert ended.status == api_pb2.STATUS_FAILURE


def test_images_with_their_classes(written: Written) -> None:
    assert set(written.events.Tags()["images"]) == {"images/train", "images/val", "confusion/test"}
    grid = written.image("images/train").convert("L")
    assert grid.size == (4 * 132, 8 * 150)
    darkest, brightest = grid.crop((0, 0, 128, 128)).getextrema()
    assert 0 < darkest < 60 < 110 < brightest < 255  # as in the files: the normalisation is undone
    assert grid.crop((0, 128, 132, 150)).getextrema()[0] < 60  # the name of its class
    assert min(written.image("confusion/test").size) >= 250


def test_wrong_answers_to_validation_images_are_marked(written: Written) -> None:
    answers = [one for one in read_predictions(written.folder) if one.split == "val"]
    chosen = np.random.default_rng(0).permutation(len(answers))[:32].tolist()
    drawn = [answers[place] for place in chosen]
    assert {one.right for one in drawn} == {True, False}
    grid = np.asarray(written.image("images/val"))
    assert grid.shape == (-(-len(drawn) // 4) * 166, 4 * 132, 3)
    for place, one in enumerate(drawn):
        left, top = place % 4 * 132, place // 4 * 166
        cell = grid[top : top + 166, left : left + 132]
        red = (cell == (192, 0, 0)).all(2)
        assert red[:4, :128].all() == red[:128, :4].all() == (not one.right)
        assert red[146:].any() == (not one.right)  # the answer, below the class
        assert (cell[128:146] < 60).all(2).any()
        assert cell[30:98, 30:98].mean((0, 1)).argmax() == ["red", "green", "blue"].index(one.label)


def test_the_projector_has_what_the_head_reads(written: Written) -> None:
    log = written.folder / "tensorboard"
    config = projector_config_pb2.ProjectorConfig()
    text_format.Parse((log / "projector_config.pbtxt").read_text(), config)
    (one,) = config.embeddings
    points = np.loadtxt(log / one.tensor_path, delimiter="\t")
    with Image.open(log / one.sprite.image_path) as sprite:
        width, height = one.sprite.single_image_dim
        across, tiles = sprite.width // width, sprite.copy()
    with (log / one.metadata_path).open(newline="") as file:
        table = list(csv.DictReader(file, delimiter="\t"))
    data = written.summary["data"]
    assert [row["split"] for row in table] == ["train"] * data["train"] + ["val"] * data["val"]
    assert all(Path(row["file"]).parent.name == row["class"] for row in table)
    answers = {one.picture: one.predicted for one in read_predictions(written.folder)}
    held = [row for row in table if row["split"] == "val"]
    assert [row["predicted"] for row in held] == [answers[row["file"]] for row in held]
    assert {"red", "green", "blue"} & {row["predicted"] for row in table}
    assert tiles.size == (across * width, across * height)  # else TensorBoard takes other tiles
    assert (across - 1) ** 2 < len(table) <= across**2
    pictures = written.folder.parent / "pictures"
    files = {shown(f"pictures/{file.parent.name}/{file.name}"): file for file in pictures.glob("*/*")}
    for place in (0, 1, across, len(table) - 1):
        left, top = place % across * width, place // across * height
        tile = tiles.crop((left, top, left + width, top + height)).convert("L")
        own = Image.open(files[table[place]["file"]]).convert("L").resize(tile.size)
        assert np.corrcoef(np.ravel(tile), np.ravel(own))[0, 1] > 0.9
    assert "pictures/red/V\ufffdgel.png" in [row["file"] for row in table]
    features = load_file(written.folder / "reference.safetensors")["features"]
    assert points.shape == (len(table), min(32, len(table), features.shape[1]))
    assert points.std(0)[0] > points.std(0)[-1] > 0


def test_texts(written: Written) -> None:
    settings = json.loads(written.text("settings").strip("`").removeprefix("json"))
    assert settings == read_json(written.folder / "settings.json", "the settings")
    lines = written.text("parameters").splitlines()
    assert len(lines) == 2 + 62
    assert lines[2] == "| conv1.weight | 64x3x7x7 | 9,408 | False |"
    assert lines[-1] == "| fc.bias | 10 | 10 | True |"
    assert Counter("| True |" in line for line in lines[2:])[True] == 15 + 2


def points(log: Path) -> dict[tuple[str, int], list[float]]:
    """The values at each tag and step of a log, as its files have them."""
    found: dict[tuple[str, int], list[float]] = {}
    for path in sorted(log.glob("events.*")):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                found.setdefault((value.tag, event.step), []).extend(value.tensor.float_val)
    return found


def damaged(file: Path, kind: str) -> None:
    """Flip a bit in one place of a file, or leave its end out."""
    content = bytearray(file.read_bytes())
    layout, rate = content.index(b"custom_scalars__config__"), content.index(b"lr/head")
    if kind == "gone":
        file.unlink()
    elif kind == "empty":
        file.write_bytes(b"")
    elif kind == "cut":
        file.write_bytes(content[: rate + 2])
    else:
        content[{"start": 3, "layout": layout, "value": rate + 12}[kind]] ^= 8
        file.write_bytes(content)


@pytest.mark.parametrize("kind", ["whole", "gone", "empty", "start", "layout", "value", "cut"])
def test_a_damaged_log_has_its_points_again(written: Written, tmp_path: Path, kind: str) -> None:
    before = points(written.folder / "tensorboard")
    shutil.copytree(written.folder / "tensorboard", tmp_path / "tensorboard")
    (file,) = (tmp_path / "tensorboard").glob("events.*")
    if kind != "whole":
        damaged(file, kind)
    rows = (written.folder / "metrics.csv").read_text().splitlines(keepends=True)
    assert restore_log(tmp_path, 3, "".join(rows[:2])) == (kind == "whole")
    single = kind in ("whole", "value", "cut")  # the table has no single steps: those before the damage stay
    expected = {
        point: value
        for point, value in before.items()
        if (single if point[0] == "loss/step" and point[1] <= 3 else point[1] == 3)
    }
    found = points(tmp_path / "tensorboard")
    assert found == {point: pytest.approx(value, rel=1e-6) for point, value in expected.items()}


def test_a_folder_in_the_place_of_a_log_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "tensorboard" / "events.out.tfevents.1"
    folder.mkdir(parents=True)
    with pytest.raises(RequestError, match=f"^{folder}: expected a log of TensorBoard, not a folder"):
        restore_log(tmp_path, 3, "")


def test_points_in_two_files_stand_once_and_in_order(written: Written, tmp_path: Path) -> None:
    shutil.copytree(written.folder / "tensorboard", tmp_path / "tensorboard")
    (file,) = (tmp_path / "tensorboard").glob("events.*")
    shutil.copy(file, file.with_name(f"{file.name}.later"))
    rows = (written.folder / "metrics.csv").read_text()
    assert restore_log(tmp_path, 5, rows)
    assert list((tmp_path / "tensorboard").glob("events.*")) == [file]
    found = points(tmp_path / "tensorboard")
    assert [step for _, step in found] == sorted(step for _, step in found)
    curves = {tag for tag in written.events.Tags()["scalars"] if not tag.startswith(("hp/", "Final/"))}
    assert all(len(found[tag, step]) == 1 for tag in curves for step in (3, 5))


def test_settings_by_dotted_names() -> None:
    nested = {"a": 1, "b": {"c": None, "d": ["x", 2], "e": {"f": True}}, "g": []}
    assert flat(nested) == {"a": 1, "b.c": "null", "b.d": "[x,2]", "b.e.f": "true", "g": "[]"}


def test_a_full_disk_is_an_error_and_no_traceback_of_the_thread_that_writes(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    board, told = Board(small_disk), list[object]()
    monkeypatch.setattr(threading, "excepthook", told.append)
    (small_disk / "filler").write_bytes(bytes(shutil.disk_usage(small_disk).free))
    with pytest.raises(OSError, match="No space left"):  # noqa: PT012 - by whichever call comes then
        for number in range(100):
            board.writer.add_text("long", "text" * 10_000, number)
        board.writer.flush()
    assert not told
