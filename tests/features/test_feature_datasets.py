import functools
import gc
import tempfile
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf
from tiny_tree import tiny_settings

import config
import data
import model
from features import extraction, feature_datasets
from images import audit, decoding, image_datasets
from training import phases


def test_training_picks_among_the_views_and_keeps_labels_with_features(tree):
    array = np.repeat(np.arange(60, dtype=np.float32)[:, None], 2048, axis=1)
    labels = np.arange(20) % 2
    features = extraction.Features(array, np.arange(60).reshape(20, 3), labels)
    settings = config.load_settings(None, tiny_settings(tree, "train.epochs=30", "train.batch_size=8"))
    seen = np.zeros((20, 3), int)
    order = []
    for number, (chosen, label) in enumerate(feature_datasets.train_dataset(features, settings)):
        places = feature_datasets.read(features.array, chosen).numpy()[:, 0].astype(int)
        assert (labels[places // 3] == label.numpy()[:, 0]).all()
        np.add.at(seen, (places // 3, places % 3), 1)
        order += list(places // 3) if number < 3 else []
    assert (seen.sum(axis=1) == 30).all() and (seen > 0).all()
    assert sorted(order) == list(range(20)) and order != list(range(20))


def test_what_is_read_are_the_features_at_their_places_and_no_others():
    array = np.random.default_rng(0).normal(size=(7, 2, 3, 5)).astype(np.float32)
    for places in ([6, 0, 0, 3], [], [2]):
        read = feature_datasets.read(array, tf.constant(places, tf.int64)).numpy()
        assert read.shape == (len(places), 2, 3, 5) and (read == array[np.array(places, int)]).all()
    for outside in (7, -1):
        with pytest.raises(IndexError, match="from 0 to 6"):
            feature_datasets.read(array, tf.constant([0, outside], tf.int64))


def test_validation_takes_every_row_once_in_order(tree):
    array = np.repeat(np.arange(60, dtype=np.float32)[:, None], 2048, axis=1)
    features = extraction.Features(array, np.arange(60).reshape(20, 3), np.arange(20) % 2)
    batches = list(feature_datasets.eval_dataset(features, 8))
    assert np.concatenate([batch[:, 0] for batch, _ in batches]).tolist() == list(range(0, 60, 3))
    assert np.concatenate([label[:, 0] for _, label in batches]).tolist() == [0, 1] * 10


def test_no_pipeline_waits_for_autotuning_at_its_end(tree, monkeypatch):
    features = extraction.Features(np.zeros((9, 5), np.float32), np.arange(9)[:, None], np.arange(9) % 2)
    settings, rows = config.load_settings(None, tiny_settings(tree)), data.read_folds(tree / "Folds.csv")
    folder = audit.image_folder(tree)
    without = decoding.without_autotuning
    batches = phases._feature_batches(features, features, settings, 8)
    pipelines = [
        batches.train_from(0), batches.valid, batches.one_by_one(0), batches.many_at_once(range(2), 4),
        image_datasets.train_dataset(rows, folder, settings), image_datasets.eval_dataset(rows, folder, settings),
    ]  # fmt: skip
    monkeypatch.setattr(decoding, "without_autotuning", lambda dataset: pipelines.append(without(dataset)) or dataset)
    decoding.decode([folder / rows.path[0]], 32)
    assert [pipeline.options().autotune.enabled for pipeline in pipelines] == [False] * 7


def test_statistics_count_each_image_once():
    array = np.random.RandomState(0).normal(3, 2, (50, 2048)).astype(np.float32)
    mean, variance = feature_datasets.statistics(array, np.array([[1], [2], [2], [2], [7]]))
    np.testing.assert_allclose(mean, array[[1, 2, 7]].mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(variance, array[[1, 2, 7]].var(axis=0), rtol=1e-4)


@pytest.mark.parametrize("part", [2, 4096])
def test_features_after_a_layer_are_those_of_the_layer_row_by_row(monkeypatch, part):
    monkeypatch.setattr(feature_datasets, "PART", part)
    rng = np.random.default_rng(0)
    array, places, labels = rng.normal(size=(9, 5)).astype(np.float32), np.array([[7, 1], [3, 3], [1, 8]]), np.arange(3)
    layer = keras.layers.Normalization(mean=rng.normal(size=5), variance=rng.uniform(1, 2, 5))
    after = feature_datasets.transformed(layer, extraction.Features(array, places, labels))
    assert (after.array[after.places] == layer(array).numpy()[places]).all() and (after.labels == labels).all()
    # Of the others nothing is computed.
    assert after.array.shape == (4, 5)


def test_a_full_folder_of_temporary_files_is_named(monkeypatch):
    monkeypatch.setattr(tempfile, "TemporaryFile", functools.partial(open, "/dev/full", "wb"))
    features = extraction.Features(np.zeros((1, 2), np.float32), np.zeros((1, 1), int), np.zeros(1))
    with pytest.raises(OSError, match="No space left") as error:
        feature_datasets.transformed(keras.layers.ReLU(), features)
    assert error.value.filename == tempfile.gettempdir()


def test_the_features_of_a_training_are_deleted_with_its_batches(tree):
    """Or a cross-validation would fill the disk: TensorFlow keeps every Python function that it has called."""
    features = extraction.Features(np.ones((9, 512), np.float32), np.arange(9)[:, None], np.arange(9) % 2)
    settings = config.load_settings(None, tiny_settings(tree, "model.standardize=true", "train.epochs=2"))
    phase = phases.head_on_features(model.head(model.build(settings)), features, features, settings)
    model.compile_model(phase.trained, settings.train, phase.rate)
    phases.fit(phase, [], verbose=0)
    kept = [weakref.ref(array) for array in phase.batches.arrays]
    assert len(kept) == 2 and all(array() is not None for array in kept)
    del phase
    gc.collect()
    assert all(array() is None for array in kept)
