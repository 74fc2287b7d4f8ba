import numpy as np
import pandas as pd
import pytest
import sklearn.metrics
from scipy.special import expit

from evaluation import bootstrap, metrics


def simulated(patients, images, rng, spread=1.5, truth=0.8):
    """Patients of whom each has a rate of its own at which its images are recognised; on average `truth`."""
    rate = expit(np.log(truth / (1 - truth)) + rng.normal(0, spread, 2 * patients))
    label = np.repeat(["benign", "malignant"], patients)
    rows = pd.DataFrame({"patient": np.arange(2 * patients).astype(str), "label": label, "rate": rate})
    rows = rows.loc[rows.index.repeat(images)].reset_index(drop=True)
    right = rng.random(len(rows)) < rows.rate
    malignant = (rows.label == "malignant") == right
    return rows.assign(
        filename=[f"{number}.png" for number in range(len(rows))],
        probability=np.where(malignant, rng.uniform(0.5, 1, len(rows)), rng.uniform(0, 0.4999, len(rows))).round(2),
        prediction=np.where(malignant, "malignant", "benign"),
    )


@pytest.fixture(scope="module")
def images():
    return simulated(8, 5, np.random.default_rng(0))


def test_every_drawn_score_is_that_of_scikit_learn_for_that_draw(images):
    weights = bootstrap.resample(images.patient, images.label, 5, 0)
    drawn = bootstrap.weighted_scores(images, weights)
    for number, weight in enumerate(weights.astype(int)):
        rows = images.loc[images.index.repeat(weight)]
        true, predicted = rows.label == "malignant", rows.prediction == "malignant"
        expected = {
            "accuracy": sklearn.metrics.accuracy_score(true, predicted),
            "balanced_accuracy": sklearn.metrics.balanced_accuracy_score(true, predicted),
            "sensitivity": sklearn.metrics.recall_score(true, predicted),
            "recall": sklearn.metrics.recall_score(true, predicted),
            "specificity": sklearn.metrics.recall_score(~true, ~predicted),
            "precision": sklearn.metrics.precision_score(true, predicted),
            "f1": sklearn.metrics.f1_score(true, predicted, average="macro"),
            "f1_malignant": sklearn.metrics.f1_score(true, predicted),
            "f1_benign": sklearn.metrics.f1_score(~true, ~predicted),
            "mcc": sklearn.metrics.matthews_corrcoef(true, predicted),
            **metrics.score_probabilities(true.to_numpy(), rows.probability.to_numpy()),
        }
        assert {name: values[number] for name, values in drawn.items()} == pytest.approx(expected, abs=1e-12)


def test_patients_are_drawn_whole_and_each_class_keeps_its_number(images):
    weights = bootstrap.resample(images.patient, images.label, 50, 0)
    frame = pd.DataFrame(weights.T).groupby(images.patient.to_numpy())
    assert (frame.nunique() == 1).all(axis=None) and (weights.max(axis=1) > 1).any()
    for label in ("benign", "malignant"):
        drawn = frame.first()[images.groupby("patient").label.first() == label].sum()
        assert (drawn == 8).all()


def test_the_patient_scores_are_drawn_with_their_patients(images):
    intervals = bootstrap.intervals(images, 0.5, draws=300)
    patients = metrics.by_patient(images, 0.5)
    low, high = intervals["recognition_rate"]["patient"]
    assert low < patients.correct.mean() < high and intervals["recognition_rate"]["image"] is None
    # All patients have as many images, so the rate is the accuracy.
    assert [low, high] == pytest.approx(intervals["accuracy"]["patient"])


def test_the_same_seed_draws_the_same(images):
    assert bootstrap.intervals(images, 0.5, 1, 200) == bootstrap.intervals(images, 0.5, 1, 200)
    assert bootstrap.intervals(images, 0.5, 1, 200) != bootstrap.intervals(images, 0.5, 2, 200)


def test_many_rows_are_drawn_in_blocks_of_different_draws(images, monkeypatch):
    whole = bootstrap.intervals(images, 0.5)
    monkeypatch.setattr(bootstrap, "DRAWN_AT_ONCE", 250 * len(images))
    assert bootstrap._blocks(len(images), 2000) == [250] * 8
    in_blocks = bootstrap.intervals(images, 0.5)
    assert in_blocks["accuracy"]["image"] == pytest.approx(whole["accuracy"]["image"], abs=0.02)
    assert in_blocks["roc_auc"]["patient"] == pytest.approx(whole["roc_auc"]["patient"], abs=0.05)
    # Equal draws in all blocks would repeat the first one.
    few = bootstrap.intervals(images, 0.5, draws=250)
    assert in_blocks["brier"]["image"] != few["brier"]["image"]


def test_a_class_with_one_patient_has_no_interval_over_patients(images):
    rows = images[(images.label == "malignant") | (images.patient == "0")]
    intervals = bootstrap.intervals(rows, 0.5, draws=100)
    assert all(pairs["patient"] is None for pairs in intervals.values()) and intervals["accuracy"]["image"]
    assert bootstrap.curve_bands(rows) == {}


