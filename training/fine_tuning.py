"""Fine-tuning: the base is cut before one of its blocks; the part below stays frozen, the part above is trained."""

from __future__ import annotations

import keras

import config
import model
from backbones import networks


def below(network: keras.Model, block: str) -> keras.Model:
    """The frozen part of the model: from the pixels to the input of a block, (n, height, width, channels)."""
    base = model.base_of(network)
    first = networks.start(base, block)
    lower = keras.Model(base.input, base.layers[first].input, name="below")
    x = lower(network.get_layer("preprocessing").output, training=False)
    return keras.Model(network.input, x, name=base.layers[first - 1].name)


def above(network: keras.Model, block: str) -> keras.Model:
    """The trained part of the model: from the input of a block to the probability; it shares the model's layers."""
    base = model.base_of(network)
    cut = base.layers[networks.start(base, block)].input
    features = keras.Input(cut.shape[1:], name="features")
    # Inference mode, as in the whole model: BatchNorm keeps its statistics.
    x = keras.Model(cut, base.output, name="above")(features, training=False)
    return keras.Model(features, model.head(network)(network.get_layer("pooling")(x)), name="fine_tuned")


def unfreeze(network: keras.Model, block: str) -> None:
    """Makes the base trainable from a block on, except its BatchNorm layers; compile the model after this.

    A few small batches of a new data set would spoil BatchNorm's statistics, and its scale and shift were trained
    with these statistics.
    """
    base = model.base_of(network)
    first = networks.start(base, block)
    base.trainable = True
    for number, layer in enumerate(base.layers):
        layer.trainable = number >= first and not isinstance(layer, keras.layers.BatchNormalization)


def rate(train: config.Train) -> keras.optimizers.schedules.LearningRateSchedule:
    """The constant learning rate of the fine-tuning, as a function of the step."""
    # Decays by a factor of 1 at each step.
    return keras.optimizers.schedules.ExponentialDecay(train.fine_tune_lr, decay_steps=1, decay_rate=1.0)
