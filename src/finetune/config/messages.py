"""What is said of a wrong setting: one line that names it and what was expected."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from finetune.choices.given import load_plugins
from finetune.config.schema import SECTIONS, Settings
from finetune.errors import RequestError

# Our settings, and their names in other tools (Lightning, timm, Keras, Hugging Face).
ELSEWHERE = {
    "batch_size": "bs",
    "data": "dataset",
    "data.image_size": "img_size input_size resolution",
    "data.root": "data_dir data_path",
    "data.val_fraction": "val_split",
    "data.workers": "num_workers",
    "epochs": "max_epochs num_epochs num_train_epochs",
    "head": "num_classes",
    "head_dropout": "dropout",
    "hydra.run.dir": "output_dir",
    "label_smoothing": "smoothing",
    "model": "arch architecture backbone model_name",
    "optimizer": "opt",
    "optimizer.lr": "learning_rate",
    "optimizer.weight_decay": "wd",
    "patience": "early_stopping",
    "schedule": "lr_scheduler scheduler",
    "trainer": "strategy",
    "trainer.accumulate_batches": "accumulate_grad_batches gradient_accumulation_steps",
    "trainer.checkpoint_every": "every_n_epochs",
    "trainer.clip_norm": "gradient_clip_val gradient_clipping max_grad_norm",
    "trainer.devices": "gpus",
    "trainer.nodes": "num_nodes",
    "weights": "checkpoint pretrained pretrained_weights",
    "weights (to start from a checkpoint) or finetune resume RUN (to continue a run)": "ckpt_path",
}
SYNONYMS = {theirs: ours for ours, others in ELSEWHERE.items() for theirs in others.split()}
# The same for values; only one that the setting may have is proposed.
VALUES_ELSEWHERE = {
    "16": "16-mixed 16-true fp16 half",
    "32": "32-true fp32",
    "adamw": "adam",
    "bce": "binary_cross_entropy",
    "bf16": "bf16-mixed bf16-true bfloat16",
    "cosine": "cosine_annealing",
    "cross_entropy": "ce",
    "folder": "image_folder imagefolder",
    "gpu": "cuda",
    "onecycle": "one_cycle",
    "step": "multistep",
}
VALUES = {theirs: ours for ours, others in VALUES_ELSEWHERE.items() for theirs in others.split()}
EXPECTED = {
    "bool_type": "true or false",
    "dict_type": "settings for each phase such as '[{{freeze: all}},{{freeze: none}}]'",
    "finite_number": "a finite number",
    "float_type": "a number",
    "greater_than": "a number above {gt:.15g}",
    "greater_than_equal": "{ge:.15g} or more",
    "int_type": "a whole number",
    "less_than": "a number below {lt:.15g}",
    "list_type": "a list such as '[256]'",
    "literal_error": "{expected}",
    "missing": "a value; it is missing",
    "string_type": "text",
    "too_short": "a name",
    "union_tag_invalid": "{names}",
    "value_error": "{error}",
}


def known_keys() -> list[str]:
    """Every setting by its dotted name, and every section."""
    inside = {f"{name}.{key}" for name, each in SECTIONS.items() for m in each() for key in m.model_fields}
    return sorted({*Settings.model_fields, *inside})


def unknown_setting(key: str) -> str:
    """What to say of a key that is no setting, with the one that was probably meant."""
    if key in known_keys():
        return f"{key}: the chosen {key.partition('.')[0]} has no such setting"
    return f"{key}: there is no such setting{_question(_meant(key))}"


def unknown_option(word: str, after: str = "") -> str:
    """What to say of a setting typed as an option, with the word after it: --lr 0.1 or --batch-size=32."""
    key, _, value = word.lstrip("-").partition("=")
    meant, value = _meant(key), value or (after if "=" not in after and after[:1] != "-" else "")
    meant = f"{meant}={value}" if value and meant in known_keys() else meant
    return f"{word}: expected KEY=VALUE, without dashes{_question(meant)}"


def _question(meant: str | None) -> str:
    return f"; did you mean {meant}?" if meant else ""


def _meant(key: str) -> str | None:
    known = [*known_keys(), "experiment"]
    by_name = {name.rpartition(".")[2]: name for name in known} | {name: name for name in known}
    parts = [part.replace("-", "_").lower() for part in reversed(key.split("."))]
    for part in parts:
        if part in by_name and part not in SECTIONS:  # lr means optimizer.lr
            return by_name[part]
        if part in SYNONYMS:
            return SYNONYMS[part]
    near = difflib.get_close_matches(key, by_name, n=1, cutoff=0.65)  # optimiser.lr, too
    return by_name[near[0]] if near else None


def unknown_choice(group: str, choice: str, choices: Sequence[str]) -> str:
    """What to say of a choice that a group of configs does not have."""
    return f"{group}={choice}: expected one of {', '.join(choices)}{_hint(choice, choices)}"


def _hint(value: str, choices: Sequence[str]) -> str:
    meant = VALUES.get(value.lower())
    return _question(meant if meant in choices else None)


def validate(values: dict[str, Any]) -> Settings:
    """Check plain values; raises RequestError, which names the first wrong setting and what was expected."""
    load_plugins()
    if values.get("fast_dev_run") is True:
        values = values | {"epochs": 1, "warmup_epochs": 0}
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        # An unknown key is told first: it explains the others (a misspelt setting is also a missing one).
        first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
        raise RequestError(_line(first, values)) from None


def _line(error: Any, values: dict[str, Any]) -> str:
    kind, place, context = error["type"], error["loc"], error.get("ctx", {})
    if kind == "extra_forbidden":
        return unknown_setting(".".join(filter(None, (_key_at(place[:-1]), str(place[-1])))))
    key = _key_at(place)
    if kind == "value_error" and (not key or key in SECTIONS):
        return str(context["error"])  # a rule between settings names them itself
    if kind.startswith("union_tag"):
        key = f"{key}.name"
    expected = EXPECTED[kind].format(**context) if kind in EXPECTED else error["msg"]
    if kind == "missing":
        return f"{key}: expected {expected}"
    value = _value_at(key, values)
    if kind == "literal_error":
        expected = expected.replace("'", "").lower()  # as the command line has it: true, not True
        expected += _hint(value, expected.replace(" or ", ", ").split(", "))
    return f"{key}={value}: expected {expected}"


def _key_at(place: tuple[int | str, ...]) -> str:
    """The setting at a place in the values; list indices and names of union members are no part of it."""
    known, key = known_keys(), ""
    for part in place:
        longer = f"{key}.{part}" if key else str(part)
        key = longer if longer in known else key
    return key


def _value_at(key: str, values: dict[str, Any]) -> str:
    value: Any = values
    for part in key.split("."):
        value = value.get(part)
    return {"None": "null", "True": "true", "False": "false"}.get(str(value), str(value))
