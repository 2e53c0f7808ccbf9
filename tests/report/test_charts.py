"""The diagrams are well-formed SVG with what they were given."""

from __future__ import annotations

from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from markupsafe import Markup

from finetune.report import charts
from finetune.training.metrics import calibration_bins

NAMESPACE = "{http://www.w3.org/2000/svg}"


def parsed(drawing: Markup) -> ElementTree.Element:
    return ElementTree.fromstring(
        str(drawing).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    )


def of_class(drawing: ElementTree.Element, tag: str, kind: str) -> list[ElementTree.Element]:
    return [one for one in drawing.iter(NAMESPACE + tag) if kind in one.get("class", "").split()]


def test_a_falling_loss_falls() -> None:
    drawn = parsed(
        charts.curve_chart(
            "loss", {"train": [(1, 2.0), (2, 1.0), (3, 0.5)], "val": [(1, 2.1), (3, 1.0)]}, best=3
        )
    )
    (line,) = of_class(drawn, "polyline", "train")
    points = [tuple(map(float, pair.split(","))) for pair in line.get("points", "").split()]
    assert [x for x, _ in points] == sorted(x for x, _ in points)
    assert [y for _, y in points] == sorted(y for _, y in points)  # downwards on a screen
    assert len(of_class(drawn, "polyline", "val")) == 1
    (mark,) = of_class(drawn, "line", "mark")
    assert float(mark.get("x1", "")) == pytest.approx(points[-1][0], abs=0.1)
    words = [one.text for one in drawn.iter(NAMESPACE + "text")]
    assert words[-3:] == ["1", "2", "3"]  # whole epochs


def test_one_epoch_is_a_dot() -> None:
    drawn = parsed(charts.curve_chart("loss", {"train": [(1, 0.0)]}, best=1))
    assert len(of_class(drawn, "circle", "train")) == 1


def test_every_bin_with_answers_is_a_dot() -> None:
    found = calibration_bins(torch.tensor([0.29, 0.31, 0.95]), torch.tensor([True, False, True]))
    drawn = parsed(charts.reliability_chart({"before": found}))
    dots = of_class(drawn, "circle", "before")
    assert [dot[0].text for dot in dots] == [
        "2 answers of confidence 30%: 50% right",
        "1 answers of confidence 95%: 100% right",
    ]
    assert float(dots[0].get("r", "")) > float(dots[1].get("r", ""))
    assert all("few" in one.get("class", "").split() for one in dots)  # they say little


def test_a_confusion_matrix_holds_its_counts_and_names() -> None:
    matrix = np.array([[3, 1, 0], [0, 0, 2]])
    names = ['<b> & "', "a name that is far too long for a diagram"]
    drawn = parsed(charts.confusion_chart(matrix, names, matrix.sum(1)))
    assert [one.text for one in of_class(drawn, "text", "count")] == ["3", "1", "2"]
    assert len(of_class(drawn, "rect", "right")) == 1
    assert len(of_class(drawn, "rect", "wrong")) == 2
    words = [one.text for one in drawn.iter(NAMESPACE + "text")]
    assert words[:2] == ['<b> & "', "a name that is …"]
    assert "no class" in words  # a third output for two classes


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0, 1.9, [0, 0.5, 1, 1.5, 2]),
        (0, 2000, [0, 500, 1000, 1500, 2000]),
        (-3, 2, [-3, -2, -1, 0, 1, 2]),
        (0, 0, [0, 2e-10]),
    ],
)
def test_ticks_are_round_and_hold_the_values(low: float, high: float, ticks: list[float]) -> None:
    found = charts.nice_ticks(low, high)
    assert found[0] <= low
    assert found[-1] >= high
    if high:
        assert found == ticks
