import json

import numpy as np
import pytest

from evaluation import out_of_distribution


@pytest.fixture(scope="module")
def rows():
    # Scales from 1 to 10; the last feature hardly moves.
    noise = np.random.RandomState(0).normal(5, 1, (1000, 16))
    return (noise * np.append(np.linspace(1, 10, 15), 1e-6)).astype(np.float32)


def test_the_description_is_that_of_the_training_features(rows):
    statistics = out_of_distribution.describe(rows)
    variance = rows.var(axis=0, dtype=float)
    expected = np.sqrt(np.maximum(variance, 1e-3 * variance.mean() + 1e-7))
    np.testing.assert_allclose(statistics["mean"], rows.mean(axis=0, dtype=float), rtol=1e-6)
    np.testing.assert_allclose(statistics["deviation"], expected, rtol=1e-5)
    distances = np.sqrt((((rows - rows.mean(axis=0)) / expected) ** 2).mean(axis=1))
    assert statistics["limit"] == pytest.approx(np.percentile(distances, 99), rel=1e-4)
    assert json.loads(json.dumps(statistics)) == statistics


def test_chunks_change_nothing(rows, monkeypatch):
    whole = out_of_distribution.describe(rows)
    monkeypatch.setattr(out_of_distribution, "CHUNK", 7)
    assert out_of_distribution.describe(rows) == whole


def test_only_the_rows_named_count_and_each_once(rows):
    places = np.array([[3, 5, 3], [900, 5, 7]])
    assert out_of_distribution.describe(rows, places) == out_of_distribution.describe(rows[[3, 5, 7, 900]])


def test_a_distance_worked_out_by_hand():
    statistics = {"mean": [1.0, 2.0], "deviation": [1.0, 2.0], "limit": 1.0}
    # (3 / 1)^2 and (8 / 2)^2 have the mean 12.5.
    np.testing.assert_allclose(
        out_of_distribution.distances(np.array([[1, 2], [4, 10]]), statistics), [0, np.sqrt(12.5)]
    )


def test_one_in_a_hundred_of_the_training_rows_is_beyond_the_limit(rows):
    statistics = out_of_distribution.describe(rows)
    assert (out_of_distribution.distances(rows, statistics) > statistics["limit"]).sum() == 10
    assert (out_of_distribution.distances(rows * 2, statistics) > statistics["limit"]).all()
