"""State dicts: read from files of every kind, brought to a model's own names, and fitted into it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from finetune import sealed
from finetune.atomic import sha256_of
from finetune.errors import RequestError, brief, counted
from finetune.model.hashing import digest
from finetune.model.head import find_head, replace_head
from finetune.model.parts import State, taken, tensors_in

SHA256 = "finetune_sha256"  # in the text of an exported file
COUNTER = "num_batches_tracked"
BEGINNINGS = (b"PK\x03\x04", b"\x80\x02\x8a\nl\xfc\x9cF")  # of torch.save's files: now, and before 1.6
# In what torch says of an object that it does not load.
UNSAFE = re.compile(r"GLOBAL (\S+)")
# What torchvision's own loaders rename in the older of its files.
RENAMED = (
    (re.compile(r"(denselayer\d+\.(?:norm|conv))\.(?=[12]\.)"), r"\1"),
    (re.compile(r"(encoder_layer_\d+\.mlp)\.linear_1\."), r"\1.0."),
    (re.compile(r"(encoder_layer_\d+\.mlp)\.linear_2\."), r"\1.3."),
)


def read_state_dict(path: Path) -> tuple[State, dict[str, str]]:
    """A file's tensors and the text stored with them: of .safetensors, of torch.save or of a run's folder.

    Tensors in dicts have names as `parts` gives them. A run's text has the SHA-256 of its `settings`, `data`.
    RequestError: the file is damaged, holds no tensors, or other objects, which are never loaded.
    """
    file = path / "checkpoints" / "best.ckpt" if path.is_dir() else path
    named = f"weights={path}" if file == path else file
    try:
        if not file.exists():
            raise RequestError(f"weights={path}: expected a run's folder, with checkpoints/best.ckpt in it")
        file.open("rb").close()  # or the system's reason, which safetensors does not give
        if file.suffix == ".safetensors":
            return _safetensors(file)
        loaded = sealed.read_checkpoint(file)
        if isinstance(loaded, dict) and "frozen_sha256" in loaded:
            return _run(loaded, file)
        state = tensors_in(loaded)
    except RequestError:
        raise
    except PermissionError as error:
        raise RequestError(f"{named}: cannot be read: {error.strerror}") from None
    except Exception as error:  # there is no telling what foreign bytes make an unpickler raise
        raise RequestError(f"{named}: {_why_unread(file, error)}") from None
    if not state:
        keys = f"; its keys are {brief([*map(str, loaded)])}" if isinstance(loaded, dict) and loaded else ""
        raise RequestError(f"{named}: expected a state dict, that is names with tensors{keys}")
    return state, {}


def _why_unread(file: Path, error: Exception) -> str:
    """What is wrong with a file that torch or safetensors refused with that error."""
    with file.open("rb") as opened:
        start = opened.read(24)
    if file.suffix != ".safetensors" and not start.startswith(BEGINNINGS):
        begins = f"it begins with {start!r}" if start else "it is empty"
        return f"is no file of weights, or damaged: {begins}; expected what torch.save or safetensors writes"
    if found := UNSAFE.search(str(error)):
        return (
            f"holds {brief([found[1]])}, whose loading can run code; expected tensors and plain data. Where"
            " you trust the file, torch.save the state_dict() of what torch.load(…, weights_only=False) gives"
        )
    if "TorchScript" in str(error):
        return "is a TorchScript program; expected what torch.save writes of its state_dict()"
    line = (str(error).rpartition("error:")[2].strip().splitlines() or [""])[0][:100]
    return f"is damaged, or no file of weights; expected a state dict ({type(error).__name__}: {line})"


def fit_state_dict(
    model: nn.Module, state: State, requested: str, keep_head: bool
) -> tuple[State, list[str]]:
    """Load `state` into the model in place; with `keep_head` a head of another size replaces the model's.

    Returns: the tensors that were loaded, under the model's names, and notes on what was left out.
    RequestError: the backbone's tensors are not just the model's, or the head to be kept is not there.
    """
    head, own = find_head(model), model.state_dict()
    mine = _below(own, head)
    # Old files lack the counters of batches, which nothing here reads.
    backbone = {key: value for key, value in _without(own, mine).items() if not key.endswith(COUNTER)}
    for pattern, replacement in RENAMED:
        state = {pattern.sub(replacement, key): value for key, value in state.items()}
    state, notes = taken(state, model, backbone, requested)
    theirs = _below(state, head)
    _refuse_numberless(state, own, f"weights={requested}")
    _refuse_misfits(_without(state, theirs), _without(own, mine), requested)
    if _shapes(theirs) != _shapes(mine):
        size = theirs[f"{head}.weight"].shape[:1] if f"{head}.weight" in theirs else None
        if not keep_head:
            state = _without(state, theirs)
            told = "has layers of its own and was left out"
            if size:
                way = f"head=keep keeps it, -{head} in freeze trains it"
                told = f"has {counted(size[0], 'output')} and was left out ({way})"
            notes.append(f"the head in the weights {told}" if theirs else "the weights have no head")
        elif size and size[0]:
            replace_head(model, head, size[0])
            own = model.state_dict()
    if keep_head and _shapes(theirs) != _shapes(_below(own, head)):
        raise RequestError(
            f"head=keep: expected weights whose head is the single layer {head}; weights={requested}"
            f" have {brief([f'{key} {list(value.shape)}' for key, value in theirs.items()]) or 'none'}"
        )
    # The model's own dict carries the versions that some modules ask for; what the file lacks stays as it is.
    own.update(state)
    model.load_state_dict(own)
    loaded = {key: value for key, value in model.state_dict().items() if key in state}
    if broken := [key for key, value in loaded.items() if not value.isfinite().all()]:
        raise RequestError(
            f"weights={requested}: expected finite numbers, not NaN or infinity in {brief(broken)}"
        )
    return loaded, notes


def sealed_text(state: State, text: Mapping[str, str]) -> dict[str, str]:
    """The text to store with a state dict, and in it the SHA-256 of both."""
    return {**text, SHA256: sha256_of({**text, "tensors": digest(state)})}


def _safetensors(path: Path) -> tuple[State, dict[str, str]]:
    with safe_open(path, framework="pt") as file:
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
        text = file.metadata() or {}
    sha256 = text.pop(SHA256, None)  # other programs' files have none
    if sha256 is not None and sha256 != sealed_text(state, text)[SHA256]:
        raise RequestError(
            f"weights={path}: expected the file as it was exported; it has been changed since (SHA-256)"
        )
    return state, text


def _run(checkpoint: dict[str, Any], file: Path) -> tuple[State, dict[str, str]]:
    """What trained, from a run's checkpoint, and what was frozen, from the file beside it."""
    frozen, text = read_frozen(file.with_name("frozen.safetensors"), checkpoint)
    known = {key: value for key, value in checkpoint.get("origin", {}).items() if key in ("data", "settings")}
    _refuse_numberless(checkpoint["state_dict"], {}, f"{file}")
    return {**frozen, **checkpoint["state_dict"]}, {**text, **known}


