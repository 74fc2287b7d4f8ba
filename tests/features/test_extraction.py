import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from lively import norms
from tiny_tree import tiny_settings

import config
import data
import model
from devices import precision
from features import extraction, store
from images import audit, augmentation, decoding, image_datasets, splits, turns
from safety.errors import InputError
from training import phases

ROOT = Path(config.__file__).parent


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """An empty cache for each test."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def options(tree, *overrides):
    return config.load_settings(None, tiny_settings(tree, *overrides))


@pytest.fixture(scope="module")
def rows(tree):
    settings = options(tree).data
    return splits.select(audit.with_pixels(data.read_table(settings), settings), settings)


@pytest.fixture(scope="module")
def network(tree):
    return model.build(options(tree))


@pytest.fixture
def passes(monkeypatch):
    """Counts the images that go through the base."""
    counted = []
    run = extraction._run
    monkeypatch.setattr(extraction, "_run", lambda base, chunk, *rest: counted.extend(chunk) or run(base, chunk, *rest))
    return counted


def values(features, view=0):
    return np.asarray(features.array[features.places[:, view]])


def test_features_are_those_of_the_network_on_the_same_rows(tree, rows, network):
    rows = rows.sample(frac=1, random_state=1).head(70)
    features = values(extraction.pooled(network, rows, options(tree)))
    images = np.concatenate(
        [images for _, images, _ in image_datasets.eval_dataset(rows, audit.image_folder(tree), options(tree))]
    )
    np.testing.assert_allclose(features, model.pooled(network).predict(images, verbose=0), rtol=1e-4, atol=1e-4)


def test_the_base_runs_once_a_image_whatever_the_rows_and_runs(tree, rows, network, passes):
    repeated = pd.concat([rows.head(40)] * 5).sample(frac=1, random_state=1)
    first = values(extraction.pooled(network, repeated, options(tree)))
    assert len(passes) == 40
    again = values(extraction.pooled(network, repeated.iloc[::-1], options(tree)))
    assert len(passes) == 40 and (again[::-1] == first).all()
    extraction.pooled(network, rows.head(50), options(tree))
    assert len(passes) == 50


def test_equal_pixels_share_their_features(tree, rows, network, passes):
    twins = rows.head(2).assign(pixels="same")
    features = extraction.pooled(network, twins, options(tree))
    assert len(passes) == 1 and features.places[0] == features.places[1]


@pytest.mark.parametrize("change", ["augment.rotation=20", "data.seed=1", "augment.views=3"])
def test_augmented_views_are_new_only_where_the_warp_is(tree, rows, network, passes, change):
    before = ["augment.flip=true", "augment.views=2"]
    extraction.pooled(network, rows.head(5), options(tree, *before), augmented=True)
    assert len(passes) == 10
    features = extraction.pooled(network, rows.head(5), options(tree, *before, change), augmented=True)
    # A third view leaves the first two as they are; another warp or seed makes all of them anew.
    assert len(passes) == (15 if change == "augment.views=3" else 20)
    assert features.places.shape == (5, 3 if change == "augment.views=3" else 2)


def test_a_view_is_the_warped_image_by_its_own_seed(tree, rows, network):
    settings = options(tree, "augment.rotation=30", "augment.zoom=0.2", "augment.views=2")
    features = extraction.pooled(network, rows.head(3), settings, augmented=True)
    row = rows.iloc[1]
    draws = augmentation.draws_of(f"{row.pixels}-1", settings.data.seed)
    image = decoding.read(str(audit.image_folder(tree) / row.path), 32)[None]
    warped = augmentation.augment(image, settings.augment, tf.constant(draws[None].astype(np.float32)))
    np.testing.assert_allclose(values(features, 1)[1], model.pooled(network)(warped)[0], rtol=1e-4, atol=1e-4)
    assert not np.allclose(values(features, 0)[1], values(features, 1)[1])


def test_a_turned_view_is_the_exact_turn_next_to_the_plain_image_that_is_there(tree, rows, network, passes):
    plain = values(extraction.pooled(network, rows.head(3), options(tree)))
    features = extraction.pooled(network, rows.head(3), options(tree), turned=8)
    assert len(passes) == 3 * 8 and (values(features, 0) == plain).all() and features.places.shape == (3, 8)
    assert len(list(Path("cache").glob("features-*"))) == 1
    images = decoding.decode([audit.image_folder(tree) / path for path in rows.path.head(3)], 32).astype(np.float32)
    for view in range(8):
        expected = model.pooled(network)(turns.turn(tf.constant(images), [view] * 3))
        np.testing.assert_allclose(values(features, view), expected, rtol=1e-4, atol=1e-4)


def key(network, *rest):
    return extraction.key(model.pooled(network), *rest)


@pytest.mark.bfloat16
def test_every_setting_that_changes_the_features_changes_the_key(tree, network):
    plain = key(network, options(tree), False)
    assert plain == key(network, options(tree, "data.seed=9", "augment.flip=true", "train.epochs=9"), False)
    others = {plain, key(network, options(tree, "data.image_size=64"), False)}
    others |= {
        key(network, options(tree, *change), True)
        for change in (["augment.flip=true"], ["augment.zoom=0.1"], ["augment.flip=true", "data.seed=1"])
    }
    trained = model.build(options(tree))
    base = model.base_of(trained)
    base.set_weights([array + 1e-6 for array in base.get_weights()])
    others.add(key(trained, options(tree), False))
    precision.use_device("bfloat16")
    others.add(key(model.build(options(tree)), options(tree), False))
    precision.use_device("float32")
    assert len(others) == 7


def test_images_are_decoded_once_for_all_bases(tree, rows, network, monkeypatch):
    extraction.pooled(network, rows.head(20), options(tree))
    monkeypatch.setattr(decoding, "decode", lambda *args: pytest.fail("decoded again"))
    extraction.pooled(network, rows.head(20), options(tree, "augment.flip=true"), augmented=True)


def store_folder():
    return next(path for path in Path("cache").iterdir() if path.name.startswith("features"))


def flip(position):
    def spoil(folder):
        content = bytearray((folder / "arrays.bin").read_bytes())
        content[position] ^= 1
        (folder / "arrays.bin").write_bytes(content)

    return spoil


@pytest.mark.parametrize("spoil, most", [
    (flip(1000), 32),
    (flip(2048 * 60 + 5), 32),
    (lambda folder: (folder / "000001.json").write_text(""), 32),
    (lambda folder: (folder / "000001.json").write_text('{"names": []}'), 32),
    (lambda folder: (folder / "arrays.bin").unlink(), 70),
    (lambda folder: (folder / "arrays.bin").write_bytes(b""), 70),
])  # fmt: skip
def test_what_is_damaged_is_computed_again(tree, rows, network, passes, monkeypatch, spoil, most):
    monkeypatch.setattr(store, "CHUNK", 32)
    first = values(extraction.pooled(network, rows.head(70), options(tree)))
    spoil(store_folder())
    passes.clear()
    assert (values(extraction.pooled(network, rows.head(70), options(tree))) == first).all()
    assert 0 < len(passes) <= most


def test_a_cut_file_is_noticed(tree, rows, network, passes):
    first = values(extraction.pooled(network, rows.head(70), options(tree)))
    path = store_folder() / "arrays.bin"
    path.write_bytes(path.read_bytes()[:-4])
    assert (values(extraction.pooled(network, rows.head(70), options(tree))) == first).all()
    assert len(passes) == 140


def test_damaged_images_are_decoded_again(tree, rows, network):
    first = values(extraction.pooled(network, rows.head(20), options(tree)))
    path = Path("cache/images-1-32/arrays.bin")
    content = bytearray(path.read_bytes())
    content[50] ^= 255
    path.write_bytes(content)
    shutil.rmtree(store_folder())
    assert (values(extraction.pooled(network, rows.head(20), options(tree))) == first).all()


def test_too_small_a_limit_is_refused_before_anything_is_computed(tree, rows, network, passes):
    with pytest.raises(
        InputError, match=r"train.cache_gib: the features of this run need .* GiB, .*; allowed are 1e-05"
    ):
        extraction.pooled(network, rows, options(tree, "train.cache_gib=1e-5"))
    assert passes == []


def test_a_full_disk_is_refused_before_anything_is_computed(tree, rows, network, passes, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(InputError, match="0.00 are free on the disk"):
        extraction.pooled(network, rows, options(tree))
    assert passes == []


def in_another_process(tree, place, queue):
    os.chdir(place)
    settings = options(tree)
    rows = splits.select(audit.with_pixels(data.read_table(settings.data), settings.data), settings.data)
    counted = []
    run = extraction._run
    extraction._run = lambda base, chunk, *rest: counted.extend(chunk) or run(base, chunk, *rest)
    features = extraction.pooled(model.build(settings), rows, settings)
    queue.put((len(counted), float(np.asarray(features.array[features.places[:, 0]]).sum())))


def test_two_runs_at_once_compute_nothing_twice(tree, rows, place):
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    processes = [context.Process(target=in_another_process, args=(tree, place, queue)) for _ in range(2)]
    for process in processes:
        process.start()
    (first, total), (second, same) = queue.get(timeout=120), queue.get(timeout=120)
    for process in processes:
        process.join()
    assert sorted((first, second)) == [0, len(rows)] and total == same


# Extraction in a process of its own: tree, rows, precision, images in a chunk.
ALONE = """
import sys
import safety.startup
from pathlib import Path
import config, data, model
from devices import precision
from features import extraction, store
from images import audit, splits
from tiny_tree import tiny_settings
tree, count, name, chunk = sys.argv[1:]
store.CHUNK = int(chunk)
settings = config.load_settings(None, tiny_settings(Path(tree)))
rows = splits.select(audit.with_pixels(data.read_table(settings.data), settings.data), settings.data)
precision.use_device(name)
extraction.pooled(model.build(settings), rows.head(int(count)), settings)
"""


def alone(tree, place, rows, precision="float32", chunk=256):
    """Starts an extraction in a process of its own, with all instructions of the processor."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT}/tests"}
    # Capped to AVX2, oneDNN refuses the bfloat16 operations that TensorFlow chooses by the processor itself.
    environment.pop("ONEDNN_MAX_CPU_ISA", None)
    command = [sys.executable, "-c", ALONE, str(tree), str(rows), precision, str(chunk)]
    return subprocess.Popen(command, cwd=place, env=environment)


