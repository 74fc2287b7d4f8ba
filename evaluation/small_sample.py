"""95 % intervals over patients that cover also where a class has few of them.

Percentiles of a bootstrap over ten patients are too narrow: they hold the true value in 68 to 90 of 100 cases instead
of 95 (docs/intervals.md has the table). Here the variance of a score comes from how much the patients differ, and the
interval from Student's t on the logit scale.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats
from scipy.special import expit, logit

LEVEL = 0.95
FEW_PATIENTS = 10
# What is assumed of the intraclass correlation, and the number of patients that this assumption counts as.
PRIOR_CORRELATION = 0.2
PRIOR_PATIENTS = 0.5


class Estimate(NamedTuple):
    """A score and how sure it is.

    Args:
        value: between 0 and 1.
        variance: of the value.
        freedom: degrees of freedom of the variance.
        patients: their effective number.
    """

    value: np.ndarray
    variance: np.ndarray
    freedom: np.ndarray
    patients: np.ndarray


def intervals(predictions: pd.DataFrame) -> dict[str, list[float] | None]:
    """The 95 % intervals of the rates and of ROC AUC, from the differences between patients.

    Sensitivity and specificity: `estimate_rate`. Means of the two (accuracy, balanced accuracy, recognition rate) are
    put together by `combine`; the number of images of each class is taken as given. AUC: `estimate_auc`.

    Args:
        predictions: a row an image, with label, prediction, probability (of malignant) and patient.

    Returns:
        score -> [low, high]; None where a class that the score needs has fewer than two patients.
    """
    right = (predictions.prediction == predictions.label).astype(float)
    parts = {label: by_patient(right[rows.index], rows.patient) for label, rows in predictions.groupby("label")}
    images = {label: part["images"].sum() for label, part in parts.items()}
    patients = {label: len(part["images"]) for label, part in parts.items()}
    pooled = {label: _rate_of(part, part["images"]) for label, part in parts.items()}
    averaged = {label: _rate_of(part, np.ones(patients[label])) for label, part in parts.items()}
    return {
        "accuracy": _combined(pooled, images),
        "balanced_accuracy": _combined(pooled, dict.fromkeys(parts, 1)),
        "sensitivity": _single(pooled.get("malignant")),
        "specificity": _single(pooled.get("benign")),
        "recall": _single(pooled.get("malignant")),
        "recognition_rate": _combined(averaged, patients),
        "roc_auc": _auc_of(predictions),
    }


def warning(patients_by_class: dict[str, int]) -> str | None:
    """What a reader must know where a class has fewer than FEW_PATIENTS patients; None where none has.

    Args:
        patients_by_class: as in metrics.json, {"benign": 4, "malignant": 11}.
    """
    few = [f"{number} {label}" for label, number in patients_by_class.items() if number < FEW_PATIENTS]
    if not few:
        return None
    return (
        f"only {' and '.join(few)} patients: with fewer than {FEW_PATIENTS} in a class the 95 % intervals are wide and"
        " may hold the true value less often than they promise; test on more patients before comparing figures"
    )


def by_patient(values: pd.Series, patients: pd.Series) -> dict[str, np.ndarray]:
    """For each patient, (patients,): images, mean of the values, spread (variance of its images around that mean)."""
    groups = values.groupby(patients.to_numpy())
    return {
        "images": groups.size().to_numpy(),
        "mean": groups.mean().to_numpy(),
        "spread": groups.var(ddof=0).to_numpy(),
    }


def estimate_rate(mean: np.ndarray, images: np.ndarray, weight: np.ndarray) -> Estimate:
    """A weighted mean of patients' rates, such as sensitivity.

    Args:
        mean: the share of each patient's images that are right, (..., patients), two patients or more.
        images: their number, (..., patients).
        weight: of the patients, (..., patients): their images for the pooled rate, equal for the recognition rate.
    """
    weight = weight / weight.sum(-1, keepdims=True)
    variance = variance_of_mean(mean, mean * (1 - mean), images, weight)
    return Estimate((weight * mean).sum(-1), variance, mean.shape[-1] - 1, effective(weight))


def variance_of_mean(mean: np.ndarray, spread: np.ndarray, images: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The variance of a weighted mean of patients' means: the larger of two estimates.

    The first splits it into the variance between patients and the one within (analysis of variance of unequal groups:
    Searle, Casella, McCulloch, "Variance Components", 1992). That is steady where a few patients have most images. So
    that few patients who happen to be alike do not count as no difference at all, PRIOR_PATIENTS patients with an
    intraclass correlation of PRIOR_CORRELATION are added. The second is the cluster-robust variance with the
    small-sample correction CR2, for patients' means of equal variance (Bell and McCaffrey, "Bias reduction in standard
    errors for linear regression with multi-stage samples", 2002). It stays right where a patient's rate depends on the
    number of its images.

    Args:
        mean: of each patient's images, (..., patients).
        spread: the variance of a patient's images around its mean, (..., patients).
        images: their number, (..., patients).
        weight: of the patients, (..., patients), with a sum of 1.

    Returns:
        The variances, (...).
    """
    between, within = variance_components(mean, spread, images)
    squares = weight**2
    total = squares.sum(-1, keepdims=True)
    model = between * total[..., 0] + within * (squares / images).sum(-1)
    residual = mean - (weight * mean).sum(-1, keepdims=True)
    robust = (squares * residual**2 / (1 - 2 * weight + total)).sum(-1)
    return np.maximum(model, robust)


