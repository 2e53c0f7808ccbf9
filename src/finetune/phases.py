"""`phases` and `freeze=auto`: ordinary runs below one folder, each started from the one before."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from pytorch_lightning.callbacks import ModelCheckpoint
from rich.console import Console

from finetune.atomic import linked, write_atomically
from finetune.build import build_options, find_data, make_model, plan_inputs, solves
from finetune.cells import read_table, table_of
from finetune.choices.best import score
from finetune.choices.callbacks import CALLBACKS
from finetune.choices.given import is_given
from finetune.config.phases import deltas, named_phase, phase_settings
from finetune.config.schema import Settings, flat
from finetune.demands import refuse_labels, refuse_unsolvable, refuse_untrainable, refuse_validating
from finetune.errors import RequestError
from finetune.evaluation.overlay import maps
from finetune.ladder import RUNGS, Ladder, refuse_undecided
from finetune.model.freeze import freeze
from finetune.prepared import Prepared
from finetune.report import terminal
from finetune.report.page import write_report
from finetune.report.tensorboard import restore_log
from finetune.runs import epochs
from finetune.runs import folder as folders
from finetune.runs.open import SEEN, open_run
from finetune.runs.resume import own_overrides
from finetune.runs.settings import read_settings
from finetune.runs.summary import read_summary, write_summary
from finetune.say import say

# Trains one run, where what it is given finds it ready to; else the summary is empty.
Train = Callable[[Settings, Path, Callable[[Prepared], bool]], dict[str, Any]]
KEPT = (  # of the phase whose model is the run's
    *("checkpoints/best.ckpt", "checkpoints/frozen.safetensors", str(SEEN)),
    *("predictions.csv", "skipped.csv", folders.REFERENCE),
)


def run_phases(
    settings: Settings, folder: Path, console: Console, *, train: Train, leads: bool = True
) -> dict[str, Any]:
    """Train each phase that has not ended, in a folder of its own, and return the run's summary.

    leads: whether this process writes, of those that train together; the others return nothing.
    """
    if leads:
        _begin(settings, folder, console)
    changes, ended = deltas(settings), list[dict[str, Any]]()
    ladder = Ladder(settings, folder, console) if settings.freeze == ["auto"] else None
    names = RUNGS if ladder else [", ".join(f"{k}={v}" for k, v in flat(one).items()) for one in changes]
    given = [CALLBACKS[name](folder, "") for name in settings.callbacks if is_given(name)]
    states = [copy.deepcopy(_state(one)) for one in given]
    for number in range(len(changes)):
        place = folder / folders.PHASES / str(number)
        summary = read_summary(place) if settings.resume else None
        say(console, "phase", f"{number + 1} of {len(changes)}: {names[number]}")
        if summary is None or summary["status"] != "finished":
            again = "auto" if (place / "settings.json").exists() else None
            asked = phase_settings(settings, number).model_copy(update={"resume": again})
            for one, state in zip(given, states, strict=True):  # what counts epochs begins anew
                _restore(one, copy.deepcopy(state))
            with named_phase(settings, number):
                summary = train(asked, place, ladder.may_begin if ladder else lambda _: True)
        else:
            folders.check_tables(place, summary["files"])
            say(console, "", "finished before")
        if summary:
            ended.append(summary)
        if ladder and not ladder.goes_on(summary):
            break
    if not leads:
        return {}
    kept = ladder.kept if ladder else _best(ended)
    terminal.phase_lines(console, ended, names, kept)
    if ladder:
        say(console, "auto", ladder.why)
    return _finish(folder, ended, kept, console)


def _state(callback: Any) -> dict[str, Any]:
    """What a callback knows of a training; Lightning's own state of a ModelCheckpoint has not all of it."""
    return vars(callback) if isinstance(callback, ModelCheckpoint) else callback.state_dict()


def _restore(callback: Any, state: dict[str, Any]) -> None:
    vars(callback).update(state) if isinstance(callback, ModelCheckpoint) else callback.load_state_dict(state)


