"""predict.py beside an export answers as `finetune predict --raw` does, whatever the file."""

from __future__ import annotations

import csv
import io
import json
import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

import finetune
from finetune.data.pixels import FORMATS
from support.ended import Ended
from support.painted import display_p3, noise, photograph

Command = Callable[..., Ended]
Finished = Callable[..., Path]


def every_kind(folder: Path) -> Iterator[Path]:
    """An image of every kind that is decoded in a way of its own, none as large as the model's input."""
    rough = Image.fromarray(noise(57, 83))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = photograph(90, 61)
    turned.save(folder / "turned.jpg", exif=exif)
    photograph(401, 333).save(folder / "odd.jpg", quality=95)
    photograph(640, 961).convert("CMYK").save(folder / "cmyk.jpg")
    rough.save(folder / "rough.png")
    rough.quantize(16).save(folder / "palette.png", transparency=3)
    rough.convert("LA").save(folder / "grey.png")
    clear = rough.convert("RGBA")
    clear.putalpha(Image.fromarray(noise(57, 83)[..., 0]))
    clear.save(folder / "clear.webp", lossless=True)
    Image.fromarray(np.linspace(0, 4095, 57 * 83).reshape(57, 83).astype(np.uint16)).save(folder / "deep.png")
    Image.fromarray(np.linspace(-1, 3, 57 * 83, dtype=np.float32).reshape(57, 83)).save(folder / "float.tiff")
    rough.save(folder / "profile.png", icc_profile=display_p3())
    photograph(40, 47).save(folder / "frames.gif", save_all=True, append_images=[Image.new("RGB", (47, 40))])
    if "HEIF" in FORMATS:
        photograph(401, 333).save(folder / "phone.heic", "HEIF")
    yield from sorted(folder.iterdir())


@pytest.fixture
def deep_run(finished_run: Finished, command: Command, tmp_path: Path) -> Callable[..., str]:
    """A run, trained on some images of 12 bits, of a model whose images are made smaller bicubically."""

    def trained(*overrides: str) -> str:
        generator = np.random.default_rng(0)
        for name, most in (("dim", 900), ("bright", 4096)):
            Path("deep", name).mkdir(parents=True)
            for number in range(8):
                pixels = generator.integers(0, most, (32, 32)).astype(np.uint16)
                Image.fromarray(pixels).save(Path("deep", name, f"{number}.png"))
        data = ("data=folder", "data.root=deep", "data.image_size=48", "weights=random", "cache=memory")
        ended = command(
            "train", *data, "model=timm/test_efficientnet", "epochs=1", *overrides, "hydra.run.dir=run"
        )
        assert ended.code == 0, ended.err
        assert "0 is black, 4095 white" in ended.out
        return "run"

    return trained


def answers(command: Command, run: str, images: Path) -> dict[str, dict[str, float]]:
    ended = command("predict", run, str(images), "--raw", "--top", "2", "--format", "jsonl")
    assert ended.code == 0, ended.err
    rows = [json.loads(line) for line in ended.out.splitlines()]
    return {row["path"]: {one["class"]: one["probability"] for one in row["predictions"]} for row in rows}


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("torch", "onnx")]


@pytest.mark.parametrize("format", ["safetensors", *SLOW])
@pytest.mark.parametrize(
    ("precision", "apart"), [("32", 1e-4), pytest.param("auto", 1e-2, marks=pytest.mark.slow)]
)
def test_it_answers_as_predict_does(
    deep_run: Callable[..., str], command: Command, format: str, precision: str, apart: float
) -> None:
    run, images = deep_run(f"precision={precision}"), Path("images")
    assert json.loads(Path(run, "summary.json").read_text())["preprocessing"]["interpolation"] == "bicubic"
    ended = command("export", run, "--format", format, "--out", "mine")
    assert ended.code == 0, ended.err
    script = runpy.run_path("mine/predict.py")
    images.mkdir()
    files = list(every_kind(images))
    expected = answers(command, run, images)
    assert len(expected) == len(files)
    for file in files:
        found = dict(zip(script["CLASSES"], script["probabilities"](file), strict=True))
        assert found == pytest.approx(expected[str(file)], abs=apart), file
    with Image.open(images / "deep.png") as opened:
        told = finetune.load(run, raw=True).predict(opened, top=2)[0].top
    assert dict(told) == pytest.approx(expected["images/deep.png"], abs=apart)


