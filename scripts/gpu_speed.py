"""How fast features are computed and a network trains here, each beside the least that it could take."""

from __future__ import annotations

import copy
import io
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from photographs import SIZE

IMAGES, TRAINED, SMALL_IMAGES = 20_000, 6_000, 200
DIFFERENT, CLASSES = 50, 10
SMALL_SIZE = 64
MODELS, SMALL_MODELS = ("resnet18", "resnet50", "vit_b_16"), ("timm/test_resnet",)


def photographs(folder: Path, count: int) -> Path:
    """JPEGs of smooth noise, of as many bytes as photographs have, all of different content."""
    import numpy as np
    from PIL import Image

    generator, files = np.random.default_rng(0), []
    for _ in range(min(DIFFERENT, count)):
        coarse = generator.integers(0, 256, (SIZE[1] // 5, SIZE[0] // 5, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(coarse).resize(SIZE, Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    for name in range(CLASSES):
        (folder / f"{name}").mkdir(parents=True)

    def write(number: int) -> None:
        data, note = files[number % len(files)], f"{number:08}".encode()
        comment = b"\xff\xfe" + (len(note) + 2).to_bytes(2, "big") + note  # makes the content another
        (folder / f"{number % CLASSES}" / f"{number}.jpg").write_bytes(data[:2] + comment + data[2:])

    with ThreadPoolExecutor() as pool:
        list(pool.map(write, range(count)))
    return folder


def extraction(found: dict[str, Any], place: Path, small: bool) -> None:
    """Images a second through the feature extraction, against decoding and a bare forward, each alone."""
    import torch

    count = SMALL_IMAGES if small else IMAGES
    pictures = photographs(place / "pictures", count)
    asked = ["data=folder", f"data.root={pictures}", "weights=random", "cache=memory", "precision=bf16"]
    asked += [f"data.image_size={SMALL_SIZE}"] * small
    found |= {"images": count, "decoding": decoding([*asked, f"model={MODELS[0]}"])}
    found["decode_jpeg_cuda"] = decode_jpeg(sorted(pictures.rglob("*.jpg"))[:4096])
    for model in SMALL_MODELS if small else MODELS:
        of_model = found[model] = {}
        for name, compiled in (("eager", "false"), ("compiled", "true"))[: 1 if small else 2]:
            torch._dynamo.reset()
            one = of_model[name] = extracted([*asked, f"model={model}", f"compile={compiled}"], small)
            one["share_of_decoding"] = one["images_per_second"] / found["decoding"]
            one["share_of_forward"] = one["images_per_second"] / one["bare_forward"]
    found["gpu_mb"] = gpu_mb()


class Clock:
    """In the place of a progress bar: the seconds of computing features, without what came before."""

    @contextmanager
    def __call__(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        began = time.perf_counter()
        yield lambda number: None
        self.seconds = time.perf_counter() - began


def extracted(asked: list[str], small: bool) -> dict[str, Any]:
    """One pass over all images, as a run makes it, and the same network on a batch on the device."""
    from finetune.build import find_data, make_model, memo, plan_inputs
    from finetune.config.compose import compose
    from finetune.features.load import LoadSettings, load_inputs
    from finetune.training.device import accelerator

    settings, clock = compose(asked), Clock()
    dataset = find_data(settings)
    model = make_model(settings, dataset)
    plan = plan_inputs(settings, dataset, model, accelerator("auto"))
    loading = LoadSettings("auto", seed=0, memo=memo(settings), progress=clock, on_wait=lambda: None)
    began = time.perf_counter()
    features = load_inputs(plan, model, dataset, loading).features
    assert features
    preparing = time.perf_counter() - began - clock.seconds
    return {
        "images_per_second": features["computed"] / clock.seconds,
        "preparing_seconds": preparing,
        "form": features["form"],
        "difference": features["difference"],
        "bare_forward": bare_forward(model, plan, 0.5 if small else 3),
    }


def bare_forward(model: Any, plan: Any, seconds: float) -> float:
    """Images a second through the network alone, in bf16, compiled where the features were."""
    import torch

    network = copy.deepcopy(model.network).eval()
    network = network.to(plan.device, torch.bfloat16, memory_format=torch.channels_last)
    if plan.form.compiled:
        network.compile()
    batch = torch.randn(plan.form.batch, *model.example.shape[1:], device=plan.device)
    batch = batch.to(torch.bfloat16, memory_format=torch.channels_last)
    with torch.inference_mode():
        return rate(lambda: network(batch), len(batch), seconds)


def rate(work: Callable[[], Any], images: int, seconds: float) -> float:
    """Images a second of work done again and again, after three times that do not count."""
    for _ in range(3):
        work()
    synchronize()
    began, times = time.perf_counter(), 0
    while (now := time.perf_counter()) - began < seconds:
        work()
        times += 1
        if times % 10 == 0:  # else the queue would run ahead of the clock
            synchronize()
    synchronize()
    now = time.perf_counter()
    return times * images / (now - began)


def synchronize() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def gpu_mb() -> float | None:
    """The most memory of the GPU that tensors took since the last time; None without a GPU."""
    import torch

    if not torch.cuda.is_available():
        return None
    most = torch.cuda.max_memory_allocated() / 2**20
    torch.cuda.reset_peak_memory_stats()
    return most


def decoding(asked: list[str]) -> float:
    """Images a second where they are decoded as a run does it, and nothing is computed."""
    import torch

    from finetune.build import find_data, make_model, memo
    from finetune.config.compose import compose
    from finetune.features.extract import extract
    from finetune.features.load import plain_reader

    settings = compose(asked)
    dataset = find_data(settings)
    read = plain_reader(make_model(settings, dataset), dataset, memo(settings))
    began = time.perf_counter()
    rows = range(len(dataset.images))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    passes = extract(lambda x: (x[:, 0, 0, 0],), read, rows, batch=64, device=device)
    decoded = sum(len(chosen) for chosen, _ in passes)
    return decoded / (time.perf_counter() - began)


def decode_jpeg(files: list[Path]) -> float | None:
    """Images a second through torchvision's decoder on the GPU; None without one."""
    import torch
    from torchvision.io import decode_jpeg, read_file

    if not torch.cuda.is_available():
        return None
    data = [read_file(str(file)) for file in files]
    decode_jpeg(data[:64], device="cuda")
    synchronize()
    began = time.perf_counter()
    for start in range(0, len(data), 64):
        decode_jpeg(data[start : start + 64], device="cuda")
    synchronize()
    return len(data) / (time.perf_counter() - began)


def training(found: dict[str, Any], place: Path, small: bool) -> None:
    """Images a second of a run where nothing is frozen, against a plain loop over timm's model."""
    name, size, batch = ("test_resnet", SMALL_SIZE, 16) if small else ("resnet50", 224, 128)
    root = photographs(place / "trained_on", SMALL_IMAGES if small else TRAINED)
    found |= {"model": name, "batch_size": batch}
    found["images_per_second"] = our_loop(root, name, size, batch, "bf16")
    found["gpu_mb"] = gpu_mb()
    found["plain_loop"] = plain_loop(name, size, batch, "bf16", 1 if small else 10)
    found["plain_loop_gpu_mb"] = gpu_mb()
    found["ratio"] = found["images_per_second"] / found["plain_loop"]


def our_loop(root: Path, name: str, size: int, batch: int, precision: str) -> float:
    """Images a second of a run with freeze=none, by the second epoch's steps, all but the first two."""
    import pytorch_lightning as pl

    import finetune

    class Steps(pl.Callback):
        began, seconds, images = 0.0, 0.0, 0

        def on_train_batch_end(
            self, trainer: Any, learner: Any, outputs: Any, batch: Any, index: int
        ) -> None:
            if trainer.current_epoch == 0:
                return
            if index > 1:
                self.images += len(batch[1])
            if index == 1 or trainer.is_last_batch:
                synchronize()
                self.began, self.seconds = self.began or time.perf_counter(), time.perf_counter() - self.began

    steps = Steps()
    data = {"source": "folder", "root": str(root), "image_size": size, "augment": "none"}
    asked = {"precision": precision, "batch_size": batch, "epochs": 2, "weights": "random", "freeze": "none"}
    with TemporaryDirectory() as folder:
        asked |= {
            "model": f"timm/{name}",
            "callbacks": [steps],
            "folder": Path(folder) / "run",
            "quiet": True,
        }
        finetune.fit(data, **asked)
    return steps.images / steps.seconds


def plain_loop(name: str, size: int, batch: int, precision: str, seconds: float) -> float:
    """Images a second of timm's model trained on a batch on the device: channels last, SGD."""
    import timm
    import torch
    import torch.nn.functional as F

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = timm.create_model(name, num_classes=CLASSES).to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    images = torch.randn(batch, 3, size, size, device=device).to(memory_format=torch.channels_last)
    labels = torch.randint(CLASSES, (batch,), device=device)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()

    return rate(step, batch, seconds)
