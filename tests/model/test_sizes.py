"""Transformers at another size: positions are timm's and torchvision's own, and a run is opened with them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torchvision.models import VisionTransformer
from torchvision.models.vision_transformer import interpolate_embeddings

from finetune.errors import RequestError
from finetune.model.build import build_model, resize
from finetune.runs.open import open_run
from support.ended import Ended
from support.runs import QUICK, summary_of

VIT = "model=timm/test_vit"


def small(image_size: int) -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(image_size, 16, num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=8).eval()


def test_torchvisions_positions_are_resampled_as_its_helper_does() -> None:
    network, built = small(64), small(96)
    built.load_state_dict(interpolate_embeddings(96, 16, network.state_dict()))
    resize(network, 96)
    images = torch.randn(2, 3, 96, 96)
    assert torch.equal(network(images), built(images))
    with pytest.raises(
        RequestError, match=r"data.image_size=100: this model cannot take .* of its patches' size, 16"
    ):
        resize(network, 100)


def test_a_model_at_its_own_size_stays_as_it_is() -> None:
    for name, size in (("timm/test_vit", 160), ("timm/test_resnet", 96)):
        network = build_model(name)
        before = {key: value.clone() for key, value in network.state_dict().items()}
        resize(network, size)
        assert all(value.equal(before[key]) for key, value in network.state_dict().items())


def test_a_run_is_opened_exported_and_gone_on_from(
    finished_run: Callable[..., Path], command: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = finished_run(VIT)
    assert summary_of(run)["preprocessing"]["crop_size"] == 32
    saved = open_run(str(run))
    assert saved.network.get_parameter("pos_embed").shape[1] == 1 + (32 // 16) ** 2
    monkeypatch.chdir(run.parent)
    assert "img_size=32" in command("export", "run", "--out", "model.safetensors").out
    ended = command("train", *QUICK, VIT, "weights=run", "data.image_size=64", "hydra.run.dir=larger")
    assert ended.code == 0, ended.err
    assert open_run("larger").network.get_parameter("pos_embed").shape[1] == 1 + (64 // 16) ** 2


@pytest.mark.slow
def test_phases_may_grow(finished_run: Callable[..., Path]) -> None:
    run = finished_run(VIT, "phases=[{epochs:1},{data.image_size:64,freeze:none,epochs:1}]")
    assert open_run(str(run)).network.get_parameter("pos_embed").shape[1] == 1 + (64 // 16) ** 2
