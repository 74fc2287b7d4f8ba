import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import sklearn.metrics
from killed_runs import StopError
from tiny_tree import EVALUATED, tiny_settings

import config
import evaluate
import train
from evaluation import calibration, metrics, predictions, report
from images import audit, decoding, splits
from safety import command_line
from safety.errors import InputError
from training import checkpoint

pytestmark = pytest.mark.usefixtures("without_figures")


def test_the_test_set_is_predicted_and_nothing_else(run, predicted):
    split = pd.read_csv(run / "split.csv")
    assert list(predicted.columns) == report.COLUMNS
    assert predicted.filename.tolist() == split[split.set == "test"].filename.tolist()
    assert predicted.label.value_counts().to_dict() == {"benign": 25, "malignant": 25}
    assert not set(predicted.filename) & set(split[split.set != "test"].filename)


def test_predictions_are_malignant_from_the_threshold_on(predicted):
    assert (predicted.prediction == np.where(predicted.probability >= 0.5, "malignant", "benign")).all()


def test_the_metrics_follow_from_the_predictions(run, predicted):
    results = json.loads((run / "evaluation" / "metrics.json").read_text())
    right = predicted.label == predicted.prediction
    assert (results["protocol"], results["threshold"], results["n"]) == ("image", 0.5, 50)
    assert (results["slides"], results["patients"]) == (predicted.slide.nunique(), predicted.patient.nunique())
    assert results["accuracy"] == pytest.approx(right.mean(), abs=1e-12)
    f1 = []
    for label in ("benign", "malignant"):
        true, positive = predicted.label == label, predicted.prediction == label
        precision, recall = (true & positive).sum() / max(1, positive.sum()), (true & positive).sum() / true.sum()
        f1.append(2 * precision * recall / max(1e-12, precision + recall))
        assert results["per_class"][label] == pytest.approx(
            {"precision": precision, "recall": recall, "f1": f1[-1], "support": 25}, abs=1e-12
        )
    assert results["f1"] == pytest.approx(np.mean(f1), abs=1e-12)
    table = pd.crosstab(predicted.label, predicted.prediction).reindex(columns=splits.LABELS, fill_value=0)
    assert results["confusion_matrix"] == table.to_numpy().tolist()
    assert results["roc_auc"] == pytest.approx(
        sklearn.metrics.roc_auc_score(predicted.label == "malignant", predicted.probability)
    )


def test_the_positive_class_is_malignant():
    predicted = pd.DataFrame({
        "label": ["benign"] * 4 + ["malignant"] * 4, "prediction": ["benign"] * 3 + ["malignant"] * 3 + ["benign"] * 2,
        "probability": [0.1, 0.2, 0.3, 0.9, 0.8, 0.7, 0.4, 0.45], "slide": "s", "patient": "p",
    })  # fmt: skip
    predicted = predicted.assign(mag=40, subtype="adenosis")
    results = metrics.measure(predicted, config.load_settings().data, 0.5)
    assert results["confusion_matrix"] == [[3, 1], [2, 2]]
    assert results["per_class"]["malignant"] == {
        "precision": 2 / 3,
        "recall": 0.5,
        "f1": pytest.approx(4 / 7),
        "support": 4,
    }
    assert results["roc_auc"] == 12 / 16


def test_the_misclassified_are_the_wrong_ones(run, predicted):
    wrong = pd.read_csv(run / "evaluation" / "misclassified.csv")
    assert sorted(wrong.filename) == sorted(predicted[predicted.label != predicted.prediction].filename)
    assert (wrong.probability - 0.5).abs().is_monotonic_decreasing


def test_the_report_and_the_figures_are_there(run):
    report = (run / "evaluation" / "report.txt").read_text()
    for words in ("precision", "test accuracy: ", "patients", "Research only", "optimistic"):
        assert words in report
    for name in (
        "confusion_matrix", "curves", "intervals", "reliability", "scores", "groups", "patients", "predictions",
        "least_certain", "most_certain", "misclassified-01", "heatmaps-wrong-01",
    ):  # fmt: skip
        assert (run / "evaluation" / f"{name}.png").stat().st_size > 5000


