"""A frozen part of the network in the form in which it only computes: each BatchNorm is folded into its convolution.

In inference BatchNorm multiplies and shifts every channel by constants, and so does a convolution's kernel and bias.
The folded part gives the same output, but for the rounding of float32, with a pass less over the feature maps.

Untrained layers amplify that rounding, so all that computes features or probabilities by a frozen part takes this form:
the extraction, `train.features=end_to_end`, evaluation and prediction.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

import model
from backbones import networks

CONVOLUTIONS = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D)


class Nothing(keras.layers.Layer):
    """Takes the place, and the arguments, of a BatchNorm that has been folded."""

    def call(self, inputs: tf.Tensor, training: bool | None = None, mask: tf.Tensor | None = None) -> tf.Tensor:
        return inputs


def fold(part: keras.Model, float32: bool = False) -> keras.Model:
    """A copy of a frozen part, in which no BatchNorm is left that directly follows a convolution.

    Args:
        part: a functional model; models among its layers are folded as well.
        float32: whether the copy computes in float32; else each layer does in its own precision.

    Returns:
        A model with weights of its own, of the same name, input and output.
    """
    followers = _followers(part)
    folded = set(followers.values())

    def copy(layer: keras.layers.Layer) -> keras.layers.Layer:
        if _is_folded_too(layer):
            return fold(layer, float32)
        if layer.name in folded:
            return Nothing(dtype="float32" if float32 else layer.dtype_policy, name=layer.name)
        options = {"use_bias": True} if layer.name in followers else {}
        described = layer.get_config()
        return type(layer).from_config({**(_in_float32(described) if float32 else described), **options})

    with tf.variable_creator_scope(networks.never_reduced):
        same = keras.models.clone_model(part, clone_function=copy)
    for layer in part.layers:
        if layer.get_weights() and not _is_folded_too(layer) and layer.name not in folded:
            norm = followers.get(layer.name)
            weights = _folded(layer, part.get_layer(norm)) if norm else layer.get_weights()
            same.get_layer(layer.name).set_weights(weights)
    same.trainable = False
    return same


def compose(before: keras.Model, after: keras.Model) -> keras.Model:
    """A model of a frozen part, folded with the weights that it has now, and of what follows it.

    Args:
        before: a functional model, from the pixels on; it is copied.
        after: takes its output; its layers are shared.
    """
    return keras.Model(before.input, after(fold(before)(before.input, training=False)), name="whole")


def of_network(network: keras.Model, frozen: bool) -> keras.Model:
    """The form in which a whole network is trained and predicts: folded up to the head, or as it is if not frozen."""
    return compose(model.pooled(network), model.head(network)) if frozen else network


def _in_float32(described: Any) -> Any:
    """The configuration of a layer, or a part of it, with float32 as the precision of all layers in it."""
    if isinstance(described, dict):
        return {key: "float32" if key == "dtype" else _in_float32(value) for key, value in described.items()}
    return [_in_float32(value) for value in described] if isinstance(described, list) else described


def _is_folded_too(layer: keras.layers.Layer) -> bool:
    # The Sequentials of ConvNeXt have no BatchNorm, and Keras 2 would copy them without weights.
    return isinstance(layer, keras.Model) and not isinstance(layer, keras.Sequential)


def _followers(part: keras.Model) -> dict[str, str]:
    """Name of a convolution -> name of the BatchNorm that is the only layer to read its output."""
    readers: dict[int, list[keras.layers.Layer]] = {}
    for layer in part.layers:
        inputs = layer.input if isinstance(layer.input, (list, tuple)) else [layer.input]
        for tensor in inputs:
            readers.setdefault(id(tensor), []).append(layer)
    outputs = {id(tensor) for tensor in part.outputs}
    return {
        layer.name: found[0].name
        for layer in part.layers
        if isinstance(layer, CONVOLUTIONS) and id(layer.output) not in outputs
        if layer.activation is keras.activations.linear
        for found in [readers.get(id(layer.output), [])]
        if len(found) == 1 and isinstance(found[0], keras.layers.BatchNormalization)
    }


def _folded(convolution: keras.layers.Layer, norm: keras.layers.BatchNormalization) -> list[np.ndarray]:
    """Kernel and bias of the convolution with the BatchNorm in them."""
    kernel, *bias = convolution.get_weights()
    names = [*["gamma"] * norm.scale, *["beta"] * norm.center, "mean", "variance"]
    values = dict(zip(names, norm.get_weights()))
    factor = values.get("gamma", 1) / np.sqrt(values["variance"] + norm.epsilon)
    shift = (sum(bias) - values["mean"]) * factor + values.get("beta", 0)
    # A depthwise kernel is (height, width, channels, multiplier), others (height, width, inputs, channels).
    depthwise = isinstance(convolution, keras.layers.DepthwiseConv2D)
    return [kernel * (factor.reshape(kernel.shape[2:]) if depthwise else factor), shift]
