import signal

import pytest

from safety import command_line, signals
from training import callbacks


@pytest.fixture
def steps():
    """The steps that ran, in order; SIGTERM is handled as in the commands."""
    old = signal.signal(signal.SIGTERM, command_line._terminate)
    yield []
    signal.signal(signal.SIGTERM, old)


@pytest.mark.parametrize(
    "number, kind", [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, command_line.Terminated)]
)
def test_a_signal_waits_for_the_end_of_the_block(steps, number, kind):
    with pytest.raises(kind), signals.deferred():
        signal.raise_signal(number)
        steps.append("the rest of the block")
    assert steps == ["the rest of the block"]


def test_a_second_signal_takes_effect_at_once(steps):
    with pytest.raises(KeyboardInterrupt), signals.deferred():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        steps.append("never")
    assert steps == []


def test_training_ends_after_the_step_in_which_a_signal_is_received(steps):
    with pytest.raises(command_line.Terminated), signals.deferred() as received:
        watcher = callbacks.StopOnSignal(received)
        watcher.on_train_batch_end(0)
        signal.raise_signal(signal.SIGTERM)
        steps.append("the rest of the step")
        watcher.on_train_batch_end(1)
        steps.append("never")
    assert steps == ["the rest of the step"]
