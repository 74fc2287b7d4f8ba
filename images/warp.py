"""Augmentation: one affine map and one interpolation for each image."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

import config

# Random numbers that a warp takes: rotation, shear, zoom, flip, shift right and down.
DRAWS = 6


def warp(images: tf.Tensor, augment: config.Augment, draws: tf.Tensor) -> tf.Tensor:
    """Rotates, shears, zooms, shifts and mirrors each image, as one affine map and one interpolation.

    Args:
        images: (n, size, size, 3), float32.
        augment: the largest amounts; what is 0 or off does not happen.
        draws: (n, DRAWS), -1 to 1, which share of each amount an image gets.

    Returns:
        Images of the same shape; what comes in from beyond the border is its mirror image.
    """
    if not augment.active:
        return images
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=_transforms(images.shape[1], augment, draws),
        output_shape=tf.shape(images)[1:3],
        interpolation="BILINEAR",
        fill_mode="REFLECT",
        fill_value=0.0,
    )


def _transforms(size: int, augment: config.Augment, draws: tf.Tensor) -> tf.Tensor:
    """(n, 8): for each image the map from the place in the warped image to the place that it shows."""
    turn, slant, scale, mirror, right, down = tf.unstack(draws, DRAWS, axis=1)
    turn = turn * np.deg2rad(augment.rotation)
    slant = tf.tan(slant * np.deg2rad(augment.shear))
    # A zoom of 0.5 shows from 1/1.5 to 1.5 of the side, as far in as out.
    scale = (1.0 + augment.zoom) ** scale
    mirror = tf.where(mirror < 0, -1.0, 1.0) if augment.flip else tf.ones_like(mirror)
    # Rotation x shear x scale; x is mirrored last, so that the other amounts keep their meaning.
    cos, sin = scale * tf.cos(turn), scale * tf.sin(turn)
    a, b = cos * mirror, cos * slant - sin
    c, d = sin * mirror, sin * slant + cos
    middle = (size - 1) / 2
    x = middle + right * augment.shift * size - (a + b) * middle
    y = middle + down * augment.shift * size - (c + d) * middle
    return tf.stack([a, b, x, c, d, y, tf.zeros_like(a), tf.zeros_like(a)], axis=1)
