"""From image files to arrays: decoding and resizing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tensorflow as tf

from images.dataset_options import CORES, without_autotuning


def read(path: tf.Tensor, size: int) -> tf.Tensor:
    """Decodes and resizes one PNG.

    Args:
        path: of the file, a scalar text.
        size: pixels of each side of the result.

    Returns:
        RGB, (size, size, 3), float32, integers from 0 to 255.
    """
    return resize(tf.io.decode_png(tf.io.read_file(path), channels=3), size)


def resize(image: tf.Tensor, size: int) -> tf.Tensor:
    """Resizes a decoded image, with antialiasing, as bilinear interpolation alone would alias.

    Args:
        image: RGB, (height, width, 3), uint8.
        size: pixels of each side of the result.

    Returns:
        As `read`.
    """
    image = tf.image.resize(image, (size, size), antialias=True)
    # Rounded, so that nothing changes when the image is stored as uint8.
    return tf.ensure_shape(tf.clip_by_value(tf.round(image), 0, 255), (size, size, 3))


def decode(paths: list[Path], size: int) -> np.ndarray:
    """Reads images as `read` does, on all cores.

    Args:
        paths: of the n files, at least one.
        size: pixels of each side of the result.

    Returns:
        RGB, (n, size, size, 3), uint8, in the order of `paths`.
    """
    images = tf.data.Dataset.from_tensor_slices([str(path) for path in paths])
    images = images.map(lambda path: tf.cast(read(path, size), tf.uint8), CORES)
    return np.concatenate(list(without_autotuning(images.batch(32)).as_numpy_iterator()))
