"""The autograd graph of a training step: the nodes are those that PyTorch itself has."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from finetune.inspection.graph import Node, fold_calls, record_step
from finetune.model.assemble import Model, ModelConfig, assemble
from finetune.training import losses

LABEL = torch.tensor([3])
CLASSES = [f"class {i}" for i in range(10)]


def assembled(*patterns: str, head: int | str = 10, name: str = "resnet18") -> Model:
    return assemble(ModelConfig(name, "random", patterns, head, image_size=32), CLASSES)


def graph(model: Model, loss: str = "cross_entropy", depth: int | None = None) -> list[Node]:
    calls = record_step(model.network, losses.create_loss(loss), model.example, LABEL)
    return fold_calls(calls, model.network, depth)


def autograd(root: Any) -> Counter[str]:
    """The names of all nodes from a root on, as a plain walk over `next_functions` finds them."""
    seen, todo = {root}, [root]
    while todo:
        for node, _ in todo.pop().next_functions:
            if node is not None and node not in seen:
                seen.add(node)
                todo.append(node)
    return Counter(type(node).__name__ for node in seen)


@pytest.mark.parametrize(
    ("patterns", "loss"),
    [
        (["all"], "cross_entropy"),
        (["none"], "bce"),
        (["through:layer3"], "sum_squares"),
        (["all", "-@norm"], "sum_difference"),
    ],
)
def test_the_nodes_are_those_of_a_plain_step(patterns: list[str], loss: str) -> None:
    model = assembled(*patterns)
    pictures, labels = torch.randn(2, 3, 32, 32), torch.cat([LABEL, LABEL])
    real = autograd(losses.create_loss(loss)(model.network(pictures), labels)[0].grad_fn)
    leaves = real.pop("AccumulateGrad")
    nodes = graph(model, loss)
    assert sum((node.grad_fns for node in nodes), Counter()) == real
    trained = {leaf.name for node in nodes for leaf in node.leaves.values() if leaf.requires_grad}
    assert len(trained) == leaves
    assert trained == {name for name, p in model.network.named_parameters() if p.requires_grad}


def test_resnet18_frozen_up_to_its_head() -> None:
    nodes = graph(assembled("all"))
    names = [node.name for node in nodes]
    assert names[:6] == ["image", "conv1", "bn1", "relu", "maxpool", "layer1.0"]
    assert names[-4:] == ["avgpool", "flatten", "fc", "loss"]
    assert [node.late for node in nodes] == [False] * 15 + [True] * 2
    assert not any(node.grad_fns for node in nodes[:-2])
    assert nodes[-2].grad_fns == {"TBackward0": 1, "AddmmBackward0": 1}
    assert list(nodes[-1].grad_fns) == ["LogSoftmaxBackward0", "NllLossBackward0"]
    assert [node.inputs for node in nodes] == [[], *([i] for i in range(16))]
    assert [(leaf.name, leaf.shape) for leaf in nodes[-2].leaves.values()] == [
        ("fc.weight", (10, 512)),
        ("fc.bias", (10,)),
    ]


def test_a_loss_ends_in_the_node_that_pytorch_names() -> None:
    assert list(graph(assembled("all"), "bce")[-1].grad_fns)[-1] == "BinaryCrossEntropyWithLogitsBackward0"
    assert graph(assembled("none"))[5].grad_fns["AddBackward0"] == 1  # the residual sum of layer1.0


def test_unfolding_shows_the_branches() -> None:
    nodes = graph(assembled("none"), depth=3)
    names = [node.name for node in nodes]
    block = names.index("layer2.0.conv1")
    assert names[block : block + 8] == [
        *(f"layer2.0.{name}" for name in ("conv1", "bn1", "relu", "conv2", "bn2", "downsample")),
        "add",
        "layer2.0.relu",
    ]
    sources = [names[one] for one in nodes[block + 6].inputs]
    assert sources == ["layer2.0.bn2", "layer2.0.downsample"]
    assert names[nodes[block + 5].inputs[0]] == "layer1.1.relu"


def test_a_block_that_carries_a_gradient_in_part_gives_two_nodes() -> None:
    nodes = [node for node in graph(assembled("all", "-layer4.1.bn2")) if node.name == "layer4.1"]
    assert [node.late for node in nodes] == [False, True]
    assert "NativeBatchNormBackward0" in nodes[1].grad_fns
    assert "ConvolutionBackward0" not in nodes[1].grad_fns


def test_where_nothing_trains_nothing_has_a_grad_fn() -> None:
    nodes = graph(assembled("all", head="keep"))
    assert not any(node.late or node.grad_fns for node in nodes)


class Branching(nn.Module):
    """Control flow over the data, as autograd allows it: the graph is that of the branch taken."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 10)

    def forward(self, x: Tensor) -> Tensor:
        pooled = x.mean((2, 3))
        while pooled.norm() < 1000:
            pooled = pooled * 2
        return self.head(pooled)


def test_control_flow_is_recorded_as_it_ran() -> None:
    model = Branching()
    nodes = fold_calls(record_step(model, losses.create_loss("bce"), torch.zeros(1, 3, 8, 8), LABEL), model)
    assert Counter(node.name for node in nodes)["mul"] > 3
    assert not any(node.late for node in nodes if node.name == "mul")


def test_recording_leaves_the_model_as_it_was() -> None:
    model = assembled("none").network
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    record_step(model, losses.create_loss("bce"), torch.zeros(1, 3, 32, 32), LABEL)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    assert all(p.grad is None for p in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
