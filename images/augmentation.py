"""Augmentation: the one description of how draws change an image, for cached views and for fresh ones."""

from __future__ import annotations

import hashlib

import numpy as np
import tensorflow as tf

import config
from images import colour, turns, warp

# The draws of the warp come first: what was added later must not change them.
PARTS = [warp.DRAWS, turns.DRAWS, colour.DRAWS]
DRAWS = sum(PARTS)


def draws_of(name: str, seed: int) -> np.ndarray:
    """The random numbers (DRAWS,), -1 to 1, of a cached view.

    Args:
        name: of the view, the hash of the image's pixels and the number of the view: `HASH-0`.
        seed: of the run.
    """
    # NumPy promises that the stream of this generator never changes.
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return np.random.RandomState(np.frombuffer(digest, np.uint32)).uniform(-1, 1, DRAWS)


def augment(images: tf.Tensor, settings: config.Augment, draws: tf.Tensor) -> tf.Tensor:
    """Turns each image exactly, warps it, then varies its colours.

    Args:
        images: (n, size, size, 3), float32 RGB from 0 to 255.
        settings: the largest amount of each change; 0 or off leaves it out.
        draws: (n, DRAWS), float32, -1 to 1: the share of each amount.

    Returns:
        Images of the same shape, type and range.
    """
    warped, turned, varied = tf.split(draws, PARTS, axis=1)
    if settings.turns:
        images = turns.turn(images, turns.drawn(turned[:, 0]))
    return colour.vary(warp.warp(images, settings, warped), settings, varied)
