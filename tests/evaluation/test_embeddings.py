"""What a head reads of each image: the same as in training, from the same store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn

from finetune.build import find_data
from finetune.evaluation.embeddings import embed, model_of
from finetune.evaluation.forward import Predictor
from finetune.features.load import FeatureComputer
from finetune.runs.open import open_run


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ("cache=disk", "precision=32", "cache_dir=cache"),
        (
            "cache=disk",
            "cache_dir=cache",
            "precision=32",
            "head_features=all",
            "head_hidden=[8]",
            "head_dropout=0.5",
        ),
        ("freeze=none", "epochs=1", "precision=32"),
    ],
)
def test_a_head_that_reads_them_answers_as_the_run_does(
    finished_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, overrides: tuple[str, ...]
) -> None:
    run = finished_run(*overrides)
    monkeypatch.chdir(run.parent)
    saved = open_run("run")
    dataset = find_data(saved.settings)
    found = embed(model_of(saved), saved.settings, dataset, Console(quiet=True))
    head = saved.network.get_submodule(saved.head)
    assert isinstance(head, nn.Module)
    with torch.no_grad():
        logits = head(found.values)
    answers = [a.logits for batch in Predictor(saved, "32")(dataset.images) for a in batch]
    torch.testing.assert_close(logits, torch.stack(answers), rtol=1e-3, atol=1e-4)


def test_features_of_the_training_are_not_computed_again(
    finished_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = finished_run("cache=disk", "precision=32", "cache_dir=cache")
    monkeypatch.chdir(run.parent)
    computed: list[int] = []
    compute = FeatureComputer.compute

    def counted(*given: object) -> object:
        computed.append((features := compute(*given)).computed)  # type: ignore[arg-type]
        return features

    monkeypatch.setattr(FeatureComputer, "compute", counted)
    saved = open_run("run")
    embed(model_of(saved), saved.settings, find_data(saved.settings), Console(quiet=True))
    assert computed == [0]
