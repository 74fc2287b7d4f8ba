"""The network: preprocessing, ResNet50, pooling, sigmoid head; the learning-rate schedule; compiling."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

import config
from devices import keras_stack, precision
from devices.many_steps import ManySteps
from safety import hdf5_files
from safety.errors import InputError

CAFFE_MEAN = [103.939, 116.779, 123.68]
HEAD = "head_alone"
# That the head takes in a call from Python; 32 MiB of ResNet50's features.
ROWS_AT_ONCE = 4096
IMAGENET = "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5"
IMAGENET_URL = "https://storage.googleapis.com/tensorflow/keras-applications/resnet/"
IMAGENET_MD5 = "4d473c1dd8becc155b73f8504c6f6626"
NO_IMAGENET = (
    "model.weights: the ImageNet weights are not on this machine and cannot be fetched ({reason}); three ways out: "
    "run once with access to the network; put {name} into ~/.keras/models; "
    "or give model.weights=FILE.h5 or model.weights=random (no evidence)"
)


@keras.saving.register_keras_serializable("breakhis")
class CaffePreprocessing(keras.layers.Layer):
    """Turns RGB from 0 to 255 into BGR minus the ImageNet means, as ResNet50's published weights expect."""

    def call(self, images: tf.Tensor) -> tf.Tensor:
        return images[..., ::-1] - tf.constant(CAFFE_MEAN, images.dtype)


def build(settings: config.Settings, load_weights: bool = True) -> keras.Model:
    """Builds the network, from pixels to the probability of malignant; a ResNet50 is frozen, a plain CNN is not.

    Args:
        settings: of the run.
        load_weights: whether to load the base's weights that `model.weights` names; a checkpoint has its own.

    Returns:
        A model of images (n, size, size, 3), RGB from 0 to 255, whose output is (n, 1), float32, from 0 to 1.

    Raises:
        InputError: the weights are missing, cannot be fetched, or are not those of ResNet50 without top.
    """
    if settings.model.base == "resnet50":
        base = _resnet50(settings.model.weights if load_weights else "random")
    keras.utils.set_random_seed(settings.data.seed)
    if settings.model.base == "cnn":
        base = _cnn()
    size = settings.data.image_size
    images = keras.Input((size, size, 3), name="image")
    x = CaffePreprocessing(dtype="float32", name="preprocessing")(images)
    # A frozen base runs in inference mode, so that BatchNorm keeps its statistics.
    x = base(x, training=None if base.trainable else False)
    x = keras.layers.GlobalAveragePooling2D(dtype="float32", name="pooling")(x)
    if settings.model.standardize and not base.trainable:
        x = keras.layers.Normalization(dtype="float32", name="standardize")(x)
    return keras.Model(images, keras.layers.Dense(1, "sigmoid", dtype="float32", name="head")(x), name="breakhis")


def base_of(network: keras.Model) -> keras.Model:
    """The part of the model that turns images into feature maps; it is one layer of the whole."""
    return next(layer for layer in network.layers if isinstance(layer, keras.Model))


def _resnet50(weights: str) -> keras.Model:
    # As with trained weights, the base is the same for every data.seed, which is for the head.
    keras.utils.set_random_seed(0)
    with tf.variable_creator_scope(_never_reduced):
        base = keras.applications.ResNet50(include_top=False, weights=None, input_shape=(None, None, 3))
    if weights != "random":
        _load_base(base, weights)
    base.trainable = False
    return base


def _never_reduced(create: Callable, **options: object) -> tf.Variable:
    """Creates a variable that each device reads without asking the others: a frozen base is the same on all."""
    return create(**{**options, "synchronization": tf.VariableSynchronization.ON_WRITE})