def test_a_checkpoint_in_a_run_is_as_good_as_its_folder(copy):
    expected = (copy / "evaluation" / "metrics.json").read_text()
    shutil.rmtree(copy / "evaluation")
    evaluate.main(["runs/tiny/best_model.keras"])
    assert (copy / "evaluation" / "metrics.json").read_text() == expected


def change(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize("spoil, words", [
    (lambda run: shutil.rmtree(run), "no checkpoint 'runs/tiny'"),
    (lambda run: (run / "best_model.keras").unlink(), "no checkpoint 'runs/tiny/best_model.keras'"),
    (lambda run: (run / "best_model.keras").write_bytes(b"PK\x03\x04 half"), "damaged"),
    (lambda run: (run / "split.csv").unlink(), "there is no such split"),
    (lambda run: (run / "split.csv").write_text("filename,set\n"), "not the split that the checkpoint was trained with"),
    (lambda run: change(run / "split.csv", "benign,14-101AB", "malignant,14-101AB"), "not the split"),
    (lambda run: change(run / "split.csv", ",test\n", ",exam\n"), "not the split"),
])  # fmt: skip
def test_a_spoiled_run_is_refused_in_one_line(copy, monkeypatch, capsys, spoil, words):
    spoil(copy)
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "runs/tiny"])
    with pytest.raises(SystemExit) as ended:
        command_line.run(evaluate.main)
    error = capsys.readouterr().err
    assert ended.value.code == 2 and re.search(words, error) and error.count("\n") == 1


def test_every_run_is_looked_for_before_any_is_evaluated(copy):
    shutil.rmtree(copy / "evaluation")
    with pytest.raises(InputError, match="runs/other"):
        evaluate.main(["runs/tiny", "runs/other"])
    assert not (copy / "evaluation").exists()


def test_another_split_is_tested_only_when_asked_and_is_named_in_the_report(copy, tmp_path):
    """The new test set is taken from the training images: the report must say that all of them were trained on."""
    table = pd.read_csv(copy / "split.csv")
    train = table[table.set == "train"].groupby("label").head(10).index
    swapped = table.assign(
        set=np.where(table.index.isin(train), "test", np.where(table.set == "test", "train", table.set))
    )
    swapped.to_csv(tmp_path / "other.csv", index=False)
    evaluate.main(["runs/tiny", "--split", str(tmp_path / "other.csv")])
    (out,) = copy.glob("evaluation-other-*")
    results = json.loads((out / "metrics.json").read_text())
    predicted = pd.read_csv(out / "predictions.csv")
    assert set(predicted.filename) == set(table.filename[train])
    assert (
        results["protocol"] == "image, other split"
        and results["split"] == str(tmp_path / "other.csv")
        and results["leaks"]["shared"]["image"] == 1.0
    )
    report = (out / "report.txt").read_text()
    assert "other.csv" in report and "100.0% of the test images are also in the training set" in report


def test_splits_of_one_name_are_evaluated_side_by_side(tmp_path):
    names = set()
    for run in ("a", "b\n"):
        (tmp_path / run).mkdir()
        (tmp_path / run / "split.csv").write_text(run)
        names.add(evaluate.name_of(str(tmp_path / run / "split.csv")))
    assert len(names) == 2 and all(re.fullmatch("split-[0-9a-f]{8}", name) for name in names)


def test_the_share_of_malignant_images_is_counted(run):
    shares = json.loads((run / "evaluation" / "metrics.json").read_text())["malignant_share"]
    split = pd.read_csv(run / "split.csv")
    expected = {name: (split.label[split.set == name] == "malignant").mean() for name in ("valid", "test")}
    assert shares == pytest.approx({**expected, "all": (split.label == "malignant").mean()})
    assert shares["test"] == 0.5 != shares["valid"]


def test_the_leaks_of_the_split_are_in_the_metrics(run):
    leaks = json.loads((run / "evaluation" / "metrics.json").read_text())["leaks"]
    split = pd.read_csv(run / "split.csv")
    train, test = split[split.set == "train"], split[split.set == "test"]
    expected = {
        key: test[column].isin(train[column]).mean()
        for key, column in {"image": "filename", "slide": "slide", "patient": "patient"}.items()
    }
    assert leaks["shared"] == pytest.approx(expected)
    assert leaks["sets"]["test"]["benign"]["patients"] == test[test.label == "benign"].patient.nunique()


