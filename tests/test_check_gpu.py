"""What a GPU is checked with, in small."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from support.runs import CHECKOUT


def numbers(found: Any) -> Iterator[float]:
    for one in found.values() if isinstance(found, dict) else [found]:
        if isinstance(one, dict):
            yield from numbers(one)
        elif isinstance(one, int | float) and not isinstance(one, bool):
            yield one


@pytest.mark.slow
def test_it_runs_in_small_where_there_is_no_gpu_too(tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    words = [sys.executable, CHECKOUT / "scripts/check_gpu.py", "--small", "--out", file]
    ended = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=500, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    found = json.loads(file.read_text("utf-8"))
    assert found == json.loads(ended.stdout)
    gpu = torch.cuda.is_available()
    parts = {"tests", "main_job", "overflow", "two_processes", "training", "extraction", "memory"}
    assert found.keys() == {"device", "cores", "versions"} | parts
    assert {part for part in parts if found[part] is None} == (set() if gpu else {"tests", "two_processes"})
    assert not [found[part] for part in parts if "wrong" in (found[part] or {})]
    assert min(numbers(found)) > 0
    assert found["main_job"].keys() >= {"cold", "warm", "sweep", "sweep_times_warm"}
    assert found["training"].keys() >= {"images_per_second", "plain_loop", "ratio"}
    extraction = found["extraction"]
    eager = extraction["timm/test_resnet"]["eager"]
    assert eager.keys() >= {"images_per_second", "bare_forward", "share_of_decoding", "share_of_forward"}
    assert (extraction["images"], extraction["decode_jpeg_cuda"] is None) == (200, not gpu)
    overflow = found["overflow"]
    assert (overflow["code"], overflow["lines"], overflow["epochs_kept"]) == (1, 1, 1)
    assert overflow["names_bf16_and_32"] is (True if gpu else None)
