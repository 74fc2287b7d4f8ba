"""The model to keep: trained on all images with the numbers that a cross-validation chose."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from evaluation import calibration, cross_validation, out_of_distribution
from evaluation.evaluation import Evaluation
from images import stain_normalization
from training import checkpoint, out_of_fold
from training.out_of_fold import Prepared

SCORES = ["balanced_accuracy", "sensitivity", "specificity", "roc_auc"]


def train(folder: Path, prepared: Prepared, evaluation: Evaluation) -> Path:
    """Trains on all images and saves the checkpoint, with the cross-validated scores as its evidence.

    The epochs are the median of those that the folds chose; the threshold and the temperature come from the pooled
    out-of-fold predictions.

    Args:
        folder: of the cross-validation.
        prepared: of `out_of_fold.prepare`.
        evaluation: of `cross_validation.evaluate`.

    Returns:
        The path of the checkpoint.
    """
    settings, table, results = prepared.settings, prepared.table, evaluation.results
    rows = np.arange(len(table))
    # A phase needs a row to predict, and nobody reads this prediction.
    chosen = epochs(results["cross_validation"]["choices"])
    network, _ = out_of_fold.fit(prepared, rows, rows[:1], chosen, every_epoch=False)
    settings = stain_normalization.fitted(settings, table)
    path = folder / "best_model.keras"
    checkpoint.save(
        network,
        path,
        {
            **checkpoint.metadata(settings, table.assign(set="train")),
            "decision": {
                **calibration.decide(evaluation.predictions, results["threshold_rule"]),
                "views": results["views"],
            },
            "familiar": out_of_distribution.describe_training(network, table, settings),
            "cross_validated": evidence(
                results, cross_validation.describe_plan(cross_validation.plan_of(folder, evaluation.environment))
            ),
        },
    )
    return path


def epochs(choices: list[dict]) -> list[int]:
    """The median over the folds of the epochs of each phase."""
    return [
        int(np.median([choice["epochs"][phase] for choice in choices])) for phase in range(len(choices[0]["epochs"]))
    ]


def evidence(results: dict, folds: str) -> dict:
    """The key `cross_validated` of the checkpoint; without an interval its ends are None."""
    return {
        "folds": folds,
        "patients": results["patients"],
        **{name: [results[name], *(results["intervals"][name]["headline"] or [None, None])] for name in SCORES},
    }
