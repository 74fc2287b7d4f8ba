"""The phases of a run: first the head, then, where `model.trainable_from` names a block, the base from there on."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import keras
import pandas as pd
import tensorflow as tf

import config
import model
from features import extraction, feature_datasets
from images import audit, image_datasets
from training import fine_tuning

# Training batches from an epoch on, and validation batches.
Batches = tuple[Callable[[int], tf.data.Dataset], tf.data.Dataset]


class Phase(NamedTuple):
    """A stretch of epochs that train the same layers on the same batches.

    Attributes:
        begin: to be called with the path of the best checkpoint so far before `trained` is compiled.
        trained: the model that is fitted; it shares its layers with the whole.
        rate: the learning rate as a function of the step.
        first: epoch, from 0.
        last: the epoch behind the last one.
        steps: of an epoch, the last of which may be smaller.
        valid_steps: of a validation.
        batches_from: gives the training batches from an epoch on.
        valid_batches: those of the validation.
    """

    begin: Callable[[Path], None]
    trained: keras.Model
    rate: keras.optimizers.schedules.LearningRateSchedule
    first: int
    last: int
    steps: int
    valid_steps: int
    batches_from: Callable[[int], tf.data.Dataset]
    valid_batches: tf.data.Dataset


def prepare(network: keras.Model, rows: pd.DataFrame, valid: pd.DataFrame, settings: config.Settings) -> list[Phase]:
    """The phases in their order, with all features that they need in the cache.

    Args:
        network: of `model.build`; its standardising layer gets its numbers here.
        rows: of training, upsampled.
        valid: rows of validation.
        settings: of the run.

    Raises:
        InputError: the cache's limit or the disk is too small.
    """
    # The larger features first, so that a limit that is too small for them stops the run at once.
    second = [_fine_tuning(network, rows, valid, settings)] if settings.fine_tuned else []
    return [head(network, rows, valid, settings), *second]


def head(network: keras.Model, rows: pd.DataFrame, valid: pd.DataFrame, settings: config.Settings) -> Phase:
    """The first phase: the head on cached features, or the network on images."""
    standardize = settings.model.standardize and settings.model.base == "resnet50"
    if settings.cached or standardize:
        kept = extraction.pooled(network, rows, settings, augmented=settings.cached and settings.augment.active)
    if standardize:
        model.standardize(network, *feature_datasets.statistics(kept))
    span = (model.cyclical_rate(settings.train, len(rows)), 0, settings.train.epochs, *_steps(rows, valid, settings))
    if not settings.cached:
        return Phase(lambda best: None, network, *span, *_on_images(rows, valid, settings))
    valid_kept = extraction.pooled(network, valid, settings)
    batches = _on_features(kept, rows, valid_kept, valid, settings)
    return Phase(lambda best: None, model.head(network), *span, *batches)


def _fine_tuning(network: keras.Model, rows: pd.DataFrame, valid: pd.DataFrame, settings: config.Settings) -> Phase:
    """The blocks and the head on cached features, or the network on images where these are warped anew each time."""
    block = settings.model.trainable_from

    def begin(best: Path) -> None:
        network.load_weights(best)
        fine_tuning.unfreeze(network, block)

    span = (fine_tuning.rate(settings.train), settings.train.epochs, settings.epochs, *_steps(rows, valid, settings))
    if not settings.cached or settings.augment.active:
        return Phase(begin, network, *span, *_on_images(rows, valid, settings))
    kept = extraction.extract(fine_tuning.below(network, block), pd.concat([rows, valid]), settings)
    kept, valid_kept = (kept._replace(places=places) for places in (kept.places[: len(rows)], kept.places[len(rows) :]))
    batches = _on_features(kept, rows, valid_kept, valid, settings)
    return Phase(begin, fine_tuning.above(network, block), *span, *batches)


def _steps(rows: pd.DataFrame, valid: pd.DataFrame, settings: config.Settings) -> tuple[int, int]:
    return -(-len(rows) // settings.train.batch_size), -(-len(valid) // settings.train.batch_size)


def _on_features(
    kept: extraction.Features,
    rows: pd.DataFrame,
    valid_kept: extraction.Features,
    valid: pd.DataFrame,
    settings: config.Settings,
) -> Batches:
    valid_batches = feature_datasets.eval_dataset(valid_kept, valid.label_int.to_numpy(), settings.train.batch_size)
    return functools.partial(feature_datasets.train_dataset, kept, rows.label_int.to_numpy(), settings), valid_batches


def _on_images(rows: pd.DataFrame, valid: pd.DataFrame, settings: config.Settings) -> Batches:
    folder = audit.image_folder(settings.data.root)
    valid_batches = image_datasets.without_names(image_datasets.eval_dataset(valid, folder, settings))
    return functools.partial(image_datasets.train_dataset, rows, folder, settings), valid_batches
