import hashlib

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from tiny_tree import tiny_settings

import config
import model
from devices import precision
from safety.errors import InputError

pytestmark = pytest.mark.usefixtures("float32")


def statistics(features):
    return features.mean(axis=0), features.var(axis=0)


def resnet50(tree, *overrides):
    return tiny_settings(tree, "model.base=resnet50", *overrides)


@pytest.fixture
def settings(tree):
    return config.load_settings(None, resnet50(tree))


@pytest.fixture
def network(settings):
    return model.build(settings)


def test_the_head_has_2049_weights_and_nothing_else_is_trained(tree):
    network = model.build(config.load_settings(None, resnet50(tree, "model.standardize=false")))
    # 2048 pooled features and a bias.
    assert sum(int(tf.size(weight)) for weight in network.trainable_weights) == 2048 + 1
    assert network.count_params() == 23_587_712 + 2049


def test_training_moves_the_head_and_nothing_else(settings, network, pixels):
    before = [array.copy() for array in network.get_layer("resnet50").get_weights()]
    head = network.get_layer("head").get_weights()
    model.compile_model(network, settings.train, model.cyclical_rate(settings.train, 64))
    network.fit(pixels, np.array([[0], [1], [0], [1], [0], [1]]), epochs=2, verbose=0)
    after = network.get_layer("resnet50").get_weights()
    assert len(before) == 318 and all((old == new).all() for old, new in zip(before, after))
    assert not (head[0] == network.get_layer("head").get_weights()[0]).all()


def test_preprocessing_inside_the_model_is_that_of_keras_applications(network, pixels):
    reference = keras.applications.ResNet50(include_top=False, weights=None, pooling="avg", input_shape=(32, 32, 3))
    reference.set_weights(network.get_layer("resnet50").get_weights())
    expected = reference(keras.applications.resnet50.preprocess_input(pixels.copy()), training=False)
    np.testing.assert_allclose(model.pooled(network)(pixels), expected, rtol=1e-5, atol=1e-4)


def test_the_base_runs_in_inference_mode_even_in_training(network, pixels):
    np.testing.assert_array_equal(network(pixels, training=True), network(pixels, training=False))


@pytest.mark.parametrize("step, rate", [(0, 2e-4), (300, 7e-3), (600, 2e-4), (900, 2e-4 + 6.8e-3 / 2), (150, 3.6e-3)])
def test_the_cyclical_rate_at_foot_peak_and_next_foot(step, rate):
    train = config.load_settings(None, ["train.batch_size=64"]).train
    schedule = model.cyclical_rate(train, 6400 + 63)  # 3 epochs of 6463 // 64 = 100 steps
    assert float(schedule(step)) == pytest.approx(rate, rel=1e-5)


def test_the_cyclical_rate_against_its_formula():
    train = config.load_settings(None, ["train.batch_size=10", "train.step_size_epochs=2"]).train
    schedule = model.cyclical_rate(train, 105)
    for step in range(0, 200, 7):
        cycle = np.floor(1 + step / (2 * 20))
        x = abs(step / 20 - 2 * cycle + 1)
        expected = 2e-4 + (7e-3 - 2e-4) * max(0, 1 - x) / 2 ** (cycle - 1)
        assert float(schedule(step)) == pytest.approx(expected, rel=1e-4)


def test_fewer_rows_than_a_batch_still_have_a_rate():
    assert float(model.cyclical_rate(config.load_settings().train, 3)(1)) > 0


def test_standardised_features_have_mean_0_and_deviation_1(network, pixels):
    features = np.random.RandomState(1).gamma(2.0, 3.0, (500, 2048)).astype(np.float32)
    features[:, 7] = 0
    model.standardize(network, *statistics(features))
    out = network.get_layer("standardize")(features).numpy()
    assert np.abs(out.mean(axis=0)).max() < 1e-3
    assert np.abs(np.delete(out, 7, axis=1).std(axis=0) - 1).max() < 1e-3
    # A feature that was dead in training does not shout when it wakes up.
    features[0, 7] = 1
    assert network.get_layer("standardize")(features).numpy()[0, 7] < 50


def test_base_weights_come_from_a_file_that_keras_wrote(tree, tmp_path):
    keras.utils.set_random_seed(5)
    base = keras.applications.ResNet50(include_top=False, weights=None)
    base.save(tmp_path / "mine.h5")
    settings = config.load_settings(None, resnet50(tree, f"model.weights={tmp_path}/mine.h5"))
    network = model.build(settings)
    for ours, theirs in zip(network.get_layer("resnet50").get_weights(), base.get_weights()):
        np.testing.assert_array_equal(ours, theirs)
    assert model.weights_hash(network.get_layer("resnet50")) == model.weights_hash(base)


def test_the_hash_of_the_weights_is_that_of_their_bytes_in_order(tree):
    """Caches, checkpoints and runs of earlier versions hold it."""
    network = model.build(config.load_settings(None, resnet50(tree, "model.standardize=true")))
    content = b"".join(array.tobytes() for array in network.get_weights())
    assert model.weights_hash(network) == hashlib.sha256(content).hexdigest()


def test_an_untrained_base_is_the_same_for_every_seed_and_the_head_is_not(tree):
    first, second = (
        model.build(config.load_settings(None, resnet50(tree, f"data.seed={seed}"))) for seed in (0, 1)
    )
    assert model.weights_hash(first.get_layer("resnet50")) == model.weights_hash(second.get_layer("resnet50"))
    assert not (first.get_layer("head").get_weights()[0] == second.get_layer("head").get_weights()[0]).all()


