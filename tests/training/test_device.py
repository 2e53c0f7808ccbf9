"""`auto` follows from the hardware alone."""

import ctypes
import shutil

import pytest
import torch

from finetune.errors import RequestError
from finetune.training import device as devices
from support.processes import Started, code


def test_auto_takes_what_there_is() -> None:
    gpu = torch.cuda.is_available() or torch.backends.mps.is_available()
    assert (devices.accelerator("auto") == "cpu") is not gpu
    assert devices.accelerator("cpu") == "cpu"


@pytest.mark.skipif(
    torch.cuda.is_available() or torch.backends.mps.is_available(), reason="there is a GPU to use"
)
def test_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(RequestError, match="trainer=gpu: expected a GPU"):
        devices.accelerator("gpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_is_cuda() -> None:
    assert devices.accelerator("gpu") == "cuda"
    assert devices.precision("auto", "cuda") in ("bf16-mixed", "16-mixed")


@pytest.mark.parametrize(
    ("device", "native_bf16", "expected"),
    [
        ("cpu", True, "bf16-mixed"),
        ("cpu", False, "32-true"),
        ("cuda", True, "bf16-mixed"),
        ("cuda", False, "16-mixed"),
        ("mps", False, "32-true"),
    ],
)
def test_best_precision(
    device: devices.Device, native_bf16: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "multiplies_bf16", lambda device: native_bf16)
    assert devices.precision("auto", device) == expected


def test_an_explicit_precision_is_taken() -> None:
    assert [devices.precision(name, "cpu") for name in ("32", "bf16")] == ["32-true", "bf16-mixed"]
    assert devices.precision("16", "cuda") == "16-mixed"
    with pytest.raises(RequestError, match="precision=16: expected a GPU"):
        devices.precision("16", "cpu")


def test_compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not devices.compiles("auto", "cpu", 10**9)
    assert [devices.compiles("auto", "cuda", n) for n in (199_999, 200_000)] == [False, True]
    assert not devices.compiles(False, "cuda", 10**9)
    assert devices.compiles(True, "cuda", 1)
    monkeypatch.setenv("PATH", "")
    assert shutil.which("g++") is None
    with pytest.raises(RequestError, match=r"compile=true: expected a C\+\+ compiler"):
        devices.compiles(True, "cpu", 1)


MEMORY = """
import resource
import torch
from finetune.training import device as devices

def new_pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(30):
        torch.ones(25_000_000)  # 100 MB, 24,400 pages
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def held():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() // 10**6

print(new_pages(), held())
with devices.freed_memory_kept():
    new_pages()
    print(new_pages(), held())
print(0, held())
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs glibc")
def test_freed_memory_serves_again_and_is_given_back() -> None:
    ended = Started(work=code(MEMORY)).ended()
    before, within, after = ([*map(int, line.split())] for line in ended.out.splitlines())
    assert before[0] > 30 * 24_000  # asked for anew each time
    assert within[0] < before[0] / 3  # small things may come to lie in what was freed
    assert within[1] > before[1] + 90  # MB
    assert after[1] < before[1] + 20
