import json
import zipfile

import config
from config import InputError

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import tiny_settings

import model


@pytest.fixture(autouse=True)
def float32():
    keras.mixed_precision.set_global_policy("float32")
    yield
    keras.mixed_precision.set_global_policy("float32")


@pytest.fixture(scope="module")
def pixels():
    return np.random.RandomState(0).randint(0, 256, (6, 32, 32, 3)).astype(np.float32)


def statistics(features):
    return features.mean(axis=0), features.var(axis=0)


@pytest.fixture
def network(settings):
    return model.build(settings)


@pytest.fixture(scope="module")
def saved(tree, pixels, tmp_path_factory):
    """A checkpoint, and what its model predicted before it was saved."""
    settings = config.load_settings(None, tiny_settings(tree))
    network = model.build(settings)
    model.standardize(network, *statistics(model.pooled(network).predict(pixels, verbose=0)))
    model.compile_model(network, settings.train, 32)
    network.fit(pixels, np.array([[0], [1], [0], [1], [0], [1]]), verbose=0)
    path = tmp_path_factory.mktemp("run") / "best_model.keras"
    model.save(network, path, {"settings": settings.model_dump(), "split_sha256": "abc"})
    return path, network.predict(pixels, verbose=0)


def test_the_head_has_2049_weights_and_nothing_else_is_trained(tree):
    network = model.build(config.load_settings(None, tiny_settings(tree, "model.standardize=false")))
    # 2048 pooled features and a bias.
    assert sum(int(tf.size(weight)) for weight in network.trainable_weights) == 2048 + 1
    assert network.count_params() == 23_587_712 + 2049


def test_training_moves_the_head_and_nothing_else(settings, network, pixels):
    before = [array.copy() for array in network.get_layer("resnet50").get_weights()]
    head = network.get_layer("head").get_weights()
    model.compile_model(network, settings.train, 64)
    network.fit(pixels, np.array([[0], [1], [0], [1], [0], [1]]), epochs=2, verbose=0)
    after = network.get_layer("resnet50").get_weights()
    assert len(before) == 318 and all((old == new).all() for old, new in zip(before, after))
    assert not (head[0] == network.get_layer("head").get_weights()[0]).all()


def test_preprocessing_inside_the_model_is_that_of_keras_applications(network, pixels):
    reference = keras.applications.ResNet50(include_top=False, weights=None, pooling="avg", input_shape=(32, 32, 3))
    reference.set_weights(network.get_layer("resnet50").get_weights())
    expected = reference(keras.applications.resnet50.preprocess_input(pixels.copy()), training=False)
    np.testing.assert_allclose(model.pooled(network)(pixels), expected, rtol=1e-5, atol=1e-4)


def test_the_base_runs_in_inference_mode_even_in_training(network, pixels):
    np.testing.assert_array_equal(network(pixels, training=True), network(pixels, training=False))


@pytest.mark.parametrize("step, rate", [(0, 2e-4), (300, 7e-3), (600, 2e-4), (900, 2e-4 + 6.8e-3 / 2), (150, 3.6e-3)])
def test_the_cyclical_rate_at_foot_peak_and_next_foot(step, rate):
    train = config.load_settings(None, ["train.batch_size=64"]).train
    schedule = model.cyclical_rate(train, 6400 + 63)  # 3 epochs of 6463 // 64 = 100 steps
    assert float(schedule(step)) == pytest.approx(rate, rel=1e-5)


def test_the_cyclical_rate_against_its_formula():
    train = config.load_settings(None, ["train.batch_size=10", "train.step_size_epochs=2"]).train
    schedule = model.cyclical_rate(train, 105)
    for step in range(0, 200, 7):
        cycle = np.floor(1 + step / (2 * 20))
        x = abs(step / 20 - 2 * cycle + 1)
        expected = 2e-4 + (7e-3 - 2e-4) * max(0, 1 - x) / 2 ** (cycle - 1)
        assert float(schedule(step)) == pytest.approx(expected, rel=1e-4)


def test_fewer_rows_than_a_batch_still_have_a_rate():
    assert float(model.cyclical_rate(config.load_settings().train, 3)(1)) > 0


def test_standardised_features_have_mean_0_and_deviation_1(network, pixels):
    features = np.random.RandomState(1).gamma(2.0, 3.0, (500, 2048)).astype(np.float32)
    features[:, 7] = 0
    model.standardize(network, *statistics(features))
    out = network.get_layer("standardize")(features).numpy()
    assert np.abs(out.mean(axis=0)).max() < 1e-3
    assert np.abs(np.delete(out, 7, axis=1).std(axis=0) - 1).max() < 1e-3
    # A feature that was dead in training does not shout when it wakes up.
    features[0, 7] = 1
    assert network.get_layer("standardize")(features).numpy()[0, 7] < 50


