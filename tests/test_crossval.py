import contextlib
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tiny_tree import tiny_settings

import crossval
import evaluate
import model
import predict
from evaluation import calibration, cross_validation, figures, nested
from images import audit, decoding, folds
from safety.errors import InputError
from training import changed_settings, checkpoint, cross_validation_files, out_of_fold


def arguments(tree, *more):
    settings = [text for text in tiny_settings(tree, "data.protocol=patient") if not text.startswith("train.run")]
    return ["tiny", "--folds", "2", *settings, *more]


@pytest.fixture(scope="module")
def work(tree, tmp_path_factory):
    """A folder with the finished cross-validation runs/tiny, its final model, and the cache."""
    place = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setattr(figures, "draw", lambda evaluation, network: {})
        crossval.main(arguments(tree, "--final"))
    return place


@pytest.fixture
def copy(work, tmp_path, monkeypatch):
    """A copy of it that the test may change; no figures are drawn."""
    shutil.copytree(work / "runs", tmp_path / "runs")
    shutil.copytree(work / "cache", tmp_path / "cache")
    monkeypatch.setattr(figures, "draw", lambda evaluation, network: {})
    return tmp_path / "runs" / "tiny"


def test_each_image_is_predicted_once_by_the_fold_that_holds_its_patient(work, tree):
    oof = pd.read_csv(work / "runs/tiny/oof.csv")
    assert ",".join(oof) == ("filename,label,slide,patient,mag,subtype,repeat,fold,probability,calibrated,prediction")
    assert oof.filename.is_unique and len(oof) == len(list(tree.rglob("*.png")))
    assert oof.groupby("patient").fold.nunique().eq(1).all() and set(oof.fold) == {1, 2}
    assert (oof.prediction == np.where(oof.probability >= 0.5, "malignant", "benign")).all()


def test_the_evaluation_is_that_of_the_pooled_predictions(work):
    oof, folder = pd.read_csv(work / "runs/tiny/oof.csv"), work / "runs/tiny/evaluation"
    results, page = json.loads((folder / "metrics.json").read_text()), (folder / "report.html").read_text()
    right = oof.prediction == oof.label
    for name in ("predictions", "misclassified"):
        assert {"repeat", "fold"} <= set(pd.read_csv(folder / f"{name}.csv"))
    assert results["balanced_accuracy"] == pytest.approx(right.groupby(oof.label).mean().mean())
    patients = oof.groupby("label").patient.nunique() - oof.groupby(["fold", "label"]).patient.nunique()
    fitted = [patients[fold].min() >= 5 for fold in (1, 2)]
    assert results["calibration"]["folds_fitted"] == [sum(fitted), 2]
    assert results["calibration"]["temperature_fitted"] == all(fitted)
    assert calibration.describe_temperature(results["calibration"])[1:] in page
    assert results["n"] == len(oof) and results["leaks"]["shared"] == {"image": 0, "slide": 0, "patient": 0}
    by_fold = pd.DataFrame(results["cross_validation"]["by_fold"])
    expected = [right[oof.fold == fold].groupby(oof.label).mean().mean() for fold in (1, 2)]
    assert by_fold.balanced_accuracy.tolist() == pytest.approx(expected)
    over = results["cross_validation"]["over_folds"]
    assert over["deviation"]["balanced_accuracy"] == pytest.approx(np.std(expected, ddof=1))
    assert results["cross_validation"]["over_repeats"]["deviation"]["accuracy"] is None
    assert page.index("Balanced accuracy") < page.index('id="results"')
    assert all(patient in page for patient in oof.patient.unique()) and "Cross-validated" in page


def test_what_was_stopped_goes_on_to_the_same_bytes(copy, tree, monkeypatch):
    expected = (copy / "oof.csv").read_bytes()
    shutil.rmtree(copy)
    run_fold = nested.run_fold

    def stopped(prepared, drawn, repeat, fold, plan):
        if fold == 2:
            raise KeyboardInterrupt
        return run_fold(prepared, drawn, repeat, fold, plan)

    monkeypatch.setattr(nested, "run_fold", stopped)
    with pytest.raises(KeyboardInterrupt):
        crossval.main(arguments(tree))
    assert [path.name for path in (copy / "folds").glob("*.json")] == ["1-1.json"] and not (copy / "oof.csv").exists()
    monkeypatch.setattr(nested, "run_fold", run_fold)
    crossval.main(arguments(tree))
    assert (copy / "oof.csv").read_bytes() == expected


