"""OpenVINO, which passes images through a frozen base faster than TensorFlow on some processors; it is optional."""

from __future__ import annotations

from collections.abc import Callable
from importlib import util

import numpy as np

from safety.errors import InputError

HINTS = {"float32": "f32", "bfloat16": "bf16"}


def is_installed() -> bool:
    """Whether `import openvino` would find it; nothing is imported."""
    return util.find_spec("openvino") is not None


def check(engine: str) -> None:
    """Refuses `train.engine: openvino`, given or recorded in a checkpoint, where OpenVINO is not installed.

    Raises:
        InputError: it is not.
    """
    if engine == "openvino" and not is_installed():
        raise InputError(
            "train.engine: openvino needs the package OpenVINO, which is not installed; install it with: "
            "pip install openvino"
        )


def compile_function(function: Callable, precision: str) -> Callable[[np.ndarray], np.ndarray]:
    """Compiles a function of TensorFlow for the processor.

    The weights are copied, so that those of TensorFlow may be deleted.

    Args:
        function: a `tf.function` of one float32 tensor, with its signature, which computes in float32.
        precision: float32, or bfloat16 for the same weights and sums in float32.

    Returns:
        The same function of an array, which is read and not copied; its result is the caller's own.
    """
    # `openvino.convert_model` does the same, and reports over the network that it was used.
    import openvino
    from openvino.frontend import FrontEndManager
    from openvino.frontend.tensorflow.graph_iterator import GraphIteratorTFGraph

    frontend = FrontEndManager().load_by_framework("tf")
    # In a name of its own, since OpenVINO keeps no reference to it; not sharing, since the weights may go before it.
    graph = GraphIteratorTFGraph(function.get_concrete_function().graph, share_weights=False)
    network = frontend.convert(frontend.load(graph))
    compiled = openvino.Core().compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": HINTS[precision]})
    return lambda images: compiled(images, share_inputs=True)[0]
