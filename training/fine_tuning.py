"""Fine-tuning: ResNet50 is cut before one of its blocks; the part below stays frozen, the part above is trained."""

from __future__ import annotations

import keras

import config
import model


def below(network: keras.Model, block: str) -> keras.Model:
    """The frozen part of the model: from the pixels to the input of a block, (n, height, width, channels)."""
    base, cut = model.base_of(network), _cut(network, block)
    lower = keras.Model(base.input, cut.output, name="below")
    return keras.Model(network.input, lower(network.get_layer("preprocessing").output, training=False), name=cut.name)


def above(network: keras.Model, block: str) -> keras.Model:
    """The trained part of the model: from the input of a block to the probability; it shares the model's layers."""
    cut = _cut(network, block).output
    features = keras.Input(cut.shape[1:], name="features")
    # Inference mode, as in the whole model: BatchNorm keeps its statistics.
    x = keras.Model(cut, model.base_of(network).output, name="above")(features, training=False)
    return keras.Model(features, model.head(network)(network.get_layer("pooling")(x)), name="fine_tuned")


def unfreeze(network: keras.Model, block: str) -> None:
    """Makes the base trainable from a block on, except its BatchNorm layers; compile the model after this.

    A few small batches of a new data set would spoil BatchNorm's statistics, and its scale and shift were trained
    with these statistics.
    """
    base = model.base_of(network)
    first = base.layers.index(_cut(network, block)) + 1
    base.trainable = True
    for number, layer in enumerate(base.layers):
        layer.trainable = number >= first and not isinstance(layer, keras.layers.BatchNormalization)


def rate(train: config.Train) -> keras.optimizers.schedules.LearningRateSchedule:
    """The constant learning rate of the fine-tuning, as a function of the step."""
    # Decays by a factor of 1 at each step.
    return keras.optimizers.schedules.ExponentialDecay(train.fine_tune_lr, decay_steps=1, decay_rate=1.0)


def _cut(network: keras.Model, block: str) -> keras.layers.Layer:
    """The layer whose output is the input of the block."""
    layers = model.base_of(network).layers
    return layers[next(number for number, layer in enumerate(layers) if layer.name.startswith(f"{block}_")) - 1]
