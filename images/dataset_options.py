"""The options of this project's tf.data pipelines."""

from __future__ import annotations

import os

import tensorflow as tf

# Images that are decoded at the same time. TensorFlow's own choice without autotuning is 16 at most.
CORES = os.cpu_count()
# Batches that are computed at the same time, and that are ready while the model works.
BATCHES = 2


def without_autotuning(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """The same dataset, whose `map` and `prefetch` need numbers.

    TensorFlow's autotuning runs in a thread that sleeps for longer and longer. The end of an iteration can wait until
    it wakes, which took up to half as long as the iteration itself.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)
