"""Which weights: bundled, random, a file's; and how the pictures for them are prepared."""

import json
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from finetune.data.pixels import FILTERS
from finetune.errors import RequestError
from finetune.model import weights as module
from finetune.model.build import build_model, model_names
from finetune.model.download import Unreachable, download_weights
from finetune.model.hashing import digest
from finetune.model.preprocessing import INTERPOLATIONS, Preprocessing
from finetune.model.weights import default_preprocessing, enum_of, load_weights

NAME = "squeezenet1_1"


def fresh() -> nn.Module:
    torch.manual_seed(12)
    return build_model(NAME)


def is_source(model: nn.Module, source: nn.Module, factor: float = 1.0) -> bool:
    return all(
        torch.allclose(value, source.state_dict()[key] * factor, rtol=1e-3, atol=1e-4)
        for key, value in model.state_dict().items()
    )


@pytest.fixture
def bundled(trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Bundled weights for the small model, with preprocessing of their own."""
    file = tmp_path / "bundled.safetensors"
    half = {key: (value * 0.5).half() for key, value in trained(NAME).state_dict().items()}
    save_file(
        half, file, metadata=Preprocessing(96, 110, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bicubic").metadata()
    )
    monkeypatch.setitem(module.BUNDLED, NAME, file)
    return file


def test_bundled_weights_bring_their_preprocessing(trained, bundled: Path):
    weights = load_weights(model := fresh(), NAME, "bundled")
    assert is_source(model, trained(NAME), 0.5)
    assert weights.preprocessing == Preprocessing(96, 110, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bicubic")
    assert weights.warning is None


def test_only_what_is_bundled_can_be_asked_for():
    with pytest.raises(
        RequestError, match=r"^weights=bundled: expected one of .*\(resnet18\), not squeezenet1_1"
    ):
        load_weights(fresh(), NAME, "bundled")


def test_the_shipped_weights_fit_resnet18():
    torch.manual_seed(0)
    model = build_model("resnet18")
    before = digest(model.state_dict())
    weights = load_weights(model, "resnet18", "bundled", keep_head=True)
    assert digest(model.state_dict()) == weights.sha256 != before
    assert weights.notes == []
    assert weights.used == "bundled"
    assert 64 <= weights.preprocessing.crop_size <= weights.preprocessing.resize_size <= 256
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())


def test_random_weights_are_the_models_own_and_say_so():
    weights = load_weights(model := fresh(), NAME, "random")
    assert digest(model.state_dict()) == digest(fresh().state_dict()) == weights.sha256
    assert weights.used == "random initialisation"
    assert weights.preprocessing == Preprocessing()


# --- files


def test_a_file_with_its_preprocessing_or_the_architectures(
    trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    own = Preprocessing(64, 72, (0.5,) * 3, (0.25,) * 3, "bicubic")
    save_file(trained(NAME).state_dict(), tmp_path / "own.safetensors", metadata=own.metadata())
    weights = load_weights(model := fresh(), NAME, str(tmp_path / "own.safetensors"))
    assert is_source(model, trained(NAME))
    assert weights.used == str(tmp_path / "own.safetensors")
    assert weights.preprocessing == own
    save_file(trained(NAME).state_dict(), tmp_path / "plain.safetensors", metadata={"format": "pt"})
    assert load_weights(fresh(), NAME, str(tmp_path / "plain.safetensors")).preprocessing == Preprocessing()
    torch.save(trained(NAME).state_dict(), tmp_path / "w.pth")
    assert load_weights(fresh(), NAME, str(tmp_path / "w.pth")).preprocessing == Preprocessing()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_weights(fresh(), NAME, "~/w.pth").used == "~/w.pth"


def test_a_heads_own_numbers_are_no_part_of_the_fingerprint_where_it_is_left_out(trained, tmp_path: Path):
    state = dict(trained(NAME).state_dict()) | {"classifier.1.weight": torch.zeros(10, 512, 1, 1)}
    torch.save(state | {"classifier.1.bias": torch.zeros(10)}, tmp_path / "w.pth")
    weights = load_weights(fresh(), NAME, str(tmp_path / "w.pth"))
    torch.manual_seed(99)
    again = load_weights(build_model(NAME), NAME, str(tmp_path / "w.pth"))
    assert weights.sha256 == again.sha256
    assert weights.notes == [
        "the head in the weights has 10 outputs and was left out"
        " (head=keep keeps it, -classifier.1 in freeze trains it)"
    ]
    kept = load_weights(model := fresh(), NAME, str(tmp_path / "w.pth"), keep_head=True)
    assert kept.sha256 == digest(model.state_dict()) != weights.sha256
    assert kept.notes == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"crop_size": "large"},
        {"crop_size": "0"},
        {"interpolation": "bogus"},
        {"mean": "[0, 0]"},
        {"mean": "[0, 0, NaN]"},
        {"std": "[1, 1, 0]"},
        {"brightness": "[1]"},
        {"classes": '{"a": 1}'},
    ],
    ids=str,
)
def test_preprocessing_that_is_none_is_refused(trained, tmp_path: Path, wrong: dict[str, str]):
    text = Preprocessing().metadata() | wrong
    save_file(trained(NAME).state_dict(), tmp_path / "w.safetensors", metadata=text)
    with pytest.raises(
        RequestError, match=r"^weights=.*w\.safetensors: expected numbers in the file's crop_size"
    ):
        load_weights(fresh(), NAME, str(tmp_path / "w.safetensors"))


def test_every_interpolation_has_its_filter():
    assert set(INTERPOLATIONS) == set(FILTERS)


@pytest.mark.parametrize(
    ("requested", "told"),
    [
        (
            "/nowhere",
            r"^weights=/nowhere: expected auto, imagenet, bundled, random, IMAGENET1K_V1, a file or a run's",
        ),
        ("imagenet1k_v1", "^weights=imagenet1k_v1: expected auto, .*IMAGENET1K_V1"),
        ("IMAGENET1K_V2", "^weights=IMAGENET1K_V2: expected auto, .*IMAGENET1K_V1"),  # resnet50 has them
        ("https://example.org/w.pth", "^weights=https://example.org/w.pth: expected a file, not an address"),
        ("file:///tmp/w.pth", "^weights=file:///tmp/w.pth: expected a file, not an address"),
        (".", r"^weights=\.: expected a run's folder, with checkpoints/best\.ckpt"),
    ],
)
def test_what_is_no_weights_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, requested: str, told: str
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RequestError, match=told):
        load_weights(fresh(), NAME, requested)


# --- torchvision's table


def test_every_model_has_weights_with_a_hash_and_preprocessing():
    for name in model_names():
        enum = enum_of(name, "imagenet")
        assert enum == torchvision.models.get_model_weights(name).DEFAULT
        own = default_preprocessing(name, nn.Identity())
        assert own.crop_size <= own.resize_size
        assert own.interpolation in ("bilinear", "bicubic")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.hub, "get_dir", lambda: "/dev/null/no-cache")  # stops before the network
            with pytest.raises(Unreachable, match="is not in the cache"):
                download_weights(enum.url)


def test_preprocessing_follows_the_weights():
    swag = enum_of("vit_b_16", "IMAGENET1K_SWAG_E2E_V1")
    assert module._enum_preprocessing(swag) == Preprocessing(384, 384, interpolation="bicubic")
    assert enum_of("resnet50", "IMAGENET1K_V1").name == "IMAGENET1K_V1"
    assert enum_of("resnet50", "auto").name == "IMAGENET1K_V2"
    assert enum_of("resnet50", "some/file.pth") is None
    assert default_preprocessing("inception_v3", nn.Identity()) == Preprocessing(299, 342)


def test_another_image_size_keeps_the_share_that_is_cropped():
    assert Preprocessing().to(112) == Preprocessing(112, 128)
    assert Preprocessing().to(224) == Preprocessing()


def test_preprocessing_survives_its_text():
    own = Preprocessing(64, 72, (0.5, 0.25, 1 / 3), (0.1, 0.2, 0.7), "bicubic")
    text = json.loads(json.dumps(own.metadata()))
    assert set(map(type, text.values())) == {str}
    assert Preprocessing.from_metadata(text) == own
    assert Preprocessing.from_metadata({"format": "pt"}) is None
