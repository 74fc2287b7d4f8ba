"""Both stacks train, save and read alike. Each silent difference of Keras 3 has a test that is red without its cure."""

import functools
import re
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf
from tiny_tree import tiny_settings

import config
import model
from devices import keras_stack, strategy
from devices.many_steps import Batches
from features import feature_datasets
from features.extraction import Features
from images import image_datasets
from safety.errors import InputError
from training import phases, resume

pytestmark = pytest.mark.usefixtures("float32")
ADDONS_ONLY = pytest.mark.skipif(keras_stack.KERAS_3, reason="TensorFlow Addons is on the other stack")
# Of the thesis: 12 epochs of 43,056 rows in batches of 64; half a cycle is 3 epochs of whole batches.
STEPS, EPOCHS, HALF, LOW, HIGH = 673, 12, 3 * 672, 2e-4, 7e-3


def our_rate():
    return keras_stack.CyclicalLearningRate(LOW, HIGH, HALF, model.halve_each_cycle)


def differing(steps):
    """The steps, of which both schedules take all at once, since one by one would take a minute."""
    import tensorflow_addons as tfa

    theirs = tfa.optimizers.CyclicalLearningRate(LOW, HIGH, HALF, model.halve_each_cycle)
    return np.asarray(steps)[our_rate()(steps).numpy() != theirs(steps).numpy()].tolist()


@ADDONS_ONLY
def test_the_schedule_is_that_of_addons_at_every_step_of_the_thesis():
    assert differing(tf.range(STEPS * EPOCHS + 1, dtype=tf.int64)) == []


@ADDONS_ONLY
def test_a_single_step_has_the_rate_that_it_has_among_all():
    steps = tf.range(0, STEPS * EPOCHS, 700, dtype=tf.int64)
    assert [float(our_rate()(step)) for step in steps] == our_rate()(steps).numpy().tolist()


@ADDONS_ONLY
def test_the_schedule_is_that_of_addons_over_the_range_of_float32():
    assert differing(np.concatenate([[0], np.geomspace(1, 3e38, 400)]).astype(np.float32)) == []


def test_the_schedule_is_a_triangle_that_is_halved_each_cycle():
    rates = [float(our_rate()(int(HALF * half))) for half in (0, 0.5, 1, 2, 3, 4, 5)]
    height = HIGH - LOW
    expected = [LOW, LOW + height / 2, HIGH, LOW, LOW + height / 2, LOW, LOW + height / 4]
    np.testing.assert_allclose(rates, expected, rtol=1e-5)


def test_the_schedule_is_serialised():
    config = keras.optimizers.schedules.serialize(our_rate())
    again = keras.optimizers.schedules.deserialize(config)
    assert [float(again(step)) for step in (0, 100, 5000)] == [float(our_rate()(step)) for step in (0, 100, 5000)]


def features_of(rows, seed, width=512):
    rng = np.random.default_rng(seed)
    labels = np.arange(rows) % 2
    array = rng.normal(size=(rows, width)).astype(np.float32) + labels[:, None].astype(np.float32) / 10
    return Features(array, np.arange(rows)[:, None], labels)


@functools.cache
def built(standardize):
    """A network and its weights, built once, since it takes a second; a head takes its own settings."""
    overrides = ["model.base=vgg16", "model.weights=random", f"model.standardize={standardize}"]
    network = model.build(config.load_settings(None, overrides))
    return network, network.get_weights()


def fresh_head(settings):
    network, weights = built(settings.model.standardize)
    network.set_weights(weights)
    if settings.model.standardize:
        model.standardize(network, *feature_datasets.statistics(3 * features_of(67, 0).array + 1, np.arange(67)))
    return model.head(network)


