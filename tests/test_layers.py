"""Imports run down one order of rooms."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import finetune

SOURCE = Path(finetune.__file__).parent
# From what a user calls to what everything rests on; what stands on one line may not import each other.
LAYERS = [
    {"cli"},
    {"commands", "__init__"},
    {"api", "launch", "worker"},
    {"objects"},
    {"sweep"},
    {"run"},
    {"folds", "phases"},
    {"ladder"},
    {"fill"},
    {"refit", "finish"},
    {"workers", "prepared"},
    {"evaluation", "inspection"},
    {"build", "heads", "learners"},
    {"demands"},
    {"report"},
    {"runs"},
    {"training"},
    {"features"},
    {"data"},
    {"model"},
    {"config"},
    {"choices"},
]
# Import nothing but each other: files, what is said, signals, the machine.
LEAVES = {"atomic", "cells", "errors", "machine", "network", "output", "private", "say", "sealed", "signals"}


def imported(file: Path) -> set[str]:
    """The rooms of this package that a file imports, also where it does so late."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            whole = node.module == "finetune"
            names = [f"finetune.{name.name}" for name in node.names] if whole else [node.module]
            found |= {name.split(".")[1] for name in names if name.startswith("finetune.")}
    return found


def test_no_room_imports_one_above_it() -> None:
    floor = {room: number for number, rooms in enumerate(LAYERS) for room in rooms}
    floor |= dict.fromkeys(LEAVES, len(LAYERS))
    wrong = []
    for file in sorted(SOURCE.rglob("*.py")):
        here = file.relative_to(SOURCE).parts[0].removesuffix(".py")
        for room in imported(file) & floor.keys() - {here}:
            level = floor[room] == floor[here] and here not in LEAVES
            if floor[room] < floor[here] or level:
                wrong.append(f"{file.relative_to(SOURCE)} imports {room}")
    assert wrong == []
    rooms = {path.stem for path in SOURCE.glob("*.py")} | {
        path.parent.name for path in SOURCE.glob("*/__init__.py")
    }
    assert rooms <= floor.keys()  # a new room has its place


def test_the_map_names_files_that_there_are() -> None:
    text = (Path(__file__).parents[1] / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([a-z_/]+\.py)`", text))
    named -= {"tests/test_layers.py"}
    assert len(named) > 15
    assert [name for name in sorted(named) if not (SOURCE / name).is_file()] == []
    rooms = {room for rooms in LAYERS for room in rooms} - {"__init__", "worker"}
    assert [room for room in sorted(rooms) if f"`{room}`" not in text] == []
