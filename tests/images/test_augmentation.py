import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tiny_tree import tiny_settings

import config
import model
from features import extraction
from images import augmentation, image_datasets, turns, warp

ALL = ["augment.rotation=20", "augment.zoom=0.1", "augment.flip=true", "augment.turns=true", "augment.stain=0.1",
       "augment.contrast=0.2", "augment.brightness=0.1"]  # fmt: skip
EPOCH, STEP = (tf.constant(number, tf.int64) for number in (3, 7))


@pytest.fixture
def images():
    return np.random.RandomState(0).randint(0, 256, (5, 32, 32, 3)).astype(np.uint8)


def settings_with(*overrides):
    return config.load_settings(None, overrides)


def batch(images, draws, settings, monkeypatch):
    """The cached views of these images, as `extraction` makes them, with given draws."""
    monkeypatch.setattr(augmentation, "draws_of", lambda name, seed: draws[int(name)])
    passes = [extraction.Pass(f"{view}", "", str(view), view) for view in range(len(images))]
    store = extraction.Store(Path("none"), images.shape[1:], np.uint8)
    cached = extraction.Extraction(None, "", "tensorflow", store, store, Path(), settings.data, settings.augment, 0)
    return extraction._batch(passes, {str(view): image for view, image in enumerate(images)}, cached)[: len(images)]


@pytest.mark.parametrize("overrides", [ALL, ALL[:3], ALL[3:4], ALL[4:]], ids=["all", "warp", "turns", "colours"])
def test_cached_views_are_those_of_end_to_end_for_the_same_draws(images, monkeypatch, overrides):
    settings, drawn, augment = settings_with(*overrides), [], augmentation.augment
    monkeypatch.setattr(augmentation, "augment", lambda *given: drawn.append(given[2]) or augment(*given))
    fresh = image_datasets._augment_at(tf.constant(images, tf.float32), settings, EPOCH, STEP).numpy()
    cached = batch(images, drawn[0].numpy(), settings, monkeypatch).numpy()
    np.testing.assert_allclose(cached, fresh, atol=1e-5 * 255)
    assert not np.allclose(fresh, images) and fresh.min() >= 0 and fresh.max() <= 255


def test_the_draws_of_the_warp_are_those_of_earlier_versions(images, monkeypatch):
    digest = hashlib.sha256(b"9/abc-2").digest()
    earlier = np.random.RandomState(np.frombuffer(digest, np.uint32)).uniform(-1, 1, 6)
    assert (augmentation.draws_of("abc-2", 9)[:6] == earlier).all()
    settings = settings_with(*ALL[:3])
    fresh = image_datasets._augment_at(tf.constant(images, tf.float32), settings, EPOCH, STEP).numpy()
    uniform = tf.random.stateless_uniform((5, 6), [0, 3 * 2**32 + 7], -1.0, 1.0)
    assert (fresh == warp.warp(tf.constant(images, tf.float32), settings.augment, uniform).numpy()).all()


def test_turns_alone_interpolate_nothing(images):
    settings = settings_with("augment.turns=true")
    fresh = image_datasets._augment_at(tf.constant(images, tf.float32), settings, EPOCH, STEP).numpy()
    for image, turned in zip(images, fresh):
        every = turns.turn(tf.constant(np.repeat(image[None], 8, axis=0), tf.float32), range(8)).numpy()
        assert turned.tobytes() in {each.tobytes() for each in every}


def test_the_key_of_the_cache_is_that_of_earlier_versions_where_the_new_settings_are_off(tree):
    settings = config.load_settings(None, tiny_settings(tree, "augment.rotation=20", "augment.flip=true"))
    part = model.pooled(model.build(settings))
    for augmented in (True, False):
        kinds = {"rotation": 20.0, "shift": 0.0, "shear": 0.0, "zoom": 0.0, "flip": True}
        earlier = {
            "version": extraction.VERSION, "weights": model.weights_hash(part), "output": "pooling", "image_size": 32,
            "precision": "float32", "augment": kinds if augmented else None, "seed": 0 if augmented else None,
        }  # fmt: skip
        expected = hashlib.sha256(json.dumps(earlier, sort_keys=True).encode()).hexdigest()[:16]
        assert extraction.key(part, settings, augmented) == expected
    keys = {
        extraction.key(part, config.load_settings(None, tiny_settings(tree, *change)), True)
        for change in ([], *([text] for text in ALL), ["augment.stain=0.2"])
    }
    assert len(keys) == len(ALL) + 2


@pytest.mark.parametrize(
    "change, words",
    [
        ("stain=0.6", "less than or equal to 0.5, got '0.6'"),
        ("contrast=-1", "greater than or equal to 0"),
        ("turns=2", "turns"),
    ],
)
def test_amounts_out_of_range_are_refused(change, words):
    with pytest.raises(Exception, match=words):
        settings_with(f"augment.{change}")
    assert not settings_with("augment.stain=off", "augment.turns=off").augment.active
