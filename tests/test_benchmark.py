import json
import subprocess
import sys
from pathlib import Path

import pytest

import benchmark
import config

ROOT = Path(config.__file__).parent


@pytest.mark.bfloat16
def test_the_benchmark_runs_on_a_handful_of_images(tmp_path):
    result = subprocess.run(
        [sys.executable, ROOT / "benchmark.py", "--images", "16", "--rounds", "1", "--rows", "128", "--json", "speed.json",
         "data.image_size=32"], cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    figures = json.loads((tmp_path / "speed.json").read_text())
    assert {"extract_vs_predict", "workload_no_augment", "workload_views_4"} <= figures["ratios"].keys()
    assert figures["warm_seconds"] > 0 and figures["peak_memory_gib"] > 0.1
    assert set(figures["growth_seconds"]) == {"4", "8", "16"}
    assert "times Keras predict" in result.stdout and [path.name for path in tmp_path.iterdir()] == ["speed.json"]


def test_the_workload_is_extrapolated_as_documented():
    medians = {"fit": 10.0, "predict": 20.0, "extract": 40.0, "extract_views": 40.0, "matmul_float32": 200.0,
               "matmul_bfloat16": 400.0, "openvino": 50.0}  # fmt: skip
    figures = benchmark.summarise(medians, {10: 1.0, 20: 1.0}, [9.0, 5.0, 6.0, 7.0], {"device": "CPU, bfloat16"})
    assert figures["workload_seconds"]["plain"] == 12 * (43_056 + 7_789) / 10
    assert figures["workload_seconds"]["no_augment"] == 7_909 / 20 + 6
    views = 7_907 * 4 / 40 + 5_279 / 40 + (7_909 / 20 - 7_909 / 40) + 6
    assert figures["workload_seconds"]["views_4"] == pytest.approx(views)
    assert figures["ratios"]["extract_vs_predict"] == 2 and figures["ratios"]["extract_vs_openvino"] == 0.8
    assert figures["ratios"]["predict_share_of_peak"] == pytest.approx(20 * 7.7 / 200)
    assert figures["ratios"]["extract_share_of_peak"] == pytest.approx(40 * 7.7 / 400)
