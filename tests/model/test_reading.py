"""State dicts from files of every kind and from runs' folders; what is none is refused and never executed."""

import argparse
import copy
import gzip
import pickle
import zipfile
from pathlib import Path, PureWindowsPath

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from finetune.errors import RequestError
from finetune.model.build import build_model
from finetune.model.freeze import freeze
from finetune.model.hashing import digest
from finetune.model.head import replace_head
from finetune.model.parts import State
from finetune.model.statedict import fit_state_dict, read_state_dict, sealed_text
from finetune.model.weights import load_weights
from finetune.training.checkpoint import save_frozen
from support.privilege import without_privilege


def state_of(model: nn.Module) -> State:
    return dict(model.state_dict())


def test_a_file_of_torch_save(trained, tmp_path: Path):
    torch.save(trained("squeezenet1_1").state_dict(), tmp_path / "w.pth")
    state, text = read_state_dict(tmp_path / "w.pth")
    assert digest(state) == digest(state_of(trained("squeezenet1_1")))
    assert text == {}


def test_an_old_file_that_is_no_zip_archive(trained, tmp_path: Path):
    torch.save(state_of(trained("squeezenet1_1")), tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    assert digest(read_state_dict(tmp_path / "w.pth")[0]) == digest(state_of(trained("squeezenet1_1")))


def test_safetensors_with_their_text(trained, tmp_path: Path):
    save_file(state_of(trained("squeezenet1_1")), tmp_path / "w.safetensors", metadata={"mean": "[0, 0, 0]"})
    state, text = read_state_dict(tmp_path / "w.safetensors")
    assert digest(state) == digest(state_of(trained("squeezenet1_1")))
    assert text == {"mean": "[0, 0, 0]"}


class Runs:
    """A pickle of this would, if anything of it were executed, leave a file behind."""

    def __init__(self, left: Path) -> None:
        self.left = left

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.left,)


