"""Whether two settings differ, from cross-validations on the same folds."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import stats

from evaluation import bootstrap


def paired(first: pd.DataFrame, second: pd.DataFrame, images: int, seed: int = 0, draws: int = bootstrap.DRAWS) -> dict:
    """The difference of the balanced accuracy of two cross-validations on the same folds.

    The interval resamples patients, each with all of its predictions: it answers for other patients. The p-value is
    that of the corrected resampled t test over folds and repeats (Nadeau and Bengio, "Inference for the generalization
    error", 2003): it answers for other training sets.

    Args:
        first: predictions of the first one: filename, label, patient, repeat, fold, prediction.
        second: predictions of the second one, of the same images in any order.
        images: how many there are; those that a fold does not test are its training part.
        seed: of the draws.
        draws: their number.

    Returns:
        score, difference (second - first), low and high of its 95 % interval (None where a class has a single
        patient), folds, corrected_t, corrected_p.
    """
    keys = ["filename", "repeat", "fold"]
    both = first.merge(second[[*keys, "prediction"]], on=keys, suffixes=("", "_second"))
    right = [(both[name] == both.label).astype(float) for name in ("prediction", "prediction_second")]
    both["difference"] = right[1] - right[0]
    by_class = both.groupby(["repeat", "fold", "label"]).difference.mean()
    differences = by_class.groupby(["repeat", "fold"]).mean().to_numpy()
    tested = len(both) / len(differences)
    t, p = corrected_t_test(differences, tested / (images - tested))
    low, high = _interval(both, seed, draws)
    return {
        "score": "balanced accuracy",
        "difference": float(both.groupby("label").difference.mean().mean()),
        "low": low,
        "high": high,
        "folds": len(differences),
        "corrected_t": t,
        "corrected_p": p,
    }


def corrected_t_test(differences: np.ndarray, test_share: float) -> tuple[float, float]:
    """Statistic and two-sided p-value of Nadeau and Bengio's corrected resampled t test.

    Args:
        differences: (folds,), of the scores of each fold.
        test_share: the number of tested images over that of training images, of a fold.
    """
    variance = (1 / len(differences) + test_share) * differences.var(ddof=1)
    if variance == 0:
        return (0.0, 1.0) if differences.mean() == 0 else (float(np.copysign(np.inf, differences.mean())), 0.0)
    t = differences.mean() / np.sqrt(variance)
    return float(t), float(2 * stats.t.sf(abs(t), len(differences) - 1))


def _interval(both: pd.DataFrame, seed: int, draws: int) -> tuple[float | None, float | None]:
    patients = both.groupby(["label", "patient"]).difference.agg(["sum", "size"]).reset_index()
    if patients.label.value_counts().min() < 2:
        return None, None
    weights = bootstrap.resample(patients.patient, patients.label, draws, seed)
    of_classes = []
    for _, rows in patients.groupby("label"):
        drawn = weights[:, rows.index]
        of_classes.append(drawn @ rows["sum"].to_numpy() / (drawn @ rows["size"].to_numpy()))
    low, high = bootstrap.percentiles(np.mean(of_classes, axis=0))
    return low, high
