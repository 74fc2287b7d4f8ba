"""Trains on some images and predicts others after each epoch, without looking at their labels: a cross-validation."""

from __future__ import annotations

from typing import NamedTuple

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

import config
import model
from features import extraction, feature_datasets
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
        plain: the features of each image, where a head alone is trained on cached ones, else None.
        trained_on: the same in `augment.views` views, where training reads warped ones.
    """

    settings: config.Settings
    table: pd.DataFrame
    network: keras.Model
    initial: list[np.ndarray]
    plain: Features | None
    trained_on: Features | None


def prepare(network: keras.Model, table: pd.DataFrame, settings: config.Settings) -> Prepared:
    """Computes the features of all images, or reads them from the cache; arguments as in `Prepared`."""
    # Every head is a graph of its own, which TensorFlow's logger takes for a mistake.
    tf.get_logger().setLevel("ERROR")
    plain = trained_on = None
    if _head_alone(settings):
        plain = extraction.pooled(network, table, settings)
        trained_on = extraction.pooled(network, table, settings, augmented=True) if settings.augment.active else plain
    initial = model.head(network).get_weights()
    return Prepared(settings, table.reset_index(drop=True), network, initial, plain, trained_on)


def _head_alone(settings: config.Settings) -> bool:
    # A stain that is fitted on each training part gives each its own features.
    return settings.cached and not settings.fine_tuned and settings.data.stain == "none"


def fit(
    prepared: Prepared, train: np.ndarray, held_out: np.ndarray, epochs: list[int]
) -> tuple[keras.Model, np.ndarray]:
    """Trains a new head, or network, and predicts the images that are held out after each epoch.

    Args:
        prepared: of `prepare`.
        train: numbers of the rows to train on; they are upsampled as in a run.
        held_out: numbers of the rows to predict.
        epochs: to train in each phase: of the head, and of the fine-tuning if there is one.

    Returns:
        The whole network after the last epoch, and the probabilities of malignant (epochs, held out).

    Raises:
        InputError: the loss became NaN or infinite.
    """
    network, plan = _plan(prepared, _upsampled(prepared, train), held_out)
    predicted: list[np.ndarray] = []
    for phase, count in zip(plan, epochs):
        if count == 0:
            continue
        phase.begin(None)
        model.compile_model(phase.trained, prepared.settings.train, phase.rate)
        shortened = phase._replace(epochs=range(phase.epochs.start, phase.epochs.start + count))
        recorder = _Predictions(phase, predicted)
        with signals.deferred() as received:
            phases.fit(shortened, [recorder, callbacks.StopOnSignal(received)], phase.epochs.start, verbose=0)
    return network, np.array(predicted)


def _upsampled(prepared: Prepared, train: np.ndarray) -> np.ndarray:
    rows = prepared.table.iloc[train].assign(row=train, set="train")
    return splits.upsample(rows, prepared.settings.data).row.to_numpy()


def _plan(prepared: Prepared, train: np.ndarray, held_out: np.ndarray) -> tuple[keras.Model, list[phases.Phase]]:
    """A network with its initial weights, and the phases that train it."""
    settings, table = prepared.settings, prepared.table
    if not _head_alone(settings):
        settings = stain_normalization.fitted(settings, table.iloc[train])
        network = model.build(settings)
        return network, phases.prepare(network, phases.Rows(table.iloc[train], table.iloc[held_out]), settings)
    head, features = model.head(prepared.network), prepared.trained_on.select(train)
    head.set_weights(prepared.initial)
    if settings.model.standardize:
        model.standardize(prepared.network, *feature_datasets.statistics(features.array, features.places))
    return prepared.network, [phases.head_on_features(head, features, prepared.plain.select(held_out), settings)]


class _Predictions(keras.callbacks.Callback):
    """Appends the probabilities of the held-out images to `predicted` after each epoch."""

    def __init__(self, phase: phases.Phase, predicted: list[np.ndarray]) -> None:
        super().__init__()
        self.phase, self.predicted = phase, predicted

    def on_epoch_end(self, epoch: int, logs: dict) -> None:
        if not np.isfinite(logs["loss"]):
            rates = "train.fine_tune_lr" if self.phase.epochs.start else "train.maximal_lr and train.initial_lr"
            raise InputError(f"the loss is {logs['loss']} in epoch {epoch + 1}; lower {rates}")
        self.predicted.append(self.model.predict(self.phase.batches.valid, verbose=0)[:, 0].astype(float))
