"""Settings from the command line's overrides, composed by Hydra; what it refuses is told in our words."""

from __future__ import annotations

import os
import re
import sys
import textwrap
from collections.abc import Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from finetune.config.messages import known_keys, unknown_choice, unknown_option, unknown_setting, validate
from finetune.config.phases import check_phases
from finetune.config.schema import NAMED, SECTIONS, Settings
from finetune.config.shipped import choices_of, configs_folder
from finetune.errors import RequestError, brief, near, shown

COMMENTED = ("optimizer", "trainer")  # the other groups' settings stand in config.yaml
GROUPS = (*SECTIONS, "experiment")  # folders of configs; one file of each is chosen by its name
# Settings whose values are paths and names, in whatever letters.
PLACES = (
    *("data.root", "data.name", "data.image_column", "data.label_column", "weights", "cache_dir"),
    *("data.label_separator", "data.image_folder", "data.image_suffix", "data.group_column"),
    *("hydra.run.dir", "hydra.sweep.dir"),
)
TABLES = (".csv", ".tsv", ".parquet", ".arrow", ".feather")
# What composing raises where the request is wrong; a group's name that is no text is a ValueError.
REFUSALS = (HydraException, OmegaConfBaseException, OSError, ValueError)


def free_folder(wanted: str) -> str:
    """A folder of that name that did not exist yet, made; a second run within the second gets a suffix."""
    folder, number = Path(wanted), 1
    while True:
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            if not folder.exists():  # a link above it leads nowhere
                raise
            number += 1
            folder = Path(f"{wanted}-{number}")
        else:
            return str(folder)


# Hydra resolves its folder several times and in copies of its config; the cache goes along with them.
OmegaConf.register_new_resolver("free_folder", free_folder, use_cache=True, replace=True)


def explained(_root_: DictConfig) -> str:
    """The shipped settings with their comments, at 80 columns; of groups those of the chosen file."""
    lines, chosen = list[str](), _root_.hydra.runtime.choices
    for file, start in (("config", "\n# model\n"), *((f"{one}/{chosen[one]}", "") for one in COMMENTED)):
        text = (configs_folder() / f"{file}.yaml").read_text("utf-8").partition("\nhydra:")[0]
        lines += [f"{file.replace('/', '=')}:"] if not start else []
        for line in text[text.find(start) + len(start) :].splitlines():
            setting, _, about = f"{'' if start else '  '}{line}".partition(" # ")
            first, below = f"{setting.rstrip():<30}# ", f"{'':30}# "
            lines += textwrap.wrap(about, 80, initial_indent=first, subsequent_indent=below) or [setting]
    return "\n".join(lines)


# For --help.
OmegaConf.register_new_resolver("names", lambda key: ", ".join(chain(*NAMED[key])), replace=True)
OmegaConf.register_new_resolver("explained", explained, replace=True)
OmegaConf.register_new_resolver("configs", lambda: str(configs_folder()), replace=True)


def quoted(override: str, sweeps: bool = False) -> str:
    """A command line's override as Hydra's grammar takes it: a path such as München goes into quotes.

    What is in quotes or brackets already stays as it is, unless there is a file of that very name.
    sweeps: whether a comma stands between several values.
    """
    key, _, value = override.partition("=")
    if key in PLACES and key.startswith("hydra."):
        override = f"{key}={(value := os.path.expanduser(value))}"
    there = os.path.lexists(os.path.expanduser(value))
    if sweeps and key in PLACES and not there and re.fullmatch(r"[^'\"\[\](){}\\]+,[^'\"\[\](){}\\]+", value):
        return f"{key}=" + ",".join(quoted(f"{key}={one}").partition("=")[2] for one in value.split(","))
    if key not in PLACES or (not there and (value in ("", "null") or value[0] in "'\"[{" or "\\" in value)):
        return override
    text = value.replace("${", "\\${") if there else value
    with suppress(HydraException):
        read = OverridesParser.create().parse_override(override)
        if read.value() == text or (sweeps and not there and read.is_sweep_override()):
            return override
    return f"{key}={QuotedString(text, Quote.single).with_quotes()}"


def spelled(words: Sequence[str]) -> list[str]:
    """A command line's overrides; what is a path and no setting is data.root, of data=csv or data=folder."""
    paths = [one for one in words if _is_path(one)]
    rest = [one for one in words if one not in paths]
    for path in paths:
        table = path.lower().endswith(TABLES)
        if len(paths) > 1 or not (table or os.path.isdir(path)):
            raise RequestError(f"{path}: expected one folder of images, or a table ({', '.join(TABLES)})")
        if other := next((one for one in rest if one.startswith("data.root=")), None):
            raise RequestError(f"{other}: expected no other place for the images than {path}")
        if not any(one.startswith("data=") for one in rest):
            rest.append(f"data={'csv' if table else 'folder'}")
        rest.append(f"data.root={path}")
    return rest


def as_typed(overrides: Sequence[str]) -> list[str]:
    """What `spelled` and `quoted` made of a path that was typed alone, which stands last, as it was."""
    *rest, data, root = ["", "", *overrides]
    if data not in ("data=folder", "data=csv") or not root.startswith("data.root=") or "$" in root:
        return [*overrides]
    return [str(OverridesParser.create().parse_override(root).value()), *filter(None, rest)]