def fit_head(settings, count, verbose=0):
    """History, steps and weights of a head that takes so many steps in a call; 67 batches of training, 65 rows of validation."""
    head = fresh_head(settings)
    phase = phases.head_on_features(head, features_of(67, 0), features_of(65, 1), settings)
    model.compile_model(phase.trained, settings.train, phase.rate)
    phase.trained.steps_per_execution = count
    history = phases.fit(phase, [], verbose=verbose)
    # Twice if variables were created in the first step.
    assert phase.trained.train_function.experimental_get_tracing_count() == 1
    return history, int(phase.trained.optimizer.iterations), head.get_weights()


def settings_of(tree, size):
    overrides = [f"train.batch_size={size}", "train.epochs=3", "train.momentum=0.5", "model.standardize=true"]
    return config.load_settings(None, tiny_settings(tree, *overrides))


@functools.cache
def fit_plain(tree, size):
    """The same by Keras alone, a batch at a time."""
    settings = settings_of(tree, size)
    head = fresh_head(settings)
    features, valid = features_of(67, 0), features_of(65, 1)
    model.compile_model(head, settings.train, model.cyclical_rate(settings.train, 67))
    places = feature_datasets.train_dataset(features, settings)
    batches = places.map(lambda chosen, labels: (tf.gather(features.array, chosen), labels))
    history = head.fit(
        batches, epochs=settings.train.epochs, steps_per_epoch=-(-67 // size),
        validation_data=(valid.array, valid.labels[:, None]), verbose=0, shuffle=False,
    ).history  # fmt: skip
    return history, int(head.optimizer.iterations), head.get_weights()


@pytest.mark.parametrize("size, steps", [(1, 67), (6, 12)])
@pytest.mark.parametrize("count", [1, 5, 64])
def test_many_steps_in_a_call_are_those_of_keras_one_by_one(tree, size, steps, count):
    """67 is a prime number, so that no number of steps in one go divides an epoch; 12 batches end with a single row."""
    history, taken, weights = fit_head(settings_of(tree, size), count)
    one_by_one, same_steps, same_weights = fit_plain(tree, size)
    assert taken == same_steps == 3 * steps
    assert history.keys() == one_by_one.keys()
    for key, values in history.items():
        np.testing.assert_allclose(values, one_by_one[key], rtol=1e-5, atol=1e-6, err_msg=key)
    for array, same in zip(weights, same_weights):
        np.testing.assert_allclose(array, same, rtol=1e-6, atol=1e-9)


def test_a_head_is_trained_in_float16(tree, float32):
    """The loss scale is a branch in each step. The head itself is float32, so its weights are those without it."""
    settings = settings_of(tree, 6)
    expected = fit_head(settings, 5)[2]
    built.cache_clear()
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        weights = fit_head(settings, 5)[2]
    finally:
        built.cache_clear()
    for array, same in zip(weights, expected):
        np.testing.assert_allclose(array, same, rtol=1e-5, atol=1e-6)


def test_many_batches_at_once_are_those_one_by_one_also_after_a_smaller_one():
    """As in the range test of the rate, whose points take the end of an epoch and the start of the next."""
    ends = np.cumsum([3, 3, 1, 3, 3, 1])
    places, labels = (np.split(rows, ends[:-1]) for rows in (np.random.RandomState(0).permutation(14), np.arange(14.0)))
    kinds = tf.TensorSpec([None], tf.int64), tf.TensorSpec([None, 1], tf.float32)
    batches = Batches(
        lambda first: tf.data.Dataset.from_generator(lambda: zip(places, [y[:, None] for y in labels]), output_signature=kinds),
        6, None, 1, lambda taken: tf.gather(tf.range(14) * 10, taken),
    )  # fmt: skip
    seen = []
    for inputs, rows, stops in batches.many_at_once(range(1), 4):
        starts = [0, *stops.numpy()[:-1]]
        seen += [(inputs[a:b].numpy().tolist(), rows[a:b, 0].numpy().tolist()) for a, b in zip(starts, stops.numpy())]
    assert seen == [((10 * x).tolist(), y.tolist()) for x, y in zip(places, labels)]


@ADDONS_ONLY
def test_a_strategy_over_a_single_device_trains_as_none(tree):
    """As train.strategy=mirrored on one GPU, or TF_CONFIG with one worker."""
    settings = config.load_settings(None, tiny_settings(tree, "train.batch_size=20", "train.epochs=2"))

    def history():
        network = model.build(settings)
        head, features = model.head(network), features_of(67, 0, model.width(network))
        phase = phases.head_on_features(head, features, features, settings)
        model.compile_model(phase.trained, settings.train, phase.rate)
        return phases.fit(phase, [], verbose=0)

    expected = history()
    with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
        distributed = history()
    assert distributed.keys() == expected.keys()
    for key, values in distributed.items():
        np.testing.assert_allclose(values, expected[key], rtol=1e-5, atol=1e-6, err_msg=key)


def test_the_head_follows_a_plain_loop_of_gradient_descent(tree):
    """In NumPy's double precision: 3 epochs of 4 batches with momentum; float32 keeps six digits of the weights."""
    overrides = ["train.batch_size=20", "train.epochs=3", "train.momentum=0.5", "model.standardize=false"]
    settings = config.load_settings(None, tiny_settings(tree, *overrides))
    head = fresh_head(settings)
    kernel, bias = (array.astype(float) for array in head.get_weights())
    features, rate = features_of(67, 0), model.cyclical_rate(settings.train, 67)
    velocity, step = [0.0, 0.0], 0
    for epoch in range(3):
        order = image_datasets.epoch_order(67, settings.data.seed, epoch).numpy()
        for start in range(0, 67, 20):
            rows = order[start : start + 20]
            inputs = features.array[rows].astype(float)
            error = (1 / (1 + np.exp(-inputs @ kernel - bias)) - features.labels[rows, None]) / len(rows)
            gradients = inputs.T @ error, error.sum(axis=0)
            velocity = [0.5 * old - float(rate(step)) * new for old, new in zip(velocity, gradients)]
            kernel, bias, step = kernel + velocity[0], bias + velocity[1], step + 1
    phase = phases.head_on_features(head, features, features_of(65, 1), settings)
    model.compile_model(phase.trained, settings.train, phase.rate)
    phases.fit(phase, [], verbose=0)
    for array, same in zip(head.get_weights(), (kernel, bias)):
        np.testing.assert_allclose(array, same, rtol=1e-6, atol=1e-6)


def test_a_call_takes_the_rows_that_fit_into_memory(tree):
    for size, steps in ((1, 2048), (64, 32), (100_000, 1)):
        settings = config.load_settings(None, tiny_settings(tree, f"train.batch_size={size}"))
        _, classifier = model.split_head(fresh_head(settings))
        model.compile_model(classifier, settings.train, model.cyclical_rate(settings.train, 67))
        assert int(classifier.steps_per_execution) == steps


def test_what_is_printed_of_an_epoch_counts_its_own_steps(tree, capsys):
    settings = config.load_settings(None, tiny_settings(tree, "train.batch_size=1", "train.epochs=1"))
    fit_head(settings, 64, verbose="auto")
    printed = re.findall(r"(\d+)/67", capsys.readouterr().out)
    assert printed and max(map(int, printed)) == 67


def test_an_epoch_sees_each_row_once_and_a_resumed_one_its_own_rows(tree):
    settings = config.load_settings(None, tiny_settings(tree, "train.epochs=4"))
    features = features_of(37, 0)
    seen = []

    class Watched(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(1, "sigmoid")

        def call(self, features):
            return self.dense(features)

        def train_step(self, data):
            # The first feature names the row.
            tf.numpy_function(lambda first: seen.extend(first) or np.int32(0), [data[0][:, 0]], tf.int32)
            return super().train_step(data)

    def epochs_from(first):
        seen.clear()
        watched = Watched()
        watched(features.array[:1])
        batches = Batches(
            lambda epoch: feature_datasets.train_dataset(features, settings, epoch),
            3, feature_datasets.eval_dataset(features, 16), 3, functools.partial(feature_datasets.read, features.array),
        )  # fmt: skip
        watched.compile("sgd", "binary_crossentropy", jit_compile=False)
        keras_stack.fit(watched, batches, strategy.distribute, first, {"epochs": 4, "callbacks": [], "verbose": 0})
        return np.reshape(seen, (4 - first, 37)).tolist()

    from_the_start = epochs_from(0)
    assert all(sorted(epoch) == sorted(features.array[:, 0].tolist()) for epoch in from_the_start)
    assert len({tuple(epoch) for epoch in from_the_start}) == 4
    assert epochs_from(2) == from_the_start[2:]


def test_xla_is_off_in_whatever_is_compiled(settings, monkeypatch):
    """On a machine with a GPU, where Keras 3 would choose it."""
    network = model.build(settings)
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind=None: [SimpleNamespace(device_type="GPU")])
    for trained in (network, model.split_head(model.head(network))[1]):
        model.compile_model(trained, settings.train, model.cyclical_rate(settings.train, 64))
        assert trained.jit_compile is False


def test_the_loss_scale_of_float16_is_part_of_the_state():
    keras.mixed_precision.set_global_policy("mixed_float16")
    layers = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, dtype="float32")])
    layers.compile(keras.optimizers.SGD(), "mse")
    layers.optimizer.build(layers.trainable_variables)
    values = [float(np.max(variable.numpy())) for variable in resume._variables(layers)]
    # The scale that Keras starts with.
    assert 2.0**15 in values


