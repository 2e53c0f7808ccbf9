"""What people get wrong, and what each is told; with what their request finds on the disk."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file

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
    pets(here / "Validation")


def class_missing_in_train(here: Path) -> None:
    pets(here / "train")
    pets(here / "test")
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
WRONG_VALUES = [
    # overrides after DIGITS | words of the line
    # numbers and words
    ("optimizer.lr=abc", "optimizer.lr=abc: expected a number"),
    ("optimizer.lr=-1", "optimizer.lr=-1: expected a number above 0"),
    ("optimizer.lr=0", "optimizer.lr=0: expected a number above 0"),
    ("optimizer.lr=null", "optimizer.lr=null: expected a number"),
    ("optimizer.lr=nan", "optimizer.lr=nan: expected a finite number"),
    ("optimizer.lr=inf", "optimizer.lr=inf: expected a finite number"),
    ("optimizer.lr=true", "optimizer.lr=true: expected a number"),
    ("optimizer.lr=[0.1]", "optimizer.lr=[0.1]: expected a number"),
    ("optimizer.momentum=1.5", "optimizer.momentum=1.5: expected a number below 1"),
    ("optimizer.momentum=nan", "optimizer.momentum=nan: expected"),
    ("optimizer.weight_decay=-0.1", "optimizer.weight_decay=-0.1: expected 0 or more"),
    ("optimizer.nesterov=maybe", "optimizer.nesterov=maybe: expected true or false"),
    ("optimizer.nesterov=true optimizer.momentum=0", "optimizer.nesterov=true: expected optimizer.momentum"),
    ("optimizer.name=foo", "optimizer.name=foo: expected sgd or adamw"),
    ("epochs=0", "epochs=0: expected 1 or more"),
    ("epochs=2.5", "epochs=2.5: expected a whole number"),
    ("epochs=true", "epochs=true: expected a whole number"),
    ("max_steps=0", "max_steps=0: expected 1 or more"),
    ("patience=soon", "patience=soon: expected a whole number"),
    ("batch_size=1.5", "batch_size=1.5: expected a whole number"),
    ("batch_size='64'", "batch_size=64: expected a whole number"),
    ("seed=-1", "seed=-1: expected 0 or more"),
    ("seed=4294967296", "seed=4294967296: expected a number below 4294967296"),
    ("compile=maybe", "compile=maybe: expected auto, true or false"),
    ("precision=64", "precision=64: expected auto, 32, bf16 or 16"),
    ("precision=bf16-mixed", "precision=bf16-mixed: expected 16; did you mean bf16?"),
    ("precision=16-mixed", "precision=16-mixed: expected bf16 or 16; did you mean 16?"),
    ("loss=ce", "loss=ce: expected did you mean cross_entropy?"),
    ("trainer.accelerator=cuda", "trainer.accelerator=cuda: expected did you mean gpu?"),
    ("loss=foo", "loss=foo: expected cross_entropy, bce, sum_squares or sum_difference"),
    ("loss=bce label_smoothing=0.1", "label_smoothing: expected loss=cross_entropy"),
    ("loss=bce class_weights=balanced", "class_weights=balanced: expected loss=cross_entropy"),
    ("data=random class_weights=balanced", "class_weights=balanced: expected classes"),
    ("label_smoothing=1", "label_smoothing=1: expected a number below 1"),
    ("schedule=linear", "schedule=linear: expected constant, cosine, onecycle or step"),
    ("schedule=onecycle warmup_epochs=1", "warmup_epochs=1: expected 0 with schedule=onecycle"),
    ("warmup_epochs=2", "warmup_epochs=2: expected at most epochs=1"),
    ("step_gamma=0", "step_gamma=0: expected a number above 0"),
    ("trainer.accelerator=tpu", "trainer.accelerator=tpu: expected auto, cpu or gpu"),
    ("trainer.accumulate_batches=0", "trainer.accumulate_batches=0: expected 1 or more"),
    ("trainer.clip_norm=0", "trainer.clip_norm=0: expected a number above 0"),
    # keys
    ("+optimizer.lrr=1", "optimizer.lrr: there is no such setting; did you mean optimizer.lr?"),
    ("+epoch=1", "epoch: there is no such setting; did you mean epochs?"),
    ("+lr=1", "lr: there is no such setting; did you mean optimizer.lr?"),
    (
        "optimizer=adamw +optimizer.momentum=0.9",
        "optimizer.momentum: the chosen optimizer has no such setting",
    ),
    ("model=${nowhere}", "Interpolation key 'nowhere' not found"),
    ("data=folder data.root=''", "data.root=: expected a name"),
    ("data.nested=maybe data=folder", "data.nested=maybe: expected true or false"),
    ("data.bad_images=ignore", "data.bad_images=ignore: expected error or skip"),
    ("data.val_fraction=0.6 data.test_fraction=0.4", "data.val_fraction data.test_fraction below 1, not 1"),
    ("data.val_fraction=-0.1", "data.val_fraction=-0.1: expected 0 or more"),
    ("data.val_fraction=0.999999", "data.val_fraction and data.test_fraction: expected a sum below 1"),
    ("data.image_size=2", "data.image_size=2: expected pixels, 8 or more, or auto"),
    ("data.image_size=big", "data.image_size=big: expected pixels, 8 or more, or auto"),
    ("data.augment=rotate", "data.augment=rotate: expected auto, none, flip, standard, trivial or rand"),
    ("data.workers=0", "data.workers=0: expected a number of threads, 1 or more, or auto"),
    # what is kept
    ("cache=ram", "cache=ram: expected auto, memory, disk or none"),
    ("cache_max_gb=0", "cache_max_gb=0: expected a number above 0"),
    ("model=''", "model=: expected a name"),
    ("freeze=[]", "freeze=[]: expected all, none, through:<module> or a list"),
    ("freeze=null", "freeze=null: expected all, none, through:<module> or a list"),
    ("freeze=[all,5]", "freeze=['all', 5]: expected all, none, through:<module> or a list"),
    ("head=0", "head=0: expected a number of outputs, 1 or more, auto or keep"),
    ("head=abc", "head=abc: expected a number of outputs, 1 or more, auto or keep"),
    ("head=10.0", "head=10.0: expected a number of outputs, 1 or more, auto or keep"),
    ("head=true", "head=true: expected a number of outputs, 1 or more, auto or keep"),
    ("data=random head=2000", "head=2000: expected auto, keep or 1000 with data=random"),
    ("head_hidden=[0]", "head_hidden=[0]: expected 1 or more"),
    ("head_hidden=256", "head_hidden=256: expected a list such as '[256]'"),
    ("head=keep head_hidden=[64]", "head_hidden: expected a new head"),
    ("head_dropout=1", "head_dropout=1: expected a number below 1"),
    ("batchnorm=train", "batchnorm=train: expected pretrained, adapt or auto"),
    (
        "head_features=layer3",
        "head_features=layer3: expected last, all, auto or a list of modules as '[layer3,layer4]'",
    ),
    ("head_features=[]", "head_features=[]: expected last, all, auto or a list"),
    ("head=keep head_features=all", "head_features: expected last with head=keep"),
]

ONE_LINE: list[tuple[str, str, Callable[[Path], None] | None]] = [
    # overrides after DIGITS | words of the line | what the request finds
    ("precision=16", "precision=16: expected a GPU", None),
    ("~seed", "seed: expected a value; it is missing", None),
    # data
    ("data.root=here", "data.root=here: expected data=folder", None),
    ("data=folder", "data.root: expected the folder of your images", None),
    ("data=folder data.root=here", "data.root=here: expected a folder; there is none", None),
    ("data=folder data.root='~nobody-of-that-name/here'", "expected a folder; there is none", None),
    ("data=folder data.root=here", "data.root=here: expected a folder; this is a file", file_for_folder),
    ("data=folder data.root=here", "data.root=here: expected a folder per class", empty_folder),
    ("data=folder data.root=here", "data.root=here: expected a folder per class", pictures_without_classes),
    ("data=folder data.root=here", "data.root=here: expected images .bmp, .gif, .jpeg", no_pictures),
    (
        "data=folder data.root=here",
        "data.root=here: expected two classes or more; there is only cat",
        one_class,
    ),
    (
        "data=folder data.root=here",
        "in every class folder, or of every column's label; none in fish",
        class_without_pictures,
    ),
    (
        "data=folder data.root=here",
        "expected one folder for val; there are Validation and valid",
        valid_beside_train,
    ),
    ("data=folder data.root=here", "there are only those of test", only_a_test_folder),
    (
        "data=folder data.root=here",
        "images to train on for every class; none for horse",
        class_missing_in_train,
    ),
    (
        "data=folder data.root=here",
        "data.bad_images=error: 1 of 24 images here/cat/0.png (",
        broken_picture,
    ),
    (
        "data=folder data.root=here",
        "data.bad_images=error: 1 of 24 here/dog/1.png (the file is empty",
        empty_picture,
    ),
    (
        "data=folder data.root=here data.bad_images=skip",
        "data.root: expected 24 of 24 broken for one: not an image",
        all_broken,
    ),
    ("data=torchvision data.root=here", "data.name: expected a data set of torchvision.datasets", None),
    ("data=cifar10", "data.root: expected the folder that torchvision keeps the set in", None),
    ("data=csv data.root=here", "data.root=here: expected a table (.csv, .tsv, .parquet,", None),
    ("data.nested=true", "data.nested=true: expected data=folder with it", None),
    ("data.name=CIFAR10", "data.name=CIFAR10: expected data=torchvision or hf with it", None),
    (
        "data.image_size=16 model=alexnet",
        "data.image_size=16: alexnet cannot take images of that size",
        None,
    ),
    (
        "data.image_size=65 model=timm/test_vit",
        "data.image_size=65: timm/test_vit cannot take images of that size",
        None,
    ),
    ("ema=0.9 refit=true", "ema=0.9: expected refit=false", None),
    ("cache=memory data.augment=standard", "data.augment=standard: expected cache=auto or none", None),
    ("cache=disk cache_dir=here", "cache_dir=here: expected", file_for_folder),
    # model and weights
    ("model=resnet19", "model=resnet19: expected resnet18", None),
    ("model=timm/resnet_of_mine", "model=timm/resnet_of_mine:", None),
    ("weights=/nowhere", "weights=/nowhere: expected auto, imagenet, bundled, random, IMAGENET1K_V1", None),
    ("weights=IMAGENET1K_V2", "weights=IMAGENET1K_V2: expected IMAGENET1K_V1", None),
    ("weights=bundled model=resnet50", "weights=bundled: expected resnet18 not resnet50", None),
    ("weights=https://example.org/a.pth", "weights=https://example.org/a.pth: expected a file", None),
    ("weights=here.pth", "weights=here.pth: is no file of weights expected", pickle_that_runs_code),
    ("weights=here.pth", "weights=here.pth: expected", text_for_weights),
    (
        "weights=here.safetensors",
        "weights=here.safetensors: damaged expected a state dict",
        truncated_weights,
    ),
    ("weights=here.pth", "weights=here.pth: expected missing conv1.weight", weights_of_another_model),
    ("weights=here", "weights=here: expected checkpoints/best.ckpt", folder_that_is_no_run),
    # freeze and head
    ("freeze=layr4", "freeze=layr4: layer4", None),
    ("freeze=@foo", "freeze=@foo: expected @norm or @bias", None),
    ("freeze=@norm model=alexnet data.image_size=64", "freeze=@norm: matches nothing", None),
    ("freeze=through:layer9", "freeze=through:layer9: expected the name of a module layer4", None),
    ("freeze=[all,-fc]", "freeze=-fc: expected a part of the backbone head=keep", None),
    ("head=keep", "freeze: nothing is left to train", None),
    ("head=3", "head=3: expected 10 outputs or more", None),
]

UNREADABLE = "this value cannot be read; expected brackets that are closed"
NO_SETTING = "there is no such setting; did you mean"
REFUSED_BY_HYDRA = [
    # overrides | how the line begins
    ("optimizer.lrr=1", f"optimizer.lrr: {NO_SETTING} optimizer.lr?"),
    ("lr=1", f"lr: {NO_SETTING} optimizer.lr?"),
    ("epoch=1 optimzer=adamw", f"epoch: {NO_SETTING} epochs?"),
    ("data.rot=here", f"data.rot: {NO_SETTING} data.root?"),
    ("trainer.max_epochs=3", f"trainer.max_epochs: {NO_SETTING} epochs?"),
    ("early_stopping.enabled=true", f"early_stopping.enabled: {NO_SETTING} patience?"),
    ("-m gradient_clip_val=1,2", f"gradient_clip_val: {NO_SETTING} trainer.clip_norm?"),
    ("~epoch", f"epoch: {NO_SETTING} epochs?"),
    ("optimizer@data=sgd", f"optimizer@data: {NO_SETTING} optimizer?"),
    ("hydra.run.dirr=here", "hydra.run.dirr: there is no such setting"),
    ("--config-dir nowhere epochs=1", "Additional config directory '"),
    ("--config-name other", "Cannot find primary config 'other'"),
    ("-m --cfg job seed=1,2", "Only one of --run, --multirun, --cfg,"),
    ("hydra.job.chdir=true", "hydra.job.chdir=true: expected false; relative paths"),
    ("-m hydra.sweeper=optuna", "hydra.sweeper=optuna: expected hydra/sweeper=optuna, as it is a choice"),
    ("-m +hydra.launcher=4", "hydra.launcher=4: expected hydra/launcher=4, as it is a choice"),
    ("hydra.job.chdir=1", "hydra.job.chdir=1: expected false; relative paths"),
    ("hydra.callbacks.folder=null", "hydra.callbacks.folder=null: expected it to stay"),
    ("~hydra.callbacks", "~hydra.callbacks: expected it to stay"),
    ("hydra.mode=foo", "hydra.mode=foo: expected RUN or MULTIRUN"),
    ("hydra.run.dir=null", "hydra.run.dir=null: expected a folder"),
    ("-m hydra.sweep.dir= seed=1,2", "hydra.sweep.dir=: expected a folder"),
    (
        "-m hydra.sweeper.max_batch_size=0 seed=1,2",
        "hydra.sweeper.max_batch_size=0: expected 1 or more, or null",
    ),
    ("--experimental-rerun here", "--experimental-rerun: expected the command itself"),
    ("-m seed=range(0,0)", "seed=range(0,0): expected one value or more of each; there is none"),
    ("-m optimizer=glob(x*)", "optimizer=glob(x*): expected one value or more of each"),
    ("-m seed=glob(*)", "seed=glob(*): expected one value or more of each"),
    ("-m hydra/sweeper=optuna seed=1,2 head=auto,10 epochs=0", "epochs=0: expected 1 or more"),
    (
        "-m hydra/sweeper=optuna optimizer.lr=0.1,0.2 hydra.sweeper.storage=postgresql://x/y",
        "hydra.sweeper.storage=postgresql://x/y: expected a study's SQLite file (",
    ),
    ("-m hydra.sweeper.params={seed:1}", "hydra.sweeper.params={seed:1}: expected -m with what to sweep"),
    (
        "optimizer=adamw optimizer.momentum=0.5",
        "optimizer.momentum: the chosen optimizer has no such setting",
    ),
    ("optimizer=foo", "optimizer=foo: expected one of adamw, lbfgs, sgd"),
    ("optimizer=adam", "optimizer=adam: expected one of adamw, lbfgs, sgd; did you mean adamw?"),
    ("data=here", "data=here: expected one of cifar10, cifar100, clipart, csv"),
    ("trainer=tpu", "trainer=tpu: expected one of auto, cpu, ddp, gpu"),
    ("experiment=nowhere", "experiment=nowhere: expected one of fine_tune, gradual, last_stage, lp_ft"),
    ("hydra/launcher=foo", "hydra/launcher=foo: expected one of basic, batched"),
    ("-m optimizer=sgd,foo", "optimizer=foo: expected one of adamw, lbfgs, sgd"),
    ("optimizer=null", "optimizer=null: expected one of adamw, lbfgs, sgd"),
    ("data=7", "data=7: expected one of cifar10"),
    ("freeze=[all", f"freeze=[all: {UNREADABLE}"),
    ("model=a=b=", f"model=a=b=: {UNREADABLE}"),
    ("freeze=[layer[12]]", f"freeze=[layer[12]]: {UNREADABLE}"),
    ("seed=1,2", "seed=1,2: expected a single value; -m trains a run for each of several"),
    ("seed=range(3)", "seed=range(3): expected a single value; -m"),
    ("+epochs=3", "Could not append to config. An item is already at 'epochs'."),
    ("epochs", "epochs: expected epochs=VALUE"),
    ("epochs epochs=1", "epochs: expected epochs=VALUE"),
    ("--batch", "--batch: expected KEY=VALUE, without dashes"),
    ("--batch-size=32", "--batch-size=32: expected KEY=VALUE, without dashes; did you mean batch_size=32?"),
    ("--lr 0.1", "--lr: expected KEY=VALUE, without dashes; did you mean optimizer.lr=0.1?"),
    ("--epochs -m seed=1", "--epochs: expected KEY=VALUE, without dashes; did you mean epochs?"),
    ("--run -m", "Only one of --run, --multirun"),
    ("--config-name=mine", "Cannot find primary config 'mine'"),
    ("hydra.run.dir=here/run", "hydra.run.dir: here/run cannot be made: "),
    ("hydra.run.dir=${nowhere}", "Interpolation key 'nowhere' not found"),
]
