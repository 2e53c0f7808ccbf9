"""The wheel holds all that a run needs, and works from any folder."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[1]

pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    ended = subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, timeout=600
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    # The source archive first, then the wheel from it: what the archive lacks, the wheel would.
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, CHECKOUT, cwd=folder)
    run(sys.executable, "-m", "twine", "check", "--strict", *folder.iterdir(), cwd=folder)
    (built,) = folder.glob("finetune_toolkit-*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("installed")
    run(
        *(
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--no-index",
            "--target",
            folder,
            wheel,
        ),
        cwd=folder,
    )
    return folder


def test_the_wheel_holds_configs_and_assets_and_nothing_else_of_the_checkout(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    package = CHECKOUT / "src" / "finetune"
    for folder, place in ((CHECKOUT / "configs", "finetune/configs"), (package, "finetune")):
        tracked = run("git", "ls-files", "-z", cwd=folder).split("\0")[:-1]
        assert tracked
        assert {f"{place}/{name}" for name in tracked} <= names
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} <= {"finetune", "hydra_plugins"}
    assert not [name for name in names if "__pycache__" in name or name.startswith("tests")]


def test_the_wheel_brings_the_command_and_its_licence(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (entry_points,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
    assert "finetune = finetune.cli:console_script" in archive.read(entry_points).decode()
    assert any(name.endswith("licenses/LICENSE") for name in archive.namelist())


def test_the_installed_package_is_used_from_any_folder(installed: Path, tmp_path: Path) -> None:
    # The target folder comes before the checkout that tests run in.
    script = installed / "bin" / "finetune"
    out = run(
        *(sys.executable, script, "inspect", "data=digits", "weights=random", "model=squeezenet1_1"),
        cwd=tmp_path,
        PYTHONPATH=str(installed),
    )
    assert "squeezenet1_1, weights: random initialisation" in out
    where = run(
        *(sys.executable, "-c", "import finetune.config.shipped as s; print(s.__file__, s.configs_folder())"),
        cwd=tmp_path,
        PYTHONPATH=str(installed),
    )
    assert where.split() == [
        str(installed / "finetune" / "config" / "shipped.py"),
        str(installed / "finetune" / "configs"),
    ]


def test_the_installed_package_trains_on_what_it_brings(installed: Path, tmp_path: Path) -> None:
    overrides = ("weights=random", "data.image_size=32", "epochs=1", "cache=memory")
    script = installed / "bin" / "finetune"
    out = run(sys.executable, script, "train", *overrides, cwd=tmp_path, PYTHONPATH=str(installed))
    assert "clipart: 10 classes" in out
    assert (tmp_path / "outputs" / "latest").exists()
