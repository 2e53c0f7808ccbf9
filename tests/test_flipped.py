"""Whatever bit flips in a run's folder: a command refuses the file in one line, or answers as before."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune.config.compose import compose
from finetune.errors import RequestError, RunError
from finetune.model.hashing import digest
from finetune.model.statedict import read_state_dict
from finetune.report.page import write_report
from finetune.run import run
from finetune.runs import resume as resuming
from finetune.runs.open import open_run
from finetune.runs.settings import read_settings
from finetune.say import Screen
from finetune.training.checkpoint import Checkpoints
from support.ended import Ended

SMALL = (
    "data=folder",
    "data.root=pictures",
    "data.image_size=32",
    "model=timm/test_resnet",
    "weights=random",
    "epochs=3",
    "cache=memory",
)
UNREAD = ("report.html", "hydra.yaml", "config.yaml")  # by anybody, in a single run's folder

Command = Callable[..., Ended]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, few_pictures: Path) -> Path:
    """A folder with a finished run and one that was killed in its third epoch."""
    home = tmp_path_factory.mktemp("runs")
    (home / "pictures").symlink_to(few_pictures)
    keep = Checkpoints.on_train_epoch_end

    def stop(self: Checkpoints, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch == 2:
            raise SystemExit
        keep(self, trainer, pl_module)

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        for name in ("finished", "interrupted"):
            (home / name / ".hydra").mkdir(parents=True)
            (home / name / ".hydra" / "overrides.yaml").write_text("\n".join(f"- {one}" for one in SMALL))
        run(compose(list(SMALL)), Path("finished"), Screen(quiet=True))
        patch.setattr(Checkpoints, "on_train_epoch_end", stop)
        with pytest.raises(SystemExit):
            run(compose(list(SMALL)), Path("interrupted"), Screen(quiet=True))
    return home


@pytest.fixture
def at_home(runs: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(runs)
    return runs


def files_of(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file() and file.name not in UNREAD)


def flip(file: Path, chance: random.Random) -> None:
    data = bytearray(file.read_bytes())
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    file.unlink()
    file.write_bytes(data)


def opened(folder: Path) -> list[Any]:
    """All that evaluate, predict, export and report know of a run."""
    saved = open_run(str(folder))
    assert saved.summary is not None
    shown = write_report(folder, saved.summary, []).read_text()
    known = (saved.classes, saved.preprocessing, saved.settings, saved.summary, saved.trained_on)
    return [digest(saved.network.state_dict()), *known, shown]


def found(folder: Path) -> list[Any]:
    """All that an interrupted run goes on from."""
    resume_state = resuming.find_resume_state(read_settings(folder), folder)
    assert resume_state is not None
    held = resuming.newest(folder)
    assert held is not None
    asked = resuming.origin_of_request(folder, read_settings(folder), resume_state)
    return [resume_state, digest(held[1]["state_dict"]), str(held[1]["optimizer_states"]), asked]


@pytest.mark.parametrize(("name", "look"), [("finished", opened), ("interrupted", found)])
def test_a_flipped_bit_is_refused_or_changes_nothing(
    name: str, look: Callable[[Path], list[Any]], at_home: Path
) -> None:
    chance, copy, refused = random.Random(0), Path("copy"), list[tuple[str, str]]()
    answer = look(Path(shutil.copytree(name, copy)))
    for file in files_of(Path(name)):
        for _ in range(3):
            shutil.rmtree(copy)
            shutil.copytree(name, copy)
            flip(copy / file.relative_to(name), chance)
            try:
                assert look(copy) == answer, f"{file}: another answer in silence"
            except (RequestError, RunError) as error:
                refused.append((file.name, str(error)))
    shutil.rmtree(copy)
    assert all(name in line and "\n" not in line for name, line in refused)
    assert {"best.ckpt", "frozen.safetensors", "settings.json"} <= {name for name, _ in refused}


def result(folder: Path) -> list[Any]:
    """What a run came to, but for its times."""
    summary = json.loads((folder / "summary.json").read_text())
    tables = [(folder / name).read_bytes() for name in ("metrics.csv", "predictions.csv")]
    return [[summary[key] for key in ("val", "test", "best_epoch", "classes", "overrides")], tables]


def content(file: str) -> bytes:
    return Path(file).read_bytes()


def exported(file: str) -> Any:
    state, text = read_state_dict(Path(file))  # whose text has no order
    return digest(state), text


COMMANDS: dict[str, list[tuple[tuple[str, ...], Callable[[], Any]]]] = {
    "finished": [
        (("evaluate", "copy", "--out", "o.json"), lambda: content("o.json")),
        (
            ("predict", "copy", "pictures/red", "--out", "o.csv"),
            lambda: [row.split(",")[:3] for row in Path("o.csv").read_text().splitlines()],
        ),
        (("export", "copy", "--out", "o.safetensors"), lambda: exported("o.safetensors")),
        (("report", "copy"), lambda: content("copy/report.html")),
        (("resume", "copy"), lambda: result(Path("copy"))[0]),
        (
            ("train", *SMALL[:-3], "weights=copy", "head=keep", "freeze=[all,-fc]", "hydra.run.dir=next"),
            lambda: result(Path("next")),
        ),
    ],
    "interrupted": [(("resume", "copy"), lambda: result(Path("copy")))],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("seed", range(1))
def test_no_command_answers_otherwise_in_silence(name: str, seed: int, command: Command, runs: Path) -> None:
    """Thirty flips a case, 120 in all, each followed by a command."""
    chance, answers = random.Random(seed), dict[tuple[str, ...], Any]()
    Path("pictures").symlink_to((runs / "pictures").resolve())
    files = files_of(runs / name)
    for number in range(-len(COMMANDS[name]), 30):
        for folder in ("copy", "next"):
            shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(runs / name, "copy")
        words, answer = COMMANDS[name][number % len(COMMANDS[name])]
        if number >= 0:
            flip(Path("copy") / (file := chance.choice(files)).relative_to(runs / name), chance)
        ended = command(*words)
        if number < 0:
            assert ended.code == 0, ended.err
            answers[words] = answer()
        elif ended.code == 0:
            assert answer() == answers[words], f"{words}: another answer in silence, for {file}"
        else:
            assert ended.err.splitlines()[-1].startswith("error: "), ended.err