def _is_path(word: str) -> bool:
    key, equals, _ = word.partition("=")
    return os.path.exists(word) and not (equals and (key in (*known_keys(), *GROUPS) or key[:5] == "hydra"))


def compose(overrides: Sequence[str]) -> Settings:
    """The settings that overrides amount to; raises RequestError where Hydra refuses, or of a wrong value."""
    return settings_from_config(compose_config([*map(quoted, spelled(overrides))]))


def compose_config(overrides: list[str]) -> DictConfig:
    """The shipped configs with overrides, as Hydra composes them; raises RequestError where it refuses."""
    try:
        with hydra.initialize_config_dir(str(configs_folder().resolve()), version_base="1.3"):
            return hydra.compose("config", overrides)
    except REFUSALS as error:
        raise refused(error, overrides) from None


def settings_from_config(config: DictConfig) -> Settings:
    """Check a composed config; raises RequestError of a wrong value, or one that refers to no key."""
    # Not what is Hydra's: to read where a run would lie makes that folder.
    return check_phases(validate({str(key): _resolved(config, str(key)) for key in config if key != "hydra"}))


def _resolved(config: DictConfig, key: str, name: str = "") -> Any:
    try:
        value = config[key]
        return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
    except OmegaConfBaseException as error:
        raise RequestError(name + str(error).splitlines()[0]) from None


def override_settings(settings: Settings, overrides: Sequence[str], allowed: Sequence[str]) -> Settings:
    """A run's settings with some changed as on the command line.

    allowed: the settings and sections that may be changed; a section as a whole, by its name.

    Raises:
        RequestError: a setting is not among them, or a value is wrong.
    """
    overrides = [*map(quoted, spelled(overrides))]
    try:
        parsed = OverridesParser.create().parse_overrides(overrides)
    except HydraException as error:
        raise refused(error, overrides) from None
    for one in parsed:
        if one.key_or_group not in known_keys():
            raise RequestError(unknown_setting(one.key_or_group))
        if one.key_or_group not in allowed:
            raise RequestError(f"{one.key_or_group}: this is the run's own; expected {brief(allowed, 4)}")
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
            value = OmegaConf.create({"value": one.value()})
            (values[section] if section else values)[key] = _resolved(value, "value", f"{one.input_line}: ")
    return validate(values)


def refused(error: Exception, typed: Sequence[str]) -> RequestError:
    """What to raise where Hydra refuses a command line: one line that names what was wrong.

    typed: the words of the command line, Hydra's options among them.
    """
    overrides = get_args_parser().parse_known_intermixed_args([*typed])[0].overrides
    keys = [word.partition("=")[0].lstrip("+~") for word in overrides]
    if isinstance(error, OverrideParseException):
        return RequestError(_unreadable(error.override, typed))
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, choice = error.missing_cfg_file.rpartition("/")
        return RequestError(unknown_choice(group, choice, error.options))
    cause = error.__cause__
    if isinstance(cause, ConfigAttributeError | ConfigKeyError) and cause.full_key:
        beyond = [key for key in keys if f"{key}.".startswith(f"{cause.full_key}.")]
        return RequestError(unknown_setting((beyond or [cause.full_key])[0]))
    single = isinstance(error, HydraException) and not {"-m", "--multirun"} & {*typed}
    for key, override in zip(keys, overrides, strict=True):
        value = override.partition("=")[2]
        if key not in (*known_keys(), *GROUPS) and not key.startswith(("hydra.", "hydra/")):
            return RequestError(unknown_setting(key))
        if key in GROUPS and type(error) is ValueError and value not in choices_of(key):  # null, a number
            return RequestError(unknown_choice(key, value, choices_of(key)))
        if single and OverridesParser.create().parse_override(override).is_sweep_override():
            return RequestError(f"{override}: expected a single value; -m trains a run for each of several")
    return RequestError(_in_hydras_words(error))


def _unreadable(override: str, typed: Sequence[str]) -> str:
    if override[:1] == "-":
        return unknown_option(*typed[typed.index(override) :][:2])
    key, equals, _ = override.partition("=")
    if not equals:
        there = f"KEY=VALUE, or a folder or a table; there is none of this name{near(key)}"
        return f"{override}: expected {f'{key}=VALUE' if key in (*known_keys(), *GROUPS) else there}"
    return (
        f"{override}: this value cannot be read; expected brackets that are closed, and other text with"
        f" brackets, commas or = in quotes: {key}=\"'…'\""
    )


def _in_hydras_words(error: Exception) -> str:
    """The first paragraph of what Hydra says; of a folder or file that cannot be made, why."""
    chain: BaseException | None = error
    while chain:
        if isinstance(chain, OSError) and chain.strerror:
            setting = "hydra.sweep.dir" if {"-m", "--multirun"} & {*sys.argv} else "hydra.run.dir"
            what = f"{chain.filename} cannot be made" if chain.filename else "nothing can be written there"
            return f"{setting}: {what}: {chain.strerror}"
        chain = chain.__cause__ or chain.__context__  # OmegaConf wraps what free_folder raises
    return shown(str(error).partition("\n\n")[0])
