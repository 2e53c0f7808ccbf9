"""Settings of Hydra's own that are refused before Hydra sees them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from finetune.errors import RequestError

# What would move relative paths, write over a run or end in Hydra itself: keys, values, and what is expected.
HYDRAS = (
    (
        r"hydra\.job\.chdir",
        "(?!(?i:false|null)$).*",
        "false; relative paths are those of the folder where the command is typed",
    ),
    (r"hydra\.(sweeper|launcher)", ".*", "{choice}, as it is a choice"),
    (r"hydra\.sweeper\.params", ".*", "-m with what to sweep over as on any command line: -m seed=1,2"),
    (r"hydra\.sweeper\.max_batch_size", r"(?!null$|0*[1-9]\d*$).*", "1 or more, or null"),
    (r"hydra\.(run|sweep)\.dir", "|null", "a folder"),
    (r"hydra\.mode", "(?!RUN$|MULTIRUN$|null$).*", "RUN or MULTIRUN"),
    (
        r"hydra\.callbacks(\.folder.*)?",
        ".*",
        "that to stay, as it refuses used folders; one of your own is +hydra.callbacks.NAME",
    ),
)


def refuse_hydras(overrides: Sequence[str]) -> None:
    """Raise RequestError where one of a command line's overrides is what HYDRAS has."""
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        for keys, values, expected in HYDRAS:
            if re.fullmatch(keys, key) and re.fullmatch(values, value.strip("'\"")):
                wanted = expected.format(choice=f"{key.replace('.', '/')}={value}")
                raise RequestError(f"{override.lstrip('+')}: expected {wanted}")
