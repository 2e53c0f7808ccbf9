"""What is stored is data: nothing of it is interpolated, whoever wrote it; what is typed now is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from finetune.config.compose import compose, override_settings
from finetune.errors import RequestError
from finetune.runs.settings import read_settings
from finetune.runs.sweeps import overrides_of
from finetune.sweep import resume
from finetune.sweep.leaderboard import compare
from finetune.sweep.search import check_stored, search_again
from support.ended import Ended
from support.runs import CHECKOUT

Command = Callable[..., Ended]
GOLDEN = CHECKOUT / "tests" / "golden" / "runs"
MAKES = "${free_folder:made}"
ESCAPED = r"$\{free_folder\:made\}"  # as Hydra hands it to a job, which interpolates it nevertheless


def test_stored_settings_come_through_as_they_are(command: Command) -> None:
    values = compose(["data=folder", "data.root=pictures"]).model_dump()
    values |= {"cache_dir": MAKES, "weights": "${oc.env:HOME}", "freeze": ["${oc.decode:all}"]}
    values["data"] |= {"root": "${seed}", "label_column": "${"}
    Path("run").mkdir()
    Path("run/settings.json").write_text(json.dumps(values))
    stored = read_settings(Path("run"))
    now = override_settings(
        stored, ["data.workers=2", "seed=${oc.decode:'7'}"], ["data", "data.workers", "seed"]
    )
    assert now.model_dump() == {**values, "seed": 7, "data": {**values["data"], "workers": 2}}
    assert now.data.root == "${seed}"
    typed = override_settings(stored, ["data=csv", "data.root='${oc.env:HOME}/a'"], ["data", "data.root"])
    assert typed.data.root is not None
    assert typed.data.root.startswith("/")
    with pytest.raises(RequestError, match=r"^data.root=\$\{nothing\}: Interpolation key"):
        override_settings(stored, ["data.root=${nothing}"], ["data.root"])
    assert not Path("made").exists()


def test_a_foreign_sweep_interpolates_nothing(command: Command) -> None:
    shutil.copytree(GOLDEN / "sweep", "cut")
    for file in Path("cut").glob("*/.hydra/*.yaml"):
        file.write_text(file.read_text().replace("store", ESCAPED))
    for job in (Path("cut/1"), Path("cut/3")):
        shutil.rmtree(job / "checkpoints")
        for name in ("settings", "summary"):
            (job / f"{name}.json").unlink()
    file = Path("cut/multirun.yaml")
    file.write_text(file.read_text().replace("cache_dir=store", f"cache_dir={MAKES}"))
    assert overrides_of(Path("cut/1"))[-1] == overrides_of(GOLDEN / "sweep" / "1")[-1]
    assert f"cache_dir={ESCAPED}" in overrides_of(Path("cut/1"))
    compare(Path("cut"))
    plans = resume._unfinished(Path("cut"))
    assert all(plan.wrong and "no plan.json" in str(plan.wrong) for plan in plans)
    assert [plan.number for plan in plans] == [1, 3]
    assert not Path("made").exists()


@pytest.mark.parametrize(
    "stored",
    [
        f"cache_dir={MAKES}",
        f"cache_dir={ESCAPED}",
        "+hydra.callbacks.evil._target_=os.system",
        "hydra.launcher.setup=[touch made]",
        "hydra.searchpath=[file:///tmp]",
        "hydra.job.env_set.PATH=here",
        "experiment=../../../../../made",
        "+data@data=/made/there",
        "hydra/sweeper=../../../../../made",
    ],
)
def test_what_a_stored_override_may_do_is_to_set_a_value(command: Command, stored: str) -> None:
    with pytest.raises(RequestError) as told:
        check_stored(stored)
    assert str(told.value).startswith(f"{stored}: expected a plain value")
    shutil.copytree(GOLDEN / "search", "search")
    assert search_again(Path("search"))
    file = Path("search/multirun.yaml")
    file.write_text(file.read_text().replace("- data=folder", f"- data=folder\n    - {json.dumps(stored)}"))
    ended = command("resume", "search")
    assert (ended.code, ended.err) == (2, f"error: {told.value}\n")


@pytest.mark.parametrize("value", ["elsewhere.db", "sqlite:///elsewhere.db", "search/link.db", None])
def test_a_foreign_search_opens_no_study_elsewhere(command: Command, value: str | None) -> None:
    shutil.copytree(GOLDEN / "search", "search")
    shutil.copy("search/study.db", "elsewhere.db")
    before = Path("elsewhere.db").read_bytes()
    link = Path("search/link.db" if value else "search/study.db")
    link.unlink(missing_ok=True)
    link.symlink_to(Path("elsewhere.db").absolute())
    file = Path("search/multirun.yaml")
    text = file.read_text().replace("n_trials=4", "n_trials=5")
    file.write_text(
        text.replace("- data=folder", f"- data=folder\n    - hydra.sweeper.storage={value or ''}")
    )
    ended = command("resume", "search")
    told = f"error: hydra.sweeper.storage={value or 'search/study.db'}: expected a study in search, as it was"
    assert (ended.code, ended.err.count("\n"), ended.err[: len(told)]) == (2, 1, told)
    assert ended.err.endswith("type finetune resume search hydra.sweeper.storage=…\n")
    assert Path("elsewhere.db").read_bytes() == before
    typed = search_again(Path("search"), ["hydra.sweeper.storage=elsewhere.db"])
    assert typed
    assert [one for one in typed if "storage" in one] == ["hydra.sweeper.storage=elsewhere.db"]
    ended = command("resume", "search", "epochs=3")
    assert (ended.code, ended.err.partition(":")[2][:22]) == (2, " epochs=3: expected a ")
