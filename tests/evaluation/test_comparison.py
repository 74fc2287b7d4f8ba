from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import config
from evaluation import comparison, evaluation_plots, metrics
from evaluation.evaluation import Evaluation
from images import plot_style


def evaluation_of(protocol, seed, accuracy, shared, *changes):
    """An evaluation of ten images of which the first `accuracy` are right."""
    label = np.repeat(["benign", "malignant"], 5)
    other = np.where(label == "benign", "malignant", "benign")
    images = pd.DataFrame({
        "filename": [f"{number}.png" for number in range(10)], "label": label, "patient": list("aabbcddeef"),
        "prediction": np.where(np.arange(10) < 10 * accuracy, label, other),
    })  # fmt: skip
    settings = config.load_settings(
        None, [f"data.protocol={protocol}", f"data.seed={seed}", f"train.run={accuracy}", *changes]
    )
    results = {
        **dict.fromkeys(metrics.SCORES, accuracy), "protocol": protocol, "seed": seed, "n": 600, "slides": 20, "patients": 15,
        "leaks": {"shared": {"image": 0.0, "slide": shared, "patient": shared}, "shared_with_validation": {"image": 0.0, "slide": 0.0, "patient": 0.5}}, "notice": "made up", "finished": True,
        "base": settings.model.base, "weights": "random", "threshold_rule": "0.5", "split": "of the run",
    }  # fmt: skip
    return Evaluation(results, images, None, "", settings, {"data_sha256": "1"})


def tabulated(evaluations):
    return comparison.tabulate(evaluations, comparison.distinguish(evaluations))


def charted(evaluations):
    runs = tabulated(evaluations).assign(group=comparison.chart_labels(comparison.distinguish(evaluations)))
    return evaluation_plots.comparison(runs, comparison.REFERENCES).axes[0]


@pytest.fixture
def evaluations(tmp_path):
    return {
        tmp_path / "runs" / "a": evaluation_of("image", 0, 0.9, 1.0),
        tmp_path / "runs" / "b": evaluation_of("image", 1, 0.8, 1.0),
        tmp_path / "runs" / "c": evaluation_of("patient", 0, 0.7, 0.0),
    }


def test_the_table_has_a_row_a_run_with_its_difference(evaluations, tmp_path, capsys):
    comparison.compare(evaluations)
    table = pd.read_csv(tmp_path / "runs" / "comparison.csv")
    assert table.run.tolist() == ["a", "b", "c"] and table.protocol.tolist() == ["image", "image", "patient"]
    assert table.difference.tolist() == pytest.approx([0, -0.1, -0.2])
    assert table.shared_patient.tolist() == [1, 1, 0] and table.shared_patient_valid.tolist() == [0.5] * 3
    printed = capsys.readouterr().out
    assert "made up" in printed and "0.8500" in printed
    # Besides the two that are always printed, the leaks that there are.
    shares = [name for name in printed.split() if name.startswith("shared_")]
    assert shares == ["shared_image", "shared_slide", "shared_patient", "shared_patient_valid"]
    assert (tmp_path / "runs" / "comparison.png").stat().st_size > 5000


def test_rules_of_thresholds_that_differ_are_named(evaluations, capsys):
    comparison.compare(evaluations)
    assert "The threshold rules differ" not in capsys.readouterr().out
    next(iter(evaluations.values())).results["threshold_rule"] = "sensitivity=0.95"
    comparison.compare(evaluations)
    assert "The threshold rules differ: sensitivity=0.95, 0.5;" in capsys.readouterr().out


def test_the_pairs_of_an_earlier_comparison_do_not_stay(evaluations, tmp_path):
    comparison.compare(evaluations)
    assert (tmp_path / "runs" / "pairs.csv").exists()
    comparison.compare(dict([next(iter(evaluations.items()))]))
    assert not (tmp_path / "runs" / "pairs.csv").exists()


