"""Builds a base out of the table: its preprocessing, its layers, its weights, and where its blocks begin."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import keras
import tensorflow as tf

from backbones.table import BASES
from safety import hdf5_files
from safety.errors import InputError

SERVER = "https://storage.googleapis.com/tensorflow/keras-applications/"
CAFFE_MEAN = [103.939, 116.779, 123.68]
# Of RGB from 0 to 1.
TORCH_MEAN, TORCH_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NO_IMAGENET = (
    "model.weights: the ImageNet weights are not on this machine and cannot be fetched ({reason}); three ways out: "
    "run once with access to the network; put {name} into ~/.keras/models; "
    "or give model.weights=FILE.h5 or model.weights=random (no evidence)"
)


@keras.saving.register_keras_serializable("breakhis")
class CaffePreprocessing(keras.layers.Layer):
    """Turns RGB from 0 to 255 into BGR minus the ImageNet means."""

    def call(self, images: tf.Tensor) -> tf.Tensor:
        return images[..., ::-1] - tf.constant(CAFFE_MEAN, images.dtype)


def preprocessing(name: str) -> keras.layers.Layer:
    """The layer that turns RGB from 0 to 255 into what the base's published weights expect; the CNN takes caffe."""
    options = {"dtype": "float32", "name": "preprocessing"}
    mode = BASES[name].preprocessing if name in BASES else "caffe"
    if mode == "caffe":
        return CaffePreprocessing(**options)
    if mode == "tf":
        return keras.layers.Rescaling(1 / 127.5, -1.0, **options)
    scale = [1 / (255 * deviation) for deviation in TORCH_DEVIATION]
    offset = [-mean / deviation for mean, deviation in zip(TORCH_MEAN, TORCH_DEVIATION)]
    return keras.layers.Rescaling(scale, offset, **options)


def pretrained(name: str, weights: str) -> keras.Model:
    """A frozen base, from preprocessed images of any size to its feature maps.

    Args:
        name: in the table.
        weights: imagenet, random, or the path of a .h5 of the network without top.

    Raises:
        InputError: the weights are missing, cannot be fetched, or are those of another network.
    """
    about = BASES[name]
    options = {"include_preprocessing": False} if about.preprocesses else {}
    # As with trained weights, the base is the same for every data.seed, which is for the head.
    keras.utils.set_random_seed(0)
    with tf.variable_creator_scope(never_reduced):
        construct = getattr(keras.applications, about.constructor)
        network = construct(include_top=False, weights=None, input_shape=(None, None, 3), **options)
    # Keras' own names differ from those of the table.
    base = keras.Model(network.input, network.output, name=name)
    for layer in base.layers:
        if isinstance(layer, keras.layers.Dropout):
            # `fit` of Keras 3 runs a nested model in training mode, and a frozen base has constant features.
            layer.rate = 0
    if weights != "random":
        load(base, weights)
    base.trainable = False
    return base


def never_reduced(create: Callable, **options: object) -> tf.Variable:
    """Creates a variable that each device reads without asking the others: a frozen base is the same on all."""
    return create(**{**options, "synchronization": tf.VariableSynchronization.ON_WRITE})


def cnn() -> keras.Model:
    """A plain CNN to compare with, trained whole: four times convolution and halving, 32 to 256 channels."""
    several = tf.distribute.get_strategy().num_replicas_in_sync > 1
    images = keras.Input((None, None, 3))
    x = keras.layers.Rescaling(1 / 128)(images)
    for channels in (32, 64, 128, 256):
        x = keras.layers.Conv2D(channels, 3, padding="same", use_bias=False)(x)
        x = keras.layers.BatchNormalization(momentum=0.9, synchronized=several)(x)
        x = keras.layers.MaxPooling2D()(keras.layers.Activation("relu")(x))
    return keras.Model(images, x, name="cnn")


def load(base: keras.Model, weights: str) -> None:
    """Loads weights into a base; arguments and errors as in `pretrained`."""
    path = _fetch_imagenet(base.name) if weights == "imagenet" else Path(weights)
    if not path.is_file():
        raise InputError(f"model.weights: no file {weights!r}; allowed are imagenet, random or the path of a .h5")
    if path.suffix != ".h5":
        raise InputError(f"model.weights: allowed are imagenet, random or the path of a .h5, got {weights!r}")
    network = BASES[base.name].constructor if base.name in BASES else base.name
    try:
        hdf5_files.check(path)
        base.load_weights(path)
    except (ValueError, OSError, KeyError, AttributeError, TypeError, RuntimeError, MemoryError) as error:
        # The text of Keras 3 has several lines.
        reason = " ".join(str(error).split())
        raise InputError(
            f"model.weights: {path} does not hold the weights of {network} without top: {reason}"
        ) from None


def _fetch_imagenet(name: str) -> Path:
    about = BASES[name]
    try:
        url = SERVER + about.weights
        return Path(keras.utils.get_file(about.file, url, cache_subdir="models", file_hash=about.digest))
    except Exception as error:  # get_file raises nothing narrower
        raise InputError(NO_IMAGENET.format(name=about.file, reason=str(error).rpartition(" -- ")[2])) from None


def start(base: keras.Model, block: str) -> int:
    """The place of a block's first layer among `base.layers`; all layers from there on depend on its input alone."""
    about, names = BASES[base.name], [layer.name for layer in base.layers]
    if about.before:
        return names.index(about.before[about.blocks.index(block)]) + 1
    return next(number for number, name in enumerate(names) if f"_{block}_" in f"_{name}")


def last_convolution(base: keras.Model) -> str:
    """The name of the layer that Grad-CAM explains; empty if that is the base's output."""
    return BASES[base.name].last_convolution if base.name in BASES else ""
