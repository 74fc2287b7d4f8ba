"""Predictions in, figures out: every score of an evaluation, for the test set and for its parts.

Malignant is the positive class. A frame of predictions has label, probability (of malignant), prediction, filename,
slide, patient, mag and subtype, a row an image.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import sklearn.metrics

import config
import data

# Name in metrics.json -> name for readers, in the order of every table.
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
BINS = 10
GROUPINGS = {"mag": "magnification", "subtype": "subtype", "slide": "slide", "patient": "patient"}


def measure(predictions: pd.DataFrame, settings: config.Data, threshold: float) -> dict:
    """The figures of metrics.json: counts, SCORES, per class, the confusion matrix, and those of the parts."""
    true, predicted = predictions.label, predictions.prediction
    by_class = sklearn.metrics.classification_report(
        true, predicted, labels=data.LABELS, output_dict=True, zero_division=0
    )
    per_class = {
        label: {
            "precision": by_class[label]["precision"],
            "recall": by_class[label]["recall"],
            "f1": by_class[label]["f1-score"],
            "support": int(by_class[label]["support"]),
        }
        for label in data.LABELS
    }
    return {
        "protocol": settings.protocol,
        "seed": settings.seed,
        "threshold": threshold,
        "n": len(predictions),
        "slides": int(predictions.slide.nunique()),
        "patients": int(predictions.patient.nunique()),
        "patients_by_class": {label: int(rows.patient.nunique()) for label, rows in predictions.groupby("label")},
        **score_decisions(predictions, per_class),
        **score_probabilities(true == "malignant", predictions.probability),
        **score_patients(predictions, threshold),
        "per_class": per_class,
        "confusion_matrix": sklearn.metrics.confusion_matrix(true, predicted, labels=data.LABELS).tolist(),
        **{f"by_{name}": by_group(predictions, column) for column, name in GROUPINGS.items()},
    }


def score_decisions(predictions: pd.DataFrame, per_class: dict) -> dict[str, float]:
    """Those SCORES that look at the predicted labels of the images."""
    true, predicted = predictions.label, predictions.prediction
    benign, malignant = per_class["benign"], per_class["malignant"]
    return {
        "accuracy": sklearn.metrics.accuracy_score(true, predicted),
        "balanced_accuracy": sklearn.metrics.balanced_accuracy_score(true, predicted),
        "sensitivity": malignant["recall"],
        "specificity": benign["recall"],
        "precision": malignant["precision"],
        "recall": malignant["recall"],
        "f1": sklearn.metrics.f1_score(true, predicted, labels=data.LABELS, average="macro", zero_division=0),
        "f1_malignant": malignant["f1"],
        "f1_benign": benign["f1"],
        "mcc": sklearn.metrics.matthews_corrcoef(true, predicted),
    }


def score_probabilities(malignant: np.ndarray, probability: np.ndarray) -> dict[str, float]:
    """Those SCORES that look at the probabilities of the images."""
    return {
        "roc_auc": sklearn.metrics.roc_auc_score(malignant, probability),
        "average_precision": sklearn.metrics.average_precision_score(malignant, probability),
        "brier": sklearn.metrics.brier_score_loss(malignant, probability),
        "ece": calibration_error(malignant, probability),
    }


def calibration_error(malignant: np.ndarray, probability: np.ndarray) -> float:
    """The expected calibration error over BINS bins of equal width of the probability of malignant.

    Naeini, Cooper, Hauskrecht, "Obtaining Well Calibrated Probabilities Using Bayesian Binning", 2015.
    """
    bins = reliability(malignant, probability)
    return float((bins.n * (bins.malignant - bins.probability).abs()).sum() / bins.n.sum())


def reliability(malignant: np.ndarray, probability: np.ndarray) -> pd.DataFrame:
    """For each bin that is not empty: n, mean probability, and the share that is malignant."""
    images = pd.DataFrame({"probability": np.asarray(probability), "malignant": np.asarray(malignant, float)})
    groups = images.groupby(bin_of(images.probability))
    return groups.mean().assign(n=groups.size())


def bin_of(probability: np.ndarray) -> np.ndarray:
    """The number of the bin, 0 to BINS - 1, that each probability falls into."""
    return np.minimum(np.asarray(probability) * BINS, BINS - 1).astype(int)


def score_patients(predictions: pd.DataFrame, threshold: float) -> dict[str, float]:
    """Both scores that the literature calls patient-level.

    The recognition rate (Spanhol et al., "A Dataset for Breast Cancer Histopathological Image Classification", 2016)
    is the mean over patients of the share of their images that are right. Pooled, a patient's mean probability
    decides once.
    """
    patients = by_patient(predictions, threshold)
    return {"recognition_rate": float(patients.right.mean()), "patient_accuracy": float(patients.pooled_right.mean())}


def by_patient(predictions: pd.DataFrame, threshold: float) -> pd.DataFrame:
    """A row a patient: patient, label, n, right (share of the images), probability (mean), pooled_right (0 or 1)."""
    images = predictions.assign(right=predictions.prediction == predictions.label)
    groups = images.groupby(["patient", "label"], sort=False)
    patients = groups.agg(n=("right", "size"), right=("right", "mean"), probability=("probability", "mean"))
    patients = patients.reset_index()
    pooled = np.where(patients.probability >= threshold, "malignant", "benign")
    return patients.assign(pooled_right=(pooled == patients.label).astype(float))


def by_group(predictions: pd.DataFrame, column: str) -> dict[str, dict]:
    """For each value of the column: n, patients, accuracy and mean probability; rates and AUC where they exist."""
    found = {}
    for name, rows in predictions.groupby(column):
        right = rows.prediction == rows.label
        malignant = rows.label == "malignant"
        both = malignant.any() and not malignant.all()
        found[str(name)] = {
            "n": len(rows),
            "patients": int(rows.patient.nunique()),
            "labels": sorted(rows.label.unique()),
            "accuracy": float(right.mean()),
            "sensitivity": float(right[malignant].mean()) if malignant.any() else None,
            "specificity": float(right[~malignant].mean()) if not malignant.all() else None,
            "roc_auc": float(sklearn.metrics.roc_auc_score(malignant, rows.probability)) if both else None,
            "mean_probability": float(rows.probability.mean()),
        }
    return found


def groups_table(results: dict) -> pd.DataFrame:
    """The parts of metrics.json as one table: grouping, group and what `by_group` gives."""
    rows = [
        {"grouping": name, "group": group, **figures, "labels": " ".join(figures["labels"])}
        for name in GROUPINGS.values()
        for group, figures in results[f"by_{name}"].items()
    ]
    return pd.DataFrame(rows)
