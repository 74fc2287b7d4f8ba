import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import benchmark
import config
from benchmarks import engines, memory, table, timing
from benchmarks.timing import Rate
from safety.errors import InputError

ROOT = Path(config.__file__).parent


@pytest.mark.long
def test_the_benchmark_runs_on_a_handful_of_images(tmp_path, monkeypatch, capsys):
    options = ["--images", "64", "--rounds", "1", "--rows", "128", "--json", "speed.json", "data.image_size=32",
               "model.base=vgg16", "train.precision=float32", "train.engine=tensorflow"]  # fmt: skip
    command = [sys.executable, ROOT / "benchmark.py", *options]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    figures = json.loads((tmp_path / "speed.json").read_text())
    ratios = {"extract_vs_predict", "extract_vs_best", "extract_vs_frozen_graph", "workload_no_augment", "workload_views_4"}
    assert ratios <= figures["ratios"].keys() and set(figures["growth_seconds"]) == {"32", "64"}
    assert figures["cross_validation_seconds"] > 0
    assert figures["warm_seconds"] > 0 and figures["peak_memory_gib"] > 0.1 and figures["first_feature_seconds"] > 0
    assert figures["engine"] == "TensorFlow" and "engine of this project: TensorFlow in float32" in result.stdout
    assert "times Keras predict" in result.stdout and [path.name for path in tmp_path.iterdir()] == ["speed.json"]
    monkeypatch.setattr(benchmark, "measure", lambda *_: figures)
    benchmark.main(["--beside", "speed.json"])
    assert re.search(r"head, microseconds a step +([\d.]+) +\1 +1.00\n", capsys.readouterr().out)


def test_the_workload_is_extrapolated_as_documented():
    rates = {"fit": 10.0, "predict": 20.0, "extract": 40.0, "extract_views": 40.0, "matmul": 400.0, "openvino": 50.0}
    rates = {name: Rate(rate, rate - 1, rate + 2) for name, rate in rates.items()}
    figures = table.summarise(rates, {10: 1.0, 20: 1.0}, [9.0, 5.0, 6.0, 7.0], {"precision": "bfloat16", "gflop": 7.7})
    assert figures["workload_seconds"]["plain"] == 12 * (43_056 + 7_789) / 10
    assert figures["workload_seconds"]["no_augment"] == 7_909 / 20 + 6
    views = 7_907 * 4 / 40 + 5_279 / 40 + (7_909 / 20 - 7_909 / 40) + 6
    assert figures["workload_seconds"]["views_4"] == pytest.approx(views)
    assert figures["ratios"]["extract_vs_predict"] == 2 and figures["ratios"]["extract_vs_openvino"] == 0.8
    assert figures["ratios"]["extract_vs_best"] == 0.8
    assert figures["ratios"]["predict_share_of_peak"] == pytest.approx(20 * 7.7 / 400)
    assert figures["ratios"]["cold_vs_predict"] == 1 and figures["spread"]["fit"] == [9, 12]


def test_each_round_times_all_in_turn():
    order = []

    def contestant(name, work):
        return lambda: order.append(name) or work

    rates = timing.race({"one": contestant("one", 1), "two": contestant("two", 1000)}, 2)
    assert order == ["one", "two"] * 3
    assert rates["two"].lowest <= rates["two"].median <= rates["two"].highest


@pytest.mark.parametrize("images, counts", [(64, [32, 64]), (2000, [125, 250, 500, 1000, 2000])])
def test_the_growth_is_measured_by_doubling(images, counts):
    assert benchmark.growing(images) == counts


def test_batches_are_full_and_hold_the_images_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(engines.decoding, "decode", lambda paths, size: np.arange(len(paths)).reshape(-1, 1, 1, 1))
    rows = benchmark.pd.DataFrame({"path": [f"{number}.png" for number in range(70)]})
    one, two = engines.in_memory(rows, 32)
    assert one.ravel().tolist() == list(range(32)) and two.ravel().tolist() == list(range(32, 64))


def test_another_file_beside_is_refused(tmp_path):
    (tmp_path / "speed.json").write_text("{}")
    with pytest.raises(InputError, match="--beside: must be a file that --json of this version wrote, got speed.json"):
        benchmark.main(["--beside", "speed.json"])


def test_the_peak_memory_is_not_that_of_the_process_that_started_it():
    filled = np.ones(2**26)
    code = "from benchmarks import memory; print(memory.peak_gib())"
    printed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert 0 < float(printed) < 0.3 < filled.nbytes / 2**30 < memory.peak_gib()
