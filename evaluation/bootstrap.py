"""Bootstrap confidence intervals of every score, and the paired comparison of two runs.

Images of one patient are alike, so 600 test images of 20 patients carry little more information than 20 patients.
Resampling images ignores this and gives intervals that are too narrow. Both are computed, to show the difference.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import stats

from evaluation import metrics, small_sample

DRAWS = 2000
LEVEL = 95
# Rows times draws of which scores are computed at once.
DRAWN_AT_ONCE = 4_000_000
# Rows times draws of a curve's bands, for which all are needed at once; a cross-validation's get fewer draws.
DRAWN_FOR_BANDS = 16_000_000


def intervals(
    predictions: pd.DataFrame, threshold: float | pd.Series, seed: int = 0, draws: int = DRAWS
) -> dict[str, dict]:
    """95 % intervals of every score: the headline, and percentiles resampling patients and resampling images.

    The headline is that of `small_sample` where it has one, else the one that resamples patients.
    Field and Welsh, "Bootstrapping Clustered Data", 2007. Each class is resampled separately, so that every draw has
    both classes, with as many patients (or images) as the test set.

    Args:
        predictions: as in `metrics`.
        threshold: an image is predicted malignant if its probability is at least this; in a cross-validation one a row.
        seed: of the draws.
        draws: their number.

    Returns:
        score -> {"headline": [low, high], "patient": [low, high], "image": [low, high]}. None replaces a pair where
        there is no interval: a class has a single patient (or image), or images are resampled for a patient-level
        score.
    """
    ends = {}
    for unit, column in {"patient": "patient", "image": "filename"}.items():
        if predictions.groupby("label")[column].nunique().min() < 2:
            ends[unit] = {}
            continue
        parts = []
        for number, size in enumerate(_blocks(len(predictions), draws)):
            # Each block has a stream of its own; the first is the one that a test set of a run needs alone.
            weights = resample(predictions[column], predictions.label, size, [seed, number] if number else seed)
            parts.append(weighted_scores(predictions, weights))
            if unit == "patient":
                parts[-1] |= _weighted_patients(predictions, threshold, weights)
        ends[unit] = {name: percentiles(np.concatenate([part[name] for part in parts])) for name in parts[0]}
    ends = {"headline": {**ends["patient"], **small_sample.intervals(predictions)}, **ends}
    return {name: {unit: pairs.get(name) for unit, pairs in ends.items()} for name in metrics.SCORES}


def _blocks(rows: int, draws: int) -> list[int]:
    """The numbers of draws that are computed at once: a draw takes some hundred bytes a row."""
    return [len(block) for block in np.array_split(np.arange(draws), -(-rows * draws // DRAWN_AT_ONCE))]


def table(results: dict) -> pd.DataFrame:
    """A row per score: key, name, value, and low and high of headline, patient and image; NaN for no interval."""
    rows = []
    # A cross-validation tests all images there are, whose classes are not equal.
    first = metrics.SPREAD[:1] if "cross_validation" in results else []
    for key, name in {**{key: metrics.SCORES[key] for key in first}, **metrics.SCORES}.items():
        pairs = {unit: pair or [np.nan, np.nan] for unit, pair in results["intervals"][key].items()}
        ends = {f"{unit}_{end}": value for unit, pair in pairs.items() for end, value in zip(("low", "high"), pair)}
        rows.append({"key": key, "name": name, "value": results[key], **ends})
    return pd.DataFrame(rows)


def percentiles(values: np.ndarray) -> list[float]:
    """The [low, high] of the middle LEVEL percent of the draws (draws, ...)."""
    tail = (100 - LEVEL) / 2
    return np.percentile(values, [tail, 100 - tail], axis=0).tolist()


def resample(units: pd.Series, labels: pd.Series, draws: int, seed: int | list[int]) -> np.ndarray:
    """How often each row counts in each draw: units are drawn with replacement, each label separately.

    Args:
        units: (rows,), the patient or image of each row; all rows of a unit are drawn together.
        labels: (rows,), the label of each row.
        draws: their number.
        seed: of the draws, as NumPy takes it.

    Returns:
        (draws, rows), whole numbers.
    """
    rng = np.random.default_rng(seed)
    weights = np.zeros((draws, len(units)))
    for label in sorted(labels.unique()):
        rows = np.flatnonzero(labels == label)
        codes, names = pd.factorize(units.iloc[rows])
        weights[:, rows] = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), draws)[:, codes]
    return weights


def weighted_scores(predictions: pd.DataFrame, weights: np.ndarray) -> dict[str, np.ndarray]:
    """The image-level SCORES of `metrics` in every draw, each (draws,).

    All draws are computed at once: scikit-learn would need one call per draw and score, 28,000 in all.

    Args:
        predictions: as in `metrics`.
        weights: (draws, rows), of `resample`.
    """
    true = (predictions.label == "malignant").to_numpy()
    return _weighted_decisions(true, predictions.prediction == "malignant", weights) | _weighted_probabilities(
        true, predictions.probability.to_numpy(), weights
    )


def _weighted_decisions(true: np.ndarray, predicted: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    predicted = np.asarray(predicted)
    tp, fn, fp, tn = (
        weights @ cell for cell in (true & predicted, true & ~predicted, ~true & predicted, ~true & ~predicted)
    )
    f1_malignant, f1_benign = _ratio(2 * tp, 2 * tp + fp + fn), _ratio(2 * tn, 2 * tn + fp + fn)
    sensitivity, specificity = tp / (tp + fn), tn / (tn + fp)
    return {
        "accuracy": (tp + tn) / (tp + fn + fp + tn),
        "balanced_accuracy": (sensitivity + specificity) / 2,
        "sensitivity": sensitivity,
        "specificity": specificity,
        "precision": _ratio(tp, tp + fp),
        "recall": sensitivity,
        "f1": (f1_malignant + f1_benign) / 2,
        "f1_malignant": f1_malignant,
        "f1_benign": f1_benign,
        "mcc": _ratio(tp * tn - fp * fn, np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))),
    }


def _weighted_probabilities(true: np.ndarray, probability: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    positive, negative = _weights_by_probability(true, probability, weights)
    positives, negatives = positive.sum(axis=1), negative.sum(axis=1)
    negatives_below = np.cumsum(negative, axis=1) - negative
    true_positives, predicted_positives = _sum_from_top(positive), _sum_from_top(positive + negative)
    bins = metrics.bin_of(probability)[:, None] == np.arange(metrics.BINS)
    gaps = np.abs(weights @ (bins * (true - probability)[:, None])).sum(axis=1)
    return {
        "roc_auc": (positive * (negatives_below + negative / 2)).sum(axis=1) / (positives * negatives),
        "average_precision": (positive * _ratio(true_positives, predicted_positives)).sum(axis=1) / positives,
        "brier": weights @ (true - probability) ** 2 / weights.sum(axis=1),
        "ece": gaps / weights.sum(axis=1),
    }


def _weighted_patients(
    predictions: pd.DataFrame, threshold: float | pd.Series, weights: np.ndarray
) -> dict[str, np.ndarray]:
    patients = metrics.by_patient(predictions, threshold)
    first_rows = ~predictions.duplicated(["patient", "label"]).to_numpy()
    patient_weights = weights[:, first_rows]
    return {
        "recognition_rate": patient_weights @ patients.correct.to_numpy() / patient_weights.sum(axis=1),
        "patient_accuracy": patient_weights @ patients.pooled_correct.to_numpy() / patient_weights.sum(axis=1),
    }


def _weights_by_probability(
    true: np.ndarray, probability: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The weights of malignant and of benign images at each distinct probability, ascending, both (draws, distinct)."""
    order = np.argsort(probability, kind="stable")
    starts = np.flatnonzero(np.diff(probability[order], prepend=-np.inf))
    return tuple(np.add.reduceat((weights * is_class)[:, order], starts, axis=1) for is_class in (true, ~true))


