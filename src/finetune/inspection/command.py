"""`finetune inspect`: from settings to what is said, written or drawn of a model that is not trained."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from finetune.data.sources import Dataset
from finetune.features.inputs import Prospect
from finetune.features.plan import Plan, make_plan
from finetune.inspection import graph, modules, parameters
from finetune.inspection.modules import Row
from finetune.model.assemble import Model
from finetune.parts import cache_dir, find_data, make_loss, make_model, optimizer_groups
from finetune.prepare import look_ahead
from finetune.settings import Settings


@dataclass(frozen=True)
class Inspected:
    """All that there is to say. auto: what `cache=auto` would decide."""

    settings: Settings
    dataset: Dataset
    model: Model
    prospect: Prospect
    auto: Plan
    rows: list[Row]

    @property
    def trains(self) -> bool:
        """Whether the loss carries a gradient."""
        return any(p.requires_grad for p in self.model.network.parameters())


def inspect(
    settings: Settings,
    console: Console,
    *,
    every_parameter: bool = False,
    as_json: bool = False,
    picture: Path | None = None,
    depth: int | None = None,
) -> None:
    """Look at what would train, and print it; nothing is trained and no picture of the data is decoded.

    every_parameter: list each parameter, too. as_json: print one JSON object and nothing else.
    picture: where to draw the autograd graph. depth: how deep to unfold; None: as is well read.

    Raises:
        RequestError: the request was wrong. RunError: the picture cannot be written.
    """
    from finetune.report import inspection

    found = look(settings, depth if depth or not as_json else 2**31)
    nodes = draw(found, picture, depth) if picture else []
    if as_json:
        print(json.dumps(inspection.as_json(found, every_parameter), indent=2))
        return
    inspection.print_all(console, found, every_parameter)
    if picture:
        inspection.graph_line(console, nodes, picture)


def look(settings: Settings, depth: int | None = None) -> Inspected:
    """Find data and model, and all that follows from them without training."""
    dataset = find_data(settings)
    model = make_model(settings, dataset)
    dataset = dataset.numbered_as(model.classes)
    prospect = look_ahead(settings, dataset, model)
    auto = make_plan(
        prospect.boundary,
        settings.data.augment,
        "auto",
        prospect.contents * prospect.views,
        prospect.form.itemsize,
        cache_dir(settings),
        settings.cache_max_gb,
        prospect.held,
    )
    halves = prospect.boundary.split
    found = modules.rows(
        model.network,
        modules.execute(model.network, model.example),
        optimizer_groups(settings, model)[2],
        halves.frozen if halves else (),
        depth,
    )
    return Inspected(settings, dataset, model, prospect, auto, found)


def draw(found: Inspected, picture: Path, depth: int | None = None) -> list[graph.Node]:
    """Draw the autograd graph of one training step into a file, and return its nodes."""
    from finetune.report.graph import draw as draw_nodes

    settings, model = found.settings, found.model
    labels = torch.from_numpy(found.dataset.labels)
    loss = make_loss(settings, labels[found.dataset.split["train"]], model.outputs)
    calls = graph.record(model.network, loss, model.example, labels[:1])
    nodes = graph.fold(calls, model.network, depth)
    subtitle = f"freeze={brackets(settings.freeze)}, head={settings.head}, loss={settings.loss}"
    counts = parameters.counts(model.network)
    draw_nodes(nodes, picture, model.name, subtitle, **counts)
    return nodes


def brackets(patterns: list[str]) -> str:
    """A value of `freeze` as the command line has it."""
    return patterns[0] if len(patterns) == 1 else f"[{','.join(patterns)}]"
