import interval_coverage
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from evaluation import metrics, small_sample


def with_ends(estimate):
    return np.array([estimate.value, *small_sample.interval(estimate)])


def rate_interval(*arguments):
    return with_ends(small_sample.estimate_rate(*map(np.asarray, arguments)))


def auc_interval(malignant, benign):
    return with_ends(small_sample.estimate_auc(malignant, benign))


def frame(right_by_patient, rng):
    """Images from {(label, patient): [right images, wrong images]}, with probabilities on the side of the prediction."""
    rows = []
    for (label, patient), (right, wrong) in right_by_patient.items():
        other = {"benign": "malignant", "malignant": "benign"}[label]
        for prediction in [label] * right + [other] * wrong:
            low = 0.5 if prediction == "malignant" else 0.0
            rows.append((label, patient, prediction, round(rng.uniform(low, low + 0.49), 2)))
    table = pd.DataFrame(rows, columns=["label", "patient", "prediction", "probability"])
    return table.sample(frac=1, random_state=0).reset_index(drop=True)


@pytest.fixture(scope="module")
def unequal():
    cases = {
        ("benign", f"b{number}"): [right, wrong]
        for number, (right, wrong) in enumerate([(9, 1), (3, 3), (20, 12), (5, 0)])
    }
    cases |= {
        ("malignant", f"m{number}"): [right, wrong] for number, (right, wrong) in enumerate([(8, 2), (12, 1), (2, 4)])
    }
    return frame(cases, np.random.default_rng(0))


def test_the_interval_of_equal_patients_is_the_one_computed_by_hand():
    # Rates .5 .7 .9 .9 of 10 images each: mean .75, squared deviations .0625 .0025 .0225 .0225, sum .11.
    share, images = np.array([0.5, 0.7, 0.9, 0.9]), np.full(4, 10)
    within = 10 * (0.25 + 0.21 + 0.09 + 0.09) / 36
    between = (10 * 0.11 / 3 - within) / 10
    between = (3 * between + 0.5 * 0.2 * (between + within)) / 3.5
    # Equal patients: CR2 is the textbook's variance of a mean.
    variance = max(between / 4 + within / 40, 0.11 / 3 / 4)
    half = 3.182446305284263 * variance**0.5 / (0.75 * 0.25)  # t of 3 degrees of freedom
    low, high = (1 / (1 + np.exp(-(np.log(3) + side * half))) for side in (-1, 1))
    found = rate_interval(share, images, images)
    assert found == pytest.approx((0.75, low, high), abs=1e-12)
    assert found == pytest.approx(rate_interval(share, images, np.ones(4)), abs=1e-12)


def test_a_large_patient_who_differs_gives_the_general_formula_of_cr2():
    # In matrices, as Bell and McCaffrey: least squares on a constant, patients' means of equal variance.
    images, mean = np.array([300, 40, 40, 50, 60, 70, 45]), np.array([0.2, 0.9, 0.85, 0.9, 0.8, 0.95, 0.9])
    weight = images / images.sum()
    residual_maker = np.eye(7) - np.outer(np.ones(7), weight)
    adjusted = residual_maker @ mean / np.sqrt(np.diag(residual_maker @ residual_maker.T))
    expected = weight @ np.diag(adjusted**2) @ weight
    assert small_sample.variance_of_mean(mean, mean * (1 - mean), images, weight) == pytest.approx(expected, abs=1e-12)
    # Where he is like the others, the components give more.
    mean = np.array([0.85, *mean[1:]])
    residual = (residual_maker @ mean) ** 2 / np.diag(residual_maker @ residual_maker.T)
    assert small_sample.variance_of_mean(mean, mean * (1 - mean), images, weight) > weight**2 @ residual


def test_the_components_are_those_of_the_process():
    rng = np.random.default_rng(2)
    right, images = interval_coverage.draw(16, 0.8, 0.3, 4000, rng)
    share = right / images
    between, within = small_sample.variance_components(share, share * (1 - share), images)
    assert within.mean() == pytest.approx(0.7 * 0.16, rel=0.03)
    assert between.mean() == pytest.approx(0.3 * 0.16, rel=0.05)


def test_the_points_within_the_intervals_are_the_scores_themselves(unequal):
    true = unequal.label == "malignant"
    by_class = {
        label: {"precision": 0, "f1": 0, "recall": rows.eq(label).mean()}
        for label, rows in unequal.prediction.groupby(unequal.label)
    }
    scores = {
        **metrics.score_decisions(unequal, by_class),
        **metrics.score_probabilities(true, unequal.probability),
        **metrics.score_patients(unequal, 0.5),
    }
    found = small_sample.intervals(unequal)
    assert set(found) <= set(metrics.SCORES)
    for name, (low, high) in found.items():
        assert 0 <= low < scores[name] < high <= 1, name
    malignant, benign = unequal[true], unequal[~true]
    assert auc_interval(malignant, benign)[0] == pytest.approx(scores["roc_auc"], abs=1e-12)


