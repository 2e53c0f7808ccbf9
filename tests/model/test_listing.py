"""What models there are, and whose weights are at hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision

from finetune.model.build import LITE0, build_model, model_names
from support.ended import Ended

Command = Callable[..., Ended]


def rows(command: Command, *pattern: str) -> dict[str, list[str]]:
    ended = command("models", *pattern)
    assert ended.code == 0, ended.err
    assert max(map(len, ended.out.splitlines())) <= 80
    header, *lines = ended.out.splitlines()
    assert header.split() == ["model", "size", "parameters", "GMACs", "weights", "at", "hand"]
    return {name: about for name, *about in map(str.split, lines)}


def test_every_model_of_torchvision_is_a_line(command: Command) -> None:
    found = rows(command)
    assert set(found) - {"Of"} == {*model_names(), LITE0}
    assert found["resnet18"] == ["224", "11,689,512", "1.81", "bundled"]
    assert found["vit_h_14"][:3] == ["518", "633,470,440", "1016.72"]


def test_a_text_or_a_pattern_chooses_and_timms_are_there(command: Command) -> None:
    found = rows(command, "efficientnet_b0")
    assert {"efficientnet_b0", "timm/efficientnet_b0", "timm/tf_efficientnet_b0"} <= set(found)
    assert found["timm/efficientnet_b0"] == ["224"]
    assert set(rows(command, "resnet1?")) == {
        "resnet18",
        *(f"timm/resnet{n}" for n in (10, 14, 18) if n != 10),
    } - {"timm/resnet14"}
    assert command("models", "resnet_99").err == (
        "error: resnet_99: expected a part of a model's name, as resnet, or a pattern as *_b0\n"
    )


def test_weights_in_the_caches_are_told(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = torchvision.models.get_model_weights("squeezenet1_1").DEFAULT.url
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / Path(url).name).touch()
    monkeypatch.setattr(
        "huggingface_hub.try_to_load_from_cache", lambda hub, file: "/x" if "resnet18." in hub else None
    )
    assert rows(command, "squeezenet1_1")["squeezenet1_1"][3] == "cache"
    assert rows(command, "timm/resnet18")["timm/resnet18"] == ["224", "cache"]


def test_lite0_has_as_many_parameters_as_is_told(command: Command) -> None:
    counted = sum(value.numel() for value in build_model(LITE0, initialised=False).parameters())
    assert rows(command, "efficientnet_lite0")[LITE0] == ["224", f"{counted:,}", "0.40", "pip:", "lite0"]
