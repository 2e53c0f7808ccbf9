"""A run's model over a stream of images, in the fast form that features are computed in."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from finetune.choices.losses import LOSSES
from finetune.data.dataset import RawImage
from finetune.data.images import BadImage, BrokenImage, decode
from finetune.data.sources.builtin import find_clipart
from finetune.evaluation.calibration import temperature_of
from finetune.evaluation.embeddings import HeadInputs, model_of
from finetune.features.extract import Forward, accelerate, choose_form, extract, settle
from finetune.features.plan import halve
from finetune.runs.open import Saved
from finetune.training import device as devices
from finetune.training.metrics import probabilities

SETTLING = threading.RLock()  # a model answers several threads once its form is chosen
EVERY = 50  # of the clip art, 16 images; noise would not show what rounding does to images
Ranked = list[tuple[str, float]]


@dataclass(frozen=True)
class Answer:
    """What the model says of an image: logits (outputs,) in float32, or why it cannot be read.

    features: what the head read, (D,) in float32.
    """

    image: RawImage
    logits: Tensor | None
    features: Tensor | None = None
    reason: str = ""


class Predictor:
    """A run's model as a function from images to logits.

    All but the head runs in the fast form, the head itself in float32: so with `freeze=all` the logits are
    those that training saw. A model without a graph runs eagerly in float32.

    Args:
        precision: `auto`, `32`, `bf16` or `16`, as for features.
        device: None for the best there is.
        raw: leave the probabilities uncalibrated.
    """

    def __init__(
        self,
        saved: Saved,
        precision: str = "auto",
        device: devices.Device | None = None,
        raw: bool = False,
    ) -> None:
        self.saved, self.device = saved, device or devices.accelerator("auto")
        self.temperature = 1.0 if raw else temperature_of(saved.summary)
        self.thresholds: dict[str, float] | None = (saved.summary or {}).get("thresholds")
        self.softmax = LOSSES[saved.settings.loss].softmax
        self.how = {name: getattr(self, name) for name in ("softmax", "temperature", "thresholds")}
        self.normalise = saved.preprocessing.normalise
        self.form = choose_form(
            precision, False, self.device, macs=0, bf16=devices.multiplies_bf16(self.device)
        )
        self.forward: Forward | None = None
        self.repaired: list[str] = []  # what is wrong with images that are shown all the same

    def __getstate__(self) -> dict[str, object]:
        """What a pickle has: the forward is made again."""
        return {**vars(self), "forward": None}

    def __call__(self, images: Iterable[RawImage]) -> Iterator[list[Answer]]:
        """The answers to images in their order, a few at a time; memory does not grow with their number."""
        with SETTLING:
            forward, device = self.forward or self.settle(), self.device
        batches = extract(
            lambda images: forward(self.normalise(images)),
            *(self.read, images),
            batch=self.form.batch,
            device=device,
            pure=not self.saved.preprocessing.repair,
        )
        for told, tensors in batches:
            found = zip(*tensors, strict=True)
            yield [
                Answer(image, None, reason=bad.reason) if bad else Answer(image, *next(found))
                for image, bad in told
            ]

    def rank(self, answer: Answer, top: int) -> Ranked:
        """The likeliest classes of an image with their probabilities; none where it cannot be read."""
        if answer.logits is None:
            return []
        names = self.saved.names
        places = answer.logits.topk(
            min(top, len(names))
        ).indices  # probabilities may be too near to 1 to differ
        values = self.probabilities(answer.logits[None])[0, places]
        return [(names[place], value) for place, value in zip(places.tolist(), values.tolist(), strict=True)]

    def probabilities(self, logits: Tensor) -> Tensor:
        """Of logits (N, outputs), calibrated unless raw ones were asked for."""
        return probabilities(logits, self.softmax, self.temperature)

    def read(self, image: RawImage) -> Tensor | BadImage:
        """uint8 (3, H, W), or what is wrong with the image."""
        try:
            return decode(image, self.saved.preprocessing, repaired=self.repaired.append)
        except BrokenImage as error:
            return BadImage(0, str(image), str(error))

    def settle(self) -> Forward:
        """Choose the form: the run's, or by clip art, as no answer may depend on what else is asked for."""
        model, plain = model_of(self.saved), replace(self.form, dtype="fp32", folded=False)
        halves, _ = halve(model)
        if halves is None:
            whole = HeadInputs(model.network, self.saved.head)
            self.form, self.forward = plain, accelerate(whole, plain, self.device)
            return self.forward
        assert halves.prefix
        head = HeadInputs(halves.suffix, self.saved.head).to(self.device).eval()
        known = ((self.saved.summary or {}).get("features") or {}).get("form", "").partition(", compiled")[0]
        forms = {str(one): one for one in (self.form, plain)}
        if self.saved.settings.freeze == ["all"] and known in forms:
            self.form, backbone = forms[known], accelerate(halves.prefix, forms[known], self.device)
        else:
            clipart = [decode(one, self.saved.preprocessing) for one in find_clipart().images[::EVERY]]
            sample = self.normalise(torch.stack(clipart))
            backbone, self.form, _ = settle(halves.prefix, self.form, self.device, sample)

        def forward(images: Tensor) -> tuple[Tensor, ...]:
            tensors = tuple(_padded(tensor.float(), self.form.batch) for tensor in backbone(images))
            with torch.inference_mode():
                return tuple(
                    found[: len(images)] for found in head(tensors if len(tensors) > 1 else tensors[0])
                )

        self.forward = forward
        return forward


def _padded(tensor: Tensor, batch: int) -> Tensor:
    """To the batch's full size, as the bits of an answer depend on it."""
    return torch.cat([tensor, tensor[:1].expand(batch - len(tensor), *tensor.shape[1:])])
