"""Wrong requests: each ends with exit code 2 and one line naming the knob or file and what was expected."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from ended import Ended
from PIL import Image
from privilege import without_privilege
from safetensors.torch import save_file

Train = Callable[..., Ended]
CHECKOUT = Path(__file__).parents[1]

# Fast, should a request that ought to be refused be let through: 1,797 small pictures, one epoch.
DIGITS = ("data=digits", "weights=random", "data.image_size=32", "epochs=1", "trainer=cpu")


def picture(path: Path, size: tuple[int, int] = (16, 16), seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def pets(root: Path) -> Path:
    """Two classes of twelve pictures each: a folder that is as it should be."""
    for seed in range(24):
        picture(root / ("cat", "dog")[seed % 2] / f"{seed}.png", seed=seed)
    return root


# What a request finds: each makes `here` in the working directory.


def empty_folder(here: Path) -> None:
    here.mkdir()


def file_for_folder(here: Path) -> None:
    here.write_text("a file")


def one_class(here: Path) -> None:
    shutil.rmtree(pets(here) / "dog")


def class_without_pictures(here: Path) -> None:
    (pets(here) / "fish").mkdir()


def pictures_without_classes(here: Path) -> None:
    picture(here / "1.png")


def no_pictures(here: Path) -> None:
    for name in ("cat", "dog"):
        (here / name).mkdir(parents=True)
        (here / name / "notes.txt").write_text("none")


def broken_picture(here: Path) -> None:
    whole = (pets(here) / "cat" / "0.png").read_bytes()
    (here / "cat" / "0.png").write_bytes(whole[: len(whole) // 2])


def empty_picture(here: Path) -> None:
    (pets(here) / "dog" / "1.png").write_bytes(b"")


def all_broken(here: Path) -> None:
    for path in pets(here).rglob("*.png"):
        path.write_bytes(b"no picture " + path.name.encode())


def only_a_test_folder(here: Path) -> None:
    pets(here / "test")


def valid_beside_train(here: Path) -> None:
    pets(here / "train")
    pets(here / "valid")


def class_missing_in_train(here: Path) -> None:
    pets(here / "train")
    picture(here / "test" / "horse" / "1.png")


def pickle_that_runs_code(here: Path) -> None:
    class Harm:
        def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
            return Path.touch, (Path("harm-was-done"),)

    here.with_suffix(".pth").write_bytes(pickle.dumps({"fc.weight": Harm()}))


def text_for_weights(here: Path) -> None:
    here.with_suffix(".pth").write_text("these are no weights")


def truncated_weights(here: Path) -> None:
    path = here.with_suffix(".safetensors")
    save_file({"fc.weight": torch.zeros(100, 100)}, path)
    path.write_bytes(path.read_bytes()[:-100])


def weights_of_another_model(here: Path) -> None:
    torch.save(torchvision.models.alexnet().state_dict(), here.with_suffix(".pth"))


def folder_that_is_no_run(here: Path) -> None:
    (here / "checkpoints").mkdir(parents=True)


FOLDER = ("data=folder", "data.root=here", *DIGITS[1:])
ONE_LINE: list[tuple[str, str, Callable[[Path], None] | None]] = [
    # overrides after DIGITS | words of the line | what the request finds
    # numbers and words
    ("optimizer.lr=abc", "optimizer.lr=abc: expected a number", None),
    ("optimizer.lr=-1", "optimizer.lr=-1: expected a number above 0", None),
    ("optimizer.lr=0", "optimizer.lr=0: expected a number above 0", None),
    ("optimizer.lr=null", "optimizer.lr=null: expected a number", None),
    ("optimizer.lr=nan", "optimizer.lr=nan: expected a finite number", None),
    ("optimizer.lr=inf", "optimizer.lr=inf: expected a finite number", None),
    ("optimizer.lr=true", "optimizer.lr=true: expected a number", None),
    ("optimizer.lr=[0.1]", "optimizer.lr=[0.1]: expected a number", None),
    ("optimizer.momentum=1.5", "optimizer.momentum=1.5: expected a number below 1", None),
    ("optimizer.momentum=nan", "optimizer.momentum=nan: expected", None),
    ("optimizer.weight_decay=-0.1", "optimizer.weight_decay=-0.1: expected 0 or more", None),
    ("optimizer.nesterov=maybe", "optimizer.nesterov=maybe: expected true or false", None),
    (
        "optimizer.nesterov=true optimizer.momentum=0",
        "optimizer.nesterov=true: expected optimizer.momentum",
        None,
    ),
    ("optimizer.name=foo", "optimizer.name=foo: expected sgd or adamw", None),
    ("epochs=0", "epochs=0: expected 1 or more", None),
    ("epochs=2.5", "epochs=2.5: expected a whole number", None),
    ("epochs=true", "epochs=true: expected a whole number", None),
    ("max_steps=0", "max_steps=0: expected 1 or more", None),
    ("patience=soon", "patience=soon: expected a whole number", None),
    ("batch_size=1.5", "batch_size=1.5: expected a whole number", None),
    ("batch_size='64'", "batch_size=64: expected a whole number", None),
    ("seed=-1", "seed=-1: expected 0 or more", None),
    ("seed=4294967296", "seed=4294967296: expected a number below 4294967296", None),
    ("compile=maybe", "compile=maybe: expected auto, true or false", None),
    ("precision=64", "precision=64: expected auto, 32, bf16 or 16", None),
    ("precision=16", "precision=16: expected a GPU", None),
    ("loss=foo", "loss=foo: expected cross_entropy, bce, sum_squares or sum_difference", None),
    ("loss=bce label_smoothing=0.1", "label_smoothing: expected loss=cross_entropy", None),
    ("loss=bce class_weights=balanced", "class_weights=balanced: expected loss=cross_entropy", None),
    ("data=random class_weights=balanced", "class_weights=balanced: expected classes", None),
    ("label_smoothing=1", "label_smoothing=1: expected a number below 1", None),
    ("schedule=linear", "schedule=linear: expected constant, cosine, onecycle or step", None),
    ("schedule=onecycle warmup_epochs=1", "warmup_epochs=1: expected 0 with schedule=onecycle", None),
    ("warmup_epochs=2", "warmup_epochs=2: expected at most epochs=1", None),
    ("step_gamma=0", "step_gamma=0: expected a number above 0", None),
    ("trainer.accelerator=tpu", "trainer.accelerator=tpu: expected auto, cpu or gpu", None),
    ("trainer.accumulate_batches=0", "trainer.accumulate_batches=0: expected 1 or more", None),
    ("trainer.clip_norm=0", "trainer.clip_norm=0: expected a number above 0", None),
    # keys
    ("+optimizer.lrr=1", "optimizer.lrr: there is no such knob; did you mean optimizer.lr?", None),
    ("+epoch=1", "epoch: there is no such knob; did you mean epochs?", None),
    ("+lr=1", "lr: there is no such knob; did you mean optimizer.lr?", None),
    (
        "optimizer=adamw +optimizer.momentum=0.9",
        "optimizer.momentum: the chosen optimizer has no such knob",
        None,
    ),
    ("~seed", "seed: expected a value; it is missing", None),
    ("model=${nowhere}", "Interpolation key 'nowhere' not found", None),
    # data
    ("data.root=here", "data.root=here: expected data=folder", None),
    ("data=folder", "data.root: expected the folder of your pictures", None),
    ("data=folder data.root=here", "data.root=here: expected a folder; there is none", None),
    ("data=folder data.root='~nobody-of-that-name/here'", "expected a folder; there is none", None),
    ("data=folder data.root=''", "data.root=: expected a name", None),
    ("data=folder data.root=here", "data.root=here: expected a folder; this is a file", file_for_folder),
    ("data=folder data.root=here", "data.root=here: expected a folder per class", empty_folder),
    ("data=folder data.root=here", "data.root=here: expected a folder per class", pictures_without_classes),
    ("data=folder data.root=here", "data.root=here: expected pictures .bmp, .gif, .jpeg", no_pictures),
    (
        "data=folder data.root=here",
        "data.root=here: expected two classes or more; there is only cat",
        one_class,
    ),
    ("data=folder data.root=here", "in every class folder; none in fish", class_without_pictures),
    ("data=folder data.root=here", "there are train, valid", valid_beside_train),
    ("data=folder data.root=here", "there are test", only_a_test_folder),
    ("data=folder data.root=here", "in every class folder; none in horse", class_missing_in_train),
    (
        "data=folder data.root=here",
        "data.bad_images=error: 1 of 24 pictures here/cat/0.png (",
        broken_picture,
    ),
    (
        "data=folder data.root=here",
        "data.bad_images=error: 1 of 24 here/dog/1.png (not a picture",
        empty_picture,
    ),
    (
        "data=folder data.root=here data.bad_images=skip",
        "data.root: expected 24 of 24 broken",
        all_broken,
    ),
    ("data=torchvision data.root=here", "data.name: expected a data set of torchvision.datasets", None),
    ("data=cifar10", "data.root: expected the folder that torchvision keeps the set in", None),
    ("data=csv data.root=here", "data.root=here: expected a table, .csv, .tsv or .parquet", None),
    ("data.nested=true", "data.nested=true: expected data=folder with it", None),
    ("data.name=CIFAR10", "data.name=CIFAR10: expected data=torchvision or hf with it", None),
    ("data.nested=maybe data=folder", "data.nested=maybe: expected true or false", None),
    ("data.bad_images=ignore", "data.bad_images=ignore: expected error or skip", None),
    (
        "data.val_fraction=0.6 data.test_fraction=0.4",
        "data.val_fraction data.test_fraction below 1, not 1",
        None,
    ),
    ("data.val_fraction=-0.1", "data.val_fraction=-0.1: expected 0 or more", None),
    ("data.val_fraction=0.999999", "data.val_fraction and data.test_fraction: expected a sum below 1", None),
    ("data.image_size=2", "data.image_size=2: expected pixels, 8 or more, or auto", None),
    ("data.image_size=big", "data.image_size=big: expected pixels, 8 or more, or auto", None),
    (
        "data.image_size=16 model=alexnet",
        "data.image_size=16: alexnet cannot take pictures of that size",
        None,
    ),
    (
        "data.image_size=64 model=vit_b_32",
        "data.image_size=64: vit_b_32 cannot take pictures of that size",
        None,
    ),
    ("data.augment=rotate", "data.augment=rotate: expected auto, none, flip or standard", None),
    ("data.workers=0", "data.workers=0: expected a number of threads, 1 or more, or auto", None),
    # what is kept
    ("cache=ram", "cache=ram: expected auto, memory, disk or none", None),
    ("cache_max_gb=0", "cache_max_gb=0: expected a number above 0", None),
    ("cache=memory data.augment=standard", "cache=memory: expected data.augment=none or flip", None),
    ("cache=disk cache_dir=here", "cache_dir=here: expected", file_for_folder),
    # model and weights
    ("model=resnet19", "model=resnet19: expected resnet18", None),
    ("model=''", "model=: expected a name", None),
    ("model=timm/resnet_of_mine", "model=timm/resnet_of_mine:", None),
    ("weights=/nowhere", "weights=/nowhere: expected auto, imagenet, bundled, random, IMAGENET1K_V1", None),
    ("weights=IMAGENET1K_V2", "weights=IMAGENET1K_V2: expected IMAGENET1K_V1", None),
    ("weights=bundled model=resnet50", "weights=bundled: expected resnet18 not resnet50", None),
    ("weights=https://example.org/a.pth", "weights=https://example.org/a.pth: expected a file", None),
    ("weights=here.pth", "weights=here.pth: expected a plain state dict run code", pickle_that_runs_code),
    ("weights=here.pth", "weights=here.pth: expected", text_for_weights),
    (
        "weights=here.safetensors",
        "weights=here.safetensors: expected a readable state dict",
        truncated_weights,
    ),
    ("weights=here.pth", "weights=here.pth: expected missing conv1.weight", weights_of_another_model),
    ("weights=here", "weights=here: expected checkpoints/best.ckpt", folder_that_is_no_run),
    # freeze and head
    ("freeze=layr4", "freeze=layr4: layer4", None),
    ("freeze=[]", "freeze=[]: expected all, none, through:<module> or a list", None),
    ("freeze=null", "freeze=null: expected all, none, through:<module> or a list", None),
    ("freeze=[all,5]", "freeze=['all', 5]: expected all, none, through:<module> or a list", None),
    ("freeze=@foo", "freeze=@foo: expected @norm or @bias", None),
    ("freeze=@norm model=alexnet data.image_size=64", "freeze=@norm: matches nothing", None),
    ("freeze=through:layer9", "freeze=through:layer9: expected the name of a module layer4", None),
    ("freeze=[all,-fc]", "freeze=-fc: expected a part of the backbone head=keep", None),
    ("head=keep", "freeze: nothing is left to train", None),
    ("head=0", "head=0: expected a number of outputs, 1 or more, auto or keep", None),
    ("head=3", "head=3: expected 10 outputs or more", None),
    ("head=abc", "head=abc: expected a number of outputs, 1 or more, auto or keep", None),
    ("head=10.0", "head=10.0: expected a number of outputs, 1 or more, auto or keep", None),
    ("head=true", "head=true: expected a number of outputs, 1 or more, auto or keep", None),
    ("data=random head=2000", "head=2000: expected auto, keep or 1000 with data=random", None),
    ("head_hidden=[0]", "head_hidden=[0]: expected 1 or more", None),
    ("head_hidden=256", "head_hidden=256: expected a list such as '[256]'", None),
    ("head=keep head_hidden=[64]", "head_hidden: expected a new head", None),
    ("head_dropout=1", "head_dropout=1: expected a number below 1", None),
]


IDS = [f"{overrides} {finds.__name__ if finds else ''}" for overrides, _, finds in ONE_LINE]


@pytest.mark.parametrize(("overrides", "words", "finds"), ONE_LINE, ids=IDS)
def test_one_line_says_what_is_wrong(
    train: Train, tmp_path: Path, overrides: str, words: str, finds: Callable[[Path], None] | None
) -> None:
    if finds:
        finds(tmp_path / "here")
    before = contents(tmp_path)
    ended = train(*DIGITS, *overrides.split())
    assert ended.code == 2, ended.err
    assert ended.err.startswith("error: ")
    assert ended.err.count("\n") == 1
    for word in words.split():
        assert word in ended.err
    assert_nothing_was_touched(tmp_path, before)


HYDRAS_OWN = [
    ("optimizer.lrr=1", "Could not override 'optimizer.lrr'|did you mean optimizer.lr?"),
    ("lr=1", "Could not override 'lr'|error: lr: there is no such knob; did you mean optimizer.lr?"),
    (
        "epoch=1 optimzer=adamw",
        "Could not override 'epoch'|error: epoch: there is no such knob; did you mean",
    ),
    ("data.rot=here", "Could not override 'data.rot'|did you mean data.root?"),
    (
        "optimizer=adamw optimizer.momentum=0.5",
        "error: optimizer.momentum: the chosen optimizer has no such knob",
    ),
    ("optimizer=foo", "Could not find 'optimizer/foo'|adamw|sgd"),
    ("data=here", "Could not find 'data/here'|clipart"),
    ("trainer=tpu", "Could not find 'trainer/tpu'|cpu"),
    ("experiment=nowhere", "Could not find 'experiment/nowhere'|notebook_step"),
    ("optimizer=null", "Config group override must be a string"),
    ("data=7", "Config group override must be a string"),
    ("freeze=[all", "[all"),
    ("model=a=b=", "mismatched input '='"),
    ("freeze=[layer[12]]", "layer"),
    ("seed=1,2", "seed"),
    ("data.root=~/pictures", "error: data.root: Hydra takes ~ only in quotes: \"data.root='~/pictures'\""),
    ("epochs", "epochs"),
    ("--batch", "unrecognized arguments: --batch"),
    ("--run -m", "error: Only one of --run, --multirun"),
    ("hydra.run.dir=here/run", "error: hydra.run.dir: here|cannot be made"),
]


@pytest.mark.parametrize(("overrides", "parts"), HYDRAS_OWN)
def test_hydra_refuses_in_its_own_words(train: Train, tmp_path: Path, overrides: str, parts: str) -> None:
    (tmp_path / "here").write_text("a file, not a folder")
    before = contents(tmp_path)
    ended = train(*DIGITS[1:], *overrides.split())
    assert ended.code == 2, ended.err
    for part in parts.split("|"):
        assert part in ended.err
    assert_nothing_was_touched(tmp_path, before)


@pytest.mark.parametrize("overrides", ["seed=1", "-m seed=1,2"])
def test_outputs_cannot_be_made(train: Train, tmp_path: Path, overrides: str) -> None:
    (tmp_path / "outputs").write_text("a file, not a folder")
    ended = train(*overrides.split())
    assert ended.code == 2
    assert ended.err.startswith("error: hydra.run.dir: outputs")
    assert ended.err.count("\n") == 1
    assert contents(tmp_path) == {Path("outputs"): b"a file, not a folder"}


def test_outputs_may_not_be_written_to(train: Train, tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with without_privilege():
        ended = train("seed=1")
    assert ended.code == 2
    assert ended.err == "error: hydra.run.dir: outputs cannot be made: Permission denied\n"


@pytest.mark.skipif(torch.cuda.is_available() or torch.backends.mps.is_available(), reason="there is a GPU")
def test_a_gpu_is_asked_for_and_there_is_none(train: Train) -> None:
    ended = train("trainer=gpu", "data=digits")
    assert (ended.code, ended.err[:35]) == (2, "error: trainer=gpu: expected a GPU ")


def test_a_compiler_is_needed_and_there_is_none(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    ended = train("data=random", *DIGITS[1:], "compile=true")
    assert ended.code == 2
    assert ended.err.startswith("error: compile=true: expected a C++ compiler")
    assert_nothing_was_touched(tmp_path, {})


def test_a_finished_run_is_not_trained_into(train: Train, tmp_path: Path) -> None:
    run = ("data=random", "weights=random", "data.image_size=32", "epochs=1", "hydra.run.dir=outputs/mine")
    assert train(*run).code == 0
    kept = {
        path: content
        for path, content in contents(tmp_path).items()
        if ".hydra" not in path.parts  # Hydra writes its own folder before any code of ours runs
    }
    assert Path("outputs/mine/checkpoints/best.ckpt") in kept
    ended = train(*run)
    assert ended.code == 2
    assert ended.err.startswith("error: hydra.run.dir=outputs/mine: expected a new folder")
    assert {path: content for path, content in contents(tmp_path).items() if path in kept} == kept


def test_a_path_that_breaks_lines_is_told_in_one(train: Train, tmp_path: Path) -> None:
    ended = train(*FOLDER[2:], "data=folder", "data.root='two\nlines'")
    assert ended.code == 2
    assert ended.err == "error: data.root=two lines: expected a folder; there is none\n"


@pytest.mark.parametrize("cache", ["none", "memory"])
def test_skip_trains_without_the_broken_pictures(train: Train, tmp_path: Path, cache: str) -> None:
    broken_picture(tmp_path / "here")
    for name in ("dog/1.png", "cat/2.png", "cat/4.png"):  # the same content, and so the same digest
        (tmp_path / "here" / name).write_bytes(b"")
    ended = train(*FOLDER, "data.bad_images=skip", f"cache={cache}")
    assert ended.code == 0, ended.err
    (skipped,) = tmp_path.rglob("skipped.csv")
    rows = [line.split(",")[0] for line in skipped.read_text().splitlines()]
    assert rows == ["path", "here/cat/0.png", "here/cat/2.png", "here/cat/4.png", "here/dog/1.png"]
    summary = json.loads((skipped.parent / "summary.json").read_text())
    assert summary["data"]["skipped"] == 4
    assert sum(summary["data"][side] for side in ("train", "val", "test")) == 20


FINETUNE = Path(sys.executable).with_name("finetune")
COMMANDS = [
    ([sys.executable, CHECKOUT / "train.py", "epochs=0"], "error: epochs=0: expected 1 or more\n"),
    ([sys.executable, CHECKOUT / "train.py", "freeze=[all"], "[all"),
    ([sys.executable, CHECKOUT / "train.py", "-m", "optimizer=sgd,foo"], "Could not find 'optimizer/foo'"),
    (
        [sys.executable, CHECKOUT / "train.py", "data=folder", "data.root=no"],
        "error: data.root=no: expected a folder",
    ),
    ([FINETUNE, "train", "lr=0.1"], "error: lr: there is no such knob; did you mean optimizer.lr?\n"),
    ([FINETUNE, "train", "head=ten"], "error: head=ten: expected a number of outputs"),
    ([FINETUNE, "inspect", "+epoch=1"], "error: epoch: there is no such knob; did you mean epochs?\n"),
    ([FINETUNE, "inspect", "data=foo"], "Could not find 'data/foo'"),
    ([FINETUNE, "trian"], "No such command 'trian'"),
    (
        ["bash", "-c", f"{sys.executable} {CHECKOUT}/train.py freeze={{}}"],
        "error: freeze={}: expected all, none,",
    ),
    (["bash", "-c", f"'{FINETUNE}' train 'freeze=[all,-'"], "[all,-"),
]


@pytest.mark.parametrize(("command", "words"), COMMANDS, ids=range(len(COMMANDS)))
def test_a_wrong_command_in_a_process_of_its_own(command: list[str], words: str, tmp_path: Path) -> None:
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2, ended.stderr
    assert words in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "outputs" / "latest").exists()


def contents(folder: Path) -> dict[Path, bytes]:
    return {
        path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def assert_nothing_was_touched(folder: Path, before: dict[Path, bytes]) -> None:
    """What was there is as it was, no run counts as the latest, and no foreign code has run."""
    after = contents(folder)
    assert {path: content for path, content in after.items() if path in before} == before
    # A run whose pictures turn out to be broken can be resumed once they are mended.
    assert all(".hydra" in p.parts or p.name == "settings.json" for p in after.keys() - before.keys())


def test_there_are_enough_of_them() -> None:
    assert len(ONE_LINE) + len(HYDRAS_OWN) >= 45


def test_m_may_stand_anywhere(train: Train) -> None:
    ended = train("seed=0", "-m", "epochs=0")
    assert ended.code == 2
    assert ended.err == "error: epochs=0: expected 1 or more\n"
