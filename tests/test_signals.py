"""A signal ends what runs, whatever lies between it and us."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from finetune import signals
from finetune.atomic import write_atomically
from finetune.errors import Interrupted
from finetune.signals import Signal
from support.small import Training

HERE = {number: signal.getsignal(number) for number in signals.NUMBERS}


@pytest.fixture(autouse=True)
def _handlers_are_restored() -> Iterator[None]:
    yield
    assert {number: signal.getsignal(number) for number in signals.NUMBERS} == HERE
    signals.check()  # nothing is left of it


def test_a_signal_that_waits_tells_more_than_an_error_after_it() -> None:
    def broken() -> None:
        signal.raise_signal(signal.SIGTERM)
        raise RuntimeError("Connection closed by peer")

    with pytest.raises(Signal) as caught, signals.signals(), signals.signals_wait():
        broken()
    assert caught.value.number == signal.SIGTERM


class Swallowing:
    """As destructors and some native code do."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGTERM)


def test_the_first_signal_is_raised_and_the_second_may_not_disturb() -> None:
    def tidied() -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Signal) as caught, signals.signals():
        tidied()
    assert caught.value.number == signal.SIGINT


def test_what_a_signal_broke_is_no_error_of_its_own(tmp_path: Path) -> None:
    """torch.save's zip writer raises a RuntimeError over what its file raises."""

    class Interrupting:
        def __init__(self, file: object) -> None:
            self.file = file

        def write(self, data: bytes) -> None:
            signal.raise_signal(signal.SIGTERM)

        def flush(self) -> None:
            pass

    with pytest.raises(Signal), signals.signals(), signals.signals():
        write_atomically(tmp_path / "x.ckpt", lambda file: torch.save({"a": 1}, Interrupting(file)))
    assert not list(tmp_path.iterdir())


def test_what_was_told_of_it_already_stays_told() -> None:
    def told() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        except Signal:
            raise Interrupted("what is kept", 143) from None

    with pytest.raises(Interrupted, match="kept"), signals.signals():
        told()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_other_errors_are_let_through(error: type[BaseException]) -> None:
    with pytest.raises(error), signals.signals():
        raise error


def test_a_signal_that_was_lost_ends_training_with_the_batch(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    training = Training(tmp_path)
    step: Callable[..., torch.Tensor] = training.classifier.training_step
    seen = []

    def training_step(*arguments: object) -> torch.Tensor:
        seen.append(arguments)
        if len(seen) == 6:  # the second of the second epoch
            Swallowing()
        return step(*arguments)

    training.classifier.training_step = training_step
    with pytest.raises(Interrupted, match="interrupted by SIGTERM; the checkpoint of epoch 1 is kept"):
        training.fit(epochs=3)
    assert len(seen) == 6
    assert capfd.readouterr().err == ""


def test_what_must_be_done_whole_is_done_before() -> None:
    done = []

    def whole() -> None:
        with signals.signals_wait():
            signal.raise_signal(signal.SIGTERM)
            done.append(1)
        done.append(2)

    with pytest.raises(Signal), signals.signals():
        whole()
    assert done == [1]
