"""The images that a checkpoint is judged by, and what it predicts for them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import config  # first, because it quiets TensorFlow
from config import InputError

import keras
import numpy as np
import pandas as pd
from tqdm import tqdm

import audit
import data
import features
import model
import pictures
import splits
import tables
import untrusted


def read_split(path: Path, protocol: str = "row", sha256: str = "") -> pd.DataFrame:
    """Reads a split.csv and adds what the names say (path, mag, subtype, label_int).

    Args:
        path: the file.
        protocol: the one whose contract it must keep; `row` asks only that the test set is balanced.
        sha256: of the split that the checkpoint was trained with; any other is refused.

    Raises:
        InputError: the file is missing or no split, is another one, breaks the contract, or contradicts its names.
    """
    if not path.is_file():
        raise InputError(f"{path}: there is no such split")
    content = untrusted.read_bytes(path, tables.MAX_BYTES)
    came = hashlib.sha256(content).hexdigest()
    if sha256 and came != sha256:
        raise InputError(
            f"{path}: not the split that the checkpoint was trained with (SHA-256 {sha256[:12]}, came {came[:12]});"
            " to test on other images give --split FILE, and the report will say so"
        )
    table = tables.parse(content, path)
    if list(table.columns) != splits.COLUMNS:
        raise InputError(f"{path}: columns must be {', '.join(splits.COLUMNS)}, came {', '.join(table.columns[:8])}")
    named = data.describe(table.filename).assign(set=table.set)
    wrong = (named[splits.COLUMNS] != table).any(axis=1) | ~table.set.isin(splits.SETS)
    if wrong.any():
        line = wrong.idxmax()
        raise InputError(
            f"{path}, line {line + 2}: contradicts the file's name, or no set: {', '.join(table.loc[line])}"
        )
    splits.check(named, protocol)
    return named


def with_test_of(table: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """The training and validation rows of one split with the test rows of another."""
    return pd.concat([table[table.set.isin(["train", "valid"])], other[other.set == "test"]], ignore_index=True)


def predict(network: keras.Model, rows: pd.DataFrame, settings: config.Settings) -> pd.DataFrame:
    """The rows with the probability of malignant.

    Args:
        network: the loaded model.
        rows: with path, pixels, filename and label_int.
        settings: of the run; `train.features` says whether features come from the cache or pictures go in.
    """
    if settings.cached:
        kept = features.pooled(network, rows, settings)
        batches = features.eval_dataset(kept, rows.label_int.to_numpy(), settings.train.batch_size)
        probabilities = model.head(network).predict(batches, verbose=0)[:, 0]
    else:
        probabilities = predict_pictures(network, rows, settings)
    return rows.assign(probability=probabilities.astype(float))


def predict_pictures(network: keras.Model, rows: pd.DataFrame, settings: config.Settings) -> np.ndarray:
    """The probabilities (rows,) through the whole network; each batch brings its file names along."""
    batches = pictures.eval_dataset(rows, audit.find_pictures(settings.data.root), settings)
    total = -(-len(rows) // settings.train.batch_size)
    names, probabilities = [], []
    for name, images, _ in tqdm(batches, "predicting", total, unit="batch", delay=5):
        names.extend(name.numpy().astype(str))
        probabilities.append(network.predict_on_batch(images)[:, 0])
    if names != rows.filename.tolist():
        raise AssertionError("the predictions came back for other images or in another order")
    return np.concatenate(probabilities)
