"""What is typed into a command, or piped."""

from __future__ import annotations

import io


def typed(content: bytes = b"") -> io.TextIOWrapper:
    """A stdin of these bytes."""
    return io.TextIOWrapper(io.BufferedReader(io.BytesIO(content)))  # type: ignore[type-var]
