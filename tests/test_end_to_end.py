"""From Folds.csv to an evaluated checkpoint: by the commands that a user types, and on real images."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd

import config
import evaluate
import train

ROOT = Path(config.__file__).parent


def run(cwd, script, *arguments):
    result = subprocess.run(
        [sys.executable, ROOT / script, *map(str, arguments)], cwd=cwd, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_on_the_synthetic_sample(tmp_path):
    run(tmp_path, "sample.py", "sample", "--images", "1")
    run(tmp_path, "data.py", "--config", ROOT / "sample.yaml", "data.test_per_class=10")
    printed = run(tmp_path, "train.py", "--config", ROOT / "sample.yaml", "data.test_per_class=10", "data.image_size=64",
                  "train.run=first", "train.epochs=1")  # fmt: skip
    assert "synthetic" in printed.lower() and printed.splitlines()[-1] == "run: runs/first"
    printed = run(tmp_path, "evaluate.py", "runs/first")
    assert "test accuracy: " in printed and "synthetic" in printed.lower()
    assert "synthetic" in (tmp_path / "runs/first/evaluation/report.txt").read_text().lower()
    assert json.loads((tmp_path / "runs/first/evaluation/metrics.json").read_text())["n"] == 20


def test_on_real_images(real_sample, tmp_path, float32):
    train.main([f"data.root={real_sample}", f"data.folds={real_sample}/Folds.csv", "data.protocol=image",
                "data.test_per_class=20", "model.weights=random", "model.standardize=true", "train.epochs=3",
                "train.run=real", "data.image_size=64", "model.base=mobilenet_v2"])  # fmt: skip
    evaluate.main(["runs/real"])
    predictions = pd.read_csv(tmp_path / "runs/real/evaluation/predictions.csv")
    assert predictions.label.value_counts().to_dict() == {"benign": 20, "malignant": 20}
    split = pd.read_csv(tmp_path / "runs/real/split.csv")
    assert not set(predictions.filename) & set(split[split.set != "test"].filename)
    assert not list(real_sample.rglob("*.pixels.csv"))
