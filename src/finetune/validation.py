"""Plain values to settings, once, at the door; what is wrong with them in one line."""

from __future__ import annotations

import difflib
from typing import Any

from pydantic import ValidationError

from finetune.errors import RequestError
from finetune.settings import SECTIONS, Settings


def known_keys() -> list[str]:
    """Every knob by its dotted name, and every section."""
    inside = {f"{name}.{key}" for name, models in SECTIONS.items() for m in models for key in m.model_fields}
    return sorted({*Settings.model_fields, *inside})


def no_such_knob(key: str) -> str:
    """What to say of a key that is no knob, with the one that was probably meant."""
    known = [*known_keys(), "experiment"]
    if key in known:
        return f"{key}: the chosen {key.partition('.')[0]} has no such knob"
    # lr and optimiser.lr both mean optimizer.lr.
    names = {name.rpartition(".")[2]: name for name in known} | {name: name for name in known}
    near = difflib.get_close_matches(key, names, n=1, cutoff=0.65)
    return f"{key}: there is no such knob" + (f"; did you mean {names[near[0]]}?" if near else "")


def validate(values: dict[str, Any]) -> Settings:
    """Check the plain values of a composed config.

    Raises:
        RequestError: with one line that names the first wrong knob and what was expected.
    """
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        # An unknown key is told first: it explains the others (a misspelt knob is also a missing one).
        first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
        raise RequestError(_line(first, values)) from None


EXPECTED = {
    "bool_type": "true or false",
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
    "union_tag_invalid": "sgd or adamw",
    "union_tag_not_found": "sgd or adamw",
    "value_error": "{error}",
}


def _line(error: Any, values: dict[str, Any]) -> str:
    kind, place, context = error["type"], error["loc"], error.get("ctx", {})
    if kind == "extra_forbidden":
        return no_such_knob(".".join(filter(None, (_knob(place[:-1]), str(place[-1])))))
    key = _knob(place)
    if kind == "value_error" and (not key or key in SECTIONS):
        return str(context["error"])  # a rule between knobs names them itself
    if kind.startswith("union_tag"):
        key += ".name"
    expected = EXPECTED[kind].format(**context) if kind in EXPECTED else error["msg"]
    if kind == "literal_error":
        expected = expected.replace("'", "").lower()  # as the command line has it: true, not True
    shown = "" if kind == "missing" else f"={_shown(key, values)}"
    return f"{key}{shown}: expected {expected}"


def _knob(place: tuple[int | str, ...]) -> str:
    """The knob at a place in the values; list indices and the names of union members are no part of it."""
    known, key = known_keys(), ""
    for part in place:
        longer = f"{key}.{part}" if key else str(part)
        key = longer if longer in known else key
    return key


def _shown(key: str, values: dict[str, Any]) -> str:
    value: Any = values
    for part in key.split("."):
        value = value.get(part)
    return {"None": "null", "True": "true", "False": "false"}.get(str(value), str(value))