def drawn_one_by_one(images, score, draws):
    """The 95 % interval of a score (rows -> number), from tables put together of the patients of each draw."""
    weights = bootstrap.resample(images.patient, images.label, draws, 0).astype(int)
    scores = []
    for weight in weights:
        times = dict(zip(images.patient, weight))
        copies = [
            rows.assign(patient=f"{patient}, {copy}")
            for patient, rows in images.groupby("patient")
            for copy in range(times[patient])
        ]
        scores.append(score(pd.concat(copies)))
    return pytest.approx(np.percentile(scores, [2.5, 97.5]).tolist(), abs=1e-12)


def pooled_accuracy(rows):
    patients = rows.groupby("patient").agg({"probability": "mean", "label": "first"})
    return sklearn.metrics.accuracy_score(patients.label == "malignant", patients.probability >= 0.5)


def sensitivity_at(rows, fall_out):
    x, y, _ = sklearn.metrics.roc_curve(rows.label == "malignant", rows.probability, drop_intermediate=False)
    return np.interp(fall_out, x, y)


def precision_at(rows, wanted):
    precision, recall, _ = sklearn.metrics.precision_recall_curve(rows.label == "malignant", rows.probability)
    return precision[np.flatnonzero(recall >= wanted)[-1]]


@pytest.fixture(scope="module")
def unequal(images):
    """Patients of one to five images."""
    return images[images.groupby("patient").cumcount() <= images.patient.astype(int) % 5].reset_index(drop=True)


def test_intervals_are_those_of_tables_put_together_patient_by_patient(unequal):
    intervals = bootstrap.intervals(unequal, 0.5, draws=60)
    accuracy = drawn_one_by_one(unequal, lambda rows: sklearn.metrics.accuracy_score(rows.label, rows.prediction), 60)
    assert intervals["accuracy"]["patient"] == accuracy
    assert intervals["patient_accuracy"]["patient"] == drawn_one_by_one(unequal, pooled_accuracy, 60)


@pytest.mark.parametrize("name, score, place", [("roc", sensitivity_at, 33), ("pr", precision_at, 57)])
def test_bands_are_those_of_tables_put_together_patient_by_patient(unequal, name, score, place):
    grid, low, high = bootstrap.curve_bands(unequal, draws=60)[name]
    expected = drawn_one_by_one(unequal, lambda rows: score(rows, grid[place]), 60)
    assert [low[place], high[place]] == expected


def test_the_difference_of_two_runs_is_drawn_patient_by_patient(unequal):
    second = unequal.assign(prediction=np.random.default_rng(5).permutation(unequal.prediction))
    paired = bootstrap.paired(unequal, second, draws=60)

    def gain(rows):
        return (rows.second == rows.label).mean() - (rows.prediction == rows.label).mean()

    expected = drawn_one_by_one(unequal.assign(second=second.prediction), gain, 60)
    assert [paired["low"], paired["high"]] == expected


def coverage(repeats, draws):
    rng = np.random.default_rng(1)
    # The truth: what the same process gives in the long run.
    truth = (lambda rows: (rows.label == rows.prediction).mean())(simulated(40_000, 5, rng))
    held = {"patient": 0, "image": 0}
    for seed in range(repeats):
        intervals = bootstrap.intervals(simulated(40, 10, rng), 0.5, seed, draws)["accuracy"]
        for unit in held:
            held[unit] += intervals[unit][0] <= truth <= intervals[unit][1]
    return {unit: count / repeats for unit, count in held.items()}


@pytest.mark.parametrize("repeats, draws, low, high", [
    (60, 300, 0.86, 1.0),
    pytest.param(300, 2000, 0.92, 0.98, marks=pytest.mark.long),
])  # fmt: skip
def test_the_interval_over_patients_covers_the_truth_and_that_over_images_does_not(repeats, draws, low, high):
    held = coverage(repeats, draws)
    print(f"of {repeats} simulated test sets the truth lay in the interval over patients in {held['patient']:.1%}, "
          f"over images in {held['image']:.1%}")  # fmt: skip
    assert low <= held["patient"] <= high and held["image"] < held["patient"] - 0.1


def test_the_bands_hold_the_curve_of_the_test_set(images):
    bands = bootstrap.curve_bands(images)
    fall_out, sensitivity, _ = sklearn.metrics.roc_curve(images.label == "malignant", images.probability)
    grid, low, high = bands["roc"]
    curve = np.interp(grid, fall_out, sensitivity)
    assert (low <= high).all() and ((low - 1e-9 <= curve) & (curve <= high + 1e-9)).mean() > 0.9
    grid, low, high = bands["pr"]
    assert (low <= high).all() and low.min() >= 0 and high.max() <= 1
    assert high[-1] < 1


def test_two_runs_are_compared_image_by_image(images):
    better = images.assign(prediction=images.label)
    wrong = int((images.prediction != images.label).sum())
    paired = bootstrap.paired(images, better.sample(frac=1, random_state=0))
    assert (paired["only_first"], paired["only_second"]) == (0, wrong)
    assert paired["difference"] == pytest.approx(wrong / len(images), abs=1e-12)
    # Exact: all of the differing images on one side.
    assert paired["mcnemar_p"] == pytest.approx(2 * 0.5**wrong)
    assert 0 <= paired["low"] <= paired["difference"] <= paired["high"]
    same = bootstrap.paired(images, images)
    assert same["mcnemar_p"] == 1 and same["difference"] == same["low"] == same["high"] == 0
