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