def test_a_sealed_file_is_refused_after_any_change(tmp_path: Path):
    state, file = {"a": torch.arange(6.0), "b": torch.ones(2, 3)}, tmp_path / "w.safetensors"
    save_file(state, file, sealed_text(state, {"classes": '["cat", "dog"]'}))
    assert read_state_dict(file)[1] == {"classes": '["cat", "dog"]'}
    whole = file.read_bytes()
    for old, new in ((b"cat", b"cot"), (b'"a":', b'"z":'), (whole[-4:], b"\0\0\0\0")):
        file.write_bytes(whole.replace(old, new))
        with pytest.raises(RequestError, match=r"w\.safetensors: expected the file as it was exported"):
            read_state_dict(file)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path: Path, legacy: bool):
    left = tmp_path / "left"
    pickle.loads(pickle.dumps(Runs(left)))
    assert left.exists()  # it is armed
    left.unlink()
    torch.save({"x": Runs(left)}, tmp_path / "w.pth", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(RequestError, match=r"weights=.*w\.pth: .* can run code"):
        read_state_dict(tmp_path / "w.pth")
    (tmp_path / "bare.pth").write_bytes(pickle.dumps(Runs(left)))
    with pytest.raises(RequestError, match=r"weights=.*bare\.pth: "):
        read_state_dict(tmp_path / "bare.pth")
    assert not left.exists()


@pytest.mark.parametrize("legacy", [False, True])
def test_an_object_is_named_with_the_way_out(tmp_path: Path, legacy: bool):
    torch.save({"model": nn.Linear(2, 2)}, tmp_path / "w.pth", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(
        RequestError,
        match=r"weights=.*w\.pth: holds torch\.nn\.modules\.linear\.Linear, .*weights_only=False",
    ):
        read_state_dict(tmp_path / "w.pth")


@pytest.mark.parametrize("name", ["builtins eval", "os system", "posix system", "builtins getattr"])
def test_what_would_run_a_command_is_named_and_does_not_run(tmp_path: Path, name: str):
    left = tmp_path / "left"
    argument = f"__import__('os').system('touch {left}')" if "eval" in name else f"touch {left}"
    called = f"c{name.replace(' ', chr(10))}\nX".encode() + len(argument).to_bytes(4, "little")
    bare = b"\x80\x02" + called
    torch.save({"a": torch.ones(2)}, tmp_path / "w.pth")
    with zipfile.ZipFile(tmp_path / "w.pth") as whole, zipfile.ZipFile(tmp_path / "bad.pth", "w") as bad:
        for entry in whole.namelist():
            pickled = entry.endswith("data.pkl")
            bad.writestr(entry, bare + argument.encode() + b"\x85R." if pickled else whole.read(entry))
    with pytest.raises(RequestError, match=rf"bad\.pth: holds \S*{name.split()[1]}, whose loading"):
        read_state_dict(tmp_path / "bad.pth")
    assert not left.exists()


def test_a_training_scripts_plain_data_does_no_harm(tmp_path: Path):
    args = argparse.Namespace(lr=np.float32(0.1), out=tmp_path, data=PureWindowsPath("C:/data"))
    content = {
        "state_dict": {"a": torch.ones(2)},
        "args": args,
        "best": np.float64(0.7),
        "step": np.int64(3),
        "history": np.arange(3.0),
        "optimizer": {"state": {0: {"momentum": torch.ones(3)}}},
    }
    content["itself"] = content
    torch.save(content, tmp_path / "w.pth")
    newer = tmp_path / "newer.pth"  # as of another version of Python and of NumPy
    with zipfile.ZipFile(tmp_path / "w.pth") as whole, zipfile.ZipFile(newer, "w") as other:
        for entry in whole.namelist():
            data = whole.read(entry).replace(b"cpathlib\n", b"cpathlib._local\n")
            other.writestr(entry, data.replace(b"numpy._core", b"numpy.core"))
    for file in (tmp_path / "w.pth", newer):
        assert read_state_dict(file)[0].keys() == {"state_dict:a", "optimizer:state:0:momentum"}


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("part", [0, 1, 7, 40, 0.01, 0.5, 0.999])
def test_a_truncated_file_is_refused_in_one_line(tmp_path: Path, suffix: str, part: float):
    whole, cut = tmp_path / f"whole.{suffix}", tmp_path / f"cut.{suffix}"
    small = {"a.weight": torch.randn(50, 50), "a.bias": torch.randn(50)}
    save_file(small, whole) if suffix == "safetensors" else torch.save(small, whole)
    data = whole.read_bytes()
    cut.write_bytes(data[: part if isinstance(part, int) else int(len(data) * part)])
    with pytest.raises(RequestError, match=rf"weights=.*cut\.{suffix}: ") as refused:
        read_state_dict(cut)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "content",
    [
        b"<html>404</html>",
        b"\x00" * 64,
        b"PK\x03\x04 not an archive",
        b"\xff\xff\xff\xff\xff\xff\xff\xff{}",
        b"\x08\x00\x00\x00\x00\x00\x00\x00[1, 2]  ",
        pickle.dumps([1, 2, 3]),
        pickle.dumps({"a": 1}, protocol=0),
        b"\x80\x04\x95",
        b"\x80\x02}q\x00X\x05\x00\x00\x00abcdeq\x01h\x09s.",
    ],
)
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_file_of_something_else_is_refused_in_one_line(tmp_path: Path, content: bytes, suffix: str):
    (tmp_path / f"w.{suffix}").write_bytes(content)
    with pytest.raises(RequestError, match=rf"weights=.*w\.{suffix}: ") as refused:
        read_state_dict(tmp_path / f"w.{suffix}")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("content", "keys"),
    [
        ({}, ""),
        ([torch.zeros(2)], ""),
        ({"state_dict": {"a": 1}}, "; its keys are state_dict"),
        ({"epoch": 1, "args": {"lr": 0.1}}, "; its keys are epoch, args"),
    ],
)
def test_a_file_without_a_state_dict_is_refused(tmp_path: Path, content: object, keys: str):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(
        RequestError, match=r"weights=.*w\.pth: expected a state dict, .* with tensors" + f"{keys}$"
    ):
        read_state_dict(tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("content", "begins"),
    [
        (b"<!DOCTYPE html><html>404</html>", "it begins with b'<!DOCTYPE html>"),
        (b"version https://git-lfs.github.com/spec/v1\n", "it begins with b'version https://git-lfs"),
        (gzip.compress(b"weights", mtime=0), r"it begins with b'\\x1f\\x8b"),
        (b"P", "it begins with b'P'"),
        (b"", "it is empty"),
        (pickle.dumps({"a": argparse.Namespace()}), r"it begins with b'\\x80\\x04"),
        (b"\x80\x02}q\x00X\x05\x00\x00\x00abcdeq\x01h\x09s.", r"it begins with b'\\x80\\x02}"),
    ],
)
def test_what_torch_did_not_write_is_told_by_its_beginning(tmp_path: Path, content: bytes, begins: str):
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(
        RequestError, match=rf"w\.pth: is no file of weights, or damaged: {begins}"
    ) as refused:
        read_state_dict(tmp_path / "w.pth")
    assert "code" not in str(refused.value)


def test_a_torchscript_program_is_called_one(tmp_path: Path):
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), tmp_path / "w.pt")
    with pytest.raises(RequestError, match=r"w\.pt: is a TorchScript program; expected .* state_dict\(\)$"):
        read_state_dict(tmp_path / "w.pt")


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors", "shut/w.pth"])
def test_what_may_not_be_read_is_told_so(tmp_path: Path, name: str):
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.touch()
    shut = file if file.parent == tmp_path else file.parent
    shut.chmod(0)
    with (
        without_privilege(),
        pytest.raises(RequestError, match=rf"{name}: cannot be read: Permission denied"),
    ):
        load_weights(nn.Identity(), "resnet18", str(file))
    shut.chmod(0o700)


def test_a_name_that_no_file_can_have(tmp_path: Path):
    with pytest.raises(RequestError, match="x: cannot be read: File name too long"):
        load_weights(nn.Identity(), "resnet18", "x" * 300)


