"""A run that goes on: with the settings that it began with, though its epochs may grow."""

from __future__ import annotations

import shlex
from pathlib import Path

from rich.console import Console

from finetune.atomic import read_json, write_sealed
from finetune.choices.optimizers import OPTIMIZERS
from finetune.choices.schedules import SCHEDULES
from finetune.config.schema import Settings, flat
from finetune.errors import RequestError
from finetune.runs.settings import LATER, read_settings
from finetune.say import say
from finetune.training.checkpoint import forget_refitted, newest

# Settings that change no number of a run.
FREE = ("resume", "cache_dir", "cache_max_gb", "cache_shared", "data.workers")


def differs_in_epochs(settings: Settings, folder: Path) -> bool:
    """Whether settings are those of the run in a folder but for its epochs.

    These may be more, or fewer than were asked for later, down to what it began with or has trained.
    RequestError: another setting differs, or more epochs would change nothing.
    """
    before, now = (flat(one.model_dump()) for one in (read_settings(folder), settings))
    least = int(before["epochs"])
    if settings.epochs != least:
        _, content = newest(folder) or ("", {"epoch": -1})
        asked_first = read_json(folder / "settings.json", "the settings of a run").get("epochs", least)
        least = max(asked_first, content["epoch"] + 1)
    longer = settings.epochs >= least and settings.epochs != before["epochs"]
    for key in sorted(before.keys() | now.keys()):
        if key in FREE or before.get(key) == now.get(key) or (longer and key == "epochs"):
            continue
        wanted = f"{least} or more" if key == "epochs" else before.get(key)
        raise RequestError(
            f"{key}={now.get(key)}: expected {wanted}, as {folder / 'settings.json'} has it,"
            f" to go on with that run; weights={shlex.quote(str(folder))} starts a new run from its weights"
        )
    if longer and (why := _ended_by(settings, folder)):
        raise RequestError(f"epochs={settings.epochs}: expected a run that more epochs train on; {why}")
    return longer


def _ended_by(settings: Settings, folder: Path) -> str:
    """What else than the number of epochs has ended a run, or will; nothing where that is it."""
    _, content = newest(folder) or ("", {"epoch": -1, "global_step": 0})
    epochs, steps, patience = content["epoch"] + 1, settings.max_steps, settings.patience
    best = content.get("callbacks", {}).get("Checkpoints", {}).get("best_epoch", epochs)
    reasons = {
        "its phases have epochs of their own": settings.phased,
        f"optimizer={settings.optimizer.name} solves the head": OPTIMIZERS[settings.optimizer.name].solves,
        f"data.folds={settings.data.folds} chose this one's": settings.folded,
        f"max_steps={steps} ended this one": steps is not None and content["global_step"] >= steps,
        f"patience={patience} ended this one after epoch {epochs}": patience is not None
        and epochs - best >= patience,
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def note_epochs(settings: Settings, folder: Path, console: Console) -> None:
    """Where a run goes on for more epochs, note it and say what that means for the schedule."""
    file = folder / "settings.json"
    before = read_settings(folder).epochs
    if settings.epochs == before:
        return
    same = "goes on as if so many had been asked for from the start"
    other = "is laid over all of them: its rate moves to where it would be; a run of so many ends otherwise"
    text = same if SCHEDULES[settings.schedule].endless else other
    say(console, "epochs", f"{settings.epochs}, not {before}: schedule={settings.schedule} {text}")
    (folder / "summary.json").unlink(missing_ok=True)  # what it came to is no longer its end
    forget_refitted(folder)
    values = read_json(file, "the settings of a run")
    write_sealed(file, {**values, LATER: [*values.get(LATER, []), settings.epochs]})
