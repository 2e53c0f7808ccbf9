"""Jobs composed the short way are what Hydra composes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from finetune import launch
from support.ended import Ended
from support.slow import slow


@pytest.mark.parametrize(
    "overrides",
    [
        ["optimizer.lr=0.1,0.01", "seed=2", "epochs=3"],
        slow(["optimizer=sgd,adamw", "experiment=norms,last_stage"]),
        ["freeze=[all,-layer4],[all,-layer3]", "head_hidden=[8,4]", "data.root='a b'", "++seed=3"],
        pytest.param(
            ["data.image_size=32,64", "hydra.sweep.subdir=${hydra.job.override_dirname}"],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_every_job_is_what_hydra_composes(
    train: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch, overrides: list[str]
) -> None:
    seen: dict[str, list[Any]] = {}

    def note(task: launch.Task, config: DictConfig) -> Any:
        hydra = OmegaConf.to_container(HydraConfig.instance().cfg, resolve=True)
        assert isinstance(hydra, dict)
        launcher = hydra["hydra"]["runtime"]["choices"].pop("hydra/launcher")
        hydra["hydra"].pop("launcher")
        hydra["hydra"].pop("run")  # a folder is free only once
        hydra["hydra"]["overrides"]["hydra"] = []
        seen.setdefault(launcher, []).append((OmegaConf.to_container(config, resolve=True), hydra))
        return launch.Plan(0, Path("nowhere"), [], ended=True)

    monkeypatch.setattr(launch.Task, "plan", note)
    for launcher in ("batched", "basic"):
        train("-m", *overrides, f"hydra/launcher={launcher}", "hydra.sweep.dir=sweep")
    assert seen["batched"] == seen["basic"]
    assert len(seen["basic"]) > 1


def test_a_value_that_its_group_does_not_have_is_refused_as_hydra_does(train: Callable[..., Ended]) -> None:
    said = []
    for launcher in ("batched", "basic"):
        ended = train("-m", "optimizer=adamw", "optimizer.momentum=0,0.9", f"hydra/launcher={launcher}")
        assert ended.code == 2
        said.append(ended.err)
    assert said[0] == said[1]
    assert "the chosen optimizer has no such setting" in said[0]
