"""A home of its own for every session, and the fixtures of all tests."""

from __future__ import annotations

import os
import tempfile

import pytest

# Beside other busy processes several threads would wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# No cache, no weights, nothing of the person who runs the tests; processes started by them inherit it.
_home = tempfile.TemporaryDirectory(prefix="finetune-tests-")
os.environ["HOME"] = _home.name
if "PYTEST_XDIST_WORKER" not in os.environ:  # workers share the list of fonts
    os.environ["MPLCONFIGDIR"] = os.path.join(_home.name, "matplotlib")
for _name in ("TORCH_HOME", "XDG_CACHE_HOME", "HF_HOME"):
    os.environ.pop(_name, None)


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    """Without pytest-xdist (`-p no:xdist`) one process does it all."""
    if not pluginmanager.hasplugin("xdist"):
        for option in ("--numprocesses", "--maxprocesses", "--dist"):
            parser.addoption(option, help="not used: there is no pytest-xdist")


def pytest_configure(config: pytest.Config) -> None:
    """The fixtures import torch, for which the process that only hands out tests would keep all waiting."""
    if config.getoption("tx", None) and "PYTEST_XDIST_WORKER" not in os.environ:
        return
    config.pluginmanager.import_plugin("support.fixtures")


# Of the slow tests those that take a minute or more: at the end one process would wait for the other.
LONG = (
    "test_stress.py",
    "test_workers.py",
    "test_safe_path.py",
    "test_compiled",
    "test_kills_in_each_phase",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest tests."""
    items.sort(
        key=lambda item: not (item.get_closest_marker("slow") and any(one in item.nodeid for one in LONG))
    )
