"""Grad-CAM: which parts of an image speak for a class, as heat maps and as overlays."""

from __future__ import annotations

import keras
import matplotlib
import numpy as np
import tensorflow as tf

BATCH = 32
# Blue, green and yellow stand out from the pink and violet of the stain, and under every common colour blindness.
COLORS = matplotlib.colormaps["viridis"]
# Of the colour where the heat is greatest, so that the tissue below can still be seen.
OPACITY = 0.6


def heatmaps(network: keras.Model, images: np.ndarray, malignant: np.ndarray) -> np.ndarray:
    """The parts of each image that raise the score of a class, by Grad-CAM.

    Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization", 2017: the
    channels of the base's output, weighted by the spatial mean of the score's gradient and summed; what is negative
    is 0. The score of malignant is the logit before the sigmoid, which has a gradient also where the sigmoid is
    saturated; that of benign is its negative.

    Args:
        network: the whole model, of `model.build` or `checkpoint.load`; its base is the one layer that is a model.
        images: (n, size, size, 3), float32 RGB from 0 to 255.
        malignant: (n,), bool, for each image whether the map is that of malignant; else it is that of benign.

    Returns:
        (n, size, size), float32: 1 at the greatest heat of each image, 0 where nothing speaks for the class; all 0
        if that is so everywhere.
    """
    signs = np.where(malignant, 1, -1).astype(np.float32)
    maps = np.zeros(images.shape[:3], np.float32)
    for start in range(0, len(images), BATCH):
        some = slice(start, start + BATCH)
        heat = tf.image.resize(_class_activation(network, images[some], signs[some]), images.shape[1:3])[..., 0]
        maps[some] = tf.math.divide_no_nan(heat, tf.reduce_max(heat, axis=(1, 2), keepdims=True))
    return maps


def _class_activation(network: keras.Model, images: np.ndarray, signs: np.ndarray) -> tf.Tensor:
    """The maps (n, height, width, 1) in the resolution of the base's output, from 0 up."""
    before, base, between, head = _parts(network)
    x = tf.convert_to_tensor(images)
    for layer in before:
        x = layer(x)
    # In float32 from here on, whatever the base computes in.
    activation = x = tf.cast(base(x, training=False), tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(activation)
        for layer in between:
            x = layer(x)
        score = signs[:, None] * (x @ head.kernel + head.bias)
    weights = tf.reduce_mean(tape.gradient(score, activation), axis=(1, 2), keepdims=True)
    return tf.nn.relu(tf.reduce_sum(weights * activation, axis=-1, keepdims=True))


def _parts(network: keras.Model) -> tuple[list, keras.Model, list, keras.layers.Dense]:
    """The layers before the base, the base, those between it and the head, and the head."""
    _, *layers = network.layers
    (place,) = [place for place, layer in enumerate(layers) if isinstance(layer, keras.Model)]
    return layers[:place], layers[place], layers[place + 1 : -1], layers[-1]


def overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """An image under its heat map: the hotter, the more of the colour.

    Args:
        image: (height, width, 3), RGB from 0 to 255.
        heat: (height, width), from 0 to 1.

    Returns:
        (height, width, 3), uint8 RGB; where the heat is 0 the image's own pixels.
    """
    opacity = OPACITY * heat[..., None]
    return np.rint((1 - opacity) * image + opacity * 255 * COLORS(heat)[..., :3]).astype(np.uint8)