def _refuse_phases(settings: Settings) -> None:
    """Refuse before anything is computed what a phase would be refused for later."""
    each = [phase_settings(settings, number) for number in range(len(deltas(settings)))]
    data = find_data(each[0])
    sizes = {one.data.image_size: one for one in reversed(each)}
    models = {
        size: make_model(one.model_copy(update={"freeze": ["all"]}), data) for size, one in sizes.items()
    }
    stages = [getattr(models[one.data.image_size].network, "head_stages", ()) for one in each]
    for number, one in enumerate(each):
        with named_phase(settings, number):
            options = build_options(one)
            refuse_labels(one, data)
            if settings.freeze == ["auto"]:
                refuse_undecided(data)
            model = models[one.data.image_size]
            if stages[number] != stages[0]:
                read = f"reads {', '.join(stages[0])} as before (head_features)"
                raise RequestError(
                    f"data.image_size={one.data.image_size}: expected a size where the head {read}"
                )
            freeze(model.network, one.freeze, model.head, model.example)
            refuse_untrainable(one, model, data)
            if not len(data.split["val"]):
                refuse_validating(one)
            if solves(one):
                refuse_unsolvable(one, model, plan_inputs(one, data, model, options.device))


def _best(ended: list[dict[str, Any]]) -> int:
    """The phase that did best in validation, of equals the first; the last where nothing says so."""
    scores = [one["val"] and score(one["best"], one["val"]) for one in ended]
    if ended[-1]["best"] == "last" or None in scores:
        return len(ended) - 1
    return max(range(len(ended)), key=lambda number: scores[number])


def _begin(settings: Settings, folder: Path, console: Console) -> None:
    if settings.resume and (folder / "settings.json").exists():
        epochs.differs_in_epochs(settings, folder)
    else:
        folders.refuse_used(folder)
        _refuse_phases(settings)
        folders.begin(folder, settings.model_dump())
    if note := folders.start(folder, (), latest=not settings.fast_dev_run):
        say(console, "note", note)


def _finish(folder: Path, ended: list[dict[str, Any]], kept: int, console: Console) -> dict[str, Any]:
    """The model, answers and figures of the phase that is kept as those of the run; all curves as one."""
    place = folder / folders.PHASES / str(kept)
    for name in KEPT:
        (folder / name).unlink(missing_ok=True)
        if (place / name).exists() and not linked(place / name, folder / name):
            write_atomically(folder / name, (place / name).read_bytes())
    rows, before = _joined(folder, ended, kept)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    curves = table_of([columns, *([row.get(key, "") for key in columns] for row in rows)])
    write_atomically(folder / "metrics.csv", curves)
    own, steps = read_settings(place), int(rows[-1]["step"])
    if "tensorboard" in own.logger:
        restore_log(folder, steps, curves.decode())
    chosen, timing = ended[kept], [one["timing"] for one in ended]
    summary = {
        **chosen,
        "weights": ended[0]["weights"],
        "overrides": own_overrides(folder),
        "best_epoch": before + (1 if chosen["solution"] else chosen["best_epoch"]),
        "epochs": len(rows),
        "steps": steps,
        "timing": {key: sum(one[key] for one in timing) for key in timing[0]},
        "phase": kept,
        "phases": [
            {key: one[key] for key in ("freeze", "val", "test", "parameters", "timing")} for one in ended
        ],
        "files": folders.digests(folder),
    }
    write_report(folder, summary, find_data(own).images, partial(maps, open_run(str(place))))
    write_summary(folder, summary)
    if own.fast_dev_run:
        say(console, "done", "every phase ran; nothing is kept (fast_dev_run)")
    else:
        terminal.result_lines(console, summary, folder)
    return summary


def _joined(folder: Path, ended: list[dict[str, Any]], kept: int) -> tuple[list[dict[str, str]], int]:
    """The rows of all phases' curves, counted on, and how many are before the phase that is kept.

    Of a solve the last one: its iterations are no epochs.
    """
    found, steps, before = list[dict[str, str]](), 0, 0
    for number, summary in enumerate(ended):
        rows = read_table(folder / folders.PHASES / str(number) / "metrics.csv")
        before = len(found) if number == kept else before
        for row in rows[-1:] if summary["solution"] else rows:
            at = {"epoch": str(len(found) + 1), "step": str(steps + int(row["step"])), "phase": str(number)}
            found.append({**at, **{key: one for key, one in row.items() if key not in at}})
        steps += int(rows[-1]["step"])
    return found, before
