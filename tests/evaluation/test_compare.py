"""Backbones compared on the same held-out images; test images are left for the one that is chosen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from finetune.build import find_data, make_model
from finetune.config.compose import compose
from finetune.evaluation.compare import compare_models
from finetune.evaluation.embeddings import embed
from support.ended import Ended
from support.runs import QUICK

Command = Callable[..., Ended]
MODELS = "models=[timm/test_resnet,timm/test_efficientnet]"


@pytest.fixture(autouse=True)
def pictures(few_pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pictures").symlink_to(few_pictures)
    monkeypatch.chdir(tmp_path)


def test_each_model_has_a_row_the_best_first(command: Command) -> None:
    ended = command("compare", MODELS, *(one for one in QUICK if not one.startswith("model=")))
    assert (ended.code, ended.err) == (0, "")
    rows = [line.split() for line in ended.out.splitlines() if " to " in line]
    shown = {row[-8]: row for row in rows}
    assert shown.keys() == {"timm/test_resnet", "timm/test_efficientnet"}
    accuracies = [float(row[-7]) for row in rows]
    assert accuracies == sorted(accuracies, reverse=True)
    for row in rows:
        assert float(row[-6]) <= float(row[-7]) <= float(row[-4])  # the interval
    parameters = {name: int(row[-2].replace(",", "")) for name, row in shown.items()}
    for name, number in parameters.items():
        settings = compose([*QUICK, f"model={name}"])
        network = make_model(settings, find_data(settings)).network
        assert number == sum(p.numel() for p in network.parameters())
    assert "head solved: optimizer=lbfgs" in ended.out
    assert command("compare", MODELS, "data=folder", "data.root=pictures", "model=resnet50").code == 2


def test_test_images_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def noted(model: object, settings: object, dataset: object, console: Console) -> object:
        seen.append(set(dataset.digests))
        return embed(model, settings, dataset, console)

    monkeypatch.setattr("finetune.evaluation.compare.embed", noted)
    overrides = [one for one in QUICK if not one.startswith("model=")]
    compare_models(["models=[timm/test_resnet]", *overrides])
    dataset = find_data(compose(list(QUICK)))
    test = {dataset.digests[i] for i in dataset.split["test"]}
    assert test
    assert seen == [{*dataset.digests} - test]


def test_what_train_refuses_and_warns_of_is_told(command: Command, few_pictures: Path) -> None:
    for name, number in (("red", 20), ("green", 3)):
        Path("few", name).mkdir(parents=True)
        for one in sorted((few_pictures / name).iterdir())[:number]:
            Path("few", name, one.name).symlink_to(one)
    Path("one").mkdir()
    Path("one", "red").symlink_to(few_pictures / "red")
    ended = command("compare", "models=[timm/test_resnet]", "one", "weights=random")
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "data.root=one: expected two classes or more; there is only red" in ended.err
    Path("few/green/red.png").symlink_to(few_pictures / "red" / "0.png")
    how = ("weights=random", "data.image_size=32", "cache=memory")
    ended = command("compare", "models=[timm/test_resnet]", "few", *how)
    assert "of the images to train on are red" in ended.out
    assert "images with another label elsewhere" in ended.out


@pytest.mark.parametrize(
    ("models", "line"),
    [
        ("models=resnet18", "models: expected a list of them"),
        ("models=[]", "models: expected a list of them"),
        ("models=[resnet18,resnet19]", "model=resnet19: expected"),
        ("seed=1", "models: expected a list of them"),
    ],
)
def test_what_is_no_list_of_models_is_refused(command: Command, models: str, line: str) -> None:
    ended = command("compare", models)
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert line in ended.err
