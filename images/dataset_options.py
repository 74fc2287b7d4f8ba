"""The options of every tf.data pipeline."""

from __future__ import annotations

import tensorflow as tf


def without_autotuning(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """The same dataset, whose parallel steps use all cores from the start.

    TensorFlow's autotuning runs in a thread that sleeps for longer and longer, and the end of an iteration can wait
    for it: as long again as half the iteration was seen. `prefetch` then needs a number.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)
