"""The devices that TensorFlow sees, and the precision that they are fast in."""

from __future__ import annotations

import os
import statistics
import timeit
from pathlib import Path

import keras
import tensorflow as tf

import config
from safety.errors import InputError

CPU_INFO = Path("/proc/cpuinfo")
# Under these limits oneDNN refuses convolutions in bfloat16, and TensorFlow does not know.
LIMIT = "ONEDNN_MAX_CPU_ISA"
WITHOUT_BFLOAT16 = {"SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX512_CORE", "AVX512_CORE_VNNI"}
# The compute capability from which on GPUs have them, and are fast in float16.
TENSOR_CORES = (7, 0)


def with_precision(settings: config.Settings) -> config.Settings:
    """The settings with `train.precision: auto` replaced by the precision that this machine is fast in.

    That is float16 on GPUs with tensor cores, bfloat16 on CPUs that have it in hardware and are measured to multiply
    it faster than float32, and else float32.
    """
    if settings.train.precision != "auto":
        return settings
    precision = fast_precision(tf.config.list_physical_devices("GPU"))
    return settings.model_copy(update={"train": settings.train.model_copy(update={"precision": precision})})


def use_device(precision: str, deterministic: bool = False) -> str:
    """Sets the precision of all layers that are built from here on, and lets the GPUs take memory as they need it.

    Args:
        precision: float32, bfloat16 or float16.
        deterministic: whether TensorFlow takes only operations that give the same numbers each time.

    Returns:
        The device and the precision in words, for example "CPU, 2 cores, float32".

    Raises:
        InputError: bfloat16 is asked for under a limit on oneDNN's instructions that rules it out.
    """
    gpus = grow_memory()
    if precision == "bfloat16" and not gpus and bfloat16_is_ruled_out():
        raise InputError(
            f"train.precision: must be auto or float32 while {LIMIT} is {os.environ[LIMIT]}, under which oneDNN has no "
            "bfloat16, got 'bfloat16'"
        )
    if deterministic:
        tf.config.experimental.enable_op_determinism()
    keras.mixed_precision.set_global_policy(precision if precision == "float32" else f"mixed_{precision}")
    names = [tf.config.experimental.get_device_details(gpu).get("device_name", "GPU") for gpu in gpus]
    return f"{', '.join(names) or f'CPU, {os.cpu_count()} cores'}, {precision}"


def grow_memory() -> list:
    """Lets the GPUs take memory as they need it; works only before TensorFlow's first operation. Returns the GPUs."""
    gpus = tf.config.list_physical_devices("GPU")
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, True)
    return gpus


def bfloat16_is_ruled_out() -> bool:
    """Whether the user limits oneDNN to instructions without bfloat16, under which TensorFlow's kernels crash."""
    return os.environ.get(LIMIT) in WITHOUT_BFLOAT16


def use_xla() -> bool:
    """Whether XLA compiles the base for inference: on a GPU; on a CPU TensorFlow's own kernels are faster."""
    return bool(tf.config.list_logical_devices("GPU"))


def fast_precision(gpus: list) -> str:
    """The precision that the first GPU is fast in, or without one this machine's processor."""
    if gpus:
        capability = tf.config.experimental.get_device_details(gpus[0]).get("compute_capability", (0, 0))
        return "float16" if capability >= TENSOR_CORES else "float32"
    flags = CPU_INFO.read_text().split() if CPU_INFO.is_file() else []
    has_bfloat16 = {"avx512_bf16", "amx_bf16"} & set(flags) and not bfloat16_is_ruled_out()
    # Some processors have the bfloat16 instruction and still multiply it more slowly than float32.
    return "bfloat16" if has_bfloat16 and _seconds("bfloat16") < 0.8 * _seconds("float32") else "float32"


def _seconds(precision: str) -> float:
    """Seconds that a product of two matrices takes, the median of five."""
    matrix = tf.cast(tf.random.stateless_uniform((1024, 1024), (0, 0)), precision)
    product = tf.function(lambda: tf.reduce_max(matrix @ matrix))
    product()
    return statistics.median(timeit.repeat(lambda: product().numpy(), number=1, repeat=5))
