"""Every base of the table: what it is for Keras, its features, its heat map, and what it says of weights.

How it is trained is in `test_trained_networks.py`; the whole way of a run, for each base, in `test_runs.py`.
"""

import importlib

import keras
import numpy as np
import pytest
import tensorflow as tf

import config
import model
from backbones import networks
from backbones.table import BASES
from devices import keras_stack
from evaluation import gradcam
from features import engine, inference_form
from features.engine import BATCH
from safety.errors import InputError
from training import fine_tuning

pytestmark = pytest.mark.usefixtures("float32")


# ResNet101 has the layers of ResNet50, and more of them.
@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.long if name == "resnet101" else ()) for name in BASES],
)
def name(request):
    return request.param


def preprocessed(name, images):
    """What Keras' own function for this network makes of images."""
    module = importlib.import_module(getattr(keras.applications, BASES[name].constructor).__module__)
    return module.preprocess_input(images.copy())


def test_the_table_says_what_keras_builds_and_fetches(name, network, fetched):
    about, base = BASES[name], model.base_of(network)
    assert (base.name, base.output_shape[-1], base.count_params()) == (name, about.width, about.parameters)
    assert fetched[1] == [(about.file, networks.SERVER + about.weights, "models", about.digest)]


def test_pixels_lead_to_the_features_of_keras_applications(name, network, fetched, images):
    prepared = preprocessed(name, images)
    if not BASES[name].preprocesses:
        np.testing.assert_allclose(networks.preprocessing(name)(images), prepared, rtol=1e-5, atol=1e-5)
    expected = np.mean(fetched[0](prepared, training=False), axis=(1, 2))
    features = model.pooled(network)(images).numpy()
    assert 0.05 < features.std() < 50
    # Untrained layers amplify the last bits of the preprocessing.
    assert np.abs(features - expected).max() < 0.01 * features.std()


def test_the_cache_has_the_features_of_training(network, images):
    """`fit` calls the network in training mode, on batches of another size than those of the extraction."""
    pooled = model.pooled(network)
    features = keras.Input(pooled.output_shape[1:])
    unchanged = keras.Model(features, keras.layers.Activation("linear", dtype="float32")(features))
    in_training = tf.function(inference_form.compose(pooled, unchanged))(images, training=True)
    filled = np.zeros((BATCH, *images.shape[1:]), np.float32)
    filled[: len(images)] = images
    (cached,) = engine.compiled(pooled, "tensorflow")([filled])
    cached = cached[: len(images)]
    assert np.abs(in_training - cached).max() < 1e-5 * cached.max()
    # Both are folded. Keras' own layers round differently, and untrained layers amplify that as they do one unit in the
    # last place of the pixels.
    plain = pooled(images, training=True).numpy()
    amplified = np.abs(pooled(images * np.float32(1 + 2**-23), training=False) - plain).max()
    assert np.abs(cached - plain).max() < max(1e-5 * plain.max(), 4 * amplified)


def test_blocks_divide_the_base(name, network, images):
    assert networks.start(model.base_of(network), BASES[name].blocks[0]) > 1
    expected = network(images).numpy()
    for block in (BASES[name].blocks[0], BASES[name].blocks[-1]):
        below, above = fine_tuning.below(network, block), fine_tuning.above(network, block)
        np.testing.assert_allclose(above(below(images)), expected, atol=1e-5)
        assert {id(weight) for part in (below, above) for weight in part.weights} == {id(w) for w in network.weights}


def test_blocks_begin_one_after_another(name, network):
    starts = [networks.start(model.base_of(network), block) for block in BASES[name].blocks]
    assert starts == sorted(set(starts))


def test_the_heat_map_is_of_the_last_convolution(name, network, images):
    before, base, _, _ = gradcam._parts(network)
    maps = gradcam.heatmaps(network, np.repeat(images[:1], 2, axis=0), np.array([True, False]))
    assert maps.shape == (2, *images.shape[1:3]) and maps.max() == 1
    expected = "block5_conv3" if name == "vgg16" else None
    assert networks.last_convolution(model.base_of(network)) == (expected or "")
    assert len(before) == 1 and base.output_shape[-1] == BASES[name].width


def test_offline_the_file_is_named(name, network, monkeypatch):
    def offline(*args, **kwargs):
        raise Exception("URL fetch failure on https://...: None -- [Errno -2] Name or service not known")

    monkeypatch.setattr(keras.utils, "get_file", offline)
    with pytest.raises(InputError, match=rf"Name or service not known\).*put {BASES[name].file} into ~/\.keras/models"):
        networks.load(model.base_of(network), "imagenet")


def test_weights_of_another_network_are_refused_in_one_line(name, network, tmp_path):
    file = tmp_path / ("other.weights.h5" if keras_stack.KERAS_3 else "other.h5")
    networks.cnn().save_weights(file)
    with pytest.raises(
        InputError, match=f"does not hold the weights of {BASES[name].constructor} without top"
    ) as refused:
        networks.load(model.base_of(network), str(file))
    assert "\n" not in str(refused.value)


def test_images_that_are_too_small_are_refused():
    with pytest.raises(InputError, match="^data.image_size: must be at least 75 with base inception_v3, got 74$"):
        config.load_settings(None, ["model.base=inception_v3", "data.image_size=74"])
    config.load_settings(None, ["model.base=inception_v3", "data.image_size=75"])
