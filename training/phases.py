"""The phases of a run: first the head, then, where `model.trainable_from` names a block, the base from there on."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
import pandas as pd

import config
import model
from devices import keras_stack, strategy
from devices.many_steps import Batches
from features import extraction, feature_datasets, inference_form, source
from features.extraction import Features
from images import audit, image_datasets
from training import checkpoint, fine_tuning

# Keras divides by no deviation that is much smaller.
SMALLEST = 1e-6


class Rows(NamedTuple):
    """The rows that a run learns from.

    Attributes:
        train: those of the training set, upsampled.
        valid: those of the validation set.
    """

    train: pd.DataFrame
    valid: pd.DataFrame


class Phase(NamedTuple):
    """Consecutive epochs that train the same layers on the same batches.

    Attributes:
        trained: the model that is fitted; it shares the layers that learn with the whole.
        rate: the learning rate as a function of the step.
        epochs: of the whole run, from 0.
        batches: to train and validate on.
        begin: takes the path of the best checkpoint so far, or None to go on from the last epoch; to be called before
            `trained` is compiled.
    """

    trained: keras.Model
    rate: keras.optimizers.schedules.LearningRateSchedule
    epochs: range
    batches: Batches
    begin: Callable[[Path | None], None] = lambda best: None


def prepare(network: keras.Model, rows: Rows, settings: config.Settings, views: int = 1) -> list[Phase]:
    """The phases in their order, with all features that they need in the cache.

    Args:
        network: of `model.build`; its standardising layer gets its mean and variance here.
        rows: of training and validation.
        settings: of the run.
        views: exact turns of each validation row, each a row of its own in the validation batches.

    Raises:
        InputError: the limit of the cache or the disk is too small.
    """
    # The larger features first, so that a limit that is too small for them stops the run at once.
    second = [_fine_tuning(network, rows, settings, views)] if settings.fine_tuned else []
    return [head(network, rows, settings, views), *second]


def head(network: keras.Model, rows: Rows, settings: config.Settings, views: int = 1) -> Phase:
    """The first phase: the head on cached features, or the whole network on images; arguments as in `prepare`."""
    if settings.cached or _standardizes(settings):
        features = train_features(network, rows.train, settings)
    if _standardizes(settings):
        mean, variance = feature_datasets.statistics(features.array, features.places)
        if np.sqrt(variance.max()) < SMALLEST:
            print(f"note: the features are the same for all images to {SMALLEST:g}, so no head can learn from them")
        model.standardize(network, mean, variance)
    if settings.cached:
        valid = source.of(settings).pooled(network, rows.valid, turned=views)
        return head_on_features(model.head(network), features, valid, settings)
    trained = inference_form.of_network(network, settings.model.frozen)
    rate = model.cyclical_rate(settings.train, len(rows.train))
    return Phase(trained, rate, range(settings.train.epochs), _image_batches(rows, settings, views))


def _standardizes(settings: config.Settings) -> bool:
    return settings.model.standardize and settings.model.frozen


def train_features(network: keras.Model, rows: pd.DataFrame, settings: config.Settings) -> Features:
    """The pooled features of training rows, in `augment.views` views where training warps its images and needs them.

    The head learns from them with train.features=cached; mean and variance come from the same views in both modes, so
    that both standardise alike.
    """
    needed = settings.cached or _standardizes(settings)
    return source.of(settings).pooled(network, rows, augmented=settings.augment.active and needed)


def head_on_features(head: keras.Model, train: Features, valid: Features, settings: config.Settings) -> Phase:
    """The phase that trains a head, of `model.head`, on features of the training and the validation rows."""
    fixed, classifier = model.split_head(head)
    for layer in fixed:
        train, valid = (feature_datasets.transformed(layer, rows) for rows in (train, valid))
    rate = model.cyclical_rate(settings.train, len(train.labels))
    batches = _feature_batches(train, valid, settings, model.ROWS_AT_ONCE)
    return Phase(classifier, rate, range(settings.train.epochs), batches)


def _fine_tuning(network: keras.Model, rows: Rows, settings: config.Settings, views: int) -> Phase:
    """The second phase: blocks and head on cached features, or the whole network on images that each epoch warps."""
    block = settings.model.trainable_from

    def begin(best: Path | None) -> None:
        if best:
            checkpoint.load_into(network, best)
        fine_tuning.unfreeze(network, block)

    rate, epochs = fine_tuning.rate(settings.train), range(settings.train.epochs, settings.epochs)
    below, above = fine_tuning.below(network, block), fine_tuning.above(network, block)
    if not settings.cached or settings.augment.active:
        # The copy of what is below stays right: `begin` loads a checkpoint in which these weights are the same.
        trained = inference_form.compose(below, above)
        return Phase(trained, rate, epochs, _image_batches(rows, settings, views), begin)
    features = extraction.extract(below, pd.concat(rows), settings)
    train, valid = features.select(slice(len(rows.train))), features.select(slice(len(rows.train), None))
    if views > 1:
        valid = extraction.extract(below, rows.valid, settings, turned=views)
    batches = _feature_batches(train, valid, settings, settings.train.batch_size)
    return Phase(above, rate, epochs, batches, begin)


def _feature_batches(train: Features, valid: Features, settings: config.Settings, valid_size: int) -> Batches:
    valid = feature_datasets.views_as_rows(valid)
    return Batches(
        functools.partial(feature_datasets.train_dataset, train, settings),
        -(-len(train.labels) // settings.train.batch_size),
        feature_datasets.eval_dataset(valid, valid_size),
        -(-len(valid.labels) // valid_size),
        functools.partial(feature_datasets.read, train.array),
        (train.array, valid.array),
    )


def _image_batches(rows: Rows, settings: config.Settings, views: int) -> Batches:
    folder, size = audit.image_folder(settings.data.root), settings.train.batch_size
    valid = image_datasets.without_names(image_datasets.eval_dataset(rows.valid, folder, settings))
    return Batches(
        functools.partial(image_datasets.train_dataset, rows.train, folder, settings),
        -(-len(rows.train) // size),
        image_datasets.in_views(valid, views, size),
        -(-len(rows.valid) * views // size),
    )


def fit(phase: Phase, callbacks: list, epoch: int = 0, verbose: str | int = "auto") -> dict[str, list[float]]:
    """Trains a phase, whose model is compiled, on all devices.

    Args:
        phase: to train.
        callbacks: of Keras.
        epoch: the first one to train, from 0.
        verbose: as Keras takes it.

    Returns:
        Keras' history: the name of a loss or metric -> its value in each epoch.
    """
    options = {"epochs": phase.epochs.stop, "callbacks": callbacks, "verbose": verbose}
    return keras_stack.fit(phase.trained, phase.batches, strategy.distribute, epoch, options)
