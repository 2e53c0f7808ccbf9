"""`finetune inspect`: from settings to what is said, written or drawn of a model that is not trained."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from rich.console import Console

from finetune.build import build_options, find_data, make_model, plan_inputs
from finetune.config.schema import Settings
from finetune.data.dataset import Dataset
from finetune.inspection import drawing, graph, modules, table
from finetune.learners import build_job_config
from finetune.model.assemble import Model
from finetune.model.parameters import count_parameters
from finetune.say import say
from finetune.training.stacked import JobConfig

EVERY_MODULE = 2**31


def inspect(
    settings: Settings,
    console: Console,
    *,
    every_parameter: bool = False,
    as_json: bool = False,
    drawing: Path | None = None,
    depth: int | None = None,
) -> None:
    """Look at what would train, and print it; nothing is trained and no image of the data is decoded.

    every_parameter: list each parameter, too. as_json: print one JSON object and nothing else.
    drawing: where to draw the autograd graph. depth: how deep to unfold; None: as is well read.
    """
    found = look(settings, depth if depth or not as_json else EVERY_MODULE)
    nodes = draw_graph(found, drawing, depth) if drawing else []
    if as_json:
        print(json.dumps(table.inspection_json(found, every_parameter), indent=2))
        return
    table.print_all(console, found, every_parameter)
    if drawing:
        made = sum(node.grad_fns.total() for node in nodes)
        what = f"{made} nodes of autograd in" if made else "no grad_fn,"
        say(console, "graph", f"{drawing}: {what} {len(nodes)} boxes")


def look(settings: Settings, depth: int | None = None) -> table.Inspected:
    """Find data and model, and all that follows from them without training."""
    dataset = find_data(settings)
    model = make_model(settings, dataset)
    dataset = dataset.numbered_as(model.classes)
    device = build_options(settings).device
    plan = plan_inputs(settings, dataset, model, device)
    rows = modules.module_rows(
        model.network,
        modules.execute_modules(model.network, model.example),
        groups=_config(settings, dataset, model).groups,
        constant=plan.split.frozen if plan.split else (),
        depth=depth,
    )
    return table.Inspected(settings=settings, dataset=dataset, model=model, plan=plan, rows=rows)


def _config(settings: Settings, dataset: Dataset, model: Model) -> JobConfig:
    labels = torch.from_numpy(dataset.labels[dataset.split["train"]])
    return build_job_config(settings, model, labels, batches=1)


def draw_graph(found: table.Inspected, file: Path, depth: int | None) -> list[graph.Node]:
    settings, model = found.settings, found.model
    labels = torch.from_numpy(found.dataset.labels)
    loss = _config(settings, found.dataset, model).create_loss()
    calls = graph.record_step(model.network, loss, model.example, labels[:1])
    nodes = graph.fold_calls(calls, model.network, depth)
    freeze = ",".join(settings.freeze)
    if len(settings.freeze) > 1:
        freeze = f"[{freeze}]"
    counts = count_parameters(model.network)
    lines = [
        f"freeze={freeze}, head={settings.head}, loss={settings.loss}",
        f"{counts['trainable']:,} of {counts['total']:,} parameters train",
    ]
    drawing.draw(nodes, file, model.name, lines)
    return nodes
