"""The story of a sweep: its jobs in groups, each group prepared once and trained together where it can be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack

from finetune.build import build_options, solves
from finetune.errors import Interrupted, counted
from finetune.prepared import Prepared
from finetune.run import prepare, run, run_prepared
from finetune.runs import folder as folders
from finetune.runs import resume as resuming
from finetune.say import Bar, Screen, kept, say
from finetune.sweep.plans import Plan, alone_because, failing, groups, numbers
from finetune.sweep.together import solve_in_turns, train_together, why_alone


def train_all(plans: Sequence[Plan], console: Screen) -> None:
    """Train every job whose request was right; what each came to is in its plan. Raises Interrupted."""
    total = sum(plan.settings.epochs for plan in plans if plan.settings)
    done = 0
    what, alone = f"sweep of {counted(len(plans), 'job')}", len(plans) == 1
    with Bar(console, what, total, unit="epochs", hidden=alone) as bar:

        def so_far(epochs: int) -> None:
            bar.reach(done + epochs)

        try:
            for group in groups(plans):
                _train_group(group, console, so_far)
                done += sum(plan.settings.epochs for plan in group if plan.settings)
                bar.reach(done)
        except (KeyboardInterrupt, Interrupted) as stop:
            error = stop if isinstance(stop, Interrupted) else Interrupted("interrupted", 130)
            for plan in plans:
                if not plan.ended:
                    folders.give_reason(plan.folder, error)
            raise error from None


def _train_group(plans: list[Plan], console: Screen, reach: Callable[[int], None]) -> None:
    if len(plans) == 1 and not plans[0].together:
        _train_alone(plans[0], console)
        return
    fresh = []
    with ExitStack() as held:
        for plan in plans:
            with failing([plan]):
                if plan.resume_state is None:
                    folders.refuse_used(plan.folder)
                held.enter_context(folders.one_writer(plan.folder))
                fresh.append(plan)
        if fresh:
            with failing(fresh):  # by what they have in common
                _train_held(fresh, held, console, reach)


def _train_held(plans: list[Plan], held: ExitStack, console: Screen, reach: Callable[[int], None]) -> None:
    """Train jobs whose folders are held together or, where that cannot be, let go of them: each by itself."""
    first = plans[0]
    assert first.settings is not None
    options = build_options(first.settings)
    prepared = prepare(first.settings, first.folder, console, options, state=first.resume_state)
    for plan in plans:
        resuming.check_origin(plan.resume_state, prepared.origin)
    if solves(prepared.settings):
        solve_in_turns(plans, prepared, console, reach)
    elif why := why_alone(prepared):
        held.close()
        say(console, "alone", f"jobs {numbers(plans)}: {why}, so each trains by itself")
        for plan in plans:
            _train_alone(plan, console, prepared if plan is first else None)
    else:
        train_together(plans, prepared, console, reach)


def _train_alone(plan: Plan, console: Screen, prepared: Prepared | None = None) -> None:
    assert plan.settings is not None
    why = f" (alone: {why})" if (why := alone_because(plan.settings)) else ""
    console.print()
    say(console, f"job {plan.number}", f"{plan.shown or ' '.join(plan.overrides) or 'no overrides'}{why}")
    with failing([plan]):
        if prepared:
            with folders.one_writer(plan.folder), kept(console, plan.folder / folders.LOG):
                plan.finish(run_prepared(prepared, console))
        else:
            plan.finish(run(plan.settings, plan.folder, console))
