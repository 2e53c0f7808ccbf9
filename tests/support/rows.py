"""Rows of a store that show which image they are of."""

from __future__ import annotations

import torch

from finetune.features.rows import MemoryStore, RowLayout
from finetune.features.store import Store

LAYOUT = RowLayout(((3, 2), (4,)), torch.float32)


def digests(*numbers: int) -> list[str]:
    return [f"{number:064x}" for number in numbers]


def tensors(*numbers: int) -> tuple[torch.Tensor, torch.Tensor]:
    rows = torch.tensor(numbers, dtype=torch.float32)
    return rows.view(-1, 1, 1).expand(-1, 3, 2) + 0.5, rows.view(-1, 1).expand(-1, 4) - 0.25


def read(store: Store | MemoryStore, *numbers: int) -> tuple[torch.Tensor, ...]:
    rows = store.mapped()[[store.place[digest] for digest in digests(*numbers)]]
    return store.layout.unpack(torch.from_numpy(rows))
