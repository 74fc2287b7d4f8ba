import pandas as pd
import pytest

import compare
import plots


def found(protocol, seed, accuracy, shared):
    return {
        "protocol": protocol, "seed": seed, "n": 600, "slides": 20, "patients": 15, "accuracy": accuracy, "f1": accuracy - 0.01,
        "roc_auc": accuracy + 0.01, "leaks": {"shared": {"image": 0.0, "slide": shared, "patient": shared}}, "notice": "made up",
    }  # fmt: skip


@pytest.fixture
def results(tmp_path):
    return {
        tmp_path / "runs" / "a": found("image", 0, 0.9, 1.0),
        tmp_path / "runs" / "b": found("image", 1, 0.8, 1.0),
        tmp_path / "runs" / "c": found("patient", 0, 0.7, 0.0),
    }


def test_the_table_has_a_row_a_run_with_its_difference(results, tmp_path, capsys):
    compare.compare(results)
    table = pd.read_csv(tmp_path / "runs" / "comparison.csv")
    assert table.run.tolist() == ["a", "b", "c"] and table.protocol.tolist() == ["image", "image", "patient"]
    assert table.difference.tolist() == pytest.approx([0, -0.1, -0.2])
    assert table.shared_patient.tolist() == [1, 1, 0]
    printed = capsys.readouterr().out
    assert "made up" in printed and "0.8500" in printed
    assert (tmp_path / "runs" / "comparison.png").stat().st_size > 5000


def test_seeds_are_summed_up_for_each_protocol(results):
    summed = compare.over_seeds(compare.tabulate(results))
    assert summed.loc["image", "accuracy mean"] == pytest.approx(0.85)
    assert summed.loc["image", "accuracy std"] == pytest.approx(0.05 * 2**0.5)
    assert summed.runs.to_dict() == {"image": 2, "patient": 1}


def test_the_chart_shows_means_and_marks_what_is_published(results):
    axis = plots.comparison(compare.tabulate(results), compare.REFERENCES).axes[0]
    assert [bar.get_height() for bar in axis.containers[0]] == pytest.approx([0.85, 0.7])
    assert [label.get_text() for label in axis.get_xticklabels()] == ["image", "patient"]
    texts = [text.get_text() for text in axis.texts]
    assert any("thesis" in text and "94.7%" in text for text in texts)
    assert sorted(line.get_ydata()[0] for line in axis.lines) == pytest.approx([0.844, 0.875, 0.9467])
