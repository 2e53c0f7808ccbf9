"""What `finetune export` writes computes what the model does, wherever it is loaded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from ended import Ended
from runs import QUICK, newest
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from finetune.saved import open_run

Command = Callable[..., Ended]
MODELS = ("resnet18", "mobilenet_v3_small", "timm/resnet18")


@pytest.fixture
def pictures(command: Command, few_pictures: Path) -> Path:
    """The few pictures, as `pictures` in the folder that commands run in."""
    shutil.copytree(few_pictures, "pictures")
    return Path("pictures")


def some(count: int, size: int = 32) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def expected(inputs: Tensor) -> Tensor:
    with torch.no_grad():
        return open_run("latest").network(inputs)


@pytest.mark.parametrize("model", MODELS)
def test_a_state_dict_loads_into_the_plain_model(command: Command, pictures: Path, model: str) -> None:
    assert command("train", *QUICK, f"model={model}").code == 0
    ended = command("export", "latest")
    assert ended.code == 0, ended.err
    name = model.removeprefix("timm/")
    own, line = (
        (timm.create_model(name, num_classes=3), f"timm.create_model({name!r}, num_classes=3)")
        if model.startswith("timm/")
        else (torchvision.models.get_model(name, num_classes=3), f"torchvision.models.{name}(num_classes=3)")
    )
    assert f"into {line}\n" in ended.out
    own.load_state_dict(load_file(newest() / "export" / "model.safetensors"))
    torch.testing.assert_close(own.eval()(some(2)), expected(some(2)), rtol=0, atol=1e-5)


def test_torchvisions_resnet_loads_into_timms_and_tells_what_it_is(command: Command, pictures: Path) -> None:
    assert command("train", *QUICK).code == 0
    assert command("export", "latest", "--out", "mine").code == 0
    assert {path.name for path in Path("mine").iterdir()} == {
        "model.safetensors",
        "labels.json",
        "preprocessing.json",
    }
    twin = timm.create_model("resnet18", num_classes=3)
    twin.load_state_dict(load_file("mine/model.safetensors"))
    torch.testing.assert_close(twin.eval()(some(2)), expected(some(2)), rtol=0, atol=1e-5)
    assert json.loads(Path("mine/labels.json").read_text()) == ["blue", "green", "red"]
    preprocessing = json.loads(Path("mine/preprocessing.json").read_text())
    assert preprocessing["crop_size"] == 32
    assert preprocessing["mean"] == [0.485, 0.456, 0.406]
    with safe_open("mine/model.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["classes"]) == ["blue", "green", "red"]
    again = command("train", *QUICK, "weights=mine/model.safetensors", "head=keep", "freeze=[all,-fc]")
    assert again.code == 0, again.err  # and is a model to start from


def test_with_hidden_layers_it_is_said_what_it_loads_into(command: Command, pictures: Path) -> None:
    assert command("train", *QUICK, "head_hidden=[8]").code == 0
    ended = command("export", "latest")
    assert ended.code == 0, ended.err
    layers = (
        "Linear(in_features=512, out_features=8, bias=True), ReLU(),"
        " Linear(in_features=8, out_features=3, bias=True)"
    )
    assert f"into torchvision.models.resnet18() with fc = Sequential({layers})\n" in ended.out
    own = torchvision.models.resnet18()
    own.fc = torch.nn.Sequential(torch.nn.Linear(512, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    own.load_state_dict(load_file(newest() / "export" / "model.safetensors"))


@pytest.mark.parametrize("model", MODELS)
def test_onnx_takes_batches_of_any_size(command: Command, pictures: Path, model: str) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    assert command("train", *QUICK, f"model={model}").code == 0
    ended = command("export", "latest", "--format", "onnx")
    assert ended.code == 0, ended.err
    assert ended.err == ""
    assert len(ended.out.splitlines()) == 2  # nothing of the exporter's own
    assert "on 16 pictures of pictures its outputs differ" in ended.out
    file = newest() / "export" / "model.onnx"
    assert b"/site-packages/" not in file.read_bytes()  # no paths of the machine that wrote it
    session = onnxruntime.InferenceSession(file)
    for count in (1, 7):
        (found,) = session.run(["logits"], {"pictures": some(count).numpy()})
        torch.testing.assert_close(torch.from_numpy(found), expected(some(count)), rtol=0, atol=1e-4)
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["labels"]) == ["blue", "green", "red"]
    assert json.loads(about["preprocessing"])["crop_size"] == 32


def test_a_program_is_loaded_without_the_model(command: Command, pictures: Path) -> None:
    assert command("train", *QUICK).code == 0
    ended = command("export", "latest", "--format", "torch", "--out", "mine.pt2")
    assert ended.code == 0, ended.err
    about = {"labels.json": "", "preprocessing.json": ""}
    program = torch.export.load("mine.pt2", extra_files=about)
    for count in (1, 7):
        torch.testing.assert_close(program.module()(some(count)), expected(some(count)), rtol=0, atol=1e-5)
    assert json.loads(about["labels.json"]) == ["blue", "green", "red"]
    assert json.loads(about["preprocessing.json"])["resize_size"] == 37
    (stored,) = program.example_inputs[0]
    assert not stored.any()  # no picture of the user's travels along


def test_what_differs_is_not_written(
    command: Command, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command("train", *QUICK).code == 0
    monkeypatch.setattr("finetune.inference.export.TOLERANCE", -1.0)
    ended = command("export", "latest", "--format", "torch")
    assert ended.code == 1
    assert "model.pt2: not written: its outputs differ" in ended.err
    assert not list((newest() / "export").iterdir())


def test_where_the_pictures_are_gone_the_check_says_so(command: Command, pictures: Path) -> None:
    assert command("train", *QUICK).code == 0
    shutil.rmtree(pictures)
    ended = command("export", "latest", "--format", "torch")
    assert ended.code == 0, ended.err
    assert "note     the run's pictures are not there (data.root=pictures: expected a folder" in ended.out
    assert "on 16 random inputs" in ended.out


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--format", "tflite"), "--format tflite: expected safetensors, onnx, torch"),
        (("--softmax",), "--softmax: expected --format onnx or torch with it"),
        (
            ("--format", "torch", "--out", "a.onnx"),
            "--out a.onnx: expected a folder or a file ending in .pt2",
        ),
        (("--format", "onnx"), "pip install 'finetune-toolkit[onnx]'"),
    ],
)
def test_a_wrong_request_is_told(
    command: Command,
    pictures: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    line: str,
) -> None:
    assert command("train", *QUICK, "epochs=1").code == 0
    monkeypatch.setattr("finetune.inference.export.find_spec", lambda name: None)
    ended = command("export", "latest", *arguments)
    assert ended.code == 2
    assert line in ended.err
    assert ended.err.count("\n") == 1
