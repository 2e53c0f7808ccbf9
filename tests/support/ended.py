"""How a command ended, as several tests look at it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code and what it printed."""

    code: int
    out: str
    err: str
