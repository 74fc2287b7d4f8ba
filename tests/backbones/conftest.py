"""Fixtures for tests of the bases: a network on the base `name`, which a test file chooses, built once."""

import importlib

import keras
import numpy as np
import pytest
from lively import enliven
from tiny_tree import tiny_settings

import config
import model
from backbones import networks
from backbones.table import BASES
from devices import keras_stack


@pytest.fixture(scope="module")
def images(name):
    size = max(64, BASES[name].smallest)
    return np.random.RandomState(0).randint(0, 256, (4, size, size, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def settings(name, images, tree):
    overrides = [f"model.base={name}", f"data.image_size={images.shape[1]}", "model.standardize=false"]
    return config.load_settings(None, tiny_settings(tree, *overrides))


@pytest.fixture(scope="module")
def network(settings, images):
    keras.mixed_precision.set_global_policy("float32")
    network = model.build(settings)
    enliven(model.base_of(network), networks.preprocessing(settings.model.base)(images))
    return network


@pytest.fixture(scope="module")
def fetched(name, network, tmp_path_factory):
    """Keras' own network with the weights of ours, and what it asked for to fetch the ImageNet weights."""
    file, asked = tmp_path_factory.mktemp("keras") / "mine.weights.h5", []
    model.base_of(network).save_weights(file)
    fetcher = importlib.import_module(f"keras.src.utils.{'file' if keras_stack.KERAS_3 else 'data'}_utils")

    def get_file(fname, origin, cache_subdir, file_hash=None):
        asked.append((fname, origin, cache_subdir, file_hash))
        return file

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fetcher, "get_file", get_file)
        constructor = getattr(keras.applications, BASES[name].constructor)
        return constructor(include_top=False, weights="imagenet", input_shape=(None, None, 3)), asked
