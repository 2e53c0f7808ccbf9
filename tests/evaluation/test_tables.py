"""What `finetune evaluate` shows of many classes, and of strange ones."""

from __future__ import annotations

import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from finetune.evaluation.evaluate import Evaluation
from finetune.evaluation.tables import MOST, misfits, show_evaluation
from finetune.say import Screen
from finetune.training.metrics import measure_classes


def shown(names: list[str]) -> str:
    """What is said of as many pictures as classes, of which those at odd places are answered wrong."""
    labels = torch.arange(len(names))
    answers = torch.where(labels % 2 == 0, labels, (labels + 1) % len(names))
    logits = torch.nn.functional.one_hot(answers, len(names)).float()
    chosen = SimpleNamespace(
        dataset=SimpleNamespace(name="birds"),
        split="all",
        own=False,
        unknown={},
        labels=labels,
        rows=labels,
        parts=None,
    )
    screen = Screen(file=io.StringIO(), width=80)
    show_evaluation(screen, chosen, Evaluation(measure_classes(logits, labels, names), []), "none")  # type: ignore[arg-type]
    return screen.file.getvalue()


def test_of_many_classes_the_worst_are_shown_and_where_all_are() -> None:
    text = shown([f"bird {number}" for number in range(300)])
    assert len(text.splitlines()) < MOST + 30
    assert "bird 1 " in text
    assert "more     260 classes" in text
    assert "--out" in text


def test_names_stand_as_they_are_and_act_on_nothing() -> None:
    text = shown(["[red]x[/]", "a\x1b[2Jb", ":smile:", "two\nlines"])
    assert "\x1b" not in text
    for name in ("[red]x[/]", "a\ufffd[2Jb", ":smile:", "two lines"):
        assert name in text


@pytest.mark.parametrize("tested", [0, 3])
def test_a_side_without_images_is_not_where_to_measure_instead(tested: int) -> None:
    parts, split = np.array(["train"] * 5 + ["test"] * tested), {"test": np.arange(tested)}
    chosen = SimpleNamespace(
        dataset=SimpleNamespace(split=split), split="all", own=True, unknown={}, rows=parts, parts=parts
    )
    [line] = misfits(chosen, SimpleNamespace(without_images=[], broken=[]))  # type: ignore[arg-type]
    assert ("--split=test measures on others" in line) == bool(tested)
