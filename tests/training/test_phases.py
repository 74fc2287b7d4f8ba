import numpy as np
import pytest
from tiny_tree import tiny_settings

import config
import data
import model
from images import audit, splits
from training import phases

pytestmark = pytest.mark.usefixtures("float32")


def standardizing_layer(tree, features):
    """Mean and variance that the head's first layer gets in a mode of training that warps its images."""
    options = ["augment.flip=true", "augment.rotation=90", "augment.views=2", f"train.features={features}"]
    settings = config.load_settings(None, tiny_settings(tree, *options))
    table = splits.split(audit.with_pixels(data.read_table(settings.data), settings.data), settings.data)
    rows = phases.Rows(table[table.set == "train"], table[table.set == "valid"])
    network = model.build(settings)
    phases.head(network, rows, settings)
    return network.get_layer("standardize").get_weights()[:2]


def test_both_modes_standardize_by_the_same_warped_images(tree):
    cached, end_to_end = (standardizing_layer(tree, features) for features in ("cached", "end_to_end"))
    for ours, theirs in zip(cached, end_to_end):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_features_from_which_nothing_can_be_learned_are_noted(tree, monkeypatch, capsys):
    """As an untrained MobileNetV2 gives them."""
    standardizing_layer(tree, "cached")
    assert "no head can learn" not in capsys.readouterr().out
    monkeypatch.setattr(phases.feature_datasets, "statistics", lambda *_: (np.zeros(512), np.full(512, 1e-24)))
    standardizing_layer(tree, "cached")
    assert "note: the features are the same for all images to 1e-06, so no head can learn" in capsys.readouterr().out
