"""Extended without a fork: what docs/extend.md shows, and what is refused."""

from __future__ import annotations

import copy
import csv
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from pytorch_lightning.callbacks import EarlyStopping
from pytorch_lightning.loggers import CSVLogger
from torch import Tensor, nn

import finetune
from finetune.choices import given
from finetune.choices.augmentations import AUGMENTATIONS
from finetune.choices.losses import LOSSES
from finetune.choices.schedules import SCHEDULES
from finetune.data.sources import SOURCES
from finetune.errors import RequestError
from finetune.evaluation.export import export_target
from finetune.evaluation.formats import FORMATS
from finetune.model.build import HEADS, MODELS
from finetune.objects import named
from support.ended import Ended
from support.runs import CHECKOUT, checkpoint, newest
from support.small import Small

PAGE = (CHECKOUT / "docs" / "extend.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
LABELS = np.arange(60) % 3
IMAGES = np.random.default_rng(0).integers(0, 100, (60, 32, 32, 3), dtype=np.uint8)
IMAGES[np.arange(60), ..., LABELS] += 100
DATA = {"source": (IMAGES, LABELS), "image_size": 32, "val_fraction": 0.3}


def mean(logits: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits, labels)


@pytest.fixture(autouse=True)
def somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(given.PLUGINS, "")
    torch.manual_seed(0)  # for the networks that are made


@pytest.fixture
def tables_as_before() -> Iterator[None]:
    """Without what a plugin adds."""
    tables: Any = (LOSSES, SCHEDULES, SOURCES, FORMATS)
    before = [dict(table) for table in tables]
    yield
    for table, entries in zip(tables, before, strict=True):
        table.clear()
        table.update(entries)


def fit(data: Any = None, **settings: Any) -> finetune.Run:
    net = settings.pop("model", None) or Small()
    return finetune.fit(DATA if data is None else data, model=net, quiet=True, **{"epochs": 1, **settings})


def test_the_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    exec(BLOCKS[0], names)
    printed = capsys.readouterr().out
    assert printed.count("only Python can resume") == 1
    assert re.search(r"^blue [01]\.\d+$", printed, re.MULTILINE)
    exec(BLOCKS[1], names)
    told = names["run"].summary
    assert [told["data"][side] for side in ("train", "val", "test")] == [60, 15, 15]
    assert told["classes"] == ["blue", "green", "red"]
    assert told["features"] is None
    assert told["augment"] == "python:flip_and_darken"


def test_objects_do_what_names_do() -> None:
    net, folder = Small(), Path("mine")
    before = {name: value.clone() for name, value in net.state_dict().items()}
    stop = EarlyStopping(monitor="val/loss", min_delta=100, patience=1)
    head = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    settings: dict[str, Any] = {"model": net, "head": head, "loss": mean, "callbacks": [stop]}
    settings |= {"optimizer": lambda some: torch.optim.Adam(some, lr=0.01), "logger": CSVLogger("logs")}
    run = fit(epochs=9, folder=folder, **settings)
    assert run.summary["epochs"] == 2  # of which none was better by 100
    assert stop.stopped_epoch == 1
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    with open("logs/lightning_logs/version_0/metrics.csv", newline="") as file:
        assert len([row for row in csv.DictReader(file) if row["val/loss"]]) == 2
    assert not (folder / "tensorboard").exists()
    stored = json.loads((folder / "settings.json").read_text())
    assert stored["optimizer"] == {"name": "python:<lambda>"}
    assert (stored["loss"], stored["data"]["source"]) == ("python:mean", "python:tuple")
    assert run.load().predict(IMAGES[0], top=4)[0].label in ("0", "1", "2", "output 3")
    for table, name in ((MODELS, stored["model"]), (HEADS, stored["head"]), (LOSSES, stored["loss"])):
        del table.objects[name]  # as in another process
    with pytest.raises(
        RequestError, match=r"^python:Small-\w+: expected what was a Python object to be given"
    ):
        finetune.load(run)
    again = finetune.load(run, model=Small(), head=head)
    with pytest.raises(RequestError, match=r"^--format safetensors: expected a format that holds the model"):
        export_target(again._saved, "safetensors", None, softmax=False)
    theirs = again._saved.settings.model_copy(update={"model": "resnet18"})
    with pytest.raises(RequestError, match=r"expected a format that holds the model, .* as head=python:"):
        export_target(replace(again._saved, settings=theirs), "safetensors", None, softmax=False)
    assert again.evaluate((IMAGES, LABELS))["accuracy"] == run.load().evaluate((IMAGES, LABELS))["accuracy"]


@pytest.mark.slow
def test_a_run_is_resumed_with_the_same_objects() -> None:
    fit(loss=mean, folder="mine", epochs=1)
    run = fit(loss=mean, folder="mine", epochs=2, resume="auto")
    assert run.summary["epochs"] == 2
    told = (run.folder / "log.txt").read_text()
    assert (
        told.count("loss=python:mean, data.source=python:tuple: nothing but the name tells whether that is")
        == 1
    )


def test_a_table_of_pandas_is_one(few_pictures: Path) -> None:
    paths = sorted(few_pictures.glob("*/*.png"))
    frame = pd.DataFrame({"file": paths, "kind": [path.parent.name for path in paths]})
    columns = {"image_column": "file", "label_column": "kind"}
    run = fit({"source": frame, "image_size": 32, **columns})
    assert run.summary["classes"] == ["blue", "green", "red"]
    found = run.load().predict(few_pictures)  # a folder
    assert {one.path.parent.name for one in found if one.path} == {"blue", "green", "red"}
    assert len(found) == 60
    with pytest.raises(RequestError, match=r"^data=DataFrame: expected a column path"):
        fit({"source": frame, "image_size": 32})


def test_vectors_of_labels_train_with_bce() -> None:
    vectors = np.eye(3, dtype=np.int64)[LABELS]
    run = fit(
        {**DATA, "source": ([torch.from_numpy(one).movedim(2, 0) for one in IMAGES], vectors)}, loss="bce"
    )
    assert run.summary["classes"] == ["label 0", "label 1", "label 2"]


def test_a_transform_draws_by_batch() -> None:
    name = named("data.augment", lambda image: image + torch.randint(99, (), dtype=torch.uint8))
    function = AUGMENTATIONS[name].function
    assert function
    images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    drawn = [function(images, 6, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert drawn[0].shape == (4, 3, 6, 6)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert len(drawn[0].unique()) > 1  # each image has its own


class Weighted(nn.CrossEntropyLoss):
    """A loss that would like to be trained."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))


class LastFirst(nn.Module):
    """A head whose output layer is registered before what it reads."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.out, self.hidden = nn.Linear(20, outputs), nn.Linear(6, 20)

    def forward(self, features: Tensor) -> Tensor:
        return self.out(self.hidden(features).relu())


def test_the_outputs_of_a_head_are_those_that_it_gives() -> None:
    run = fit(head=LastFirst(4))
    assert run.load()._saved.names == ["0", "1", "2", "output 3"]
    with pytest.raises(
        RequestError, match=r"^head=python:LastFirst-.* expected 3 outputs or more, .* not 2$"
    ):
        fit(head=LastFirst(2))


class Odd(Small):
    """A network that returns its logits in something else, in training or always."""

    def __init__(self, kind: Callable[[Any], Any], training: bool = False) -> None:
        super().__init__()
        self.kind, self.only = kind, training

    def forward(self, x: Tensor) -> Any:
        logits = super().forward(x)
        return logits if self.only and not self.training else self.kind({"logits": logits})


class Wrong(Small):
    def __init__(self, error: type[Exception]) -> None:
        super().__init__()
        self.error = error

    def forward(self, x: Tensor) -> Tensor:
        raise self.error


class HeadFirst(nn.Module):
    """A network whose head is not its last linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.early = nn.Linear(6, 3), nn.Conv2d(3, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.early(x).mean((2, 3)))


class Projected(Small):
    """A network that does not use its last linear layer, of as many outputs as its head."""

    def __init__(self) -> None:
        super().__init__()
        self.projector = nn.Linear(6, 3)


TAKES = "model=python:|: expected a forward that takes float32 images (1, 3, 32, 32) alone"


class Single(Small):
    """A network that takes float32 alone."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float())


def test_features_take_the_room_of_the_form_that_they_are_in() -> None:
    features = fit(model=Single(), precision="bf16", cache="memory").summary["features"]
    assert (features["form"], features["bytes"]) == ("fp32", 60 * 6 * 4)


class Constant(Small):
    """A network whose backbone no gradient reaches, and which counts how often it is run."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("runs", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.runs = self.runs + 1
        with torch.no_grad():
            features = self.late(self.early(x)).mean((2, 3))
        return self.head(features)


def test_a_network_that_turns_gradients_off_trains_without_heat_maps() -> None:
    run = fit(model=Constant(), freeze="none", optimizer=lambda some: torch.optim.SGD(some[-1:], lr=0.1))
    log = (run.folder / "log.txt").read_text()
    assert "cannot be split: Constant: forward assigns a buffer" in log
    assert "the optimizer leaves out, 9 tensors that should train: early.0.weight, early.0.bias, e" in log
    assert run.summary["parameters"]["trainable"] == 3
    page = (run.folder / "report.html").read_text()
    assert "no heat maps: expected a model that gradients go through" in page


def test_what_no_gradient_reaches_is_told() -> None:
    run = fit(model=nn.DataParallel(Constant()), freeze="none")
    log = (run.folder / "log.txt").read_text()
    assert (
        "warning  no gradient reaches, or the optimizer leaves out, 8 tensors that should train: early."
        in log
    )
    assert run.summary["parameters"]["trainable"] == 6 * 3 + 3
    assert run.summary["model"].startswith("python:Constant-")


def floats(image: Tensor) -> Tensor:
    return image / 255


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"transform": floats}, "transform: expected uint8 (3, 32, 32) or larger back, not torch.float32"),
        ({"transform": floats, "data.augment": "flip"}, "transform: expected no data.augment with it"),
        (
            {"transform": floats, "cache": "disk"},
            "data.augment=python:floats: expected cache=auto or none with it",
        ),
        (
            {"loss": nn.CrossEntropyLoss(reduction="none")},
            "loss: expected one number for a batch, a tensor, not (",
        ),
        ({"loss": Weighted()}, "loss: expected one without parameters that train; the optimiser has"),
        ({"loss": [1]}, "loss: expected a name or Callable, not list"),
        ({"model": 3.5}, "model: expected a name or Module, not float"),
        ({"optimizer": lambda some: some}, "optimizer.name=python:<lambda>: expected an Optimizer from it"),
        (
            {"optimizer": lambda _: torch.optim.SGD(nn.Linear(2, 2).parameters())},
            "optimizer.name=python:<lambda>: expected an Optimizer of the parameters that it is given, or of",
        ),
        (
            {"optimizer": lambda some: torch.optim.SGD(some[:0])},
            "optimizer.name=python:<lambda>: expected an Optimizer: optimizer got an empty parameter list",
        ),
        ({"loss": lambda *_: 1.0}, "loss: expected one number for a batch, a tensor, not float"),
        ({"loss": lambda *_: torch.ones(())}, "loss: expected one that gradients go through; it was made of"),
        (
            {"loss": nn.CrossEntropyLoss},
            "loss: expected a name or Callable, not the class CrossEntropyL",
        ),
        (
            {"callbacks": [EarlyStopping]},
            "callbacks: expected a name or Callback, not the class E",
        ),
        ({"logger": [3.5]}, "logger: expected a name or Logger, not float"),
        ({"model": Small}, "model: expected a name or Module, not the class Small"),
        ({"model": Odd(dict)}, "model: expected a forward that returns logits (B, outputs), not a dict"),
        ({"model": Odd(tuple)}, "model: expected a forward that returns logits (B, outputs), not a tuple"),
        (
            {"model": Odd(tuple, True), "freeze": "none"},
            "model: expected a forward that returns logits (B, outputs), not a tuple",
        ),
        ({"model": Wrong(ValueError)}, TAKES),
        ({"model": Wrong(AssertionError)}, TAKES),
        ({"model": Small().double()}, TAKES),
        ({"model": Small().bfloat16()}, TAKES),
        (
            {"model": nn.Sequential(nn.LazyConv2d(3, 8), nn.Flatten(), nn.LazyLinear(3))},
            "model: expected layers of Python, not TorchScript; lazy",
        ),
        ({"model": torch.jit.script(nn.Linear(2, 3))}, "model: expected layers of Python, not TorchScript"),
        ({"head": torch.jit.script(nn.Linear(6, 3))}, "head: expected layers of Python, not TorchScript"),
        (
            {"model": HeadFirst()},
            "model=python:HeadFirst-|: expected the logits from early, its linear layer made last",
        ),
        (
            {"model": Projected()},
            "model=python:Projected-|: expected the logits from projector, its linear layer made last",
        ),
        ({"optimizer": torch.optim.Adam, "optimizer.lr": 1.0}, "optimizer.lr: the chosen optimizer has no"),
        ({"head": nn.Linear(5, 3)}, "head=python:Linear-"),
        ({"head": nn.Linear(6, 2)}, "head=python:Linear-"),
        ({"loss": mean, "trainer": "ddp"}, "model=python:Small-"),
        ({"weights": "imagenet"}, "weights=imagenet: expected auto, which are the model's own, or a file"),
        ({"callbacks": [EarlyStopping("val/loss")], "data.folds": 2}, "callbacks=['python:EarlyStopping-"),
        ({"callbacks": ["none"]}, "callbacks=['none']: expected learning_rate or device_stats"),
        ({"logger": "wandb"}, "logger=wandb: "),
        (
            {"optimizer": "lbfgs", "head": nn.Linear(6, 3, bias=False)},
            "optimizer=lbfgs: expected a linear layer on constant features as all that trains; head has no b",
        ),
        (
            {"optimizer": "lbfgs", "model": Constant()},
            "optimizer=lbfgs: expected a linear layer on constant features as all that trains; there are no"
            " features: the model cannot be split: Constant: forward assigns a buffer",
        ),
        ({"data.image_column": "path"}, "data.image_column: expected a DataFrame, or data=csv, with it"),
    ],
)
def test_what_cannot_be_is_told_in_a_line(settings: dict[str, Any], line: str) -> None:
    freeze = "none" if "transform" in settings else "all"
    with pytest.raises(RequestError) as error:
        fit(**{"freeze": freeze, **settings})
    begins, _, goes_on = line.partition("|")
    assert str(error.value).startswith(begins)
    assert goes_on in str(error.value)
    assert "\n" not in str(error.value)


class Named(list[Any]):
    """A data set whose numbers stand for classes."""

    def __init__(self, classes: str, labels: list[int]) -> None:
        super().__init__((image, label) for image, label in zip(IMAGES, labels, strict=False))
        self.classes = [*classes]


@pytest.mark.parametrize(
    ("data", "line"),
    [
        ((IMAGES, LABELS[:5]), "data=arrays: expected as many images as labels"),
        ((IMAGES / 255, LABELS), "data=arrays: an array (32, 32, 3) of float64: expected uint8"),
        ((IMAGES[:2], [[1, 0], [1]]), "data=arrays: expected a label an image, or a vector"),
        ((IMAGES[:2], [["a", "b"], ["a", "c"]]), "data=arrays: expected a label an image, or a vector"),
        ((IMAGES[:0], LABELS[:0]), "data=arrays: expected images; there are none"),
        ((IMAGES, LABELS[:, None] * 0), "data=arrays: expected two classes or more; there is only 0"),
        ((IMAGES, np.full((60, 2), np.nan)), "data=arrays: expected a label for every image; image 0"),
        ((IMAGES, np.eye(3)[LABELS] * 2), "loss=cross_entropy: expected labels that are class numbers, or v"),
        ((IMAGES, np.eye(3)[LABELS] - 1), "loss=cross_entropy: expected labels that are class numbers, or v"),
        ((IMAGES, LABELS[:, None] / 4), "loss=cross_entropy: expected labels that are class numbers, or ve"),
        ((IMAGES, np.eye(3)[LABELS]), "loss=cross_entropy: expected loss=bce, as labels are vectors of 0 a"),
        ((IMAGES, np.eye(3)[LABELS][:, [0, 0, 1]]), "loss=cross_entropy: expected loss=bce, as images ha"),
        ((IMAGES[:3], [0.0, 1.0, float("nan")]), "data=arrays: expected a label for every image"),
        ((IMAGES[:2], ["a", None]), "data=arrays: expected a label for every image; image 1 has none"),
        (Named("abc", [1, 3]), "data=Named: expected labels below 3, the number of classes, not 3"),
        (
            {"train": Named("abc", [0, 1, 2]), "test": Named("ac", [0, 1])},
            "data=Sides: expected the same classes on every side, not a, b, c and a, c",
        ),
        (
            {"train": DATA["source"], "tset": DATA["source"]},
            "data: expected train, val and test in a dict, ",
        ),
        (
            {"val": [], "valid": []},
            "data: expected train, val and test in a dict, each once at most, not v",
        ),
        (
            {"source": {"train": [], "tset": []}},
            "data: expected train, val and test in a dict, each once at",
        ),
        (
            {"source": {"tset": DATA["source"]}},
            "data.source: expected train, val and test in a dict, each ",
        ),
        (iter([]), "data=list_iterator: expected as many"),
        ([], "data=list: expected as many"),
        ([{"image": IMAGES[0], "label": 1}], "data=list: expected as many"),
        ({"train": pd.DataFrame({"path": ["a"]})}, "data=Sides: expected a column label"),
    ],
)
def test_data_that_cannot_be_is_told(data: Any, line: str) -> None:
    with pytest.raises(RequestError) as error:
        fit(data)
    assert str(error.value).startswith(line)


def test_images_that_change_are_told() -> None:
    class Noisy(list[Any]):
        def __getitem__(self, index: Any) -> Any:
            return np.random.default_rng().integers(0, 255, (32, 32, 3), dtype=np.uint8), index % 2

    with pytest.raises(finetune.errors.RunError, match=r"Noisy .*changed since .* into transform="):
        fit({**DATA, "source": Noisy(range(30))})


@pytest.mark.slow
def test_a_plugin_adds_names(command: Callable[..., Ended], tables_as_before: None) -> None:
    Path("mine.py").write_text(BLOCKS[2])
    words = next(one for one in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) if "--plugin" in one)
    train, export = (line.split()[1:] for line in words.splitlines())
    small = ("model=timm/test_resnet", "weights=random", "epochs=1", "cache=memory", "data.image_size=32")
    without = [word for word in train if word not in ("--plugin", "mine.py")]
    refused = command(*without, *small)
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert refused.err.startswith("error: loss=squared: expected cross_entropy, bce, ")
    ended = command(*train, *small)
    assert ended.code == 0, ended.err
    assert "stripes: 2 classes" in ended.out
    assert command(*export).code == 0
    assert [file.name for file in (newest() / "export").iterdir()] == ["model.bin"]
    for table in (LOSSES, SCHEDULES):
        table.pop("squared", table.pop("linear", None))
    told = command("predict", "latest", str(CHECKOUT / "docs"))
    assert told.code == 2  # what is stored brings no code
    assert re.match(r"error: .*settings\.json: (loss=squared|schedule=linear): expected ", told.err)


@pytest.mark.parametrize("fault", ["", "import nowhere", "1 / 0"])
def test_an_installed_plugin_is_found_and_one_that_fails_is_told_in_a_line(
    command: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch, tables_as_before: None, fault: str
) -> None:
    info = Path("site/installed-1.0.dist-info")
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: installed\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[finetune.plugins]\nnew = installed_plugin\n")
    added = "from finetune.choices.losses import LOSSES\nLOSSES['new'] = LOSSES['bce']\n"
    Path("site/installed_plugin.py").write_text(added + fault)
    monkeypatch.syspath_prepend("site")
    monkeypatch.setattr(given, "_loaded", {""})
    monkeypatch.delitem(sys.modules, "installed_plugin", raising=False)
    ended = command("cache", "loss=new")
    told = "error: installed: its plugin new = installed_plugin cannot be imported: "
    assert (ended.code, ended.err[: len(told)]) == ((2, told) if fault else (0, ""))
    assert ended.err.count("\n") == bool(fault)


def test_a_plugin_that_is_not_there_is_told(train: Callable[..., Ended]) -> None:
    for name in ("nowhere", "nowhere.py"):
        ended = train("--plugin", name)
        assert (ended.code, ended.err.count("\n")) == (2, 1)
        assert ended.err.startswith(f"error: --plugin {name}: expected a module, or a file of Python: ")
        os.environ[given.PLUGINS] = ""


@pytest.mark.slow
def test_a_fast_run_goes_through_every_part_and_leaves_nothing(
    train: Callable[..., Ended], few_pictures: Path
) -> None:
    own = ("data=folder", f"data.root={few_pictures}", "data.image_size=32", "model=timm/test_resnet")
    own += ("weights=random", "batch_size=5", "cache=memory")
    ended = train(*own, "fast_dev_run=true", "epochs=40", "patience=3")
    assert ended.code == 0, ended.err
    assert "5 images to train, 5 to validate, 5 to test" in ended.out
    assert "epoch 1/1" in ended.out
    assert "nothing is kept" in ended.out
    assert not Path("outputs").exists()
    assert train("-m", "seed=0,1", *own, "fast_dev_run=true").code != 0


@pytest.mark.slow
def test_lightnings_habits(train: Callable[..., Ended], few_pictures: Path) -> None:
    own = ("data=folder", f"data.root={few_pictures}", "data.image_size=32", "model=timm/test_resnet")
    own += (
        "weights=random",
        "epochs=5",
        "cache=memory",
        "logger=[tensorboard,csv]",
        "callbacks=learning_rate",
    )
    ended = train(*own, "trainer.profiler=simple", "trainer.checkpoint_every=2")
    assert ended.code == 0, ended.err
    run = newest()
    assert {path.name for path in (run / "checkpoints").glob("epoch*")} == {
        "epoch=001.ckpt",
        "epoch=003.ckpt",
    }
    assert checkpoint(run, "epoch=003")["epoch"] == 3
    assert "run_training_epoch" in (run / "fit-profile.txt").read_text()
    with (run / "csv" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len([row for row in rows if row["val/accuracy"]]) == 5
    assert any("lr" in name and row[name] for row in rows for name in row)
    assert (run / "tensorboard").exists()
    again = train(*own[:-2], f"weights={run}/checkpoints/epoch=003.ckpt", "head=3")
    assert again.code == 0, again.err


class Scaled(nn.Module):
    """Two of them have the same layers and compute something else."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor
        self.layer = nn.Conv2d(3, 8, 3)
        self.fc = nn.Linear(8, 2)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc((self.layer(images) * self.factor).relu().mean((2, 3)))


class Hidden(Scaled):
    """The same with the factor where neither the state dict nor a public attribute has it."""

    def __init__(self, factor: float) -> None:
        super().__init__(1.0)
        self._factor = factor

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images * self._factor)


class Unsaved(Scaled):
    """The same with the factor in a buffer that is not saved."""

    def __init__(self, factor: float) -> None:
        super().__init__(1.0)
        self.register_buffer("by", torch.tensor(factor), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images * self.by)


@pytest.mark.parametrize("kind", [Hidden, Unsaved])
def test_what_no_state_dict_tells_makes_another_network(kind: type[Scaled]) -> None:
    one, two = kind(1.0), kind(7.0)
    two.load_state_dict(one.state_dict())
    assert named("model", one) != named("model", two)
    assert named("model", one) == named("model", copy.deepcopy(one))


@pytest.mark.slow
def test_fits_in_threads_have_data_of_their_own() -> None:
    def count(images: int) -> int:
        pixels, labels = images_of_two(images)
        given = np.concatenate([pixels] * images), np.concatenate([labels] * images)
        run = finetune.fit(
            given, model=Scaled(1.0), folder=f"of {images}", epochs=1, quiet=True, cache="none"
        )
        return len(given[1]) - sum(run.summary["data"][side] for side in ("train", "val", "test"))

    with ThreadPoolExecutor(3) as pool:
        assert [*pool.map(count, (1, 2, 3))] == [0, 0, 0]


def images_of_two(seed: int) -> tuple[np.ndarray, np.ndarray]:
    labels = np.arange(40) % 2
    bright = labels if seed == 0 else 1 - labels
    pixels = np.random.default_rng(seed).integers(0, 60, (40, 16, 16, 3)) + 150 * bright[:, None, None, None]
    return pixels.astype(np.uint8), labels


def test_a_later_fit_changes_nothing_of_an_earlier_one() -> None:
    common = {"data.image_size": 16, "epochs": 2, "cache": "memory", "quiet": True}
    torch.manual_seed(0)
    one = finetune.fit(images_of_two(0), model=Scaled(1.0), folder="one", **common)
    model, images = one.load(), list(images_of_two(0)[0][:6])
    before, measured = model.predict(images), model.evaluate()
    finetune.fit(images_of_two(1), model=Scaled(-2.0), folder="two", **common)
    assert finetune.load("one").predict(images) == before
    with pytest.raises(RequestError, match="expected the run's own images; those given since are others"):
        model.evaluate()
    assert model.evaluate(images_of_two(0), split="test")["accuracy"] == measured["accuracy"]
