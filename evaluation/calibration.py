"""What is chosen on the validation set and on nothing else: the threshold, and the temperature of the probabilities."""

from __future__ import annotations

import numpy as np
import sklearn.metrics
from scipy import optimize, special

from evaluation import metrics
from training import decision


def choose_threshold(malignant: np.ndarray, probability: np.ndarray, rule: str) -> float:
    """The probability from which on an image is called malignant.

    Args:
        malignant: (n,) of the validation images, whether they are.
        probability: (n,) of malignant.
        rule: a number, which is the threshold; `youden`, the highest sensitivity + specificity - 1 (Youden, "Index
            for rating diagnostic tests", 1950); `f1`, the highest F1 of malignant; `sensitivity=S`, the highest
            threshold that finds at least that share of the malignant images. Of equals the highest is taken.
    """
    if not decision.is_chosen(rule):
        return float(rule)
    fall_out, found, thresholds = sklearn.metrics.roc_curve(malignant, probability, drop_intermediate=False)
    # The curve begins where nothing is called malignant, at a threshold above every probability.
    fall_out, found, thresholds = fall_out[1:], found[1:], thresholds[1:]
    if rule == "youden":
        return float(thresholds[np.argmax(found - fall_out)])
    if rule == "f1":
        positives, negatives = np.sum(malignant), np.sum(~np.asarray(malignant))
        return float(thresholds[np.argmax(2 * found * positives / (positives * (1 + found) + negatives * fall_out))])
    # A hair below, since shares of images are not exact in binary.
    return float(thresholds[np.argmax(found >= float(rule.partition("=")[2]) - 1e-12)])


def fit_temperature(malignant: np.ndarray, probability: np.ndarray) -> float:
    """The temperature within decision.TEMPERATURES with the lowest log loss on validation; 1 if no other is lower.

    Guo et al., "On Calibration of Modern Neural Networks", 2017.
    """

    def loss(temperature: float) -> float:
        return log_loss(malignant, scale(probability, temperature))

    inside = optimize.minimize_scalar(loss, bounds=decision.TEMPERATURES, method="bounded").x
    # Where the classes are parted the loss falls up to the bound, which the search itself only comes near.
    return float(min([1.0, *decision.TEMPERATURES, inside], key=loss))


def in_words(temperature: float) -> str:
    """The temperature, and whether the fit has run to the end of what it may try."""
    low, high = decision.TEMPERATURES
    bound = f", a bound of what is tried ({low:g} to {high:g})" if temperature in decision.TEMPERATURES else ""
    return f"{temperature:.3f}{bound}"


def scale(probability: np.ndarray, temperature: float) -> np.ndarray:
    """The probabilities whose logits are divided by the temperature, 0.5 or more; their order stays."""
    # A sigmoid in float32 can reach 0 and 1, whose logits are infinite.
    certain = np.clip(np.asarray(probability, float), np.finfo(np.float32).tiny, 1 - np.finfo(np.float32).epsneg / 2)
    return special.expit(special.logit(certain) / temperature)


def certainty(probability: np.ndarray, threshold: float) -> np.ndarray:
    """How far each probability is from the threshold, as a share of the way to 0 below it and to 1 above: 0 to 1.

    Plain distances would call no prediction certain on the side where the threshold leaves little room.
    """
    room = np.where(probability >= threshold, 1 - threshold, threshold)
    return np.abs(probability - threshold) / np.maximum(room, np.finfo(float).tiny)


def log_loss(malignant: np.ndarray, probability: np.ndarray) -> float:
    """The mean of -log of the probability that the true class was given, in nats."""
    certain = scale(probability, 1.0)
    return float(-np.mean(np.where(malignant, np.log(certain), np.log1p(-certain))))


def describe(malignant: np.ndarray, probability: np.ndarray, temperature: float) -> dict[str, list[float]]:
    """Log loss, Brier score and expected calibration error, [as they came, scaled by the temperature]."""
    both = [np.asarray(probability), scale(probability, temperature)]
    return {
        "log_loss": [log_loss(malignant, one) for one in both],
        "brier": [float(sklearn.metrics.brier_score_loss(malignant, one)) for one in both],
        "ece": [metrics.calibration_error(malignant, one) for one in both],
    }