def _cnn() -> keras.Model:
    """A plain CNN to compare with ResNet50: four times convolution and halving, 32 to 256 channels."""
    several = tf.distribute.get_strategy().num_replicas_in_sync > 1
    images = keras.Input((None, None, 3))
    x = keras.layers.Rescaling(1 / 128)(images)
    for channels in (32, 64, 128, 256):
        x = keras.layers.Conv2D(channels, 3, padding="same", use_bias=False)(x)
        x = keras.layers.BatchNormalization(momentum=0.9, synchronized=several)(x)
        x = keras.layers.MaxPooling2D()(keras.layers.Activation("relu")(x))
    return keras.Model(images, x, name="cnn")


def _load_base(base: keras.Model, weights: str) -> None:
    path = _fetch_imagenet() if weights == "imagenet" else Path(weights)
    if not path.is_file():
        raise InputError(f"model.weights: no file {weights!r}; allowed are imagenet, random or the path of a .h5")
    if path.suffix != ".h5":
        raise InputError(f"model.weights: allowed are imagenet, random or the path of a .h5, got {weights!r}")
    try:
        hdf5_files.check(path)
        base.load_weights(path)
    except (ValueError, OSError, KeyError, AttributeError, TypeError, RuntimeError, MemoryError) as error:
        raise InputError(f"model.weights: {path} does not hold the weights of ResNet50 without top: {error}") from None


def _fetch_imagenet() -> Path:
    try:
        url = IMAGENET_URL + IMAGENET
        return Path(keras.utils.get_file(IMAGENET, url, cache_subdir="models", file_hash=IMAGENET_MD5))
    except Exception as error:  # get_file raises nothing narrower
        raise InputError(NO_IMAGENET.format(name=IMAGENET, reason=str(error).rpartition(" -- ")[2])) from None


def feature_function(part: keras.Model, batch: int) -> Callable[[tf.Tensor], tf.Tensor]:
    """A part of the model as one graph, for inference.

    A frozen graph, with its weights as constants, is hardly faster and takes three times the memory.

    Args:
        part: from the pixels on.
        batch: images that it takes at a time.

    Returns:
        A function of images (batch, size, size, 3), float32.
    """
    shape = tf.TensorSpec((batch, *part.input_shape[1:]), tf.float32)
    xla = precision.use_xla()
    return tf.function(lambda images: part(images, training=False), input_signature=[shape], jit_compile=xla)


def head(model: keras.Model) -> keras.Model:
    """The part of the model from the pooled features to the probability; it shares the model's layers."""
    features = keras.Input(model.get_layer("pooling").output.shape[1:], name="features")
    x = features
    for layer in model.layers[model.layers.index(model.get_layer("pooling")) + 1 :]:
        x = layer(x)
    # Several devices each take a part of every batch, which only Keras' own training does.
    several = tf.distribute.get_strategy().num_replicas_in_sync > 1
    return (keras.Model if several else ManySteps)(features, x, name=HEAD)


def pooled(model: keras.Model) -> keras.Model:
    """The part of the model from the pixels to the pooled features (n, 2048), float32."""
    return keras.Model(model.input, model.get_layer("pooling").output, name="pooling")


def standardize(model: keras.Model, mean: np.ndarray, variance: np.ndarray) -> None:
    """Sets the mean and variance (2048,) of the training features in the standardising layer."""
    layer = model.get_layer("standardize")
    layer.set_weights([mean, floored(variance), np.array(0)])
    layer.finalize_state()


def floored(variance: np.ndarray) -> np.ndarray:
    """The variance of each feature, but at least a thousandth of the mean variance."""
    # A feature that hardly varies in training would dominate at the first new image if divided by its deviation.
    return np.maximum(variance, 1e-3 * variance.mean() + keras.backend.epsilon())


@keras.saving.register_keras_serializable("breakhis")
def halve_each_cycle(cycle: tf.Tensor) -> tf.Tensor:
    """The share of the first cycle's height: 1, 1/2, 1/4, ..."""
    return 1 / 2.0 ** (cycle - 1)