def test_seeds_are_summarized_for_each_protocol(evaluations, tmp_path):
    comparison.compare(evaluations)
    seeds = pd.read_csv(tmp_path / "runs" / "seeds.csv").set_index(["protocol", "base"])
    for key in metrics.SCORES:
        assert seeds.loc[("image", "resnet50"), f"{key} mean"] == pytest.approx(0.85)
        assert seeds.loc[("image", "resnet50"), f"{key} std"] == pytest.approx(0.05 * 2**0.5)
    assert seeds.runs.tolist() == [2, 1] and seeds.seeds.tolist() == ["0 1", "0"]


def test_runs_of_other_settings_are_not_summarized_as_seeds(tmp_path):
    """What differs between the runs makes a row of its own, and a column."""
    evaluations = {
        tmp_path / name: evaluation_of("patient", seed, accuracy, 0.0, change)
        for name, seed, accuracy, change in [
            ("a", 0, 0.9, "train.epochs=9"), ("b", 1, 0.8, "train.epochs=9"), ("c", 0, 0.6, "train.epochs=3"),
        ]
    }  # fmt: skip
    seeds = comparison.summarize_seeds(tabulated(evaluations), list(comparison.distinguish(evaluations)))
    assert seeds.index.names == ["protocol", "base", "train.epochs"] and seeds.runs.tolist() == [2, 1]
    assert [label.get_text() for label in charted(evaluations).get_xticklabels()] == [
        "patient\ntrain.epochs 9",
        "patient\ntrain.epochs 3",
    ]
    for key in ("threshold_rule", "split"):
        first, second = (evaluation_of("patient", seed, 0.9, 0.0) for seed in (0, 1))
        second.results[key] = "another"
        assert len(comparison.distinguish({tmp_path / "a": first, tmp_path / "b": second}).drop_duplicates()) == 2


def test_a_given_target_of_the_stain_is_a_setting_and_a_fitted_one_is_none(tmp_path):
    runs = {}
    for seed, target, origin in [(0, 1, "fitted"), (1, 2, "fitted"), (0, 3, "given"), (1, 3, "given"), (2, 4, None)]:
        run = evaluation_of(
            "patient", seed, 0.9, 0.0, "data.stain=reinhard", f"data.stain_target={[target] * 6}"
        )
        run.environment.update({"stain_target": origin} if origin else {})
        runs[tmp_path / f"{len(runs)}"] = run
    # Runs of earlier versions do not say what theirs is.
    assert comparison.distinguish(runs)["data.stain_target"].tolist() == ["auto"] * 2 + [str([3.0] * 6)] * 2 + ["auto"]


def test_equal_seeds_are_no_spread_over_seeds(evaluations, tmp_path):
    assert "no spread over seeds" not in comparison.notes(evaluations, comparison.distinguish(evaluations))
    evaluations[tmp_path / "runs" / "again"] = evaluation_of("image", 1, 0.8, 1.0)
    text = comparison.notes(evaluations, comparison.distinguish(evaluations))
    assert "These runs have equal settings and seed, so they show no spread over seeds: b, again." in text


def test_the_chart_shows_means_and_marks_what_is_published(evaluations):
    axis = charted(evaluations)
    assert [bar.get_height() for bar in axis.containers[0]] == pytest.approx([0.85, 0.7])
    assert [label.get_text() for label in axis.get_xticklabels()] == ["image", "patient"]
    texts = [text.get_text() for text in axis.texts]
    assert any("thesis" in text and "94.7%" in text for text in texts)
    assert sorted(line.get_ydata()[0] for line in axis.lines) == pytest.approx([0.844, 0.875, 0.9467])


def test_runs_on_the_same_test_images_are_paired(evaluations, tmp_path, capsys):
    comparison.compare(evaluations)
    pairs = pd.read_csv(tmp_path / "runs" / "pairs.csv")
    assert list(zip(pairs["first"], pairs["second"])) == [("a", "b"), ("a", "c"), ("b", "c")]
    assert pairs.difference.tolist() == pytest.approx([-0.1, -0.2, -0.1])
    assert "on the same test images" in capsys.readouterr().out


