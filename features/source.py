"""Where a run's features come from: the images, through the frozen base and its cache, or a file of others' features.

Everything that reads images or features asks `of(settings)` and does not know which of the two it is.
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

import keras
import numpy as np
import pandas as pd

import config
import model
from features import extraction, feature_files
from features.extraction import Features
from images import audit
from safety.errors import InputError


class Images:
    """The images in `data.root`; their features are those of the base.

    Args:
        settings: of the run.
    """

    # Of the features; a base knows its own.
    width = None

    def __init__(self, settings: config.Settings) -> None:
        self.settings = settings

    def check(self) -> None:
        """Raises InputError where there are no images, before anything takes time."""
        audit.image_folder(self.settings.data.root)

    def rows(self, table: pd.DataFrame) -> pd.DataFrame:
        """The rows of `data.read_table` that can take part: all of them."""
        return table

    def usable_rows(self, table: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, str]]:
        """The rows with the column `pixels`, and the images left out: see `audit.usable_rows`."""
        return audit.usable_rows(table, self.settings.data)

    def with_pixels(self, table: pd.DataFrame) -> pd.DataFrame:
        """The rows with the column `pixels`, by which equal images are found: see `audit.with_pixels`."""
        return audit.with_pixels(table, self.settings.data)

    def known_pixels(self, table: pd.DataFrame) -> pd.DataFrame:
        """The same without opening an image, if all were inspected before: see `audit.known_pixels`."""
        return audit.known_pixels(table, self.settings.data)

    def pooled(self, network: keras.Model, rows: pd.DataFrame, augmented: bool = False, turned: int = 1) -> Features:
        """The pooled features of each row: see `extraction.pooled`."""
        return extraction.pooled(network, rows, self.settings, augmented, turned)


class Imported:
    """The features in the file `model.weights`; no image is opened.

    The column `pixels` holds a hash of the image's features: images of equal features count as equal, and equal images
    to which the encoder gave other last bits do not.

    Args:
        settings: of the run.

    Raises:
        InputError: the file cannot be read.
    """

    def __init__(self, settings: config.Settings) -> None:
        self.settings, self.path = settings, Path(settings.model.weights)
        self.names, self.array, self.hashes = _read(self.path, *_version(self.path))
        self.width = self.array.shape[1]

    def check(self) -> None:
        """Does nothing: the file was read."""

    def rows(self, table: pd.DataFrame) -> pd.DataFrame:
        """The rows of `data.read_table` that have features; counts the others, and refuses a name that no row has."""
        unknown = sorted(set(self.names) - set(table.filename))
        if unknown:
            raise InputError(
                f"model.weights: {self.path} must have file names of {self.settings.data.folds} alone, got "
                f"{unknown[0][:100]!r}{f' and {len(unknown) - 1} others' * (len(unknown) > 1)}"
            )
        images = table.filename.nunique()
        if len(self.names) < images:
            left_out = images - len(self.names)
            print(f"{self.path}: features of {len(self.names)} images; the other {left_out} are left out", flush=True)
        return table[table.filename.isin(self.names)].reset_index(drop=True)

    def usable_rows(self, table: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, str]]:
        """The rows with the column `pixels`; no image is left out."""
        return self.with_pixels(table), {}

    def with_pixels(self, table: pd.DataFrame) -> pd.DataFrame:
        """The rows with the column `pixels`, a hash of the features; raises InputError where one has none."""
        return table.assign(pixels=self.hashes[self._places(table)])

    known_pixels = with_pixels

    def pooled(self, network: keras.Model, rows: pd.DataFrame, augmented: bool = False, turned: int = 1) -> Features:
        """The features of each row, one view of each; raises InputError where a row has none, or not as many."""
        if turned > 1:
            raise InputError(f"--views: needed are images, since {self.path} has one view of each, got {turned}")
        check_width(network, self.array, self.path)
        return Features(self.array, self._places(rows)[:, None], rows.label_int.to_numpy())

    def _places(self, rows: pd.DataFrame) -> np.ndarray:
        places = self.names.get_indexer(rows.filename)
        if (places < 0).any():
            raise InputError(
                f"model.weights: {self.path} must have features of {rows.filename.iloc[np.argmin(places)]}, got none"
            )
        return places


def of(settings: config.Settings) -> Images | Imported:
    """Where the features of a run with these settings come from."""
    return Imported(settings) if settings.model.imported else Images(settings)


def check_width(network: keras.Model, array: np.ndarray, path: Path) -> None:
    """Raises InputError where features (images, width) of a file are not as many as the head takes."""
    if array.shape[1] != model.width(network):
        raise InputError(f"{path}: an image must have {model.width(network)} features, got {array.shape[1]}")


def image_name(name: str) -> str:
    """The file name of an image as Folds.csv ends with it: without folders, and with .png.

    >>> image_name("benign/SOB_B_A-14-22549AB-40-001")
    'SOB_B_A-14-22549AB-40-001.png'
    """
    name = name.replace("\\", "/").rpartition("/")[2]
    return name if name.endswith(".png") else f"{name}.png"


def _version(path: Path) -> tuple[int, int]:
    """What changes when the file is written anew."""
    return (path.stat().st_mtime_ns, path.stat().st_size) if path.exists() else (0, 0)


@functools.lru_cache(maxsize=1)
def _read(path: Path, modified: int, size: int) -> tuple[pd.Index, np.ndarray, np.ndarray]:
    """Names of the images, features, and their hashes; kept, since a run asks several times."""
    read = feature_files.read(path)
    names = pd.Index([image_name(name) for name in read.names])
    if names.has_duplicates:
        raise InputError(f"{path}: an image must be there once, got {names[names.duplicated()][0]} in several folders")
    order = np.argsort(names.to_numpy(str), kind="stable")
    array = read.array[order]
    array.flags.writeable = False
    return names[order], array, np.array([hashlib.sha256(row.tobytes()).hexdigest() for row in array], object)