def read_frozen(file: Path, checkpoint: Mapping[str, Any]) -> tuple[State, dict[str, str]]:
    """What was frozen in a checkpoint's run, and the text stored with it; RequestError for another run's."""
    refused = RequestError(f"{file}: expected what was frozen in that run; it is damaged or another run's")
    try:
        frozen, text = _safetensors(file)
    except (OSError, SafetensorError, RequestError):
        raise refused from None
    origin = checkpoint.get("origin", {})
    # Runs of older versions tell the classes, but not how images are prepared; the oldest neither.
    about = origin.get("about") or {"classes": json.dumps(origin["classes"])} if origin else {}
    if digest(frozen) != checkpoint["frozen_sha256"] or not about.items() <= text.items():
        raise refused
    return frozen, text


def _refuse_numberless(state: State, own: State, named: str) -> None:
    """Raise RequestError for tensors that would fill the model's in silence only, or a new head without end.

    The last are those with fewer numbers than places, as one repeated a billion times.
    """
    for key, value in state.items():
        plain = value.layout == torch.strided and value.device.type == "cpu" and not value.is_nested
        if key in own and own[key].is_floating_point():
            plain = plain and value.is_floating_point()
        fits = plain and key in own and own[key].shape == value.shape
        if not plain or (not fits and value.untyped_storage().nbytes() < value.nbytes):
            kind = f"{value.dtype}, {'nested' if value.is_nested else value.layout}, {value.device}"
            wanted = "plain floating-point numbers, one for each place"
            raise RequestError(f"{named}: expected {wanted}, in {brief([key])}, not {kind}")


def _refuse_misfits(state: State, own: State, requested: str) -> None:
    missing = [key for key in own if key not in state and not key.endswith(COUNTER)]
    unexpected = [key for key in state if key not in own]
    misshapen = [key for key in state if key in own and own[key].shape != state[key].shape]
    kinds = ((missing, "missing"), (unexpected, "unexpected"), (misshapen, "of another shape"))
    if misfits := [f"{len(keys)} {what} ({brief(keys, 3)})" for keys, what in kinds if keys]:
        raise RequestError(
            f"weights={requested}: expected the {len(own)} tensors of this model's backbone;"
            f" {', '.join(misfits)}"
        )


def _below(state: State, head: str) -> State:
    return {key: value for key, value in state.items() if key.startswith(f"{head}.")}


def _without(state: State, other: State) -> State:
    return {key: value for key, value in state.items() if key not in other}


def _shapes(state: State) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in state.items()}
