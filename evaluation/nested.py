"""Nested cross-validation: what is chosen for an outer fold comes from its training part alone.

Cawley and Talbot, "On Over-fitting in Model Selection and Subsequent Selection Bias in Performance Evaluation", 2010.
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
import pandas as pd
from pydantic import AfterValidator, Field

import config
from evaluation import calibration
from images import folds, splits
from training import decision, out_of_fold
from training.out_of_fold import Prepared


class Plan(config.Section):
    """How a cross-validation is done.

    Attributes:
        unit: what each fold keeps whole: patient, slide or image.
        folds: number of outer folds, and of inner ones where the units suffice.
        repeats: how often the outer folds are drawn anew.
        official: whether the outer folds are the five official ones.
        published: whether the outer folds of patients are those of splits/patient-5fold.csv.
        rule: of the threshold, as in `calibration.choose_threshold`.
    """

    unit: Literal["patient", "slide", "image"]
    folds: int = Field(ge=2)
    repeats: int = Field(ge=1)
    official: bool
    published: bool
    rule: Annotated[str, AfterValidator(decision.check_rule)]


def parts(table: pd.DataFrame, drawn: pd.DataFrame, repeat: int, fold: int) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of the rows that an outer fold trains on, and of those that it tests.

    Args:
        table: a row an image, with filename and pixels, numbered from 0.
        drawn: the tested images: filename, repeat, fold.
        repeat: from 1.
        fold: from 1.
    """
    tested = drawn.filename[(drawn.repeat == repeat) & (drawn.fold == fold)]
    test = table.filename.isin(tested)
    # Only the official folds have equal pixels on both sides: slide 13412 has most of its images under two names.
    train = ~table.pixels.isin(table.pixels[test])
    return np.flatnonzero(train), np.flatnonzero(test)


def run_fold(prepared: Prepared, drawn: pd.DataFrame, repeat: int, fold: int, plan: Plan) -> dict:
    """Chooses epochs, threshold and temperature for an outer fold, trains on its training part, predicts its test part.

    Returns:
        Plain values for JSON: repeat, fold, what `choose` returns, filename and probability of each test image.
    """
    train, test = parts(prepared.table, drawn, repeat, fold)
    choice = choose(prepared, train, plan)
    _, probability = out_of_fold.fit(prepared, train, test, choice["epochs"], every_epoch=False)
    return {
        "repeat": repeat,
        "fold": fold,
        **choice,
        "filename": prepared.table.filename[test].tolist(),
        "probability": probability[-1].tolist(),
    }


def choose(prepared: Prepared, train: np.ndarray, plan: Plan) -> dict:
    """Chooses epochs, threshold and temperature on inner out-of-fold predictions of the training part.

    Args:
        prepared: of `out_of_fold.prepare`.
        train: numbers of the rows of the outer training part.
        plan: of the cross-validation.

    Returns:
        `epochs` of each phase, `losses` of the inner predictions after each epoch, `decision` (rule, threshold,
        temperature, views), and `validation`: `calibration.measure` of the inner predictions.
    """
    rows = prepared.table.iloc[train]
    inner = inner_folds(rows, plan, prepared.settings.data.seed)
    phases = [prepared.settings.train.epochs]
    probabilities = _inner_predictions(prepared, train, inner, phases)
    losses = _losses(rows, probabilities, prepared.settings.train.select)
    epochs = [int(np.argmin(losses)) + 1]
    if prepared.settings.fine_tuned:
        # Every fold is fine-tuned from the epoch of the head that all folds together have chosen.
        probabilities = _inner_predictions(prepared, train, inner, [*epochs, prepared.settings.train.fine_tune_epochs])
        losses = _losses(rows, probabilities, prepared.settings.train.select)
        epochs += [int(np.argmin(losses[epochs[0] - 1 :]))]
    inner_predictions = rows.assign(probability=probabilities[sum(epochs) - 1])
    choice = {**calibration.decide(inner_predictions, plan.rule), "views": prepared.settings.data.test_views}
    return {
        "epochs": epochs,
        "losses": losses.tolist(),
        "decision": choice,
        "validation": calibration.measure(
            rows.label == "malignant", inner_predictions.probability, choice["temperature"]
        ),
    }


def inner_folds(rows: pd.DataFrame, plan: Plan, seed: int) -> np.ndarray:
    """The inner fold, from 1, of each row of an outer training part; whole units, as many folds as units allow."""
    units = splits.group_ids(rows, plan.unit)
    fewest = units.groupby(rows.label).nunique().min()
    drawn = folds.draw(rows, plan.unit, min(plan.folds, max(fewest, 2)), seed=seed)
    return rows.filename.map(drawn.set_index("filename").fold).to_numpy()


def _inner_predictions(prepared: Prepared, train: np.ndarray, inner: np.ndarray, epochs: list[int]) -> np.ndarray:
    """The probability of each training row, after each epoch, by a head that did not learn from its inner fold."""
    probabilities = np.full((sum(epochs), len(train)), np.nan)
    for fold in range(1, inner.max() + 1):
        held = inner == fold
        probabilities[:, held] = out_of_fold.fit(prepared, train[~held], train[held], epochs)[1]
    return probabilities


def _losses(rows: pd.DataFrame, probabilities: np.ndarray, select: str) -> np.ndarray:
    """The log loss after each epoch, as `train.select` weights the classes: balanced or plain."""
    malignant = (rows.label == "malignant").to_numpy()
    parts = [malignant, ~malignant] if select == "balanced" else [np.full(len(rows), True)]
    return np.array(
        [
            np.mean([calibration.log_loss(malignant[part], probability[part]) for part in parts])
            for probability in probabilities
        ]
    )
