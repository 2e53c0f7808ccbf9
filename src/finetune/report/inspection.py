"""What `finetune inspect` prints: the table of modules with the gradient boundary in it, or JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

from finetune.features.plan import Plan, readable
from finetune.inspection import parameters
from finetune.inspection.graph import Node
from finetune.inspection.modules import Row, boundary_index
from finetune.report.say import Screen, say
from finetune.report.terminal import model_lines

if TYPE_CHECKING:
    from finetune.inspection.command import Inspected

HEADER = ("module", "type", "output", "parameters", "work", "state", "mode", "rate")
JUSTIFY: tuple[JustifyMethod, ...] = ("left", "left", "right", "right", "right", "left", "left", "left")


def print_all(console: Console, found: Inspected, every_parameter: bool) -> None:
    """The model, its table, what would be kept, and what all of it comes to."""
    model, boundary = found.model, found.prospect.boundary
    model_lines(console, model, found.settings.freeze, len(found.dataset.classes))
    console.print()
    print_table(console, found.rows, boundary.prefix_macs + boundary.suffix_macs, boundary_text(found))
    console.print()
    for line in cache_lines(found):
        say(console, "cache", line)
    listed = parameters.table(model.network)
    if every_parameter:
        width = max(len(name) for name, *_ in listed)
        for name, shape, number, trains in listed:
            console.print(f"{name:<{width}}  {shape:>14}  {number:>10,}  requires_grad={trains}")
    counts = parameters.counts(model.network)
    say(
        console,
        "count",
        f"{len(listed)} named parameters, {counts['total']:,} values,"
        f" {counts['trainable']:,} of them trainable",
    )
    if not found.trains:
        say(console, "warning", "the loss carries no gradient: nothing trains, and training would be refused")


def print_table(console: Console, rows: Sequence[Row], macs: float, boundary: str) -> None:
    """The rows in two tables of the same columns, with the boundary as a line between them."""
    cells = [_cells(row, macs) for row in rows]
    widths = [max(cell_len(line[i]) for line in [HEADER, *cells]) for i in range(len(HEADER))]
    if console.is_terminal:  # the type alone may be cut short
        widths[1] = max(4, min(widths[1], console.width - sum(widths) - 2 * len(widths) + widths[1]))
    console = console if console.is_terminal else Screen(file=console.file, width=10_000, no_color=True)
    at = boundary_index(rows) if boundary else 0
    _table(console, cells[:at], rows[:at], widths, header=True)
    if boundary:
        length = min(sum(widths) + 2 * len(widths) - 2, console.width)
        line = f"── {boundary} "
        console.print(Text(line + "─" * max(0, length - cell_len(line)), "bold cyan"), soft_wrap=True)
    _table(console, cells[at:], rows[at:], widths, header=False)


def _table(
    console: Console, cells: Sequence[Sequence[str]], rows: Sequence[Row], widths: list[int], header: bool
) -> None:
    table = Table(box=None, show_header=header, header_style="bold", padding=(0, 2, 0, 0), pad_edge=False)
    for name, width, justify in zip(HEADER, widths, JUSTIFY, strict=True):
        table.add_column(name, width=width, no_wrap=True, overflow="ellipsis", justify=justify)
    for line, row in zip(cells, rows, strict=True):
        table.add_row(*map(Text, line), style="dim" if row.constant else None)
    if header or rows:
        console.print(table)


def _cells(row: Row, macs: float) -> tuple[str, ...]:
    share = row.macs / macs if macs else 0.0
    work = "" if not row.macs else f"{share:.1%}" if share >= 0.001 else "<0.1%"
    return (
        row.name,
        row.type,
        "" if row.output is None else "x".join(map(str, row.output)) or "scalar",
        f"{row.parameters:,}" if row.parameters else "",
        work,
        row.trains,
        row.mode,
        _rate(row),
    )


def _rate(row: Row) -> str:
    """The groups of a row and their rates: head 0.01; backbone and head are told apart, decay is not."""
    named: dict[str, list[float]] = {}
    for name, lr in row.groups:
        named.setdefault(name.removesuffix("_without_decay"), []).append(lr)
    spans = {name: f"{min(lrs):g}" + f"…{max(lrs):g}" * (min(lrs) < max(lrs)) for name, lrs in named.items()}
    return ", ".join(f"{name} {span}" for name, span in spans.items())


def boundary_text(found: Inspected) -> str:
    """What crosses the gradient boundary; empty where nothing can be kept."""
    boundary = found.prospect.boundary
    if boundary.split is None or not found.trains:
        return ""
    crossings = boundary.split.crossings
    shapes = " + ".join("x".join(map(str, one.shape)) for one in crossings)
    numbers = sum(math.prod(one.shape) for one in crossings)
    size = readable(sum(one.size for one in crossings))
    told = f"{shapes} numbers" if shapes == str(numbers) else f"{shapes} = {numbers:,} numbers"
    return f"gradient boundary: {told} a picture, {size} in float32"


def why_none(found: Inspected) -> str:
    """Why there is no gradient boundary; empty where there is one."""
    return found.prospect.boundary.why if found.trains else "nothing trains"


def cache_lines(found: Inspected) -> list[str]:
    """The share of the forward pass that is skipped, the size of the store, and what is decided."""
    prospect, asked = found.prospect, found.settings.cache
    boundary = prospect.boundary
    if why := why_none(found):
        return [f"nothing would be kept: {why}"]
    lines = [f"{_share(boundary.share)} of the forward pass is constant and would run once a picture"]
    lines.append(f"cache={asked}: {_decision(found, prospect.plan)}")
    if asked != "auto":
        lines.append(f"cache=auto would decide: {_decision(found, found.auto)}")
    return lines


def _share(share: float) -> str:
    """A share in percent; 100 only where nothing is left."""
    return f"{min(share, 0.9999) if share < 1 else share:.2%}"


def _decision(found: Inspected, plan: Plan) -> str:
    if not plan.size:
        return f"nothing, {plan.why}"
    prospect = found.prospect
    views = f"{prospect.views} views of " if prospect.views > 1 else ""
    noun = "pictures" if prospect.contents > 1 else "picture"
    size = f"{views}{prospect.contents:,} {noun} in {prospect.form.dtype} take {readable(plan.size)}"
    place = {"disk": "on disk", "memory": "in memory", "none": "not kept"}[plan.where]
    why = plan.why if plan.why != f"cache={found.settings.cache}" else "as asked for"
    return f"{size}: {why}" if place in why else f"{size}: {place}, {why}"


def graph_line(console: Console, nodes: Sequence[Node], picture: Path) -> None:
    """What was drawn, and where."""
    made = sum(sum(node.grad_fns.values()) for node in nodes)
    what = f"{made} nodes of autograd in {len(nodes)} boxes" if made else f"no grad_fn, {len(nodes)} boxes"
    say(console, "graph", f"{picture}: {what}")


def as_json(found: Inspected, every_parameter: bool) -> dict[str, Any]:
    """All of it for machines; work in multiply-adds, sizes in bytes, shapes without the batch."""
    model, prospect, plan = found.model, found.prospect, found.prospect.plan
    boundary, why = prospect.boundary, why_none(found)
    halves = None if why else boundary.split
    listed = parameters.table(model.network)
    return {
        "model": model.name,
        "weights": model.weights.used,
        "warning": model.weights.warning or None,
        "freeze": found.settings.freeze,
        "head": model.head,
        "outputs": model.outputs,
        "input": list(model.example.shape[1:]),
        "pictures": found.dataset.counts(),
        "parameters": {"named": len(listed), **parameters.counts(model.network)},
        "carries_gradient": found.trains,
        "macs": boundary.prefix_macs + boundary.suffix_macs,
        "boundary": halves
        and {
            "before": next((row.name for row in found.rows[boundary_index(found.rows) :]), None),
            "crossings": [
                {"name": one.name, "shape": list(one.shape), "bytes": one.size} for one in halves.crossings
            ],
            "bytes": sum(one.size for one in halves.crossings),
            "skipped": boundary.share,
        },
        "why_no_boundary": why or None,
        "cache": halves
        and {
            "asked": found.settings.cache,
            "where": plan.where,
            "why": plan.why,
            "auto": {"where": found.auto.where, "why": found.auto.why},
            "form": str(prospect.form),
            "pictures": prospect.contents,
            "views": prospect.views,
            "bytes": plan.size,
        },
        "modules": [_described(row) for row in found.rows],
        **({"parameter_list": [_parameter(*one) for one in listed]} if every_parameter else {}),
    }


def _described(row: Row) -> dict[str, Any]:
    return {
        "name": row.name,
        "type": row.type,
        "output": None if row.output is None else list(row.output),
        "calls": row.calls,
        "parameters": row.parameters,
        "trainable": row.trainable,
        "mode": row.mode or None,
        "groups": [{"name": name, "lr": lr} for name, lr in row.groups],
        "macs": row.macs,
        "constant": row.constant,
    }


def _parameter(name: str, shape: str, values: int, trains: bool) -> dict[str, Any]:
    return {"name": name, "shape": shape, "values": values, "requires_grad": trains}