def test_names_of_runs_are_no_formulas(evaluations, tmp_path):
    """Neither for a spreadsheet nor for Matplotlib, which would fail at an unknown command between two dollars."""
    names = ["=1+1", "$\\nothing$", "<b>"]
    renamed = {tmp_path / "runs" / name: evaluation for name, evaluation in zip(names, evaluations.values())}
    comparison.compare(renamed)
    assert pd.read_csv(tmp_path / "runs" / "comparison.csv").run.tolist() == ["'=1+1", "$\\nothing$", "<b>"]
    assert pd.read_csv(tmp_path / "runs" / "pairs.csv")["first"][0] == "'=1+1"
    plot_style.save(
        evaluation_plots.comparison(tabulated(renamed).assign(group=names), {}), tmp_path / "a.png", "costs $\\nothing$"
    )


def test_runs_on_other_images_are_not_paired(evaluations):
    runs = list(evaluations)
    other = evaluations[runs[1]].predictions.assign(filename=lambda rows: "x" + rows.filename)
    evaluations[runs[1]] = evaluations[runs[1]]._replace(predictions=other)
    assert comparison.pair_up(evaluations)[["first", "second"]].to_numpy().tolist() == [["a", "c"]]


def test_runs_of_different_data_are_neither_passed_off_as_comparable_nor_paired(evaluations):
    assert "data" not in comparison.notes(evaluations, comparison.distinguish(evaluations))
    run = next(iter(evaluations))
    evaluations[run] = evaluations[run]._replace(environment={"data_sha256": "2"})
    assert "trained on different data" in comparison.notes(evaluations, comparison.distinguish(evaluations))
    assert comparison.pair_up(evaluations)[["first", "second"]].to_numpy().tolist() == [["b", "c"]]


def test_unknown_data_are_called_unknown_and_not_different(evaluations):
    run = next(iter(evaluations))
    evaluations[run] = evaluations[run]._replace(environment={})
    text = comparison.notes(evaluations, comparison.distinguish(evaluations))
    assert "The training data of these runs is unknown: a." in text and "different data" not in text
    assert len(comparison.pair_up(evaluations)) == 3


def test_a_cnn_and_a_resnet_are_two_configurations(tmp_path):
    runs = {
        tmp_path / "a": evaluation_of("patient", 0, 0.9, 0.0),
        tmp_path / "b": evaluation_of("patient", 0, 0.8, 0.0, "model.base=cnn"),
    }
    assert [label.get_text() for label in charted(runs).get_xticklabels()] == ["patient\nresnet50", "patient\ncnn"]
    seeds = comparison.summarize_seeds(tabulated(runs), list(comparison.distinguish(runs)))
    assert seeds.index.tolist() == [("patient", "resnet50"), ("patient", "cnn")]


def test_cross_validations_are_shown_by_balanced_accuracy_with_interval_and_patients():
    results = {
        "protocol": "patient", "n": 599, "balanced_accuracy": 0.6604, "sensitivity": 0.7, "specificity": 0.62,
        "patients_by_class": {"benign": 13, "malignant": 27}, "leaks": {"shared": {"patient": 0.0}},
        "intervals": {"balanced_accuracy": {"headline": [0.5, 0.8]}}, "cross_validation": {},
    }  # fmt: skip
    alone = {**results, "protocol": "fold", "intervals": {"balanced_accuracy": {"headline": None}}}
    folders = {Path("runs/=a"): results, Path("runs/b"): alone}
    table = comparison.headline({run: Evaluation(each, None, run, "", None, {}) for run, each in folders.items()})
    first, second = comparison.in_words(table).to_dict("records")
    assert first["run"] == "'=a" and first["95 % over patients"] == "0.500 to 0.800" and first["images"] == 599
    assert first["balanced accuracy"] == "0.660" and first["patients (benign + malignant)"] == "13 + 27"
    assert second["95 % over patients"] == "-" and second["patient in training"] == "0%"
    axis = evaluation_plots.cross_validations(table).axes[0]
    assert [bar.get_height() for bar in axis.patches] == [0.6604, 0.6604]
    assert [text.get_text() for text in axis.get_xticklabels()] == ["patient", "fold"]
    # The end of a perfect score's interval, after rounding.
    evaluation_plots.cross_validations(table.assign(balanced_accuracy=1.0, high=1 - 2**-53))