def chunks(place):
    return len(list(place.glob("cache/features-*/0*.json")))


def extract_with_kills(tree, place, kills, rng):
    """Kills the extraction at random moments until it was hit `kills` times between first and last chunk.

    Returns the bytes of the finished entry.
    """
    place.mkdir()
    hit = 0
    while hit < kills:
        process = alone(tree, place, 152, chunk=4)
        before = chunks(place)
        while chunks(place) == before and process.poll() is None:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.wait()
        hit += 0 < chunks(place) < 38
        if chunks(place) > 30:
            shutil.rmtree(place / "cache")
    assert alone(tree, place, 152, chunk=4).wait() == 0
    folder = next(place.glob("cache/features-*"))
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".bin", ".json")}


@pytest.mark.parametrize("kills", [1, pytest.param(20, marks=pytest.mark.long)])
def test_a_killed_extraction_ends_in_the_same_bytes(tree, tmp_path, kills):
    rng = np.random.RandomState(kills)
    undisturbed = extract_with_kills(tree, tmp_path / "undisturbed", 0, rng)
    assert len(undisturbed) == 38 + 1
    assert extract_with_kills(tree, tmp_path / "killed", kills, rng) == undisturbed


def fit(tree, place, mode, *overrides):
    """Head weights and validation predictions after training in one of the modes."""
    settings = options(tree, f"train.features={mode}", *overrides)
    table = splits.split(audit.with_pixels(data.read_table(settings.data), settings.data), settings.data)
    rows = splits.training_rows(table, settings.data)
    network = model.build(settings)
    (head,) = phases.prepare(network, phases.Rows(rows, table[table.set == "valid"]), settings)
    model.compile_model(head.trained, settings.train, head.rate)
    phases.fit(head, [], verbose=0)
    # BatchNorm is folded in both modes.
    assert norms(head.trained) == 0 < norms(network)
    return network.get_layer("head").get_weights(), head.trained.predict(head.batches.valid, verbose=0)


