import keras
import numpy as np
import pytest
from tiny_tree import tiny_settings

import config
import model
from devices import precision
from evaluation import gradcam

pytestmark = pytest.mark.usefixtures("float32")
BOTH = np.array([True, False])


def by_hand(kernel, scale=1.0):
    """Pixels of 2 x 2, a base whose two channels are red and green - blue, pooling, head."""
    pixels = keras.Input((None, None, 3))
    base = keras.Model(pixels, keras.layers.Conv2D(2, 1, use_bias=False)(pixels), name="base")
    base.set_weights([np.array([[[[1, 0], [0, 1], [0, -1]]]], np.float32)])
    images = keras.Input((2, 2, 3), name="image")
    x = keras.layers.Rescaling(1.0, name="preprocessing")(images)
    x = keras.layers.GlobalAveragePooling2D(name="pooling")(base(x))
    x = keras.layers.Rescaling(scale, name="standardize")(x)
    network = keras.Model(images, keras.layers.Dense(1, "sigmoid", name="head")(x))
    network.get_layer("head").set_weights([np.array(kernel, np.float32), np.array([0.5], np.float32)])
    return network


PIXELS = np.array([[[[2, 8, 0], [4, 0, 8]], [[0, 0, 2], [6, 3, 1]]]], np.float32)


def test_the_maps_are_those_worked_out_by_hand():
    # Channels of the base: red [[2, 4], [0, 6]], green - blue [[8, -8], [-2, 2]].
    # The logit is 3 mean(red) - mean(green - blue) + 0.5, so the gradient at each of 4 places is 3/4 and -1/4.
    # The sum 3/4 red - 1/4 (green - blue) is [[-0.5, 5], [0.5, 4]]: malignant max(0, it) / 5, benign max(0, -it) / 0.5.
    maps = gradcam.heatmaps(by_hand([[3], [-1]]), np.repeat(PIXELS, 2, axis=0), BOTH)
    assert maps.dtype == np.float32
    np.testing.assert_allclose(maps[0], [[0, 1], [0.1, 0.8]], atol=1e-6)
    np.testing.assert_allclose(maps[1], [[1, 0], [0, 0]], atol=1e-6)


def test_a_saturated_sigmoid_has_the_same_map():
    maps = gradcam.heatmaps(by_hand([[3], [-1]], 1e4), PIXELS, BOTH[:1])
    np.testing.assert_allclose(maps[0], [[0, 1], [0.1, 0.8]], atol=1e-6)


def test_an_image_without_evidence_for_the_class_has_an_empty_map():
    maps = gradcam.heatmaps(by_hand([[1], [0]]), np.repeat(PIXELS, 2, axis=0), BOTH)
    assert maps[0].max() == 1 and (maps[1] == 0).all()


def test_any_number_of_images_goes_through_in_batches(monkeypatch):
    network = by_hand([[3], [-1]])
    images = np.random.RandomState(0).randint(0, 256, (5, 2, 2, 3)).astype(np.float32)
    malignant = np.array([True, False, True, True, False])
    alone = [gradcam.heatmaps(network, image[None], flag[None])[0] for image, flag in zip(images, malignant)]
    monkeypatch.setattr(gradcam, "BATCH", 2)
    np.testing.assert_allclose(gradcam.heatmaps(network, images, malignant), alone, atol=1e-6)
    assert gradcam.heatmaps(network, images[:0], malignant[:0]).shape == (0, 2, 2)


@pytest.fixture(scope="module")
def network(tree):
    keras.mixed_precision.set_global_policy("float32")
    return model.build(config.load_settings(None, tiny_settings(tree, "model.base=resnet50", "data.image_size=224")))


@pytest.fixture(scope="module")
def patched():
    """An image of faint noise, and the same with a checkered patch at its upper left."""
    plain = np.random.RandomState(0).normal(200, 3, (224, 224, 3))
    patch = plain.copy()
    patch[32:96, 32:96] = 255 * (np.indices((64, 64)).sum(axis=0)[..., None] // 4 % 2)
    return np.stack([plain, patch]).clip(0, 255).astype(np.float32)


@pytest.fixture(scope="module")
def trained(network, patched):
    """The network with a head whose score grows with what the patch changes in the pooled features."""
    plain, patch = model.pooled(network).predict(patched, verbose=0)
    network.get_layer("standardize").set_weights([plain, np.ones(2048), np.array(0)])
    network.get_layer("head").set_weights([(patch - plain)[:, None], np.zeros(1)])
    return network


@pytest.fixture
def other_head(trained):
    """The same network with a head that weighs the features at random, for one test."""
    weights = trained.get_layer("head").get_weights()
    trained.get_layer("head").set_weights([np.random.RandomState(1).normal(size=(2048, 1)), weights[1]])
    yield trained
    trained.get_layer("head").set_weights(weights)


@pytest.fixture(scope="module")
def trained_map(trained, patched):
    return gradcam.heatmaps(trained, patched[1:], BOTH[:1])[0]


def test_a_patch_that_drives_the_score_lights_up(trained_map):
    inside = trained_map[32:96, 32:96].mean()
    outside = (trained_map.sum() - inside * 64 * 64) / (224 * 224 - 64 * 64)
    row, column = np.unravel_index(trained_map.argmax(), trained_map.shape)
    assert inside > 2 * outside and 32 <= row < 96 and 32 <= column < 96


def test_the_map_follows_the_heads_weights(trained_map, other_head, patched):
    assert np.abs(gradcam.heatmaps(other_head, patched[1:], BOTH[:1])[0] - trained_map).max() > 0.3


def test_benign_and_malignant_light_up_elsewhere(other_head, patched):
    malignant, benign = gradcam.heatmaps(other_head, patched[[1, 1]], BOTH)
    assert malignant.max() == benign.max() == 1
    assert np.corrcoef(malignant.ravel(), benign.ravel())[0, 1] < 0


@pytest.mark.bfloat16
def test_mixed_precision_gives_nearly_the_same_map(tree, trained, trained_map, patched):
    precision.use_device("bfloat16")
    mixed = model.build(config.load_settings(None, tiny_settings(tree, "model.base=resnet50", "data.image_size=224")))
    mixed.set_weights(trained.get_weights())
    mixed_map = gradcam.heatmaps(mixed, patched[1:], BOTH[:1])[0]
    assert mixed.get_layer("pooling").input.dtype == "bfloat16" and mixed_map.dtype == np.float32
    np.testing.assert_allclose(mixed_map, trained_map, atol=0.1)


def test_an_overlay_leaves_cold_pixels_and_covers_hot_ones():
    image = np.full((1, 3, 3), 100, np.uint8)
    shown = gradcam.overlay(image, np.array([[0, 0.5, 1]], np.float32))
    assert shown.dtype == np.uint8 and shown[0, 0].tolist() == [100, 100, 100]
    # The last colour of viridis is (253, 231, 37) to a rounding error.
    np.testing.assert_allclose(shown[0, 2], 0.4 * 100 + 0.6 * np.array([253, 231, 37]), atol=1)
    assert not (shown[0, 1] == shown[0, 2]).all() and not (shown[0, 1] == shown[0, 0]).all()
