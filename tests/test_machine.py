"""What a machine has: memory as far as the control groups of a process allow."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from finetune import machine


@pytest.mark.parametrize(
    ("groups", "files", "limit"),
    [
        ("0::/job/step", {"job/memory.max": "7000000", "job/step/memory.max": "max"}, 7_000_000),
        ("0::/seen/outside/alone", {"memory.max": "9000000"}, 9_000_000),
        (
            "4:memory:/one\n3:cpuset:/two\n0::/",
            {"memory/one/memory.limit_in_bytes": "5000000", "cpuset/two/memory.limit_in_bytes": "1"},
            5_000_000,
        ),
        ("0::/", {}, None),
        (None, {}, None),
    ],
    ids=["job", "container", "version 1", "no limit", "no groups"],
)
def test_memory_is_what_the_control_groups_allow(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    groups: str | None,
    files: dict[str, str],
    limit: int | None,
) -> None:
    def below(*parts: str) -> Path:
        return tmp_path.joinpath(*(part.lstrip("/") for part in parts))

    texts = {f"/sys/fs/cgroup/{name}": text for name, text in files.items()}
    if groups is not None:
        texts["/proc/self/cgroup"] = groups
    for name, text in texts.items():
        below(name).parent.mkdir(parents=True, exist_ok=True)
        below(name).write_text(text)
    monkeypatch.setattr(machine, "Path", below)
    most = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert machine.ram() == (limit or most)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert machine.ram() == (limit or most) // 2
