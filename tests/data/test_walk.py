"""What is gone through below a folder: not what systems put there, and no folder twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune.data.sources.walk import SYSTEM, files_below
from finetune.errors import RequestError
from finetune.private import check_folder
from support.folders import fill, folder, save
from support.privilege import without_privilege


@pytest.mark.parametrize(
    "name", [*sorted(SYSTEM), "@eaDir", "__MACOSX", "System Volume Information", ".Trashes"]
)
def test_what_systems_make_is_passed_over_at_every_level(tmp_path: Path, name: str) -> None:
    fill(tmp_path, 3)
    for number, place in enumerate((tmp_path, tmp_path / "cat", tmp_path / "cat" / "young")):
        save(place / name / "thumb.png", 90 + number)
    save(tmp_path / "cat" / "young" / "._0.png", 80)
    dataset = folder(tmp_path)
    assert dataset.classes == ("cat", "dog")
    assert len(dataset.images) == 6
    assert "thumb.png" not in {path.name for path in files_below(tmp_path)}


def test_what_commands_leave_among_the_images_is_none_of_them(tmp_path: Path) -> None:
    fill(tmp_path, 3)
    (tmp_path / "audit-2").mkdir()
    (tmp_path / "audit-2" / "audit.html").touch()
    check_folder(tmp_path / "cache", shared=False)
    (tmp_path / "cat" / ".hydra").mkdir()  # of the program that made the images
    for run, file in ((tmp_path / "outputs" / "day" / "time", "settings.json"), (tmp_path / "mine", ".lock")):
        save(run / "explain" / "0.png", 90)
        (run / ".hydra").mkdir()
        (run / file).touch()
    (tmp_path / "by-python" / "checkpoints").mkdir(parents=True)
    (tmp_path / "by-python" / "settings.json").touch()
    save(tmp_path / "by-python" / "tensorboard" / "sprite.jpg", 90)
    dataset = folder(tmp_path)
    assert (dataset.classes, len(dataset.images), dataset.warnings) == (("cat", "dog"), 6, ())
    (tmp_path / "eel").mkdir()
    with pytest.raises(RequestError, match=r"none in eel$"):
        folder(tmp_path)


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("kitty", "cat"),
        ("cat/loop", ".."),
        ("cat/also", "../dog"),
        ("cat/young/loop", ".."),
        ("cat/self", "."),
    ],
)
def test_a_link_that_leads_back_is_not_followed_but_told(tmp_path: Path, link: str, target: str) -> None:
    fill(tmp_path / "pets", 6)
    save(tmp_path / "pets" / "cat" / "young" / "y.png", 99)
    (tmp_path / "pets" / link).symlink_to(target)
    (tmp_path / "linked").symlink_to("pets")
    for root in (tmp_path / "pets", tmp_path / "linked"):
        dataset = folder(root, 0, 0)
        assert dataset.classes == ("cat", "dog")
        assert dataset.to_train() == {"cat": 7, "dog": 6}
        told = "links to folders that are read at their own place are left out"
        assert dataset.warnings == (f"{told}: {root / link}",)
        assert len([*files_below(root)]) == 13


def test_links_to_elsewhere_are_followed_once(tmp_path: Path) -> None:
    fill(tmp_path / "store", 6)
    (tmp_path / "store" / "cat" / "loop").symlink_to("..")  # to a folder above, outside of the root
    for name, target in (("cat", "cat"), ("dog", "dog"), ("kitty", "cat")):
        (tmp_path / "pets").mkdir(exist_ok=True)
        (tmp_path / "pets" / name).symlink_to(tmp_path / "store" / target)
    dataset = folder(tmp_path / "pets", 0, 0)
    assert dataset.to_train() == {"cat": 6, "dog": 6}
    assert dataset.warnings[0].endswith("pets/kitty, " + str(tmp_path / "pets" / "cat" / "loop"))


def test_a_folder_below_a_class_that_may_not_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tmp_path.chmod(0o755)
    fill(Path("pets"), 3)
    save(Path("pets") / "cat" / "private" / "0.png", 99)
    (Path("pets") / "cat" / "private").chmod(0)
    with (
        without_privilege(),
        pytest.raises(RequestError, match=r"pets/cat/private cannot be read: Permission"),
    ):
        folder(Path("pets"))
    (Path("pets") / "cat" / "private").chmod(0o755)
