"""Augmentation of colour: how strongly each stain has taken, and the microscope's contrast and brightness."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

import config

# Random numbers for each image: factor and addend of haematoxylin, eosin and residual; contrast; brightness.
DRAWS = 8
# The optical density of haematoxylin, eosin and the residual in red, green and blue: Ruifrok and Johnston,
# "Quantification of histochemical staining by color deconvolution", 2001. Their third stain, DAB, is the residual here.
STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])


def vary(images: tf.Tensor, augment: config.Augment, draws: tf.Tensor) -> tf.Tensor:
    """Varies stain, contrast and brightness of each image.

    Args:
        images: (n, height, width, 3), float32 RGB from 0 to 255.
        augment: the largest amount of each; 0 leaves it out.
        draws: (n, DRAWS), float32, -1 to 1: the share of each amount.

    Returns:
        Images of the same shape, type and range.
    """
    if not (augment.stain or augment.contrast or augment.brightness):
        return images
    factors, addends, contrast, brightness = tf.split(draws[:, None, None], [3, 3, 1, 1], axis=-1)
    if augment.stain:
        images = _stain(images, 1 + augment.stain * factors, augment.stain * addends)
    if augment.contrast:
        # As a zoom: more and less contrast are equally strong.
        mean = tf.reduce_mean(images, axis=(1, 2, 3), keepdims=True)
        images = mean + (images - mean) * (1.0 + augment.contrast) ** contrast
    if augment.brightness:
        images = images + 255 * augment.brightness * brightness
    return tf.clip_by_value(images, 0, 255)


def _stain(images: tf.Tensor, factors: tf.Tensor, addends: tf.Tensor) -> tf.Tensor:
    """Changes how much of each stain a pixel has; the result may be outside of 0 to 255.

    Tellez et al., "Whole-Slide Mitosis Detection in H&E Breast Histology Using PHH3 as a Reference to Train Distilled
    Stain-Invariant Convolutional Networks", 2018.

    Args:
        images: (n, height, width, 3), float32 RGB from 0 to 255.
        factors: (n, 1, 1, 3), of haematoxylin, eosin and residual.
        addends: (n, 1, 1, 3), in optical density (natural logarithm), added after the factors.
    """
    # 1 more than the value, so that black has a finite density.
    density = -tf.math.log((images + 1) / 256)
    amounts = tf.tensordot(density, tf.constant(np.linalg.inv(STAINS), tf.float32), 1) * factors + addends
    return 256 * tf.exp(-tf.tensordot(amounts, tf.constant(STAINS, tf.float32), 1)) - 1
