import numpy as np
import pandas as pd
import pytest
import sklearn.metrics

import config
from evaluation import metrics


@pytest.fixture
def images():
    """Four patients; the answers below are counted by hand."""
    return pd.DataFrame({
        "patient": ["A"] * 4 + ["B"] * 2 + ["C"] * 3 + ["D"],
        "slide": ["A1", "A1", "A2", "A2", "B", "B", "C", "C", "C", "D"],
        "label": ["benign"] * 6 + ["malignant"] * 4,
        "mag": [40, 100] * 5,
        "subtype": ["adenosis"] * 4 + ["fibroadenoma"] * 2 + ["ductal_carcinoma"] * 4,
        "probability": [0.1, 0.2, 0.3, 0.9, 0.6, 0.7, 0.8, 0.4, 0.1, 0.5],
        "filename": [f"{number}.png" for number in range(10)],
    }).assign(prediction=lambda rows: np.where(rows.probability >= 0.5, "malignant", "benign"))  # fmt: skip


def test_both_patient_scores_by_hand(images):
    results = metrics.score_patients(images, 0.5)
    # A: 3 of 4 right, B: 0 of 2, C: 1 of 3, D: 1 of 1.
    assert results["recognition_rate"] == pytest.approx((3 / 4 + 0 + 1 / 3 + 1) / 4, abs=1e-12)
    # Means: A 0.375 benign, right; B 0.65 malignant, wrong; C 1.3 / 3 = 0.43 benign, wrong; D 0.5 malignant, right.
    assert results["patient_accuracy"] == 2 / 4


def test_the_scores_agree_with_scikit_learn(images):
    results = metrics.measure(images, config.load_settings().data, 0.5)
    true, predicted = images.label == "malignant", images.prediction == "malignant"
    assert results["sensitivity"] == results["recall"] == 2 / 4 and results["specificity"] == 3 / 6
    assert results["precision"] == 2 / 5 and results["balanced_accuracy"] == 0.5
    assert results["mcc"] == pytest.approx(sklearn.metrics.matthews_corrcoef(true, predicted), abs=1e-12)
    assert results["f1"] == pytest.approx(sklearn.metrics.f1_score(true, predicted, average="macro"), abs=1e-12)
    assert results["f1_malignant"] == pytest.approx(4 / 9, abs=1e-12)
    assert results["brier"] == pytest.approx(np.mean((images.probability - true) ** 2), abs=1e-12)
    assert set(metrics.SCORES) <= set(results)


def test_the_subgroups_are_counted_by_hand(images):
    results = metrics.measure(images, config.load_settings().data, 0.5)
    assert results["by_slide"]["A2"]["accuracy"] == 0.5 and results["by_slide"]["A2"]["n"] == 2
    assert results["by_subtype"]["ductal_carcinoma"]["patients"] == 2
    assert results["by_subtype"]["ductal_carcinoma"]["specificity"] is None
    assert results["by_patient"]["B"]["accuracy"] == 0.0
    at_40 = images[images.mag == 40]
    assert results["by_magnification"]["40"]["roc_auc"] == pytest.approx(
        sklearn.metrics.roc_auc_score(at_40.label == "malignant", at_40.probability), abs=1e-12
    )
    assert results["patients_by_class"] == {"benign": 2, "malignant": 2}


def test_the_calibration_error_by_hand():
    # Two bins: 0.2 with 1 of 4 malignant, 0.9 with 1 of 2.
    error = metrics.calibration_error(np.array([1, 0, 0, 0, 1, 0], bool), np.array([0.21] * 4 + [0.9] * 2))
    assert error == pytest.approx((4 * abs(0.25 - 0.21) + 2 * abs(0.5 - 0.9)) / 6, abs=1e-12)


def test_a_probability_of_one_falls_into_the_last_bin():
    assert metrics.bin_of(np.array([0.0, 0.0999, 0.1, 1.0])).tolist() == [0, 0, 1, 9]
