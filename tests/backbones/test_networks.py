"""Every base of the table: what it is for Keras, that it stays frozen, and what is read and drawn of it.

What a base needs is built once; the whole way of a run, for each base, is in `test_runs.py`.
"""

import importlib

import keras
import numpy as np
import pytest
from lively import enliven
from tiny_tree import tiny_settings

import config
import model
from backbones import networks
from backbones.table import BASES
from devices import keras_stack
from evaluation import gradcam
from features import inference_form
from safety.errors import InputError
from training import checkpoint, fine_tuning

pytestmark = pytest.mark.usefixtures("float32")
LABELS = np.array([[0], [1], [0], [1]])


# ResNet101 has the layers of ResNet50, and more of them.
@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.long if name == "resnet101" else ()) for name in BASES],
)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def images(name):
    size = max(64, BASES[name].smallest)
    return np.random.RandomState(0).randint(0, 256, (4, size, size, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def settings(name, images, tree):
    overrides = [f"model.base={name}", f"data.image_size={images.shape[1]}", "model.standardize=false"]
    return config.load_settings(None, tiny_settings(tree, *overrides))


@pytest.fixture(scope="module")
def network(settings, images):
    keras.mixed_precision.set_global_policy("float32")
    network = model.build(settings)
    enliven(model.base_of(network), networks.preprocessing(settings.model.base)(images))
    return network


@pytest.fixture(scope="module")
def fetched(name, network, tmp_path_factory):
    """Keras' own network with the weights of ours, and what it asked for to fetch the ImageNet weights."""
    file, asked = tmp_path_factory.mktemp("keras") / "mine.weights.h5", []
    model.base_of(network).save_weights(file)
    fetcher = importlib.import_module(f"keras.src.utils.{'file' if keras_stack.KERAS_3 else 'data'}_utils")

    def get_file(fname, origin, cache_subdir, file_hash=None):
        asked.append((fname, origin, cache_subdir, file_hash))
        return file

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fetcher, "get_file", get_file)
        constructor = getattr(keras.applications, BASES[name].constructor)
        return constructor(include_top=False, weights="imagenet", input_shape=(None, None, 3)), asked


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


def test_weights_that_keras_wrote_are_loaded(network, fetched, tmp_path):
    base = model.base_of(network)
    kept = base.get_weights()
    fetched[0].save(tmp_path / "mine.h5")
    fetched[0].save_weights(tmp_path / "mine.weights.h5")
    for file in ("mine.h5", "mine.weights.h5"):
        base.set_weights([np.zeros_like(array) for array in kept])
        networks.load(base, str(tmp_path / file))
        assert all((one == other).all() for one, other in zip(base.get_weights(), kept))


def test_the_cache_has_the_features_of_training(network, images):
    """Features are computed by a form with folded BatchNorms; `fit` calls the whole network in training mode."""
    pooled = model.pooled(network)
    expected = pooled(images, training=True).numpy()
    difference = np.abs(inference_form.fold(pooled)(images, training=False) - expected).max()
    # Folding rounds differently, and untrained layers amplify that as they do one unit in the last place of the pixels.
    amplified = np.abs(pooled(images * np.float32(1 + 2**-23), training=False) - expected).max()
    assert difference < max(1e-5 * expected.max(), 4 * amplified)


def test_folding_changes_nothing_but_the_rounding(name, images):
    keras.mixed_precision.set_global_policy("float64")
    prepared = networks.preprocessing(name)(images[:2])
    base = networks.pretrained(name, "random")
    enliven(base, prepared)
    # One image, since convolutions by channel are slow in float64.
    prepared = prepared[:1]
    expected = base(prepared, training=False).numpy()
    difference = np.abs(inference_form.fold(base)(prepared, training=False) - expected).max()
    assert expected.dtype == np.float64 and difference < 1e-11 * np.abs(expected).max()


def test_a_step_of_training_moves_the_head_alone(settings, network, images):
    before = network.get_weights()
    np.testing.assert_allclose(network(images, training=True), network(images), atol=1e-5)
    model.compile_model(network, settings.train, model.cyclical_rate(settings.train, 4))
    network.run_eagerly = True
    network.fit(images, LABELS, verbose=0)
    changed = [not (old == new).all() for old, new in zip(before, network.get_weights())]
    assert changed == [False] * (len(before) - 2) + [True, True]


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


def test_fine_tuning_moves_the_last_block_without_its_batchnorm(name, settings, network, images):
    base, block = model.base_of(network), BASES[name].blocks[-1]
    kept = network.get_weights()
    layers = [layer.get_weights() for layer in base.layers]
    expected = network(images).numpy()
    fine_tuning.unfreeze(network, block)
    above, features = fine_tuning.above(network, block), fine_tuning.below(network, block)(images)
    np.testing.assert_allclose(above(features, training=True), expected, atol=1e-5)
    model.compile_model(
        above, settings.train, fine_tuning.rate(settings.train.model_copy(update={"fine_tune_lr": 1.0}))
    )
    above.run_eagerly = True
    above.fit(features, LABELS, verbose=0)
    moved = {
        layer.name
        for layer, old in zip(base.layers, layers)
        if any((one != other).any() for one, other in zip(layer.get_weights(), old))
    }
    first = networks.start(base, block)
    allowed = [layer for layer in base.layers[first:] if layer.weights]
    norms = {layer.name for layer in allowed if isinstance(layer, keras.layers.BatchNormalization)}
    assert moved == {layer.name for layer in allowed} - norms
    base.trainable = False
    network.set_weights(kept)


@pytest.mark.long
def test_a_checkpoint_predicts_what_was_saved(settings, network, images, tmp_path):
    checkpoint.save(network, tmp_path / "best_model.keras", {"settings": settings.model_dump(), "split_sha256": "abc"})
    loaded, _ = checkpoint.load(tmp_path / "best_model.keras")
    np.testing.assert_array_equal(loaded(images), network(images))


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
