"""`finetune audit`: what is wrong with images, on the terminal, as a table and as a page."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Container, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from finetune.atomic import write_atomically
from finetune.build import find_data, make_model
from finetune.cells import table_of
from finetune.config.compose import compose, override_settings
from finetune.config.schema import Settings
from finetune.data.dataset import Dataset
from finetune.data.sources.table import MISSING
from finetune.errors import RequestError
from finetune.evaluation.command import TAKES
from finetune.evaluation.embeddings import embed, model_of
from finetune.evaluation.findings import Finding, compare, faults, look_at
from finetune.model.assemble import Model
from finetune.model.preprocessing import Preprocessing
from finetune.model.standardize import statistics
from finetune.report.mistakes import thumbnail
from finetune.report.page import template
from finetune.report.predictions import name_of
from finetune.runs.open import open_run
from finetune.say import Screen, progress, say

KINDS = {  # what is said of them, and to do
    "labels": ("probably have a wrong label", "correct it if so"),
    "conflict": ("have another label elsewhere, byte for byte", "which label is right?"),
    "leaks": ("are on another side of the split, too, or nearly so", "leave this one out"),
    "exact": ("are there twice, byte for byte", "leave this one out"),
    "near": ("are nearly the same as another of their class", "leave this one out if so"),
    "across": ("are nearly the same as one of another class", "which label is right?"),
    "outliers": ("are unlike all others", "do they belong here?"),
    "blank": ("show nothing", "leave them out"),
    "dark": ("are dark", "lighten them, or leave them out"),
    "blurred": ("are far less sharp than most", "replace them, or leave them out"),
    "cropped": ("lose more than a third to the central square", "cut them to what matters"),
    "broken": ("cannot be read", "mend them"),
}
ON_TERMINAL, ON_PAGE = 3, 30  # findings of a kind


def audit(given: Sequence[str], out: Path, write: Path | None, drop: str) -> None:
    """Audit the images of a run, or those that settings name.

    out: a folder for audit.csv and audit.html. write: a table of the images without those of the kinds that
    `drop` names. Raises RequestError where one of these is not as expected.
    """
    runs, overrides = [one for one in given if "=" not in one], [one for one in given if "=" in one]
    if strange := [*runs[1:], *({*drop.split(",")} - {*KINDS})]:
        raise RequestError(f"{strange[0]}: expected one run, and with --drop some of {', '.join(KINDS)}")
    if write and not (write.suffix == ".csv" and write.absolute().parent.is_dir()):
        raise RequestError(f"--write={write}: expected a .csv file in a folder that exists")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(f"--out={out}: cannot be made: {error.strerror}") from None
    console = Screen()
    if runs:
        saved = open_run(runs[0])
        settings = override_settings(saved.settings, overrides, TAKES)
        model, data = model_of(saved), find_data(settings, measured=True)
    else:
        settings = compose(overrides).model_copy(update={"freeze": ["all"]})
        data = find_data(settings, measured=True)
        model = make_model(settings, data)
    say(console, "model", f"{model.name}, weights: {model.weights.used}")
    sides = {int(i): side for side, rows in data.split.items() for i in rows}
    found = find_all(model, settings, data, sides, console)
    names = [name_of(image, i) for i, image in enumerate(data.images)]
    rows = {kind: [_row(one, names) for one in found if one.kind == kind] for kind in KINDS}
    say(console, "images", f"{len(names):,} of {len(data.classes):,} classes")
    shared = len(os.path.commonprefix(names).rpartition("/")[0])
    for kind, some in rows.items():
        say(console, kind, f"{len(some):,} {KINDS[kind][0]}{some and f': {KINDS[kind][1]}' or ''}")
        for path, _, _, other, told in some[:ON_TERMINAL]:
            also = other and f" and {other[shared:].lstrip('/')}"
            say(
                console,
                "",
                f"{path[shared:].lstrip('/')}{also}{told != KINDS[kind][1] and f': {told}' or ''}",
            )
    header = ["path", "finding", "score", "other path", "suggestion"]
    write_atomically(out / "audit.csv", table_of([header, *chain.from_iterable(rows.values())]))
    _write_page(out / "audit.html", data, sides, found, model.preprocessing)
    say(console, "written", f"{out / 'audit.html'} and {out / 'audit.csv'}")
    if write:
        left_out = {one.image for one in found if one.kind in ["broken", *drop.split(",")]}
        _write_table(write, data, sides, left_out)
        say(
            console,
            "written",
            f"{write}: {len(names) - len(left_out):,} images, for data=csv data.root={write}",
        )


def find_all(
    model: Model, settings: Settings, data: Dataset, sides: Mapping[int, str], console: Console
) -> list[Finding]:
    """All findings, the surest first, by the features of a model with all but its head frozen."""
    nothing = np.arange(0)
    whole = replace(data, split={"train": np.arange(len(sides)), "val": nothing, "test": nothing})
    embedded = embed(model, settings, whole, console)
    kept, rest, looks = data.kept([one.index for one in embedded.bad]).tolist(), embedded.dataset, []
    with ThreadPoolExecutor() as pool, progress(console, "looking", len(kept)) as advance:
        for look in pool.map(partial(look_at, rest, model.preprocessing), range(len(kept))):
            looks.append(look)
            advance(1)
    hashes, measures = (np.array(part) for part in zip(*looks, strict=True))
    mean, scale = statistics([embedded.values])
    features = ((embedded.values - mean) * scale).float()
    found = [*compare(rest, [sides[i] for i in kept], features, hashes, settings.seed), *faults(measures)]
    places: dict[int | None, int] = dict(enumerate(kept))
    found = [one._replace(image=kept[one.image], other=places.get(one.other)) for one in found]
    found += [Finding("broken", one.index, 1.0, likelier=one.reason) for one in embedded.bad]
    return sorted(found, key=lambda one: -one.score)


def _row(one: Finding, names: Sequence[str]) -> list[Any]:
    other = "" if one.other is None else names[one.other]
    return [names[one.image], one.kind, round(one.score, 4), other, one.likelier or KINDS[one.kind][1]]


def _write_page(
    file: Path, data: Dataset, sides: Mapping[int, str], found: Sequence[Finding], how: Preprocessing
) -> None:
    """Write a page with the first findings of each kind, which needs nothing beside itself."""

    def shown(one: Finding) -> list[tuple[str | None, str, str]]:
        images = [i for i in (one.image, one.other) if i is not None]
        return [
            (thumbnail(data.images[i], how), str(data.images[i]), f"{_label(data, i)}, {sides[i]}")
            for i in images
        ]

    sections = []
    for kind, (what, to_do) in KINDS.items():
        of_kind = [one for one in found if one.kind == kind]
        sections.append((kind, len(of_kind), what, to_do, [(one, shown(one)) for one in of_kind[:ON_PAGE]]))
    page = template("audit.html").render(data=data, sections=sections)
    write_atomically(file, page.encode("utf-8", "replace"))


def _write_table(write: Path, data: Dataset, sides: Mapping[int, str], left_out: Container[int]) -> None:
    """Write a table for `data=csv` of all images but some."""
    rows = [["path", "label", "split"]]
    for i, image in enumerate(data.images):
        if not isinstance(image, Path):
            raise RequestError(f"--write={write}: expected images that are files; {image} is none of its own")
        if i not in left_out:
            rows.append([os.path.abspath(image), _label(data, i), sides[i]])
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    write_atomically(write, text.getvalue().encode("utf-8", "surrogateescape"))


def _label(data: Dataset, image: int) -> str:
    """The class of an image; of several labels, and where a table could take it for such, a list."""
    label = data.label_of(image)
    plain = isinstance(label, str) and re.fullmatch(r"\w[\w .,-]*", label) and label.lower() not in MISSING
    return str(label) if plain else json.dumps([label] if isinstance(label, str) else label)
