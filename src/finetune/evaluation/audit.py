"""`finetune audit`: what is wrong with images, on the terminal, as a table and as a page."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain, takewhile
from pathlib import Path

from rich.console import Console

from finetune.atomic import check_out, make_out, write_atomically
from finetune.build import find_data, make_model
from finetune.cells import table_of
from finetune.config.compose import compose, free_folder, override_settings
from finetune.config.schema import Settings
from finetune.data.dataset import Dataset
from finetune.errors import RequestError, brief, counted
from finetune.evaluation.command import TAKES
from finetune.evaluation.embeddings import embed, model_of
from finetune.evaluation.findings import Finding, compare_images, look_at
from finetune.model.assemble import Model
from finetune.model.preprocessing import Preprocessing
from finetune.report.mistakes import thumbnail
from finetune.report.predictions import name_of
from finetune.report.templates import template
from finetune.runs.folder import pointer
from finetune.runs.open import open_run
from finetune.say import Screen, progress, say

KINDS = {  # what is said of them, and to do
    "labels": (
        "to check: the model is confident of another class",
        "look at each and correct the label only where it is wrong",
    ),
    "conflict": ("with an exact copy under another label", "find out which is right"),
    "leaks": ("on another side of the split, too, exactly or nearly", "leave this one out"),
    "exact": ("there before, byte for byte", "leave this one out"),
    "near": ("nearly the same as another of the class", "leave this one out if so"),
    "across": ("nearly the same as one of another class", "find out which is right"),
    "outliers": ("unlike all others", "see whether it belongs here"),
    "blank": ("showing nothing", "leave it out"),
    "dark": ("dark", "lighten it or leave it out"),
    "blurred": ("far less sharp than most", "replace it or leave it out"),
    "cropped": (
        "losing more than a third to the central square",
        "data.crop=squash or pad shows all of it; or crop it by hand so that the subject is in the middle",
    ),
    "broken": ("that cannot be read", "mend it"),
}
ON_PAGE = 30  # findings of a kind


def audit_images(given: Sequence[str], out: Path | None, write: Path | None, drop: str) -> None:
    """Audit the images of a run, or those that settings name.

    out: a folder for audit.csv and audit.html; else a new one, named audit. write: a table of the images
    without those of the kinds that `drop` names. Raises RequestError where one of these is not as expected.
    """
    told = [one for one in given if pointer(one) or os.path.exists(f"{one}/settings.json")]
    runs = told or [one for one in given if "=" not in one and not os.path.exists(one)]
    overrides = [one for one in given if one not in runs]
    if strange := [*runs[1:], *({*drop.split(",")} - {*KINDS})]:
        raise RequestError(f"{strange[0]}: expected one run, and with --drop some of {', '.join(KINDS)}")
    if write and (write.suffix != ".csv" or write.exists()):
        raise RequestError(f"--write={write}: expected a new .csv file; what is there may be your own table")
    if write:
        check_out("--write=", write)
    if out and any((out / f"audit.{kind}").exists() for kind in ("html", "csv")):
        raise RequestError(f"--out={out}: expected a new folder; there is an audit in this one")
    make_out(out or Path())
    if runs:
        saved = open_run(runs[0])
        settings = override_settings(saved.settings, overrides, TAKES)
        model, data = model_of(saved), find_data(settings, measured=True)
    else:
        settings = compose(overrides).model_copy(update={"freeze": ["all"]})
        data = find_data(settings, measured=True)
        model = make_model(settings, data)
    sides = {int(i): side for side, rows in data.split.items() for i in rows}
    if write and not all(isinstance(image, Path) for image in data.images):
        raise RequestError(f"--write={write}: expected images that are files of their own")
    console = Screen()
    say(console, "model", f"{model.name}, weights: {model.weights.used}")
    # The sides that a run drew matter to it; those of data by themselves, where they brought them.
    known = sides if runs or data.own_split else dict.fromkeys(sides, "train")
    found = _find(model, settings, data, sides=known, console=console)
    say(console, "images", f"{len(sides):,} of {counted(len(data.classes), 'class')}")
    _show(out or Path(free_folder("audit")), data, sides, found=found, how=model.preprocessing)
    if write:
        dropped = {one.image for one in found if one.kind in ["broken", *drop.split(",")]}
        _write_rest(write, data, sides, [i for i in range(len(sides)) if i not in dropped])


def _write_rest(file: Path, data: Dataset, sides: dict[int, str], stay: Sequence[int]) -> None:
    """Write a table of the images that stay, with their sides, where none was tested in folds, and groups."""
    images = [[os.path.abspath(str(data.images[i])), _label(data, i)] for i in stay]
    more = {"split": sides} if data.folds is None else {}
    more |= {"group": dict(enumerate(data.groups))} if data.groups else {}
    rows = [[*image, *(cells[i] for cells in more.values())] for i, image in zip(stay, images, strict=True)]
    write_atomically(file, table_of([["path", "label", *more], *rows]))
    use = f"data=csv {shlex.quote(f'data.root={file}')}{' data.group_column=group' * bool(data.groups)}"
    say(Screen(), "written", f"{file}: {counted(len(stay), 'image')}, for {use}")


def _find(
    model: Model, settings: Settings, data: Dataset, *, sides: dict[int, str], console: Console
) -> list[Finding]:
    """All findings, the surest first, by the features of a model with all but its head frozen."""
    embedded = embed(model, settings, data.whole(), console)
    rest, kept = embedded.dataset, data.kept([one.index for one in embedded.bad]).tolist()
    looks = []
    with ThreadPoolExecutor() as pool, progress(console, "looking", len(kept)) as advance:
        for look in pool.map(partial(look_at, rest, model.preprocessing), range(len(kept))):
            looks.append(look)
            advance(1)
    found = [
        one._replace(image=kept[one.image], other=None if one.other is None else kept[one.other])
        for one in compare_images(rest, [sides[i] for i in kept], embedded.values, looks, seed=settings.seed)
    ]
    found += [Finding("broken", one.index, 1.0, likelier=one.reason) for one in embedded.bad]
    return sorted(found, key=lambda one: -one.score)


def _show(
    out: Path, data: Dataset, sides: dict[int, str], *, found: Sequence[Finding], how: Preprocessing
) -> None:
    """Tell the first of each kind, and write audit.csv and audit.html, which needs nothing beside itself."""
    names, console = [name_of(image, i) for i, image in enumerate(data.images)], Screen()
    parts = [name.split("/") for name in names]  # without the folders that all have in common
    same = takewhile(lambda pair: pair[0] == pair[1], zip(min(parts)[:-1], max(parts)[:-1], strict=False))
    above = len(list(same))
    short = ["/".join(one[above:]) for one in parts]
    by_kind = {kind: [one for one in found if one.kind == kind] for kind in KINDS}
    for kind, some in by_kind.items():
        told = [short[one.image] + (one.likelier and f" ({one.likelier})") for one in some]
        if told:
            say(console, kind, f"{counted(len(told), 'image')} {KINDS[kind][0]}: {brief(told, 3)}")
    if none := [kind for kind, some in by_kind.items() if not some]:
        say(console, "none", ", ".join(none))
    table = [["path", "finding", "score", "other path", "suggestion"]]
    for one in chain.from_iterable(by_kind.values()):
        other = "" if one.other is None else names[one.other]
        table.append(
            [names[one.image], one.kind, f"{one.score:.4f}", other, one.likelier or KINDS[one.kind][1]]
        )
    write_atomically(out / "audit.csv", table_of(table))
    page = template("audit.html").render(
        found=by_kind,
        kinds=KINDS,
        most=ON_PAGE,
        data=data,
        about=lambda i: (thumbnail(data.images[i], how), short[i], f"{_label(data, i)}, {sides[i]}"),
    )
    write_atomically(out / "audit.html", page.encode("utf-8", "replace"))
    say(console, "written", f"{out / 'audit.html'} and {out / 'audit.csv'}")


def _label(data: Dataset, image: int) -> str:
    """The class of an image, or a list: of several, and where a table might take it for several or none."""
    label = data.label_of(image)
    if isinstance(label, str):
        return label if label.isidentifier() or label.isdecimal() else json.dumps([label])
    return json.dumps(label)
