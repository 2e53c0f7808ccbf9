"""Images that memory cannot hold: the same run, and what is no longer what it was is told."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from finetune.data import decoding, streaming
from finetune.data.reader import Reader
from support.ended import Ended
from support.runs import QUICK, checkpoint, summary_of

TRAINS = (
    *QUICK,
    "freeze=none",
    "cache=auto",
    "batch_size=8",
    "precision=32",
    "data.bad_images=skip",
    "data.augment=standard",
)


@pytest.fixture(autouse=True)
def pictures(few_pictures: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    for file in few_pictures.rglob("*.png"):
        (folder / file.parent.name).mkdir(parents=True, exist_ok=True)
        (folder / file.parent.name / file.name).write_bytes(file.read_bytes())
    (folder / "red" / "broken.png").write_bytes(b"no image")
    return folder


@pytest.mark.parametrize(("processes", "augment"), [(0, "standard"), (2, "flip")])
def test_a_streamed_run_has_the_bits_of_one_in_memory(
    train: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch, processes: int, augment: str
) -> None:
    asked = (*TRAINS, f"data.augment={augment}")
    assert train(*asked, "hydra.run.dir=held").code == 0
    monkeypatch.setattr("finetune.features.load.ram", lambda: 1000)
    monkeypatch.setattr(decoding, "processes", lambda workers: processes)
    assert "\nnote     the decoded images would" in train(*asked, "hydra.run.dir=streamed").out
    held, streamed = (checkpoint(Path(name), "last")["state_dict"] for name in ("held", "streamed"))
    assert all(torch.equal(value, streamed[name]) for name, value in held.items())
    held, streamed = summary_of(Path("held")), summary_of(Path("streamed"))
    assert (streamed["test"], streamed["data"]["skipped"]) == (held["test"], 1)


def test_all_images_are_checked_once(train: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune.features.load.ram", lambda: 1000)
    checked = list[int]()
    find_bad = Reader.find_bad

    def counted(reader, workers, advance, *use):
        checked.append(len(reader.images))
        return find_bad(reader, workers, advance, *use)

    monkeypatch.setattr(Reader, "find_bad", counted)
    for name in ("first", "second"):
        assert train(*TRAINS, f"hydra.run.dir={name}").code == 0
        assert summary_of(Path(name))["data"]["skipped"] == 1
    assert checked == [61]
    Image.fromarray(np.full((32, 32, 3), 7, np.uint8)).save("pictures/red/new.png")
    assert train(*TRAINS, "hydra.run.dir=third").code == 0
    assert checked == [61, 62]


def test_an_image_that_cannot_be_read_is_looked_for_again(
    train: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch, pictures: Path
) -> None:
    monkeypatch.setattr("finetune.features.load.ram", lambda: 1000)
    (pictures / "red" / "zz.png").symlink_to("/nowhere/zz.png")
    for name in ("first", "second"):
        assert train(*TRAINS, "epochs=1", f"hydra.run.dir={name}").code == 0
        assert summary_of(Path(name))["data"]["skipped"] == 2


def test_an_image_that_changes_meanwhile_ends_the_run_and_is_read_again_by_the_next(
    train: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch, pictures: Path
) -> None:
    monkeypatch.setattr("finetune.features.load.ram", lambda: 1000)
    opened, stacked = list[int](), streaming.Stream._stacked

    def changing(stream, images):
        opened.append(len(images))
        if len(opened) == 3:
            for file in pictures.rglob("*.png"):
                file.write_bytes(file.read_bytes() + b"more")
        return stacked(stream, images)

    monkeypatch.setattr(streaming.Stream, "_stacked", changing)
    ended = train(*TRAINS, "epochs=3", "hydra.run.dir=changed")
    assert ended.code == 1
    assert ended.err.count("\n") == 1
    assert "changed since the run began, which goes by its content; run again" in ended.err
    assert train(*TRAINS, "hydra.run.dir=again").code == 0
