"""Out-of-distribution detection: how far the features of an image are from those of the training images."""

from __future__ import annotations

import keras
import numpy as np
import pandas as pd

import config
import model
from features import feature_datasets
from training import phases

# This percentage of the training images is within the limit.
PERCENT = 99
CHUNK = 4096


def describe(features: np.ndarray, places: np.ndarray | None = None) -> dict:
    """Statistics of the training features for `distances`, as plain values for JSON (key `familiar` of a checkpoint).

    Args:
        features: (n, width), pooled; may be a memory map, which is read in chunks.
        places: the row numbers of training images, in any shape; repeats count once. None for all rows.

    Returns:
        `mean` and `deviation` of each feature (width,), and `limit`: 99 % of the training images are no farther.
    """
    places = np.unique(np.arange(len(features)) if places is None else places)
    mean, variance = feature_datasets.statistics(features, places)
    statistics = {"mean": mean.tolist(), "deviation": np.sqrt(model.floored(variance)).tolist()}
    chunks = (features[places[start : start + CHUNK]] for start in range(0, len(places), CHUNK))
    training_distances = np.concatenate([distances(chunk, statistics) for chunk in chunks])
    return statistics | {"limit": float(np.percentile(training_distances, PERCENT))}


def describe_training(network: keras.Model, rows: pd.DataFrame, settings: config.Settings) -> dict:
    """The key `familiar` of a checkpoint, by which predict.py flags unlike images: `describe` of the training rows.

    Args:
        network: whole.
        rows: of training, with path, pixels and label_int.
        settings: of the run.
    """
    features = phases.train_features(network, rows, settings)
    return describe(features.array, features.places)


def distances(features: np.ndarray, statistics: dict) -> np.ndarray:
    """The root mean square of the standardised features of each image, (n,); about 1 for a training image.

    Args:
        features: (n, width), pooled.
        statistics: of `describe`.
    """
    standardized = (features - np.array(statistics["mean"])) / np.array(statistics["deviation"])
    return np.sqrt(np.mean(standardized**2, axis=1))