def test_variables_of_an_optimizer_are_created_once():
    """A resumed run sets them before training asks for them again."""
    keras.mixed_precision.set_global_policy("mixed_float16")
    layers = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, dtype="float32")])
    layers.compile(keras.optimizers.SGD(momentum=0.5), "mse")
    keras_stack.build_optimizer(layers)
    for variable in (created := keras_stack.optimizer_variables(layers.optimizer)):
        variable.assign(variable + 1)
    values = [variable.numpy() for variable in created]
    keras_stack.build_optimizer(layers)
    again = keras_stack.optimizer_variables(layers.optimizer)
    assert len(again) == len(created) and all((one.numpy() == other).all() for one, other in zip(again, values))


@pytest.mark.parametrize("overrides, environment, words", [
    (["train.strategy=mirrored"], {}, "train.strategy=mirrored: several devices need the Addons stack"),
    ([], {"TF_CONFIG": "{}"}, "TF_CONFIG: several devices need the Addons stack"),
])  # fmt: skip
def test_several_devices_are_refused_on_keras_3(tmp_path, monkeypatch, overrides, environment, words):
    monkeypatch.setattr(keras_stack, "KERAS_3", True)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    settings = config.load_settings(None, ["train.run=a", *overrides])
    with pytest.raises(InputError, match=words) as refusal, strategy.scope(settings, tmp_path / "a"):
        pytest.fail("several devices were taken")
    assert "requirements.txt" in str(refusal.value) and "\n" not in str(refusal.value)


def test_with_several_gpus_keras_3_takes_the_first_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(keras_stack, "KERAS_3", True)
    monkeypatch.setattr(strategy.precision, "grow_memory", lambda: ["gpu 0", "gpu 1"])
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["gpu 0", "gpu 1"])
    with strategy.scope(config.load_settings(None, ["train.run=a"]), tmp_path / "a"):
        assert strategy.describe() == ", the first of 2 GPUs alone"


def test_openvino_is_refused_with_several_gpus(tmp_path, monkeypatch):
    monkeypatch.setattr(strategy.precision, "grow_memory", lambda: ["gpu 0", "gpu 1"])
    settings = config.load_settings(None, ["train.run=a", "train.engine=openvino"])
    words = "auto or tensorflow with several GPUs, got openvino"
    with pytest.raises(InputError, match=words), strategy.scope(settings, tmp_path / "a"):
        pytest.fail("several devices were taken")
