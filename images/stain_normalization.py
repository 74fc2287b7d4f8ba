"""Normalises the stain of images, by Macenko or Reinhard, to a target that is fitted on training images alone.

A blank, black or grey image has no stain to measure and is left as it is. torchstain has both methods in NumPy, but
fits on a single image, fails on a blank one and cuts the fractions of grey levels off; what is left is this file.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd

import config
from images import audit, decoding
from safety.errors import InputError

# Training images that the target is fitted on, drawn by the seed.
FITTED_ON = 256
# Optical density below which a pixel is background, and the percentiles of the angle taken as stains: those of Macenko.
BACKGROUND = 0.15
PERCENT = 1.0
# An image with a smaller share of tissue, or whose stains are less than a degree apart, has no stain to measure.
MIN_TISSUE = 0.01
MIN_SINE = np.sin(np.deg2rad(1))
# The least standard deviation of a channel that can be scaled: that of less than half a grey level.
MIN_DEVIATION = 1e-4
TO_LMS = np.array([[0.3811, 0.5783, 0.0402], [0.1967, 0.7244, 0.0782], [0.0241, 0.1288, 0.8444]])
TO_LAB = np.array([[1, 1, 1], [1, 1, -2], [1, -1, 0]]) / np.sqrt([[3], [6], [2]])


class Method(NamedTuple):
    """A way to normalise.

    Attributes:
        measure: an image with tissue -> its numbers, whose mean over training images is the target; None without stain.
        change: an image, its numbers and the target -> the normalised image, not yet rounded.
    """

    measure: Callable[[np.ndarray], np.ndarray | None]
    change: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def fitted(settings: config.Settings, train: pd.DataFrame) -> config.Settings:
    """The settings with the target that `data.stain` needs, fitted unless they have one.

    Args:
        settings: of the run.
        train: the training rows, with path and pixels; no other image may change the target.

    Raises:
        InputError: none of the training images has a stain.
    """
    if settings.data.stain == "none" or settings.data.stain_target != "auto":
        return settings
    images = train.drop_duplicates("pixels").sort_values("pixels")
    images = images.sample(min(FITTED_ON, len(images)), random_state=settings.data.seed)
    folder = audit.image_folder(settings.data.root)
    decoded = decoding.decode([folder / path for path in images.path], settings.data.image_size)
    data = settings.data.model_copy(update={"stain_target": fit(decoded, settings.data.stain)})
    return settings.model_copy(update={"data": data})


def fit(images: np.ndarray, method: str) -> list[float]:
    """The target: the mean of what is measured on each image, to six digits, so that it is easy to read.

    Args:
        images: (n, height, width, 3), RGB from 0 to 255.
        method: macenko or reinhard.

    Raises:
        InputError: none of the images has a stain.
    """
    measured = [numbers for image in images if (numbers := _measure(image, method)) is not None]
    if not measured:
        raise InputError(f"data.stain: needed is a training image with stained tissue, got {len(images)} without")
    return [float(f"{number:.6g}") for number in np.mean(measured, axis=0)]


def normalise(image: np.ndarray, data: config.Data) -> np.ndarray:
    """Normalises an image by the method of `data.stain`.

    Args:
        image: (height, width, 3), RGB from 0 to 255.
        data: with the target that `fitted` has found.

    Returns:
        RGB of the same shape and type, integers from 0 to 255; the image itself where it has no stain.
    """
    if data.stain == "none":
        return image
    measured = _measure(image, data.stain)
    if measured is None:
        return image
    changed = METHODS[data.stain].change(image, measured, np.array(data.stain_target))
    return np.clip(np.rint(changed), 0, 255).astype(image.dtype)


def _measure(image: np.ndarray, method: str) -> np.ndarray | None:
    """What `Method.measure` returns, None for an image that is nearly all background."""
    tissue = image.max(axis=2) < 256 * np.exp(-BACKGROUND) - 1
    return METHODS[method].measure(image) if tissue.mean() >= MIN_TISSUE else None


def _density(image: np.ndarray) -> np.ndarray:
    """The optical density of each pixel, (pixels, 3), natural logarithm; 1 is added, so that black's is finite."""
    return -np.log((image.reshape(-1, 3).astype(float) + 1) / 256)


def _measure_macenko(image: np.ndarray) -> np.ndarray | None:
    """The stains of an image, and how much of each it has at most.

    Macenko et al., "A method for normalizing histology slides for quantitative analysis", 2009.

    Returns:
        The optical density of haematoxylin and that of eosin in red, green and blue, vectors of length 1, then the
        99th percentile of the amount of each.
    """
    density = _density(image)
    tissue = density[(density >= BACKGROUND).all(axis=1)]
    _, vectors = np.linalg.eigh(np.cov(tissue.T))
    # The plane of the two largest; the first points to where density is positive.
    plane = vectors[:, [2, 1]] * np.sign(vectors[:, [2, 1]].sum(axis=0) + 1e-12)
    angles = np.arctan2(*(tissue @ plane).T[::-1])
    ends = np.percentile(angles, [PERCENT, 100 - PERCENT])
    stains = (plane @ [np.cos(ends), np.sin(ends)]).T
    # Haematoxylin absorbs more red than eosin.
    stains = stains[np.argsort(-stains[:, 0])]
    if np.linalg.norm(np.cross(*stains)) < MIN_SINE:
        return None
    most = np.percentile(_amounts(density, stains), 99, axis=0)
    return np.concatenate([stains.ravel(), most]) if most.min() > 1e-3 else None


def _amounts(density: np.ndarray, stains: np.ndarray) -> np.ndarray:
    """How much of each stain (2, 3) the pixels (n, 3) have, (n, 2), by least squares."""
    return density @ np.linalg.pinv(stains)


def _change_macenko(image: np.ndarray, measured: np.ndarray, target: np.ndarray) -> np.ndarray:
    amounts = _amounts(_density(image), measured[:6].reshape(2, 3)) * target[6:] / measured[6:]
    return (256 * np.exp(-amounts @ target[:6].reshape(2, 3)) - 1).reshape(image.shape)


def _lab(image: np.ndarray) -> np.ndarray:
    """Ruderman's colour space: lightness, yellow to blue, red to green, (pixels, 3)."""
    return np.log10((image.reshape(-1, 3).astype(float) + 1) / 256 @ TO_LMS.T) @ TO_LAB.T


def _measure_reinhard(image: np.ndarray) -> np.ndarray | None:
    """The mean and the standard deviation of each channel of `_lab`.

    Reinhard et al., "Color transfer between images", 2001.
    """
    lab = _lab(image)
    deviation = lab.std(axis=0)
    return np.concatenate([lab.mean(axis=0), deviation]) if deviation.min() > MIN_DEVIATION else None


def _change_reinhard(image: np.ndarray, measured: np.ndarray, target: np.ndarray) -> np.ndarray:
    lab = (_lab(image) - measured[:3]) / measured[3:] * target[3:] + target[:3]
    rgb = 10 ** (lab @ np.linalg.inv(TO_LAB).T) @ np.linalg.inv(TO_LMS).T
    return (256 * rgb - 1).reshape(image.shape)


METHODS = {
    "macenko": Method(_measure_macenko, _change_macenko),
    "reinhard": Method(_measure_reinhard, _change_reinhard),
}
