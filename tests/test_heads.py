"""Heads on constant features: standardised, solved, refitted; and which epoch is kept."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import timm
import torch
from rich.console import Console
from torch.nn import functional

from finetune.build import build_options, find_data, make_model
from finetune.cells import read_table
from finetune.config.compose import compose
from finetune.errors import Interrupted
from finetune.evaluation.forward import Predictor
from finetune.learners import stratified_folds
from finetune.model.standardize import StandardizedLinear, statistics
from finetune.run import prepare, run_prepared
from finetune.runs.open import open_run
from finetune.signals import Signal
from finetune.training.fit import fit
from finetune.training.losses import create_loss
from finetune.training.solve import Problem, follow_path
from finetune.training.solved import SolvedClassifier
from support.ended import Ended
from support.runs import QUICK, checkpoint, summary_of
from support.slow import slow

Finished = Callable[..., Path]
Command = Callable[..., Ended]
SOLVED = ("optimizer=lbfgs", "data.val_fraction=0.2")


@pytest.fixture
def at_pictures(few_pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("pictures").symlink_to(few_pictures)
    return tmp_path


def test_statistics_are_those_of_all_features_and_what_does_not_vary_counts_nothing() -> None:
    features = torch.randn(100, 3, dtype=torch.float64) * torch.tensor([1e-2, 1.0, 50.0]) + 1e4
    features[:, 1] = 7.25
    mean, scale = statistics(features.split(33))
    torch.testing.assert_close(mean, features.mean(0))
    deviation = features.std(0, unbiased=False)
    torch.testing.assert_close(scale[[0, 2]], 1 / deviation[[0, 2]], rtol=1e-6, atol=0)
    assert scale[1] == 0


@pytest.mark.parametrize("optimizer", ["lbfgs", pytest.param("sgd", marks=pytest.mark.slow)])
def test_features_that_overflow_are_refused(at_pictures: Path, command: Command, optimizer: str) -> None:
    state = timm.create_model("test_resnet").state_dict()
    for norm in ("bn2", "downsample.2"):  # whose outputs are added
        state[f"layer4.0.{norm}.bias"].fill_(3e38)
    torch.save(state, "weights.pt")
    ended = command("train", *QUICK, "weights=weights.pt", f"optimizer={optimizer}")
    assert ended.code == 2
    assert "features of some image are infinite or no numbers: expected finite ones" in ended.err


@pytest.mark.slow
def test_a_layer_of_the_backbone_that_reads_the_features_stays_as_it_was_trained(at_pictures: Path) -> None:
    asked = (
        "model=mobilenet_v3_small",
        "weights=random",
        "freeze=features",
        "optimizer.lr=1e-12",
        "epochs=1",
    )
    settings = compose([*QUICK, *asked])
    prepared = prepare(settings, Path("run"), Console(quiet=True), build_options(settings))
    layer = prepared.model.network.get_submodule("classifier.0")
    assert isinstance(layer, StandardizedLinear)
    plain = make_model(settings, prepared.dataset).network.get_submodule("classifier.0")
    varies = layer.scale > 0  # of what does not the bias holds the share
    torch.testing.assert_close((layer.weight * layer.scale)[:, varies], plain.weight[:, varies])
    features = prepared.inputs.inputs(torch.from_numpy(prepared.dataset.split["train"]))
    torch.testing.assert_close(layer(features), plain(features), rtol=1e-3, atol=1e-3)


def test_checkpoints_hold_a_plain_layer_that_computes_the_same(at_pictures: Path) -> None:
    settings = compose([*QUICK, "epochs=3"])
    prepared = prepare(settings, Path("run"), Console(quiet=True), build_options(settings))
    layer = prepared.model.network.get_submodule("fc")
    assert isinstance(layer, StandardizedLinear)
    features = prepared.inputs.inputs(torch.from_numpy(prepared.dataset.split["train"]))
    assert isinstance(features, torch.Tensor)
    before = (features - layer.mean) * layer.scale
    torch.testing.assert_close(before.mean(0), torch.zeros(96), rtol=0, atol=1e-4)
    run_prepared(prepared, Console(quiet=True))
    content = checkpoint(Path("run"), "last")
    plain, raw = content["state_dict"], content["standardized"]["fc"]
    assert plain.keys() == {"fc.weight", "fc.bias"}
    standardized = functional.linear((features - raw["mean"]) * raw["scale"], raw["weight"], raw["bias"])
    folded = functional.linear(features, plain["fc.weight"], plain["fc.bias"])
    assert float((standardized - folded).norm() / standardized.norm()) < 1e-5


@pytest.mark.slow
def test_uncached_training_is_standardised_alike(finished_run: Finished) -> None:
    run = finished_run("precision=32")
    other = finished_run("cache=none", "data.augment=none", "precision=32")
    for kind in ("mean", "scale"):
        one, two = (checkpoint(each)["standardized"]["fc"][kind] for each in (run, other))
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_nothing_is_standardised_that_is_not_constant_or_not_asked_for(finished_run: Finished) -> None:
    for overrides in (["standardize=false"], ["freeze=[all,-layer4]"], ["head_dropout=0.5"]):
        assert checkpoint(finished_run(*overrides))["standardized"] == {}


def test_the_solution_is_the_optimum_and_is_kept(at_pictures: Path) -> None:
    settings = compose([*QUICK, *SOLVED, "optimizer.weight_decay=0.01", "precision=bf16"])  # of the features
    prepared = prepare(settings, Path("run"), Console(quiet=True), build_options(settings))
    rows = torch.from_numpy(prepared.dataset.split["train"])
    features, labels = prepared.inputs.inputs(rows), torch.from_numpy(prepared.dataset.labels)[rows]
    assert "bf16" in str(prepared.inputs.features)
    assert prepared.options.precision == "32-true"
    run_prepared(prepared, Console(quiet=True))
    classifier = prepared.classifier
    assert isinstance(classifier, SolvedClassifier)
    raw = checkpoint(Path("run"))["standardized"]["fc"]
    weight, bias = (value.detach().clone().requires_grad_() for value in classifier.head.found())
    standardized = ((features - raw["mean"]) * raw["scale"]).double()
    loss = functional.cross_entropy(standardized @ weight.T + bias, labels) + 0.005 * weight.square().sum()
    loss.backward()
    assert max(float(value.grad.abs().max()) for value in (weight, bias)) < 1e-5  # type: ignore[union-attr]
    torch.testing.assert_close(raw["weight"], weight.detach().float())
    summary = summary_of(Path("run"))
    assert summary["solution"] == {"weight_decay": 0.01, "gradient": classifier.gradient, "path": []} | {
        "iterations": summary["steps"]
    }
    curve = read_table(Path("run") / "metrics.csv")
    assert [row["epoch"] for row in curve] == [str(number + 1) for number in range(summary["steps"])]
    assert float(curve[-1]["gradient_norm"]) < 1e-4 < float(curve[0]["gradient_norm"])
    assert float(curve[-1]["loss/val"]) == pytest.approx(summary["val"]["loss"], rel=1e-4)


@pytest.mark.slow
def test_folds_hold_out_the_images_that_they_name(at_pictures: Path) -> None:
    """Identical images are in the same fold, whatever the order of the batch."""
    settings = compose([*QUICK, *SOLVED])
    prepared = prepare(settings, Path("run"), Console(quiet=True), build_options(settings))
    rows = torch.from_numpy(prepared.dataset.split["train"])
    features = prepared.inputs.inputs(rows)
    layer = prepared.model.network.get_submodule("fc")
    problem = Problem(
        (features - layer.mean) * layer.scale,  # type: ignore[operator]
        torch.from_numpy(prepared.dataset.labels)[rows],
        create_loss("cross_entropy"),
        3,
    )
    expected = next(follow_path(problem, stratified_folds(prepared.dataset, 0), problem.loss))
    run_prepared(prepared, Console(quiet=True))
    assert isinstance(prepared.classifier, SolvedClassifier)
    torch.testing.assert_close(prepared.classifier.points[0].logits, expected.logits, rtol=1e-4, atol=1e-4)


def test_identical_images_are_in_one_fold(few_pictures: Path) -> None:
    settings = compose(
        [*QUICK[:1], f"data.root={few_pictures}", "data.val_fraction=0", "data.test_fraction=0"]
    )
    dataset = find_data(settings)
    twice = replace(dataset, digests=[f"{index // 2 % 7}" for index in range(60)])
    folds = stratified_folds(twice, 0)
    digests = np.asarray(twice.digests)[twice.split["train"]]
    assert sorted(int(row) for _, held in folds for row in held) == list(range(60))
    for fitted, held in folds:
        assert not set(digests[fitted]) & set(digests[held])


def test_folds_measure_classes_that_they_know(few_pictures: Path) -> None:
    settings = compose(
        [*QUICK[:1], f"data.root={few_pictures}", "data.val_fraction=0", "data.test_fraction=0"]
    )
    dataset = find_data(settings)
    labels = np.arange(60)
    assert stratified_folds(replace(dataset, labels=labels), 0) == []
    labels[:20] = 0
    folds = stratified_folds(replace(dataset, labels=labels), 0)
    assert sorted(int(row) for _, held in folds for row in held) == list(range(20))
    assert all(len(fit) == 48 for fit, _ in folds)


@pytest.mark.parametrize("select", ["cv", "val"])
def test_the_strength_of_the_lowest_log_loss_is_taken(finished_run: Finished, select: str) -> None:
    summary = summary_of(finished_run(*SOLVED, f"optimizer.select={select}"))
    path = summary["solution"]["path"]
    assert 4 <= len(path) <= 13
    best = min(path, key=lambda point: point["log_loss"])
    assert summary["solution"]["weight_decay"] == best["strength"]
    if select == "val":
        assert summary["val"]["loss"] == pytest.approx(best["log_loss"], abs=1e-3)


@pytest.mark.slow
def test_both_views_are_solved_for(at_pictures: Path) -> None:
    settings = compose([*QUICK, *SOLVED, "data.augment=flip"])
    prepared = prepare(settings, Path("run"), Console(quiet=True), build_options(settings))
    run_prepared(prepared, Console(quiet=True))
    classifier, inputs = prepared.classifier, prepared.inputs.inputs
    assert isinstance(classifier, SolvedClassifier)
    assert inputs.mirrored is not None
    rows = torch.from_numpy(prepared.dataset.split["train"])
    features = torch.cat([inputs.plain(rows), inputs.mirrored(rows)])  # type: ignore[list-item]
    raw = checkpoint(Path("run"))["standardized"]["fc"]
    torch.testing.assert_close(raw["mean"], features.mean(0), rtol=1e-4, atol=1e-5)
    weight, bias = (value.detach().clone().requires_grad_() for value in classifier.head.found())
    labels = torch.from_numpy(prepared.dataset.labels)[rows].repeat(2)
    standardized = ((features - raw["mean"]) * raw["scale"]).double()
    loss = functional.cross_entropy(standardized @ weight.T + bias, labels)
    (loss + classifier.strength / 2 * weight.square().sum()).backward()
    assert max(float(value.grad.abs().max()) for value in (weight, bias)) < 1e-5  # type: ignore[union-attr]


@pytest.mark.slow
def test_what_has_no_effect_is_told(at_pictures: Path, command: Command) -> None:
    ended = command("train", *QUICK, "optimizer=lbfgs", "patience=1")
    assert ended.code == 0, ended.err
    assert "patience=1 has no effect with optimizer=lbfgs" in ended.out
    kept = command("train", *QUICK, "batchnorm=auto", "freeze=through:layer3")
    assert "batchnorm=auto keeps the pretrained: only a linear head" in kept.out


@pytest.mark.slow
def test_a_solve_that_ends_early_is_told(
    at_pictures: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finetune.training.solved.ROUNDS", 2)
    ended = command("train", *QUICK, "optimizer=lbfgs", "optimizer.weight_decay=0.001")
    assert "the solve ended with a gradient of" in ended.out


@pytest.mark.slow
def test_evaluating_what_was_refitted_on_is_told(finished_run: Finished, command: Command) -> None:
    run = finished_run("data.val_fraction=0.3", "refit=true")
    Path("pictures").symlink_to(run.parent / "pictures")
    assert "the run has learned from" in command("evaluate", str(run), "--split", "val").out
    assert "has learned from" not in command("evaluate", str(run), "--split", "test").out


@pytest.mark.slow
def test_the_temperature_of_a_refitted_head_comes_from_the_folds(finished_run: Finished) -> None:
    summary = summary_of(finished_run("data.val_fraction=0.3", "optimizer=lbfgs", "refit=true"))
    assert summary["calibration"]["fitted_on"] == summary["data"]["train"]
    stepped = summary_of(finished_run("data.val_fraction=0.3", "refit=true"))
    assert stepped["calibration"]["fitted_on"] == stepped["data"]["val"]


@pytest.mark.slow
def test_a_solved_run_answers_as_it_did(finished_run: Finished) -> None:
    run = finished_run(*SOLVED)
    saved = open_run(str(run))
    rows = [row for row in read_table(run / "predictions.csv") if row["split"] == "test"]
    answers = [
        one
        for batch in Predictor(saved, "32", "cpu")(Path(run.parent / row["picture"]) for row in rows)
        for one in batch
    ]
    found = [saved.classes[int(one.logits.argmax())] for one in answers if one.logits is not None]
    assert found == [row["predicted"] for row in rows]


@pytest.mark.parametrize(
    "overrides",
    [slow(("max_steps=2",)), slow(("optimizer=lbfgs",)), slow(("best=last", "freeze=[all,-layer4]"))],
)
def test_refitted_on_train_and_validation(finished_run: Finished, overrides: tuple[str, ...]) -> None:
    run, once = (finished_run("data.val_fraction=0.3", *overrides, *more) for more in (["refit=true"], []))
    summary, before = summary_of(run), summary_of(once)
    for name in ("loss", "accuracy", "balanced_accuracy", "macro_f1"):
        assert summary["val"][name] == before["val"][name]  # from before
    assert summary["test"] != before["test"]
    data = summary["data"]
    assert summary["refit"] == data["train"] + data["val"]
    assert not (run / "checkpoints" / "refit").exists()
    chosen, best = (checkpoint(run, name)["state_dict"] for name in ("chosen", "best"))
    assert all(value.equal(checkpoint(once)["state_dict"][name]) for name, value in chosen.items())
    assert not all(value.equal(best[name]) for name, value in chosen.items())


@pytest.mark.slow
def test_a_refit_that_was_killed_is_done_again(
    at_pictures: Path, finished_run: Finished, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    overrides = ("data.val_fraction=0.3", "refit=true")
    whole = finished_run(*overrides)

    def stopped(*args: Any) -> Any:
        monkeypatch.setattr("finetune.signals.check", Mock(side_effect=Signal(signal.SIGINT)))
        return fit(*args)

    monkeypatch.setattr("finetune.run.finish", lambda *_, **__: (_ for _ in ()).throw(SystemExit))
    settings = compose([*QUICK, *overrides])
    for folder, ends in (("cut", pytest.raises(SystemExit)), ("stopped", pytest.raises(Interrupted))):
        with ends as ended:
            prepared = prepare(settings, Path(folder), Console(quiet=True), build_options(settings))
            run_prepared(prepared, Console(quiet=True))
        monkeypatch.setattr("finetune.refit.fit", stopped)
    assert re.search(r"the checkpoint of epoch \d is kept$", str(ended.value))
    monkeypatch.undo()
    monkeypatch.chdir(at_pictures)
    assert command("resume", "cut").code == 0
    for name in ("chosen", "best"):
        one, two = (checkpoint(each, name)["state_dict"] for each in (whole, Path("cut")))
        assert all(value.equal(two[key]) for key, value in one.items())
    assert summary_of(Path("cut"))["test"] == summary_of(whole)["test"]


@pytest.mark.slow
def test_statistics_of_the_lower_log_loss_are_kept(finished_run: Finished) -> None:
    run = finished_run("batchnorm=auto")
    tried = summary_of(run)["batchnorm"]["log_loss"]
    better = min(tried, key=lambda name: tried[name])
    assert tried["adapt"] != tried["pretrained"]
    frozen = [checkpoint(one)["frozen_sha256"] for one in (run, finished_run(f"batchnorm={better}"))]
    assert frozen[0] == frozen[1]
    untold = finished_run("batchnorm=auto", "freeze=through:layer3")  # no head reads what is constant
    assert summary_of(untold)["batchnorm"] is None


@pytest.mark.parametrize("best", ["loss", "accuracy", "balanced_accuracy", "macro_f1", "last"])
def test_the_epoch_that_is_kept(finished_run: Finished, best: str) -> None:
    run = finished_run("epochs=6", "optimizer.lr=0.3", "data.val_fraction=0.3", f"best={best}")
    rows = read_table(run / "metrics.csv")
    summary = summary_of(run)
    assert summary["best"] == best
    if best == "last":
        assert summary["best_epoch"] == 6
        return
    values = np.array([float(row[f"{best}/val"]) for row in rows]) * (-1 if best == "loss" else 1)
    losses = np.array([float(row["loss/val"]) for row in rows])
    assert summary["best_epoch"] == max(range(6), key=lambda epoch: (values[epoch], -losses[epoch])) + 1


@pytest.mark.slow
def test_a_sweep_is_ranked_by_what_is_kept(at_pictures: Path, small_weights: str, command: Command) -> None:
    overrides = (*QUICK, small_weights, "data.val_fraction=0.3", "best=loss", "seed=0,1", "refit=true")
    ended = command("train", "-m", *(one for one in overrides if one != "weights=random"))
    assert ended.code == 0, ended.err
    table = read_table(next(Path("outputs/sweeps").glob("*/*/leaderboard.csv")))
    assert "val_loss" in table[0]
    for job in Path("outputs/sweeps").glob("*/*/[01]"):
        assert (job / "checkpoints" / "chosen.ckpt").exists()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["optimizer=lbfgs", "freeze=[all,-layer4]"],
            "optimizer=lbfgs: expected a linear layer",
        ),
        (["optimizer=lbfgs", "loss=sum_squares"], "loss=sum_squares: expected cross_entropy or bce"),
        (
            ["optimizer=lbfgs", "optimizer.select=val", "data.val_fraction=0"],
            "optimizer.select=val: expected im",
        ),
        (["optimizer=lbfgs", "data.augment=standard"], "data.augment=standard: expected cache=auto or none"),
        (["optimizer=lbfgs", "head_hidden=[8]"], "head_hidden: expected []"),
        (
            ["optimizer=lbfgs", "optimizer.weight_decay=-1"],
            "optimizer.weight_decay=-1: expected a number",
        ),
        (["standardize=true", "freeze=none"], "standardize=true: expected a linear layer"),
        (["refit=true", "data.val_fraction=0"], "refit=true: expected images to validate with"),
        (["best=last", "patience=2"], "patience=2: expected another best"),
        (["best=map"], "best=map: expected images with several labels"),
    ],
)
def test_refused(at_pictures: Path, command: Command, overrides: list[str], words: str) -> None:
    ended = command("train", *QUICK, *overrides)
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert f"error: {words}" in ended.err


def test_features_that_memory_cannot_hold_seven_times_are_not_solved_for(
    at_pictures: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finetune.demands.ram", lambda: 10_000)
    ended = command("train", *QUICK, "optimizer=lbfgs", "precision=bf16")
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "optimizer=lbfgs: expected 161.3 kB" in ended.err  # of 60 times 96 numbers in float32
    assert "7 times the features" in ended.err
    assert "there are 10.0 kB" in ended.err
