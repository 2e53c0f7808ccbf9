"""Networks that several tests look at, made once, and run on one thread."""

import copy
from collections.abc import Callable, Iterator
from functools import cache

import pytest
import torch
from torch import nn

from finetune.model.build import build_model
from finetune.model.head import find_head, replace_head


@pytest.fixture(autouse=True, scope="package")
def _one_thread() -> Iterator[None]:
    """Beside other busy processes several threads would wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="package")
def kept() -> Callable[[str], nn.Module]:
    """A model with its own head, by name; `freeze` sets all of it anew each time, so the tests share one."""

    @cache
    def make(name: str) -> nn.Module:
        torch.manual_seed(0)
        return build_model(name)

    return make


@pytest.fixture(scope="package")
def replaced(kept: Callable[[str], nn.Module]) -> Callable[..., nn.Module]:
    """A model with a new head of ten outputs, shared like `kept`."""

    @cache
    def make(name: str, hidden: tuple[int, ...] = (), dropout: float = 0.0) -> nn.Module:
        model = copy.deepcopy(kept(name))
        replace_head(model, find_head(model), 10, hidden, dropout)
        return model

    return make


@pytest.fixture(scope="package")
def trained() -> Callable[..., nn.Module]:
    """A model as training leaves it: no tensor as it is initialised, no two alike. To be left as it is."""

    @cache
    def make(name: str, outputs: int = 1000) -> nn.Module:
        torch.manual_seed(1)
        model = build_model(name)
        if outputs != 1000:
            replace_head(model, find_head(model), outputs)
        with torch.no_grad():
            for key, value in model.state_dict().items():
                if value.is_floating_point() and value.ndim == 1:  # norms and biases begin as ones and zeros
                    low, high = (0.5, 1.5) if key.endswith(("weight", "running_var")) else (-0.2, 0.2)
                    value.uniform_(low, high)
        return model.eval()

    return make
