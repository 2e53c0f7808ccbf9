"""`finetune cache --fill`: what a run computes once for each image, computed and stored beforehand."""

from __future__ import annotations

from functools import partial

from rich.console import Console

from finetune import build
from finetune.adaptation import inputs_by_evidence
from finetune.config.schema import Settings
from finetune.demands import refuse_broken, refuse_untrainable
from finetune.errors import RequestError
from finetune.report import terminal
from finetune.say import progress


def fill_store(settings: Settings, console: Console) -> None:
    """Compute and store the features that a run with these settings needs, and say how many; nothing trains.

    Raises:
        RequestError: a run would store none, or be refused before it trains.
    """
    device = build.build_options(settings).device
    dataset = build.find_data(settings, partial(progress, console))
    model = build.make_model(settings, dataset)
    dataset = dataset.numbered_as(model.classes)
    refuse_untrainable(settings, model, dataset)
    plan = build.plan_inputs(settings, dataset, model, device)
    if plan.where != "disk":
        expected = "expected settings with which a run stores features"
        raise RequestError(f"--fill: {expected}; with these: {plan.why}")
    terminal.model_lines(console, model, settings, len(dataset.classes))
    inputs = inputs_by_evidence(settings, dataset, model, device, console=console, known=None)
    refuse_broken(settings, inputs, dataset, None)
    terminal.input_lines(console, inputs, model, settings.class_weights)
