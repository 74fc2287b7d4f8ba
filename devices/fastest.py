"""Which engine and precision are the fastest on this machine: measured once, and kept in cache/engine.json."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import statistics
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import tensorflow as tf
from filelock import FileLock
from pydantic import Field, TypeAdapter

import config
from devices import openvino_cpu, precision
from safety import atomic_files, limits

PATH = Path("cache/engine.json")
TITLES = {"tensorflow": "TensorFlow", "openvino": "OpenVINO"}
# How many times as fast as the other one each must be to be chosen.
OPENVINO_AHEAD, BFLOAT16_AHEAD = 1.2, 1.25
ROUNDS = 5
# Of the images that are timed: (images, height, width, channels).
SHAPE = (8, 224, 224, 3)
# Machine -> name of a pair -> seconds.
KNOWN = TypeAdapter(dict[str, dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]]])


class Pair(NamedTuple):
    """What can be chosen."""

    engine: str
    precision: str

    def __str__(self) -> str:
        return f"{TITLES[self.engine]} in {self.precision}"


def with_fastest(settings: config.Settings) -> config.Settings:
    """The settings with `train.engine: auto` and `train.precision: auto` replaced by what this machine is fast in.

    On a GPU that is TensorFlow, in float16 where it has tensor cores. On a processor TensorFlow and OpenVINO, if it is
    installed and features are computed, are timed in float32 and, where the processor has it, in bfloat16. What the
    settings name is left.
    """
    if "auto" not in (settings.train.engine, settings.train.precision):
        return settings
    pairs = _allowed(settings)
    chosen = pairs[0] if len(pairs) == 1 else _measured(pairs)
    return settings.model_copy(update={"train": settings.train.model_copy(update=chosen._asdict())})


def _allowed(settings: config.Settings) -> list[Pair]:
    """The pairs to choose from; several only on a processor."""
    train, gpus = settings.train, tf.config.list_physical_devices("GPU")
    engines = [train.engine]
    if train.engine == "auto":
        engines = ["tensorflow", *(["openvino"] if not gpus and _openvino_is_allowed(settings) else [])]
    precisions = [train.precision]
    if train.precision == "auto" and gpus and engines == ["tensorflow"]:
        precisions = [precision.of_gpu(gpus[0])]
    elif train.precision == "auto":
        precisions = ["float32", *(["bfloat16"] if precision.has_bfloat16() else [])]
    return [Pair(engine, name) for engine in engines for name in precisions]


def _openvino_is_allowed(settings: config.Settings) -> bool:
    """Whether OpenVINO is there, has features to compute, and can do it in the way that the settings ask for."""
    train = settings.train
    several = train.strategy == "mirrored" or ("TF_CONFIG" in os.environ and train.strategy == "auto")
    in_precision = train.precision in ("auto", "float32") or (
        train.precision == "bfloat16" and precision.has_bfloat16()
    )
    computes = settings.cached and not settings.model.imported
    return computes and not several and in_precision and openvino_cpu.is_installed()


def _measured(pairs: list[Pair]) -> Pair:
    """The fastest of several pairs, by the seconds on file or by timing them; says so in a line."""
    # One process measures and the others wait, so that runs that start together choose the same.
    writable = atomic_files.can_write(PATH.parent)
    if writable:
        PATH.parent.mkdir(exist_ok=True)
    with FileLock(PATH.with_suffix(".lock")) if writable else contextlib.nullcontext():
        machine, known = _machine(), _read()
        seconds = known.get(machine, {})
        if not {str(pair) for pair in pairs} <= seconds.keys():
            seconds = {**seconds, **_seconds(pairs)}
            if writable:
                atomic_files.write_text(PATH, json.dumps({**known, machine: seconds}, indent=1))
    of_pairs = {pair: seconds[str(pair)] for pair in pairs}
    chosen = fastest(of_pairs)
    others = [pair for pair in pairs if pair.engine != chosen.engine] or pairs
    other = min((pair for pair in others if pair != chosen), key=of_pairs.get)
    ratio = of_pairs[other] / of_pairs[chosen]
    where = f" ({PATH})" if PATH.is_file() else ""
    print(f"engine: {chosen}, {ratio:.1f} times as fast as {other} on {_processor()}{where}", flush=True)
    return chosen


def fastest(seconds: dict[Pair, float]) -> Pair:
    """The pair to use: bfloat16 and OpenVINO only where they are clearly ahead.

    >>> fastest({Pair("tensorflow", "float32"): 1.1, Pair("openvino", "float32"): 1.0}).engine
    'tensorflow'

    Args:
        seconds: that each pair takes for the same images.
    """
    best: dict[str, Pair] = {}
    for pair in sorted(seconds, key=lambda pair: pair.precision, reverse=True):
        plain = best.get(pair.engine)
        if plain is None or seconds[plain] > BFLOAT16_AHEAD * seconds[pair]:
            best[pair.engine] = pair
    plain, other = best.get("tensorflow"), best.get("openvino")
    if plain is None or (other and seconds[plain] > OPENVINO_AHEAD * seconds[other]):
        return other
    return plain


def _machine() -> str:
    """All that the seconds depend on."""
    has = ", ".join(sorted(flag for flag in precision.flags() if flag.startswith(("avx", "amx"))))
    openvino = f"OpenVINO {metadata.version('openvino')}" if openvino_cpu.is_installed() else "no OpenVINO"
    limit = f"{precision.LIMIT} {os.environ.get(precision.LIMIT, 'none')}"
    return "; ".join([_processor(), f"{os.cpu_count()} cores", has, limit, f"TensorFlow {tf.__version__}", openvino])


def _processor() -> str:
    """The name of the processor, in printable characters."""
    text = precision.CPU_INFO.read_text() if precision.CPU_INFO.is_file() else ""
    named = re.search(r"^model name\s*: (.+)$", text, re.M)
    return limits.printable(named[1].strip() if named else platform.processor() or platform.machine())


def _read() -> dict[str, dict[str, float]]:
    """The seconds on file of all machines; none where the file is missing or damaged, so that it is written anew."""
    try:
        return KNOWN.validate_json(limits.read_bytes(PATH, limits.YAML_BYTES))
    except ValueError:
        return {}


def _seconds(pairs: list[Pair]) -> dict[str, float]:
    """Seconds that each pair takes for a batch, the median of ROUNDS; all in turn, so that others' load meets all."""
    images = np.random.default_rng(0).uniform(0, 255, SHAPE).astype(np.float32)
    runs = {str(pair): _compiled(*pair) for pair in pairs}
    taken: dict[str, list[float]] = {name: [] for name in runs}
    # The first round is not counted.
    for _ in range(1 + ROUNDS):
        for name, run in runs.items():
            start = time.perf_counter()
            run(images)
            taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(each[1:]) for name, each in taken.items()}


