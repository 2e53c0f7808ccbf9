"""A run opened again: the same model, by its folder or as the latest."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from finetune.errors import RequestError
from finetune.runs.folder import find_run
from finetune.runs.open import open_run
from finetune.runs.settings import read_settings
from finetune.runs.summary import read_summary, write_summary
from support.ended import Ended
from support.older import as_older
from support.runs import QUICK, newest, whole_state
from support.slow import slow

Train = Callable[..., Ended]


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        slow(()),
        ("head_hidden=[8]", "head_dropout=0.1", "freeze=through:layer3", "head_features=[layer2]"),
        slow(("head_features=all",)),
        ("head=keep", "freeze=[all,-fc]"),
    ],
)
def test_a_run_opened_again_is_the_model_that_its_best_epoch_left(
    train: Train, few_pictures: Path, overrides: tuple[str, ...]
) -> None:
    Path("pictures").symlink_to(few_pictures)
    assert train(*QUICK, *overrides).code == 0
    saved = open_run("latest")
    assert saved.folder == newest()
    assert saved.classes == ("blue", "green", "red")
    assert saved.preprocessing.crop_size == 32
    assert saved.settings.epochs == 2
    assert saved.summary is not None
    assert saved.summary["status"] == "finished"
    kept = whole_state(saved.folder)
    own = saved.network.state_dict()
    assert own.keys() == kept.keys()
    assert all(torch.equal(own[name], kept[name]) for name in own)
    assert not any(module.training for module in saved.network.modules())


@pytest.mark.slow
def test_settings_that_were_changed_by_hand_or_are_another_runs_are_refused(
    train: Train, command: Train, few_pictures: Path
) -> None:
    Path("pictures").symlink_to(few_pictures)
    for name in ("one", "other"):
        quick = (*QUICK, f"epochs={len(name)}", f"hydra.run.dir={name}")
        assert train(*quick, "max_steps=1").code == 0
    file = Path("one/settings.json")
    changed = json.dumps({**json.loads(file.read_text()), "epochs": 7})
    wanted = f"{file}: expected the settings"
    for text, line in (
        (changed, f"{wanted} of a run as it was written; it has been changed since (SHA-256)"),
        (Path("other/settings.json").read_text(), f"{wanted} that this run began with; these are others"),
    ):
        file.write_text(text)
        Path("one/summary.json").unlink(missing_ok=True)  # there would be nothing to do
        for words in (("resume", "one"), ("evaluate", "one"), ("predict", "one", "pictures")):
            assert command(*words).err == f"error: {line}; weights=one starts a new run from its weights\n"


def test_a_run_without_a_checkpoint_cannot_be_opened(train: Train, few_pictures: Path) -> None:
    Path("pictures").symlink_to(few_pictures)
    assert train(*QUICK).code == 0
    (newest() / "checkpoints" / "best.ckpt").unlink()
    with pytest.raises(RequestError, match="expected a run with a finished epoch"):
        open_run("latest")


@pytest.mark.parametrize("content", [b"\xff\xfe", b"null\n", b"", None])
def test_a_damaged_latest_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("outputs").mkdir()
    if content is None:
        Path("outputs/latest").mkdir()
    else:
        Path("outputs/latest").write_bytes(content)
    with pytest.raises(RequestError, match="outputs/latest"):
        find_run("latest")


def test_a_summary_without_a_digest_has_a_status_or_is_refused(tmp_path: Path) -> None:
    golden = Path(__file__).parents[1] / "golden" / "runs" / "all" / "summary.json"
    values = json.loads(golden.read_text(encoding="utf-8"))
    (tmp_path / "summary.json").write_text(json.dumps(values))
    assert read_summary(tmp_path) == values
    failed = {"status": "failed", "reason": 5}
    for held in ({}, {"status": "else"}, {"status": []}, failed, values | {"val": 5}, {"status": "finished"}):
        (tmp_path / "summary.json").write_text(json.dumps(held))
        with pytest.raises(RequestError, match=r"summary\.json: .* else; delete it, and finetune resume"):
            read_summary(tmp_path)


def test_the_file_that_names_the_newest_run_is_a_name_of_it_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, elsewhere = tmp_path / "outputs" / "run", tmp_path / "elsewhere"
    for folder in (run, elsewhere):
        folder.mkdir(parents=True)
    (run / "settings.json").touch()
    (tmp_path / "outputs" / "latest").write_text("outputs/run\n")
    monkeypatch.chdir(tmp_path)
    assert find_run("outputs/latest") == find_run("latest") == Path("outputs/run")
    monkeypatch.chdir(elsewhere)
    assert find_run("../outputs/latest").samefile(run)
    assert find_run(str(tmp_path / "outputs" / "latest")) == run
    shutil.rmtree(run)
    with pytest.raises(RequestError, match=r"latest names: expected .*, there is no such folder$"):
        find_run(str(tmp_path / "outputs" / "latest"))
    with pytest.raises(RequestError, match=r"there is no such folder$"):
        find_run("lates")


def finished(folder: Path, accuracy: float) -> Path:
    """A folder with the summary of a finished run."""
    golden = Path(__file__).parents[1] / "golden" / "runs" / "all" / "summary.json"
    values = json.loads(golden.read_text(encoding="utf-8"))
    folder.mkdir()
    write_summary(folder, values | {"files": {"metrics.csv": "ab" * 32}, "best": str(accuracy)})
    return folder


def test_a_summary_is_read_without_a_hash_and_comes_back_whole(tmp_path: Path) -> None:
    run, other = (finished(tmp_path / name, number) for number, name in enumerate("ab"))
    text = (run / "summary.json").read_text()
    assert [*json.loads(text)][-2:] == ["digests.json", "sha256"]
    assert len(re.findall("[0-9a-f]{64}", text)) == 2  # of that file and of this one
    read = read_summary(run)
    assert read
    assert len(read["frozen_proof"]["each"]) == read["frozen_proof"]["tensors"]
    assert read["files"] == {"metrics.csv": "ab" * 32}
    assert all(len(read[name][key]) == 64 for name, key in (("weights", "sha256"), ("data", "fingerprint")))
    kept = (run / "digests.json").read_text()
    changed = json.dumps({**json.loads(kept), "files": {}})
    strange = json.dumps({"files": {}})
    for damaged in (changed, kept[:-9], "", strange):
        (run / "digests.json").write_text(damaged)
        with pytest.raises(RequestError, match=r"digests\.json: expected .*; delete .*summary\.json, and"):
            read_summary(run)
    (run / "digests.json").unlink()
    with pytest.raises(RequestError, match=r"digests\.json: expected"):
        read_summary(run)
    (run / "digests.json").write_text(kept)
    assert read_summary(run) == read
    assert read_summary(other) != read


@pytest.mark.parametrize("run", ["latest", "nowhere", "."])
def test_what_is_no_run_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RequestError, match=rf"^{run.replace('.', '[.]')}: expected"):
        find_run(run)


@pytest.mark.slow
def test_a_knob_added_since_has_its_default_and_a_misspelt_one_is_refused(
    train: Train, command: Train, few_pictures: Path
) -> None:
    Path("pictures").symlink_to(few_pictures)
    assert train(*QUICK, "optimizer=adamw").code == 0
    run = newest()
    file, before = run / "settings.json", read_settings(run)
    values = json.loads(file.read_text())
    del values["head_dropout"], values["trainer"]["clip_norm"], values["data"]["nested"]
    del values["optimizer"]["weight_decay"], values["sha256"]  # another decay for sgd
    as_older(run)
    file.write_text(json.dumps(values))
    assert read_settings(run) == before
    assert before.optimizer.weight_decay == 0.01
    (run / "summary.json").unlink()  # as if it had been killed before its last words
    again = train(*QUICK, "optimizer=adamw", f"hydra.run.dir={run}", "resume=auto")
    assert again.code == 0
    for words in (("resume", str(run)), ("evaluate", str(run)), ("predict", str(run), "pictures/red/0.png")):
        assert command(*words).code == 0
    older = {**values, "head_dropuot": 0.5}
    misplaced = {**values, "optimizer": {**values["optimizer"], "momentum": 0.9}}
    unchosen = {**values, "data": {"root": "pictures"}}
    for wrong, line in (
        (older, "head_dropuot: there is no such setting; did you mean head_dropout?"),
        (misplaced, "optimizer.momentum: the chosen optimizer has no such setting"),
        (unchosen, "data.source: expected a value; it is missing"),
    ):
        file.write_text(json.dumps(wrong))
        assert command("evaluate", str(run)).err.endswith(f"error: {file}: {line}\n")
