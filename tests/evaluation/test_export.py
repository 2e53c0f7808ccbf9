"""What `finetune export` writes computes what the model does, wherever it is loaded."""

from __future__ import annotations

import json
import re
import runpy
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from finetune.data.images import decode
from finetune.evaluation.formats import FORMATS
from finetune.runs.open import open_run
from support.ended import Ended
from support.runs import CHECKOUT, QUICK, summary_of

Command = Callable[..., Ended]
Finished = Callable[..., Path]
MORE = ("resnet18", "mobilenet_v3_small", "timm/resnet18")
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in MORE]


@pytest.fixture
def run(finished_run: Finished, command: Command, few_pictures: Path) -> Path:
    """A copy of a run of a small model and of its pictures, in the folder that commands run in."""
    Path("pictures").symlink_to(few_pictures)
    return Path(shutil.copytree(finished_run(), "run"))


@pytest.fixture
def resnet(finished_run: Finished, command: Command, few_pictures: Path) -> Path:
    """Likewise of torchvision's resnet18."""
    Path("pictures").symlink_to(few_pictures)
    return Path(shutil.copytree(finished_run("model=resnet18"), "run"))


def some(count: int, size: int = 32) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def expected(run: Path, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        return open_run(str(run)).network(inputs)


@pytest.mark.parametrize("model", ["timm/test_resnet", *SLOW])
def test_a_state_dict_loads_into_the_plain_model(
    finished_run: Finished, command: Command, model: str
) -> None:
    run = finished_run(f"model={model}")
    ended = command("export", str(run), "--out", "mine")
    assert ended.code == 0, ended.err
    name = model.removeprefix("timm/")
    if model.startswith("timm/"):
        own, line = timm.create_model(name, num_classes=3), f"timm.create_model({name!r}, num_classes=3)"
    else:
        own = torchvision.models.get_model(name, num_classes=3)
        line = f"torchvision.models.{name}(num_classes=3)"
    assert f"into {line}\n" in ended.out
    own.load_state_dict(load_file("mine/model.safetensors"))
    torch.testing.assert_close(own.eval()(some(2)), expected(run, some(2)), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_torchvisions_resnet_loads_into_timms(resnet: Path, command: Command) -> None:
    assert command("export", "run").code == 0
    twin = timm.create_model("resnet18", num_classes=3)
    twin.load_state_dict(load_file("run/export/model.safetensors"))
    torch.testing.assert_close(twin.eval()(some(2)), expected(resnet, some(2)), rtol=1e-5, atol=1e-5)


def test_a_state_dict_has_its_labels_and_preprocessing_with_it(run: Path, command: Command) -> None:
    assert command("export", "run", "--out", "mine").code == 0
    names = {path.name for path in Path("mine").iterdir()}
    assert names == {"model.safetensors", "labels.json", "preprocessing.json", "predict.py"}
    assert json.loads(Path("mine/labels.json").read_text()) == ["blue", "green", "red"]
    preprocessing = json.loads(Path("mine/preprocessing.json").read_text())
    assert preprocessing["crop_size"] == 32
    assert preprocessing["mean"] == [0.5, 0.5, 0.5]
    again = command("train", *QUICK, "weights=mine/model.safetensors", "epochs=1")
    assert again.code == 0, again.err  # and is one to start from
    Path("mine/labels.json").write_text("another's")
    assert command("export", "run", "--out", "mine/it.SafeTensors").code == 0  # several in one folder
    assert json.loads(Path("mine/it.labels.json").read_text()) == ["blue", "green", "red"]
    assert Path("mine/it.predict.py").exists()
    assert Path("mine/labels.json").read_text() == "another's"
    with safe_open("mine/model.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["classes"]) == ["blue", "green", "red"]


@pytest.mark.slow
def test_with_hidden_layers_it_is_said_what_it_loads_into(finished_run: Finished, command: Command) -> None:
    ended = command("export", str(finished_run("head_hidden=[8]")), "--out", "mine")
    assert ended.code == 0, ended.err
    layers = (
        "Linear(in_features=96, out_features=8, bias=True), ReLU(),"
        " Linear(in_features=8, out_features=3, bias=True)"
    )
    assert f"into timm.create_model('test_resnet') with fc = Sequential({layers})\n" in ended.out
    own = timm.create_model("test_resnet")
    own.fc = torch.nn.Sequential(torch.nn.Linear(96, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    own.load_state_dict(load_file("mine/model.safetensors"))


@pytest.mark.slow
@pytest.mark.parametrize("hidden", [(), pytest.param(("head_hidden=[8]",), marks=pytest.mark.slow)])
def test_a_head_that_reads_several_stages_has_its_loader_beside_it(
    finished_run: Finished, command: Command, hidden: tuple[str, ...]
) -> None:
    run = finished_run("model=resnet18", "head_features=[layer2,layer3]", *hidden)
    ended = command("export", str(run), "--out", "mine/it.safetensors")
    assert ended.code == 0, ended.err
    outputs = "" if hidden else "num_classes=3"
    plain = f"not into torchvision.models.resnet18({outputs}), whose head does not read layer2, layer3\n"
    assert f"into what load() in predict.py beside it makes, {plain}" in ended.out
    assert {path.suffix for path in Path("mine").iterdir()} == {".safetensors", ".py", ".json"}
    assert "import finetune" not in (text := Path("mine/it.predict.py").read_text())
    assert "from finetune" not in text
    network = runpy.run_path("mine/it.predict.py")["load"]()
    torch.testing.assert_close(network(some(2)), expected(run, some(2)), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["resnet18 head_features=all", "timm/vit_tiny_patch16_224"])
def test_onnx_takes_batches_of_any_size(finished_run: Finished, command: Command, model: str) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    size = 224 if "vit" in model else 32  # a vision transformer's own
    run = finished_run(*f"model={model} data.image_size={size}".split())
    Path("pictures").symlink_to(run.parent / "pictures")
    ended = command("export", str(run), "--format", "onnx", "--out", "mine.onnx")
    assert ended.code == 0, ended.err
    assert ended.err == ""
    assert len(ended.out.splitlines()) == 2  # nothing of the exporter's own
    assert "on 16 images of pictures its outputs differ" in ended.out
    assert b"/site-packages/" not in Path("mine.onnx").read_bytes()  # no paths of the machine that wrote it
    session = onnxruntime.InferenceSession("mine.onnx")
    for count in (1, 7):
        inputs = some(count, size)
        (found,) = session.run(["logits"], {"pictures": inputs.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), expected(run, inputs), rtol=0, atol=1e-4)
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["labels"]) == ["blue", "green", "red"]
    assert json.loads(about["preprocessing"])["crop_size"] == size


@pytest.mark.slow
def test_softmax_gives_calibrated_probabilities_in_onnx(run: Path, command: Command) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    ended = command("export", "run", "--format", "onnx", "--softmax")
    assert (ended.code, ended.err) == (0, "")
    temperature = summary_of(run)["calibration"]["temperature"]
    assert f"divided by the temperature {temperature:.4g}\n" in ended.out
    session = onnxruntime.InferenceSession("run/export/model.onnx")
    for count in (1, 7):
        (found,) = session.run(["probabilities"], {"pictures": some(count).numpy()})
        wanted = (expected(run, some(count)) / temperature).softmax(1)
        torch.testing.assert_close(torch.from_numpy(found), wanted, rtol=1e-5, atol=1e-5)
    assert json.loads(session.get_modelmeta().custom_metadata_map["labels"]) == ["blue", "green", "red"]


@pytest.mark.slow
def test_a_program_is_loaded_without_the_model(run: Path, command: Command) -> None:
    ended = command("export", "run", "--format", "torch", "--out", "mine.pt2")
    assert ended.code == 0, ended.err
    about = {"labels.json": "", "preprocessing.json": ""}
    program = torch.export.load("mine.pt2", extra_files=about)
    for count in (1, 7):
        found = program.module()(some(count))
        torch.testing.assert_close(found, expected(run, some(count)), rtol=1e-5, atol=1e-5)
    assert json.loads(about["labels.json"]) == ["blue", "green", "red"]
    assert json.loads(about["preprocessing.json"])["resize_size"] == 34
    (stored,) = program.example_inputs[0]
    assert not stored.any()  # no picture of the user's travels along


@pytest.mark.slow
def test_a_script_of_somebodys_own_is_not_written_over(run: Path, command: Command) -> None:
    Path("predict.py").write_text("print('my own')")
    ended = command("export", str(run), "--out", ".")
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "predict.py: expected none but one of finetune's" in ended.err
    assert Path("predict.py").read_text() == "print('my own')"
    assert not Path("model.safetensors").exists()
    for _ in range(2):  # its own it does
        assert command("export", str(run), "--out", "mine").code == 0


def test_what_differs_is_not_written(run: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune.evaluation.export.TOLERANCE", -1.0)
    ended = command("export", "run", "--format", "torch")
    assert ended.code == 1
    assert "model.pt2: not written: its outputs differ" in ended.err
    assert not list(Path("run/export").iterdir())


@pytest.mark.slow
def test_softmax_gives_calibrated_probabilities_checked_on_random_inputs_without_pictures(
    run: Path, command: Command
) -> None:
    Path("pictures").unlink()
    ended = command("export", "run", "--format", "torch", "--softmax")
    assert ended.code == 0, ended.err
    temperature = summary_of(run)["calibration"]["temperature"]
    assert f"divided by the temperature {temperature:.4g}\n" in ended.out
    wanted = (expected(run, some(7)) / temperature).softmax(1)
    found = torch.export.load("run/export/model.pt2").module()(some(7))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert "note     the run's images are not there (data.root=pictures: expected a folder" in ended.out
    assert "on 16 random inputs" in ended.out


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--format", "tflite"), f"--format tflite: expected {', '.join(FORMATS)}"),
        (("--softmax",), "--softmax: expected --format onnx or torch with it"),
        (("--format", "torch", "--out", "a.onnx"), "--out a.onnx: expected a folder or a file"),
        (("--format", "onnx"), "pip install 'finetune-toolkit[onnx]'"),
    ],
)
def test_a_wrong_request_is_told(
    run: Path, command: Command, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], line: str
) -> None:
    monkeypatch.setattr("finetune.evaluation.export.find_spec", lambda name: None)
    ended = command("export", "run", *arguments)
    assert ended.code == 2
    assert line in ended.err
    assert ended.err.count("\n") == 1


def test_softmax_is_for_classes_that_exclude_each_other(finished_run: Finished, command: Command) -> None:
    ended = command("export", str(finished_run("loss=bce", "epochs=1")), "--format", "torch", "--softmax")
    assert ended.code == 2
    assert "--softmax: expected a run with loss=cross_entropy" in ended.err


@pytest.mark.slow
def test_the_snippets_of_the_docs_run(resnet: Path, command: Command) -> None:
    pytest.importorskip("onnxruntime")
    assert command("export", "run").code == 0
    text = (CHECKOUT / "docs" / "export.md").read_text(encoding="utf-8")
    (snippet,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    mine = snippet.replace("outputs/2026-11-21/22-10-03", "run").replace("num_classes=10", "num_classes=3")
    exec(mine, {})
    assert command("export", "run", "--format", "onnx").code == 0  # its script takes the other's place
    script = runpy.run_path("run/export/predict.py")
    best = script["probabilities"]("pictures/red/0.png").argmax()
    assert script["CLASSES"][best] == answer(resnet, Path("pictures/red/0.png"))


def answer(run: Path, picture: Path) -> str:
    saved = open_run(str(run))
    how = saved.preprocessing
    pixels = decode(picture, how)
    return saved.classes[int(saved.network(how.normalise(pixels[None])).argmax())]
