"""What the README tells people to type is taken as it stands there."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from finetune.config.compose import compose, override_settings
from finetune.config.messages import known_keys, validate

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
TEXT = {page.name: page.read_text(encoding="utf-8") for page in PAGES}
LINES = [
    line.split("   #")[0].strip()
    for text in TEXT.values()
    for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    for line in block.splitlines()
]
LINES += [
    line.partition(" | ")[0]
    for name, text in TEXT.items()
    if name != "faq.md"  # there they are wrong: tests/test_faq.py
    for line in re.findall(r"^\$ (finetune .*)$", text, re.MULTILINE)
]
TRAININGS = [
    line[line.index("python train.py") :]
    for line in LINES
    if "python train.py" in line and " -m " not in line
]


def test_there_are_commands_to_test():
    assert len(TRAININGS) >= 6
    assert any(line.startswith("finetune inspect") for line in LINES)


@pytest.fixture(scope="module")
def words():
    """Each training's words, as bash understands them."""
    programs = [line.replace("python train.py", "printf '%s\\n'", 1) for line in TRAININGS]
    typed = "\nprintf '\\0'\n".join(programs)
    shown = subprocess.run(["bash", "-ec", typed], cwd=ROOT, capture_output=True, text=True, check=True)
    return dict(zip(TRAININGS, map(str.splitlines, shown.stdout.split("\0")), strict=True))


@pytest.mark.parametrize("line", TRAININGS)
def test_every_training_is_understood_by_a_shell_and_by_us(line, words):
    compose(words[line])


def test_a_training_is_understood_as_it_is_typed():
    (line,) = [line for line in TRAININGS if "-layer4]" in line and "freeze" in line][:1]
    typed = line.replace("python", shlex.quote(sys.executable), 1)
    shown = subprocess.run(["bash", "-c", f"{typed} --cfg job"], cwd=ROOT, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    values = OmegaConf.to_container(OmegaConf.create(shown.stdout))
    assert isinstance(values, dict)
    validate({str(key): value for key, value in values.items()})


COMMANDS = [line for line in LINES if line.startswith("finetune ")]


@pytest.mark.parametrize(
    "line", [line for line in COMMANDS if "--plugin" not in line]
)  # test_extend types it
def test_every_command_exists(command, line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("pictures", "photos", "My photos 2024"):
        (tmp_path / folder).mkdir()
    (tmp_path / "labels.csv").touch()
    name, *arguments = shlex.split(line)[1:]
    compose([one for one in arguments if re.match(r"(?!models)[a-z._]+=", one)])
    assert command(name, *arguments, "--help").code == 0


@pytest.mark.slow
def test_every_override_in_a_table_is_taken():
    rows = [line for text in TEXT.values() for line in text.splitlines() if line.startswith("|")]
    cells = [code for row in rows for code in re.findall(r"`([^`]*=[^`]*)`", row)]
    overrides = [word for cell in cells for word in shlex.split(cell) if "=" in word]
    gaps = r"[<…(]|=[^\[]*,"  # to be filled in, or the values of a sweep
    tried = [word for word in overrides if not re.search(gaps, word)]
    assert len(tried) >= 25
    defaults = compose([])
    for cell in cells:
        words = [word for word in shlex.split(cell) if not re.search(gaps, word)]
        if any(word.partition("=")[0] not in known_keys() for word in words):  # Hydra's own
            compose(words)
        else:
            override_settings(defaults, words, known_keys())


def test_every_link_and_picture_exists():
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", TEXT[page.name]):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