def test_one_flipped_byte_of_a_tensor_is_noticed(tmp_path: Path):
    torch.save({"a": torch.full((100,), 0.5)}, tmp_path / "w.pth")
    whole = (tmp_path / "w.pth").read_bytes()
    (tmp_path / "w.pth").write_bytes(whole.replace(b"\0\0\0\x3f", b"\1\0\0\x3f", 1))
    with pytest.raises(RequestError, match=r"w\.pth: is damaged, .*w/data/0 in it is not what was written"):
        read_state_dict(tmp_path / "w.pth")


def test_a_pickle_of_another_kind_is_not_called_unsafe(tmp_path: Path):
    torch.save({"a": torch.ones(2)}, tmp_path / "w.pth", pickle_protocol=4)
    with pytest.raises(RequestError, match=r"w\.pth: is damaged, or .*Unsupported operand") as refused:
        read_state_dict(tmp_path / "w.pth")
    assert "code" not in str(refused.value)


# --- a run's folder


def write_run(folder: Path, model: nn.Module, patterns: list[str], head: str) -> None:
    """The two files of a run that hold its network, as a run writes them."""
    frozen = freeze(model, patterns, head, torch.zeros(1, 3, 224, 224))
    tensors = frozen.tensors(model)
    (folder / "checkpoints").mkdir(parents=True)
    save_frozen(folder / "checkpoints" / "frozen.safetensors", tensors, {"crop_size": "96"})
    moving = {key: value for key, value in model.state_dict().items() if key not in tensors}
    torch.save({"state_dict": moving, "frozen_sha256": digest(tensors)}, folder / "checkpoints" / "best.ckpt")


@pytest.mark.parametrize("patterns", [["all"], ["none"], ["all", "-features.12"]], ids=str)
@pytest.mark.parametrize("inside", ["", "checkpoints/best.ckpt"])
def test_a_runs_folder_or_its_checkpoint_gives_the_whole_network(
    trained, tmp_path: Path, patterns: list[str], inside: str
):
    model = copy.deepcopy(trained("squeezenet1_1", 10))
    write_run(tmp_path / "run", model, patterns, "classifier.1")
    state, text = read_state_dict(tmp_path / "run" / inside)
    assert digest(state) == digest(model.state_dict())
    assert text == {"crop_size": "96"}


@pytest.mark.slow
def test_a_runs_record_of_constants_that_a_library_does_not_store(tmp_path: Path):
    model = build_model("timm/swin_tiny_patch4_window7_224")
    replace_head(model, "head.fc", 10)
    write_run(tmp_path / "run", model, ["all"], "head.fc")
    state, _ = read_state_dict(tmp_path / "run")
    assert state.keys() - model.state_dict().keys()  # relative_position_index and the like
    other = build_model("timm/swin_tiny_patch4_window7_224")
    fit_state_dict(other, state, "run", keep_head=True)
    assert digest(other.state_dict()) == digest(model.state_dict())


def test_a_changed_record_of_what_was_frozen_is_refused(trained, tmp_path: Path):
    write_run(tmp_path / "run", copy.deepcopy(trained("squeezenet1_1", 10)), ["all"], "classifier.1")
    beside = tmp_path / "run" / "checkpoints" / "frozen.safetensors"
    data = bytearray(beside.read_bytes())
    data[-1] ^= 1
    beside.write_bytes(data)
    with pytest.raises(RequestError, match=r"frozen\.safetensors: .* damaged or another run's"):
        read_state_dict(tmp_path / "run")


@pytest.mark.parametrize("told", ["about", "classes"])  # "classes": by a run of an older version
def test_other_classes_in_the_record_of_what_was_frozen_are_refused(trained, tmp_path: Path, told: str):
    write_run(tmp_path / "run", copy.deepcopy(trained("squeezenet1_1", 10)), ["all"], "classifier.1")
    file, beside = (tmp_path / "run" / "checkpoints" / name for name in ("best.ckpt", "frozen.safetensors"))
    about = {"crop_size": "96", "classes": '["a", "b"]'}
    origin = {"about": about} if told == "about" else {"classes": ["a", "b"]}
    torch.save({**torch.load(file, weights_only=True), "origin": origin}, file)
    save_frozen(beside, load_file(beside), about)
    assert read_state_dict(tmp_path / "run")[1] == about
    for changed in ({"classes": '["b", "a"]'}, {"crop_size": "64"} if told == "about" else {"classes": ""}):
        save_frozen(beside, load_file(beside), {**about, **changed})
        with pytest.raises(RequestError, match=r"frozen\.safetensors: .* damaged or another run's"):
            read_state_dict(tmp_path / "run")


def test_a_run_without_its_files_is_refused(trained, tmp_path: Path):
    with pytest.raises(
        RequestError, match=r"weights=.*: expected a run's folder, with checkpoints/best\.ckpt in it"
    ):
        read_state_dict(tmp_path)
    write_run(tmp_path / "run", copy.deepcopy(trained("squeezenet1_1", 10)), ["all"], "classifier.1")
    (tmp_path / "run" / "checkpoints" / "frozen.safetensors").unlink()
    with pytest.raises(RequestError, match=r"frozen\.safetensors: expected what was frozen in that run"):
        read_state_dict(tmp_path / "run")