def test_a_checkpoint_predicts_as_the_model_did(saved, pixels):
    path, expected = saved
    loaded, about = model.load(path)
    np.testing.assert_allclose(loaded.predict(pixels, verbose=0), expected, atol=1e-6)
    assert about["split_sha256"] == "abc" and about["settings"].data.image_size == 32


def test_keras_itself_opens_the_checkpoint(saved, pixels):
    path, expected = saved
    np.testing.assert_allclose(
        keras.models.load_model(path, compile=False).predict(pixels, verbose=0), expected, atol=1e-6
    )


def test_nothing_of_a_checkpoint_but_its_arrays_and_settings_is_used(saved, pixels, tmp_path):
    """A checkpoint whose layers would run code loads, and the code does not run."""
    path, expected = saved
    hostile = tmp_path / "best_model.keras"
    evil = {
        "module": "os",
        "class_name": "system",
        "config": {"command": f"touch {tmp_path}/ran"},
        "registered_name": None,
    }
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(hostile, "w") as new:
        for name in old.namelist():
            new.writestr(name, json.dumps(evil) if name == "config.json" else old.read(name))
    loaded, _ = model.load(hostile)
    np.testing.assert_allclose(loaded.predict(pixels, verbose=0), expected, atol=1e-6)
    assert not (tmp_path / "ran").exists()


def rewrite(path, target, **members):
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            content = members.get(name.split(".")[0], old.read(name))
            if content is not None:
                new.writestr(name, content)


@pytest.mark.parametrize("spoil, words", [
    (lambda path, target: None, "no checkpoint"),
    (lambda path, target: target.write_bytes(b""), "damaged"),
    (lambda path, target: target.write_bytes(path.read_bytes()[:100_000]), "damaged"),
    (lambda path, target: target.write_text("not a model"), "damaged"),
    (lambda path, target: rewrite(path, target, breakhis=None), "damaged, or no checkpoint of this project"),
    (lambda path, target: rewrite(path, target, breakhis=b"{"), "damaged, or no checkpoint of this project"),
    (lambda path, target: rewrite(path, target, breakhis=b"[]"), "damaged, or no checkpoint of this project"),
    (lambda path, target: rewrite(path, target, breakhis=b'{"settings": {"data": 3}}'), "data"),
    (lambda path, target: rewrite(path, target, model=b"no HDF5"), "damaged, or no checkpoint of this project"),
    (lambda path, target: rewrite(path, target, model=None), "damaged, or no checkpoint of this project"),
    (lambda path, target: keras.Sequential([keras.layers.Dense(1, input_shape=(2,))]).save(target), "no checkpoint of"),
])  # fmt: skip
def test_a_checkpoint_that_is_missing_damaged_or_not_ours_is_refused(saved, tmp_path, spoil, words):
    target = tmp_path / "best_model.keras"
    spoil(saved[0], target)
    with pytest.raises(InputError, match=words):
        model.load(target)


def test_weights_of_another_shape_in_a_checkpoint_are_refused(saved, tmp_path):
    about = json.loads(zipfile.ZipFile(saved[0]).read("breakhis.json"))
    about["settings"]["model"]["standardize"] = False
    rewrite(saved[0], tmp_path / "best_model.keras", breakhis=json.dumps(about))
    with pytest.raises(InputError, match="its arrays are not those that were saved"):
        model.load(tmp_path / "best_model.keras")


def test_base_weights_come_from_a_file_that_keras_wrote(tree, tmp_path):
    keras.utils.set_random_seed(5)
    base = keras.applications.ResNet50(include_top=False, weights=None)
    base.save_weights(tmp_path / "mine.h5")
    settings = config.load_settings(None, tiny_settings(tree, f"model.weights={tmp_path}/mine.h5"))
    network = model.build(settings)
    for ours, theirs in zip(network.get_layer("resnet50").get_weights(), base.get_weights()):
        np.testing.assert_array_equal(ours, theirs)
    assert model.weights_hash(network.get_layer("resnet50")) == model.weights_hash(base)


def test_an_untrained_base_is_the_same_for_every_seed_and_the_head_is_not(tree):
    first, second = (
        model.build(config.load_settings(None, tiny_settings(tree, f"data.seed={seed}"))) for seed in (0, 1)
    )
    assert model.weights_hash(first.get_layer("resnet50")) == model.weights_hash(second.get_layer("resnet50"))
    assert not (first.get_layer("head").get_weights()[0] == second.get_layer("head").get_weights()[0]).all()


def with_top(path):
    keras.applications.ResNet50(weights=None).save_weights(path)


