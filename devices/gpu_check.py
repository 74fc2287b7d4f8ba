"""What a run on a GPU meets and one on a CPU does not, checked on the GPUs at hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

from devices import keras_stack, precision
from safety.errors import InputError

SHAPE = (8, 32, 32, 3)


def check() -> Iterator[tuple[str, bool, str]]:
    """Checks the GPUs one point after the other; determinism is last, since it holds for the rest of the process.

    Yields:
        Name of the point, whether it held, and what was seen.

    Raises:
        InputError: TensorFlow finds no GPU.
    """
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        cuda = "with" if tf.test.is_built_with_cuda() else "without"
        raise InputError(
            f"--check-gpu: needed is a GPU, TensorFlow {tf.__version__} (built {cuda} CUDA) finds none; "
            "TF_CPP_MIN_LOG_LEVEL=0 shows why"
        )
    precision.grow_memory()
    grows = [tf.config.experimental.get_memory_growth(gpu) for gpu in gpus]
    yield "memory growth", all(grows), f"{sum(grows)} of {len(gpus)} GPUs take memory as they need it"
    for gpu in gpus:
        details = tf.config.experimental.get_device_details(gpu)
        capability, fast = details.get("compute_capability", (0, 0)), precision.of_gpu(gpu)
        expected = "float16" if capability >= precision.TENSOR_CORES else "float32"
        seen = f"{details.get('device_name', 'GPU')}, compute capability {capability[0]}.{capability[1]}: {fast}"
        yield "precision", fast == expected, seen
    yield _near("convolution on the GPU", _on("CPU:0"), _on("GPU:0"), 1e-3)
    yield _near("XLA", _on("GPU:0"), _on("GPU:0", jit_compile=precision.use_xla()), 1e-3)
    yield _near("float16", _on("GPU:0"), _on("GPU:0", dtype="float16"), 2e-2)
    yield _several(len(gpus))
    tf.config.experimental.enable_op_determinism()
    first, second = _gradient(), _gradient()
    yield "determinism", bool((first == second).all()), "a convolution's gradient, twice"


def _arrays() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=SHAPE).astype(np.float32), rng.normal(size=(3, 3, 3, 64)).astype(np.float32) / 5


def _convolve(images: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    return tf.reduce_mean(tf.nn.relu(tf.nn.conv2d(images, kernel, 1, "SAME")), axis=(1, 2))


def _on(device: str, dtype: str = "float32", jit_compile: bool = False) -> np.ndarray:
    """The pooled features (8, 64) of a convolution on a device."""
    with tf.device(device):
        images, kernel = (tf.cast(array, dtype) for array in _arrays())
        return tf.cast(tf.function(_convolve, jit_compile=jit_compile)(images, kernel), tf.float32).numpy()


def _near(name: str, expected: np.ndarray, found: np.ndarray, tolerance: float) -> tuple[str, bool, str]:
    away = float(np.abs(found - expected).max())
    return name, away <= tolerance, f"differs by {away:.1e}, allowed is {tolerance:g}"


def _several(count: int) -> tuple[str, bool, str]:
    if count == 1:
        return "several GPUs", True, "there is one"
    if keras_stack.KERAS_3:
        return "several GPUs", True, f"the first of {count} alone is used; several need the Addons stack"
    strategy = tf.distribute.MirroredStrategy()
    ones: Callable = tf.function(lambda: strategy.reduce("SUM", strategy.run(lambda: tf.constant(1.0)), axis=None))
    with strategy.scope():
        total = float(ones())
    return "several GPUs", total == count, f"a sum over {count} GPUs is {total:g}"


def _gradient() -> np.ndarray:
    images, kernel = map(tf.constant, _arrays())
    with tf.GradientTape() as tape:
        tape.watch(kernel)
        loss = tf.reduce_sum(_convolve(images, kernel) ** 2)
    return tape.gradient(loss, kernel).numpy()
