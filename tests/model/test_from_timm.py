"""timm's weights: from the hub's cache, or refused within seconds where nothing answers."""

import http.server
import socket
import threading
import time
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import save_file

from finetune import network
from finetune.errors import RequestError
from finetune.model.build import build_model
from finetune.model.download import Unreachable, timm_state_dict
from finetune.model.hashing import digest
from finetune.model.weights import load_weights

NAME = "test_resnet"  # timm's own for tests, half a million parameters
MODEL = f"timm/{NAME}"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, and a hub at an address of this machine where nobody answers."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    lies_at(monkeypatch, port)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def lies_at(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    constants, address = huggingface_hub.constants, f"http://127.0.0.1:{port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def fill(hub: Path, data: bytes | None = None) -> dict[str, torch.Tensor]:
    """Put weights into the hub's cache as the hub's own client lays them out."""
    torch.manual_seed(5)
    state = build_model(MODEL).state_dict()
    folder = hub / "models--timm--test_resnet.r160_in1k"
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    save_file(state, folder / "snapshots" / "abc" / "model.safetensors")
    if data is not None:
        (folder / "snapshots" / "abc" / "model.safetensors").write_bytes(data)
    return state


@pytest.mark.parametrize("requested", ["auto", "imagenet"])
def test_without_a_network_the_request_ends_at_once(hub: Path, requested: str):
    began = time.monotonic()
    with pytest.raises(
        RequestError, match=rf"^weights={requested}: .*{NAME}.*could not be fetched \(.*refused"
    ) as refused:
        load_weights(build_model(MODEL), MODEL, requested)
    assert time.monotonic() - began < 20  # left to itself the hub's client takes 47 seconds
    assert ("weights=random" in str(refused.value)) == (requested == "auto")


def test_a_hub_that_never_answers_is_given_up(hub: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(network, "CONNECT_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        lies_at(monkeypatch, silent.getsockname()[1])
        began = time.monotonic()
        with pytest.raises(Unreachable, match="timed out"):
            timm_state_dict(NAME)
    assert time.monotonic() - began < 20


def test_an_address_that_is_none_or_of_no_hub(hub: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "hub.example")
    with pytest.raises(Unreachable, match=r"could not be fetched .*unknown url type: 'hub.example'"):
        timm_state_dict(NAME)
    with socket.create_server(("127.0.0.1", 0)) as server:
        lies_at(monkeypatch, server.getsockname()[1])
        answer = threading.Thread(target=lambda: server.accept()[0].sendall(b"no HTTP\r\n\r\n"))
        answer.start()
        with pytest.raises(Unreachable, match=r"could not be fetched .*no HTTP"):
            timm_state_dict(NAME)
        answer.join()


class Missing(http.server.BaseHTTPRequestHandler):
    """A hub that answers, but does not have the model."""

    def do_HEAD(self) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.end_headers()

    do_GET = do_HEAD

    def log_message(self, *args: object) -> None: ...


def test_a_hub_that_does_not_have_the_model(hub: Path, monkeypatch: pytest.MonkeyPatch):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Missing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        lies_at(monkeypatch, server.server_port)
        with pytest.raises(RequestError, match=rf"^weights=imagenet: .*{NAME} could not be loaded \(.*404"):
            load_weights(build_model(MODEL), MODEL, "imagenet")
        server.shutdown()


def test_weights_in_the_cache_need_no_network(hub: Path):
    state = fill(hub)
    torch.manual_seed(6)
    model = build_model(MODEL)
    assert digest(model.state_dict()) != digest(state)
    weights = load_weights(model, MODEL, "auto")
    assert digest(model.state_dict()) == digest(state)
    assert weights.used == f"timm's default for {NAME}"
    assert weights.preprocessing.crop_size == 160
    assert weights.preprocessing.mean == (0.5, 0.5, 0.5)


def test_damaged_weights_in_the_cache_are_refused(hub: Path):
    fill(hub, b"damaged")
    with pytest.raises(
        RequestError, match=f"weights=imagenet: timm's weights for {NAME} could not be loaded"
    ):
        load_weights(build_model(MODEL), MODEL, "imagenet")


def test_a_model_that_has_no_weights_says_so(hub: Path):
    with pytest.raises(Unreachable, match="No pretrained weights exist"):
        timm_state_dict("botnet50ts_256")


def test_random_weights_of_timms(hub: Path):
    weights = load_weights(build_model(MODEL), MODEL, "random")
    assert weights.used == "random initialisation"
    assert weights.preprocessing.crop_size == 160


def test_bundled_weights_are_torchvisions_resnet18s_alone(hub: Path):
    with pytest.raises(RequestError, match=r"weights=bundled: .*resnet18.*, not timm/resnet18"):
        load_weights(build_model("timm/resnet18"), "timm/resnet18", "bundled")


def test_torchvisions_enum_names_are_no_weights_of_timms(hub: Path):
    with pytest.raises(
        RequestError, match=r"weights=IMAGENET1K_V1: expected auto, imagenet, bundled, random, a file"
    ):
        load_weights(build_model(MODEL), MODEL, "IMAGENET1K_V1")
