"""The commands; every error a user can cause becomes one line and an exit code."""

from __future__ import annotations

import gc
import importlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import hydra
import typer
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from finetune.errors import Interrupted, RequestError, RunError
from finetune.settings import Settings, configs_folder, no_such_knob, validate

if TYPE_CHECKING:
    from finetune.model.assemble import Model

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Transfer learning for image classification: what is frozen is computed once.",
)
OVERRIDES = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def free_folder(wanted: str) -> str:
    """A folder of that name that did not exist yet, made; a second run within the second gets a suffix."""
    folder, number = Path(wanted), 1
    folder.parent.mkdir(parents=True, exist_ok=True)
    while True:
        try:
            folder.mkdir()
        except FileExistsError:
            number += 1
            folder = Path(f"{wanted}-{number}")
        else:
            return str(folder)


# Hydra resolves its folder several times and in copies of its config; the cache goes along with them.
OmegaConf.register_new_resolver("free_folder", free_folder, use_cache=True, replace=True)


class Job:
    """What Hydra calls for each job; keeps exit codes, as an exception would lose the other jobs' results."""

    def __init__(self) -> None:
        self.began = False
        self.codes: list[int] = []

    def __call__(self, config: DictConfig) -> float | None:
        self.began = True
        console = Console(soft_wrap=True)
        sweep = HydraConfig.get().mode == RunMode.MULTIRUN
        folder = Path(os.path.relpath(HydraConfig.get().runtime.output_dir))
        if sweep:
            console.print(f"\n[bold]job {HydraConfig.get().job.num}[/]  ", end="")
            console.print(" ".join(HydraConfig.get().overrides.task), markup=False, highlight=False)
        code, result = guarded(lambda: _run(settings_of(config), folder, console))
        # In a sweep a wrong request is a failed job like any other.
        self.codes.append(1 if sweep and code == 2 else code)
        if code >= 128:
            raise SystemExit(code)  # an interrupt ends a sweep, too
        return None if result is None or result["val"] is None else result["val"]["accuracy"]


def _run(settings: Settings, folder: Path, console: Console) -> dict[str, Any]:
    _import_torch()
    from finetune.run import run

    return run(settings, folder, console)


def _import_torch() -> None:
    """Import what trains; late, so that a wrong knob is told at once.

    Importing makes a million objects that stay. Told not to look through them again and again, the garbage
    collector costs a second less.
    """
    if "torch" not in sys.modules:
        gc.disable()
        importlib.import_module("finetune.run")
        gc.freeze()
        gc.enable()


def settings_of(config: DictConfig) -> Settings:
    """Check a composed config."""
    try:
        values = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:  # a reference to a key that is not there
        raise RequestError(str(error).splitlines()[0]) from None
    assert isinstance(values, dict)
    return validate({str(key): value for key, value in values.items()})


def guarded(work: Callable[[], Any]) -> tuple[int, Any]:
    """Do it; on an error of the kinds that users meet, print its line and return its exit code."""
    try:
        return 0, work()
    except RequestError as error:
        code, line = 2, one_line(error)
    except Interrupted as error:
        code, line = error.exit_code, one_line(error)
    except RunError as error:
        code, line = 1, one_line(error)
    except KeyboardInterrupt:
        code, line = 130, "interrupted"
    print(f"error: {line}", file=sys.stderr)
    return code, None


def one_line(error: BaseException) -> str:
    """The text of an error without line breaks."""
    return " ".join(str(error).splitlines())


def refusal(error: BaseException, overrides: Sequence[str]) -> str:
    """What to print when Hydra refuses a request before any job began: its own text, and what it means."""
    if not isinstance(error, HydraException):
        chain: BaseException | None = error
        while chain:
            if isinstance(chain, OSError):
                return f"error: hydra.run.dir: {chain.filename} cannot be made: {chain.strerror}"
            chain = chain.__cause__ or chain.__context__  # OmegaConf wraps what free_folder raises
        return f"error: {one_line(error)}"
    lines = [str(error)]
    if isinstance(error.__cause__, OmegaConfBaseException):
        lines.append(str(error.__cause__))
    for override in overrides:
        key, _, value = override.partition("=")
        key = key.lstrip("+~")
        if f"override '{key}'" in str(error):
            lines.append(f"error: {no_such_knob(key)}")
        if value.startswith("~"):
            lines.append(f"error: {key}: Hydra takes ~ only in quotes: \"{key}='{value}'\"")
    return "\n".join(lines)


