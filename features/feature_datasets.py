"""Batches of cached features for training and evaluation, and the mean and variance of features."""

from __future__ import annotations

import functools
import tempfile
import weakref

import keras
import numpy as np
import tensorflow as tf
from sklearn.preprocessing import StandardScaler

import config
from features.extraction import Features
from images import image_datasets
from images.dataset_options import without_autotuning
from safety import errors

# Rows that are read at a time where all rows are read once.
PART = 4096
# Bytes, of the tensors of TensorFlow in memory.
ALIGNMENT = 64


def statistics(array: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance (width,) of features; each image and view counts once, whatever its number of rows.

    Args:
        array: (any number, width), as in `Features`; read in parts.
        places: of the features to take, in any shape; repeats count once.
    """
    scaler = StandardScaler()
    places = np.unique(places)
    for start in range(0, len(places), PART):
        scaler.partial_fit(array[places[start : start + PART]])
    return scaler.mean_, scaler.var_


def transformed(layer: keras.layers.Layer, features: Features) -> Features:
    """The features after a layer that treats each row alone and keeps its shape, computed once, not in every epoch.

    They are in a temporary file, which is deleted with the array, so that they never have to fit into memory.

    Raises:
        OSError: the folder of temporary files is full; names it.
    """
    used, places = np.unique(features.places, return_inverse=True)
    with errors.naming(tempfile.gettempdir()), tempfile.TemporaryFile() as file:
        for start in range(0, len(used), PART):
            file.write(layer(features.array[used[start : start + PART]]).numpy())
        file.flush()
        array = np.memmap(file, np.float32, "r", shape=(len(used), *features.array.shape[1:]))
    return Features(array, places.reshape(features.places.shape), features.labels)


def train_dataset(features: Features, settings: config.Settings, first: int | tf.Tensor = 0) -> tf.data.Dataset:
    """All epochs of training batches, in the order of `image_datasets.train_dataset`, each row in a random view.

    Args:
        features: of the training rows.
        settings: of the run.
        first: the epoch to begin with, from 0.

    Returns:
        Batches of places in `features.array` (n,) for `read`, and labels (n, 1), float32; the last batch of an epoch
        may be smaller.
    """
    rows, views = features.places.shape
    places, labels = tf.constant(features.places), tf.constant(features.labels[:, None], tf.float32)

    def epoch(number: tf.Tensor) -> tf.data.Dataset:
        order = image_datasets.epoch_order(rows, settings.data.seed, number)
        view = tf.random.stateless_uniform(
            (rows,), image_datasets.seed(settings.data.seed, number, 1), 0, views, tf.int32
        )
        chosen, shuffled = tf.gather_nd(places, tf.stack([order, view], axis=1)), tf.gather(labels, order)
        return _batches(chosen, shuffled, settings.train.batch_size)

    return without_autotuning(tf.data.Dataset.range(first, settings.epochs).flat_map(epoch))


def eval_dataset(features: Features, batch_size: int) -> tf.data.Dataset:
    """The first view of every row once, in the order of the rows.

    Args:
        features: of the rows.
        batch_size: rows in a batch; the last one may be smaller.

    Returns:
        Batches of features (n, *shape) and labels (n, 1), float32.
    """
    places, labels = tf.constant(features.places[:, 0]), tf.constant(features.labels[:, None], tf.float32)
    batches = _batches(places, labels, batch_size)
    loaded = batches.map(lambda places, labels: (read(features.array, places), labels))
    return without_autotuning(loaded.prefetch(1))


def _batches(places: tf.Tensor, labels: tf.Tensor, size: int) -> tf.data.Dataset:
    """Slices of `size` rows; with an element for each row, batching would take longer than a step."""
    rows = places.shape[0]
    whole = rows - rows % size
    slices = [tf.reshape(tensor[:whole], (-1, size, *tensor.shape[1:])) for tensor in (places, labels)]
    rest = tf.data.Dataset.from_tensors((places[whole:], labels[whole:])).take(min(1, rows - whole))
    return tf.data.Dataset.from_tensor_slices(tuple(slices)).concatenate(rest)


def views_as_rows(features: Features) -> Features:
    """The same features with each view as a row of its own: all views of the first row, then those of the second."""
    views = features.places.shape[1]
    return Features(features.array, features.places.reshape(-1, 1), np.repeat(features.labels, views))


def read(array: np.ndarray, places: tf.Tensor) -> tf.Tensor:
    """The features (n, *shape) at places (n,) of `Features.array`, which the caller must keep."""
    # From the memory map, some batches at a time, so that the features never have to fit into memory. TensorFlow keeps
    # the function for good, and would keep the array with it.
    gather = functools.partial(_take, weakref.ref(array))
    gathered = tf.numpy_function(gather, [places], tf.float32, stateful=False)
    return tf.ensure_shape(gathered, (None, *array.shape[1:]))


def _take(kept: weakref.ref[np.ndarray], places: np.ndarray) -> np.ndarray:
    """A copy of the features at places (n,), where TensorFlow takes it without a second copy: at a multiple of 64."""
    array = kept()
    if len(places) and not 0 <= places.min() <= places.max() < len(array):
        raise IndexError(f"places must be from 0 to {len(array) - 1}, got {places.min()} to {places.max()}")
    size = len(places) * array[0].nbytes
    memory = np.empty(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    taken = memory[start : start + size].view(np.float32).reshape(len(places), *array.shape[1:])
    # With `mode` by default NumPy would copy twice.
    return array.take(places, axis=0, out=taken, mode="clip")
