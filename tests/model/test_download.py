"""torchvision's weights from torch hub's cache and from servers good and bad, by the code that runs."""

import copy
import hashlib
import http.server
import io
import socket
import threading
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from finetune import network
from finetune.errors import RequestError
from finetune.model import weights as module
from finetune.model.build import build_model
from finetune.model.download import Unreachable, download_weights
from finetune.model.hashing import digest
from finetune.model.preprocessing import Preprocessing
from finetune.model.weights import load_weights

NAME = "squeezenet1_1"  # torchvision's smallest file
DEFAULT = torchvision.models.SqueezeNet1_1_Weights.DEFAULT


@cache
def source() -> nn.Module:
    torch.manual_seed(11)
    return build_model(NAME)


@cache
def blank() -> nn.Module:
    torch.manual_seed(12)
    return build_model(NAME)


def fresh() -> nn.Module:
    return copy.deepcopy(blank())


@cache
def data() -> bytes:
    """A file such as torchvision's host serves."""
    buffer = io.BytesIO()
    torch.save(source().state_dict(), buffer)
    return buffer.getvalue()


def named_by_hash(content: bytes) -> str:
    return f"squeezenet1_1-{hashlib.sha256(content).hexdigest()[:8]}.pth"


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Torch hub's cache, empty; nothing outside this machine is asked."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    address(monkeypatch, f"http://127.0.0.1:{unused_port()}/{named_by_hash(data())}")
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def bundled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Bundled weights for the small model, with preprocessing of their own."""
    file = tmp_path / "bundled.safetensors"
    half = {key: (value * 0.5).half() for key, value in source().state_dict().items()}
    save_file(
        half, file, metadata=Preprocessing(96, 110, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bicubic").metadata()
    )
    monkeypatch.setitem(module.BUNDLED, NAME, file)
    return file


def address(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setattr(DEFAULT.value, "url", url)


def unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


@pytest.fixture
def serve() -> Iterator[Callable[..., str]]:
    """Start a web server that answers with these bytes, and get its address; `missing` of them never come."""
    servers = []

    def start(content: bytes, status: int = 200, missing: int = 0) -> str:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[: len(content) - missing])
                if missing:
                    ended.wait(60)

            def log_message(self, *args: object) -> None: ...

        ended = threading.Event()
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append((server, ended))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server, ended in servers:
        ended.set()
        server.shutdown()
        server.server_close()


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a server that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def is_source(model: nn.Module, factor: float = 1.0) -> bool:
    return all(
        torch.allclose(value, source().state_dict()[key] * factor, rtol=1e-3, atol=1e-4)
        for key, value in model.state_dict().items()
    )


# --- torchvision's, from the cache


@pytest.mark.parametrize("requested", ["auto", "imagenet", "IMAGENET1K_V1"])
def test_weights_in_the_cache_are_used(cached: Path, requested: str):
    (cached / named_by_hash(data())).write_bytes(data())
    model = fresh()
    weights = load_weights(model, NAME, requested)
    assert digest(model.state_dict()) == digest(source().state_dict()) == weights.sha256
    assert weights.requested == requested
    assert weights.used == "IMAGENET1K_V1 of torchvision"
    assert weights.warning is None
    assert weights.notes == []
    assert weights.preprocessing == Preprocessing()


@pytest.mark.parametrize("requested", ["auto", "imagenet"])
def test_a_damaged_file_in_the_cache_is_never_replaced_in_silence(
    cached: Path, bundled: Path, requested: str
):
    file = cached / named_by_hash(data())
    file.write_bytes(data()[:-1] + b"x")
    with pytest.raises(
        RequestError, match=rf"^weights: .*{file.name} is damaged; delete it, and it is fetched again"
    ):
        load_weights(fresh(), NAME, requested)
    file.write_bytes(data()[:1000])
    with pytest.raises(RequestError, match=rf"^weights: .*{file.name} is damaged"):
        load_weights(fresh(), NAME, requested)
    assert file.stat().st_size == 1000


# --- and from the network


def test_the_network_fills_the_cache(
    cached: Path, serve: Callable[..., str], monkeypatch: pytest.MonkeyPatch
):
    address(monkeypatch, f"{serve(data())}/{named_by_hash(data())}")
    model = fresh()
    assert load_weights(model, NAME, "imagenet").used == "IMAGENET1K_V1 of torchvision"
    assert is_source(model)
    assert [file.name for file in cached.iterdir()] == [named_by_hash(data())]
    address(monkeypatch, f"http://127.0.0.1:{unused_port()}/{named_by_hash(data())}")
    assert is_source(fresh()) is False
    load_weights(again := fresh(), NAME, "imagenet")
    assert is_source(again)


@pytest.mark.parametrize(
    ("content", "status", "told"),
    [
        (b"<html>please log in</html>", 200, "invalid hash value"),
        (b"", 200, "invalid hash value"),
        (b"", 404, "Not Found"),
    ],
    ids=["another file", "nothing", "not found"],
)
def test_an_answer_that_is_not_the_file(
    cached: Path,
    bundled: Path,
    serve,
    monkeypatch: pytest.MonkeyPatch,
    content: bytes,
    status: int,
    told: str,
):
    address(monkeypatch, f"{serve(content, status)}/{named_by_hash(data())}")
    with pytest.raises(
        RequestError, match=rf"^weights=imagenet: squeezenet1_1-.*\.pth is not in the cache .*{told}"
    ):
        load_weights(fresh(), NAME, "imagenet")
    weights = load_weights(model := fresh(), NAME, "auto")
    assert is_source(model, 0.5)
    assert weights.used == "bundled"
    assert told in weights.warning
    assert list(cached.iterdir()) == []  # nothing half-fetched stays behind


def test_a_server_that_never_answers_is_given_up_after_seconds(
    cached: Path, bundled: Path, silent: str, monkeypatch: pytest.MonkeyPatch
):
    address(monkeypatch, f"{silent}/{named_by_hash(data())}")
    assert network.CONNECT_SECONDS == 5
    monkeypatch.setattr(network, "CONNECT_SECONDS", 0.5)
    began = time.monotonic()
    weights = load_weights(model := fresh(), NAME, "auto")
    assert 0.4 < time.monotonic() - began < 30  # whatever else this machine does
    assert is_source(model, 0.5)
    assert "timed out" in weights.warning
    assert "using the bundled weights, which are weaker; pip install" in weights.warning
    assert "\n" not in weights.warning
    with pytest.raises(RequestError, match=r"^weights=IMAGENET1K_V1: squeezenet1_1-.*timed out"):
        load_weights(fresh(), NAME, "IMAGENET1K_V1")
    assert socket.getdefaulttimeout() is None


def test_a_server_that_falls_silent_is_given_up(cached: Path, serve, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(network, "CONNECT_SECONDS", 0.3)
    with pytest.raises(Unreachable, match="timed out"):
        download_weights(f"{serve(data(), missing=1000)}/{named_by_hash(data())}")
    assert list(cached.iterdir()) == []


def test_a_cache_that_cannot_be_written_counts_as_unreachable(tmp_path: Path, cached: Path, bundled: Path):
    cached.rmdir()
    cached.write_text("a file where the folder should be")
    with pytest.raises(RequestError, match=r"^weights=imagenet: .* could not be fetched \(.*File exists"):
        load_weights(fresh(), NAME, "imagenet")
    assert load_weights(fresh(), NAME, "auto").used == "bundled"


def test_nothing_reachable_and_nothing_bundled_is_refused(cached: Path):
    with pytest.raises(
        RequestError, match=r"^weights=auto: .* none are bundled for squeezenet1_1; expected weights=random"
    ):
        load_weights(fresh(), NAME, "auto")
