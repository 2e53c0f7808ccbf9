"""A run's model over a stream: the right answers, in order, lazily, whatever they are computed beside."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import count, islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from finetune.data.dataset import RawImage
from finetune.data.images import decode
from finetune.evaluation.forward import Answer, Predictor
from finetune.features.extract import TOLERANCE
from finetune.runs.open import Saved


def answers(predictor: Predictor, pictures: list[RawImage]) -> list[Answer]:
    return [answer for some in predictor(pictures) for answer in some]


def logits_of(predictor: Predictor, pictures: list[RawImage]) -> Tensor:
    return torch.stack([one.logits for one in answers(predictor, pictures) if one.logits is not None])


@pytest.fixture
def pictures(few_pictures: Path) -> list[RawImage]:
    return sorted(few_pictures.glob("*/*.png"))


def plain(saved: Saved, pictures: list[RawImage]) -> Tensor:
    """What torch says, picture by picture, with nothing of ours but the decoder."""
    sizes = saved.preprocessing
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (sizes.mean, sizes.std))
    rows = []
    for picture in pictures:
        pixels = decode(picture, sizes)
        with torch.no_grad():
            rows.append(saved.network(((pixels / 255 - mean) / std)[None])[0])
    return torch.stack(rows)


@pytest.mark.parametrize(("precision", "distance"), [("32", 1e-5), ("bf16", 3e-2)])
def test_logits_are_those_of_the_network(
    saved: Saved, pictures: list[RawImage], precision: str, distance: float
) -> None:
    found, expected = logits_of(Predictor(saved, precision), pictures), plain(saved, pictures)
    assert found.dtype == torch.float32
    assert float((found - expected).norm() / expected.norm()) <= distance


def test_a_model_without_a_graph_answers_all_the_same(saved: Saved, pictures: list[RawImage]) -> None:
    class Branches(nn.Module):
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network, self.fc = network, network.fc

        def forward(self, pictures: Tensor) -> Tensor:
            if pictures.sum() > 1e9:
                raise ValueError
            return self.network(pictures)

    predictor = Predictor(replace(saved, network=Branches(saved.network)))
    assert torch.allclose(logits_of(predictor, pictures), plain(saved, pictures), atol=1e-5)
    assert str(predictor.form) == "fp32"


def test_broken_pictures_keep_their_place(saved: Saved, pictures: list[RawImage], tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    missing = tmp_path / "missing.png"
    mixed = [broken, *pictures[:20], missing, pictures[3], pictures[3], *[broken] * 40]
    predictor = Predictor(saved)
    found = answers(predictor, mixed)
    assert [one.image for one in found] == mixed
    assert [one.logits is None for one in found] == [one in (broken, missing) for one in mixed]
    assert found[0].reason == "not an image, or of an unknown format"
    assert found[21].reason == "no such file or directory"
    assert torch.equal(found[22].logits, found[4].logits)
    assert [one.reason for one in answers(Predictor(saved), [broken])] == [found[0].reason]
    assert answers(Predictor(saved), []) == []


def test_an_answer_has_the_same_bits_whatever_it_is_computed_beside(
    saved: Saved, pictures: list[RawImage]
) -> None:
    predictor = Predictor(saved)
    together = logits_of(predictor, pictures)
    assert torch.equal(logits_of(predictor, pictures[7:8])[0], together[7])
    assert torch.equal(logits_of(predictor, pictures[::-1]).flip(0), together)


@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_nor_does_it_depend_on_the_images_before(
    saved: Saved, pictures: list[RawImage], tmp_path: Path, precision: str
) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    alone, after, black = (Predictor(saved, precision) for _ in range(3))
    expected = logits_of(alone, pictures[:1])
    assert torch.equal(logits_of(after, [tmp_path / "broken.png"] * 16 + pictures[:1]), expected)
    dark: RawImage = np.zeros((32, 32, 3), np.uint8)
    assert torch.equal(logits_of(black, [dark] * 16 + pictures[:1])[16:], expected)
    assert alone.form == after.form == black.form


@pytest.mark.parametrize("form", ["fp32", "bf16, folded, compiled"])
def test_the_form_is_that_of_the_runs_features(
    saved: Saved, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TOLERANCE, "bf16", 0.0)  # by clip art bf16 would be refused
    summary = {**(saved.summary or {}), "features": {"form": form}}
    frozen = saved.settings.model_copy(update={"freeze": ["all"]})
    predictor = Predictor(replace(saved, summary=summary, settings=frozen), "bf16")
    predictor.settle()
    assert form.startswith(str(predictor.form))


def test_a_repaired_image_is_told_once(saved: Saved, pictures: list[RawImage], tmp_path: Path) -> None:
    Image.effect_noise((64, 64), 90).convert("RGB").save(tmp_path / "cut.jpg")
    whole = (tmp_path / "cut.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    predictor = Predictor(replace(saved, preprocessing=replace(saved.preprocessing, repair=True)))
    assert answers(predictor, [tmp_path / "cut.jpg"])[0].logits is not None
    assert len(predictor.repaired) == 1


def test_a_stream_without_end_is_read_no_faster_than_it_is_answered(saved: Saved) -> None:
    taken = 0

    def stream() -> Iterator[np.ndarray]:
        nonlocal taken
        for taken in count(1):
            yield np.full((32, 32, 3), taken % 256, dtype=np.uint8)

    some = list(islice(Predictor(saved)(stream()), 3))
    assert sum(map(len, some)) == 48
    assert taken < 500


def test_outputs_beyond_the_classes_have_numbers(saved: Saved) -> None:
    assert saved.names == ["blue", "green", "red"]
    assert replace(saved, outputs=5).names == ["blue", "green", "red", "output 3", "output 4"]
