"""Trains on some images and predicts others, without looking at their labels: a training of a cross-validation."""

from __future__ import annotations

from typing import NamedTuple

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

import config
import model
from features import feature_datasets, source
from features.extraction import Features
from images import splits, stain_normalization
from safety import signals
from safety.errors import InputError
from training import callbacks, phases


class Prepared(NamedTuple):
    """What all trainings of a cross-validation share.

    Attributes:
        settings: of all of them.
        table: a row an image, with path, pixels, label and label_int, numbered from 0.
        network: of `model.build`.
        initial: the weights of the head before training.
        turned: the features of each image in `data.test_views` exact turns, of which 0 is the plain image, where a head
            alone is trained on cached ones, else None.
        trained_on: of `phases.train_features`, in the same case.
    """

    settings: config.Settings
    table: pd.DataFrame
    network: keras.Model
    initial: list[np.ndarray]
    turned: Features | None
    trained_on: Features | None


def prepare(network: keras.Model, table: pd.DataFrame, settings: config.Settings) -> Prepared:
    """Computes the features of all images, or reads them from the cache; arguments as in `Prepared`."""
    # Every head is a graph of its own, which TensorFlow's logger takes for a mistake.
    tf.get_logger().setLevel("ERROR")
    turned = trained_on = None
    if _head_alone(settings):
        turned = source.of(settings).pooled(network, table, turned=settings.data.test_views)
        trained_on = phases.train_features(network, table, settings)
    initial = model.head(network).get_weights()
    return Prepared(settings, table.reset_index(drop=True), network, initial, turned, trained_on)


def _head_alone(settings: config.Settings) -> bool:
    # A stain that is fitted on each training part gives each its own features.
    return settings.cached and not settings.fine_tuned and settings.data.stain == "none"


def fit(
    prepared: Prepared, train: np.ndarray, held_out: np.ndarray, epochs: list[int], every_epoch: bool = True
) -> tuple[keras.Model, np.ndarray]:
    """Trains a new head, or network, and predicts the images that are held out.

    Args:
        prepared: of `prepare`.
        train: numbers of the rows to train on; they are upsampled as in a run.
        held_out: numbers of the rows to predict.
        epochs: to train in each phase: of the head, and of the fine-tuning if there is one.
        every_epoch: whether to predict after each epoch, or after the last one alone.

    Returns:
        The whole network after the last epoch, and the probabilities of malignant (epochs, held out), or (1, held out),
        each the mean over `data.test_views` exact turns of the image.

    Raises:
        InputError: the loss became NaN or infinite.
    """
    network, plan = _plan(prepared, train, held_out)
    views = prepared.settings.data.test_views
    predicted: list[np.ndarray] = []
    for phase, count in zip(plan, epochs):
        if count == 0:
            continue
        phase.begin(None)
        # The predictions of each epoch are kept instead of its metrics.
        model.compile_model(phase.trained, prepared.settings.train, phase.rate, measured=False)
        shortened = phase._replace(
            epochs=range(phase.epochs.start, phase.epochs.start + count),
            # Keras would predict the images once more to compute its own loss.
            batches=phase.batches._replace(valid=None),
        )
        after_epoch = _AfterEpoch(phase, views, predicted if every_epoch else None)
        with signals.deferred() as received:
            phases.fit(shortened, [after_epoch, callbacks.StopOnSignal(received)], phase.epochs.start, verbose=0)
        last = phase
    return network, np.array(predicted if every_epoch else [_predict(last, views)])


def _predict(phase: phases.Phase, views: int) -> np.ndarray:
    """The probabilities of malignant of the images that are held out (n,), float64, the mean over their views."""
    # Turned images are a dataset of unknown length, of which Keras 3 would warn.
    valid, steps = phase.batches.valid, phase.batches.valid_steps
    of_views = phase.trained.predict(valid, steps=steps, verbose=0)[:, 0].astype(float)
    return of_views.reshape(-1, views).mean(axis=1)


def _upsampled(prepared: Prepared, train: np.ndarray) -> np.ndarray:
    rows = prepared.table.iloc[train].assign(row=train, set="train")
    return splits.upsample(rows, prepared.settings.data).row.to_numpy()


def _plan(prepared: Prepared, train: np.ndarray, held_out: np.ndarray) -> tuple[keras.Model, list[phases.Phase]]:
    """A network with its initial weights, and the phases that train it."""
    settings, table, drawn = prepared.settings, prepared.table, _upsampled(prepared, train)
    if not _head_alone(settings):
        # On all training images, as in a run; upsampling may leave some out.
        settings = stain_normalization.fitted(settings, table.iloc[train])
        network = model.build(settings)
        rows = phases.Rows(table.iloc[drawn], table.iloc[held_out])
        return network, phases.prepare(network, rows, settings, settings.data.test_views)
    head, features = model.head(prepared.network), prepared.trained_on.select(drawn)
    head.set_weights(prepared.initial)
    if settings.model.standardize:
        model.standardize(prepared.network, *feature_datasets.statistics(features.array, features.places))
    return prepared.network, [phases.head_on_features(head, features, prepared.turned.select(held_out), settings)]


class _AfterEpoch(keras.callbacks.Callback):
    """Stops at a loss that is no number, and adds the predictions of each epoch to `predicted` unless it is None."""

    def __init__(self, phase: phases.Phase, views: int, predicted: list[np.ndarray] | None) -> None:
        super().__init__()
        self.phase, self.views, self.predicted = phase, views, predicted

    def on_epoch_end(self, epoch: int, logs: dict) -> None:
        if not np.isfinite(logs["loss"]):
            rates = "train.fine_tune_lr" if self.phase.epochs.start else "train.maximal_lr and train.initial_lr"
            raise InputError(f"the loss is {logs['loss']} in epoch {epoch + 1}; lower {rates}")
        if self.predicted is not None:
            self.predicted.append(_predict(self.phase, self.views))
