"""Threshold and temperature scaling, both chosen on the validation set alone, and how calibrated probabilities are."""

from __future__ import annotations

import numpy as np
import pandas as pd
import sklearn.metrics
from scipy import optimize, special

from evaluation import metrics
from images import splits
from training import decision


def choose_threshold(malignant: np.ndarray, probability: np.ndarray, rule: str) -> float:
    """The threshold: an image is predicted malignant if its probability is at least this.

    Args:
        malignant: (n,), bool, whether each validation image is malignant.
        probability: (n,), of malignant.
        rule: a number, which is the threshold; `youden`, the highest sensitivity + specificity - 1 (Youden, "Index
            for rating diagnostic tests", 1950); `f1`, the highest F1 of malignant; `sensitivity=S`, the highest
            threshold with at least that sensitivity. Of equally good thresholds the highest is taken.
    """
    if not decision.is_chosen(rule):
        return float(rule)
    fallout, sensitivity, thresholds = sklearn.metrics.roc_curve(malignant, probability, drop_intermediate=False)
    # The first point has an infinite threshold, at which no image is predicted malignant.
    fallout, sensitivity, thresholds = fallout[1:], sensitivity[1:], thresholds[1:]
    if rule == "youden":
        return float(thresholds[np.argmax(sensitivity - fallout)])
    if rule == "f1":
        positives, negatives = np.sum(malignant), np.sum(~np.asarray(malignant))
        f1 = 2 * sensitivity * positives / (positives * (1 + sensitivity) + negatives * fallout)
        return float(thresholds[np.argmax(f1)])
    # 1e-12 less, since floating point cannot represent every share of images exactly.
    return float(thresholds[np.argmax(sensitivity >= float(rule.partition("=")[2]) - 1e-12)])


def fit_temperature(malignant: np.ndarray, probability: np.ndarray) -> float:
    """The temperature in TEMPERATURE_RANGE with the lowest log loss on the validation images; 1 if none is better.

    Guo et al., "On Calibration of Modern Neural Networks", 2017.

    Args:
        malignant: (n,), bool.
        probability: (n,), of malignant.
    """

    def loss(temperature: float) -> float:
        return log_loss(malignant, scale(probability, temperature))

    minimum = optimize.minimize_scalar(loss, bounds=decision.TEMPERATURE_RANGE, method="bounded").x
    # Where the classes are fully separated the best value is a bound, which the search approaches but never returns.
    return float(min([1.0, *decision.TEMPERATURE_RANGE, minimum], key=loss))


def decide(valid: pd.DataFrame, rule: str) -> dict:
    """The key `decision` of a checkpoint: rule, threshold and temperature, from the validation set alone.

    Args:
        valid: predictions of the validation set: label, patient, probability.
        rule: of the threshold, as in `choose_threshold`.
    """
    malignant = (valid.label == "malignant").to_numpy()
    return {
        "rule": rule,
        "threshold": choose_threshold(malignant, valid.probability, rule),
        "temperature": fit_temperature(malignant, valid.probability) if can_fit(valid) else 1.0,
    }


def patients_of(rows: pd.DataFrame) -> dict[str, int]:
    """The number of patients of each class."""
    return {label: int(rows.patient[rows.label == label].nunique()) for label in splits.LABELS}


def can_fit(valid: pd.DataFrame) -> bool:
    """Whether each class has enough patients to fit the temperature on, which is else left at 1."""
    return min(patients_of(valid).values()) >= decision.MIN_PATIENTS


def format_temperature(temperature: float) -> str:
    """The temperature as text, with a remark where it is a bound of the allowed range."""
    low, high = decision.TEMPERATURE_RANGE
    bound = f", a bound of the allowed range {low:g} to {high:g}" if temperature in decision.TEMPERATURE_RANGE else ""
    return f"{temperature:.3f}{bound}"


def describe_temperature(results: dict) -> str:
    """The temperature of metrics.json's `calibration` in words, and how it was found or why it was left at 1."""
    if "over_folds" in results:
        return _describe_over_folds(*results["over_folds"], *results["folds_fitted"])
    if results["temperature_fitted"]:
        return f"temperature {format_temperature(results['temperature'])}, fitted on the validation set alone"
    patients = " and ".join(f"{count} {label}" for label, count in results["validation_patients"].items())
    return (
        f"temperature 1, not fitted: the validation set has {patients} patients, and {decision.MIN_PATIENTS} of each "
        "class are needed"
    )


def _describe_over_folds(mean: float, low: float, high: float, fitted: int, folds: int) -> str:
    few = f"fewer than {decision.MIN_PATIENTS} patients of a class"
    if not fitted:
        return f"temperature 1, not fitted: the training part of each fold has {few}"
    found = f"temperature {mean:.3f}, the mean over the folds ({low:.3f} to {high:.3f})"
    if fitted == folds:
        return f"{found}, each fitted on its inner folds"
    return f"{found}; fitted on the inner folds of {fitted} of {folds}, and 1 where the training part has {few}"


def scale(probability: np.ndarray, temperature: float) -> np.ndarray:
    """The probabilities after division of their logits by the temperature (at least 0.5); their order stays."""
    # A float32 sigmoid can reach 0 and 1, whose logits are infinite.
    clipped = np.clip(np.asarray(probability, float), np.finfo(np.float32).tiny, 1 - np.finfo(np.float32).epsneg / 2)
    return special.expit(special.logit(clipped) / temperature)


def certainty(probability: np.ndarray, threshold: float) -> np.ndarray:
    """The distance of each probability from the threshold, divided by the distance of 0 or 1 on that side: 0 to 1.

    Without the division, no prediction would be certain on the short side of a threshold near 0 or 1.
    """
    room = np.where(probability >= threshold, 1 - threshold, threshold)
    return np.abs(probability - threshold) / np.maximum(room, np.finfo(float).tiny)


def log_loss(malignant: np.ndarray, probability: np.ndarray) -> float:
    """The mean of -log of the probability of the true class, in nats."""
    clipped = scale(probability, 1.0)
    return float(-np.mean(np.where(malignant, np.log(clipped), np.log1p(-clipped))))


def measure(malignant: np.ndarray, probability: np.ndarray, temperature: float) -> dict[str, list[float]]:
    """Log loss, Brier score and expected calibration error, each [as predicted, after temperature scaling]."""
    both = [np.asarray(probability), scale(probability, temperature)]
    return {
        "log_loss": [log_loss(malignant, values) for values in both],
        "brier": [float(sklearn.metrics.brier_score_loss(malignant, values)) for values in both],
        "ece": [metrics.calibration_error(malignant, values) for values in both],
    }
