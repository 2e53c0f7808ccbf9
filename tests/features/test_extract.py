import math

import pytest
import torch
from torch import fx, nn
from torch._dynamo.utils import counters

from finetune.data.images import BadImage
from finetune.features.extract import Form, accelerate, choose_form, difference, extract, settle
from finetune.model.assemble import ModelConfig, assemble
from finetune.model.boundary import split
from finetune.model.preprocessing import Preprocessing
from finetune.training.device import threads

SIZE = 48
BATCH = Form().batch


@pytest.fixture(scope="module")
def prefix() -> fx.GraphModule:
    model = assemble(ModelConfig("resnet18", "random", ["through:layer2"], 10, image_size=SIZE), "abcdefghij")
    found = split(model.network, model.example).prefix
    assert found is not None
    return found


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randint(0, 256, (84, 3, SIZE, SIZE), dtype=torch.uint8, generator=torch.manual_seed(0))


PREPARE = Preprocessing(SIZE, SIZE, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def prepared(forward):
    return lambda images: forward(PREPARE.normalise(images))


def rows_of(forward, images, rows):
    found = {}
    for told, tensors in extract(prepared(forward), images.__getitem__, rows, BATCH, "cpu"):
        found |= {row: tuple(tensor[i].clone() for tensor in tensors) for i, (row, _) in enumerate(told)}
    return found


@pytest.mark.parametrize(
    ("form", "least", "most"),
    [(Form("fp32", folded=False), 0, 1e-6), (Form("fp32"), 0, 1e-5), (Form("bf16"), 1e-4, 2e-2)],
)
def test_every_form_gives_the_features_up_to_its_rounding(prefix, images, form, least, most):
    batch = PREPARE.normalise(images[:8])
    with torch.no_grad():
        exact = (prefix(batch),)
    fast = accelerate(prefix, form, "cpu")(batch)
    assert least <= difference(exact, fast) <= most
    assert fast[0].dtype == (torch.bfloat16 if form.dtype == "bf16" else torch.float32)


def test_folding_leaves_the_prefix_itself_alone(prefix):
    before = {name: value.clone() for name, value in prefix.state_dict().items()}
    modules = {name: type(module) for name, module in prefix.named_modules()}
    accelerate(prefix, Form("bf16"), "cpu")
    assert {name: type(module) for name, module in prefix.named_modules()} == modules
    assert all(torch.equal(value, before[name]) for name, value in prefix.state_dict().items())
    assert all(value.dtype in (torch.float32, torch.int64) for value in prefix.state_dict().values())


@pytest.mark.parametrize("dtype", ["fp32", pytest.param("bf16", marks=pytest.mark.slow)])
def test_a_feature_has_the_same_bits_whatever_it_is_computed_beside(prefix, images, dtype):
    forward = accelerate(prefix, Form(dtype), "cpu")
    together = rows_of(forward, images, range(len(images)))
    assert sorted(together) == list(range(len(images)))
    for rows in ([70], [83, 2, 70], list(range(83, 10, -1))):
        again = rows_of(forward, images, rows)
        assert list(again) == rows
        assert all(torch.equal(again[row][0], together[row][0]) for row in rows)


def test_broken_pictures_are_left_out(prefix, images):
    forward = accelerate(prefix, Form("fp32"), "cpu")
    whole = rows_of(forward, images, range(6))

    def read(row):
        return BadImage(row, "", "broken") if row in (0, 3) else images[row]

    ((told, (tensor,)),) = extract(prepared(forward), read, range(6), BATCH, "cpu")
    assert [row for row, _ in told] == [0, 1, 2, 3, 4, 5]
    assert [row for row, bad in told if bad] == [0, 3]
    assert len(tensor) == 4
    assert torch.equal(tensor[2], whole[4][0])
    ((told, tensors),) = extract(prepared(forward), read, [3, 0], BATCH, "cpu")
    assert ([row for row, _ in told], tensors) == ([3, 0], ())


def test_an_error_while_decoding_ends_the_extraction_and_frees_the_threads(prefix, images):
    forward = accelerate(prefix, Form("fp32"), "cpu")
    threads = torch.get_num_threads()

    def read(index):
        if index == 40:
            raise MemoryError("no more")
        return images[index]

    with pytest.raises(MemoryError, match="no more"):
        list(extract(prepared(forward), read, range(80), BATCH, "cpu"))
    assert torch.get_num_threads() == threads


class Cancels(nn.Module):
    """Adds and takes away a thousand: bf16 loses everything that was small."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x + 1000.0) - 1000.0


def test_where_bf16_is_too_far_off_fp32_is_used_and_the_difference_told(images):
    network = fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 4, 3), Cancels(), nn.AdaptiveAvgPool2d(1)))
    sample = PREPARE.normalise(images[:4])
    forward, form, distance = settle(network, Form("bf16"), "cpu", sample)
    assert (form, distance > 0.05) == (Form("fp32", folded=False), True)
    with torch.no_grad():
        assert torch.allclose(forward(sample)[0], network(sample), atol=1e-5)


class Asks(nn.Module):
    """Takes float32 alone."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.float()


class Waves(nn.Module):
    """Has parameters that are not laid out as those of a convolution: of five dimensions, and complex."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(3, 4, (1, 3, 3), padding=(0, 1, 1))
        self.weight = nn.Parameter(torch.randn(1, 4, SIZE, SIZE, dtype=torch.complex64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.fft.ifft2(torch.fft.fft2(self.conv(x[:, :, None])[:, :, 0]) * self.weight).real


@pytest.mark.filterwarnings("ignore:Casting complex values to real")
@pytest.mark.parametrize(
    ("form", "network"),
    [
        (Form("bf16"), nn.Sequential(Asks(), nn.Conv2d(3, 4, 3))),
        (Form("bf16"), Waves()),
        (Form(), nn.Sequential(nn.Conv2d(3, 4, SIZE), nn.Flatten(2), nn.Linear(1, 6), nn.BatchNorm1d(4))),
    ],
)
def test_a_form_that_a_model_cannot_be_computed_in_is_too_far(images, form, network):
    sample = PREPARE.normalise(images[:4])
    network = fx.symbolic_trace(network).eval()
    forward, actual, distance = settle(network, form, "cpu", sample)
    assert (actual, distance) == (Form("fp32", folded=False), math.inf)
    with torch.no_grad():
        assert torch.allclose(forward(sample)[0], network(sample), atol=1e-5)


def test_no_number_is_too_far_whichever_tensor_has_it():
    one, none = torch.ones(2), torch.full((2,), math.nan)
    for fast in ((none, one), (one, none)):
        assert math.isnan(difference((one, one), fast))


def test_the_form_kept_is_the_one_asked_for_where_it_is_near(prefix, images):
    _, form, distance = settle(prefix, Form("bf16"), "cpu", PREPARE.normalise(images[:4]))
    assert form == Form("bf16")
    assert 1e-4 < distance < 2e-2


@pytest.mark.parametrize(
    ("precision", "compile", "device", "macs", "bf16", "form"),
    [
        ("auto", "auto", "cpu", 1e12, True, Form("bf16")),
        ("auto", "auto", "cpu", 1e12, False, Form("fp32")),
        ("32", "auto", "cpu", 1e12, True, Form("fp32")),
        ("bf16", "auto", "cpu", 1e12, False, Form("bf16")),
        ("auto", False, "cpu", 1e18, True, Form("bf16")),
        ("auto", "auto", "cuda", 1e15, True, Form("bf16", batch=64)),
        ("auto", "auto", "cuda", 1e17, True, Form("bf16", compiled=True, batch=64)),
    ],
)
def test_the_form_is_a_function_of_machine_and_workload(precision, compile, device, macs, bf16, form):
    assert choose_form(precision, compile, device, macs=macs, bf16=bf16) == form


@pytest.mark.slow
def test_compiled_features_are_the_same_up_to_rounding(prefix, images):
    batch = PREPARE.normalise(images[:BATCH])
    with torch.no_grad():
        exact = (prefix(batch),)
    with threads(2):  # which tests have one of
        forward, form, distance = settle(prefix, Form("fp32", compiled=True), "cpu", batch)
    assert (form.compiled, 0 <= distance < 1e-5) == (True, True)
    compiled = counters["frames"]["ok"]
    found = rows_of(forward, images, range(len(images)))  # every thread, each of which computes by itself
    assert difference(exact, (torch.stack([found[row][0] for row in range(BATCH)]),)) < 1e-5
    assert counters["frames"]["ok"] == compiled  # once for all
    trains = nn.Linear(4, 4)
    trains.compile()
    with torch.no_grad():  # what is compiled later is not frozen, and sees its weights as they become
        before = trains(torch.ones(1, 4))
        trains.weight.add_(1)
        assert torch.allclose(trains(torch.ones(1, 4)), before + 4)
