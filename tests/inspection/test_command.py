"""`finetune inspect` as a user types it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from torch import Tensor, nn

from finetune.model import assemble
from support.privilege import without_privilege

Command = Callable[..., Any]
SMALL = ("data=digits", "weights=random", "data.image_size=32")


def rows(out: str) -> list[list[str]]:
    """The cells of the table, the boundary as a single one."""
    table = out.split("\n\n")[1].splitlines()
    return [[line] if line.startswith("──") else re.split(r"  +", line.strip()) for line in table]


def test_the_boundary_is_drawn_between_avgpool_and_fc(command: Command) -> None:
    ended = command("inspect", *SMALL)
    assert (ended.code, ended.err) == (0, "")
    table = rows(ended.out)
    assert table[0] == ["module", "type", "output", "parameters", "work", "state", "mode", "rate"]
    assert table[1][:4] == ["conv1", "Conv2d", "64x16x16", "9,408"]
    assert table[-3] == ["avgpool", "AdaptiveAvgPool2d", "512x1x1", "eval"]
    assert table[-2][0].startswith("── gradient boundary: 512 numbers an image, 2.0 kB in float32 ──")
    assert table[-1] == ["fc", "Linear", "10", "5,130", "<0.1%", "trains", "train", "head 0.01"]
    assert "62 named parameters, 11,181,642 values, 5,130 of them trainable" in ended.out


def test_nothing_frozen_means_no_boundary_and_no_cache(command: Command) -> None:
    ended = command("inspect", *SMALL, "freeze=none", "optimizer.backbone_lr_factor=0.1")
    assert "gradient boundary" not in ended.out
    assert "nothing would be kept: nothing frozen comes before what trains" in ended.out
    assert rows(ended.out)[1][-3:] == ["trains", "train", "backbone 0.001"]


@pytest.mark.slow
def test_cache_says_what_would_be_decided(command: Command) -> None:
    ended = command("inspect", *SMALL, "cache=none", "precision=32")
    kept = [line for line in ended.out.splitlines() if line.startswith("cache ")]
    size = "images in fp32 take 3.7 MB"  # of 512 numbers each
    assert kept[0].endswith("99.99% of the forward pass is constant and would run once an image")
    assert re.search(rf"cache=none: 1,797 {size}: not kept, as asked for$", kept[1])
    assert len(kept) == 2


def test_json_and_nothing_else(command: Command) -> None:
    ended = command("inspect", *SMALL, "freeze=through:layer3", "--json", "--parameters")
    told = json.loads(ended.out)
    assert (told["model"], told["freeze"], told["input"]) == ("resnet18", ["through:layer3"], [3, 32, 32])
    assert told["parameters"] == {"named": 62, "total": 11_181_642, "trainable": 8_398_858}
    assert told["carries_gradient"] is True
    boundary = told["boundary"]
    assert (boundary["before"], boundary["bytes"]) == ("layer4.0.conv1", 4 * 256 * 2 * 2)
    assert [one["shape"] for one in boundary["crossings"]] == [[256, 2, 2]]
    assert 0.7 < boundary["skipped"] < 0.8
    assert told["cache"]["where"] == "disk"
    assert sum(row["parameters"] for row in told["modules"]) == 11_181_642
    assert len(told["modules"]) == 52  # every module that holds no others
    keys = "name type output calls parameters trainable mode groups macs constant"
    assert set(told["modules"][0]) == set(keys.split())
    assert told["modules"][-1]["groups"] == [{"name": "head", "lr": 0.01}]
    assert sum(one["requires_grad"] for one in told["parameter_list"]) == 17


def test_json_says_that_nothing_trains(command: Command) -> None:
    ended = command("inspect", *SMALL, "head=keep", "--json")
    assert ended.code == 0
    told = json.loads(ended.out)
    assert (told["carries_gradient"], told["boundary"], told["cache"]) == (False, None, None)
    assert told["why_no_boundary"] == "nothing trains"


def test_broken_pictures_are_not_looked_into(command: Command, few_pictures: Path, tmp_path: Path) -> None:
    shutil.copytree(few_pictures, tmp_path / "broken")
    for file in (tmp_path / "broken").rglob("*.png"):
        file.write_bytes(f"no picture, {file}".encode())
    ended = command("inspect", "data=folder", "data.root=broken", "weights=random", "data.image_size=32")
    assert ended.code == 0, ended.err
    assert "60 images" in ended.out
    assert not Path("outputs").exists()


@pytest.mark.slow
def test_a_vision_transformer_on_the_random_picture(command: Command) -> None:
    ended = command("inspect", "data=random", "model=vit_b_32", "weights=random", "data.image_size=224")
    assert ended.code == 0, ended.err
    assert "── gradient boundary: 768 numbers an image" in ended.out
    assert rows(ended.out)[-1][:4] == ["heads.head", "Linear", "1000", "769,000"]
    assert ["class_token", "Parameter", "768", "frozen"] in rows(ended.out)


class Branching(nn.Module):
    """Loops until its features are large enough: there is no graph to split."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.conv(x).mean((2, 3))
        while pooled.norm() < 1000:
            pooled = pooled * 2
        return self.head(pooled)


