"""What is told of values that cannot be."""

from __future__ import annotations

import pytest

from finetune.door import compose
from finetune.errors import RequestError
from finetune.settings import SECTIONS
from finetune.validation import known_keys, no_such_knob, validate


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("lr", "optimizer.lr"),
        ("optimizer.lrr", "optimizer.lr"),
        ("optimiser.lr", "optimizer.lr"),
        ("momentum", "optimizer.momentum"),
        ("epoch", "epochs"),
        ("batchsize", "batch_size"),
        ("image_size", "data.image_size"),
        ("pretrained_weights", None),
        ("experment", "experiment"),
    ],
)
def test_a_misspelt_knob_is_told_the_one_that_is_meant(key: str, meant: str | None) -> None:
    expected = f"; did you mean {meant}?" if meant else ""
    assert no_such_knob(key) == f"{key}: there is no such knob{expected}"


def test_of_several_mistakes_the_unknown_knob_is_told_first() -> None:
    values = compose([]).model_dump() | {"epoch": 3, "batch_size": -1}
    with pytest.raises(RequestError, match=r"^epoch: there is no such knob; did you mean epochs\?$"):
        validate(values)


def test_every_missing_knob_is_told_by_its_name() -> None:
    values = compose([]).model_dump()
    for key in set(known_keys()) - set(SECTIONS):
        section, _, inner = key.rpartition(".")
        less = {k: v for k, v in (values[section] if section else values).items() if k != (inner or key)}
        with pytest.raises(RequestError, match=rf"^{key}[:=]") as caught:
            validate(values | {section: less} if section else less)
        assert "expected" in str(caught.value)
