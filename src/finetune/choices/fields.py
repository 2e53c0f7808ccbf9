"""What settings are made of: the numbers, texts and names that pydantic checks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from finetune.choices.given import PYTHON, Table, is_given

Fraction = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


def as_text(value: Any) -> Any:
    """A whole number as text; what is no UTF-8 is refused."""
    if isinstance(value, str) and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise ValueError("text in UTF-8")  # bytes of another encoding are surrogates in Python
    return str(value) if type(value) is int else value  # a folder named 2026, precision=32


Text = Annotated[str, BeforeValidator(as_text), Field(min_length=1)]


class Strict(BaseModel):
    """Settings as they were given: no unknown key, no value of another type."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def number_or(least: int, expected: str, *words: str) -> BeforeValidator:
    """A whole number from `least` on, or one of a few words."""

    def check(value: Any) -> Any:
        if type(value) is int and value >= least:  # true is an int, too
            return value
        if value not in words and not (PYTHON in words and is_given(value)):
            raise ValueError(expected)
        return value

    return BeforeValidator(check)


def one_of(table: Iterable[str], *words: str) -> BeforeValidator:
    """A word, or a name in a table; where that takes Python objects, one of these."""

    def check(value: Any) -> Any:
        names = [*words, *table]
        if value not in names and not (isinstance(table, Table) and is_given(value)):
            raise PydanticCustomError("literal_error", "", {"expected": alternatives(names)})
        return value

    return BeforeValidator(check)


def names_where(table: Mapping[str, Any], holds: Callable[[Any], bool]) -> str:
    """The names whose entries have a property: a, b or c."""
    return alternatives([name for name, entry in table.items() if holds(entry)])


def alternatives(names: list[str]) -> str:
    """a, b or c"""
    return " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))
