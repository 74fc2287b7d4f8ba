"""How far the figures of a test set can be trusted: the bootstrap over patients, and tests that compare two runs.

Images of one patient resemble each other, so a test set of 600 images of 20 patients says as much as its 20 patients
do. Resampling images pretends otherwise; both intervals are given, so that a reader sees the difference.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import stats

from evaluation import metrics

DRAWS = 2000
LEVEL = 95


def intervals(predictions: pd.DataFrame, threshold: float, seed: int = 0, draws: int = DRAWS) -> dict[str, dict]:
    """95 % percentile intervals of every score, resampling patients and resampling images.

    Field and Welsh, "Bootstrapping Clustered Data", 2007; each class keeps its number of patients (or images), so
    that every draw has both.

    Args:
        predictions: as in `measures`.
        threshold: from which probability on an image is called malignant.
        seed: of the draws.
        draws: number of them.

    Returns:
        score -> {"patient": [low, high], "image": [low, high]}; None in place of a pair where there is no interval:
        a class with a single patient, or a patient-level score when images are resampled.
    """
    found = {}
    for unit, column in {"patient": "patient", "image": "filename"}.items():
        if predictions.groupby("label")[column].nunique().min() < 2:
            found[unit] = {}
            continue
        weights = resample(predictions[column], predictions.label, draws, seed)
        drawn = weighted_scores(predictions, weights)
        if unit == "patient":
            drawn |= _weighted_patients(predictions, threshold, weights)
        found[unit] = {name: percentiles(values) for name, values in drawn.items()}
    return {name: {unit: pairs.get(name) for unit, pairs in found.items()} for name in metrics.SCORES}


def table(results: dict) -> pd.DataFrame:
    """A row a score: key, name, value, patient_low, patient_high, image_low, image_high; NaN for no interval."""
    rows = []
    for key, name in metrics.SCORES.items():
        pairs = {unit: pair or [np.nan, np.nan] for unit, pair in results["intervals"][key].items()}
        ends = {f"{unit}_{end}": value for unit, pair in pairs.items() for end, value in zip(("low", "high"), pair)}
        rows.append({"key": key, "name": name, "value": results[key], **ends})
    return pd.DataFrame(rows)


def percentiles(values: np.ndarray) -> list[float]:
    """The middle LEVEL percent of the draws along the first axis."""
    tail = (100 - LEVEL) / 2
    return np.percentile(values, [tail, 100 - tail], axis=0).tolist()


def resample(units: pd.Series, labels: pd.Series, draws: int, seed: int) -> np.ndarray:
    """How often each row counts in each draw, (draws, rows): units are drawn with replacement within each label."""
    rng = np.random.default_rng(seed)
    weights = np.zeros((draws, len(units)))
    for label in sorted(labels.unique()):
        rows = np.flatnonzero(labels == label)
        codes, names = pd.factorize(units.iloc[rows])
        weights[:, rows] = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), draws)[:, codes]
    return weights


def weighted_scores(predictions: pd.DataFrame, weights: np.ndarray) -> dict[str, np.ndarray]:
    """The image-level SCORES of `measures` in every draw, each (draws,); weights (draws, rows)."""
    true = (predictions.label == "malignant").to_numpy()
    return _weighted_decisions(true, predictions.prediction == "malignant", weights) | _weighted_probabilities(
        true, predictions.probability.to_numpy(), weights
    )


def _weighted_decisions(true: np.ndarray, predicted: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    predicted = np.asarray(predicted)
    tp, fn, fp, tn = (
        weights @ cell for cell in (true & predicted, true & ~predicted, ~true & predicted, ~true & ~predicted)
    )
    f1_malignant, f1_benign = _share(2 * tp, 2 * tp + fp + fn), _share(2 * tn, 2 * tn + fp + fn)
    sensitivity, specificity = tp / (tp + fn), tn / (tn + fp)
    return {
        "accuracy": (tp + tn) / (tp + fn + fp + tn),
        "balanced_accuracy": (sensitivity + specificity) / 2,
        "sensitivity": sensitivity,
        "specificity": specificity,
        "precision": _share(tp, tp + fp),
        "recall": sensitivity,
        "f1": (f1_malignant + f1_benign) / 2,
        "f1_malignant": f1_malignant,
        "f1_benign": f1_benign,
        "mcc": _share(tp * tn - fp * fn, np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))),
    }


def _weighted_probabilities(true: np.ndarray, probability: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    positive, negative = _by_score(true, probability, weights)
    positives, negatives = positive.sum(axis=1), negative.sum(axis=1)
    below = np.cumsum(negative, axis=1) - negative
    found, called = _from_top(positive), _from_top(positive + negative)
    bins = metrics.bin_of(probability)[:, None] == np.arange(metrics.BINS)
    gaps = np.abs(weights @ (bins * (true - probability)[:, None])).sum(axis=1)
    return {
        "roc_auc": (positive * (below + negative / 2)).sum(axis=1) / (positives * negatives),
        "average_precision": (positive * _share(found, called)).sum(axis=1) / positives,
        "brier": weights @ (true - probability) ** 2 / weights.sum(axis=1),
        "ece": gaps / weights.sum(axis=1),
    }


def _weighted_patients(predictions: pd.DataFrame, threshold: float, weights: np.ndarray) -> dict[str, np.ndarray]:
    patients = metrics.by_patient(predictions, threshold)
    first = ~predictions.duplicated(["patient", "label"]).to_numpy()
    times = weights[:, first]
    return {
        "recognition_rate": times @ patients.right.to_numpy() / times.sum(axis=1),
        "patient_accuracy": times @ patients.pooled_right.to_numpy() / times.sum(axis=1),
    }


def _by_score(true: np.ndarray, probability: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The weight of malignant and of benign images at each distinct probability, lowest first, (draws, distinct)."""
    order = np.argsort(probability, kind="stable")
    starts = np.flatnonzero(np.diff(probability[order], prepend=-np.inf))
    return tuple(np.add.reduceat((weights * is_class)[:, order], starts, axis=1) for is_class in (true, ~true))