def effective(weight: np.ndarray) -> np.ndarray:
    """How many patients of equal weight are as sure as these, (...): Kish, "Survey Sampling", 1965."""
    return 1 / (weight**2).sum(-1)


def variance_components(mean: np.ndarray, spread: np.ndarray, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The variance between patients, drawn towards PRIOR_CORRELATION, and within; see `variance_of_mean`."""
    others, count = mean.shape[-1] - 1, images.sum(-1)
    pooled = (images * mean).sum(-1) / count
    square_between = (images * (mean - pooled[..., None]) ** 2).sum(-1) / others
    # Where each patient has one image, nothing is within: 0 of 0.
    within = (images * spread).sum(-1) / np.maximum(count - others - 1, 1)
    typical = (count - (images**2).sum(-1) / count) / others
    between = np.maximum(square_between - within, 0) / typical
    assumed = PRIOR_CORRELATION * (between + within)
    return (others * between + PRIOR_PATIENTS * assumed) / (others + PRIOR_PATIENTS), within


def interval(estimate: Estimate) -> tuple[np.ndarray, np.ndarray]:
    """Low and high: Student's t on the logit scale, so that they stay within 0 and 1.

    It is never wider than if each patient counted as one image: Clopper and Pearson, "The use of confidence or fiducial
    limits illustrated in the case of the binomial", 1934; with an effective number as in Korn and Graubard, "Confidence
    intervals for proportions with small expected number of positive counts estimated from survey data", 1998. Where all
    images are right or all wrong nothing shows how patients differ, and this is the interval.
    """
    value, variance, freedom, patients = estimate
    tail = (1 - LEVEL) / 2
    # Sums of weights can miss 1 by a rounding error.
    none, every = value < 1e-9, value > 1 - 1e-9
    inside = np.where(none | every, 0.5, value)
    half = stats.t.ppf(1 - tail, freedom) * np.sqrt(variance) / (inside * (1 - inside))
    right, wrong = inside * patients, (1 - inside) * patients
    low = np.maximum(expit(logit(inside) - half), stats.beta.ppf(tail, right, wrong + 1))
    high = np.minimum(expit(logit(inside) + half), stats.beta.ppf(1 - tail, right + 1, wrong))
    end = tail ** (1 / np.asarray(patients))
    return np.select([none, every], [0, end], low), np.select([none, every], [1 - end, 1], high)


def combine(parts: list[Estimate], weights: list[float] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Low and high of a weighted mean of independent estimates, from the interval of each.

    MOVER, the method of variance estimates recovery: Zou and Donner, "Construction of confidence limits about effect
    measures: a general approach", 2008; here all intervals have the degrees of freedom of the mean.

    Args:
        parts: the estimates.
        weights: of the parts, positive, (parts) or (parts, ...); their sum is made 1.
    """
    shares = np.asarray(weights) / np.sum(weights, axis=0)
    freedom = satterthwaite(
        [share**2 * part.variance for share, part in zip(shares, parts)], [part.freedom for part in parts]
    )
    ends = [interval(part._replace(freedom=freedom)) for part in parts]
    value = sum(share * part.value for share, part in zip(shares, parts))
    down = sum((share * (part.value - low)) ** 2 for share, part, (low, _) in zip(shares, parts, ends))
    up = sum((share * (high - part.value)) ** 2 for share, part, (_, high) in zip(shares, parts, ends))
    # The sum of the shares can miss 1 by a rounding error.
    return np.maximum(value - np.sqrt(down), 0), np.minimum(value + np.sqrt(up), 1)


def satterthwaite(variances: list[np.ndarray], freedoms: list[int]) -> np.ndarray:
    """The degrees of freedom of a sum of variances; the fewest where all are 0.

    Satterthwaite, "An approximate distribution of estimates of variance components", 1946.
    """
    total, parts = sum(variances), sum(part**2 / freedom for part, freedom in zip(variances, freedoms))
    return np.where(parts > 0, total**2 / np.where(parts > 0, parts, 1), min(freedoms))


def estimate_auc(malignant: pd.DataFrame, benign: pd.DataFrame) -> Estimate:
    """The ROC AUC of images that belong to patients.

    It is the mean over malignant images of the share of benign images below each, and likewise the other way round; its
    variance is the sum of the variances of both means (DeLong, DeLong, Clarke-Pearson, "Comparing the areas under two
    or more correlated ROC curves", 1988; with patients: Obuchowski, "Nonparametric analysis of clustered ROC curve
    data", 1997). It cannot be larger than that of a rate over the smaller class (Birnbaum and Klose, "Bounds for the
    variance of the Mann-Whitney statistic", 1957), hence the number of patients.

    Args:
        malignant: the malignant images' probability and patient, two patients or more.
        benign: the benign ones'.
    """
    variances, freedoms, patients = [], [], []
    for own, other in ((malignant, benign), (benign, malignant)):
        part = by_patient(shares_below(own.probability, other.probability), own.patient)
        weight = part["images"] / part["images"].sum()
        variances.append(variance_of_mean(part["mean"], part["spread"], part["images"], weight))
        freedoms.append(len(weight) - 1)
        patients.append(effective(weight))
    value = shares_below(malignant.probability, benign.probability).mean()
    return Estimate(value, sum(variances), satterthwaite(variances, freedoms), min(patients))


def shares_below(own: pd.Series, other: pd.Series) -> pd.Series:
    """For each value of `own` the share of `other` that is below it; an equal one counts half."""
    ordered = np.sort(other.to_numpy())
    below = ordered.searchsorted(own.to_numpy(), "left") + ordered.searchsorted(own.to_numpy(), "right")
    return pd.Series(below / (2 * len(ordered)), index=own.index)


def _rate_of(part: dict[str, np.ndarray], weight: np.ndarray) -> Estimate | None:
    return estimate_rate(part["mean"], part["images"], weight) if len(weight) > 1 else None


def _single(estimate: Estimate | None) -> list[float] | None:
    return None if estimate is None else [float(end) for end in interval(estimate)]


def _combined(parts: dict[str, Estimate | None], weights: dict[str, float]) -> list[float] | None:
    if len(parts) < 2 or None in parts.values():
        return None
    return [float(end) for end in combine(list(parts.values()), [weights[label] for label in parts])]


def _auc_of(predictions: pd.DataFrame) -> list[float] | None:
    malignant, benign = (predictions[predictions.label == label] for label in ("malignant", "benign"))
    if min(malignant.patient.nunique(), benign.patient.nunique()) < 2:
        return None
    return _single(estimate_auc(malignant, benign))