@pytest.mark.parametrize("write, words", [
    (None, "no file .*imagenet, random or the path"),
    (lambda path: path.write_text("no weights"), "does not hold the weights of ResNet50 without top"),
    (with_top, "does not hold the weights of ResNet50 without top"),
])  # fmt: skip
def test_wrong_weights_are_refused(tree, tmp_path, write, words):
    if write:
        write(tmp_path / "mine.h5")
    with pytest.raises(InputError, match=words):
        model.build(config.load_settings(None, tiny_settings(tree, f"model.weights={tmp_path}/mine.h5")))


def test_imagenet_weights_are_fetched_by_keras_and_loaded(tree, tmp_path, monkeypatch):
    keras.utils.set_random_seed(6)
    base = keras.applications.ResNet50(include_top=False, weights=None)
    base.save_weights(tmp_path / "fetched.h5")
    asked = []
    monkeypatch.setattr(
        keras.utils, "get_file", lambda *args, **kwargs: asked.append((args, kwargs)) or tmp_path / "fetched.h5"
    )
    network = model.build(config.load_settings(None, tiny_settings(tree, "model.weights=imagenet")))
    (name, url), options = asked[0]
    assert url.endswith(name) and options == {"cache_subdir": "models", "file_hash": "4d473c1dd8becc155b73f8504c6f6626"}
    np.testing.assert_array_equal(network.get_layer("resnet50").get_weights()[0], base.get_weights()[0])


def test_imagenet_weights_are_those_that_keras_applications_names():
    from keras.src.applications import resnet

    assert model.IMAGENET_URL == resnet.BASE_WEIGHTS_PATH and resnet.WEIGHTS_HASHES["resnet50"][1] == model.IMAGENET_MD5


def test_offline_the_three_ways_out_are_named(tree, monkeypatch):
    def offline(*args, **kwargs):
        raise Exception("URL fetch failure on https://...: None -- [Errno -2] Name or service not known")

    monkeypatch.setattr(keras.utils, "get_file", offline)
    with pytest.raises(
        InputError,
        match=r"Name or service not known\).*network; put resnet50_weights.*notop.h5 into ~/\.keras/models.*model\.weights=FILE\.h5 or model\.weights=random",
    ):
        model.build(config.load_settings(None, tiny_settings(tree, "model.weights=imagenet")))


@pytest.mark.parametrize("flags, ratio, precision", [
    ("fpu avx512f", 0.5, "float32"),
    ("fpu avx512_bf16", 0.5, "bfloat16"),
    ("amx_bf16", 0.5, "bfloat16"),
    ("amx_bf16 avx512_bf16", 1.9, "float32"),
])  # fmt: skip
def test_auto_precision_follows_the_cpu_and_what_it_measures(tmp_path, monkeypatch, flags, ratio, precision):
    (tmp_path / "cpuinfo").write_text(f"flags : {flags}\n")
    monkeypatch.setattr(model, "CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(model, "_seconds", {"bfloat16": ratio, "float32": 1.0}.get)
    assert model._fast_precision([]) == precision
    monkeypatch.setattr(model, "CPU_INFO", tmp_path / "none")
    assert model._fast_precision([]) == "float32"


def test_auto_is_resolved_and_a_named_precision_is_left(monkeypatch):
    monkeypatch.setattr(model, "_fast_precision", lambda gpus: "bfloat16")
    assert model.with_precision(config.load_settings()).train.precision == "bfloat16"
    assert model.with_precision(config.load_settings(None, ["train.precision=float16"])).train.precision == "float16"


def test_both_precisions_can_be_timed():
    assert model._seconds("bfloat16") > 0 < model._seconds("float32")


@pytest.mark.parametrize("capability, precision", [((7, 0), "float16"), ((6, 1), "float32")])
def test_auto_precision_follows_the_gpu(monkeypatch, capability, precision):
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda gpu: {"compute_capability": capability})
    assert model._fast_precision(["gpu"]) == precision


def test_reduced_precision_keeps_features_and_output_in_float32(tree, pixels):
    exact = model.pooled(model.build(config.load_settings(None, tiny_settings(tree))))(pixels).numpy()
    assert model.use_device("bfloat16").endswith("bfloat16")
    network = model.build(config.load_settings(None, tiny_settings(tree)))
    features = model.pooled(network)(pixels)
    assert features.dtype == network(pixels).dtype == tf.float32
    assert np.abs(features - exact).max() < 0.02 * np.abs(exact).max()


def test_the_best_epoch_is_kept_by_validation_loss(tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(model, "save", lambda network, path, about: kept.append(about))
    keeper = model.KeepBest(None, tmp_path / "best_model.keras", {"split_sha256": "abc"})
    for epoch, loss in enumerate([0.9, 0.5, 0.6, float("nan"), 0.4]):
        keeper.on_epoch_end(epoch, {"val_loss": loss})
    assert [(about["epoch"], about["val_loss"]) for about in kept] == [(0, 0.9), (1, 0.5), (4, 0.4)]
    assert kept[0]["split_sha256"] == "abc"
