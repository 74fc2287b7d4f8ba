"""Pictures in: files -> decoded and resized -> batches; the training batches warped."""

from __future__ import annotations

from pathlib import Path

import config  # first, because it quiets TensorFlow

import numpy as np
import pandas as pd
import tensorflow as tf

# Random numbers that a warp takes: rotation, shear, zoom, flip, shift right and down.
DRAWS = 6


def train_dataset(rows: pd.DataFrame, folder: Path, settings: config.Settings, first: int = 0) -> tf.data.Dataset:
    """All epochs of training batches, one behind the other, each epoch in another order and otherwise warped.

    The order and the warp depend on the seed, the epoch and the step alone, so the same settings give the same
    batches whatever the number of cores.

    Args:
        rows: training rows with path and label_int.
        folder: the one that `audit.find_pictures` gives.
        settings: of the run.
        first: the epoch to begin with.

    Returns:
        Batches of images (n, size, size, 3), float32 RGB from 0 to 255, and labels (n, 1), float32; the last batch of
        an epoch may be smaller.
    """
    paths, labels = _paths(rows, folder), _labels(rows)

    def epoch(number: tf.Tensor) -> tf.data.Dataset:
        order = epoch_order(len(rows), settings.data.seed, number)
        pictures = tf.data.Dataset.from_tensor_slices((tf.gather(paths, order), tf.gather(labels, order)))
        pictures = pictures.map(lambda path, label: (read(path, settings.data.image_size), label), tf.data.AUTOTUNE)
        batches = pictures.batch(settings.train.batch_size).enumerate(start=1)
        return batches.map(
            lambda step, batch: (_warp_at(batch[0], settings, number, step), batch[1]),
            tf.data.AUTOTUNE,
        )

    return tf.data.Dataset.range(first, settings.epochs).flat_map(epoch).prefetch(tf.data.AUTOTUNE)


def eval_dataset(rows: pd.DataFrame, folder: Path, settings: config.Settings) -> tf.data.Dataset:
    """Every row once, in its order, unchanged, with its file name.

    Args:
        rows: rows with path, filename and label_int.
        folder: the one that `audit.find_pictures` gives.
        settings: of the run.

    Returns:
        Batches of file names (n,), images (n, size, size, 3), float32 RGB from 0 to 255, and labels (n, 1), float32.
    """
    pictures = tf.data.Dataset.from_tensor_slices((rows.filename.tolist(), _paths(rows, folder), _labels(rows)))
    pictures = pictures.map(
        lambda name, path, label: (name, read(path, settings.data.image_size), label), tf.data.AUTOTUNE
    )
    return pictures.batch(settings.train.batch_size).prefetch(tf.data.AUTOTUNE)


def without_names(batches: tf.data.Dataset) -> tf.data.Dataset:
    """The images and labels of `eval_dataset`, as Keras' `fit` wants them to validate with."""
    return batches.map(lambda name, image, label: (image, label))


def read(path: tf.Tensor, size: int) -> tf.Tensor:
    """One picture as (size, size, 3), float32 RGB in whole numbers from 0 to 255, shrunk without aliasing."""
    return resize(tf.io.decode_png(tf.io.read_file(path), channels=3), size)


def resize(image: tf.Tensor, size: int) -> tf.Tensor:
    """A decoded picture (height, width, 3), uint8 RGB, in the size and form that `read` gives."""
    image = tf.image.resize(image, (size, size), antialias=True)
    # Whole numbers, so that a picture kept in 8 bits is the same picture.
    return tf.ensure_shape(tf.clip_by_value(tf.round(image), 0, 255), (size, size, 3))


def decode(paths: list[Path], size: int) -> np.ndarray:
    """The pictures as `read` gives them, (n, size, size, 3), uint8, decoded on all cores."""
    images = tf.data.Dataset.from_tensor_slices([str(path) for path in paths])
    images = images.map(lambda path: tf.cast(read(path, size), tf.uint8), tf.data.AUTOTUNE)
    return np.concatenate(list(images.batch(32).as_numpy_iterator()))


def _warp_at(images: tf.Tensor, settings: config.Settings, epoch: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
    draws = tf.random.stateless_uniform((tf.shape(images)[0], DRAWS), seed(settings.data.seed, epoch, step), -1.0, 1.0)
    return warp(images, settings.augment, draws)


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


def epoch_order(rows: int, run_seed: int, epoch: tf.Tensor) -> tf.Tensor:
    """The order of the rows in an epoch, (rows,), int32; a function of seed and epoch alone."""
    return tf.random.experimental.stateless_shuffle(tf.range(rows), seed=seed(run_seed, epoch, 0))


def seed(run_seed: int, epoch: tf.Tensor, step: int | tf.Tensor) -> tf.Tensor:
    """The two integers from which TensorFlow's stateless functions draw at a step of an epoch; step 0 is its order."""
    return tf.stack([tf.cast(run_seed, tf.int64), tf.cast(epoch, tf.int64) * 2**32 + tf.cast(step, tf.int64)])


def _paths(rows: pd.DataFrame, folder: Path) -> tf.Tensor:
    return tf.constant([str(folder / path) for path in rows.path])


def _labels(rows: pd.DataFrame) -> tf.Tensor:
    return tf.constant(rows.label_int.to_numpy(np.float32)[:, None])
