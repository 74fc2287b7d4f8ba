"""The contract of a nested cross-validation, with a head of scikit-learn, which takes milliseconds."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import PredefinedSplit, cross_val_predict
from tiny_tree import REAL, fold_rows

import config
import data
from evaluation import cross_validation, final_model, metrics, nested
from evaluation.evaluation import Evaluation
from images import folds, splits
from safety.errors import InputError
from training import out_of_fold
from training.out_of_fold import Prepared

UNITS = st.sampled_from(["patient", "slide", "image"])
RULES = st.sampled_from(["0.5", "youden", "f1"])


def plan_of(*values):
    return nested.Plan(**dict(zip(nested.Plan.model_fields, values)))


@pytest.fixture
def table():
    names = fold_rows(images=3).filename.str.rsplit("/", n=1).str[-1].drop_duplicates()
    return data.describe(names).reset_index(drop=True).assign(pixels=lambda rows: rows.filename)


def features_of(table):
    random = np.random.RandomState(0)
    return table.label_int.to_numpy()[:, None] + random.normal(0, 2, (len(table), 4))


class Heads:
    """Takes the place of `out_of_fold.fit`: an epoch is a weaker penalty, and every call is recorded."""

    def __init__(self, features, labels):
        self.features, self.labels, self.calls = features, labels, []

    def __call__(self, prepared, train, held_out, epochs, every_epoch=True):
        self.calls.append((set(train), set(held_out), epochs))
        last = sum(epochs)
        return None, np.array(
            [self.head(epoch, train, held_out) for epoch in range(1 if every_epoch else last, last + 1)]
        )

    def head(self, epoch, train, held_out):
        head = LogisticRegression(C=0.01 * 4**epoch).fit(self.features[train], self.labels[train])
        return head.predict_proba(self.features[held_out])[:, 1]


def prepared_with(table, *overrides):
    return Prepared(config.load_settings(None, ["train.epochs=4", *overrides]), table, None, [], None, None)


def run(table, heads, plan, drawn=None):
    """The results of all outer folds."""
    drawn = folds.draw(table, plan.unit, plan.folds, plan.repeats) if drawn is None else drawn
    pairs = sorted(set(zip(drawn.repeat, drawn.fold)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(out_of_fold, "fit", heads)
        return [nested.run_fold(prepared_with(table), drawn, *pair, plan) for pair in pairs]


@settings(max_examples=12, deadline=None)
@given(unit=UNITS, count=st.integers(2, 4), repeats=st.integers(1, 2), rule=RULES)
def test_every_image_is_predicted_once_a_repeat_and_no_unit_is_on_two_sides(unit, count, repeats, rule):
    names = fold_rows(images=2).filename.str.rsplit("/", n=1).str[-1].drop_duplicates()
    table = data.describe(names).reset_index(drop=True)
    # Two images of one class and of two units are twins.
    table["pixels"] = table.filename.where(table.index != 30, table.filename[0])
    heads = Heads(features_of(table), table.label_int.to_numpy())
    plan = plan_of(unit, count, repeats, False, False, rule)
    results = run(table, heads, plan)
    tested = pd.DataFrame(
        [(result["repeat"], name) for result in results for name in result["filename"]], columns=["repeat", "name"]
    )
    assert tested.value_counts().eq(1).all() and len(tested) == repeats * len(table)
    units = splits.group_ids(table, unit).to_numpy()
    tests, of_inner_folds = iter(set(table.index[table.filename.isin(result["filename"])]) for result in results), set()
    test = next(tests)
    for train, held_out, _ in heads.calls:
        assert not set(units[list(train)]) & set(units[list(held_out)])
        if held_out != test:
            of_inner_folds |= train | held_out
            continue
        assert not set(units[list(of_inner_folds)]) & set(units[list(test)])
        test, of_inner_folds = next(tests, None), set()
    assert test is None


@given(unit=UNITS, rule=RULES, poisoned=st.integers(1, 3))
@settings(max_examples=8, deadline=None)
def test_poisoned_test_labels_and_pixels_change_nothing_that_was_chosen(unit, rule, poisoned):
    names = fold_rows(images=2).filename.str.rsplit("/", n=1).str[-1].drop_duplicates()
    table = data.describe(names).reset_index(drop=True).assign(pixels=lambda rows: rows.filename)
    plan, features, labels = plan_of(unit, 3, 1, False, False, rule), features_of(table), table.label_int.to_numpy()
    drawn = folds.draw(table, unit, 3)
    expected = run(table, Heads(features, labels), plan, drawn)
    of_fold = (table.filename.map(drawn.set_index("filename").fold) == poisoned).to_numpy()
    spoiled = table.assign(
        label=table.label.mask(of_fold, table.label.map({"benign": "malignant", "malignant": "benign"})),
        label_int=np.where(of_fold, 1 - labels, labels),
    )
    heads = Heads(np.where(of_fold[:, None], 1e3, features), spoiled.label_int.to_numpy())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(out_of_fold, "fit", heads)
        found = nested.run_fold(prepared_with(spoiled), drawn, 1, poisoned, plan)
    same = expected[poisoned - 1]
    assert {key: found[key] for key in ("epochs", "decision", "losses", "validation", "filename")} == {
        key: same[key] for key in ("epochs", "decision", "losses", "validation", "filename")
    }
    assert found["probability"] != same["probability"]


def test_pooled_scores_are_those_of_an_independent_loop_of_scikit_learn():
    file = REAL / "efficientnet-lite0.npz"
    if not file.is_file():
        pytest.skip(f"the real features are not at {file}")
    with np.load(file) as real:
        table, features = data.describe(pd.Series(real["filename"])), real["features"][:, :64].astype(float)
    table["pixels"] = table.filename
    drawn, labels = folds.draw(table, "patient", 5), table.label_int.to_numpy()
    results = run(table, Heads(features, labels), plan_of("patient", 5, 1, False, False, "0.5"), drawn)
    predictions = cross_validation.collect(results)

    fold = table.filename.map(drawn.set_index("filename").fold).to_numpy()
    expected = np.full(len(table), np.nan)
    for number in range(1, 6):
        train = fold != number
        rows = table[train]
        inner = rows.filename.map(folds.draw(rows, "patient", 5).set_index("filename").fold)
        losses = []
        for epoch in range(1, 5):
            head = LogisticRegression(C=0.01 * 4**epoch)
            inner_probability = cross_val_predict(
                head, features[train], labels[train], cv=PredefinedSplit(inner), method="predict_proba"
            )[:, 1]
            log_loss = -np.log(np.where(labels[train], inner_probability, 1 - inner_probability))
            losses.append(np.mean([log_loss[labels[train] == label].mean() for label in (0, 1)]))
        head = LogisticRegression(C=0.01 * 4 ** (1 + np.argmin(losses))).fit(features[train], labels[train])
        expected[~train] = head.predict_proba(features[~train])[:, 1]

    by_name = predictions.set_index("filename").loc[table.filename]
    np.testing.assert_allclose(by_name.probability, expected, atol=1e-9)
    measured = metrics.measure(predictions, config.load_settings().data, predictions.threshold)
    assert measured["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, expected >= 0.5), abs=1e-6)


def test_fine_tuning_starts_in_every_fold_from_the_epoch_of_the_head_that_was_chosen(table, monkeypatch):
    heads = Heads(features_of(table), table.label_int.to_numpy())
    monkeypatch.setattr(out_of_fold, "fit", heads)
    prepared = prepared_with(table, "model.trainable_from=conv5_block3", "train.fine_tune_epochs=2")
    drawn = folds.draw(table, "patient", 3)
    result = nested.run_fold(prepared, drawn, 1, 1, plan_of("patient", 3, 1, False, False, "0.5"))
    head, tuned = result["epochs"]
    assert [call[2] for call in heads.calls] == [[4]] * 3 + [[head, 2]] * 3 + [[head, tuned]]
    assert 0 <= tuned <= 2
    assert tuned == np.argmin(result["losses"][head - 1 :])


def test_a_patient_is_classified_once_a_repeat_at_the_threshold_of_its_fold():
    rows = pd.DataFrame(
        {
            "patient": ["a", "a", "b", "b"], "label": ["malignant", "malignant", "benign", "benign"],
            "repeat": [1, 2, 1, 2], "probability": [0.4, 0.4, 0.4, 0.4], "threshold": [0.3, 0.5, 0.5, 0.3],
        }
    )  # fmt: skip
    rows["prediction"] = np.where(rows.probability >= rows.threshold, "malignant", "benign")
    patients = metrics.by_patient(rows, rows.threshold).set_index("patient")
    assert patients.pooled_correct.to_dict() == {"a": 0.5, "b": 0.5}
    assert patients.correct.to_dict() == {"a": 0.5, "b": 0.5}


def test_no_patient_validates_and_trains_under_the_official_folds(full_table):
    drawn = folds.official(full_table)
    table = full_table.drop_duplicates("filename").reset_index(drop=True)
    # Slide 13412 has images of equal pixels under two names, on both sides of some folds.
    table["pixels"] = table.filename.str.replace("_DC-14-13412", "_LC-14-13412", regex=False)
    plan, official = plan_of("patient", 5, 1, True, False, "0.5"), full_table.set_index(["fold", "filename"]).grp
    for fold in range(1, 6):
        train, test = nested.parts(table, drawn, fold, fold)
        assert (
            len(test) == (official[fold] == "test").sum() and (official[fold][table.filename[train]] == "train").all()
        )
        assert not set(table.pixels[train]) & set(table.pixels[test])
        rows = table.iloc[train]
        inner = nested.inner_folds(rows, plan, seed=0)
        assert (
            rows.patient.groupby(rows.patient)
            .transform("size")
            .eq(rows.groupby(["patient", inner]).patient.transform("size"))
            .all()
        )
        assert pd.Series(inner).value_counts().size == 5


def test_what_papers_print_of_the_official_folds(table):
    rows = pd.concat(
        [table.assign(fold=fold, grp=["test", "train"] * (len(table) // 2)) for fold in range(1, 6)], ignore_index=True
    )
    drawn = folds.official(rows)
    predictions = table.merge(drawn, on="filename").assign(probability=0.9, prediction="malignant", threshold=0.5)
    found = pd.DataFrame(cross_validation.published_figures(predictions, table, drawn)).set_index("magnification")
    tested = table.iloc[::2]
    right = tested.label == "malignant"
    assert list(found.index) == ["40", "100", "200", "400", "all"]
    assert found.accuracy["all"] == pytest.approx(right.mean()) and found.accuracy_deviation["all"] == pytest.approx(0)
    assert found.recognition_rate["all"] == pytest.approx(right.groupby(tested.patient).mean().mean())
    assert found.shared_patient["all"] == 1


def test_a_slide_that_no_official_fold_tests_counts_as_training(tmp_path):
    # Slide 14-203CD is in the training part of every fold, slide 14-203AB of the same patient in a test part.
    rows = fold_rows(images=1)
    mine = rows.filename.str.contains("14-203")
    others = rows.filename.str.contains("14-203CD")
    rows["grp"] = np.where(mine, np.where(others, "train", "test"), rows.grp)
    rows.to_csv(tmp_path / "Folds.csv", index=False)
    settings = config.load_settings(None, [f"data.folds={tmp_path}/Folds.csv", "data.protocol=fold"])
    drawn = folds.official(data.read_table(settings.data))
    plan = plan_of("patient", 5, 1, True, False, "0.5")
    predictions = data.describe(drawn.filename).assign(
        repeat=drawn["repeat"], fold=drawn.fold, probability=0.9, prediction="malignant", threshold=0.5
    )
    table = cross_validation.images_of(predictions, settings.data, plan, {})
    assert len(table) == rows.filename.nunique() > predictions.filename.nunique()
    patients = data.describe(rows.filename.str.rsplit("/", n=1).str[-1]).patient
    rows = rows.assign(patient=patients)
    trained = [set(part.patient[part.grp == "train"]) for _, part in rows.groupby("fold")]
    tested = rows[rows.grp == "test"]
    expected = np.mean([patient in trained[fold - 1] for patient, fold in zip(tested.patient, tested.fold)])
    shares = cross_validation.shared(table, drawn)
    assert shares["shared"]["patient"] == pytest.approx(expected)
    assert shares["shared_with_validation"] == shares["shared"] and shares["both_sides"] == []
    assert "14-203" in table.patient[~table.filename.isin(drawn.filename)].to_list()
    found = pd.DataFrame(cross_validation.published_figures(predictions, table, drawn)).set_index("magnification")
    by_fold = tested.assign(shared=[p in trained[f - 1] for p, f in zip(tested.patient, tested.fold)])
    assert found.shared_patient["all"] == pytest.approx(by_fold.groupby("fold").shared.mean().mean())
    left_out = table.filename[~table.filename.isin(drawn.filename)].iloc[0]
    assert (
        len(cross_validation.images_of(predictions, settings.data, plan, {"dropped": {left_out: "x"}}))
        == len(table) - 1
    )
    with pytest.raises(InputError, match="needs a row for each tested image, got none for SOB_"):
        cross_validation.images_of(predictions, settings.data, plan, {"dropped": {drawn.filename[0]: "x"}})


def test_images_in_folds_share_their_slides_with_the_inner_validation(table):
    shares = cross_validation.shared(table, folds.draw(table, "image", 3))
    assert shares["shared_with_validation"]["slide"] == shares["shared"]["slide"] > 0
    assert set(shares["both_sides"]) <= set(table.slide) and shares["both_sides"]


def test_the_most_certain_mistake_is_found_at_the_threshold_of_its_fold():
    rows = pd.DataFrame(
        {"label": "benign", "prediction": "malignant", "probability": [0.85, 0.5], "threshold": [0.8, 0.1]}
    )
    found = Evaluation({"threshold": 0.45}, rows, None, "", None, {})
    assert found.misclassified.index.tolist() == [1, 0]
    without = found._replace(predictions=rows.drop(columns="threshold"))
    assert without.misclassified.index.tolist() == [0, 1]


def test_the_final_model_has_the_median_epochs_and_the_cross_validated_scores():
    choices = [{"epochs": [3, 2]}, {"epochs": [7, 0]}, {"epochs": [12, 1]}]
    assert final_model.epochs(choices) == [7, 1]
    scores = dict.fromkeys(final_model.SCORES, 0.8)
    intervals = {name: {"headline": [0.7, 0.9]} for name in scores} | {"specificity": {"headline": None}}
    found = final_model.evidence({**scores, "patients": 19, "intervals": intervals}, "5 folds")
    assert found["roc_auc"] == [0.8, 0.7, 0.9] and found["specificity"] == [0.8, None, None] and found["patients"] == 19
