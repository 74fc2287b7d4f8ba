"""A run that is stopped on purpose, and what must be the same when it was resumed."""

from __future__ import annotations

import json
import zipfile

import numpy as np


class StopError(Exception):
    """Raised by a test in the middle of a run."""


def what_is_left(run):
    """The outcome of a run: weights, optimizer, history, and the arrays of its checkpoint."""
    with np.load(run / "state.npz") as state:
        arrays = {name: state[name].tobytes() for name in state.files}
    about = json.loads(zipfile.ZipFile(run / "best_model.keras").read("breakhis.json"))
    best = {key: about[key] for key in ("arrays_sha256", "epoch", "val_loss", "split_sha256")}
    return arrays, (run / "history.csv").read_text(), best
