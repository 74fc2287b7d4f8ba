"""Fine-tuning: ResNet50 cut at one of its blocks, what is below kept frozen, what is above trained with the head."""

from __future__ import annotations

import keras

import config
import model


def below(network: keras.Model, block: str) -> keras.Model:
    """The part of the model from the pixels to what goes into a block, (n, height, width, channels); never trained."""
    base, cut = model.base_of(network), _cut(network, block)
    lower = keras.Model(base.input, cut.output, name="below")
    return keras.Model(network.input, lower(network.get_layer("preprocessing").output, training=False), name=cut.name)


def above(network: keras.Model, block: str) -> keras.Model:
    """The part of the model from what goes into a block to the probability; its layers are the model's own."""
    cut = _cut(network, block).output
    features = keras.Input(cut.shape[1:], name="features")
    # Inference mode, as in the whole model: BatchNorm keeps its statistics.
    x = keras.Model(cut, model.base_of(network).output, name="above")(features, training=False)
    return keras.Model(features, model.head(network)(network.get_layer("pooling")(x)), name="fine_tuned")


def unfreeze(network: keras.Model, block: str) -> None:
    """Lets the base be trained from a block on, all but its BatchNorm layers; compile the model after this.

    A few small batches of a new data set would spoil BatchNorm's statistics, and its scale and shift belong to them.
    """
    base = model.base_of(network)
    first = base.layers.index(_cut(network, block)) + 1
    base.trainable = True
    for number, layer in enumerate(base.layers):
        layer.trainable = number >= first and not isinstance(layer, keras.layers.BatchNormalization)


def rate(train: config.Train) -> keras.optimizers.schedules.LearningRateSchedule:
    """The constant learning rate of the fine-tuning, as a function of the step."""
    # A decay to the same rate at each step.
    return keras.optimizers.schedules.ExponentialDecay(train.fine_tune_lr, decay_steps=1, decay_rate=1.0)


def _cut(network: keras.Model, block: str) -> keras.layers.Layer:
    """The layer whose output goes into the block."""
    layers = model.base_of(network).layers
    return layers[next(number for number, layer in enumerate(layers) if layer.name.startswith(f"{block}_")) - 1]
