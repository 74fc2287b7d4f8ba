"""What the training images look like to the base, and how far from them another image is."""

from __future__ import annotations

import numpy as np

import model
from features import feature_datasets

# Share of the training images, in percent, that are no farther off than the limit.
PERCENT = 99
CHUNK = 4096


def describe(rows: np.ndarray, places: np.ndarray | None = None) -> dict:
    """What a checkpoint has to say of its training images for `distances`; plain values, as JSON takes them.

    Args:
        rows: (n, width), pooled features; may be a memory map, of which only a part is held in memory at a time.
        places: which of the rows are training images, in any shape, repeats counted once; None for all.

    Returns:
        `mean` and `deviation` of each feature, and `limit`, the distance that 99 % of the training images keep.
    """
    places = np.unique(np.arange(len(rows)) if places is None else places)
    mean, variance = feature_datasets.statistics(rows, places)
    familiar = {"mean": mean.tolist(), "deviation": np.sqrt(model.floored(variance)).tolist()}
    chunks = (rows[places[start : start + CHUNK]] for start in range(0, len(places), CHUNK))
    own = np.concatenate([distances(chunk, familiar) for chunk in chunks])
    return familiar | {"limit": float(np.percentile(own, PERCENT))}


def distances(rows: np.ndarray, familiar: dict) -> np.ndarray:
    """The root of the mean square of the standardised features (n, width), as (n,); about 1 for a training image.

    Args:
        rows: pooled features.
        familiar: of `describe`.
    """
    standardized = (rows - np.array(familiar["mean"])) / np.array(familiar["deviation"])
    return np.sqrt(np.mean(standardized**2, axis=1))