def test_another_cross_validation_of_the_same_name_is_refused(copy, tree):
    with pytest.raises(InputError, match="runs/tiny was started with train.momentum=0.0, got 0.5; change it back"):
        crossval.main(arguments(tree, "train.momentum=0.5"))
    with pytest.raises(InputError, match="folds, repeats, threshold rule or protocol are no longer"):
        crossval.main(arguments(tree, "--threshold", "youden"))
    (copy / "folds.csv").unlink()
    with pytest.raises(InputError, match="exists and is no cross-validation"):
        crossval.main(arguments(tree))


def test_the_final_model_carries_the_scores_and_predicts(work, copy, tree, capsys):
    about = checkpoint.load(copy)[1]
    results = json.loads((copy / "evaluation/metrics.json").read_text())
    assert about["cross_validated"]["balanced_accuracy"] == pytest.approx(
        [results["balanced_accuracy"], *results["intervals"]["balanced_accuracy"]["headline"]]
    )
    assert about["decision"]["rule"] == "0.5" and about["cross_validated"]["patients"] == results["patients"]
    image = next(str(path) for path in sorted(tree.rglob("*.png")))
    assert predict.main([str(copy), image]) == 0
    assert (
        f"cross-validated balanced accuracy of its settings: {results['balanced_accuracy']:.3f}"
        in capsys.readouterr().err
    )


def test_evaluate_compares_cross_validations_on_the_same_folds(copy, capsys):
    other = copy.with_name("other")
    shutil.copytree(copy, other)
    path = other / "folds/1-1.json"
    result = json.loads(path.read_text())
    path.write_text(json.dumps({**result, "probability": [1 - value for value in result["probability"]]}))
    evaluate.main([str(copy), str(other)])
    pairs = pd.read_csv(copy.parent / "pairs.csv")
    both = [
        json.loads((folder / "evaluation/metrics.json").read_text())["balanced_accuracy"] for folder in (copy, other)
    ]
    assert pairs.difference[0] == pytest.approx(both[1] - both[0]) and 0 <= pairs.corrected_p[0] <= 1
    assert "corrected_p" in capsys.readouterr().out
    for wrong in (["--threshold", "youden"], ["runs/unknown"]):
        with pytest.raises(InputError, match="is a cross-validation: allowed next to it are other cross-validations"):
            evaluate.main([str(copy), *wrong])


@pytest.mark.parametrize("spoil, message", [
    (lambda text: text[:40], "no JSON"),
    (lambda text: text.replace("SOB_B_A", "SOB_B_F", 1), "its images are not those of"),
    (lambda text: json.dumps({**json.loads(text), "probability": [2.0]}), "probability.0: "),
    (lambda text: json.dumps({**json.loads(text), "fold": 1}), "needed are repeat 1 and fold 2, got 1 and 1"),
])  # fmt: skip
def test_a_damaged_fold_is_refused(copy, spoil, message):
    path = copy / "folds" / "1-2.json"
    path.write_text(spoil(path.read_text()))
    with pytest.raises(InputError, match=message):
        evaluate.main([str(copy)])


def test_a_missing_fold_is_named(copy):
    (copy / "folds" / "1-2.json").unlink()
    with pytest.raises(InputError, match="1-2.json is missing; the same crossval.py command goes on"):
        evaluate.main([str(copy)])


@pytest.mark.parametrize("given, message", [
    (["data.protocol=row"], "a cross-validation needs one of patient, slide, image, got row"),
    (["--folds", "1"], "needed are 2 folds or more"),
    (["--repeats", "0"], "1 repeat or more, got 5 and 0"),
    (["--jobs", "0"], "--jobs: needed is 1 or more, got 0"),
    (["--share", "3/2"], "--share: needed is I/N"),
    (["--threshold", "often"], "--threshold: allowed are"),
    (["a", "train.run=b"], "train.run is set by the cross-validation"),
    (["--official", "--final"], "--final: needed is a cross-validation"),
    (["../a"], "train.run: "),
    (["--official", "data.protocol=slide"], "data.protocol: --official sets it to fold"),
])  # fmt: skip
def test_wrong_input_is_refused_at_the_door(given, message):
    with pytest.raises(InputError, match=message):
        crossval.main(given)
    assert not Path("runs").exists()


