"""Grad-CAM: heat maps of the image parts that raise the score of a class, and overlays of image and map."""

from __future__ import annotations

import keras
import matplotlib
import numpy as np
import tensorflow as tf

from backbones import networks

BATCH = 32
# Blue, green and yellow differ from the pink and violet of the stain, also for readers who are colour-blind.
COLORMAP = matplotlib.colormaps["viridis"]
# Of the colour at the maximum of the heat, so that the tissue below stays visible.
OPACITY = 0.6


def heatmaps(network: keras.Model, images: np.ndarray, malignant: np.ndarray) -> np.ndarray:
    """A Grad-CAM heat map of each image for one class.

    Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization", 2017: the sum
    of the channels of the base's last convolution, each weighted by the spatial mean of the score's gradient; negative
    values become 0. The score of malignant is the logit, since the gradient of a saturated sigmoid vanishes; that of
    benign is its negative.

    Args:
        network: the whole model, of `model.build` or `checkpoint.load`.
        images: (n, size, size, 3), float32 RGB from 0 to 255.
        malignant: (n,), bool: a map for malignant where True, for benign where False.

    Returns:
        (n, size, size), float32, from 0 (no evidence for the class) to 1 (the image's maximum); all 0 for an image
        without any evidence.
    """
    signs = np.where(malignant, 1, -1).astype(np.float32)
    maps = np.zeros(images.shape[:3], np.float32)
    for start in range(0, len(images), BATCH):
        batch = slice(start, start + BATCH)
        heat = tf.image.resize(_class_activation(network, images[batch], signs[batch]), images.shape[1:3])[..., 0]
        maps[batch] = tf.math.divide_no_nan(heat, tf.reduce_max(heat, axis=(1, 2), keepdims=True))
    return maps


def _class_activation(network: keras.Model, images: np.ndarray, signs: np.ndarray) -> tf.Tensor:
    """The maps (n, height, width, 1) at the resolution of the base's last convolution, 0 or more."""
    before, lower, between, head = _parts(network)
    x = tf.convert_to_tensor(images)
    for layer in before:
        x = layer(x)
    # float32 from here on, also if the base computes in bfloat16.
    activation = x = tf.cast(lower(x, training=False), tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(activation)
        for layer in between:
            x = layer(x)
        score = signs[:, None] * (x @ head.kernel + head.bias)
    weights = tf.reduce_mean(tape.gradient(score, activation), axis=(1, 2), keepdims=True)
    return tf.nn.relu(tf.reduce_sum(weights * activation, axis=-1, keepdims=True))


def _parts(network: keras.Model) -> tuple[list, keras.Model, list, keras.layers.Dense]:
    """The layers before the base, the base to its last convolution, what follows up to the head, and the head."""
    _, *layers = network.layers
    (index,) = [index for index, layer in enumerate(layers) if isinstance(layer, keras.Model)]
    base, rest = layers[index], []
    if name := networks.last_convolution(base):
        last = base.get_layer(name).output
        base, rest = keras.Model(base.input, last), [keras.Model(last, base.output)]
    return layers[:index], base, [*rest, *layers[index + 1 : -1]], layers[-1]


def overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """An image with its heat map on top; the higher the heat, the more opaque the map.

    Args:
        image: (height, width, 3), RGB from 0 to 255.
        heat: (height, width), from 0 to 1.

    Returns:
        (height, width, 3), uint8 RGB; the unchanged image where the heat is 0.
    """
    opacity = OPACITY * heat[..., None]
    return np.rint((1 - opacity) * image + opacity * 255 * COLORMAP(heat)[..., :3]).astype(np.uint8)
