"""A run opened again: its model as the best epoch left it, and what is known of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from finetune.choices.given import is_given
from finetune.config.schema import Settings
from finetune.errors import RequestError
from finetune.model.build import HEADS, build_model, resize
from finetune.model.head import find_head, replace_head
from finetune.model.preprocessing import Preprocessing
from finetune.model.stages import read_stages
from finetune.model.statedict import read_state_dict
from finetune.model.weights import enum_of
from finetune.runs.folder import PHASES, find_run
from finetune.runs.settings import read_settings
from finetune.runs.summary import read_summary
from finetune.say import Screen, say

SEEN = Path("checkpoints") / "seen.json"  # the first 16 digits of the digests of images on each side


@dataclass(frozen=True)
class Saved:
    """A run on disk.

    network: the whole model in eval mode, in float32 on the CPU.
    head: full name of the layers that give the logits, of which there are `outputs`.
    summary: what the run came to; None where it has not ended.
    trained_on: the fingerprint of its data; None where an older version has not told it.
    """

    folder: Path
    settings: Settings
    network: nn.Module
    head: str
    outputs: int
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    summary: dict[str, Any] | None
    trained_on: str | None = None

    @property
    def names(self) -> list[str]:
        """A name for each output; those beyond the classes have numbers."""
        return [*self.classes, *(f"output {number}" for number in range(len(self.classes), self.outputs))]


def open_run(run: str) -> Saved:
    """Open a run by its folder or `latest`; raises RequestError of one without checkpoint, or damaged."""
    folder = find_run(run)
    if not (folder / "checkpoints" / "best.ckpt").exists():
        raise RequestError(f"{folder}: expected a run with a finished epoch; it has no checkpoints/best.ckpt")
    state, about = read_state_dict(folder)
    summary = read_summary(folder)
    phase = summary.get("phase") if summary else None
    place = folder if phase is None else folder / PHASES / str(phase)
    settings = read_settings(place, about.get("settings"))
    preprocessing = Preprocessing.from_metadata(about)
    if preprocessing is None or "classes" not in about:
        raise RequestError(f"{folder}/checkpoints/frozen.safetensors: expected the run's classes in it")
    before = torch.get_rng_state()  # of the program that opens a run
    torch.manual_seed(settings.seed)
    network = build_model(settings.model, enum_of(settings.model, settings.weights), initialised=False)
    resize(network, preprocessing.crop_size)
    head = find_head(network)
    weights = [value for name, value in state.items() if name.startswith(f"{head}.") and value.dim() > 1]
    new = HEADS[str(settings.head)] if is_given(settings.head) else len(weights[-1])  # of the last layer
    example = torch.zeros(1, 3, preprocessing.crop_size, preprocessing.crop_size)
    read_stages(network, head, settings.stages, example)
    replace_head(network, head, new, hidden=settings.head_hidden, dropout=settings.head_dropout)
    torch.set_rng_state(before)
    own = network.state_dict()
    if strange := own.keys() - state.keys():
        raise RequestError(f"{folder}: expected the tensors of {settings.model}; {len(strange)} are missing")
    network.load_state_dict({name: state[name] for name in own})
    nn.utils.convert_conv2d_weight_memory_format(network.eval(), torch.channels_last)
    with torch.no_grad():
        outputs = network(example).shape[1] if isinstance(new, nn.Module) else new
    if summary is None or summary["status"] != "finished":
        text = f"{folder}: has not ended, so its probabilities are not calibrated (summary.json)"
        say(Screen(stderr=True), "note", text)
    return Saved(
        folder=folder,
        settings=settings,
        network=network,
        head=head,
        outputs=outputs,
        classes=tuple(json.loads(about["classes"])),
        preprocessing=preprocessing,
        summary=summary,
        trained_on=about.get("data"),
    )