def _compiled(engine: str, name: str) -> Callable[[np.ndarray], np.ndarray]:
    if engine == "openvino":
        return openvino_cpu.compile_function(_network("float32"), name)
    function = _network(name)
    return lambda images: function(images).numpy()


def _network(dtype: str) -> Callable[[tf.Tensor], tf.Tensor]:
    """ResNet50's stem and, of each of its four stages, one bottleneck block, with a convolution between two stages.

    He et al., "Deep Residual Learning for Image Recognition", 2016. It has a third of the base's work and all of its
    shapes of convolutions; the weights are constants in float32.
    """
    rng, weights = np.random.default_rng(0), []

    def convolve(x: tf.Tensor, kernel: np.ndarray, stride: int = 1) -> tf.Tensor:
        return tf.nn.conv2d(x, tf.cast(kernel, dtype), stride, "SAME")

    # No variables, since several workers would have to create them together, and not all of them measure.
    def kernel(size: int, inputs: int, outputs: int) -> np.ndarray:
        scale = np.sqrt(2 / (size * size * inputs))
        return rng.normal(0, scale, (size, size, inputs, outputs)).astype(np.float32)

    stem = kernel(7, 3, 64)
    for inputs, width in ((64, 64), (256, 128), (512, 256), (1024, 512)):
        block = kernel(1, 4 * width, width), kernel(3, width, width), kernel(1, width, 4 * width)
        weights.append((kernel(1, inputs, 4 * width), *block))

    def run(images: tf.Tensor) -> tf.Tensor:
        x = tf.nn.max_pool2d(tf.nn.relu(convolve(tf.cast(images, dtype), stem, 2)), 3, 2, "SAME")
        for number, (first, narrow, middle, wide) in enumerate(weights):
            x = tf.nn.relu(convolve(x, first, 2 if number else 1))
            inner = tf.nn.relu(convolve(tf.nn.relu(convolve(x, narrow)), middle))
            x = tf.nn.relu(x + convolve(inner, wide))
        return tf.cast(tf.reduce_mean(x, (1, 2)), tf.float32)

    return tf.function(run, input_signature=[tf.TensorSpec(SHAPE, tf.float32)])
