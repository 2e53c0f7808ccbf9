"""Many small networks trained at once: their parameters stacked, each step one forward and backward of all.

Whatever a job computes depends on its own numbers only, so a job whose loss is no longer finite stays in the
stack and disturbs nobody; it is no longer looked at.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.utils._pytree import tree_map

from finetune.atomic import not_written
from finetune.data.module import Batches, Loader
from finetune.errors import RunError
from finetune.model.freeze import Frozen
from finetune.sweep import stacked
from finetune.sweep.record import Recipe, Record, Snapshot
from finetune.sweep.stacked import Tally, Tensors
from finetune.training.module import not_finite

WRITE_EVERY = 10.0  # seconds: a process that is killed loses so much of its checkpoints at most


@dataclass(frozen=True)
class Network:
    """What all jobs share: the model that names the parameters, and its suffix, which the batches pass."""

    model: nn.Module
    suffix: nn.Module
    frozen: Frozen
    device: str

    def train(self, mode: bool) -> None:
        self.model.train(mode)
        self.suffix.train(mode)
        if mode:
            self.frozen.hold(self.model)

    def state(self) -> Tensors:
        """What of the model is not frozen."""
        constant = self.frozen.parameters | self.frozen.buffers
        return {name: value for name, value in self.model.state_dict().items() if name not in constant}

    def inside(self) -> dict[str, str]:
        """The suffix's name of each tensor of the state that it uses."""
        own = {**dict(self.suffix.named_parameters()), **dict(self.suffix.named_buffers())}
        places = {id(value): name for name, value in own.items()}
        named = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
        return {name: places[id(named[name])] for name in self.state() if id(named[name]) in places}

    def forward(self, state: Tensors, inputs: Any, shared: bool = False) -> Tensor:
        """Logits (J, B, outputs) of inputs (J, B, …), or of the same (B, …) for all jobs.

        Raises:
            RuntimeError: the suffix draws random numbers or does something else that cannot be stacked.
        """

        def one(tensors: Tensors, batch: Any) -> Tensor:
            return functional_call(self.suffix, tensors, (batch,))

        tensors = {place: state[name] for name, place in self.inside().items()}
        logits = vmap(one, in_dims=(0, None if shared else 0), randomness="error")(tensors, inputs)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))


def why_not(network: Network, inputs: Any) -> str | None:
    """Why networks of this kind cannot be stacked, tried on a batch; None where they can."""
    state = {name: torch.stack([value.detach()] * 2) for name, value in network.state().items()}
    network.train(True)
    try:
        network.forward(state, inputs, shared=True)
    except (RuntimeError, ValueError) as error:
        return str(error).splitlines()[0]
    return None