def _sum_from_top(values: np.ndarray) -> np.ndarray:
    return np.cumsum(values[:, ::-1], axis=1)[:, ::-1]


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    # 0 / 0 is 0, as in scikit-learn.
    return np.divide(numerator, denominator, out=np.zeros_like(numerator, float), where=denominator != 0)


def curve_bands(predictions: pd.DataFrame, seed: int = 0, draws: int = DRAWS) -> dict[str, tuple[np.ndarray, ...]]:
    """Pointwise 95 % bands of the ROC and precision-recall curves, patients resampled.

    Pointwise: each point is within the band in 95 % of the draws, a whole curve in fewer.

    Args:
        predictions: as in `metrics`.
        seed: of the draws.
        draws: their number.

    Returns:
        "roc" -> (false positive rate, low, high) and "pr" -> (recall, low, high), each (101,); empty where a class has
        a single patient.
    """
    if predictions.groupby("label").patient.nunique().min() < 2:
        return {}
    draws = min(draws, max(100, DRAWN_FOR_BANDS // len(predictions)))
    true, probability = (predictions.label == "malignant").to_numpy(), predictions.probability.to_numpy()
    weights = resample(predictions.patient, predictions.label, draws, seed)
    positive, negative = (_sum_from_top(part)[:, ::-1] for part in _weights_by_probability(true, probability, weights))
    recall, fallout = positive / positive[:, -1:], negative / negative[:, -1:]
    precision = _ratio(positive, positive + negative)
    grid = np.linspace(0, 1, 101)
    roc = [np.interp(grid, np.r_[0, x], np.r_[0, y]) for x, y in zip(fallout, recall)]
    # The precision where that recall is first reached; linear interpolation would be too optimistic.
    pr = [y[np.searchsorted(x, np.maximum(grid, 1e-9) - 1e-12)] for x, y in zip(recall, precision)]
    return {"roc": (grid, *np.array(percentiles(roc))), "pr": (grid, *np.array(percentiles(pr)))}


def paired(first: pd.DataFrame, second: pd.DataFrame, seed: int = 0, draws: int = DRAWS) -> dict:
    """Whether two runs differ in accuracy on the same test images.

    The p-value is that of McNemar's exact test ("Note on the sampling error of the difference between correlated
    proportions or percentages", 1947), which assumes independent images. The bootstrap interval resamples patients.

    Args:
        first: predictions of the first run, as in `metrics`; no image twice.
        second: predictions of the second run, of the same images in any order.
        seed: of the draws.
        draws: their number.

    Returns:
        difference (accuracy of second - first), low and high of its 95 % interval (None where a class has a single
        patient), only_first and only_second (number of images that only this run has correct), mcnemar_p.
    """
    both = first.merge(second[["filename", "prediction"]], on="filename", suffixes=("", "_second"))
    correct = np.array([both.prediction == both.label, both.prediction_second == both.label])
    only_first, only_second = int((correct[0] & ~correct[1]).sum()), int((correct[1] & ~correct[0]).sum())
    discordant = only_first + only_second
    low, high = None, None
    if both.groupby("label").patient.nunique().min() > 1:
        weights = resample(both.patient, both.label, draws, seed)
        differences = weights @ (correct[1].astype(float) - correct[0]) / weights.sum(axis=1)
        low, high = percentiles(differences)
    return {
        "difference": float(correct[1].mean() - correct[0].mean()),
        "low": low,
        "high": high,
        "only_first": only_first,
        "only_second": only_second,
        "mcnemar_p": float(stats.binomtest(only_first, discordant).pvalue) if discordant else 1.0,
    }
