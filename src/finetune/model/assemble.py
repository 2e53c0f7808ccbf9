"""A model ready to train: built, its weights loaded, its head replaced, frozen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from finetune.choices.given import is_given
from finetune.errors import RequestError, brief
from finetune.model.build import HEADS, brought, build_model, resize
from finetune.model.freeze import Frozen, freeze
from finetune.model.hashing import digest
from finetune.model.head import as_logits, find_head, replace_head
from finetune.model.preprocessing import Preprocessing
from finetune.model.stages import read_stages
from finetune.model.statedict import read_state_dict
from finetune.model.weights import Weights, enum_of, load_weights


@dataclass(frozen=True)
class ModelConfig:
    """What is asked of a model, in the words of the settings of the same names.

    head: number of outputs, `auto` (one for each class) or `keep`. hidden, dropout: of a new head.
    head_features: what it reads. image_size: in pixels, or `auto` (that of the weights).
    start: the folder of a run with the same model, which this one goes on from, head and all.
    """

    name: str
    weights: str
    freeze: Sequence[str]
    head: int | str = "auto"
    hidden: Sequence[int] = ()
    dropout: float = 0.0
    head_features: str | Sequence[str] = "last"
    image_size: int | str = "auto"
    seed: int = 0
    start: Path | None = None


@dataclass(frozen=True)
class Model:
    """A network with what is known of it; head: the new head's full name, None where the old one was kept.

    classes: names of the outputs, in their order; those beyond the classes have none.
    trained: whether its head was trained before.
    example: one black image of the right size, (1, 3, H, W).
    """

    name: str
    network: nn.Module
    weights: Weights
    preprocessing: Preprocessing
    head: str | None
    outputs: int
    frozen: Frozen
    example: Tensor
    classes: tuple[str, ...] = ()
    trained: bool = False

    def backbone_trains(self) -> bool:
        trained = (name for name, p in self.network.named_parameters() if p.requires_grad)
        return not all(name.startswith(f"{self.head}.") for name in trained)


def assemble(config: ModelConfig, classes: Sequence[str]) -> Model:
    """A model built, its weights loaded, its head replaced, frozen; RequestError where one cannot be had."""
    torch.manual_seed(config.seed)
    network = build_model(
        config.name, enum_of(config.name, config.weights), initialised=config.weights == "random"
    )
    weights = load_weights(network, config.name, config.weights, keep_head=config.head == "keep")
    preprocessing = weights.preprocessing
    if config.image_size != "auto":
        preprocessing = preprocessing.to(int(config.image_size))
    resize(network, preprocessing.crop_size)
    head = find_head(network)
    names = _name_outputs(config, weights.classes, classes)
    example = torch.zeros(1, 3, preprocessing.crop_size, preprocessing.crop_size)
    takes = f"model={config.name}: expected a forward that takes float32 images {(*example.shape,)} alone"
    size = f"data.image_size={example.shape[-1]}: {config.name} cannot take images of that size"
    wrong = takes if brought(config.name) else f"{size}; expected another, or auto"
    outputs = _count_outputs(network, example, wrong)
    if config.head != "keep":
        new = _new_head(config, len(classes))
        if brought(config.name):
            _check_head(network, head, example, outputs, name=config.name)
        read_stages(network, head, config.head_features, example)
        torch.manual_seed(config.seed)  # the same head, however many random numbers the backbone took
        replace_head(network, head, new, hidden=config.hidden, dropout=config.dropout)
        wrong = f"head={config.head}: cannot take what the old head took; expected another, or auto"
        outputs = new if isinstance(new, int) else _count_outputs(network, example, wrong)
    if outputs < len(names):
        raise RequestError(
            f"head={config.head}: expected {len(names)} outputs or more, one for each class"
            f" ({brief(names, 3)}), not {outputs}"
        )
    if config.start:
        weights = _start_from(network, config.start, weights)
        resize(network, preprocessing.crop_size)
    new_head = None if config.head == "keep" else head
    frozen = freeze(network, config.freeze, new_head, example)
    nn.utils.convert_conv2d_weight_memory_format(network, torch.channels_last)
    return Model(
        name=config.name,
        network=network,
        weights=weights,
        preprocessing=preprocessing,
        head=new_head,
        outputs=outputs,
        frozen=frozen,
        example=example,
        classes=names,
        trained=config.head == "keep" or config.start is not None,
    )


def _start_from(network: nn.Module, run: Path, weights: Weights) -> Weights:
    """Load a run's whole model, head and all; RequestError where it is another model's, or damaged.

    Of a refitted run the one before, which does not know the validation images.
    """
    chosen = run / "checkpoints" / "chosen.ckpt"
    state, about = read_state_dict(chosen if chosen.exists() else run)
    if before := Preprocessing.from_metadata(about):
        resize(network, before.crop_size)
    own = network.state_dict()
    if any(key not in state or state[key].shape != own[key].shape for key in own):
        raise RequestError(f"{run}: expected the same model as this phase's, to start from")
    network.load_state_dict({key: state[key] for key in own})
    return replace(weights, used=f"of {run}", sha256=digest(network.state_dict()), notes=[], warning=None)


def _name_outputs(config: ModelConfig, known: Sequence[str], classes: Sequence[str]) -> tuple[str, ...]:
    """The classes in the order of the outputs; those that the weights know where their head is kept."""
    if config.head != "keep" or not known:
        return tuple(classes)
    if unknown := [name for name in classes if name not in known]:
        raise RequestError(
            f"head=keep: expected classes that weights={config.weights} know ({brief(known)}),"
            f" not {brief(unknown)}; head=auto makes a new head"
        )
    return tuple(known)


def _new_head(config: ModelConfig, classes: int) -> int | nn.Module:
    """How many outputs the new head is to have, or a head of the user's own."""
    if is_given(config.head):
        return HEADS[str(config.head)]
    return classes if config.head == "auto" else int(config.head)


def _count_outputs(network: nn.Module, example: Tensor, otherwise: str) -> int:
    """How many logits a network gives, whatever its layers are; RequestError: it cannot take the example."""
    network.eval()
    try:
        with torch.no_grad():
            output = network(example)
    except Exception as error:  # a user's forward may fail in any way
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise RequestError(f"{otherwise} ({why})") from None
    return as_logits(output).shape[1]


def _check_head(network: nn.Module, head: str, example: Tensor, outputs: int, name: str) -> None:
    """Raise RequestError unless the layer `head`, which is to be replaced, gives a user's model's logits."""
    wrong = f"model={name}: expected the logits from {head}, its linear layer made last; or head=keep"
    replace_head(network, head, outputs + 1)  # then there are as many
    if _count_outputs(network, example, wrong) != outputs + 1:
        raise RequestError(wrong)
