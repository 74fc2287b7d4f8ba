import json
import re
import shutil
import sys

import config
from config import InputError

import numpy as np
import pandas as pd
import pytest
from conftest import tiny_settings
from sklearn import metrics

import audit
import checkpoint
import data
import evaluate
import pictures
import train


@pytest.fixture(scope="module")
def run(tree, tmp_path_factory):
    """An evaluated run."""
    place = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        train.main(tiny_settings(tree, "data.test_per_class=25", "train.epochs=1"))
        evaluate.main(["runs/tiny"])
    return place / "runs" / "tiny"


@pytest.fixture(scope="module")
def predictions(run):
    return pd.read_csv(run / "evaluation" / "predictions.csv")


@pytest.fixture
def copy(run, tmp_path, monkeypatch):
    """The run to spoil."""
    shutil.copytree(run, tmp_path / "runs" / "tiny")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs" / "tiny"


def test_the_test_set_is_predicted_and_nothing_else(run, predictions):
    split = pd.read_csv(run / "split.csv")
    assert list(predictions.columns) == evaluate.COLUMNS
    assert predictions.filename.tolist() == split[split.set == "test"].filename.tolist()
    assert predictions.label.value_counts().to_dict() == {"benign": 25, "malignant": 25}
    assert not set(predictions.filename) & set(split[split.set != "test"].filename)


def test_a_probability_is_that_of_its_own_file(run, tree, predictions):
    """Each image alone, by its name, through the loaded checkpoint."""
    network, about = checkpoint.load(run / "best_model.keras")
    folder = audit.find_pictures(tree)
    for row in predictions.sample(10, random_state=1).itertuples():
        path = next(folder.rglob(row.filename))
        image = pictures.read(str(path), about["settings"].data.image_size)
        assert network.predict(image[None], verbose=0)[0, 0] == pytest.approx(row.probability, abs=1e-5)


def test_predictions_are_malignant_from_the_threshold_on(predictions):
    assert (predictions.prediction == np.where(predictions.probability >= 0.5, "malignant", "benign")).all()


def test_the_metrics_follow_from_the_predictions(run, predictions):
    found = json.loads((run / "evaluation" / "metrics.json").read_text())
    right = predictions.label == predictions.prediction
    assert (found["protocol"], found["threshold"], found["n"]) == ("image", 0.5, 50)
    assert (found["slides"], found["patients"]) == (predictions.slide.nunique(), predictions.patient.nunique())
    assert found["accuracy"] == pytest.approx(right.mean(), abs=1e-12)
    f1 = []
    for label in ("benign", "malignant"):
        is_, said = predictions.label == label, predictions.prediction == label
        precision, recall = (is_ & said).sum() / max(1, said.sum()), (is_ & said).sum() / is_.sum()
        f1.append(2 * precision * recall / max(1e-12, precision + recall))
        assert found["per_class"][label] == pytest.approx(
            {"precision": precision, "recall": recall, "f1": f1[-1], "support": 25}, abs=1e-12
        )
    assert found["f1"] == pytest.approx(np.mean(f1), abs=1e-12)
    table = pd.crosstab(predictions.label, predictions.prediction).reindex(columns=data.LABELS, fill_value=0)
    assert found["confusion_matrix"] == table.to_numpy().tolist()
    assert found["roc_auc"] == pytest.approx(
        metrics.roc_auc_score(predictions.label == "malignant", predictions.probability)
    )


def test_the_positive_class_is_malignant():
    predictions = pd.DataFrame({
        "label": ["benign"] * 4 + ["malignant"] * 4, "prediction": ["benign"] * 3 + ["malignant"] * 3 + ["benign"] * 2,
        "probability": [0.1, 0.2, 0.3, 0.9, 0.8, 0.7, 0.4, 0.45], "slide": "s", "patient": "p",
    })  # fmt: skip
    found = evaluate.measure(predictions, config.load_settings().data)
    assert found["confusion_matrix"] == [[3, 1], [2, 2]]
    assert found["per_class"]["malignant"] == {
        "precision": 2 / 3,
        "recall": 0.5,
        "f1": pytest.approx(4 / 7),
        "support": 4,
    }
    assert found["roc_auc"] == 12 / 16


def test_the_misclassified_are_the_wrong_ones(run, predictions):
    wrong = pd.read_csv(run / "evaluation" / "misclassified.csv")
    assert wrong.filename.tolist() == predictions[predictions.label != predictions.prediction].filename.tolist()


