"""Writes the files of the stack at hand that both stacks must read: PYTHONPATH=. python tests/stacks/write_files.py

A checkpoint and base weights of the CNN, and what it predicts. Its weights have three values each, so that they compress.
"""

from __future__ import annotations

import safety.startup  # noqa: F401  before any other import

import gzip
import json
import tempfile
from pathlib import Path

import keras
import numpy as np

import config
import model
from devices import keras_stack
from training import checkpoint

FOLDER = Path(__file__).parent
PIXELS = np.random.RandomState(0).randint(0, 256, (6, 32, 32, 3)).astype(np.float32)
SETTINGS = ["model.base=cnn", "model.weights=random", "data.image_size=32", "train.precision=float32"]


def write(name: str, weights: str) -> None:
    """Writes NAME.keras.gz, the base's weights under their own ending, and NAME.json with the probabilities."""
    settings = config.load_settings(None, SETTINGS)
    network = model.build(settings)
    rng = np.random.RandomState(1)
    scales = [float(abs(array).max()) or 0.5 for array in network.get_weights()]
    # 1 of the moving variance stays, and no channel is like another.
    network.set_weights([
        array if array.ndim == 1 and array.min() == 1 else scale * rng.randint(-1, 2, array.shape)
        for array, scale in zip(network.get_weights(), scales)
    ])  # fmt: skip
    with tempfile.TemporaryDirectory() as temporary:
        for ending in (".keras", weights):
            path = Path(temporary) / f"{name}{ending}"
            if ending == ".keras":
                checkpoint.save(network, path, {"settings": settings.model_dump(), "split_sha256": "abc"})
            else:
                model.base_of(network).save_weights(path)
            (FOLDER / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes(), mtime=0))
    probabilities = network.predict(PIXELS, verbose=0)[:, 0].tolist()
    (FOLDER / f"{name}.json").write_text(json.dumps({"keras": keras.__version__, "probabilities": probabilities}))


if __name__ == "__main__":
    write(*(("keras3", ".weights.h5") if keras_stack.KERAS_3 else ("addons", ".h5")))