def table_of_images(path):
    return pd.read_csv(path).sort_values("filename").reset_index(drop=True)


def test_the_order_of_the_folds_file_changes_no_metric(run, tree, tmp_path):
    """The same images in another order of rows: the same split, probabilities and figures."""
    pd.read_csv(tree / "Folds.csv").sample(frac=1, random_state=3).to_csv(tmp_path / "Folds.csv", index=False)
    folds = f"data.folds={tmp_path / 'Folds.csv'}"
    train.main(tiny_settings(tree, *EVALUATED, folds))
    evaluate.main(["runs/tiny"])
    folders = [folder / "evaluation" for folder in (run, Path("runs/tiny"))]
    first, second = (json.loads((folder / "metrics.json").read_text()) for folder in folders)
    assert first == second
    pd.testing.assert_frame_equal(*(table_of_images(folder / "predictions.csv") for folder in folders))


def test_the_threshold_comes_from_validation_alone_and_travels_with_the_checkpoint(copy, monkeypatch):
    """Poisoned test labels move neither threshold nor temperature."""
    monkeypatch.setattr(report, "write", lambda *_: None)
    first = evaluate.evaluate(copy / "best_model.keras", "youden").results
    predict, seen = predictions.predict, []

    def poisoned(network, rows, settings, views):
        flipped = rows.label.map({"benign": "malignant", "malignant": "benign"})
        rows = rows.assign(label=rows.label.where(rows.set == "valid", flipped))
        seen.append(predict(network, rows, settings, views))
        return seen[0]

    monkeypatch.setattr(predictions, "predict", poisoned)
    second = evaluate.evaluate(copy / "best_model.keras").results
    split = pd.read_csv(copy / "split.csv")
    valid = seen[0][seen[0].set == "valid"]
    assert valid.filename.tolist() == split.filename[split.set == "valid"].tolist() and len(seen) == 1
    malignant, probability = valid.label == "malignant", valid.probability
    assert second["threshold_rule"] == "youden"
    assert first["threshold"] == second["threshold"] == calibration.choose_threshold(malignant, probability, "youden")
    assert first["calibration"]["temperature"] == second["calibration"]["temperature"]
    assert second["calibration"]["temperature"] == calibration.fit_temperature(malignant, probability)
    assert second["accuracy"] == pytest.approx(1 - first["accuracy"])


def test_a_chosen_threshold_decides(copy):
    evaluate.main(["runs/tiny", "--threshold", "0.3"])
    predicted = pd.read_csv(copy / "evaluation" / "predictions.csv")
    assert ((predicted.probability >= 0.3) == (predicted.prediction == "malignant")).all()
    with pytest.raises(InputError, match="youden, f1, or sensitivity"):
        evaluate.main(["runs/tiny", "--threshold", "best"])


def test_views_are_averaged_on_validation_and_test_and_recorded(copy, tree, capsys):
    evaluate.main(["runs/tiny", "--views", "8", "--threshold", "youden"])
    assert "mean over 8 exact turns of each image" in capsys.readouterr().out
    results = json.loads((copy / "evaluation" / "metrics.json").read_text())
    predicted = pd.read_csv(copy / "evaluation" / "predictions.csv")
    assert (
        results["views"] == 8 and list(predicted.columns) == [*report.COLUMNS, "views"] and set(predicted.views) == {8}
    )
    network, about = checkpoint.load(copy / "best_model.keras")
    table = predictions.read_split(copy / "split.csv")
    images = decoding.decode([audit.image_folder(tree) / path for path in table.path], 32).astype(np.float32)
    turned = [np.rot90(side, count, (1, 2)) for side in (images, images[:, :, ::-1]) for count in range(4)]
    table["mean"] = np.mean([network.predict(batch, verbose=0)[:, 0] for batch in turned], axis=0)
    by_hand = table[table.set == "test"].set_index("filename").loc[predicted.filename, "mean"]
    np.testing.assert_allclose(predicted.probability, by_hand, atol=1e-5)
    valid = table[table.set == "valid"]
    malignant = (valid.label == "malignant").to_numpy()
    assert results["threshold"] == pytest.approx(
        calibration.choose_threshold(malignant, valid["mean"], "youden"), abs=1e-5
    )
    temperature = calibration.fit_temperature(malignant, valid["mean"])
    assert results["calibration"]["temperature"] == pytest.approx(temperature, rel=1e-2)
    assert about["decision"]["views"] == 8 and about["decision"]["threshold"] == results["threshold"]
    # They are kept, as the rule of the threshold is, until another number is asked for.
    evaluate.main(["runs/tiny"])
    assert json.loads((copy / "evaluation" / "metrics.json").read_text())["views"] == 8
    evaluate.main(["runs/tiny", "--views", "1", "--threshold", "0.5"])
    again = json.loads((copy / "evaluation" / "metrics.json").read_text())
    assert again["views"] == 1 and again["accuracy"] != results["accuracy"]