def test_it_needs_nothing_of_the_toolkit(
    finished_run: Finished,
    command: Command,
    few_pictures: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ended = command("export", str(finished_run("loss=bce", "epochs=1")), "--out", "mine/it.safetensors")
    assert ended.code == 0, ended.err
    image = str(few_pictures / "red" / "0.png")
    monkeypatch.setitem(sys.modules, "finetune", None)  # importing it would fail
    monkeypatch.setattr(sys, "argv", ["it.predict.py", image])
    with pytest.raises(SystemExit) as ended_with:
        runpy.run_path("mine/it.predict.py", run_name="__main__")
    assert not ended_with.value.code
    header, row = capsys.readouterr().out.splitlines()
    assert header == "path,class,probability"
    assert row.startswith(f"{image},")
    assert 0 < float(row.rpartition(",")[2]) < 1

    def ends(*arguments: str) -> tuple[Any, str, str]:
        monkeypatch.setattr(sys, "argv", ["it.predict.py", *arguments])
        with pytest.raises(SystemExit) as ended_with:
            runpy.run_path("mine/it.predict.py", run_name="__main__")
        return ended_with.value.code, *capsys.readouterr()

    code, out, err = ends(str(few_pictures / "red"))
    paths = [line.partition(",")[0] for line in out.splitlines()[1:]]
    assert (code, paths, err) == (False, sorted(map(str, (few_pictures / "red").iterdir())), "")
    usage = "usage: python mine/it.predict.py IMAGE_OR_FOLDER ... > answers.csv\n"
    assert ends() == (2, "", usage)
    assert ends("--help") == (0, "", usage)
    Path("mine/it.safetensors").unlink()
    told = (
        f"{Path('mine/it.safetensors')}: expected the model that was exported with this file; there is none"
    )
    assert ends(image) == (told, "", "")


@pytest.mark.parametrize(
    ("on_bad", "crop"), [("error", "pad"), pytest.param("repair", "squash", marks=pytest.mark.slow)]
)
def test_it_takes_broken_files_as_predict_does(
    finished_run: Finished,
    command: Command,
    on_bad: str,
    crop: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = str(finished_run("epochs=1", "precision=32", f"data.bad_images={on_bad}", f"data.crop={crop}"))
    assert command("export", run, "--out", "mine").code == 0
    stored = io.BytesIO()
    photograph(60, 80).save(stored, "JPEG")
    whole = stored.getvalue()
    for name, content in {"whole": whole, "endless": whole[:-2], "cut": whole[:-50]}.items():
        Path(f"={name}.jpg").write_bytes(content)
    Path("text.jpg").write_text("no image")
    Image.new("RGB", (1, 20)).save("thin.png")
    paths = ["=cut.jpg", "=endless.jpg", "=whole.jpg", "text.jpg", "thin.png"]
    rows = list(csv.reader(command("predict", run, *paths, "--raw").out.splitlines()))[1:]
    monkeypatch.setattr(sys, "argv", ["predict.py", *paths])
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", False)
    with pytest.raises(SystemExit) as ended_with:
        runpy.run_path("mine/predict.py", run_name="__main__")
    assert ended_with.value.code == 1
    out, err = capsys.readouterr()
    found = list(csv.reader(out.splitlines()))[1:]
    assert [row[:2] for row in found] == [row[:2] for row in rows if not row[3]]
    assert [float(row[2]) for row in found] == pytest.approx(
        [float(row[2]) for row in rows if not row[3]], abs=1e-4
    )
    assert len(found) == (3 if on_bad == "repair" else 2)
    assert [line.partition(":")[0] for line in err.splitlines()] == [
        row[0].lstrip("'") for row in rows if row[3]
    ]


@pytest.mark.slow
def test_images_that_alone_would_be_scaled_otherwise_are_told(
    deep_run: Callable[..., str], command: Command
) -> None:
    run = deep_run()
    for path in Path("deep").rglob("*.png"):
        full = Path("full", path.parent.name)
        full.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.asarray(Image.open(path)) * 16).save(full / path.name)
    told = "black and white are the run's, 0 and 4095; these images alone would have 0 and 65535"
    assert told in command("evaluate", run, "data.root=full").out
    assert "black and white" not in command("evaluate", run, "--split", "all").out
