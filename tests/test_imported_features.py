"""Every command on imported features, without one image on disk."""

import io
import json
import shutil
import zipfile
from argparse import Namespace
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from imported_features import VALUES, names_of, overrides_for, write_features
from sklearn.metrics import balanced_accuracy_score, recall_score

import crossval
import data
import evaluate
import predict
import train
from evaluation.evaluation import EQUAL_FEATURES
from safety.errors import InputError
from training import checkpoint


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with the features, and an evaluated run and cross-validation on them."""
    place = tmp_path_factory.mktemp("imported")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        settings = overrides_for(place)
        train.main([*settings, "train.run=one"])
        evaluate.main(["runs/one"])
        crossval.main(["cv", "--folds", "3", "--final", *settings])
    return place


@pytest.fixture
def copy(work, tmp_path, monkeypatch):
    """A copy of it that the test may change, whose settings name the features in this copy."""
    shutil.copytree(work, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


def test_no_image_and_no_cache_is_there(work):
    assert not list(work.rglob("nowhere")) and not (work / "cache").exists()
    assert not list((work / "runs").rglob("misclassified-*.png")) and not list((work / "runs").rglob("heatmaps-*.png"))


def test_the_report_leaves_out_what_needs_pixels_and_says_what_it_cannot_see(work):
    for run in ("one", "cv"):
        folder = work / "runs" / run / "evaluation"
        page, wrong = (folder / "report.html").read_text(), pd.read_csv(folder / "misclassified.csv")
        assert "heatmaps" not in page and "The most certain errors" in page and len(wrong)
        assert all(name in page for name in wrong.filename.head(20)) and "features.npz" in page
        assert EQUAL_FEATURES in page and EQUAL_FEATURES in (folder / "report.txt").read_text()
        assert "ResNet50" not in page.replace("model", "")


def test_the_scores_are_those_of_scikit_learn_on_the_predictions(work):
    oof = pd.read_csv(work / "runs/cv/oof.csv")
    assert sorted(oof.filename) == names_of() and oof.groupby("patient").fold.nunique().eq(1).all()
    found = json.loads((work / "runs/cv/evaluation/metrics.json").read_text())
    truth, predicted = oof.label == "malignant", oof.probability >= 0.5
    assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(truth, predicted), abs=1e-9)
    assert found["specificity"] == pytest.approx(recall_score(~truth, ~predicted), abs=1e-9)
    assert found["balanced_accuracy"] > 0.7


def test_a_feature_file_is_predicted_as_the_evaluation_did(work, monkeypatch, tmp_path):
    monkeypatch.chdir(work)
    out = tmp_path / "predictions.csv"
    assert predict.main(["runs/one", "features.npz", "--out", str(out)]) == 0
    found = pd.read_csv(out).set_index("file").probability
    expected = pd.read_csv("runs/one/evaluation/predictions.csv").set_index("filename").probability
    assert list(found.index) == names_of()
    np.testing.assert_allclose(found[expected.index], expected, atol=1e-6)
    # New images may have any name; one far from the training features is flagged.
    write_features(tmp_path / "new.npz", ["x", "y"], np.array([VALUES[0], VALUES[0] + 50]))
    assert predict.main(["runs/cv", str(tmp_path / "new.npz"), "--out", str(out)]) == 0
    assert pd.read_csv(out).why.fillna("").str.contains("unlike").tolist() == [False, True]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["wide.npz"], "wide.npz: an image must have 6 features, got 7"),
        (["features.npz", "--heatmaps", "maps"], "--heatmaps: needed are images, which a feature file does not have"),
        (["features.npz", "--views", "8"], "--views: needed are images, which a feature file does not have"),
        (["features.npz", "features.npz"], "was trained on imported features: needed is one feature file"),
        (["image.png"], "was trained on imported features: needed is one feature file, got image.png"),
    ],
)
def test_predict_refuses_what_is_no_file_of_these_features(copy, arguments, message):
    write_features(Path("wide.npz"), values=np.ones((len(VALUES), 7), np.float32))
    Path("image.png").write_bytes(b"")
    with pytest.raises(InputError, match=message):
        predict.main(["runs/one", *arguments])
    assert not Path("maps").exists()


def test_a_run_on_images_refuses_a_feature_file_and_takes_a_folder_in_which_one_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_features(Path("a.npz"))
    Path("images").mkdir()
    Path("images/a.h5").touch()
    arguments = {"run": "runs/a", "heatmaps": None, "views": None}
    with pytest.raises(InputError, match="runs/a was trained on images: needed is images, got a.npz"):
        predict.check_kind(False, Namespace(images=["a.npz"], **arguments))
    for images in (["images"], ["a.png", "a.csv"]):
        predict.check_kind(False, Namespace(images=images, **arguments))


def test_the_order_of_the_file_changes_no_result(work, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings, order = overrides_for(tmp_path), np.random.RandomState(1).permutation(len(VALUES))
    write_features(tmp_path / "features.npz", np.array(names_of())[order], VALUES[order])
    crossval.main(["cv", "--folds", "3", *settings])
    assert (tmp_path / "runs/cv/oof.csv").read_bytes() == (work / "runs/cv/oof.csv").read_bytes()


def test_other_features_are_refused_when_a_run_goes_on_or_is_evaluated(copy, work):
    changed = VALUES.copy()
    changed[0] += 1
    file = work / "features.npz"
    before = file.read_bytes()
    try:
        write_features(file, values=changed)
        with pytest.raises(InputError, match="the images are no longer what|images .* no longer"):
            train.main(["--resume", "runs/one", "train.epochs=4"])
        with pytest.raises(InputError, match="features are not those that runs/one was trained with"):
            evaluate.main(["runs/one"])
        with pytest.raises(InputError, match="features are not those that runs/one was trained with"):
            evaluate.main(["runs/one", "--split", "runs/one/split.csv"])
        write_features(file, names_of()[1:], VALUES[1:])
        with pytest.raises(InputError, match=f"must have features of {names_of()[0]}, got none"):
            evaluate.main(["runs/one"])
    finally:
        file.write_bytes(before)


def test_what_opens_images_says_so_in_a_line(tmp_path):
    with pytest.raises(InputError, match="model.base: data.py shows images, so all but file are allowed"):
        data.main(overrides_for(tmp_path))


def test_the_search_runs_on_the_features(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with redirect_stdout(io.StringIO()):
        train.main(["--tune", "2", *overrides_for(tmp_path, "train.run=a")])
    assert len(pd.read_csv("runs/a-tune/trials.csv")) == 2


def test_the_checkpoint_holds_the_width(copy):
    network, about = checkpoint.load(Path("runs/one"))
    assert about["width"] == 6 and network.input_shape == (None, 6)


def test_a_checkpoint_without_the_width_is_refused_by_its_name(copy):
    """A damaged one, since every version that imports features writes it."""
    path, whole = copy / "runs/one/best_model.keras", copy / "whole.keras"
    shutil.move(path, whole)
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name).replace(b'"width"', b'"wide"'))
    with pytest.raises(InputError, match="runs/one/best_model.keras: damaged, .*: width: is missing"):
        checkpoint.load(path)
