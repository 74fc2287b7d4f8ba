"""Measures the speed of this project and of plain Keras on the same images and machine: python benchmark.py

    python benchmark.py --json speed.json      the table, and all figures as JSON
    python benchmark.py --check-gpu            checks, line by line, what a run on a GPU meets
    pip install openvino                       adds OpenVINO in bfloat16, as a limit from another framework

Every figure is a median over the rounds. Compare ratios: seconds depend on the machine and on its other users.
"""

from __future__ import annotations

import safety.startup

safety.startup.start_command(__name__)  # before all other imports, which take seconds

import contextlib
import io
import json
import os
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib import util
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from PIL import Image
from scipy import ndimage

import config
import data
import model
from devices import gpu_check, precision
from features import extraction
from images import decoding, image_datasets
from safety import atomic_files, command_line
from safety.errors import InputError
from training import phases

# The thesis' run: epochs over 2 x 21,528 upsampled rows and 7,789 validation rows of 7,909 images.
EPOCHS, ROWS, VALID_ROWS, IMAGES = 12, 43_056, 7_789, 7_909
# Its images that are in training rows, and those that are in validation rows.
TRAIN_IMAGES, VALID_IMAGES = 7_907, 5_279
VIEWS = 4
BASE_GFLOP = 7.7


def main(arguments: list[str]) -> int | None:
    """Measures, prints the table and, with --json, writes the figures."""
    parser = command_line.CommandLine(__doc__)
    parser.add_argument("--json", metavar="FILE", help="also write all figures to this file")
    parser.add_argument("--images", type=int, default=1000, help="images to measure on, 16 or more (default 1000)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds, 1 or more (default 3)")
    parser.add_argument("--rows", type=int, default=ROWS, help=f"rows to train the head on (default {ROWS})")
    parser.add_argument("--check-gpu", action="store_true", help="check what a run on a GPU meets, and measure nothing")
    config.add_settings(parser)
    args = parser.parse(arguments)
    if args.check_gpu:
        return check_gpu()
    if args.images < 16 or args.rounds < 1 or args.rows < 64:
        raise InputError(
            "benchmark.py: needed are --images of at least 16, --rounds of at least 1, --rows of at least 64"
        )
    overrides = ["data.root=.", "model.weights=random", "model.standardize=true", *args.overrides]
    settings = config.load_settings(args.config, overrides)
    target = str(Path(args.json).absolute()) if args.json else None
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        figures = measure(settings, args.images, args.rounds, args.rows)
        os.chdir("/")
    print(describe(figures))
    if target:
        atomic_files.write_out(target, json.dumps(figures, indent=1))


def check_gpu() -> int:
    """Prints a line for each point of `gpu_check.check`; 1 if one did not hold."""
    failed = 0
    for name, held, seen in gpu_check.check():
        print(f"{'held' if held else 'FAILED':7}{name}: {seen}", flush=True)
        failed += not held
    return 1 if failed else 0


