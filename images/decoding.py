"""Image files to arrays: decoded and resized."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tensorflow as tf


def read(path: tf.Tensor, size: int) -> tf.Tensor:
    """One image as (size, size, 3), float32 RGB in whole numbers from 0 to 255, shrunk without aliasing."""
    return resize(tf.io.decode_png(tf.io.read_file(path), channels=3), size)


def resize(image: tf.Tensor, size: int) -> tf.Tensor:
    """A decoded image (height, width, 3), uint8 RGB, in the size and form that `read` gives."""
    image = tf.image.resize(image, (size, size), antialias=True)
    # Whole numbers, so that an image kept in 8 bits is the same image.
    return tf.ensure_shape(tf.clip_by_value(tf.round(image), 0, 255), (size, size, 3))


def decode(paths: list[Path], size: int) -> np.ndarray:
    """The images as `read` gives them, (n, size, size, 3), uint8, decoded on all cores."""
    images = tf.data.Dataset.from_tensor_slices([str(path) for path in paths])
    images = images.map(lambda path: tf.cast(read(path, size), tf.uint8), tf.data.AUTOTUNE)
    return np.concatenate(list(images.batch(32).as_numpy_iterator()))
