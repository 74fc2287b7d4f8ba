"""The network: preprocessing, base, pooling, sigmoid head; the learning-rate schedule; compiling."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

import config
from backbones import networks
from backbones.table import BASES
from devices import keras_stack, precision, strategy
from devices.many_steps import ManySteps
from safety.errors import InputError

CLASSIFIER = "classifier"
# That the head takes in a call from Python; 16 MiB of ResNet50's features.
ROWS_AT_ONCE = 2048


def build(settings: config.Settings, load_weights: bool = True, width: int | None = None) -> keras.Model:
    """Builds the network, from pixels to the probability of malignant; a pretrained base is frozen, a plain CNN is not.

    Args:
        settings: of the run.
        load_weights: whether to load the base's weights that `model.weights` names; a checkpoint has its own.
        width: of the features that the network takes under `model.base: file`; a base knows its own.

    Returns:
        A model of images (n, size, size, 3), RGB from 0 to 255, or of features (n, width) under `model.base: file`,
        whose output is (n, 1), float32, from 0 to 1.

    Raises:
        InputError: the weights are missing, cannot be fetched, or are not those of the base without top.
    """
    name, weights = settings.model.base, settings.model.weights if load_weights else "random"
    if name in BASES:
        base = networks.pretrained(name, weights)
    keras.utils.set_random_seed(settings.data.seed)
    if name == "cnn":
        base = networks.cnn()
    inputs, x = _imported(width) if settings.model.imported else _pooled(name, base, settings.data.image_size)
    if settings.model.standardize and settings.model.frozen:
        x = keras.layers.Normalization(dtype="float32", name="standardize")(x)
    return keras.Model(inputs, keras.layers.Dense(1, "sigmoid", dtype="float32", name="head")(x), name="breakhis")


def _pooled(name: str, base: keras.Model, size: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Images (n, size, size, 3) and their pooled features (n, channels)."""
    images = keras.Input((size, size, 3), name="image")
    x = networks.preprocessing(name)(images)
    # A frozen base runs in inference mode, so that BatchNorm keeps its statistics.
    x = base(x, training=None if base.trainable else False)
    return images, keras.layers.GlobalAveragePooling2D(dtype="float32", name="pooling")(x)


def _imported(width: int | None) -> tuple[tf.Tensor, tf.Tensor]:
    """Features (n, width) that another encoder has pooled, twice."""
    if width is None:
        raise InputError("model.base: this command opens images, which is not possible with file")
    features = keras.Input((width,), name="image")
    return features, keras.layers.Activation("linear", dtype="float32", name="pooling")(features)


def base_of(network: keras.Model) -> keras.Model:
    """The part of the model that turns images into feature maps; it is one layer of the whole."""
    return next(layer for layer in network.layers if isinstance(layer, keras.Model))


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
    x = features = keras.Input(model.get_layer("pooling").output.shape[1:], name="features")
    for layer in model.layers[model.layers.index(model.get_layer("pooling")) + 1 :]:
        x = layer(x)
    return keras.Model(features, x, name="head_alone")


def split_head(head: keras.Model) -> tuple[list[keras.layers.Layer], keras.Model]:
    """The layers of a head that do not learn, if there are any, and a model of its last one, which does."""
    # The first layer is that of the input.
    *fixed, last = head.layers[1:]
    features = keras.Input(head.input_shape[1:], name="features")
    # Several devices each take a part of every batch, which only Keras' own training does.
    several = strategy.is_distributed()
    return fixed, (keras.Model if several else ManySteps)(features, last(features), name=CLASSIFIER)


def pooled(model: keras.Model) -> keras.Model:
    """The part of the model from the pixels to the pooled features (n, width), float32."""
    return keras.Model(model.input, model.get_layer("pooling").output, name="pooling")


def width(model: keras.Model) -> int:
    """The number of pooled features of an image."""
    return model.get_layer("pooling").output.shape[-1]


def standardize(model: keras.Model, mean: np.ndarray, variance: np.ndarray) -> None:
    """Sets the mean and variance (width,) of the training features in the standardising layer."""
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
    several = strategy.is_distributed()
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
        steps_per_execution=max(1, ROWS_AT_ONCE // train.batch_size) if model.name == CLASSIFIER else 1,
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
    for weight in model.weights:
        # `get_weights` would copy each array first.
        digest.update(tf.convert_to_tensor(weight))
    return digest.hexdigest()
