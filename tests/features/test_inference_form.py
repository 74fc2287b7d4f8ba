import keras
import numpy as np
import pytest
from lively import norms

from features import inference_form


def trained(network):
    """The network with BatchNorm statistics, scales and shifts as after a training."""
    rng = np.random.RandomState(0)
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            # Factors alone would leave the shifts and means at 0; the last array is the variance.
            *others, variance = layer.get_weights()
            layer.set_weights(
                [one + rng.normal(0, 0.2, one.shape) for one in others] + [variance * rng.uniform(0.5, 2)]
            )
    return network


def difference(one, other, images):
    expected = one(images, training=False).numpy()
    return np.abs(other(images, training=False).numpy() - expected).max() / np.abs(expected).max()


@pytest.fixture
def images():
    return np.random.RandomState(1).uniform(-100, 100, (2, 64, 64, 3)).astype(np.float32)


def test_a_folded_base_gives_the_same_features(images):
    """DenseNet has BatchNorm before its convolutions too; those are left. Others are in test_trained_networks.py."""
    base = trained(keras.applications.DenseNet121(include_top=False, weights=None, input_shape=(None, None, 3)))
    pixels = keras.Input((64, 64, 3))
    part = keras.Model(pixels, keras.layers.GlobalAveragePooling2D()(base(pixels, training=False)), name="pooling")
    before = [array.copy() for array in part.get_weights()]
    folded = inference_form.fold(part)
    assert difference(part, folded, images) < 1e-5
    assert norms(base) == 121 and norms(folded.layers[1]) == 62
    assert (folded.name, folded.output.shape) == (part.name, part.output.shape) and not folded.trainable_weights
    assert all(np.array_equal(one, other) for one, other in zip(part.get_weights(), before))


def test_a_convolution_that_others_read_too_keeps_its_kernel(images):
    pixels = keras.Input((64, 64, 3))
    convolved = keras.layers.Conv2D(4, 3, name="read_twice")(pixels)
    x = keras.layers.Add()([convolved, keras.layers.BatchNormalization()(convolved)])
    last = keras.layers.Conv2D(5, 3, name="also_an_output")(x)
    part = trained(keras.Model(pixels, [last, keras.layers.BatchNormalization()(last)]))
    folded = inference_form.fold(part)
    assert norms(folded) == norms(part) == 2
    for one, other in zip(part(images, training=False), folded(images, training=False)):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("bias, scale, center", [(True, False, True), (False, True, False), (True, False, False)])
def test_biases_scales_and_shifts_may_be_missing(images, bias, scale, center):
    pixels = keras.Input((64, 64, 3))
    options = {"use_bias": bias, "bias_initializer": "normal"}
    x = keras.layers.DepthwiseConv2D(3, depth_multiplier=2, **options)(pixels)
    x = keras.layers.BatchNormalization(scale=scale, center=center)(x)
    x = keras.layers.BatchNormalization(scale=scale, center=center)(keras.layers.Conv2D(7, 3, **options)(x))
    part = trained(keras.Model(pixels, x))
    folded = inference_form.fold(part)
    assert norms(folded) == 0 and difference(part, folded, images) < 1e-5


@pytest.mark.bfloat16
def test_a_part_in_bfloat16_can_be_folded_to_float32(images, float32):
    """Layers of a base, those of a Sequential in it among them, with the weights that they have."""
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    pixels = keras.Input((64, 64, 3))
    x = keras.layers.BatchNormalization()(keras.layers.Conv2D(4, 3)(pixels))
    x = keras.Sequential([keras.layers.Conv2D(5, 3, activation="relu"), keras.layers.Activation("relu")])(x)
    reduced = keras.Model(pixels, keras.layers.GlobalAveragePooling2D(dtype="float32")(x))
    keras.mixed_precision.set_global_policy("float32")
    folded = inference_form.fold(reduced, float32=True)
    layers = [inner for layer in folded.layers for inner in getattr(layer, "layers", [layer])]
    assert {layer.compute_dtype for layer in layers} == {"float32"}
    assert difference(folded, reduced, images) < 0.02
    assert inference_form.fold(reduced).layers[1].compute_dtype == "bfloat16"


def test_what_follows_a_folded_part_keeps_its_layers(images):
    pixels, features = keras.Input((64, 64, 3)), keras.Input((62, 62, 4))
    convolved = keras.layers.Conv2D(4, 3, name="convolution")(pixels)
    part = trained(keras.Model(pixels, keras.layers.BatchNormalization()(convolved)))
    head = keras.Model(features, keras.layers.Dense(1)(features), name="head_alone")
    composed = inference_form.compose(part, head)
    assert composed.name == "whole"
    assert [id(weight) for weight in composed.trainable_weights] == [id(weight) for weight in head.weights]
    expected = head(part(images, training=False))
    np.testing.assert_allclose(composed(images, training=True), expected, rtol=1e-4, atol=1e-4)
