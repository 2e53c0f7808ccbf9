"""Cases of a test that CI alone runs."""

from typing import Any

import pytest


def slow(*values: Any) -> Any:
    """A case of `pytest.mark.parametrize`, which the default suite leaves out."""
    return pytest.param(*values, marks=pytest.mark.slow)
