"""Transfer learning for image classification: what is frozen is a constant, so it is computed once."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from finetune.api import Model, Prediction, Run, fit, load

__version__ = "0.1.0"
__all__ = ["Model", "Prediction", "Run", "__version__", "fit", "load"]


def __getattr__(name: str) -> Any:
    """The Python interface, imported when first used: `finetune --help` must not wait for torch."""
    if name not in __all__:
        raise AttributeError(f"module 'finetune' has no attribute '{name}'")
    from finetune import api

    return getattr(api, name)
