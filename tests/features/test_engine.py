"""The engines give the same features, and a run with OpenVINO is one like any other."""

import shutil
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from killed_runs import what_is_left
from tiny_tree import tiny_settings

import config
import data
import evaluate
import model
import predict
import train
from devices import openvino_cpu
from features import engine, extraction
from images import audit, splits
from safety.errors import InputError
from training import changed_settings, fine_tuning

OPENVINO = "train.engine=openvino"
SMALL = ["data.test_per_class=25", "train.epochs=2"]


def options(tree, *overrides):
    return config.load_settings(None, tiny_settings(tree, *overrides))


@pytest.fixture(scope="module")
def rows(tree):
    settings = options(tree).data
    return splits.select(audit.with_pixels(data.read_table(settings), settings), settings).head(40)


@pytest.fixture(scope="module")
def network(tree):
    """A network with BatchNorm, which no test may change, built once."""
    keras.mixed_precision.set_global_policy("float32")
    return model.build(options(tree, "model.base=mobilenet_v2"))


def away(found, expected):
    return np.abs(found - expected).max() / np.abs(expected).max()


def both(tree, extract, *overrides):
    """The features by TensorFlow and by OpenVINO, and the folders that they are kept in."""
    found = []
    for each in ("tensorflow", "openvino"):
        features = extract(options(tree, *overrides, f"train.engine={each}"))
        found.append(np.asarray(features.array[features.places]))
    return *found, list(Path("cache").glob("features-*"))


def test_pooled_features_agree_and_are_kept_apart(tree, rows, network, monkeypatch):
    asked, compile_function = [], openvino_cpu.compile_function
    monkeypatch.setattr(
        openvino_cpu, "compile_function", lambda *args: asked.append(args[1]) or compile_function(*args)
    )
    plain, other, folders = both(tree, lambda settings: extraction.pooled(network, rows, settings))
    # 40 images are a full batch and one that is filled up.
    assert plain.shape[:2] == (40, 1) and away(other, plain) < 1e-3 and len(folders) == 2 and asked == ["float32"]


@pytest.mark.parametrize("overrides, more", [
    (["augment.rotation=30", "augment.flip=true", "augment.views=2"], {"augmented": True}), ([], {"turned": 8}),
])  # fmt: skip
def test_views_agree(tree, rows, network, overrides, more):
    plain, other, _ = both(
        tree, lambda settings: extraction.pooled(network, rows.head(5), settings, **more), *overrides
    )
    assert plain.shape[1] > 1 and away(other, plain) < 1e-3
    assert away(plain[:, 0], plain[:, 1]) > 1e-3


def test_feature_maps_below_the_cut_agree(tree, rows):
    part = fine_tuning.below(model.build(options(tree, "model.base=resnet50")), "conv4_block1")
    plain, other, _ = both(tree, lambda settings: extraction.extract(part, rows.head(5), settings))
    assert plain.ndim == 5 and away(other, plain) < 1e-3


def test_a_network_in_bfloat16_is_run_on_its_float32_weights(tree, rows, network, float32):
    exact = extraction.pooled(network, rows, options(tree, OPENVINO))
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    reduced = model.build(options(tree, "model.base=mobilenet_v2"))
    reduced.set_weights(network.get_weights())
    asked = []
    with pytest.MonkeyPatch.context() as patch:
        compile_function = openvino_cpu.compile_function
        # In float32 all that is left of the network's bfloat16 would be rounded weights and steps.
        patch.setattr(
            openvino_cpu,
            "compile_function",
            lambda function, name: asked.append(name) or compile_function(function, "float32"),
        )
        features = extraction.pooled(reduced, rows, options(tree, OPENVINO))
    assert asked == ["bfloat16"] and len(list(Path("cache").glob("features-*"))) == 2
    assert away(values(features), values(exact)) < 1e-6


def values(features):
    return np.asarray(features.array[features.places[:, 0]])


def test_the_weights_may_go_before_the_compiled_part():
    """OpenVINO has copies: what TensorFlow frees may be overwritten."""
    weights, numbers = tf.Variable(tf.ones((64, 64))), np.ones((1, 64), np.float32)
    product = tf.function(lambda x: x @ weights, input_signature=[tf.TensorSpec((1, 64), tf.float32)])
    run = openvino_cpu.compile_function(product, "float32")
    weights.assign(tf.zeros((64, 64)))
    assert (run(numbers) == 64).all() and (product(numbers).numpy() == 0).all()


def test_other_weights_are_compiled_anew(tree, rows):
    network = model.build(options(tree, "model.base=mobilenet_v2"))
    first = values(extraction.pooled(network, rows, options(tree, OPENVINO)))
    network.set_weights([array * 1.01 for array in network.get_weights()])
    assert away(values(extraction.pooled(network, rows, options(tree, OPENVINO))), first) > 1e-3


def test_a_run_is_trained_evaluated_and_predicts_by_openvino(tree, tmp_path, monkeypatch, capsys, without_figures):
    engines = []
    compiled = engine.compiled
    monkeypatch.setattr(engine, "compiled", lambda part, name, **more: engines.append(name) or compiled(part, name, **more))
    for name in ("tensorflow", "openvino"):
        train.main(tiny_settings(tree, *SMALL, f"train.engine={name}", f"train.run={name}"))
        evaluate.main([f"runs/{name}"])
    assert "OpenVINO" in capsys.readouterr().out and "engine: openvino" in Path("runs/openvino/config.yaml").read_text()
    one, other = (pd.read_csv(f"runs/{name}/evaluation/predictions.csv") for name in ("tensorflow", "openvino"))
    np.testing.assert_allclose(one.probability, other.probability, atol=1e-3)
    engines.clear()
    path = audit.image_folder(tree) / other.merge(data.describe(other.filename), on="filename").path[0]
    assert predict.main(["runs/openvino", str(path)]) == 0 and engines == ["openvino"]
    said = capsys.readouterr().out.splitlines()[1].split(",")
    assert float(said[1]) == pytest.approx(other.probability[0], abs=1e-5)
    # Without the package the run's checkpoint is refused before anything is read.
    monkeypatch.setattr(openvino_cpu.util, "find_spec", lambda name: None)
    for command, arguments in ((predict.main, ["runs/openvino", str(path)]), (evaluate.main, ["runs/openvino"])):
        with pytest.raises(InputError, match="^train.engine: openvino needs .* pip install openvino$"):
            command(arguments)
    with pytest.raises(InputError, match="pip install openvino"):
        train.main(tiny_settings(tree, *SMALL, OPENVINO, "train.run=third"))


def test_a_resumed_run_ends_in_the_same_bytes(tree):
    settings = tiny_settings(tree, *SMALL, OPENVINO)
    train.main([*settings, "train.run=whole"])
    train.main([*settings, "train.epochs=1", "train.run=half"])
    shutil.rmtree("cache")
    train.main(["--resume", "runs/half", "train.epochs=2"])
    assert what_is_left(Path("runs/half")) == what_is_left(Path("runs/whole"))


def test_the_engine_is_recorded_and_an_earlier_run_had_tensorflow(tree, tmp_path):
    known = options(tree, OPENVINO).to_yaml()
    (tmp_path / "config.yaml").write_text(known)
    for given, expected in (("auto", "openvino"), ("tensorflow", "tensorflow")):
        settings = options(tree, f"train.engine={given}")
        assert changed_settings.with_known_values(tmp_path, settings).train.engine == expected
    (tmp_path / "config.yaml").write_text(known.replace("  engine: openvino\n", ""))
    assert config.load_settings(tmp_path / "config.yaml", of_run=True).train.engine == "tensorflow"
