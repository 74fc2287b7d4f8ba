"""Reads the split that a checkpoint is evaluated on, and predicts its images."""

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
from features import feature_datasets, inference_form, source
from features.extraction import Features
from images import audit, image_datasets, splits, turns
from safety import csv_files, limits
from safety.errors import InputError


def read_split(path: Path, protocol: str = "row", sha256: str = "") -> pd.DataFrame:
    """Reads a split.csv and adds what the file names contain (path, mag, subtype, label_int).

    Args:
        path: the file.
        protocol: what the split must keep whole; `row` checks only that the test set is balanced.
        sha256: of the split that the checkpoint was trained with; any other is refused. Empty for any split.

    Returns:
        A row per line of the file, in its order.

    Raises:
        InputError: the file is missing, is no split or another one, breaks the protocol, or contradicts a file name.
    """
    if not path.is_file():
        raise InputError(f"{path}: there is no such split")
    content = limits.read_bytes(path, csv_files.MAX_BYTES)
    digest = hashlib.sha256(content).hexdigest()
    if sha256 and digest != sha256:
        raise InputError(
            f"{path}: not the split that the checkpoint was trained with (SHA-256 {sha256[:12]}, got {digest[:12]});"
            " to test on other images use --split FILE, and the report will name that split"
        )
    table = csv_files.parse(content, path)
    if list(table.columns) != splits.COLUMNS:
        raise InputError(f"{path}: columns must be {', '.join(splits.COLUMNS)}, got {', '.join(table.columns[:8])}")
    described = data.describe(table.filename).assign(set=table.set)
    wrong = (described[splits.COLUMNS] != table).any(axis=1) | ~table.set.isin(splits.SETS)
    if wrong.any():
        line = wrong.idxmax()
        raise InputError(
            f"{path}, line {line + 2}: every column must agree with the file name, and set must be one of "
            f"{', '.join(splits.SETS)}; got {', '.join(table.loc[line])}"
        )
    splits.check(described, protocol)
    return described


def with_test_of(table: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """The training and validation rows of one split with the test rows of another."""
    return pd.concat([table[table.set.isin(["train", "valid"])], other[other.set == "test"]], ignore_index=True)


def predict(network: keras.Model, rows: pd.DataFrame, settings: config.Settings, views: int = 1) -> pd.DataFrame:
    """Adds a column `probability` (of malignant, 0 to 1) to the rows, and where several views are averaged, `views`.

    Args:
        network: of `checkpoint.load`.
        rows: with path, pixels, filename and label_int.
        settings: of the run; `train.features` decides between cached features and images as input.
        views: exact turns of each image whose probabilities are averaged, 1 (the plain image) or 8.
    """
    if settings.cached:
        features = source.of(settings).pooled(network, rows, turned=views)
        probabilities = _predict_features(network, features, settings)
    else:
        probabilities = predict_images(network, rows, settings, views)
    rows = rows.assign(probability=probabilities.astype(float))
    return rows.assign(views=views) if views > 1 else rows


def _predict_features(network: keras.Model, features: Features, settings: config.Settings) -> np.ndarray:
    """The probabilities (rows,) by the head, the mean over the views."""
    batches = feature_datasets.eval_dataset(feature_datasets.views_as_rows(features), settings.train.batch_size)
    return model.head(network).predict(batches, verbose=0).reshape(features.places.shape).mean(axis=1)


def predict_images(network: keras.Model, rows: pd.DataFrame, settings: config.Settings, views: int = 1) -> np.ndarray:
    """The probabilities (rows,) by the whole network, images in, the mean over the first `views` exact turns.

    Raises:
        AssertionError: the dataset returned other file names, or in another order, than the rows have.
    """
    whole = inference_form.of_network(network, settings.model.frozen)
    batches = image_datasets.eval_dataset(rows, audit.image_folder(settings.data.root), settings)
    total = -(-len(rows) // settings.train.batch_size)
    names, probabilities = [], []
    for name, images, _ in tqdm(batches, "predicting", total, unit="batch", delay=5):
        names.extend(name.numpy().astype(str))
        turned = (turns.turn(images, [view] * len(images)) for view in range(views))
        probabilities.append(np.mean([whole.predict_on_batch(batch)[:, 0] for batch in turned], axis=0))
    if names != rows.filename.tolist():
        raise AssertionError("the dataset returned other images, or in another order, than were asked for")
    return np.concatenate(probabilities)
