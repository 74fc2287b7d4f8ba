"""Augmentation of shape: all warps of an image combined into one affine map, so that it is interpolated only once."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

import config

# Random numbers for each image: rotation, shear, zoom, flip, shift right, shift down.
DRAWS = 6
# The settings of the section `augment` that are warps.
KINDS = {"rotation", "shift", "shear", "zoom", "flip"}


def warp(images: tf.Tensor, augment: config.Augment, draws: tf.Tensor) -> tf.Tensor:
    """Rotates, shears, zooms, shifts and mirrors each image.

    Args:
        images: (n, size, size, 3), float32.
        augment: the largest amount of each warp; 0 or off leaves it out.
        draws: (n, DRAWS), float32, -1 to 1: the share of each amount; a negative fourth one mirrors.

    Returns:
        Images of the same shape and type; beyond its border an image is continued by reflection.
    """
    if not any(augment.model_dump(include=KINDS).values()):
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
    """The maps from output to input coordinates, (n, 8), as ImageProjectiveTransformV3 takes them."""
    turn, slant, scale, mirror, right, down = tf.unstack(draws, DRAWS, axis=1)
    turn = turn * np.deg2rad(augment.rotation)
    slant = tf.tan(slant * np.deg2rad(augment.shear))
    # A zoom of 0.5 shows 1/1.5 to 1.5 of the side, so that zooming in and out are equally strong.
    scale = (1.0 + augment.zoom) ** scale
    mirror = tf.where(mirror < 0, -1.0, 1.0) if augment.flip else tf.ones_like(mirror)
    # Rotation x shear x scale; the mirroring comes last, so that it does not change the meaning of the other amounts.
    cos, sin = scale * tf.cos(turn), scale * tf.sin(turn)
    a, b = cos * mirror, cos * slant - sin
    c, d = sin * mirror, sin * slant + cos
    middle = (size - 1) / 2
    x = middle + right * augment.shift * size - (a + b) * middle
    y = middle + down * augment.shift * size - (c + d) * middle
    return tf.stack([a, b, x, c, d, y, tf.zeros_like(a), tf.zeros_like(a)], axis=1)