@pytest.mark.slow
def test_a_model_that_cannot_be_split(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assemble, "build_model", lambda *_, **_options: Branching())
    ended = command("inspect", *SMALL, "--graph", "graph.svg")
    assert ended.code == 0, ended.err
    assert "cache    nothing would be kept: the model cannot be split: Branching: " in ended.out
    assert [row[0] for row in rows(ended.out)] == ["module", "conv", "head"]
    assert ">gradient boundary: 4 numbers an image" in Path("graph.svg").read_text(encoding="utf-8")


def test_depth_folds(command: Command) -> None:
    assert len(rows(command("inspect", *SMALL, "--depth", "1").out)) == 12  # with the header and the boundary


@pytest.mark.slow
def test_the_graph_as_svg_and_png(command: Command, tmp_path: Path) -> None:
    ended = command("inspect", *SMALL, "--graph", "graph.svg")
    assert ended.code == 0, ended.err
    assert "graph    graph.svg: 4 nodes of autograd in 17 boxes" in ended.out
    text = Path("graph.svg").read_text(encoding="utf-8")
    for expected in (
        "TBackward0, AddmmBackward0",
        "gradient boundary: 512 numbers",
        "layer4.1",
        "freeze=all",
    ):
        assert f">{expected}" in text
    command("inspect", *SMALL, "--graph", "again.svg")
    assert Path("again.svg").read_text(encoding="utf-8") == text
    assert command("inspect", *SMALL, "freeze=none", "loss=bce", "--graph", "graph.png").code == 0
    with Image.open("graph.png") as picture:
        assert picture.width > 900
        assert picture.height < 1.8 * picture.width  # it fits a page
        assert len(picture.convert("RGB").getcolors(1 << 20) or []) > 50
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.svg", "graph.png", "graph.svg"]


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("graph.pdf", "--graph graph.pdf: expected a file that ends in .svg or .png"),
        ("graph", "--graph graph: expected a file that ends in .svg or .png"),
        (
            "none/graph.svg",
            "--graph none/graph.svg: cannot be written: No such file or directory",
        ),
        ("here.svg", "--graph here.svg: expected a file; this is a folder"),
    ],
)
def test_a_picture_that_cannot_be(command: Command, file: str, said: str) -> None:
    Path("here.svg").mkdir()
    ended = command("inspect", *SMALL, "--graph", file)
    assert (ended.code, ended.out, ended.err) == (2, "", f"error: {said}\n")


def test_a_folder_that_cannot_be_written_into(command: Command) -> None:
    Path("locked").mkdir(mode=0o500)
    with without_privilege():
        ended = command("inspect", *SMALL, "--graph", "locked/graph.svg")
    said = "error: --graph locked/graph.svg: cannot be written: Permission denied\n"
    assert (ended.code, ended.out, ended.err) == (2, "", said)