def test_the_first_evaluation_takes_the_views_of_the_settings_and_the_option_wins(copy, monkeypatch):
    load, asked = checkpoint.load, []

    def never_evaluated(path):
        network, about = load(path)
        settings = about["settings"].model_dump()
        settings["data"]["test_views"] = 8
        return network, {"split_sha256": about["split_sha256"], "settings": config.validate(config.Settings, settings)}

    def predict(network, rows, settings, views):
        asked.append(views)
        raise StopError

    monkeypatch.setattr(checkpoint, "load", never_evaluated)
    monkeypatch.setattr(predictions, "predict", predict)
    for views in (None, 1):
        with pytest.raises(StopError):
            evaluate.evaluate(copy / "best_model.keras", views=views)
    assert asked == [8, 1]


def test_other_numbers_of_views_are_refused(copy):
    for number in ("0", "2", "9", "x"):
        with pytest.raises(InputError, match="--views.*invalid"):
            evaluate.main(["runs/tiny", "--views", number])


def test_a_checkpoint_that_was_moved_out_of_its_run_is_named_and_nothing_is_left_around_it(run, tmp_path):
    alone = tmp_path / "place" / "deep"
    alone.mkdir(parents=True)
    shutil.copy(run / "best_model.keras", alone)
    with pytest.raises(
        InputError, match=r"deep/split.csv: there is no such split.*best_model.keras was moved out of its run"
    ):
        evaluate.main([str(alone / "best_model.keras")])
    assert [path.name for path in sorted((tmp_path / "place").rglob("*"))] == ["deep", "best_model.keras"]


def test_an_evaluation_leaves_no_lock_and_clears_what_a_killed_one_left(copy):
    (copy / ".12345.evaluation").mkdir()
    (copy / ".12345.abcdef01.keras").touch()
    evaluate.main(["runs/tiny"])
    assert not list(copy.glob(".*")) and [path.name for path in copy.parent.iterdir()] == ["tiny"]


@pytest.mark.parametrize("patients, fitted", [(4, False), (5, True)])
def test_the_temperature_of_few_patients_is_left_at_1_and_the_report_says_so(patients, fitted):
    rng = np.random.RandomState(0)
    valid = pd.DataFrame({
        "label": ["benign"] * 60 + ["malignant"] * 60, "probability": rng.uniform(0.001, 0.999, 120),
        "patient": [f"b{n % patients}" for n in range(60)] + [f"m{n % 9}" for n in range(60)],
    })  # fmt: skip
    choice = calibration.decide(valid, "0.5")
    expected = calibration.fit_temperature(valid.label == "malignant", valid.probability)
    assert abs(expected - 1) > 0.1 and choice["temperature"] == (expected if fitted else 1.0)
    counts = {"benign": patients, "malignant": 9}
    results = {"temperature": choice["temperature"], "temperature_fitted": fitted, "validation_patients": counts}
    text = calibration.describe_temperature(results)
    assert ("fitted on the validation set alone" in text) == fitted
    assert fitted or text.startswith("temperature 1, not fitted: the validation set has 4 benign and 9 malignant")


def test_metrics_json_says_how_the_temperature_was_found(run):
    results = json.loads((run / "evaluation" / "metrics.json").read_text())["calibration"]
    split = pd.read_csv(run / "split.csv", dtype=str)
    patients = split[split.set == "valid"].groupby("label").patient.nunique().to_dict()
    assert results["validation_patients"] == patients
    assert results["temperature_fitted"] == (min(patients.values()) >= 5)
    report = (run / "evaluation" / "report.txt").read_text()
    assert calibration.describe_temperature(results) in report
