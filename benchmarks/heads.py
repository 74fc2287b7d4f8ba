"""Trainings of the head on random features: a run's, and those of a cross-validation."""

from __future__ import annotations

import keras
import numpy as np
import pandas as pd

import config
import data
import model
from benchmarks import timing
from benchmarks.table import EPOCHS, IMAGES, ROWS, VALID_ROWS
from evaluation import nested
from features.extraction import Features
from images import folds
from training import out_of_fold, phases

FOLDS = 5


def train(network: keras.Model, settings: config.Settings, rows: int, momentum: float) -> float:
    """Seconds to train the head for the thesis' epochs.

    Args:
        network: of which the head is trained.
        settings: of the run.
        rows: of training; those of validation are in the thesis' proportion.
        momentum: of the gradient descent.
    """
    places = np.random.default_rng(0).integers(0, IMAGES, (rows, 1))
    train = Features(_random(network, IMAGES), places, np.arange(rows) % 2)
    valid = train.select(slice(rows * VALID_ROWS // ROWS))
    settings = _for_epochs(settings, momentum)

    def run() -> None:
        phase = phases.head_on_features(model.head(network), train, valid, settings)
        model.compile_model(phase.trained, settings.train, phase.rate)
        phases.fit(phase, [], verbose=0)

    return timing.seconds(run)


def cross_validate_fold(network: keras.Model, settings: config.Settings, images: int) -> float:
    """Seconds of one of FOLDS outer folds of a nested cross-validation by patient: FOLDS inner heads and its own.

    Args:
        network: of which the heads are trained.
        settings: of the run.
        images: of 80 patients, half of them benign.
    """
    kinds = ("B_A", "M_DC")
    names = [f"SOB_{kinds[number % 2]}-14-{1 + number % 80:05}-40-{number:04}.png" for number in range(images)]
    table = data.describe(pd.Series(names)).assign(pixels=names)
    features = Features(_random(network, images), np.arange(images)[:, None], table.label_int.to_numpy())
    initial, settings = model.head(network).get_weights(), _for_epochs(settings, 0.5)
    prepared = out_of_fold.Prepared(settings, table, network, initial, features, features)
    plan = nested.Plan(unit="patient", folds=FOLDS, repeats=1, official=False, published=False, rule="0.5")
    drawn = folds.draw(table, "patient", FOLDS)
    return timing.seconds(lambda: nested.run_fold(prepared, drawn, 1, 1, plan))


def _random(network: keras.Model, images: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(images, model.width(network))).astype(np.float32)


def _for_epochs(settings: config.Settings, momentum: float) -> config.Settings:
    changed = settings.train.model_copy(update={"epochs": EPOCHS, "momentum": momentum})
    return settings.model_copy(update={"train": changed})
