"""Files that no command may run, though they lie in the working folder under the names of libraries."""

from __future__ import annotations

from pathlib import Path

NAMES = (
    *("random.py", "json.py", "torch.py", "multiprocessing.py", "logging.py", "joblib.py", "submitit.py"),
    *("csv.py", "sitecustomize.py", "hydra_plugins/evil.py", "finetune/__init__.py"),
)


def lay_out(folder: Path, marker: Path) -> None:
    """Put them into a folder; whichever is run makes the marker."""
    for name in NAMES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"open({str(marker)!r}, 'a').write(__file__ + '\\n')\n")
