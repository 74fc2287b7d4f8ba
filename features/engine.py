"""The engines that run a frozen part of the network on full batches: TensorFlow, and OpenVINO."""

from __future__ import annotations

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

import model
from devices import openvino_cpu, strategy
from features import inference_form

# Images in a batch. The last batch is filled up, so that a graph of one shape is enough.
BATCH = 32


def compiled(
    part: keras.Model, engine: str, folded: bool = True
) -> Callable[[list[np.ndarray | tf.Tensor]], list[np.ndarray]]:
    """Compiles a part of the network for inference in its own precision, with its weights as they are now.

    Args:
        part: from the pixels on.
        engine: openvino, which runs on the processor; for any other TensorFlow, on all devices of this worker.
        folded: whether TensorFlow takes the form of `inference_form`, as all do whose base was frozen in training.

    Returns:
        A function of a list of batches (BATCH, size, size, 3), float32, at most one a device, that returns the list of
        their outputs. The outputs of the engines are equal to 1e-3 in float32.
    """
    if engine != "openvino":
        return strategy.replicate(model.feature_function(inference_form.fold(part) if folded else part, BATCH))
    # OpenVINO chooses by itself what it computes in bfloat16.
    function = model.feature_function(inference_form.fold(part, float32=True), BATCH)
    run = openvino_cpu.compile_function(function, precision(part))
    return lambda batches: [run(np.asarray(batch)) for batch in batches]


def precision(part: keras.Model) -> str:
    """What the base in a part of the network computes in: float32, bfloat16 or float16."""
    return model.base_of(part).layers[-1].compute_dtype