def test_the_report_and_the_figures_are_there(run):
    report = (run / "evaluation" / "report.txt").read_text()
    for words in ("precision", "test accuracy: ", "patients", "Research only", "no measure of new slides"):
        assert words in report
    for name in ("confusion_matrix", "predictions", "misclassified"):
        assert (run / "evaluation" / f"{name}.png").stat().st_size > 5000


def test_a_checkpoint_in_a_run_is_as_good_as_its_folder(copy):
    expected = (copy / "evaluation" / "metrics.json").read_text()
    shutil.rmtree(copy / "evaluation")
    evaluate.main(["runs/tiny/best_model.keras"])
    assert (copy / "evaluation" / "metrics.json").read_text() == expected


def test_predictions_in_another_order_are_never_passed_on(run, monkeypatch):
    rows = data.describe(pd.read_csv(run / "split.csv").filename).head(20)
    network, about = checkpoint.load(run / "best_model.keras")
    eval_dataset = pictures.eval_dataset
    monkeypatch.setattr(
        pictures, "eval_dataset", lambda *args: eval_dataset(*args).map(lambda n, i, y: (n[::-1], i, y))
    )
    with pytest.raises(AssertionError, match="other images or in another order"):
        evaluate.predict_pictures(network, rows, about["settings"])


def test_features_and_pictures_give_the_same_predictions(run):
    network, about = checkpoint.load(run / "best_model.keras")
    rows = data.describe(pd.read_csv(run / "split.csv").filename).sample(30, random_state=1)
    rows = audit.with_pixels(rows, about["settings"].data)
    through_pictures = evaluate.predict_pictures(network, rows, about["settings"])
    np.testing.assert_allclose(
        evaluate.predict(network, rows, about["settings"]).probability, through_pictures, atol=1e-5
    )


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
        config.run(evaluate.main)
    error = capsys.readouterr().err
    assert ended.value.code == 2 and re.search(words, error) and error.count("\n") == 1


def test_every_run_is_looked_for_before_any_is_evaluated(copy):
    shutil.rmtree(copy / "evaluation")
    with pytest.raises(InputError, match="runs/other"):
        evaluate.main(["runs/tiny", "runs/other"])
    assert not (copy / "evaluation").exists()


def split_file(run, path, old="", new=""):
    text = (run / "split.csv").read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    return path


@pytest.mark.parametrize("old, new, words", [
    ("filename,label", "name,label", "columns must be"),
    ("benign,14-101AB", "malignant,14-101AB", "contradicts the file's name"),
    (",test\n", ",exam\n", "exam"),
    (",test\n", ",train\n", "as many of each"),
    ("filename", "\x00", "columns must be"),
])  # fmt: skip
def test_a_wrong_split_file_is_refused(run, tmp_path, old, new, words):
    with pytest.raises(InputError, match=words):
        evaluate.read_split(split_file(run, tmp_path / "other.csv", old, new))


def test_a_split_that_breaks_its_protocol_is_refused_when_loaded(run, tmp_path):
    path = split_file(run, tmp_path / "split.csv")
    lines = path.read_text().splitlines()
    leaked = next(line for line in lines if line.endswith(",test")).removesuffix("test") + "train"
    path.write_text("\n".join([*lines, leaked]) + "\n")
    with pytest.raises(InputError, match="stands in test and train"):
        evaluate.read_split(path, "image")


def test_another_split_is_tested_only_when_asked_and_said_so(copy, tmp_path):
    """The new test set is taken from the training images: the report must say that all of them were trained on."""
    table = pd.read_csv(copy / "split.csv")
    train = table[table.set == "train"].groupby("label").head(10).index
    swapped = table.assign(
        set=np.where(table.index.isin(train), "test", np.where(table.set == "test", "train", table.set))
    )
    swapped.to_csv(tmp_path / "other.csv", index=False)
    evaluate.main(["runs/tiny", "--split", str(tmp_path / "other.csv")])
    found = json.loads((copy / "evaluation-other" / "metrics.json").read_text())
    predicted = pd.read_csv(copy / "evaluation-other" / "predictions.csv")
    assert set(predicted.filename) == set(table.filename[train])
    assert (
        found["protocol"] == "image, other split"
        and found["split"] == str(tmp_path / "other.csv")
        and found["leaks"]["shared"]["image"] == 1.0
    )
    report = (copy / "evaluation-other" / "report.txt").read_text()
    assert "other.csv" in report and "100.0% of the test images stand in the training set" in report


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