def test_each_score_takes_its_own_class_and_weights(unequal):
    found = small_sample.intervals(unequal)
    images = {"benign": [10, 6, 32, 5], "malignant": [10, 13, 6]}
    share = {"benign": [0.9, 0.5, 0.625, 1], "malignant": [0.8, 12 / 13, 1 / 3]}
    parts = {label: rate_interval(share[label], images[label], images[label]) for label in images}
    assert found["specificity"] == pytest.approx(parts["benign"][1:], abs=1e-12)
    assert found["sensitivity"] == found["recall"] == pytest.approx(parts["malignant"][1:], abs=1e-12)
    patients = {label: (share[label], images[label], [1] * len(images[label])) for label in images}
    pooled = {label: (share[label], images[label], images[label]) for label in images}
    assert found["accuracy"] == pytest.approx(mover(pooled, (53, 29)), abs=1e-12)
    assert found["balanced_accuracy"] == pytest.approx(mover(pooled, (1, 1)), abs=1e-12)
    assert found["recognition_rate"] == pytest.approx(mover(patients, (4, 3)), abs=1e-12)


def mover(parts, weights):
    """Zou and Donner's interval of 4 benign and 3 malignant patients, with Satterthwaite's degrees of freedom."""
    shares = np.array(weights) / sum(weights)
    rates = [small_sample.estimate_rate(*map(np.array, part)) for part in parts.values()]
    (benign, malignant), value = shares**2 * [rate.variance for rate in rates], shares @ [rate.value for rate in rates]
    freedom = (benign + malignant) ** 2 / (benign**2 / 3 + malignant**2 / 2)
    ends = np.array([small_sample.interval(rate._replace(freedom=freedom)) for rate in rates])
    far = np.sqrt(shares**2 @ (ends - [[rate.value] for rate in rates]) ** 2)
    return [value - far[0], value + far[1]]


def test_the_order_of_the_images_changes_nothing(unequal):
    mixed = unequal.sample(frac=1, random_state=7)
    for name, pair in small_sample.intervals(unequal).items():
        assert small_sample.intervals(mixed)[name] == pytest.approx(pair, abs=1e-12)


def delong(malignant, benign):
    """The textbook's variance of the AUC of independent images, from all pairs."""
    pairs = (malignant[:, None] > benign).astype(float) + (malignant[:, None] == benign) / 2
    return pairs.mean(), pairs.mean(axis=1).var(ddof=1) / len(malignant) + pairs.mean(axis=0).var(ddof=1) / len(benign)


def test_with_one_image_a_patient_the_auc_has_the_variance_of_delong():
    rng = np.random.default_rng(3)
    malignant, benign = rng.normal(1, 1, 300).round(1), rng.normal(0, 1, 400).round(1)
    tables = [pd.DataFrame({"probability": score, "patient": np.arange(len(score))}) for score in (malignant, benign)]
    estimate, variance = delong(malignant, benign)
    half = 1.96 * variance**0.5 / (estimate * (1 - estimate))
    logit = np.log(estimate / (1 - estimate))
    expected = [estimate, *(1 / (1 + np.exp(-(logit + side * half))) for side in (-1, 1))]
    assert auc_interval(*tables) == pytest.approx(expected, abs=5e-4)


def test_the_degrees_of_freedom_of_the_auc_are_satterthwaite_s():
    rng = np.random.default_rng(6)
    tables = [interval_coverage.scored(number, shift, 0.3, rng) for number, shift in ((3, 1.2), (5, 0))]
    variances = []
    for own, other in (tables, tables[::-1]):
        share = (own.probability.to_numpy()[:, None] > other.probability.to_numpy()).mean(axis=1)
        groups = [share[own.patient == patient] for patient in own.patient.unique()]
        images = np.array([len(group) for group in groups])
        mean, spread = np.array([[group.mean(), group.var()] for group in groups]).T
        variances.append(small_sample.variance_of_mean(mean, spread, images, images / images.sum()))
    freedom = sum(variances) ** 2 / (variances[0] ** 2 / 2 + variances[1] ** 2 / 4)
    estimate, low, high = auc_interval(*tables)
    half = (np.log(high / (1 - high)) - np.log(low / (1 - low))) / 2
    assert half == pytest.approx(stats.t.ppf(0.975, freedom) * sum(variances) ** 0.5 / (estimate * (1 - estimate)))


def test_the_same_images_taken_for_one_patient_each_make_the_auc_look_surer():
    rng = np.random.default_rng(4)
    tables = [interval_coverage.scored(12, shift, 0.4, rng) for shift in (1.2, 0)]
    _, low, high = auc_interval(*tables)
    _, low_alone, high_alone = auc_interval(*(table.assign(patient=np.arange(len(table))) for table in tables))
    assert high - low > 3 * (high_alone - low_alone)


