"""Every metric of an evaluation, for the test set and for its subgroups.

Malignant is the positive class. A frame of predictions has a row per image, with label, probability (of malignant),
prediction, filename, slide, patient, mag and subtype.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import sklearn.metrics

import config
from evaluation import small_sample
from images import splits

# Key in metrics.json -> name in tables and figures, in their order.
SCORES = {
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "precision": "Precision (malignant)",
    "recall": "Recall (malignant)",
    "f1": "F1 (macro)",
    "f1_malignant": "F1 (malignant)",
    "f1_benign": "F1 (benign)",
    "mcc": "Matthews correlation",
    "roc_auc": "ROC AUC",
    "average_precision": "Average precision",
    "brier": "Brier score",
    "ece": "Expected calibration error",
    "recognition_rate": "Patient recognition rate",
    "patient_accuracy": "Accuracy of pooled patients",
}
# The scores of each fold and repeat of a cross-validation; the first is its headline.
SPREAD = [
    "balanced_accuracy", "sensitivity", "specificity", "accuracy", "roc_auc", "recognition_rate", "patient_accuracy",
]  # fmt: skip
BINS = 10
GROUPINGS = {"mag": "magnification", "subtype": "subtype", "slide": "slide", "patient": "patient"}


def classify(probability: np.ndarray, threshold: float) -> np.ndarray:
    """The predicted labels: malignant where the probability of malignant is at least the threshold, else benign."""
    return np.where(probability >= threshold, "malignant", "benign")


def measure(predictions: pd.DataFrame, settings: config.Data, threshold: float | pd.Series) -> dict:
    """The metrics of a test set as in metrics.json.

    Args:
        predictions: of the test set.
        settings: of the run; protocol and seed are copied.
        threshold: that `prediction` was made with; here it decides on the mean probability of each patient. In a
            cross-validation one a row, of which metrics.json gets the mean.

    Returns:
        Counts, a warning if a class has few patients, every one of SCORES, per_class, confusion_matrix
        ([[TN, FP], [FN, TP]]) and by_<grouping>, plain values.
    """
    true, predicted = predictions.label, predictions.prediction
    by_class = sklearn.metrics.classification_report(
        true, predicted, labels=splits.LABELS, output_dict=True, zero_division=0
    )
    per_class = {
        label: {
            "precision": by_class[label]["precision"],
            "recall": by_class[label]["recall"],
            "f1": by_class[label]["f1-score"],
            "support": int(by_class[label]["support"]),
        }
        for label in splits.LABELS
    }
    patients_by_class = {label: int(rows.patient.nunique()) for label, rows in predictions.groupby("label")}
    return {
        "protocol": settings.protocol,
        "seed": settings.seed,
        "threshold": float(np.mean(threshold)),
        "n": len(predictions),
        "slides": int(predictions.slide.nunique()),
        "patients": int(predictions.patient.nunique()),
        "patients_by_class": patients_by_class,
        "warning": small_sample.warning(patients_by_class),
        **score_decisions(predictions, per_class),
        **score_probabilities(true == "malignant", predictions.probability),
        **score_patients(predictions, threshold),
        "per_class": per_class,
        "confusion_matrix": sklearn.metrics.confusion_matrix(true, predicted, labels=splits.LABELS).tolist(),
        **{f"by_{name}": by_group(predictions, column) for column, name in GROUPINGS.items()},
    }


def score_decisions(predictions: pd.DataFrame, per_class: dict) -> dict[str, float]:
    """Those of SCORES that follow from the predicted labels of the images; per_class as `measure` returns it."""
    true, predicted = predictions.label, predictions.prediction
    benign, malignant = per_class["benign"], per_class["malignant"]
    return {
        "accuracy": sklearn.metrics.accuracy_score(true, predicted),
        "balanced_accuracy": sklearn.metrics.balanced_accuracy_score(true, predicted),
        "sensitivity": malignant["recall"],
        "specificity": benign["recall"],
        "precision": malignant["precision"],
        "recall": malignant["recall"],
        "f1": sklearn.metrics.f1_score(true, predicted, labels=splits.LABELS, average="macro", zero_division=0),
        "f1_malignant": malignant["f1"],
        "f1_benign": benign["f1"],
        "mcc": sklearn.metrics.matthews_corrcoef(true, predicted),
    }


def score_probabilities(malignant: np.ndarray, probability: np.ndarray) -> dict[str, float]:
    """Those of SCORES that follow from the probabilities of the images; both arguments (n,)."""
    return {
        "roc_auc": sklearn.metrics.roc_auc_score(malignant, probability),
        "average_precision": sklearn.metrics.average_precision_score(malignant, probability),
        "brier": sklearn.metrics.brier_score_loss(malignant, probability),
        "ece": calibration_error(malignant, probability),
    }


def calibration_error(malignant: np.ndarray, probability: np.ndarray) -> float:
    """The expected calibration error of the probability of malignant, over BINS bins of equal width.

    Naeini, Cooper, Hauskrecht, "Obtaining Well Calibrated Probabilities Using Bayesian Binning", 2015.
    """
    bins = reliability(malignant, probability)
    return float((bins.n * (bins.malignant - bins.probability).abs()).sum() / bins.n.sum())


def reliability(malignant: np.ndarray, probability: np.ndarray) -> pd.DataFrame:
    """A row per bin that is not empty: n, probability (mean) and malignant (share that is malignant)."""
    images = pd.DataFrame({"probability": np.asarray(probability), "malignant": np.asarray(malignant, float)})
    groups = images.groupby(bin_of(images.probability))
    return groups.mean().assign(n=groups.size())


def bin_of(probability: np.ndarray) -> np.ndarray:
    """The bin, 0 to BINS - 1, of each probability; 1.0 is in the last one."""
    return np.minimum(np.asarray(probability) * BINS, BINS - 1).astype(int)


def score_patients(predictions: pd.DataFrame, threshold: float | pd.Series) -> dict[str, float]:
    """Both scores that the literature calls patient-level.

    The recognition rate (Spanhol et al., "A Dataset for Breast Cancer Histopathological Image Classification", 2016)
    is the mean over patients of the share of their images that are correct. The patient accuracy classifies each
    patient once, by the mean probability of its images.
    """
    patients = by_patient(predictions, threshold)
    return {
        "recognition_rate": float(patients.correct.mean()),
        "patient_accuracy": float(patients.pooled_correct.mean()),
    }


def by_patient(predictions: pd.DataFrame, threshold: float | pd.Series) -> pd.DataFrame:
    """A row per patient: patient, label, n, correct (share of images), probability (mean), pooled_correct (0 or 1).

    In a cross-validation with several repeats a patient is classified in each of them, and pooled_correct is the mean.
    """
    images = predictions.assign(correct=predictions.prediction == predictions.label, threshold=threshold)
    if "repeat" not in images:
        images["repeat"] = 1
    # A cross-validation has a threshold for each fold. Folds of slides or images part a patient, whose threshold is
    # then the mean of its images' thresholds, as its probability is the mean of theirs.
    pooled = images.groupby(["patient", "label", "repeat"], sort=False)[["probability", "threshold"]].mean()
    pooled = pooled.reset_index()
    pooled["correct"] = (classify(pooled.probability, pooled.threshold) == pooled.label).astype(float)
    groups = images.groupby(["patient", "label"], sort=False)
    patients = groups.agg(n=("correct", "size"), correct=("correct", "mean"), probability=("probability", "mean"))
    patients["pooled_correct"] = pooled.groupby(["patient", "label"], sort=False).correct.mean()
    return patients.reset_index()


def by_group(predictions: pd.DataFrame, column: str) -> dict[str, dict]:
    """The metrics of each subgroup, by the column's value; None where a subgroup lacks the class that one needs."""
    groups = {}
    for name, rows in predictions.groupby(column):
        correct = rows.prediction == rows.label
        malignant = rows.label == "malignant"
        both_classes = malignant.any() and not malignant.all()
        groups[str(name)] = {
            "n": len(rows),
            "patients": int(rows.patient.nunique()),
            "labels": sorted(rows.label.unique()),
            "accuracy": float(correct.mean()),
            "sensitivity": float(correct[malignant].mean()) if malignant.any() else None,
            "specificity": float(correct[~malignant].mean()) if not malignant.all() else None,
            "roc_auc": float(sklearn.metrics.roc_auc_score(malignant, rows.probability)) if both_classes else None,
            "mean_probability": float(rows.probability.mean()),
        }
    return groups


def groups_table(results: dict) -> pd.DataFrame:
    """The subgroups in metrics.json as one table: grouping, group and the metrics of `by_group`."""
    rows = [
        {"grouping": name, "group": group, **scores, "labels": " ".join(scores["labels"])}
        for name in GROUPINGS.values()
        for group, scores in results[f"by_{name}"].items()
    ]
    return pd.DataFrame(rows)
