"""The batches of a training, and a model that takes many of its steps in one call from Python."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from images.dataset_options import without_autotuning

# Fills up a smaller batch beside larger ones. Not -1, which NumPy and pandas give for "not found".
NO_PLACE = np.iinfo(np.int64).min


class Batches(NamedTuple):
    """The batches of a training.

    Attributes:
        train_from: gives the training batches of all epochs from one on, as inputs and labels; the last batch of an
            epoch may be smaller.
        steps: training batches in an epoch.
        valid: the validation batches, or None to train without validation.
        valid_steps: their number.
        load: reads what the model takes, where `train_from` gives only the places of the rows in the feature cache.
        arrays: the features that are read, which live as long as these batches.
    """

    train_from: Callable[[int | tf.Tensor], tf.data.Dataset]
    steps: int
    valid: tf.data.Dataset | None
    valid_steps: int
    load: Callable[[tf.Tensor], tf.Tensor] = tf.identity
    arrays: tuple[np.ndarray, ...] = ()

    def one_by_one(self, first: int) -> tf.data.Dataset:
        """The training batches of all epochs from one on: inputs and labels."""
        return self.train_from(first).map(lambda inputs, labels: (self.load(inputs), labels)).prefetch(1)

    def many_at_once(self, epochs: range, count: int) -> tf.data.Dataset:
        """The same, up to `count` batches of one epoch in each element: all inputs, all labels, the end of each batch.

        Reading the rows of many batches at once takes a fraction of the time. The inputs must be places.
        """

        def epoch(number: tf.Tensor) -> tf.data.Dataset:
            batches = self.train_from(number).take(self.steps)
            return batches.padded_batch(count, padding_values=(tf.constant(NO_PLACE, tf.int64), 0.0))

        def load(places: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, ...]:
            real = places != NO_PLACE
            return self.load(places[real]), labels[real], tf.cumsum(tf.math.count_nonzero(real, axis=1))

        numbers = tf.data.Dataset.range(epochs.start, epochs.stop)
        return without_autotuning(numbers.flat_map(epoch).map(load).prefetch(1))


class ManySteps(keras.Model):
    """A model that takes many steps in one call from Python.

    It is for models whose step is shorter than its call and its metrics. The steps are those of Keras, one after
    another. The metrics, which must be sums over the rows, are computed once in a call.
    """

    _in_step = False

    def create_variables(self) -> None:
        """Creates the variables of loss and metrics, since TensorFlow traces twice what creates variables."""
        # Of one row; Keras resets the metrics before each epoch.
        self.test_step((tf.zeros((1, *self.input_shape[1:])), tf.zeros((1, 1))))

    def make_train_function(self, force: bool = False) -> Callable:
        """The function that `fit` calls with the iterator of `Batches.many_at_once`; it returns the metrics."""
        if force or self.train_function is None:
            # AutoGraph would first rewrite this code, which takes longer than all else before the first step.
            self.train_function = tf.function(lambda iterator: self._train_steps(*next(iterator)), autograph=False)
        return self.train_function

    def _train_steps(self, inputs: tf.Tensor, labels: tf.Tensor, ends: tf.Tensor) -> dict[str, tf.Tensor]:
        steps = tf.size(ends)

        def step(number: tf.Tensor, start: tf.Tensor, outputs: tf.TensorArray) -> tuple:
            rows = slice(start, ends[number])
            return number + 1, ends[number], outputs.write(number, self.train_step((inputs[rows], labels[rows])))

        outputs = tf.TensorArray(tf.float32, steps, element_shape=(None, 1), infer_shape=False)
        self._in_step = True
        _, _, outputs = tf.while_loop(lambda number, *_: number < steps, step, (0, tf.constant(0, tf.int64), outputs))
        self._in_step = False
        return self.compute_metrics(inputs, labels, outputs.concat())

    def compute_metrics(
        self, x: tf.Tensor, y: tf.Tensor, y_pred: tf.Tensor, sample_weight: tf.Tensor | None = None
    ) -> dict[str, tf.Tensor] | tf.Tensor:
        """Updates and returns the metrics; within a step, of which Keras' `train_step` returns this, the outputs."""
        return y_pred if self._in_step else super().compute_metrics(x, y, y_pred, sample_weight)