def cyclical_rate(train: config.Train, rows: int) -> keras.optimizers.schedules.LearningRateSchedule:
    """The learning rate as a function of the step: a triangle from initial_lr to maximal_lr, halved at each cycle.

    Smith, "Cyclical Learning Rates for Training Neural Networks", 2017 (triangular2).

    Args:
        train: the section `train` of the settings.
        rows: of the upsampled training set; half a cycle is step_size_epochs times rows // batch_size steps.
    """
    step_size = train.step_size_epochs * max(1, rows // train.batch_size)
    return keras_stack.cyclical_rate(train.initial_lr, train.maximal_lr, step_size, halve_each_cycle)


@keras.saving.register_keras_serializable("breakhis")
class BalancedLoss(keras.metrics.Metric):
    """The mean of the two classes' mean binary cross-entropies: each class counts equally, whatever its size."""

    def __init__(self, name: str = "balanced_loss", **options: object) -> None:
        super().__init__(name=name, **options)
        self.total = self.add_weight(name="total", shape=(2,), initializer="zeros")
        self.count = self.add_weight(name="count", shape=(2,), initializer="zeros")

    def update_state(self, y_true: tf.Tensor, y_pred: tf.Tensor, sample_weight: tf.Tensor | None = None) -> None:
        """Adds a batch: labels and probabilities (n, 1); weights are not used, so that each row counts once."""
        y_true = tf.cast(y_true, y_pred.dtype)
        losses = keras.losses.binary_crossentropy(y_true, y_pred)
        classes = tf.concat([1 - y_true, y_true], axis=1)
        self.total.assign_add(tf.linalg.matvec(classes, losses, transpose_a=True))
        self.count.assign_add(tf.reduce_sum(classes, axis=0))

    def reset_state(self) -> None:
        """Starts a new epoch; Keras 2's own reset assigns scalars."""
        for variable in (self.total, self.count):
            variable.assign(tf.zeros((2,)))

    def result(self) -> tf.Tensor:
        """The loss, in nats; a class without rows counts as 0."""
        return tf.reduce_mean(tf.math.divide_no_nan(self.total, self.count))


def compile_model(
    model: keras.Model,
    train: config.Train,
    rate: keras.optimizers.schedules.LearningRateSchedule,
    measured: bool = True,
) -> None:
    """Compiles a model with SGD, binary cross-entropy, and the metrics of the thesis and AUC.

    Args:
        model: the whole network or a part that ends with the head.
        train: the section `train` of the settings, for the momentum and the loss that chooses the epoch.
        rate: the learning rate as a function of the step.
        measured: whether to compute the metrics; else the loss alone.
    """
    several = tf.distribute.get_strategy().num_replicas_in_sync > 1
    if several:
        # Keras has already summed the metrics over the devices; its default would sum them again for the progress bar.
        model.distribute_reduction_method = "first"
    model.compile(
        optimizer=keras.optimizers.SGD(rate, momentum=train.momentum),
        loss="binary_crossentropy",
        metrics=[
            # With several devices Keras' own loss of an epoch is the mean over the parts of batches, not over the rows.
            *([keras.metrics.BinaryCrossentropy(name="loss")] if several else []),
            *(_metrics(train) if measured else []),
        ],
        weighted_metrics=[],
        # A step of the head is shorter than its call from Python.
        steps_per_execution=max(1, ROWS_AT_ONCE // train.batch_size) if model.name == HEAD else 1,
        # XLA adds in another order; Keras 3 would choose it by itself.
        jit_compile=False,
    )


def _metrics(train: config.Train) -> list:
    return [
        "accuracy",
        keras.metrics.Precision(name="precision"),
        keras.metrics.Recall(name="recall"),
        keras.metrics.AUC(name="auc"),
        *([BalancedLoss()] if train.select == "balanced" else []),
    ]


def weights_hash(model: keras.Model) -> str:
    """SHA-256 of a model's weights, in hex."""
    digest = hashlib.sha256()
    for array in model.get_weights():
        digest.update(array.tobytes())
    return digest.hexdigest()
