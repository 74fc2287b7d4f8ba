"""The tf.data pipelines: files are decoded, resized and batched; training batches are shuffled and augmented too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import tensorflow as tf

import config
from images import augmentation, decoding, stain_normalization, turns, warp
from images.dataset_options import BATCHES, CORES, without_autotuning

# Added to the step in the seed of the draws for turns and colours; no epoch has so many steps.
OTHER_DRAWS = 2**31


def train_dataset(rows: pd.DataFrame, folder: Path, settings: config.Settings, first: int = 0) -> tf.data.Dataset:
    """The training batches of all epochs, in sequence; each epoch has another order and other augmentations.

    Order and augmentation depend only on the seed, the epoch and the step, so the same settings give the same batches
    on any number of cores.

    Args:
        rows: training rows with path and label_int.
        folder: what `audit.image_folder` returns.
        settings: of the run.
        first: the first epoch to yield, counted from 0.

    Returns:
        Batches of images (n, size, size, 3), float32 RGB from 0 to 255, and labels (n, 1), float32; the last batch of
        an epoch may be smaller.
    """
    paths, labels = _paths(rows, folder), _labels(rows)

    def epoch(number: tf.Tensor) -> tf.data.Dataset:
        order = epoch_order(len(rows), settings.data.seed, number)
        images = tf.data.Dataset.from_tensor_slices((tf.gather(paths, order), tf.gather(labels, order)))
        images = images.map(lambda path, label: (_read(path, settings.data), label), CORES)
        batches = images.batch(settings.train.batch_size).enumerate(start=1)
        return batches.map(
            lambda step, batch: (_augment_at(batch[0], settings, number, step), batch[1]),
            BATCHES,
        )

    return without_autotuning(tf.data.Dataset.range(first, settings.epochs).flat_map(epoch).prefetch(BATCHES))


def eval_dataset(rows: pd.DataFrame, folder: Path, settings: config.Settings) -> tf.data.Dataset:
    """Every row once, in order and without augmentation, with its file name, so that no prediction loses its image.

    Args:
        rows: rows with path, filename and label_int.
        folder: what `audit.image_folder` returns.
        settings: of the run.

    Returns:
        Batches of file names (n,), images (n, size, size, 3), float32 RGB from 0 to 255, and labels (n, 1), float32.
    """
    images = tf.data.Dataset.from_tensor_slices((rows.filename.tolist(), _paths(rows, folder), _labels(rows)))
    images = images.map(lambda name, path, label: (name, _read(path, settings.data), label), CORES)
    return without_autotuning(images.batch(settings.train.batch_size).prefetch(BATCHES))


def without_names(batches: tf.data.Dataset) -> tf.data.Dataset:
    """The images and labels of `eval_dataset`, the form in which Keras' `fit` takes validation data."""
    return batches.map(lambda name, image, label: (image, label))


def in_views(batches: tf.data.Dataset, views: int, batch_size: int) -> tf.data.Dataset:
    """The first exact turns of each image, each a row of its own.

    Args:
        batches: of `without_names`.
        views: turns of an image, of which 0 is the image itself.
        batch_size: turned images in a batch; the last one may be smaller.

    Returns:
        Batches of images and labels: all turns of the first image, then those of the second.
    """

    def turned(images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        numbers = tf.tile(tf.range(views), [tf.shape(images)[0]])
        return turns.turn(tf.repeat(images, views, axis=0), numbers), tf.repeat(labels, views, axis=0)

    return batches.map(turned, BATCHES).unbatch().batch(batch_size).prefetch(1) if views > 1 else batches


def _read(path: tf.Tensor, data: config.Data) -> tf.Tensor:
    image = decoding.read(path, data.image_size)
    if data.stain == "none":
        return image
    normalised = tf.numpy_function(
        lambda pixels: stain_normalization.normalise(pixels, data), [image], tf.float32, stateful=False
    )
    return tf.ensure_shape(normalised, image.shape)


def _augment_at(images: tf.Tensor, settings: config.Settings, epoch: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
    def uniform(count: int, step: tf.Tensor) -> tf.Tensor:
        shape = (tf.shape(images)[0], count)
        return tf.random.stateless_uniform(shape, seed(settings.data.seed, epoch, step), -1.0, 1.0)

    # A seed of their own for all but the warp, so that its draws are those of earlier versions.
    draws = [uniform(warp.DRAWS, step), uniform(augmentation.DRAWS - warp.DRAWS, step + OTHER_DRAWS)]
    return augmentation.augment(images, settings.augment, tf.concat(draws, axis=1))


def epoch_order(rows: int, run_seed: int, epoch: tf.Tensor) -> tf.Tensor:
    """The order of the rows in an epoch, (rows,), int32; it depends only on the seed and the epoch."""
    return tf.random.experimental.stateless_shuffle(tf.range(rows), seed=seed(run_seed, epoch, 0))


def seed(run_seed: int, epoch: tf.Tensor, step: int | tf.Tensor) -> tf.Tensor:
    """The seed of TensorFlow's stateless random functions, (2,), int64; step 0 is for the order of the epoch."""
    return tf.stack([tf.cast(run_seed, tf.int64), tf.cast(epoch, tf.int64) * 2**32 + tf.cast(step, tf.int64)])


def _paths(rows: pd.DataFrame, folder: Path) -> tf.Tensor:
    return tf.constant([str(folder / path) for path in rows.path])


def _labels(rows: pd.DataFrame) -> tf.Tensor:
    return tf.constant(rows.label_int.to_numpy(np.float32)[:, None])
