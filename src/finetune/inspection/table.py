"""What `finetune inspect` prints: the table of modules with the gradient boundary in it, or JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.filesize import decimal
from rich.segment import Segment, Segments
from rich.text import Text

from finetune.config.schema import Settings
from finetune.data.dataset import Dataset
from finetune.errors import counted
from finetune.features.plan import FeaturePlan
from finetune.inspection.modules import ModuleRow, boundary_index
from finetune.model.assemble import Model
from finetune.model.parameters import count_parameters, list_parameters
from finetune.report.terminal import model_lines
from finetune.say import columns, say

HEADER = ("module", "type", "output", "parameters", "work", "state", "mode", "rate")
TO_THE_RIGHT = ("output", "parameters", "work")


@dataclass(frozen=True)
class Inspected:
    """All that there is to say."""

    settings: Settings
    dataset: Dataset
    model: Model
    plan: FeaturePlan
    rows: list[ModuleRow]

    @property
    def trains(self) -> bool:
        return any(p.requires_grad for p in self.model.network.parameters())

    @property
    def macs(self) -> float:
        return self.plan.prefix_macs + self.plan.suffix_macs

    @property
    def why_no_boundary(self) -> str:
        """Why there is no gradient boundary; empty where there is one."""
        if not self.trains:
            return "nothing trains"
        return "" if self.plan.split else self.plan.why


def print_all(console: Console, found: Inspected, every_parameter: bool) -> None:
    network = found.model.network
    model_lines(console, found.model, found.settings, len(found.dataset.classes))
    console.print()
    print_table(console, found.rows, found.macs, boundary_text(found))
    console.print()
    for line in cache_lines(found):
        say(console, "cache", line)
    parameters, counts = list_parameters(network), count_parameters(network)
    if every_parameter:
        width = max(len(one["name"]) for one in parameters)
        line = f"{{name:<{width}}}  {{shape:>14}}  {{values:>10,}}  requires_grad={{requires_grad}}"
        for one in parameters:
            console.print(line.format(**one))
    total, trainable = counts["total"], counts["trainable"]
    named = f"{len(parameters)} named parameters, {total:,} values, {trainable:,} of them trainable"
    say(console, "count", named)
    if not found.trains:
        say(console, "warning", "the loss carries no gradient: nothing trains, and training would be refused")


def print_table(console: Console, rows: Sequence[ModuleRow], macs: float, boundary: str) -> None:
    """The rows below a header, with the boundary as a line between them; none where the text is empty."""
    table = columns(*HEADER, numbers=TO_THE_RIGHT)
    for row in rows:
        name, kind, *cells = _cells(row, macs)
        # On a narrow terminal the type alone is cut short.
        short = Text(kind, no_wrap=True, overflow="ellipsis")
        table.add_row(name, short, *cells, style="dim" if row.constant else "")
    for column in table.columns:
        column.no_wrap = column.header != "type"
    options = console.options if console.is_terminal else console.options.update(width=10_000)
    lines = console.render_lines(table, options, pad=False)
    length = sum(segment.cell_length for segment in lines[0])
    for number, line in enumerate(lines):
        if boundary and number == boundary_index(rows) + 1:
            ruled = f"── {boundary} "
            console.print(Text(ruled + "─" * (length - cell_len(ruled)), "bold cyan"), soft_wrap=True)
        console.print(Segments([*line, Segment("\n")]), end="", soft_wrap=True)


def _cells(row: ModuleRow, macs: float) -> tuple[str, ...]:
    share = row.macs / macs if macs else 0.0
    work = f"{share:.1%}" if share >= 0.001 else "<0.1%"
    state = {0: "frozen", row.parameters: "trains"}.get(row.trainable, "mixed")
    return (
        row.name,
        row.type,
        "" if row.output is None else "x".join(map(str, row.output)) or "scalar",
        f"{row.parameters:,}" if row.parameters else "",
        work if row.macs else "",
        state if row.parameters else "",
        row.mode or "",
        _rates(row),
    )


def _rates(row: ModuleRow) -> str:
    """The groups of a row and their rates: head 0.01; backbone and head are told apart, decay is not."""
    named: dict[str, list[float]] = {}
    for group in row.groups:
        named.setdefault(group.name.removesuffix("_without_decay"), []).append(group.lr)
    spans = {name: f"{min(lrs):g}" + f"…{max(lrs):g}" * (min(lrs) < max(lrs)) for name, lrs in named.items()}
    return ", ".join(f"{name} {span}" for name, span in spans.items())


def boundary_text(found: Inspected) -> str:
    """What crosses the gradient boundary; empty where nothing can be kept."""
    halves = found.plan.split
    if halves is None or not found.trains:
        return ""
    shapes = " + ".join("x".join(map(str, one.shape)) for one in halves.crossings)
    numbers = sum(math.prod(one.shape) for one in halves.crossings)
    size = decimal(sum(one.size for one in halves.crossings))
    told = f"{shapes} numbers" if shapes == str(numbers) else f"{shapes} = {numbers:,} numbers"
    return f"gradient boundary: {told} an image, {size} in float32"


def cache_lines(found: Inspected) -> list[str]:
    """The share of the forward pass that is skipped, the size of the store, and what is decided."""
    share = found.plan.share
    if why := found.why_no_boundary:
        return [f"nothing would be kept: {why}"]
    share = share if share == 1 else min(share, 0.9999)  # 100 % only where nothing is left
    return [
        f"{share:.2%} of the forward pass is constant and would run once an image",
        f"cache={found.settings.cache}: {_decision(found)}",
    ]


def _decision(found: Inspected) -> str:
    plan = found.plan
    if not plan.size:
        return f"nothing, {plan.why}"
    views = f"{len(plan.views)} views of " if len(plan.views) > 1 else ""
    size = f"{views}{counted(plan.images, 'image')} in {plan.form.dtype} take {decimal(plan.size)}"
    place = {"disk": "on disk", "memory": "in memory", "none": "not kept"}[plan.where]
    why = plan.why if plan.why != f"cache={found.settings.cache}" else "as asked for"
    return f"{size}: {why}" if place in why else f"{size}: {place}, {why}"


def inspection_json(found: Inspected, every_parameter: bool) -> dict[str, Any]:
    """All of it for machines; work in multiply-adds, sizes in bytes, shapes without the batch."""
    model, parameters = found.model, list_parameters(found.model.network)
    splits = not found.why_no_boundary
    return {
        "model": model.name,
        "weights": model.weights.used,
        "warning": model.weights.warning or None,
        "freeze": found.settings.freeze,
        "head": model.head,
        "outputs": model.outputs,
        "input": list(model.example.shape[1:]),
        "pictures": found.dataset.counts(),
        "parameters": {"named": len(parameters), **count_parameters(model.network)},
        "carries_gradient": found.trains,
        "macs": found.macs,
        "boundary": _boundary(found) if splits else None,
        "why_no_boundary": found.why_no_boundary or None,
        "cache": _cache(found) if splits else None,
        "modules": [asdict(row) for row in found.rows],
        **({"parameter_list": parameters} if every_parameter else {}),
    }


def _boundary(found: Inspected) -> dict[str, Any]:
    crossings = found.plan.split.crossings if found.plan.split else ()
    return {
        "before": next((row.name for row in found.rows[boundary_index(found.rows) :]), None),
        "crossings": [{"name": one.name, "shape": one.shape, "bytes": one.size} for one in crossings],
        "bytes": sum(one.size for one in crossings),
        "skipped": found.plan.share,
    }


def _cache(found: Inspected) -> dict[str, Any]:
    plan = found.plan
    return {
        "asked": found.settings.cache,
        "where": plan.where,
        "why": plan.why,
        "form": str(plan.form),
        "pictures": plan.images,
        "views": len(plan.views),
        "bytes": plan.size,
    }