@pytest.mark.parametrize("patients, low", [(2, 0.158), (4, 0.398), (10, 0.692), (16, 0.794)])
def test_all_right_is_as_sure_as_that_many_patients_in_a_row(patients, low):
    images = np.full(patients, 30)
    found = rate_interval(np.ones(patients), images, images)
    assert found == pytest.approx((1, low, 1), abs=5e-4)
    assert found[1] == pytest.approx(stats.binomtest(patients, patients).proportion_ci().low, abs=1e-12)
    assert rate_interval(np.zeros(patients), images, images) == pytest.approx((0, 0, 1 - low), abs=5e-4)


@pytest.mark.parametrize("share", [[1, 1, 1, 1], [0.998, 1, 1, 1], [0, 1, 1, 1]])
def test_unequal_patients_are_as_sure_as_their_effective_number_at_least(share):
    images = np.array([500, 50, 50, 50])
    effective = 650**2 / (500**2 + 3 * 50**2)
    value, low, high = rate_interval(share, images, images)
    ends = [stats.beta.ppf(0.025, value * effective, (1 - value) * effective + 1)]
    ends += [stats.beta.ppf(0.975, value * effective + 1, (1 - value) * effective) if value < 1 else 1]
    assert ends[0] - 1e-9 <= low < value <= high <= ends[1] + 1e-9
    assert low == pytest.approx(ends[0], abs=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_all_right_in_sixteen_unequal_patients_is_exactly_one(seed):
    images = np.random.default_rng(seed).permutation(interval_coverage.SIZES)
    _, low, high = rate_interval(np.ones(16), images, images)
    assert (low, high) == (pytest.approx(0.025 ** ((images**2).sum() / images.sum() ** 2)), 1)


def test_classes_that_are_apart_have_an_interval_of_the_auc():
    tables = [
        pd.DataFrame({"probability": score + np.arange(12) / 100, "patient": np.arange(12) // 3})
        for score in (0.8, 0.1)
    ]
    assert auc_interval(*tables) == pytest.approx((1, 0.025**0.25, 1))
    assert auc_interval(*tables[::-1]) == pytest.approx((0, 0, 1 - 0.025**0.25))


def test_a_class_with_a_single_patient_has_no_interval(unequal):
    rows = unequal[(unequal.label == "malignant") | (unequal.patient == "b0")]
    found = small_sample.intervals(rows)
    assert [name for name, pair in found.items() if pair] == ["sensitivity", "recall"]
    assert found["sensitivity"] == small_sample.intervals(unequal)["sensitivity"]
    alone = small_sample.intervals(unequal[unequal.label == "malignant"])
    assert [name for name, pair in alone.items() if pair] == ["sensitivity", "recall"]


def test_patients_who_are_alike_are_no_proof_that_all_are():
    images = np.full(5, 60)
    _, low, high = rate_interval(np.full(5, 0.9), images, images)
    _, low_images, high_images = rate_interval(np.repeat([1.0, 0.0], [270, 30]), np.ones(300), np.ones(300))
    assert high - low > high_images - low_images


def test_few_patients_are_warned_of():
    assert small_sample.warning({"benign": 10, "malignant": 54}) is None
    message = small_sample.warning({"benign": 4, "malignant": 11})
    assert message.startswith("only 4 benign patients: ") and "malignant" not in message
    assert small_sample.warning({"benign": 4, "malignant": 9}).startswith("only 4 benign and 9 malignant patients: ")


@pytest.mark.parametrize(
    "patients, correlation, rate", [(10, 0.1, 0.6), (10, 0.4, 0.95), (16, 0.3, 0.8), (54, 0.2, 0.9)]
)
def test_the_interval_covers_and_the_bootstrap_does_less(patients, correlation, rate):
    rng = np.random.default_rng(0)
    right, images = interval_coverage.draw(patients, rate, correlation, 2000, rng)
    held = interval_coverage.holds(interval_coverage.headline(right, images, rng), rate)
    before = interval_coverage.holds(interval_coverage.percentile_bootstrap(right[:500], images[:500], rng), rate)
    print(f"{held:.1%} of 2,000 simulated test sets, bootstrap {before:.1%}")
    assert 0.9 <= held <= 0.985 and before < held - 0.01


def test_the_interval_of_the_auc_covers():
    rng = np.random.default_rng(0)
    found = [
        auc_interval(interval_coverage.scored(10, 1.19, 0.3, rng), interval_coverage.scored(10, 0, 0.3, rng))
        for _ in range(150)
    ]
    assert 0.9 <= interval_coverage.holds(np.array(found).T[1:], stats.norm.cdf(1.19 / 2**0.5)) <= 1