def train() -> NoReturn:
    """Train one run, or a sweep with -m, from the command line's overrides; ends the process."""
    job = Job()
    debugging = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises its refusals, where it would print a traceback
    try:
        # Hydra names its job after the function and reads the source file of a plain one only.
        hydra.main(version_base="1.3", config_path=str(configs_folder().resolve()), config_name="config")(
            lambda config: job(config)
        )()
    except Exception as error:
        if job.began or debugging:
            raise
        print(refusal(error, sys.argv[1:]), file=sys.stderr)
        sys.exit(2)
    sys.exit(max(job.codes, default=0))


@app.command("train", context_settings=OVERRIDES, add_help_option=False)
def train_command(context: typer.Context) -> None:
    """Train one run, or a sweep with -m: finetune train freeze=all head=10."""
    sys.argv = ["finetune train", *context.args]
    train()


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def inspect(
    context: typer.Context,
    every_parameter: bool = typer.Option(
        False, "--parameters", help="List every parameter with its requires_grad."
    ),
) -> None:
    """Say what would train: finetune inspect freeze=all head=10 --parameters."""
    code, _ = guarded(lambda: _inspect(compose(context.args), every_parameter))
    sys.exit(code)


def compose(overrides: list[str]) -> Settings:
    """The settings that a command line of overrides amounts to; ends the process where Hydra refuses it."""
    try:
        with hydra.initialize_config_dir(str(configs_folder().resolve()), version_base="1.3"):
            return settings_of(hydra.compose("config", overrides))
    except (HydraException, OmegaConfBaseException) as error:
        print(refusal(error, overrides), file=sys.stderr)
        sys.exit(2)


def _inspect(settings: Settings, every_parameter: bool) -> None:
    _import_torch()
    from finetune.inspection.parameters import table
    from finetune.report.terminal import model_lines, say
    from finetune.run import find_data, make_model

    console = Console(soft_wrap=True)
    dataset = find_data(settings)
    model: Model = make_model(settings, dataset)
    model_lines(console, model, settings.freeze, len(dataset.classes))
    rows = table(model.network)
    if every_parameter:
        width = max(len(name) for name, *_ in rows)
        for name, shape, number, trains in rows:
            print(f"{name:<{width}}  {shape:>14}  {number:>10,}  requires_grad={trains}")
    total = sum(number for _, _, number, _ in rows)
    trainable = sum(number for _, _, number, trains in rows if trains)
    say(console, "count", f"{len(rows)} named parameters, {total:,} values, {trainable:,} of them trainable")
    if not trainable:
        say(console, "warning", "the loss carries no gradient: nothing trains, and training would be refused")


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def cache(
    context: typer.Context, clear: bool = typer.Option(False, "--clear", help="Remove all stored features.")
) -> None:
    """Say what the feature store holds: finetune cache."""
    code, _ = guarded(lambda: _cache(Path(os.path.expanduser(compose(context.args).cache_dir)), clear))
    sys.exit(code)


def _cache(folder: Path, clear: bool) -> None:
    from finetune.features import store
    from finetune.features.plan import readable

    if clear:
        print(f"{readable(store.clear(folder))} removed from {folder}")
        return
    held = store.contents(folder)
    for one in held:
        shapes = " + ".join("x".join(map(str, shape)) for shape in one["row"])
        print(
            f"{readable(one['bytes']):>8}  {one['rows']:>9,} pictures  {one['model']}"
            f" at {', '.join(one['boundary'])}"
            f" ({shapes}, {one['dtype'].removeprefix('torch.')}, {one['view']})  {one['folder']}"
        )
    print(f"{readable(store.size(folder))} in {len(held)} sets of features in {folder}")


def main() -> None:
    """Run a command as sys.argv has it; raises SystemExit."""
    app()


def at_once(command: Callable[[], object]) -> NoReturn:
    """Run a command and end the process with its exit code, without Python's own clearing up.

    Clearing up after torch takes more than a second and does nothing that ending the process would not.
    """
    code: object = 0
    try:
        command()
    except SystemExit as ended:
        code = ended.code or 0
    except BaseException:  # a fault of ours: told as Python tells it
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 1)


def console_script() -> NoReturn:
    """The console script `finetune`."""
    at_once(main)
