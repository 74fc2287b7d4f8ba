"""Measures the speed of this project and of plain Keras on the same images and machine: python benchmark.py

    python benchmark.py --json speed.json      the table, and all figures as JSON
    python benchmark.py --beside speed.json    the table, and this run next to that one, such as the other stack's
    python benchmark.py --check-gpu            checks, line by line, what a run on a GPU meets
    pip install onnxruntime tf2onnx            adds ONNX Runtime; pip install openvino adds OpenVINO

Every figure is a median over the rounds, with the lowest and the highest. Compare ratios: seconds depend on the machine
and on its other users.
"""

from __future__ import annotations

import safety.startup

safety.startup.start_command(__name__)  # before all other imports, which take seconds

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from PIL import Image

import config
import data
import model
from benchmarks import engines, heads, table, timing
from benchmarks.table import EPOCHS, IMAGES, ROWS, VIEWS
from devices import fastest, gpu_check, precision
from features import engine, extraction, store
from images import stain_normalization
from safety import atomic_files, command_line, limits
from safety.errors import InputError

# What a process runs that does nothing but compute features.
EXTRACTION = """
import sys; sys.path.insert(0, sys.argv[1])
import safety.startup
import pandas as pd
import config, model
from benchmarks import memory
from devices import precision
from features import extraction
settings = config.load_settings(sys.argv[2])
precision.use_device(settings.train.precision, engine=settings.train.engine)
extraction.pooled(model.build(settings), pd.read_csv(sys.argv[3]), settings)
print(memory.peak_gib())
"""


def main(arguments: list[str]) -> int | None:
    """Measures, prints the table and, with --json, writes the figures."""
    parser = command_line.CommandLine(__doc__)
    parser.add_argument("--json", metavar="FILE", help="also write all figures to this file")
    parser.add_argument("--beside", metavar="FILE", help="also print this run next to that of an earlier --json")
    parser.add_argument("--images", type=int, default=1024, help="images to measure on, 64 or more (default 1024)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds, 1 or more (default 3)")
    parser.add_argument("--rows", type=int, default=ROWS, help=f"rows to train the head on (default {ROWS})")
    parser.add_argument("--check-gpu", action="store_true", help="check what a run on a GPU meets, and measure nothing")
    config.add_settings(parser)
    args = parser.parse(arguments)
    if args.check_gpu:
        return check_gpu()
    if args.images < 64 or args.rounds < 1 or args.rows < 64:
        raise InputError(
            "benchmark.py: needed are --images of at least 64, --rounds of at least 1, --rows of at least 64, got "
            f"{args.images}, {args.rounds} and {args.rows}"
        )
    other = read_figures(Path(args.beside)) if args.beside else None
    overrides = ["data.root=.", "model.weights=random", "model.standardize=true", *args.overrides]
    settings = config.load_settings(args.config, overrides)
    target = str(Path(args.json).absolute()) if args.json else None
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        figures = measure(settings, args.images, args.rounds, args.rows)
        os.chdir("/")
    print(table.describe(figures))
    if other:
        print("\n" + table.beside(figures, other))
    if target:
        atomic_files.write_out(target, json.dumps(figures, indent=1))


def read_figures(path: Path) -> dict:
    """The figures that --json wrote; raises InputError for another file."""
    try:
        figures = json.loads(limits.read_bytes(path, limits.YAML_BYTES))
        table.beside(figures, figures)
    except (ValueError, KeyError, TypeError, ZeroDivisionError):
        raise InputError(f"--beside: must be a file that --json of this version wrote, got {path}") from None
    return figures


def check_gpu() -> int:
    """Prints a line for each point of `gpu_check.check`; 1 if one did not hold."""
    failed = 0
    for name, held, seen in gpu_check.check():
        print(f"{'held' if held else 'FAILED':7}{name}: {seen}", flush=True)
        failed += not held
    return 1 if failed else 0


