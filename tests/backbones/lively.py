"""Untrained bases whose features neither vanish nor explode, so that tests on them can fail; their BatchNorms."""

from __future__ import annotations

import keras
import numpy as np


def enliven(base: keras.Model, images: np.ndarray) -> None:
    """Gives BatchNorm the statistics of preprocessed images, as training would, and LayerScale the factor 1."""
    norms = [layer for layer in base.layers if isinstance(layer, keras.layers.BatchNormalization)]
    momentum = [layer.momentum for layer in norms]
    for layer in base.layers:
        if type(layer).__name__ == "LayerScale":
            layer.set_weights([np.ones_like(array) for array in layer.get_weights()])
    base.trainable = True
    for layer in norms:
        layer.momentum = 0.0
    base(images, training=True)
    for layer, kept in zip(norms, momentum):
        layer.momentum = kept
        # One variance for all channels: a channel that hardly varies would be nothing but amplified rounding.
        *others, variance = layer.get_weights()
        layer.set_weights([*others, np.full_like(variance, variance.mean())])
    base.trainable = False


def norms(network: keras.Model) -> int:
    """The number of BatchNorm layers, with those of models among the layers."""
    return sum(
        norms(layer) if isinstance(layer, keras.Model) else isinstance(layer, keras.layers.BatchNormalization)
        for layer in network.layers
    )
