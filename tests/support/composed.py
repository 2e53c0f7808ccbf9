"""Hydra's compositions made quicker: what it reads of configs that do not change is read once a process.

Without this every command in a test's own process would spend a sixth of a second on it. Commands in other
processes compose as users' do.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from hydra._internal import defaults_list
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra._internal.hydra import Hydra

from finetune.config.shipped import configs_folder

OURS = ("pkg:hydra.conf", "structured:", f"file:{configs_folder().resolve()}")


def keep_composed(patch: pytest.MonkeyPatch) -> None:
    """Keep files as they were read, and what the defaults lists come to, of the shipped configs alone."""
    load, compose = ConfigRepository.load_config, ConfigLoaderImpl._compose_config_from_defaults_list
    listed = defaults_list._create_defaults_list
    kept: dict[str, bytes] = {}

    def once(repository: ConfigRepository, wanted: object, work: Callable[[], Any]) -> Any:
        sources = [f"{one.scheme()}:{one.path}" for one in repository.get_sources()]
        if not all(one in OURS for one in sources):
            return work()
        key = repr((sources, wanted))
        if key not in kept:
            kept[key] = pickle.dumps(work())
        return pickle.loads(kept[key])

    def load_once(self: ConfigRepository, config_path: str) -> Any:
        return once(self, config_path, lambda: load(self, config_path))

    def compose_once(self: ConfigLoaderImpl, defaults: Any, repo: Any) -> Any:
        return once(repo, defaults, lambda: compose(self, defaults, repo))

    def list_once(repo: Any, config_name: Any, overrides: Any, **options: Any) -> Any:
        # What it is asked, without the values that only the finished config takes; it notes what it has used.
        values, overrides.config_overrides = overrides.config_overrides, []

        def choose() -> Any:
            return *listed(repo, config_name, overrides, **options), vars(overrides)

        *chosen, noted = once(repo, (config_name, sorted(vars(overrides).items()), options), choose)
        vars(overrides).update(noted, config_overrides=values)
        return chosen

    patch.setattr(defaults_list, "_create_defaults_list", list_once)
    patch.setattr(ConfigRepository, "load_config", load_once)
    patch.setattr(ConfigLoaderImpl, "_compose_config_from_defaults_list", compose_once)
    patch.setattr(ConfigRepository, "__deepcopy__", lambda self, _: copy.copy(self), raising=False)
    # Hydra would compose each command's config twice, the first time to see whether it sets hydra.mode.
    patch.setattr(Hydra, "get_mode", lambda *_, **__: None)
