"""What a run came to, as summary.json has it."""

from __future__ import annotations

import platform
from functools import cache
from importlib.metadata import version
from typing import Any

import finetune
from finetune.inference.calibration import calibrate
from finetune.model.parameters import count_parameters
from finetune.prepare import Prepared
from finetune.training.fit import Fitted


def summarise(prepared: Prepared, fitted: Fitted, timing: dict[str, float]) -> dict[str, Any]:
    """The summary of a finished run whose proof held; times in seconds."""
    settings, model, ready = prepared.settings, prepared.model, prepared.ready
    dataset, proof, labels = ready.dataset, prepared.proof, prepared.batches.labels
    return {
        "status": "finished",
        "val": fitted.val,
        "test": fitted.test,
        "calibration": calibrate(
            settings.loss,
            (fitted.val_logits, labels[dataset.split["val"]]),
            (fitted.test_logits, labels[dataset.split["test"]]),
        ),
        "best_epoch": fitted.best_epoch,
        "epochs": fitted.epochs,
        "steps": fitted.steps,
        "model": model.name,
        "weights": {
            "requested": model.weights.requested,
            "used": model.weights.used,
            "sha256": model.weights.sha256,
        },
        "freeze": settings.freeze,
        "head": settings.head,
        "classes": list(dataset.classes),
        "parameters": count_parameters(model.network),
        "frozen_proof": {
            "identical": True,
            "tensors": len(proof.each),
            "sha256": proof.sha256,
            "each": proof.each,
        },
        "data": {
            "name": dataset.name,
            **dataset.counts(),
            "fingerprint": dataset.fingerprint(),
            "skipped": len(ready.bad),
            "ignored_files": dataset.ignored_files,
        },
        "preprocessing": vars(model.preprocessing),
        "augment": ready.plan.augment,
        "boundary": {"share": ready.plan.share, "why": ready.plan.why},
        "features": ready.features,
        "timing": timing,
        "device": prepared.device,
        "precision": prepared.precision,
        "seed": settings.seed,
        "overrides": prepared.origin.get("overrides"),
        "versions": versions(),
    }


@cache
def versions() -> dict[str, str]:
    """Versions of what decides a run's numbers."""
    packages = ("torch", "torchvision", "pytorch-lightning", "hydra-core", "pillow", "numpy")
    return {
        "finetune": finetune.__version__,
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }
