"""A figure of training images before and after normalisation and augmentation, as the settings have them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import tensorflow as tf
from matplotlib.figure import Figure

import config
from images import audit, augmentation, data_plots, decoding, stain_normalization
from safety.errors import InputError

# Images of each class, and views of each image.
IMAGES, VIEWS = 2, 6


def sheet(train: pd.DataFrame, settings: config.Settings) -> Figure:
    """A row for each of four training images of different slides: as it is, normalised, and its first views.

    Args:
        train: the training rows, with path, pixels, slide and label.
        settings: of a run; the views are those that it has in its feature cache.

    Raises:
        InputError: the settings change no image.
    """
    if settings.data.stain == "none" and not settings.augment.active:
        raise InputError("--augmented: needed is data.stain or a setting of augment that is on, got all off")
    settings = stain_normalization.fitted(settings, train)
    rows = train.drop_duplicates("slide").sample(frac=1, random_state=settings.data.seed).groupby("label").head(IMAGES)
    folder = audit.image_folder(settings.data.root)
    images = decoding.decode([folder / path for path in rows.path], settings.data.image_size)
    versions = [_versions(image, row.pixels, settings) for image, row in zip(images, rows.itertuples())]
    names, shown = zip(*(version for one in versions for version in one.items()))
    count = len(versions[0])
    # Two images in a row where there are few versions, which would be drawn too large.
    columns = count if count > 3 else 2 * count
    return data_plots.gallery(shown, names, rows.label.repeat(count), "Training images before and after", columns)


def _versions(image: np.ndarray, pixels: str, settings: config.Settings) -> dict[str, np.ndarray]:
    """The versions of an image (size, size, 3), uint8, by their captions."""
    normalised = stain_normalization.normalise(image, settings.data)
    versions = {"as it is": image}
    if settings.data.stain != "none":
        versions[settings.data.stain] = normalised
    count = min(VIEWS, settings.augment.views) if settings.augment.active else 0
    for view in range(count):
        draws = augmentation.draws_of(f"{pixels}-{view}", settings.data.seed)
        batch = tf.constant(normalised[None], tf.float32), settings.augment, tf.constant(draws[None], tf.float32)
        versions[f"view {view + 1}"] = augmentation.augment(*batch)[0].numpy().round().astype(np.uint8)
    return versions
