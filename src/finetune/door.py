"""Between Hydra and the commands: settings composed, errors told in one line, exit codes."""

from __future__ import annotations

import errno
import gc
import importlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, NoReturn

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from finetune import output
from finetune.errors import Interrupted, RequestError, RunError, brief, one_line
from finetune.settings import SECTIONS, Settings, configs_folder
from finetune.validation import known_keys, no_such_knob, validate


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


# Knobs whose values are paths and names, in whatever letters.
PLACES = (
    *("data.root", "data.name", "data.image_column", "data.label_column", "weights", "cache_dir"),
    *("hydra.run.dir", "hydra.sweep.dir"),
)


def readable(override: str) -> str:
    """A command line's override as Hydra's grammar takes it: a path such as München goes into quotes.

    A list (a comma) or what is in quotes or brackets already stays as it is.
    """
    key, _, value = override.partition("=")
    if key not in PLACES or not value or "," in value or "\\" in value or value[0] in "'\"[{$":
        return override
    try:
        OverridesParser.create().parse_override(override)
    except HydraException:
        escaped = value.replace("'", "\\'")
        return f"{key}='{escaped}'"
    return override


def compose(overrides: list[str]) -> Settings:
    """The settings that a command line of overrides amounts to; ends the process where Hydra refuses it."""
    overrides = [*map(readable, overrides)]
    try:
        return settings_of(composed(overrides))
    except (HydraException, OmegaConfBaseException) as error:
        print(refusal(error, overrides), file=sys.stderr)
        sys.exit(2)


def composed(overrides: list[str]) -> DictConfig:
    """The shipped configs with overrides, as Hydra composes them; its errors are let out."""
    with hydra.initialize_config_dir(str(configs_folder().resolve()), version_base="1.3"):
        return hydra.compose("config", overrides)


def override(settings: Settings, overrides: list[str], takes: Sequence[str]) -> Settings:
    """A run's settings with some changed as on the command line; ends the process where Hydra refuses it.

    takes: the knobs and sections that may be changed; a section as a whole, by its name.

    Raises:
        RequestError: a knob is not among them, or a value is wrong.
    """
    overrides = [*map(readable, overrides)]
    try:
        parsed = OverridesParser.create().parse_overrides(overrides)
    except HydraException as error:
        print(refusal(error, overrides), file=sys.stderr)
        sys.exit(2)
    for one in parsed:
        if one.key_or_group not in known_keys():
            raise RequestError(no_such_knob(one.key_or_group))
        if one.key_or_group not in takes:
            raise RequestError(f"{one.key_or_group}: this is the run's own; expected {brief(takes, 4)}")
        if one.is_sweep_override():
            raise RequestError(f"{one.input_line}: expected a single value")
    values = settings.model_dump()  # data: what is typed now is interpolated, what was stored is not
    groups = [one for one in parsed if one.key_or_group in SECTIONS]
    if groups:
        fresh = compose([str(one.input_line) for one in groups]).model_dump()
        values |= {one.key_or_group: fresh[one.key_or_group] for one in groups}
    for one in parsed:
        if one not in groups:
            section, _, key = one.key_or_group.rpartition(".")
            (values[section] if section else values)[key] = _typed(one)
    return validate(values)


def _typed(override: Override) -> Any:
    try:
        return _resolved(OmegaConf.create({"value": override.value()}))["value"]
    except OmegaConfBaseException as error:
        raise RequestError(f"{override.input_line}: {str(error).splitlines()[0]}") from None


def settings_of(config: DictConfig) -> Settings:
    """Check a composed config."""
    try:
        # Not what is Hydra's: to read where a run would lie makes that folder.
        values = {str(key): _resolved(config[key]) for key in config if key != "hydra"}
    except OmegaConfBaseException as error:  # a reference to a key that is not there
        raise RequestError(str(error).splitlines()[0]) from None
    return validate(values)


def _resolved(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def check_picture(name: str) -> Path:
    """The file of that name, after a look, before any work is done, at whether a picture can go there.

    Raises:
        RequestError: it cannot be written, or its ending is unknown.
    """
    file = Path(os.path.expanduser(name))
    if file.suffix.lower() not in (".svg", ".png"):
        raise RequestError(f"--graph {file}: expected a file that ends in .svg or .png")
    try:
        if file.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        with TemporaryFile(dir=file.parent):
            pass
    except OSError as error:
        raise RequestError(f"--graph {file}: cannot be written: {error.strerror}") from None
    return file


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


def refusal(error: BaseException, overrides: Sequence[str]) -> str:
    """What to print when Hydra refuses a request before any job began: its own text, and what it means."""
    if not isinstance(error, HydraException):
        chain: BaseException | None = error
        while chain:
            if isinstance(chain, OSError):
                return f"error: hydra.run.dir: {chain.filename} cannot be made: {chain.strerror}"
            chain = chain.__cause__ or chain.__context__  # OmegaConf wraps what free_folder raises
        return f"error: {one_line(error)}"
    text = str(error)
    lines = [text]
    if isinstance(error.__cause__, OmegaConfBaseException):
        lines.append(str(error.__cause__))
    for override in overrides:
        key, equals, value = override.partition("=")
        key = key.lstrip("+~")
        if f"override '{override}'" in text and not equals:
            lines.append(f"error: {override}: expected {override}=VALUE")
        elif f"override '{key}'" in text and "parsing override" not in text:
            lines.append(f"error: {no_such_knob(key)}")
        elif f"Could not find '{key}/{value}'" in text:
            lines.append(f"error: {override}: expected one of {', '.join(_choices(text))}")
    return "\n".join(dict.fromkeys(lines))


def _choices(text: str) -> list[str]:
    """Those that Hydra lists, each on an indented line, where a choice of a section is unknown."""
    return [line.strip() for line in text.partition("Config search path")[0].splitlines() if line[:1] == "\t"]


def import_torch(module: str = "finetune.run") -> None:
    """Import what trains, or another module that needs torch; late, so that a wrong knob is told at once.

    Importing makes a million objects that stay. Told not to look through them again and again, the garbage
    collector costs a second less.
    """
    if "torch" not in sys.modules:
        gc.disable()
        importlib.import_module(module)
        gc.freeze()
        gc.enable()


def at_once(command: Callable[[], object]) -> NoReturn:
    """Run a command and end the process with its exit code, without Python's own clearing up.

    Clearing up after torch takes more than a second and does nothing that ending the process would not.
    """
    code: object = 0
    # No Python that is started on the way, by whatever library, runs what lies in the working folder.
    os.environ["PYTHONSAFEPATH"] = "1"
    output.take_over()
    try:
        command()
    except SystemExit as ended:
        code = ended.code or 0
    except BaseException:  # a fault of ours: told as Python tells it
        traceback.print_exc()
        code = 1
    os._exit(output.end(code if isinstance(code, int) else 1))
