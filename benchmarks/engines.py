"""What passes images through the frozen base: this project, plain Keras, other engines, and the machine's own limit."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from importlib import util
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

import config
import model
from benchmarks.timing import quietly
from devices import openvino_cpu
from features import engine, extraction, inference_form
from features.engine import BATCH
from images import decoding, image_datasets


def extract_again(
    network: keras.Model, rows: pd.DataFrame, settings: config.Settings, augmented: bool
) -> Callable[[], int]:
    """Extraction of images that are decoded already; the function returns the number of passes through the base."""

    def run() -> int:
        for folder in Path("cache").glob("features-*"):
            shutil.rmtree(folder)
        return quietly(extraction.pooled, network, rows, settings, augmented).places.size

    return run


def fit(network: keras.Model, rows: pd.DataFrame, settings: config.Settings) -> Callable[[], int]:
    """Keras' fit through the whole network, each image read from its PNG."""
    model.compile_model(network, settings.train, model.cyclical_rate(settings.train, len(rows)))
    once = settings.model_copy(update={"train": settings.train.model_copy(update={"epochs": 1})})
    batches = image_datasets.train_dataset(rows, Path("."), once)
    return lambda: network.fit(batches, verbose=0) and len(rows)


def in_memory(rows: pd.DataFrame, size: int) -> list[np.ndarray]:
    """The decoded images of the rows in full batches, float32; engines that take one size of batch need no more."""
    images = decoding.decode([Path(path) for path in rows.path], size).astype(np.float32)
    return [
        images[start : start + BATCH]
        for start in range(0, len(images) + 1 - BATCH, BATCH)
    ]


def predict(network: keras.Model, batches: list[np.ndarray]) -> Callable[[], int]:
    """Keras' predict on images in memory, in the precision of the network."""
    part, images = model.pooled(network), np.concatenate(batches)
    return lambda: len(part.predict(images, batch_size=BATCH, verbose=0))


def frozen_graph(network: keras.Model, batches: list[np.ndarray]) -> Callable[[], int]:
    """TensorFlow's graph with all weights as constants, which it optimises further; it takes more memory."""
    part = inference_form.fold(model.pooled(network))
    function = convert_variables_to_constants_v2(model.feature_function(part, BATCH).get_concrete_function())
    return lambda: sum(len(function(tf.constant(batch))[0].numpy()) for batch in batches)


def openvino(network: keras.Model, batches: list[np.ndarray]) -> Callable[[], int] | None:
    """OpenVINO alone, in the precision of the network; None where it is not installed or does not compute in it."""
    part = model.pooled(network)
    if not openvino_cpu.is_installed() or engine.precision(part) not in openvino_cpu.HINTS:
        return None
    run = engine.compiled(part, "openvino")
    return lambda: sum(len(run([batch])[0]) for batch in batches)


def onnx_runtime(network: keras.Model, batches: list[np.ndarray]) -> Callable[[], int] | None:
    """ONNX Runtime on the same weights in float32; None where it or tf2onnx is not installed."""
    if not (util.find_spec("onnxruntime") and util.find_spec("tf2onnx")):
        return None
    import onnxruntime
    import tf2onnx

    function = model.feature_function(model.pooled(network), BATCH)
    graph, _ = tf2onnx.convert.from_function(function, function.input_signature)
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    (name,) = (one.name for one in session.get_inputs())
    return lambda: sum(len(session.run(None, {name: batch})[0]) for batch in batches)


def matmul(precision: str, size: int = 4096) -> Callable[[], float]:
    """The machine's peak: a product of two large matrices; the function returns its GFLOP."""
    left = tf.cast(tf.random.uniform((size, size)), precision)
    product = tf.function(lambda: tf.reduce_sum(tf.cast(left @ left, tf.float32)))
    return lambda: product().numpy() and 2 * size**3 / 1e9
