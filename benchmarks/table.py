"""The figures of a benchmark: the thesis' workload extrapolated, ratios, and the tables that are printed."""

from __future__ import annotations

import statistics

from benchmarks.timing import Rate

# The thesis' run: epochs over 2 x 21,528 upsampled rows and 7,789 validation rows of 7,909 images.
EPOCHS, ROWS, VALID_ROWS, IMAGES = 12, 43_056, 7_789, 7_909
# Its images that are in training rows, and those that are in validation rows.
TRAIN_IMAGES, VALID_IMAGES = 7_907, 5_279
VIEWS = 4
# Floating-point operations of a base at a size of its images.
GFLOP = {("resnet50", 224): 7.7}
# Name of a rate -> what the table calls it; {} is the precision of the extraction.
PASSES = {
    "fit": "plain: Keras fit, float32, from PNG",
    "predict": "Keras predict, {}",
    "extract": "this project",
    "extract_views": "this project, augmented views",
    "cold": "this project, empty cache, decoding as well",
    "frozen_graph": "TensorFlow's frozen graph, {}",
    "openvino": "OpenVINO, {}",
    "onnx_runtime": "ONNX Runtime, float32",
}
WORKLOADS = {"no_augment": "this project, no augmentation", "views_4": f"this project, {VIEWS} views"}
SHARES = ("predict", "extract")
ENGINES = ("frozen_graph", "openvino", "onnx_runtime")


def summarise(rates: dict[str, Rate], growth: dict[int, float], head: list[float], others: dict) -> dict:
    """All figures: per second, in seconds, and ratios.

    Args:
        rates: of `timing.race`, per second.
        growth: number of images -> seconds with an empty cache.
        head: seconds of the head's trainings, the first as a warm-up.
        others: figures to add; `precision`, `engine` and `gflop`, of one pass or None, among them.
    """
    medians = {name: rate.median for name, rate in rates.items()}
    most = max(growth)
    cold = most / growth[most]
    warm = statistics.median(head[1:])
    plain = EPOCHS * (ROWS + VALID_ROWS) / medians["fit"]
    no_augment = IMAGES / cold + warm
    decoding = max(0, IMAGES / cold - IMAGES / medians["extract"])
    views_4 = TRAIN_IMAGES * VIEWS / medians["extract_views"] + VALID_IMAGES / medians["extract"] + decoding + warm
    ratios = {
        "extract_vs_predict": medians["extract"] / medians["predict"],
        "cold_vs_predict": cold / medians["predict"],
        "workload_no_augment": plain / no_augment,
        "workload_views_4": plain / views_4,
        **{
            f"{name}_share_of_peak": medians[name] * others["gflop"] / medians["matmul"]
            for name in SHARES
            if others["gflop"]
        },
        **{f"extract_vs_{name}": medians["extract"] / medians[name] for name in ENGINES if name in medians},
        "extract_vs_best": medians["extract"] / max(medians[name] for name in ENGINES if name in medians),
    }
    return {
        **others,
        "ratios": ratios,
        "warm_seconds": warm,
        "workload_seconds": {"plain": plain, "no_augment": no_augment, "views_4": views_4},
        "per_second": medians | {"cold": cold},
        "spread": {name: [rate.lowest, rate.highest] for name, rate in rates.items()},
        "growth_seconds": {str(count): seconds for count, seconds in growth.items()},
    }


def describe(figures: dict) -> str:
    """The figures of `summarise` as a table."""
    ratios, workload, growth = figures["ratios"], figures["workload_seconds"], figures["growth_seconds"]
    precision = figures["precision"]
    shares = {
        name: f"   {ratios[key]:.0%} of matmul's peak" for name in SHARES if (key := f"{name}_share_of_peak") in ratios
    }
    lines = [
        f"{figures['device']}; {figures['stack']}; {figures['images']} images of 700 x 460",
        f"the engine of this project: {figures['engine']} in {precision}",
        f"matmul's peak in {precision}: {figures['per_second']['matmul']:.0f} GFLOP/s",
        "",
        f"{'passes through the base a second':44}{'median':>8}   lowest to highest",
        *(_rate(figures, name, title.format(precision)) + shares.get(name, "") for name, title in PASSES.items()
          if name in figures["per_second"]),
        "",
        f"the thesis' workload ({EPOCHS} epochs, {ROWS:,} + {VALID_ROWS:,} rows, {IMAGES:,} images), extrapolated",
        f"  the plain way                               {workload['plain'] / 3600:8.2f} h",
        *(f"  {title:42}{workload[name] / 60:8.2f} min   {ratios[f'workload_{name}']:.0f} times faster"
          for name, title in WORKLOADS.items()),
        f"  this project, features cached (head only)   {figures['warm_seconds']:8.1f} s",
        f"  nested cross-validation, 5 folds, the same  {figures['cross_validation_seconds']:8.1f} s",
        "",
        "extraction " + ", ".join(f"{ratios[f'extract_vs_{name}']:.2f} times {title}" for name, title in {
            "predict": "Keras predict", "best": "the best other engine", "frozen_graph": "the frozen graph",
            "openvino": "OpenVINO", "onnx_runtime": "ONNX Runtime"}.items() if f"extract_vs_{name}" in ratios),
        f"empty cache: {ratios['cold_vs_predict']:.2f} times Keras predict; " +
        ", ".join(f"{count} images {seconds:.1f} s" for count, seconds in growth.items()),
        f"first features {figures['first_feature_seconds']:.1f} s after the start of a process; "
        f"peak memory of extraction {figures['peak_memory_gib']:.2f} GiB",
    ]  # fmt: skip
    return "\n".join(lines)


def _rate(figures: dict, name: str, title: str) -> str:
    line = f"  {title:42}{figures['per_second'][name]:8.1f}"
    return line + "   {:.1f} to {:.1f}".format(*figures["spread"][name]) if name in figures["spread"] else line


def beside(figures: dict, other: dict) -> str:
    """This run next to another one, such as that of the other stack on the same machine, and their ratio."""
    rows = {
        "Keras fit, ms a step of 32 images": lambda run: 32_000 / run["per_second"]["fit"],
        "head, microseconds a step": lambda run: run["warm_seconds"] * 1e6 / run["head_steps"],
        "Keras predict, images a second": lambda run: run["per_second"]["predict"],
        "this project, images a second": lambda run: run["per_second"]["extract"],
        "empty cache, images a second": lambda run: run["per_second"]["cold"],
        "first features, s": lambda run: run["first_feature_seconds"],
    }
    lines = [f"{'':36}{figures['stack']:>34}{other['stack']:>34}{'ratio':>8}"]
    lines += [
        f"{name:36}{of(figures):34.1f}{of(other):34.1f}{of(figures) / of(other):8.2f}" for name, of in rows.items()
    ]
    return "\n".join(lines)
