"""Each stack reads what the other wrote; `write_files.py` wrote these files, once on each."""

import gzip
import json

import numpy as np
import pytest
from write_files import FOLDER, PIXELS

import model
from backbones import networks
from training import checkpoint

pytestmark = pytest.mark.usefixtures("float32")


def unpacked(name, folder):
    path = folder / name
    path.write_bytes(gzip.decompress((FOLDER / f"{name}.gz").read_bytes()))
    return path


@pytest.mark.parametrize("stack", ["addons", "keras3"])
def test_a_checkpoint_predicts_on_both_stacks_what_it_did_on_its_own(tmp_path, stack):
    network, about = checkpoint.load(unpacked(f"{stack}.keras", tmp_path))
    expected = json.loads((FOLDER / f"{stack}.json").read_text())["probabilities"]
    assert np.ptp(expected) > 0.01 and about["settings"].model.base == "cnn"
    np.testing.assert_allclose(network.predict(PIXELS, verbose=0)[:, 0], expected, atol=1e-5)


@pytest.mark.parametrize("name", ["addons.h5", "keras3.weights.h5"])
def test_the_base_weights_of_either_stack_are_loaded(tmp_path, name):
    network, _ = checkpoint.load(unpacked(f"{name.partition('.')[0]}.keras", tmp_path))
    base = networks.cnn()
    networks.load(base, str(unpacked(name, tmp_path)))
    for array, expected in zip(base.get_weights(), model.base_of(network).get_weights()):
        np.testing.assert_array_equal(array, expected)