def test_without_a_name_the_same_settings_have_the_same_folder(monkeypatch):
    names = []
    monkeypatch.setattr(crossval, "start", lambda folder, *rest: names.append(folder.name))
    monkeypatch.setattr(crossval, "cross_validate", lambda *rest: None)
    for given in (["data.seed=1"], ["data.seed=1"], ["data.seed=2"], ["data.seed=1", "--repeats", "2"]):
        crossval.main([*given, "train.strategy=one"])
    assert names[0] == names[1] and len(set(names)) == 3 and names[0].startswith("crossval-patient-5x1-")


def test_jobs_divide_a_share_and_leave_the_evaluation(monkeypatch):
    """They start when the folder is there, whose precision they use."""
    started = []

    def run(command, **options):
        assert Path("runs/a/config.yaml").exists()
        started.append(command[2:])
        return crossval.subprocess.CompletedProcess(command, 0)

    def start(folder, settings, plan):
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(settings.to_yaml())

    monkeypatch.setattr(crossval.subprocess, "run", run)
    monkeypatch.setattr(crossval, "start", start)
    monkeypatch.setattr(crossval, "cross_validate", lambda *rest: None)
    crossval.main(["a", "--jobs", "2", "--share", "2/3", "train.strategy=one"])
    assert sorted(command[-1] for command in started) == ["2/6", "5/6"]
    assert all("--folds-only" in command for command in started)


def test_the_published_folds_are_used_where_they_fit(full_table, monkeypatch):
    settings = crossval.config.load_settings()
    plan = nested.Plan(unit="patient", folds=5, repeats=2, official=False, published=True, rule="0.5")
    pd.testing.assert_frame_equal(
        crossval.draw_folds(full_table, settings, plan), folds.read_canonical(full_table, repeats=2)
    )
    assert crossval.with_folds_found(plan, full_table) == plan
    other = full_table.assign(patient=full_table.patient.replace("14-22549", "14-1"))
    drawn = crossval.with_folds_found(plan, other)
    assert not drawn.published and "drawn from the seed" in cross_validation.describe_plan(drawn)
    assert crossval.draw_folds(other, settings, drawn).groupby("repeat").size().eq(7909).all()


@pytest.mark.parametrize("given, expected", [("auto", "bfloat16"), ("float32", "float32")])
def test_only_auto_takes_the_precision_of_the_folder(tmp_path, given, expected):
    known = crossval.config.load_settings(None, ["train.precision=bfloat16", "train.run=a"])
    (tmp_path / "config.yaml").write_text(known.to_yaml())
    settings = crossval.config.load_settings(None, [f"train.precision={given}"])
    assert changed_settings.with_known_values(tmp_path, settings).train.precision == expected


@pytest.mark.parametrize("theirs", ["train.precision=float32", "train.precision=bfloat16", "train.engine=openvino"])
def test_of_two_hosts_that_start_at_once_the_second_is_told_what_the_first_has_found(tmp_path, monkeypatch, theirs):
    found = ["train.precision=float32", "train.engine=tensorflow"]
    settings, ours = crossval.config.load_settings(None, [*found, theirs]), crossval.config.load_settings(None, found)
    drawn = pd.DataFrame({"filename": ["a.png"], "repeat": 1, "fold": 1})
    record, rename = dict.fromkeys(cross_validation_files.UNCHANGED, "1"), cross_validation_files._rename

    def late(temporary, folder):
        monkeypatch.setattr(cross_validation_files, "_rename", rename)
        cross_validation_files.open_folder(folder, settings, drawn, record)
        return rename(temporary, folder)

    monkeypatch.setattr(cross_validation_files, "_rename", late)
    with contextlib.ExitStack() as stack:
        if theirs not in found:
            words = f"cv was begun by another process just now, with {theirs}, got .*: the same command goes on"
            stack.enter_context(pytest.raises(InputError, match=words))
        cross_validation_files.open_folder(tmp_path / "cv", ours, drawn, record)


