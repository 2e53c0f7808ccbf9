"""How familiar images are to a run, what lies near them, and sets that hold the truth."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file

import finetune
from finetune.build import find_data
from finetune.errors import RequestError
from finetune.evaluation import familiar
from finetune.evaluation.embeddings import embed, model_of
from finetune.evaluation.familiar import Details
from finetune.evaluation.forward import Predictor
from finetune.runs.folder import REFERENCE
from finetune.runs.open import Saved, open_run
from support.ended import Ended
from support.runs import SMALL

Command = Callable[..., Ended]


@pytest.fixture
def strange(tmp_path: Path) -> Path:
    """A picture unlike noise of any colour."""
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[8:24, 8:24] = 255
    Image.fromarray(pixels).save(tmp_path / "strange.png")
    return tmp_path / "strange.png"


def test_a_stranger_is_less_familiar_than_what_was_held_out(
    run: finetune.Run, saved: Saved, strange: Path
) -> None:
    dataset, model = find_data(saved.settings), finetune.load(run)
    held = [dataset.images[row] for row in dataset.split["val"]]
    shares = [one.familiar for one in model.predict(held)]
    assert sorted(shares) == pytest.approx(np.arange(len(held)) / len(held), abs=1.5 / len(held))
    assert model.predict(strange)[0].familiar == 0
    train = [dataset.images[row] for row in dataset.split["train"][:9]]
    assert np.mean([one.familiar for one in model.predict(train)]) > np.mean(shares)


def test_the_nearest_of_a_training_image_is_itself(command: Command, run: finetune.Run, saved: Saved) -> None:
    dataset = find_data(saved.settings)
    row = dataset.split["train"][0]
    image, label = dataset.images[row], dataset.classes[dataset.labels[row]]
    ended = command("predict", str(run.folder), str(image), "--neighbours", "2", "--format", "jsonl")
    found = json.loads(ended.out)
    assert list(found) == ["path", "predictions", "familiar", "neighbours"]
    first, second = found["neighbours"]
    assert (first["path"], first["class"]) == (str(image), label)
    assert first["similarity"] == pytest.approx(1, abs=2e-3)
    assert first["similarity"] > second["similarity"] > 0


def test_all_of_it_in_a_table(command: Command, run: finetune.Run, strange: Path) -> None:
    Path("broken.png").write_bytes(b"no picture")
    options = ("--neighbours", "2", "--reject", "0.2", "--coverage", "0.8")
    ended = command("predict", str(run.folder), str(strange), "broken.png", *options)
    header, first, broken = ended.out.splitlines()
    nearest = "neighbour,neighbour_class,similarity,neighbour_2,neighbour_class_2,similarity_2"
    assert header == f"path,class,probability,error,familiar,set,{nearest}"
    cells = first.split(",")
    assert cells[:5] == [str(strange), "none of these", "", "", "0.0"]
    assert set(cells[5].split("|")) <= set(run.summary["classes"])
    assert len(cells) == 12
    assert broken == 'broken.png,,,"not an image, or of an unknown format"' + 8 * ","
    assert "1 are none of these" in ended.err


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (("--reject", "1.5"), "--reject=1.5: expected a number between 0 and 1"),
        (("--reject", "0.01"), "--reject=0.01: expected a run with answers to 99 or more images"),
        (("--coverage", "0.99"), "--coverage=0.99: expected a run with answers to 99 or more images"),
    ],
)
def test_shares_that_too_few_images_tell_are_refused(
    command: Command, run: finetune.Run, strange: Path, options: tuple[str, ...], line: str
) -> None:
    ended = command("predict", str(run.folder), str(strange), *options)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith(f"error: {line}")
    assert ended.err.count("\n") == 1


def test_an_older_run_answers_without(saved: Saved) -> None:
    assert saved.summary is not None
    older = replace(saved, summary={**saved.summary, "files": {}})
    predictor = Predictor(older)
    assert Details(predictor).columns == []
    for asked in ({"neighbours": 1}, {"reject": 0.5}):
        with pytest.raises(RequestError, match=rf"expected a run with {REFERENCE}.*{saved.folder} has none"):
            Details(predictor, **asked)
    with pytest.raises(RequestError, match="this one has 0"):
        Details(predictor, coverage=0.5)


def test_a_changed_file_is_told(
    saved: Saved, run: finetune.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = bytearray((run.folder / REFERENCE).read_bytes())
    content[-1] ^= 1
    (tmp_path / REFERENCE).write_bytes(content)
    with pytest.raises(RequestError, match=rf"{REFERENCE}: expected what the run wrote; it has been changed"):
        familiar.read_reference(replace(saved, folder=tmp_path))
    changed = Predictor(replace(saved, folder=tmp_path))
    assert Details(changed).columns == []  # what does not need it goes on
    told = f"delete {tmp_path}/summary.json, and finetune resume {tmp_path} writes it again"
    note, again = capsys.readouterr().err, pytest.raises(RequestError, match=told)
    assert note.startswith(
        f"note     without `familiar`: {tmp_path / REFERENCE}: expected what the run wrote;"
    )
    with again:
        Details(changed, neighbours=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides", [("freeze=none", "epochs=1"), ("data.val_fraction=0", "optimizer=lbfgs")]
)
def test_what_is_kept_is_what_the_head_reads(
    finished_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, overrides: tuple[str, ...]
) -> None:
    run = finished_run("precision=32", *overrides)
    monkeypatch.chdir(run.parent)
    saved = open_run("run")
    dataset = find_data(saved.settings)
    every = familiar.directions(embed(model_of(saved), saved.settings, dataset, Console(quiet=True)).values)
    kept, reference = load_file(run / REFERENCE), familiar.read_reference(saved)
    assert reference is not None
    places = [[str(image) for image in dataset.images].index(name) for name in reference.names]
    assert sorted(places) == dataset.split["train"].tolist()
    assert ((kept["features"].float() * every[places]).sum(1) > 0.9995).all()
    others = every[dataset.split["val"]] if len(dataset.split["val"]) else every[places]
    similar = others @ every[places].T
    if not len(dataset.split["val"]):
        similar.fill_diagonal_(-1)
    torch.testing.assert_close(
        kept["similar"].sort().values, similar.amax(1).sort().values, rtol=0, atol=2e-3
    )


@pytest.mark.slow
def test_images_in_folds_are_compared_with_other_folds(finished_run: Callable[..., Path]) -> None:
    saved = open_run(str(finished_run("data.folds=3")))
    kept, reference = load_file(saved.folder / REFERENCE), familiar.read_reference(saved)
    assert reference is not None
    answers = familiar.held_out(saved)
    assert {one.picture for one in answers} == set(reference.names)
    folds = {one.picture: one.fold for one in answers}
    own = np.array([folds[name] for name in reference.names])
    similar = (reference.features @ reference.features.T).numpy()
    similar[own[:, None] == own] = -1
    assert kept["similar"].tolist() == pytest.approx(similar.max(1).tolist(), abs=1e-3)
    largest = {one.picture: one.probability for one in answers}
    scores = [
        reference.weights @ torch.tensor([a, largest[name]]).double()
        for a, name in zip(kept["similar"], reference.names, strict=True)
    ]
    assert reference.known.tolist() == pytest.approx(sorted(map(float, scores)))
    assert Details(Predictor(saved), coverage=0.9).columns == ["familiar", "set"]


def test_a_drawing_keeps_to_the_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(familiar, "MOST", 20)
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [60, 30, 10]))
    places = familiar._drawn(labels)
    assert len(set(places.tolist())) == 20
    assert np.abs(np.bincount(labels[places]) - [12, 6, 2]).max() <= 1
    assert sorted(familiar._drawn(labels[:7])) == [*range(7)]


@pytest.mark.slow
def test_each_job_keeps_what_its_own_backbone_gives(
    command: Command, few_pictures: Path, small_weights: str
) -> None:
    knobs = ("data=folder", f"data.root={few_pictures}", "data.image_size=32", small_weights, SMALL)
    ended = command(
        *("train", "-m", *knobs, "epochs=2", "trainer=cpu", "precision=32", "hydra.sweep.dir=sweep"),
        *("freeze=through:layer3", "optimizer.lr=0.001,0.3"),
    )
    assert (ended.code, "together" in ended.out) == (0, True), ended.err
    stored = []
    for job in ("sweep/0", "sweep/1"):
        saved, reference = open_run(job), load_file(f"{job}/{REFERENCE}")
        dataset = find_data(saved.settings)
        every = embed(model_of(saved), saved.settings, dataset, Console(quiet=True)).values
        stored.append(reference["features"].float())
        rows = dataset.split["train"]
        mine = familiar.directions(every[rows[familiar._drawn(dataset.labels[rows])]])
        assert ((stored[-1] * mine).sum(1) > 0.9995).all()
    assert ((stored[0] * stored[1]).sum(1) < 0.99).any()