def fill(path, change):
    with h5py.File(path, "w") as file:
        change(file)


def test_code_in_a_weights_file_is_not_looked_at(tree, tmp_path):
    """The file of a whole model with a Lambda in it: its weights fit, its layers are never built."""
    base = keras.applications.ResNet50(include_top=False, weights=None)
    base.save(tmp_path / "mine.h5")
    with h5py.File(tmp_path / "mine.h5", "a") as file:
        file.attrs["model_config"] = '{"class_name": "Lambda", "config": {"function": "no code"}}'
    network = model.build(config.load_settings(None, resnet50(tree, f"model.weights={tmp_path}/mine.h5")))
    assert model.weights_hash(network.get_layer("resnet50")) == model.weights_hash(base)


def test_weights_of_another_format_are_refused(tree, tmp_path):
    (tmp_path / "mine.keras").write_text("")
    with pytest.raises(InputError, match="the path of a .h5, got .*mine.keras"):
        model.build(config.load_settings(None, resnet50(tree, f"model.weights={tmp_path}/mine.keras")))


def with_top(path):
    keras.applications.ResNet50(weights=None).save(path)


@pytest.mark.parametrize("write, words", [
    (None, "no file .*imagenet, random or the path"),
    (lambda path: path.write_text("no weights"), "does not hold the weights of ResNet50 without top"),
    (with_top, "does not hold the weights of ResNet50 without top"),
    (lambda path: fill(path, lambda file: file.__setitem__("a", h5py.ExternalLink("b", "/"))), "a in / is a link to elsewhere"),
    (lambda path: fill(path, lambda file: file.create_dataset("a", (10**6, 10**6), "f4")), "/a must take 4000000000000 bytes in the file, got 0"),
    (lambda path: fill(path, lambda file: file.attrs.__setitem__("layer_names", [1, 2])), "does not hold the weights"),
])  # fmt: skip
def test_wrong_weights_are_refused(tree, tmp_path, write, words):
    if write:
        write(tmp_path / "mine.h5")
    with pytest.raises(InputError, match=words):
        model.build(config.load_settings(None, resnet50(tree, f"model.weights={tmp_path}/mine.h5")))


def test_imagenet_weights_are_fetched_by_keras_and_loaded(tree, tmp_path, monkeypatch):
    keras.utils.set_random_seed(6)
    base = keras.applications.ResNet50(include_top=False, weights=None)
    base.save(tmp_path / "fetched.h5")
    asked = []
    monkeypatch.setattr(
        keras.utils, "get_file", lambda *args, **kwargs: asked.append((args, kwargs)) or tmp_path / "fetched.h5"
    )
    network = model.build(config.load_settings(None, resnet50(tree, "model.weights=imagenet")))
    (name, url), options = asked[0]
    assert url.endswith(name) and options == {"cache_subdir": "models", "file_hash": "4d473c1dd8becc155b73f8504c6f6626"}
    np.testing.assert_array_equal(network.get_layer("resnet50").get_weights()[0], base.get_weights()[0])


def test_offline_the_three_ways_out_are_named(tree, monkeypatch):
    def offline(*args, **kwargs):
        raise Exception("URL fetch failure on https://...: None -- [Errno -2] Name or service not known")

    monkeypatch.setattr(keras.utils, "get_file", offline)
    with pytest.raises(
        InputError,
        match=r"Name or service not known\).*network; put resnet50_weights.*notop.h5 into ~/\.keras/models.*model\.weights=FILE\.h5 or model\.weights=random",
    ):
        model.build(config.load_settings(None, resnet50(tree, "model.weights=imagenet")))


@pytest.mark.bfloat16
def test_reduced_precision_keeps_features_and_output_in_float32(tree, pixels):
    exact = model.pooled(model.build(config.load_settings(None, resnet50(tree))))(pixels).numpy()
    assert precision.use_device("bfloat16").endswith("bfloat16")
    network = model.build(config.load_settings(None, resnet50(tree)))
    features = model.pooled(network)(pixels)
    assert features.dtype == network(pixels).dtype == tf.float32
    assert np.abs(features - exact).max() < 0.02 * np.abs(exact).max()


@pytest.mark.parametrize("share", [0.0, 0.05, 0.8])
def test_in_the_balanced_loss_both_classes_count_equally(share):
    """Over batches of unequal sizes, some without a class."""
    rng = np.random.RandomState(0)
    labels, probability = (rng.rand(101, 1) < share).astype(np.float32), rng.uniform(0.01, 0.99, (101, 1))
    metric = model.BalancedLoss()
    metric.update_state(np.ones((3, 1), np.float32), tf.fill((3, 1), 0.2))
    metric.reset_state()
    for start in range(0, 101, 16):
        metric.update_state(labels[start : start + 16], tf.constant(probability[start : start + 16], tf.float32))
    losses = -np.log(np.where(labels == 1, probability, 1 - probability))
    expected = sum(losses[labels == label].mean() for label in (0, 1) if (labels == label).any()) / 2
    assert float(metric.result()) == pytest.approx(expected, abs=1e-6)
    assert share == 0 or abs(expected - losses.mean()) > 0.01
