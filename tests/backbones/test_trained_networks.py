"""What loading, folding, training and fine-tuning change of a base, and what they leave.

Two bases are always tested, the others with `-m long`.
"""

import keras
import numpy as np
import pytest
from lively import enliven

import model
from backbones import networks
from backbones.table import BASES
from features import inference_form
from training import checkpoint, fine_tuning

pytestmark = pytest.mark.usefixtures("float32")
LABELS = np.array([[0], [1], [0], [1]])
ALWAYS = ("resnet50", "mobilenet_v2")


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=() if name in ALWAYS else pytest.mark.long) for name in BASES]
)
def name(request):
    return request.param


def test_weights_that_keras_wrote_are_loaded(network, fetched, tmp_path):
    base = model.base_of(network)
    kept = base.get_weights()
    fetched[0].save(tmp_path / "mine.h5")
    fetched[0].save_weights(tmp_path / "mine.weights.h5")
    for file in ("mine.h5", "mine.weights.h5"):
        base.set_weights([np.zeros_like(array) for array in kept])
        networks.load(base, str(tmp_path / file))
        assert all((one == other).all() for one, other in zip(base.get_weights(), kept))


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
