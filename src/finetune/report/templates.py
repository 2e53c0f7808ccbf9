"""The templates of what stands by itself, pages and scripts, and what they write numbers with."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template, select_autoescape

from finetune.errors import counted


@cache
def template(name: str) -> Template:
    pages = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=select_autoescape(),  # in pages
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    digest = lambda text: base64.b64encode(sha256(text.encode()).digest()).decode()  # noqa: E731
    pages.filters.update(counted=counted, percent=percent, duration=duration, between=between)
    pages.filters.update(sha256=digest, repr=repr)
    return pages.get_template(name)


def percent(share: float | None, digits: int = 1) -> str:
    """0.6404 as 64.0 %; a dash for None."""
    return "-" if share is None else f"{share * 100:.{digits}f}\N{NO-BREAK SPACE}%"


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f}\N{NO-BREAK SPACE}s"
    if seconds < 3600:
        return f"{seconds // 60:.0f} min {seconds % 60:.0f} s"
    return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:.0f} min"


def between(measures: Mapping[str, Any], name: str, otherwise: str = "") -> str:
    """0.61 to 0.84, the interval of a measure, or something else where there is none."""
    ends = measures.get("intervals", {}).get(name)
    return "95 %: {:.2f} to {:.2f}".format(*ends).replace(" ", "\N{NO-BREAK SPACE}", 1) if ends else otherwise
