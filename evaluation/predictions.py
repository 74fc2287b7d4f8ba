"""The images that a checkpoint is judged by, and what it predicts for them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import keras
import numpy as np
import pandas as pd
from tqdm import tqdm

import config
import data
import model
from features import extraction, feature_datasets
from images import audit, image_datasets, splits
from safety import csv_files, limits
from safety.errors import InputError


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
    content = limits.read_bytes(path, csv_files.MAX_BYTES)
    came = hashlib.sha256(content).hexdigest()
    if sha256 and came != sha256:
        raise InputError(
            f"{path}: not the split that the checkpoint was trained with (SHA-256 {sha256[:12]}, got {came[:12]});"
            " to test on other images give --split FILE, and the report will say so"
        )
    table = csv_files.parse(content, path)
    if list(table.columns) != splits.COLUMNS:
        raise InputError(f"{path}: columns must be {', '.join(splits.COLUMNS)}, got {', '.join(table.columns[:8])}")
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
        settings: of the run; `train.features` says whether features come from the cache or images go in.
    """
    if settings.cached:
        kept = extraction.pooled(network, rows, settings)
        batches = feature_datasets.eval_dataset(kept, settings.train.batch_size)
        probabilities = model.head(network).predict(batches, verbose=0)[:, 0]
    else:
        probabilities = predict_images(network, rows, settings)
    return rows.assign(probability=probabilities.astype(float))


def predict_images(network: keras.Model, rows: pd.DataFrame, settings: config.Settings) -> np.ndarray:
    """The probabilities (rows,) through the whole network; each batch brings its file names along."""
    batches = image_datasets.eval_dataset(rows, audit.image_folder(settings.data.root), settings)
    total = -(-len(rows) // settings.train.batch_size)
    names, probabilities = [], []
    for name, images, _ in tqdm(batches, "predicting", total, unit="batch", delay=5):
        names.extend(name.numpy().astype(str))
        probabilities.append(network.predict_on_batch(images)[:, 0])
    if names != rows.filename.tolist():
        raise AssertionError("the predictions came back for other images or in another order")
    return np.concatenate(probabilities)
