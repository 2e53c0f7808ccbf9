"""Transfer learning for image classification: what is frozen is a constant, so it is computed once."""

from typing import TYPE_CHECKING, Any

from finetune.errors import Interrupted, RequestError, RunError

__version__ = "0.1.0"
__all__ = [
    "Interrupted",
    "Model",
    "Prediction",
    "RequestError",
    "Run",
    "RunError",
    "__version__",
    "fit",
    "load",
]

if TYPE_CHECKING:
    from finetune.api import Model, Prediction, Run, fit, load
else:  # type checkers would take any name for one that is there

    def __getattr__(name: str) -> Any:
        """The Python interface, imported when first used: `finetune --help` must not wait for torch."""
        if name not in __all__:
            raise AttributeError(f"module 'finetune' has no attribute '{name}'")
        from finetune import api

        return getattr(api, name)
