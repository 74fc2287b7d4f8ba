"""The devices that TensorFlow sees, and the precisions that they have."""

from __future__ import annotations

import os
from pathlib import Path

import keras
import tensorflow as tf

from devices import openvino_cpu
from safety.errors import InputError

CPU_INFO = Path("/proc/cpuinfo")
BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16"}
# Under these limits oneDNN refuses convolutions in bfloat16, and TensorFlow does not know.
LIMIT = "ONEDNN_MAX_CPU_ISA"
WITHOUT_BFLOAT16 = {"SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX512_CORE", "AVX512_CORE_VNNI"}
# The compute capability from which on GPUs have them, and are fast in float16.
TENSOR_CORES = (7, 0)


def use_device(precision: str, deterministic: bool = False, engine: str = "tensorflow") -> str:
    """Sets the precision of all layers that are built from here on, and lets the GPUs take memory as they need it.

    Args:
        precision: float32, bfloat16 or float16.
        deterministic: whether TensorFlow takes only operations that give the same numbers each time.
        engine: that runs the frozen base, tensorflow or openvino.

    Returns:
        The device and the precision in words, for example "CPU, 2 cores, float32", and the engine if it is OpenVINO.

    Raises:
        InputError: bfloat16 is asked for under a limit on oneDNN's instructions that rules it out, or of OpenVINO on a
            processor without it; or OpenVINO is asked for and not installed.
    """
    openvino_cpu.check(engine)
    gpus = grow_memory()
    if precision == "bfloat16" and not gpus and bfloat16_is_ruled_out():
        raise InputError(
            f"train.precision: must be auto or float32 while {LIMIT} is {os.environ[LIMIT]}, under which oneDNN has no "
            "bfloat16, got 'bfloat16'"
        )
    if engine == "openvino" and precision == "bfloat16" and not has_bfloat16():
        # OpenVINO would compute in float32 without a word.
        raise InputError("train.precision: must be auto or float32 with OpenVINO on this processor, got 'bfloat16'")
    if deterministic:
        tf.config.experimental.enable_op_determinism()
    keras.mixed_precision.set_global_policy(precision if precision == "float32" else f"mixed_{precision}")
    names = [tf.config.experimental.get_device_details(gpu).get("device_name", "GPU") for gpu in gpus]
    device = ", ".join(names) or f"CPU, {os.cpu_count()} cores"
    return f"{device}, {precision}" + (", OpenVINO" if engine == "openvino" else "")


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


def of_gpu(gpu: tf.config.PhysicalDevice) -> str:
    """The precision that a GPU is fast in: float16 with tensor cores, else float32."""
    capability = tf.config.experimental.get_device_details(gpu).get("compute_capability", (0, 0))
    return "float16" if capability >= TENSOR_CORES else "float32"


def has_bfloat16() -> bool:
    """Whether this machine's processor computes in bfloat16, and the user does not rule that out."""
    return bool(BFLOAT16_FLAGS & flags()) and not bfloat16_is_ruled_out()


def flags() -> set[str]:
    """What the processor can do, in the words of Linux; empty elsewhere."""
    return set(CPU_INFO.read_text().split()) if CPU_INFO.is_file() else set()
