"""What `finetune cache` does with the feature store."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from finetune.errors import RunError, brief, counted
from finetune.features import inventory
from finetune.features.plan import readable


def list_store(folder: Path, screen: Console) -> None:
    held = inventory.contents(folder)
    for one in held:
        what = f"{one['folder']}: about.json is damaged or another version's"
        if "row" in one:
            shapes = " + ".join("x".join(map(str, shape)) for shape in one["row"])
            what = (
                f"{counted(one['rows'], 'image'):>16}  {one['model']} at {', '.join(one['boundary'])}"
                f" ({shapes}, {one['dtype']}, {one['view']})  {one['folder']}"
            )
        screen.print(f"{readable(one['bytes']):>8}  {what}")
    screen.print(f"{readable(inventory.size_of_all(folder))} in {len(held)} sets of features in {folder}")


def clear_store(folder: Path, screen: Console) -> None:
    """Remove all stored features; RunError where some stay."""
    freed, left = inventory.clear(folder)
    screen.print(f"{readable(freed)} removed from {folder}")
    if left:
        raise RunError(f"cache_dir: {len(left)} sets of features cannot be removed: {brief(left)}")