def measure(settings: config.Settings, images: int, rounds: int, head_rows: int) -> dict:
    """All figures: medians in seconds or per second, and ratios.

    Args:
        settings: of the runs.
        images: to measure on.
        rounds: of which the medians are taken.
        head_rows: training rows of the head.
    """
    rows = write_images(images)
    settings = precision.with_precision(settings)
    machine = precision.use_device(settings.train.precision)
    fast = model.build(settings)
    growth = {count: measure_cold(fast, rows.head(count), settings) for count in (images // 4, images // 2, images)}
    head = [train_head(fast, settings, head_rows, momentum) for momentum in [0.0, *[0.5] * rounds]]
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

    sample = rows.head(max(16, images // 8))
    precision.use_device("float32")
    plain = model.build(settings)
    contestants = {
        "predict": predict_plain(plain, sample, settings),
        "fit": fit_plain(plain, sample, settings),
        "extract": extract_again(fast, sample, settings, augmented=False),
        "extract_views": extract_again(fast, sample, augmenting(settings), augmented=True),
        **openvino(plain, sample, settings),
        **{f"matmul_{name}": matmul(name) for name in ("float32", "bfloat16")},
    }
    medians = race(contestants, rounds)
    return summarise(medians, growth, head, {"device": machine, "images": images, "peak_memory_gib": peak_gib})


def write_images(count: int) -> pd.DataFrame:
    """Writes images of BreakHis' size, as smooth and as noisy as real ones, and returns their rows."""
    rng = np.random.default_rng(0)
    names = pd.Series([f"SOB_M_DC-14-{1 + number // 100}-40-{number:04}.png" for number in range(count)])
    rows = data.describe(names).assign(pixels=names)
    for path in rows.path:
        coarse = ndimage.zoom(rng.normal(180, 40, (12, 18, 3)), (39, 39, 1), order=1)[:460, :700]
        noisy = coarse + rng.normal(0, 8, coarse.shape)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, compress_level=1)
    return rows


def measure_cold(network: keras.Model, rows: pd.DataFrame, settings: config.Settings) -> float:
    """Seconds to decode the images and to compute and store their features, with an empty cache."""
    shutil.rmtree("cache", ignore_errors=True)
    return seconds(lambda: quietly(extraction.pooled, network, rows, settings))


def extract_again(network: keras.Model, rows: pd.DataFrame, settings: config.Settings, augmented: bool) -> Callable:
    """Extraction of images that are decoded already; the function returns the number of passes through the base."""

    def run() -> int:
        for folder in Path("cache").glob("features-*"):
            shutil.rmtree(folder)
        return quietly(extraction.pooled, network, rows, settings, augmented).places.size

    return run


def augmenting(settings: config.Settings) -> config.Settings:
    """The settings with the augmentation of thesis.yaml."""
    thesis = config.load_settings(Path(__file__).with_name("thesis.yaml")).augment
    return settings.model_copy(update={"augment": thesis.model_copy(update={"views": VIEWS})})


def predict_plain(network: keras.Model, rows: pd.DataFrame, settings: config.Settings) -> Callable:
    """Keras' predict in float32 on images in memory."""
    images = decoding.decode([Path(path) for path in rows.path], settings.data.image_size).astype(np.float32)
    part = model.pooled(network)
    return lambda: len(part.predict(images, batch_size=extraction.BATCH, verbose=0))


def fit_plain(network: keras.Model, rows: pd.DataFrame, settings: config.Settings) -> Callable:
    """Keras' fit through the whole network in float32, each image read from its PNG."""
    model.compile_model(network, settings.train, model.cyclical_rate(settings.train, len(rows)))
    once = settings.model_copy(update={"train": settings.train.model_copy(update={"epochs": 1})})
    batches = image_datasets.train_dataset(rows, Path("."), once)
    return lambda: network.fit(batches, verbose=0) and len(rows)


def train_head(network: keras.Model, settings: config.Settings, rows: int, momentum: float) -> float:
    """Seconds to train the head for the thesis' epochs on random features.

    Args:
        network: of which the head is trained.
        settings: of the run.
        rows: of training; those of validation are in the thesis' proportion.
        momentum: of the gradient descent.
    """
    rng, width = np.random.default_rng(0), network.get_layer("pooling").output.shape[-1]
    array = rng.normal(size=(IMAGES, width)).astype(np.float32)
    train = extraction.Features(array, rng.integers(0, IMAGES, (rows, 1)), np.arange(rows) % 2)
    valid = train.select(slice(rows * VALID_ROWS // ROWS))
    changed = settings.train.model_copy(update={"epochs": EPOCHS, "momentum": momentum})
    settings = settings.model_copy(update={"train": changed})

    def run() -> None:
        phase = phases.head_on_features(model.head(network), train, valid, settings)
        model.compile_model(phase.trained, settings.train, phase.rate)
        phases.fit(phase, [], verbose=0)

    return seconds(run)


def matmul(precision: str, size: int = 4096) -> Callable:
    """The machine's peak: a product of two large matrices; the function returns its GFLOP."""
    left = tf.cast(tf.random.uniform((size, size)), precision)
    product = tf.function(lambda: tf.reduce_sum(tf.cast(left @ left, tf.float32)))
    return lambda: product().numpy() and 2 * size**3 / 1e9


def openvino(network: keras.Model, rows: pd.DataFrame, settings: config.Settings) -> dict[str, Callable]:
    """OpenVINO on the same weights in bfloat16, where it is installed."""
    if not util.find_spec("openvino"):
        return {}
    import openvino as ov

    shape = [extraction.BATCH, *network.input_shape[1:]]
    part = model.pooled(network)
    graph = tf.function(lambda images: part(images, training=False)).get_concrete_function(
        tf.TensorSpec(shape, tf.float32)
    )
    compiled = ov.compile_model(
        ov.convert_model(graph, input=[shape]),
        "CPU",
        {"INFERENCE_PRECISION_HINT": "bf16", "PERFORMANCE_HINT": "THROUGHPUT"},
    )
    images = decoding.decode([Path(path) for path in rows.path], settings.data.image_size).astype(np.float32)
    batches = [images[start : start + extraction.BATCH] for start in range(0, len(images), extraction.BATCH)]
    full = [batch for batch in batches if len(batch) == extraction.BATCH]
    return {"openvino": lambda: sum(len(compiled(batch)[0]) for batch in full)} if full else {}


def race(contestants: dict[str, Callable], rounds: int) -> dict[str, float]:
    """Runs all contestants in turn, round after round.

    Args:
        contestants: name -> function that returns how many units of work it did.
        rounds: to run, after one that is not counted.

    Returns:
        Name -> units per second, the median over the rounds.
    """
    for run in contestants.values():
        run()
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, run in contestants.items():
            start = time.perf_counter()
            rates[name].append(run() / (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in rates.items()}


def summarise(medians: dict, growth: dict[int, float], head: list[float], others: dict) -> dict:
    """All figures, with the thesis' workload extrapolated from the measured rates.

    Args:
        medians: of `race`, per second.
        growth: number of images -> seconds with an empty cache.
        head: seconds of the head's trainings, the first without momentum as a warm-up.
        others: figures to add; `device` among them.
    """
    most = max(growth)
    cold_rate = most / growth[most]
    # The peak of a GPU's float16 is not measured; that of bfloat16 stands for it.
    precision = "float32" if others["device"].endswith("float32") else "bfloat16"
    warm = statistics.median(head[1:])
    plain = EPOCHS * (ROWS + VALID_ROWS) / medians["fit"]
    no_augment = IMAGES / cold_rate + warm
    decoding = IMAGES / cold_rate - IMAGES / medians["extract"]
    views_4 = (
        TRAIN_IMAGES * VIEWS / medians["extract_views"] + VALID_IMAGES / medians["extract"] + max(0, decoding) + warm
    )
    ratios = {
        "extract_vs_predict": medians["extract"] / medians["predict"],
        "workload_no_augment": plain / no_augment,
        "workload_views_4": plain / views_4,
        "predict_share_of_peak": medians["predict"] * BASE_GFLOP / medians["matmul_float32"],
        "extract_share_of_peak": medians["extract"] * BASE_GFLOP / medians[f"matmul_{precision}"],
    }
    if "openvino" in medians:
        ratios["extract_vs_openvino"] = medians["extract"] / medians["openvino"]
    return {
        **others,
        "ratios": ratios,
        "warm_seconds": warm,
        "workload_seconds": {"plain": plain, "no_augment": no_augment, "views_4": views_4},
        "per_second": medians | {"cold": cold_rate},
        "growth_seconds": {str(count): seconds for count, seconds in growth.items()},
    }


def describe(figures: dict) -> str:
    """The figures of `summarise` as a table."""
    rate, ratios, workload = figures["per_second"], figures["ratios"], figures["workload_seconds"]
    lines = [
        f"{figures['device']}; {figures['images']} images of 700 x 460",
        f"matmul's peak: float32 {rate['matmul_float32']:.0f}, bfloat16 {rate['matmul_bfloat16']:.0f} GFLOP/s",
        "",
        "passes through the base a second",
        f"  plain: Keras fit, float32, from PNG         {rate['fit']:8.1f}",
        f"  Keras predict, float32, from memory         {rate['predict']:8.1f}   {ratios['predict_share_of_peak']:.0%} of matmul's peak in that precision",
        f"  this project, images decoded before         {rate['extract']:8.1f}   {ratios['extract_share_of_peak']:.0%} of matmul's peak in that precision",
        f"  this project, augmented views               {rate['extract_views']:8.1f}",
        f"  this project, empty cache, decoding as well {rate['cold']:8.1f}",
    ]
    if "openvino" in rate:
        lines.append(f"  OpenVINO, bfloat16, from memory             {rate['openvino']:8.1f}")
    lines += [
        "",
        f"the thesis' workload ({EPOCHS} epochs, {ROWS:,} + {VALID_ROWS:,} rows, {IMAGES:,} images), extrapolated",
        f"  the plain way                               {workload['plain'] / 3600:8.2f} h",
        f"  this project, no augmentation               {workload['no_augment'] / 60:8.2f} min   {ratios['workload_no_augment']:.0f} times faster",
        f"  this project, {VIEWS} views                       {workload['views_4'] / 60:8.2f} min   {ratios['workload_views_4']:.0f} times faster",
        f"  this project, features cached (head only)   {figures['warm_seconds']:8.1f} s",
        "",
        f"extraction {ratios['extract_vs_predict']:.2f} times Keras predict"
        + (f", {ratios['extract_vs_openvino']:.2f} of OpenVINO" if "openvino" in rate else ""),
        "empty cache: "
        + ", ".join(f"{count} images {seconds:.1f} s" for count, seconds in figures["growth_seconds"].items()),
        f"peak memory of extraction and head {figures['peak_memory_gib']:.2f} GiB",
    ]
    return "\n".join(lines)


def seconds(run: Callable) -> float:
    """Seconds that a call takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def quietly(run: Callable, *arguments):
    """Calls a function without showing what it prints."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return run(*arguments)


if __name__ == "__main__":
    command_line.run(main)
