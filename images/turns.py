"""The eight exact turns of a square image: quarter turns and mirrors, which move pixels and interpolate none."""

from __future__ import annotations

import tensorflow as tf

COUNT = 8
# Random numbers for each image.
DRAWS = 1


def turn(images: tf.Tensor, numbers: tf.Tensor) -> tf.Tensor:
    """Turns each image.

    Args:
        images: (n, size, size, channels).
        numbers: (n,), integers from 0 to 7. 0 leaves the image; 4 or more transposes it, then an odd number mirrors it
            left to right, and 2, 3, 6 and 7 mirror it top to bottom.

    Returns:
        The same pixels in other places.
    """
    for bit, change in ((4, _transpose), (1, lambda images: images[:, :, ::-1]), (2, lambda images: images[:, ::-1])):
        chosen = tf.bitwise.bitwise_and(tf.cast(numbers, tf.int32), bit) > 0
        images = tf.where(chosen[:, None, None, None], change(images), images)
    return images


def drawn(draws: tf.Tensor) -> tf.Tensor:
    """The numbers (n,), int32, of turns from draws (n,), float32, -1 to 1: all equally likely."""
    return tf.minimum(tf.cast((draws + 1) * (COUNT / 2), tf.int32), COUNT - 1)


def _transpose(images: tf.Tensor) -> tf.Tensor:
    return tf.transpose(images, (0, 2, 1, 3))
