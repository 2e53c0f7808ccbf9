"""The cache's folder is its user's alone, unless a setting says that it is shared."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from finetune import private
from finetune.data.digests import file_contents
from finetune.errors import RequestError
from finetune.features.rows import RowLayout
from finetune.features.store import open_store
from support.ended import Ended
from support.privilege import without_privilege


@pytest.fixture(autouse=True)
def usual_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_folder_is_made_for_its_user_alone(tmp_path: Path) -> None:
    private.check_folder(tmp_path / "new" / "cache", shared=False)
    assert mode(tmp_path / "new" / "cache") == 0o700
    assert (tmp_path / "new" / "cache" / "CACHEDIR.TAG").read_text().startswith("Signature: 8a477f59")


def test_a_folder_that_is_there_is_not_called_a_cache(tmp_path: Path) -> None:
    private.check_folder(tmp_path, shared=False)
    assert not any(tmp_path.iterdir())


def test_a_folder_that_cannot_be_is_for_whoever_needs_it_to_tell(tmp_path: Path) -> None:
    private.check_folder(tmp_path / ("n" * 300), shared=False)
    (tmp_path / "closed").mkdir(mode=0)
    with without_privilege():
        private.check_folder(tmp_path / "closed" / "cache", shared=False)


@pytest.mark.parametrize("bits", [0o775, 0o757, 0o1777])
def test_a_folder_that_others_may_write_to_is_refused(tmp_path: Path, bits: int) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(bits)
    with pytest.raises(
        RequestError, match=f"^cache_dir={tmp_path}/cache: expected a folder that only you can"
    ):
        private.check_folder(tmp_path / "cache", shared=False)
    private.check_folder(tmp_path / "cache", shared=True)


def test_a_folder_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = os.geteuid()
    monkeypatch.setattr("os.geteuid", lambda: owner + 1)
    with pytest.raises(RequestError, match=f"of your own, not user {owner}'s; or cache_shared=true"):
        private.check_folder(tmp_path, shared=False)
    private.check_folder(tmp_path, shared=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a file away")
def test_a_file_that_another_user_put_there_is_refused_unless_the_cache_is_theirs(tmp_path: Path) -> None:
    (file := tmp_path / "data.bin").touch()
    os.chown(file, 12345, -1)
    with pytest.raises(RequestError, match=r"data\.bin: expected a file of your own"):
        private.open_file(file, tmp_path)
    os.chown(tmp_path, 12345, -1)  # which `check_folder` lets pass with cache_shared=true alone
    private.open_file(file, tmp_path).close()


def test_all_in_a_shared_cache_is_its_groups(tmp_path: Path) -> None:
    cache, image = tmp_path / "cache", tmp_path / "image"
    image.write_bytes(b"an image")
    private.check_folder(cache, shared=True)
    with open_store(cache, {}, RowLayout(((2,),), torch.float32)) as store:
        store.append(["1" * 64], [torch.zeros(1, 2)])
    file_contents([image], cache / "digests.sqlite")
    for path in (cache, *cache.rglob("*")):
        assert mode(path) == (0o2770 if path.is_dir() else 0o660), path


def test_the_memo_of_digests_is_the_users_alone_and_no_link_is_followed(tmp_path: Path) -> None:
    cache, image, victim = tmp_path / "cache", tmp_path / "image", tmp_path / "victim"
    image.write_bytes(b"an image")
    found = file_contents([image], cache / "digests.sqlite")
    assert (mode(cache), mode(cache / "digests.sqlite")) == (0o700, 0o600)
    victim.touch()
    (cache / "digests.sqlite").unlink()
    (cache / "digests.sqlite").symlink_to(victim)
    with pytest.raises(RequestError, match="is a link, which is not followed"):
        file_contents([image], cache / "digests.sqlite")
    assert victim.read_bytes() == b""
    assert len(found) == 1


@pytest.mark.parametrize("shared", [False, True])
def test_a_run_says_in_one_line_that_others_could_have_filled_the_cache(
    tmp_path: Path, command: Callable[..., Ended], shared: bool
) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o777)
    ended = command(
        "train",
        "data=digits",
        "cache_dir=cache",
        "epochs=0" if shared else "epochs=1",
        f"cache_shared={shared}",
    )
    assert ended.code == 2
    assert ("cache_dir=cache: expected a folder that only you can write to" in ended.err) is not shared
