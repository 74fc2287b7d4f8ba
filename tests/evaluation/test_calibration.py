import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from evaluation import calibration
from safety.errors import InputError
from training import decision

LABELS = np.array([0, 0, 0, 0, 1, 1, 1, 1, 1, 1], bool)
SCORES = np.array([0.1, 0.2, 0.6, 0.3, 0.4, 0.55, 0.7, 0.8, 0.9, 0.15])


@pytest.mark.parametrize("rule, plain", [
    ("0.5", "0.5"), ("0", "0.0"), ("1", "1.0"), ("youden", "youden"), ("f1", "f1"), ("sensitivity=0.95",) * 2,
    ("+0.5", "0.5"), (" 0.5", "0.5"), (".5", "0.5"), ("sensitivity=.9", "sensitivity=0.9"),
])  # fmt: skip
def test_the_rules_that_there_are(rule, plain):
    assert decision.check_rule(rule) == plain
    assert decision.is_chosen(plain) == (not plain[0].isdigit())


@pytest.mark.parametrize("rule", [
    "", "best", "1.5", "-0.1", "nan", "sensitivity", "sensitivity=0", "sensitivity=2", "sensitivity=", "0.5=0.95", "0.5=",
    "0.5=x", "youden=0.5", "f1=1", "=0.5",
])  # fmt: skip
def test_other_rules_are_refused(rule):
    with pytest.raises(InputError, match="allowed are a number from 0 to 1, youden, f1, or sensitivity=S"):
        decision.check_rule(rule)


def rates(threshold):
    predicted = threshold <= SCORES
    return predicted[LABELS].mean(), (~predicted)[~LABELS].mean()


def test_youden_is_the_best_sum_of_both_rates():
    best = max(SCORES, key=lambda threshold: sum(rates(threshold)))
    assert sum(rates(calibration.choose_threshold(LABELS, SCORES, "youden"))) == pytest.approx(sum(rates(best)))


def test_f1_is_the_best_f1_of_malignant():
    chosen = calibration.choose_threshold(LABELS, SCORES, "f1")
    scores = [metrics.f1_score(LABELS, threshold <= SCORES) for threshold in SCORES]
    assert metrics.f1_score(LABELS, chosen <= SCORES) == pytest.approx(max(scores))


@pytest.mark.parametrize("wanted, threshold", [(0.5, 0.7), (0.51, 0.55), (0.8, 0.4), (0.95, 0.15), (1.0, 0.15)])
def test_sensitivity_takes_the_highest_threshold_that_finds_enough(wanted, threshold):
    chosen = calibration.choose_threshold(LABELS, SCORES, f"sensitivity={wanted}")
    assert chosen == threshold and rates(chosen)[0] >= wanted


TINY = float(np.finfo(np.float32).tiny)
probabilities = st.lists(st.floats(TINY, 1, width=32), min_size=2, max_size=40, unique=True)


@settings(deadline=None, max_examples=80)
@given(probabilities, st.floats(*decision.TEMPERATURE_RANGE))
def test_scaling_never_changes_the_order(values, temperature):
    assert (np.diff(calibration.scale(np.sort(values), temperature)) > 0).all()


def test_separated_classes_drive_the_temperature_to_its_bound_where_the_order_is_still_kept():
    surest = 1 - np.arange(1000, 0, -1) * 2.0**-24
    probability = np.concatenate([np.linspace(0.01, 0.4, 1000), surest])
    temperature = calibration.fit_temperature(np.repeat([False, True], 1000), probability)
    assert temperature == decision.TEMPERATURE_RANGE[0]
    assert "bound" in calibration.format_temperature(temperature) and calibration.format_temperature(0.6) == "0.600"
    assert (np.diff(calibration.scale(probability, temperature)) > 0).all()


def test_a_distance_from_the_threshold_is_a_share_of_its_side():
    certainty = calibration.certainty(np.array([0.0, 0.45, 0.9, 0.95, 1.0]), 0.9)
    assert certainty.tolist() == pytest.approx([1, 0.5, 0, 0.5, 1])
    assert calibration.certainty(np.array([0.0, 0.5, 1.0]), 0.0).tolist() == [0, 0.5, 1]
    assert calibration.certainty(np.array([0.0, 0.5, 1.0]), 1.0).tolist() == [1, 0.5, 0]


def test_scaling_leaves_half_where_it_is_and_one_changes_nothing():
    assert calibration.scale(np.array([0.5]), 7.0)[0] == 0.5
    np.testing.assert_allclose(calibration.scale(SCORES, 1.0), SCORES, atol=1e-12)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.booleans(), st.floats(0, 1, width=32)), min_size=2, max_size=60))
def test_the_temperature_never_raises_the_log_loss_of_validation(rows):
    labels, values = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
    temperature = calibration.fit_temperature(labels, values)
    before = calibration.log_loss(labels, values)
    assert calibration.log_loss(labels, calibration.scale(values, temperature)) <= before


def test_probabilities_that_are_too_sure_are_cooled():
    rng = np.random.default_rng(0)
    honest = rng.uniform(0.02, 0.98, 5000)
    labels = rng.random(5000) < honest
    too_sure = calibration.scale(honest, 1 / 3)
    assert calibration.fit_temperature(labels, too_sure) == pytest.approx(3, rel=0.1)
    assert calibration.fit_temperature(labels, honest) == pytest.approx(1, rel=0.1)


def test_log_loss_is_scikit_learns():
    assert calibration.log_loss(LABELS, SCORES) == pytest.approx(metrics.log_loss(LABELS, SCORES), abs=1e-12)


@pytest.mark.parametrize("fitted, words", [
    (5, "temperature 1.200, the mean over the folds (1.000 to 1.500), each fitted on its inner folds"),
    (3, "(1.000 to 1.500); fitted on the inner folds of 3 of 5, and 1 where the training part has fewer than 5 patients"),
    (0, "temperature 1, not fitted: the training part of each fold has fewer than 5 patients of a class"),
])  # fmt: skip
def test_the_temperature_of_folds_is_described_as_it_was_found(fitted, words):
    assert words in calibration.describe_temperature({"over_folds": [1.2, 1.0, 1.5], "folds_fitted": [fitted, 5]})
