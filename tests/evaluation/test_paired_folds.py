import numpy as np
import pandas as pd
import pytest
from scipy import stats

from evaluation import paired_folds


def predictions(right, repeats=2):
    """Two images of each of eight patients in four folds; `right` says of each row whether it is predicted right."""
    rows = pd.DataFrame(
        [
            (f"{patient}-{image}", patient, repeat)
            for repeat in range(repeats)
            for patient in range(8)
            for image in (0, 1)
        ],
        columns=["filename", "patient", "repeat"],
    )
    rows["label"] = np.where(rows.patient % 2, "malignant", "benign")
    rows["fold"] = rows.patient // 2 + 1
    other = np.where(rows.label == "benign", "malignant", "benign")
    return rows.assign(prediction=np.where(right, rows.label, other))


def test_the_t_test_is_that_of_the_paper():
    differences, share = np.array([0.1, 0.0, 0.05, -0.02]), 1 / 3
    t, p = paired_folds.corrected_t_test(differences, share)
    plain = stats.ttest_1samp(differences, 0)
    assert t == pytest.approx(plain.statistic * np.sqrt((1 / 4) / (1 / 4 + share)))
    assert p == pytest.approx(2 * stats.t.sf(abs(t), 3)) and p > plain.pvalue


@pytest.mark.parametrize(
    "differences, expected", [([0, 0], (0, 1)), ([0.1, 0.1], (np.inf, 0)), ([-0.1, -0.1], (-np.inf, 0))]
)
def test_folds_that_all_differ_alike_have_no_deviation(differences, expected):
    assert paired_folds.corrected_t_test(np.array(differences), 0.25) == expected


def test_the_difference_is_that_of_the_balanced_accuracy_of_each_fold():
    random = np.random.RandomState(0)
    first, second = (predictions(random.uniform(size=32) < chance) for chance in (0.5, 0.9))
    # Of 20 images four are never tested.
    found = paired_folds.paired(first, second.sample(frac=1, random_state=1), 20)

    def balanced(rows):
        return (rows.prediction == rows.label).groupby(rows.label).mean().mean()

    assert found["difference"] == pytest.approx(balanced(second) - balanced(first))
    by_fold = [
        balanced(second[of_fold]) - balanced(first[of_fold])
        for repeat in (0, 1) for fold in (1, 2, 3, 4)
        if (of_fold := (first.repeat == repeat) & (first.fold == fold)).any()
    ]  # fmt: skip
    t, p = paired_folds.corrected_t_test(np.array(by_fold), 4 / 16)
    assert (found["corrected_t"], found["corrected_p"], found["folds"]) == (pytest.approx(t), pytest.approx(p), 8)
    assert found["low"] < found["difference"] < found["high"]


def test_equal_cross_validations_do_not_differ():
    rows = predictions(np.arange(32) % 3 == 0)
    found = paired_folds.paired(rows, rows, 16)
    assert (found["difference"], found["low"], found["high"], found["corrected_p"]) == (0, 0, 0, 1)