def test_the_stain_that_a_run_has_fitted_is_no_changed_setting(tmp_path):
    target = f"data.stain_target={list(range(1, 7))}"
    known = crossval.config.load_settings(None, ["data.stain=reinhard", target])
    (tmp_path / "config.yaml").write_text(known.to_yaml())
    changed_settings.refuse(tmp_path, crossval.config.load_settings(None, ["data.stain=reinhard"]))
    with pytest.raises(InputError, match="was started with data.stain=reinhard, got none"):
        changed_settings.refuse(tmp_path, crossval.config.load_settings())
    with pytest.raises(InputError, match="data.stain_target: must be auto in a cross-validation"):
        crossval.main(["a", "data.stain=reinhard", target])


def test_eight_views_are_averaged_for_the_choices_and_for_the_test_alike(tree, monkeypatch):
    """By hand: every head on the features of each image turned by NumPy, found by its file name."""
    fit, by_hand, views = out_of_fold.fit, [], []

    def features(network, table):
        images = decoding.decode([audit.image_folder(tree) / path for path in table.path], 32).astype(np.float32)
        turned = [np.rot90(side, count, (1, 2)) for side in (images, images[:, :, ::-1]) for count in range(4)]
        return [model.pooled(network).predict(batch, verbose=0) for batch in turned]

    def recorded(prepared, train, held_out, epochs, every_epoch=True):
        network, found = fit(prepared, train, held_out, epochs, every_epoch)
        views.extend([] if views else features(network, prepared.table))
        mean = np.mean([model.head(network)(view[held_out]).numpy()[:, 0] for view in views], axis=0)
        by_hand.append(prepared.table.iloc[held_out].assign(probability=mean).set_index("filename"))
        return network, found

    monkeypatch.setattr(out_of_fold, "fit", recorded)
    monkeypatch.setattr(figures, "draw", lambda evaluation, network: {})
    given = ["data.test_views=8", "data.magnification=40", "train.epochs=1", "--folds", "3", "--threshold", "youden"]
    crossval.main(arguments(tree, *given, "--final"))
    oof = pd.read_csv("runs/tiny/oof.csv").set_index("filename").probability
    for fold in (1, 2, 3):
        *inner, outer = by_hand[4 * fold - 4 : 4 * fold]
        np.testing.assert_allclose(oof[outer.index], outer.probability, atol=1e-5)
        inner, chosen = pd.concat(inner), json.loads(Path(f"runs/tiny/folds/1-{fold}.json").read_text())["decision"]
        expected = calibration.decide(inner, "youden")
        assert chosen["views"] == 8 and expected["temperature"] != 1
        assert [chosen[name] for name in ("threshold", "temperature")] == pytest.approx(
            [expected[name] for name in ("threshold", "temperature")], rel=1e-3
        )
    assert json.loads(Path("runs/tiny/evaluation/metrics.json").read_text())["views"] == 8
    assert set(pd.read_csv("runs/tiny/evaluation/predictions.csv").views) == {8}
    assert checkpoint.load(Path("runs/tiny"))[1]["decision"]["views"] == 8


def test_a_missing_interval_is_named():
    scores = {"balanced_accuracy": (0.8, None, None), "patients": 3, "folds": "2 folds"}
    assert "0.800 (no interval: a class has a single patient; 2 folds)" in predict._evidence(scores)
    about = dict.fromkeys(("balanced_accuracy", "sensitivity", "specificity", "roc_auc"), [0.8, None, None])
    read = checkpoint.CrossValidated(folds="2 folds", patients=3, **about)
    assert read.specificity == [0.8, None, None]
    for wrong in ([None, None, None], [0.8, 0.1, None]):
        with pytest.raises(ValueError, match="both ends of its interval"):
            checkpoint.CrossValidated(folds="2 folds", patients=3, **{**about, "roc_auc": wrong})


@pytest.mark.parametrize("record, message", [
    ({}, "no environment of a cross-validation"),
    ({"cross_validation": {"unit": "hospital"}}, "unit: "),
    ({"cross_validation": 5}, "no environment of a cross-validation"),
])  # fmt: skip
def test_an_environment_without_a_plan_is_refused(record, message):
    with pytest.raises(InputError, match=message):
        cross_validation.plan_of(Path("runs/a"), record)
