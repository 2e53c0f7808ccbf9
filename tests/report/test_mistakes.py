"""The pictures of a report: found by name, small, whatever they were made of."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from finetune.data.dataset import Stored
from finetune.model.preprocessing import Preprocessing
from finetune.report import mistakes


def test_pictures_without_files_are_found_by_their_names() -> None:
    grey = np.full((8, 8), 200, dtype=np.uint8)
    stored = Stored("shard.tar/1.png", lambda: np.zeros((8, 8), dtype=np.uint8))
    pictures = [Path("a.png"), grey, stored]
    found = mistakes.images_named(["#1", "shard.tar/1.png", "a.png"], pictures)
    light, dark, gone = (mistakes.thumbnail(one, Preprocessing()) for one in found)
    assert light is not None
    assert light.startswith("data:image/jpeg;base64,")
    assert dark is not None
    assert dark != light
    assert gone is None
    assert mistakes.images_named(["#1"], []) == [Path("#1")]
