import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from tiny_tree import tiny_settings

import config
import model
import train
from devices import keras_stack
from safety.errors import InputError
from training import lr_range_test, phases

SMALL = {"HEADS": 2, "POINTS": 20}


@pytest.fixture
def small(monkeypatch):
    for name, value in SMALL.items():
        monkeypatch.setattr(lr_range_test, name, value)


@pytest.fixture(scope="module")
def tested(tree, tmp_path_factory):
    """A range test from the command line: its folder, what it printed, and the model's weights before and after."""
    place, seen = tmp_path_factory.mktemp("work"), {}

    def build(*arguments, **options):
        seen["network"] = whole(*arguments, **options)
        return seen["network"]

    def sweep(*arguments):
        seen["before"] = [weight.tobytes() for weight in seen["network"].get_weights()]
        return inner(*arguments)

    whole, inner = model.build, lr_range_test.sweep
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        for name, value in SMALL.items():
            patch.setattr(lr_range_test, name, value)
        patch.setattr(model, "build", build)
        patch.setattr(lr_range_test, "sweep", sweep)
        patch.setattr(lr_range_test, "propose", lambda curve: (1.2e-4, 3.4e-2))
        printed = []
        patch.setattr("builtins.print", lambda *words, **_: printed.extend(map(str, words)))
        train.main(["--find-lr", *tiny_settings(tree, "train.momentum=0.5")])
    return place, "\n".join(printed), seen["before"], [weight.tobytes() for weight in seen["network"].get_weights()]


def test_the_model_is_left_bit_identical(tested):
    place, _, before, after = tested
    assert before == after
    # It was trained in between, or there would be nothing to put back.
    curve = pd.read_csv(place / "runs/tiny-find-lr/rates.csv")
    assert curve.loss.min() < curve.loss[0] / 2


def test_the_proposal_is_printed_as_lines_of_config_yaml(tested):
    place, printed, *_ = tested
    assert "  initial_lr: 1.2e-04\n  maximal_lr: 3.4e-02" in printed
    mine = place / "mine.yaml"
    mine.write_text("train:\n  " + printed.rpartition("config.yaml:\n  ")[2])
    settings = config.load_settings(mine).train
    assert (settings.initial_lr, settings.maximal_lr) == (1.2e-4, 3.4e-2)


def test_it_leaves_its_folder_and_no_run(tested):
    place, printed, *_ = tested
    assert sorted(path.name for path in (place / "runs").iterdir()) == ["tiny-find-lr"]
    assert {path.name for path in (place / "runs/tiny-find-lr").iterdir()} == {"rates.csv", "rates.png"}
    assert "runs/tiny-find-lr/rates.png" in printed


class FakeHead:
    """A head whose training is stopped, with weights that Keras would have changed by then."""

    def __init__(self, head):
        self.head = head

    def __getattr__(self, name):
        return getattr(self.head, name)

    def fit(self, *_, **__):
        raise KeyboardInterrupt


def stopped_phase(head, steps=10):
    batches = phases.Batches(lambda first: tf.data.Dataset.from_tensors((0, 0)), steps, None, 1)
    return phases.Phase(FakeHead(head), None, range(1), batches)


def test_a_stopped_sweep_leaves_the_model_bit_identical(settings, small, float32):
    head = model.split_head(model.head(model.build(settings)))[1]
    before = head.get_weights()
    with pytest.raises(KeyboardInterrupt):
        lr_range_test.sweep(stopped_phase(head), settings)
    assert all(np.array_equal(one, other) for one, other in zip(before, head.get_weights()))


def curve_of(val_loss):
    rates = np.geomspace(lr_range_test.LOWEST, lr_range_test.HIGHEST, len(val_loss))
    return pd.DataFrame({"rate": rates, "loss": val_loss, "val_loss": val_loss})


def falling():
    """One to 1e-4, steepest at 1e-3, lowest at 1e-2 and growing without end after it."""
    decade = np.linspace(-6, 1, 71)
    fall = 0.8 / (1 + np.exp(-6 * (decade + 3)))
    return np.where(decade <= -2, 1 - fall, 0.2 + 3 * (decade + 2) ** 2)


@pytest.mark.parametrize("end", [np.nan, np.inf, 0.0])
def test_the_steepest_fall_and_the_valley_do_not_depend_on_what_comes_after_the_divergence(end):
    losses = falling()
    losses[65:] = end
    low, high = lr_range_test.propose(curve_of(losses))
    assert np.log10(low) == pytest.approx(-3, abs=0.11) and np.log10(high) == pytest.approx(-2, abs=0.21)


def test_one_lucky_point_is_no_valley():
    losses = falling()
    losses[5] = 0.15
    assert np.log10(lr_range_test.propose(curve_of(losses))[1]) == pytest.approx(-2, abs=0.21)


@pytest.mark.parametrize("losses", [np.linspace(0.6, 5, 50), np.full(50, np.nan)])
def test_a_loss_that_falls_nowhere_is_refused(losses):
    with pytest.raises(InputError, match="the validation loss falls at no rate from 1e-06 to 10"):
        lr_range_test.propose(curve_of(losses))


def test_the_points_of_a_sweep_take_up_where_the_one_before_ended():
    """7 steps a point of 2 epochs of 5 batches; the stream begins anew after the last epoch."""

    def train_from(epoch):
        return tf.data.Dataset.range(epoch * 5, 10)

    phase = phases.Phase(None, None, range(2), phases.Batches(train_from, 5, None, 1))
    points = [lr_range_test._from_step(phase, 7 * point).take(7).as_numpy_iterator() for point in range(6)]
    assert [int(batch) for point in points for batch in point] == [step % 10 for step in range(42)]


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_each_head_of_a_sweep_starts_with_a_fresh_optimizer(settings, float32, policy):
    """Under float16 the loss scale is not 0, which would stop the training without a word."""
    keras.mixed_precision.set_global_policy(policy)
    head = model.split_head(model.head(model.build(settings)))[1]
    model.compile_model(head, settings.train, model.cyclical_rate(settings.train, 64))
    keras_stack.build_optimizer(head)
    variables = keras_stack.optimizer_variables(head.optimizer)
    fresh = [variable.numpy() for variable in variables]
    for variable in variables:
        variable.assign(variable + 1)
    lr_range_test._freshen(head, 0, fresh)
    assert all(np.array_equal(variable.numpy(), value) for variable, value in zip(variables, fresh))


@pytest.mark.parametrize("momentum, steps, expected", [(0.0, 200, 200), (0.9, 10, 220)])
def test_a_sweep_is_as_long_as_a_run_or_as_the_momentum_needs(
    settings, small, float32, monkeypatch, momentum, steps, expected
):
    seen = []

    def fit(head, batches, distribute, first, options):
        seen.append((options["epochs"] - first) * batches.steps)
        raise KeyboardInterrupt

    monkeypatch.setattr(keras_stack, "fit", fit)
    settings = settings.model_copy(update={"train": settings.train.model_copy(update={"momentum": momentum})})
    with pytest.raises(KeyboardInterrupt):
        lr_range_test.sweep(stopped_phase(model.split_head(model.head(model.build(settings)))[1], steps), settings)
    assert seen == [expected]