class Together:
    """The jobs of a group while they train.

    ended: by place, jobs that have failed. failed: called when one does. live: places of those that train on.
    """

    def __init__(
        self,
        network: Network,
        batches: Sequence[Batches],
        states: Sequence[Tensors],
        records: Sequence[Record],
        failed: Callable[[int, RunError], None],
    ) -> None:
        self.network, self.batches, self.records, self.failed = network, batches, records, failed
        self.live, self.ended = list(range(len(records))), dict[int, RunError]()
        trains = {name for name, p in network.model.named_parameters() if p.requires_grad}
        self.state = {
            name: torch.stack([state[name] for state in states]).to(network.device) for name in states[0]
        }
        inside = network.inside()
        self.parameters = {
            name: self.state[name].requires_grad_()
            for name in self.state
            if name in trains and name in inside
        }
        recipes = [record.recipe for record in records]
        self.smoothing = torch.tensor([r.label_smoothing for r in recipes], dtype=torch.float64)
        self.class_weights = [r.class_weights for r in recipes]
        self.rates, decay = self._per_parameter(recipes, "lr"), self._per_parameter(recipes, "weight_decay")
        self.optimizer = stacked.OPTIMIZERS[recipes[0].optimizer](
            self.parameters, decay, [recipe.options for recipe in recipes]
        )
        self.step = 0
        self.best, self.last = (Snapshot(self._tensors(), len(records)) for _ in range(2))
        self.wrote = time.perf_counter()

    @torch.no_grad()
    def go_on(self, newest: Sequence[dict[str, Any]], best: Sequence[dict[str, Any]]) -> None:
        """Put every job where its checkpoints have it, the newest and the best; all after the same epoch."""
        present = self._tensors()
        for job, record in enumerate(self.records):
            record.go_on(newest[job])
            at, then = record.tensors(newest[job]), record.tensors(best[job])
            for key, value in present.items():
                if key in at:  # without momentum there is no buffer
                    value[job] = at[key].to(value.device)
                    self.best.tensors[key][job] = then[key].to(value.device)
            self.best.epochs[job], self.best.steps[job] = record.best.epoch, best[job]["global_step"]
        self.step = self.records[0].steps
        if isinstance(self.optimizer, stacked.AdamW):
            self.optimizer.steps = self.step
        self.last.take(present, self.live, self.records[0].best.kept, self.step)
        self.live = [job for job in self.live if not self._out_of_patience(job)]

    def _per_parameter(self, recipes: Sequence[Recipe], number: str) -> Tensors:
        """A number of the parameter groups for each parameter, (J,)."""
        named = {id(p): name for name, p in self.network.model.named_parameters()}
        each = [{named[id(p)]: g[number] for g in r.groups for p in g["params"]} for r in recipes]
        return {
            name: torch.tensor([one[name] for one in each], dtype=torch.float64) for name in self.parameters
        }

    def _tensors(self) -> dict[tuple[str, str], Tensor]:
        state = {("state", name): value for name, value in self.state.items()}
        return state | {(k, name): v for k, held in self.optimizer.state.items() for name, v in held.items()}

    def _loss(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        ones = torch.ones(logits.shape[2])
        weights = [ones if w is None else w for w in self.class_weights]
        return stacked.cross_entropy(
            logits, labels, self.smoothing.to(logits), torch.stack(weights).to(logits)
        )

    def train_epoch(self, epoch: int, max_steps: float) -> Tally:
        """One epoch of every job, each in its own order; leaves the mean norms of the gradients."""
        self.network.train(True)
        tally, norms = Tally(), list[Tensor]()
        for inputs, labels in self._batches(epoch):
            logits = self.network.forward(self.state, inputs)
            losses, weights = self._loss(logits, labels)
            self.drop(f"the loss of batch {len(norms) + 1}", losses.detach().tolist(), epoch)
            tally.add(losses, weights, logits, labels)
            found = torch.autograd.grad(losses.sum(), list(self.parameters.values()), allow_unused=True)
            gradients = {name: g for name, g in zip(self.parameters, found, strict=True) if g is not None}
            each = torch.stack([g.flatten(1).norm(dim=1) for g in gradients.values()])
            norms.append(each.norm(dim=0))
            factors = torch.tensor([r.recipe.schedule(self.step) for r in self.records], dtype=torch.float64)
            moving = {name: self.parameters[name] for name in gradients}
            self.optimizer.step(moving, gradients, {name: self.rates[name] * factors for name in moving})
            self.step += 1
            if self.step >= max_steps or not self.live:
                break
        self.norms = torch.stack(norms).mean(0).tolist()
        return tally

    def _batches(self, epoch: int) -> Iterator[tuple[Any, Tensor]]:
        """Inputs (J, B, …) and labels (J, B); jobs of the same seed take the same batches."""
        first = {batches.seed: batches for batches in reversed(self.batches)}
        seeds = list(first)
        which = torch.tensor([seeds.index(batches.seed) for batches in self.batches])
        loaders = [
            Loader(b.inputs, b.labels, b.batch_size, b.split["train"], b.seed, lambda: epoch)
            for b in first.values()
        ]
        for each in zip(*loaders, strict=True):
            inputs = tree_map(lambda *tensors: self._spread(tensors, which), *(one for one, _ in each))
            yield inputs, self._spread([labels for _, labels in each], which)

    def _spread(self, tensors: Sequence[Tensor], which: Tensor) -> Tensor:
        if len(tensors) == 1:
            return tensors[0].to(self.network.device).expand(len(which), *tensors[0].shape)
        return torch.stack(list(tensors)).to(self.network.device)[which]

    @torch.no_grad()
    def judge(self, loader: Loader, state: Tensors) -> tuple[Tally, Tensor]:
        """Every job's loss and accuracy on one side, the same for all, and the logits (J, N, outputs)."""
        self.network.train(False)
        tally, found = Tally(), []
        for inputs, labels in loader:
            inputs, labels = tree_map(lambda one: one.to(self.network.device), (inputs, labels))
            logits = self.network.forward(state, inputs, shared=True)
            labels = labels.expand(len(self.records), -1)
            tally.add(*self._loss(logits, labels), logits, labels)
            found.append(logits.cpu())
        return tally, torch.cat(found, 1)

    def end_epoch(self, epoch: int, metrics: list[dict[str, float]]) -> None:
        """Write what an epoch came to, and remember it where it is the best of its job."""
        for name, value in self.state.items():
            self.drop(
                f"a value of {name}", value.detach().abs().view(len(value), -1).amax(1).tolist(), epoch - 1
            )
        better = []
        for job in list(self.live):
            try:
                if self.records[job].epoch(epoch, self.step, metrics[job], self.norms[job]):
                    better.append(job)
            except OSError as error:
                self._end(job, RunError(not_written(self.records[job].folder, error)))
        self.best.take(self._tensors(), better, epoch, self.step)
        self.last.take(self._tensors(), self.live, epoch, self.step)
        self.live = [job for job in self.live if not self._out_of_patience(job)]
        if time.perf_counter() - self.wrote > WRITE_EVERY:
            self.write()

    def _out_of_patience(self, job: int) -> bool:
        return self.records[job].best.out_of(self.records[job].patience)

    def write(self) -> None:
        """Bring every job's checkpoints up to date."""
        for job, record in enumerate(self.records):
            try:
                record.keep(job, self.best, self.last)
            except RunError as error:
                self._end(job, error)
        self.wrote = time.perf_counter()

    def drop(self, what: str, values: list[float], epoch: int) -> None:
        """End the jobs whose value is no longer finite."""
        for job in list(self.live):
            if not math.isfinite(values[job]):
                error = not_finite(what, values[job], epoch + 1)
                self._end(job, RunError(f"{error}; {self.records[job].best}"))

    def _end(self, job: int, error: RunError) -> None:
        self.ended[job] = error
        self.live = [other for other in self.live if other != job]
        self.failed(job, error)
