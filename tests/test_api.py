"""The Python interface."""

from __future__ import annotations

import ast
import copy
import json
import pickle
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import finetune
from finetune import errors
from finetune.api import settings_from
from finetune.data.sources import SOURCES
from finetune.errors import RequestError
from finetune.model.build import MODELS
from finetune.objects import data_settings, named
from support.runs import CHECKOUT, summary_of


@pytest.fixture(scope="module")
def run(few_pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[finetune.Run]:
    patch = pytest.MonkeyPatch()
    patch.chdir(tmp_path_factory.mktemp("api"))
    Path("pictures").symlink_to(few_pictures)
    try:
        quick = {"weights": "random", "epochs": 1, "cache": "memory", "data.image_size": 32}
        adamw = {"name": "adamw", "lr": 1e-3}
        run = finetune.fit("pictures", head=4, model="timm/test_resnet", optimizer=adamw, **quick)
        yield finetune.Run(run.folder.absolute(), run.summary)
    finally:
        patch.undo()


def test_fit_leaves_what_the_command_leaves(run: finetune.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert json.loads(json.dumps(run.summary)) == summary_of(run.folder)
    assert repr(run) == f"Run(folder={run.folder!r})"
    assert run.folder.parts[-3] == "outputs"
    assert Path("outputs/latest").read_text().strip() == str(run.folder.relative_to(Path.cwd()))
    saved = finetune.load("latest")._saved
    assert saved.settings.optimizer.name == "adamw"
    assert saved.settings.optimizer.lr == 1e-3
    assert saved.settings.data.root == "pictures"
    monkeypatch.setenv("HOME", str(run.folder.parent))
    for folder in (run.folder, f"~/{run.folder.name}"):
        with pytest.raises(RequestError, match=r"^hydra\.run\.dir=.*: expected a new folder"):
            finetune.fit("pictures", weights="random", folder=folder, quiet=True)


def test_a_refused_fit_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RequestError, match=r"^data\.root=nowhere: expected a folder"):
        finetune.fit({"root": "nowhere"}, weights="random", quiet=True)
    assert not [*tmp_path.iterdir()]
    Path("mine").mkdir()
    with pytest.raises(RequestError):
        finetune.fit({"root": "nowhere"}, weights="random", folder="mine", quiet=True)
    assert Path("mine").is_dir()  # it was there before


def test_paths_images_and_arrays_are_the_same_pictures(run: finetune.Run, few_pictures: Path) -> None:
    model = run.load()
    assert model.classes == ("blue", "green", "red")
    path = few_pictures / "red" / "0.png"
    image = Image.open(path)
    found = model.predict([str(path), path, image, np.asarray(image)], top=4)
    assert len({str(one) for one in found}) == 1
    assert [name for name, _ in sorted(found[0].top)] == ["blue", "green", "output 3", "red"]
    assert sum(value for _, value in found[0].top) == pytest.approx(1)
    assert found[0].top[0] == (found[0].label, found[0].probability)
    first = finetune.Prediction(found[0].label, found[0].probability, found[0].top[:1], found[0].familiar)
    assert 0 <= first.familiar <= 1
    assert model.predict(image) == [first]
    assert model.predict([]) == []
    grey = np.asarray(image.convert("L"))
    assert model.predict(grey) == model.predict(Image.fromarray(grey).convert("RGB"))
    last = torch.from_numpy(np.array(image))
    first = last.movedim(2, 0)
    assert model.predict(last) == model.predict(first) == model.predict(first.numpy()) == model.predict(image)
    assert model.predict(torch.stack([first, first])) == model.predict([image, image])


def test_the_torch_module_gives_the_raw_answers(run: finetune.Run, few_pictures: Path) -> None:
    model = finetune.load(run, raw=True)
    path = few_pictures / "blue" / "1.png"
    network = model.to_torch()
    with torch.no_grad():
        p = network(model.preprocess(path)[None])[0].softmax(0)
    named = dict(model.predict(path, top=4)[0].top)
    assert [named[name] for name in model.classes] == pytest.approx(p[:3].tolist(), abs=5e-3)
    network.fc.weight.data.zero_()
    assert dict(model.predict(path, top=4)[0].top) == named  # it was a copy


def test_a_model_that_has_answered_travels_to_other_processes(run: finetune.Run, few_pictures: Path) -> None:
    model, paths = run.load(), sorted((few_pictures / "blue").iterdir())
    found = model.predict(paths)
    assert pickle.loads(pickle.dumps(model)).predict(paths) == found
    assert copy.deepcopy(model).predict(paths) == model.predict(paths) == found


def test_a_model_answers_several_threads_and_leaves_torch_as_it_was(
    run: finetune.Run, few_pictures: Path
) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    models, paths = [run.load(), run.load()], sorted((few_pictures / "blue").iterdir())
    assert torch.rand(1) == expected  # the program's random numbers are its own
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda model: model.predict(paths), models * 3))
    assert found == [found[0]] * 6
    assert torch.nn.Linear(2, 2)(torch.zeros(1, 2)).shape == (1, 2)


@pytest.mark.parametrize(
    "strange",
    [
        np.zeros((8, 8, 3)),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros(8, np.uint8),
        np.zeros((0, 8), np.uint8),
        3,
    ],
)
def test_what_is_no_picture_is_told(run: finetune.Run, strange: object) -> None:
    with pytest.raises(RequestError, match="expected"):
        run.load().predict([strange])
    with pytest.raises(RequestError, match="expected"):
        run.load().predict(strange)