def test_cached_and_end_to_end_train_the_same_head(tree, place):
    overrides = ["model.base=resnet50", "train.epochs=3", "train.maximal_lr=1e-3"]
    (kernel, bias), predicted = fit(tree, place, "cached", *overrides)
    (same, same_bias), expected = fit(tree, place, "end_to_end", *overrides)
    assert np.linalg.norm(kernel - same) <= 1e-5 * np.linalg.norm(same)
    np.testing.assert_allclose(bias, same_bias, atol=1e-5)
    np.testing.assert_allclose(predicted, expected, atol=1e-5)


def test_bfloat16_features_are_close(tree, rows, network):
    exact = values(extraction.pooled(network, rows.head(40), options(tree)))
    folder = store_folder()
    assert alone(tree, Path.cwd(), 40, "bfloat16").wait() == 0
    (other,) = (path for path in Path("cache").glob("features-*") if path != folder)
    reduced = store.Store(other, (512,), np.float32)
    assert reduced.missing([f"{pixels}-0" for pixels in rows.head(40).pixels]) == []
    close = reduced.read([f"{pixels}-0" for pixels in rows.head(40).pixels])
    assert np.linalg.norm(close - exact) <= 0.01 * np.linalg.norm(exact)
    cosine = (close * exact).sum(axis=1) / np.linalg.norm(close, axis=1) / np.linalg.norm(exact, axis=1)
    assert cosine.min() > 0.9999


def test_the_index_holds_what_the_chunk_is(tree, rows, network):
    extraction.pooled(network, rows.head(3), options(tree))
    index = json.loads((store_folder() / "000000.json").read_text())
    assert index["names"] == [f"{pixels}-0" for pixels in rows.head(3).sort_values("path").pixels]