def measure(settings: config.Settings, images: int, rounds: int, head_rows: int) -> dict:
    """All figures of `table.summarise`.

    Args:
        settings: of the runs.
        images: to measure on.
        rounds: of which the medians are taken.
        head_rows: training rows of the head.
    """
    rows = write_images(images)
    settings = stain_normalization.fitted(fastest.with_fastest(settings), rows)
    name = settings.train.precision
    device = precision.use_device(name, engine=settings.train.engine)
    fast = model.build(settings)
    # A first extraction, so that no other one traces the graph.
    measure_cold(fast, rows.head(engine.BATCH), settings)
    growth = {count: measure_cold(fast, rows.head(count), settings) for count in growing(images)}
    head = [heads.train(fast, settings, head_rows, momentum) for momentum in [0.0, *[0.5] * rounds]]
    fold_seconds = heads.cross_validate_fold(fast, settings, min(head_rows, IMAGES))
    rates = timing.race(contestants(fast, rows, settings), rounds)
    others = {
        "device": device,
        "precision": name,
        "engine": fastest.TITLES[settings.train.engine],
        "stack": f"TensorFlow {tf.__version__}, Keras {keras.__version__}",
        "images": images,
        "gflop": table.GFLOP.get((settings.model.base, settings.data.image_size)),
        "first_feature_seconds": extract_in_a_process(rows.head(engine.BATCH), settings).seconds,
        # Two chunks, so that one is read while the other is computed, where there are so many images.
        "peak_memory_gib": extract_in_a_process(rows.head(2 * store.CHUNK), settings).peak_gib,
        "head_steps": EPOCHS * -(-head_rows // settings.train.batch_size),
        "cross_validation_seconds": heads.FOLDS * fold_seconds,
    }
    return table.summarise(rates, growth, head, others)


def growing(images: int) -> list[int]:
    """Half the images, half of these and so on, in rising order, but no fewer than a batch."""
    counts = [images]
    while counts[0] // 2 >= engine.BATCH and len(counts) < 5:
        counts.insert(0, counts[0] // 2)
    return counts


def contestants(fast: keras.Model, rows: pd.DataFrame, settings: config.Settings) -> dict:
    """What is raced: name -> function, as `timing.race` takes them.

    The engines and the extraction have all rows, so that what comes before the first pass weighs as little as in a run;
    Keras' own ways, whose rate does not depend on the number, have some.
    """
    some = rows.head(max(64, len(rows) // 4))
    batches = engines.in_memory(rows, settings.data.image_size)
    built = {
        "predict": engines.predict(fast, batches[: len(some) // engine.BATCH]),
        "extract": engines.extract_again(fast, rows, settings, augmented=False),
        "extract_views": engines.extract_again(fast, some, augmenting(settings), augmented=True),
        "frozen_graph": engines.frozen_graph(fast, batches[: len(some) // engine.BATCH]),
        "openvino": engines.openvino(fast, batches),
        "matmul": engines.matmul("float32" if settings.train.precision == "float32" else "bfloat16"),
    }
    precision.use_device("float32")
    plain = model.build(settings)
    built |= {
        "fit": engines.fit(plain, some.head(64), settings),
        "onnx_runtime": engines.onnx_runtime(plain, batches[:2]),
    }
    return {name: run for name, run in built.items() if run}


class Process(NamedTuple):
    """What a process took.

    Attributes:
        seconds: from its start to its end.
        peak_gib: the most memory that it had.
    """

    seconds: float
    peak_gib: float


def extract_in_a_process(rows: pd.DataFrame, settings: config.Settings) -> Process:
    """Computes the features of the rows in a process of its own, with an empty cache."""
    shutil.rmtree("cache", ignore_errors=True)
    Path("process.yaml").write_text(settings.to_yaml())
    rows.to_csv("process.csv", index=False)
    command = [sys.executable, "-c", EXTRACTION, str(Path(__file__).parent), "process.yaml", "process.csv"]
    started = time.perf_counter()
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
    return Process(time.perf_counter() - started, float(printed.splitlines()[-1]))


def write_images(count: int) -> pd.DataFrame:
    """Writes images of BreakHis' size, as smooth and as noisy as real ones, and returns their rows."""
    rng = np.random.default_rng(0)
    names = pd.Series([f"SOB_M_DC-14-{1 + number // 100}-40-{number:04}.png" for number in range(count)])
    rows = data.describe(names).assign(pixels=names)
    for path in rows.path:
        coarse = Image.fromarray(rng.normal(180, 40, (12, 18, 3)).clip(0, 255).astype(np.uint8))
        noisy = np.asarray(coarse.resize((700, 460))) + 8 * rng.standard_normal((460, 700, 3), np.float32)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, compress_level=1)
    return rows


def measure_cold(network: keras.Model, rows: pd.DataFrame, settings: config.Settings) -> float:
    """Seconds to decode the images and to compute and store their features, with an empty cache."""
    shutil.rmtree("cache", ignore_errors=True)
    return timing.seconds(lambda: timing.quietly(extraction.pooled, network, rows, settings))


def augmenting(settings: config.Settings) -> config.Settings:
    """The settings with the augmentation of thesis.yaml."""
    thesis = config.load_settings(Path(__file__).with_name("thesis.yaml")).augment
    return settings.model_copy(update={"augment": thesis.model_copy(update={"views": VIEWS})})


if __name__ == "__main__":
    command_line.run(main)
