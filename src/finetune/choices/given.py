"""Tables whose names plugins add to, and Python objects, which are called `python:…` there."""

from __future__ import annotations

import importlib
import os
import runpy
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from finetune.errors import RequestError

PYTHON = "python:"
PLUGINS = "FINETUNE_PLUGINS"  # modules, separated by commas; so the processes that this one starts know them
Entry = TypeVar("Entry")
_loaded = {""}


class Table(dict[str, Entry]):
    """Entries by name; objects: those of Python objects; absent: of such that another process was given."""

    absent: Entry | None = None

    def __init__(self, *entries: Any, **named: Entry) -> None:
        super().__init__(*entries, **named)
        self.objects: dict[str, Entry] = {}

    def __missing__(self, name: str) -> Entry:
        return self.objects.get(name) or self.absent or lacking(name)


def lacking(name: Any, *_: Any) -> Any:
    """Raise RequestError in the place of what a Python object does."""
    expected = "expected what was a Python object to be given again, to finetune.fit or finetune.load"
    raise RequestError(f"{name if isinstance(name, str) else 'settings'}: {expected} (docs/extend.md)")


def is_given(value: Any) -> bool:
    """Whether a setting's value is the name of a Python object."""
    return isinstance(value, str) and value.startswith(PYTHON)


def load_plugins() -> None:
    """Import the entry points `finetune.plugins` of what is installed, and the modules of `--plugin`, once.

    Raises:
        RequestError: there is no such module or file, or it fails.
    """
    if "installed" not in _loaded:
        _loaded.update({"installed"}, map(_import, entry_points(group="finetune.plugins")))
    for name in {*os.environ.get(PLUGINS, "").split(",")} - _loaded:
        try:
            file = os.path.expanduser(name)
            runpy.run_path(file) if name.endswith(".py") else importlib.import_module(name)
        except Exception as error:  # whatever somebody else's code does
            raise RequestError(f"--plugin {name}: expected a module, or a file of Python: {error}") from None
        _loaded.add(name)


def _import(plugin: EntryPoint) -> str:
    try:
        plugin.load()
    except Exception as error:  # whatever somebody else's code does
        package = plugin.dist.name if plugin.dist else "an installed package"
        wrong = f"{package}: its plugin {plugin.name} = {plugin.value} cannot be imported"
        raise RequestError(f"{wrong}: {type(error).__name__}: {error}") from None
    return plugin.module
