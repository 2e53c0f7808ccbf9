"""What is told of values that cannot be."""

from __future__ import annotations

import pytest

from finetune.config.compose import compose
from finetune.config.messages import SYNONYMS, known_keys, unknown_setting, validate
from finetune.config.schema import SECTIONS
from finetune.errors import RequestError


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        # names of ours, misspelt or without their section
        ("lr", "optimizer.lr"),
        ("optimizer.lrr", "optimizer.lr"),
        ("optimiser.lr", "optimizer.lr"),
        ("momentum", "optimizer.momentum"),
        ("weight_decay", "optimizer.weight_decay"),
        ("epoch", "epochs"),
        ("trainer.epochs", "epochs"),
        ("batchsize", "batch_size"),
        ("batch-size", "batch_size"),
        ("data.batch_size", "batch_size"),
        ("image_size", "data.image_size"),
        ("experment", "experiment"),
        ("early_stopping.patience", "patience"),
        *SYNONYMS.items(),
        # other tools' names within sections
        ("trainer.max_epochs", "epochs"),
        ("trainer.gradient_clip_val", "trainer.clip_norm"),
        ("model.num_classes", "head"),
        ("data.img-size", "data.image_size"),
        ("teapot", None),
        ("kettle.teapot", None),
    ],
)
def test_an_unknown_setting_is_answered_with_the_one_that_is_meant(key: str, meant: str | None) -> None:
    expected = f"; did you mean {meant}?" if meant else ""
    assert unknown_setting(key) == f"{key}: there is no such setting{expected}"


def test_what_is_meant_exists_and_its_other_name_does_not() -> None:
    ours = {*known_keys(), *(key.rpartition(".")[2] for key in known_keys())}
    assert not ours & SYNONYMS.keys()
    assert {name.partition(" ")[0] for name in SYNONYMS.values()} - {"hydra.run.dir"} <= {*known_keys()}


def test_of_several_mistakes_the_unknown_knob_is_told_first() -> None:
    values = compose([]).model_dump() | {"epoch": 3, "batch_size": -1}
    with pytest.raises(RequestError, match=r"^epoch: there is no such setting; did you mean epochs\?$"):
        validate(values)


def test_every_missing_knob_is_told_by_its_name() -> None:
    for key in set(known_keys()) - set(SECTIONS):
        values = compose(["optimizer=lbfgs"] if key == "optimizer.select" else []).model_dump()
        section, _, inner = key.rpartition(".")
        less = {k: v for k, v in (values[section] if section else values).items() if k != (inner or key)}
        with pytest.raises(RequestError, match=rf"^{key}[:=]") as caught:
            validate(values | {section: less} if section else less)
        assert "expected" in str(caught.value)