def _from_top(values: np.ndarray) -> np.ndarray:
    return np.cumsum(values[:, ::-1], axis=1)[:, ::-1]


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    # As scikit-learn counts: nothing of nothing is 0.
    return np.divide(part, whole, out=np.zeros_like(part, float), where=whole != 0)


def curve_bands(predictions: pd.DataFrame, seed: int = 0, draws: int = DRAWS) -> dict[str, tuple[np.ndarray, ...]]:
    """Between which values the curves lie at each point in 95 % of the draws, patients resampled.

    A whole curve stays within its band in fewer than 95 %.

    Returns:
        "roc" -> (false positive rate, low, high) and "pr" -> (recall, low, high), each (101,); nothing where a class
        has a single patient.
    """
    if predictions.groupby("label").patient.nunique().min() < 2:
        return {}
    true, probability = (predictions.label == "malignant").to_numpy(), predictions.probability.to_numpy()
    weights = resample(predictions.patient, predictions.label, draws, seed)
    positive, negative = (_from_top(part)[:, ::-1] for part in _by_score(true, probability, weights))
    recall, fallout = positive / positive[:, -1:], negative / negative[:, -1:]
    precision = _share(positive, positive + negative)
    grid = np.linspace(0, 1, 101)
    roc = [np.interp(grid, np.r_[0, x], np.r_[0, y]) for x, y in zip(fallout, recall)]
    # The precision where that recall is first reached; a line between two points would promise more.
    pr = [y[np.searchsorted(x, np.maximum(grid, 1e-9) - 1e-12)] for x, y in zip(recall, precision)]
    return {"roc": (grid, *np.array(percentiles(roc))), "pr": (grid, *np.array(percentiles(pr)))}


def paired(first: pd.DataFrame, second: pd.DataFrame, seed: int = 0, draws: int = DRAWS) -> dict:
    """Two runs on the same test images: is the second's accuracy different from the first's?

    McNemar, "Note on the sampling error of the difference between correlated proportions or percentages", 1947, exact
    (binomial); it takes images for independent. The paired bootstrap resamples patients.

    Returns:
        difference (second - first), low and high of its 95 % interval (None where a class has a single patient),
        only_first and only_second (images that one alone has right), mcnemar_p.
    """
    both = first.merge(second[["filename", "prediction"]], on="filename", suffixes=("", "_second"))
    right = np.array([both.prediction == both.label, both.prediction_second == both.label])
    only_first, only_second = int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())
    differing = only_first + only_second
    low, high = None, None
    if both.groupby("label").patient.nunique().min() > 1:
        weights = resample(both.patient, both.label, draws, seed)
        gained = weights @ (right[1].astype(float) - right[0]) / weights.sum(axis=1)
        low, high = percentiles(gained)
    return {
        "difference": float(right[1].mean() - right[0].mean()),
        "low": low,
        "high": high,
        "only_first": only_first,
        "only_second": only_second,
        "mcnemar_p": float(stats.binomtest(only_first, differing).pvalue) if differing else 1.0,
    }