def test_a_broken_file_is_told_with_its_path(run: finetune.Run, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(RequestError, match=r"broken\.png: expected an image; not an image, or of an"):
        run.load().predict(tmp_path / "broken.png")
    Image.effect_noise((64, 64), 50).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:900])
    with pytest.raises(RequestError, match=r"cut\.png: expected an image; .*truncated"):
        run.load().predict(Image.open(tmp_path / "cut.png"))
    with pytest.raises(RequestError, match=r"^top=0: expected 1 or more$"):
        run.load().predict([], top=0)


def test_knobs_are_those_of_the_command_line() -> None:
    settings = settings_from(
        {
            "data": {"source": "digits", "image_size": 32},
            "optimizer": "adamw",
            "optimizer.lr": 0.5,
            "trainer": {"clip_norm": 1.0},
            "experiment": "norms",
        }
    )
    assert (settings.data.source, settings.data.image_size) == ("digits", 32)
    assert (settings.optimizer.name, settings.optimizer.lr) == ("adamw", 0.5)
    assert settings.trainer.clip_norm == 1.0
    assert settings.freeze == ["all", "-@norm"]


def test_values_may_be_numpys_and_paths_hold_anything() -> None:
    settings = settings_from(
        {
            "optimizer": {"lr": np.float64(0.5), "momentum": np.float32(0.5)},
            "seed": np.int64(3),
            "head": np.int64(7),
            "freeze": ("all", "-layer4"),
            "head_hidden": (8,),
            "data": {"source": "folder", "root": Path("a${b}")},
            "phases": ({"epochs": np.int64(2), "freeze": ("all",)}, {"optimizer": {"lr": np.float64(0.5)}}),
        }
    )
    assert settings.phases[0] == {"epochs": 2, "freeze": ["all"]}
    assert (settings.optimizer.lr, settings.optimizer.momentum, settings.seed) == (0.5, 0.5, 3)
    assert settings.head == 7
    assert (settings.freeze, settings.head_hidden) == (["all", "-layer4"], [8])
    assert settings.data.root == "a${b}"


def test_what_is_no_folder_is_told() -> None:
    with pytest.raises(RequestError, match=r"^data=/nowhere: expected a folder of images, or one of cifar10"):
        finetune.fit("/nowhere")


@pytest.mark.parametrize(
    ("knobs", "line"),
    [
        ({"lr": 0.1}, "lr: there is no such setting; did you mean optimizer.lr?"),
        ({"optimizer": {"lrr": 0.1}}, "optimizer.lrr: there is no such setting"),
        ({"optimizer": "adam"}, "optimizer=adam: expected one of adamw, lbfgs, sgd"),
        ({"epochs": {"a": 1}}, "epochs={'a': 1}: expected a whole number"),
        ({"modle.x": 1}, "modle.x: there is no such setting"),
        ({"data.x.root": "y"}, "data.x.root: there is no such setting"),
        ({"optimizer": 3}, "optimizer=3: expected the name of a choice, or a dict of its settings"),
        ({"epochs": "many"}, "epochs=many: expected a whole number"),
    ],
)
def test_a_wrong_knob_is_told(knobs: dict[str, object], line: str) -> None:
    with pytest.raises(RequestError) as error:
        settings_from(knobs)
    assert str(error.value).startswith(line)


def test_sides_have_the_names_that_folders_may_have() -> None:
    given: Any = {"Train": ([], []), "validation": ([], []), "testing": ([], [])}
    source = settings_from({"data": data_settings(given)}).data.source
    assert source == "python:Sides"
    find: Any = SOURCES[source].find
    assert find.args[0].keys() == {"train", "val", "test"}


def test_networks_are_taken_out_of_what_says_how_they_run() -> None:
    net = torch.nn.Linear(2, 2)
    name = named("model", net)
    assert named("model", torch.compile(torch.nn.DataParallel(net))) == name
    assert type(MODELS[name]()) is torch.nn.Linear


def test_what_is_documented_is_there_and_type_checkers_see_nothing_else() -> None:
    assert (finetune.RequestError, finetune.RunError) == (errors.RequestError, errors.RunError)
    assert all(getattr(finetune, name) for name in finetune.__all__)
    top = ast.parse(Path(finetune.__file__).read_text()).body
    assert not [one for one in top if isinstance(one, ast.FunctionDef)]  # no __getattr__ of any name
    (checked,) = (one.body for one in top if isinstance(one, ast.If))
    lines = [one for one in (*top, *checked) if isinstance(one, ast.ImportFrom)]
    imported = {name.name for line in lines for name in line.names}
    assert imported - {"TYPE_CHECKING", "Any"} == {*finetune.__all__} - {"__version__"}


def test_importing_it_does_not_import_torch() -> None:
    code = "import sys, finetune; print(finetune.__version__, 'torch' in sys.modules)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed == f"{finetune.__version__} False\n"
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = finetune.nothing


@pytest.mark.slow
def test_the_documented_notebook_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    names: dict[str, object] = {}
    for cell in json.loads((CHECKOUT / "docs" / "notebook.ipynb").read_text("utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    printed = capsys.readouterr().out
    assert "test accuracy 0." in printed
    assert printed.endswith("ResNet (1, 10)\n")
