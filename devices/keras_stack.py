"""Everything in which the two stacks differ: TensorFlow Addons on Keras 2, and Keras 3. No other file asks which it is.

Keras' private parts are touched on the Addons stack alone, whose versions are the last ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import keras
import tensorflow as tf
from matplotlib.axes import Axes

from devices.many_steps import Batches, ManySteps
from safety.errors import InputError

KERAS_3 = int(keras.__version__.partition(".")[0]) >= 3
# Whose versions environment.json records.
PACKAGES = ["tensorflow", "keras", *([] if KERAS_3 else ["tensorflow-addons"])]
if not KERAS_3:
    import tensorflow_addons as tfa


@keras.saving.register_keras_serializable("breakhis")
class CyclicalLearningRate(keras.optimizers.schedules.LearningRateSchedule):
    """A triangle from one rate to another, scaled in each cycle: the formula of TensorFlow Addons, in its order.

    Smith, "Cyclical Learning Rates for Training Neural Networks", 2017.

    Args:
        initial_learning_rate: at the foot of the triangle.
        maximal_learning_rate: at the peak of the first one.
        step_size: half a cycle, in steps.
        scale_fn: takes the number of the cycle, from 1, and returns the share of the first one's height.
    """

    def __init__(
        self, initial_learning_rate: float, maximal_learning_rate: float, step_size: int, scale_fn: Callable
    ) -> None:
        super().__init__()
        self.initial_learning_rate, self.maximal_learning_rate = initial_learning_rate, maximal_learning_rate
        self.step_size, self.scale_fn = step_size, scale_fn

    def __call__(self, step: int | tf.Tensor) -> tf.Tensor:
        initial, maximal, size, step = (
            tf.cast(value, tf.float32)
            for value in (self.initial_learning_rate, self.maximal_learning_rate, self.step_size, step)
        )
        cycle = tf.floor(1 + step / (2 * size))
        x = tf.abs(step / size - 2 * cycle + 1)
        return initial + (maximal - initial) * tf.maximum(0.0, 1 - x) * self.scale_fn(cycle)

    def get_config(self) -> dict:
        return {
            "initial_learning_rate": self.initial_learning_rate,
            "maximal_learning_rate": self.maximal_learning_rate,
            "step_size": self.step_size,
            "scale_fn": keras.saving.serialize_keras_object(self.scale_fn),
        }

    @classmethod
    def from_config(cls, config: dict) -> CyclicalLearningRate:
        return cls(**{**config, "scale_fn": keras.saving.deserialize_keras_object(config["scale_fn"])})


def cyclical_rate(
    initial: float, maximal: float, step_size: int, scale: Callable
) -> keras.optimizers.schedules.LearningRateSchedule:
    """The cyclical learning rate of the stack; arguments as in `CyclicalLearningRate`."""
    if KERAS_3:
        return CyclicalLearningRate(initial, maximal, step_size, scale)
    return tfa.optimizers.CyclicalLearningRate(initial, maximal, step_size, scale, scale_mode="cycle")


def refuse_several(what: str) -> None:
    """Refuses to train on several devices or hosts on Keras 3, whose public parts do not suffice for equal numbers.

    Args:
        what: names the setting that asks for them, and its value.

    Raises:
        InputError: this is the Keras 3 stack.
    """
    if KERAS_3:
        raise InputError(
            f"{what}: several devices need the Addons stack (Python 3.9 to 3.11, requirements.txt); "
            f"allowed with Keras {keras.__version__} is one device (train.strategy=one)"
        )


def fit(
    trained: keras.Model, batches: Batches, distribute: Callable, first: int, options: dict
) -> dict[str, list[float]]:
    """Keras' `fit` from an epoch on, in which every epoch has its own steps and no others.

    Args:
        trained: the model, compiled.
        batches: to train and validate on.
        distribute: of `strategy`, which cuts batches into the parts of several devices.
        first: the epoch to start with, from 0.
        options: further arguments of `fit`: epochs, callbacks, verbose.

    Returns:
        Keras' history: the name of a loss or metric -> its value in each epoch.
    """
    if isinstance(trained, ManySteps):
        build_optimizer(trained)
        trained.create_variables()
        train = batches.many_at_once(range(first, options["epochs"]), int(trained.steps_per_execution))
        if KERAS_3 and options["verbose"] == "auto":
            # A line an epoch: the bar of Keras 3 counts in calls from Python and runs past its end.
            options = {**options, "verbose": 2}
    else:
        train = distribute(batches.one_by_one(first), weighted=True)
    if batches.valid is not None:
        options = {**options, "validation_data": distribute(batches.valid), "validation_steps": batches.valid_steps}
    return trained.fit(train, initial_epoch=first, steps_per_epoch=batches.steps, shuffle=False, **options).history


def build_optimizer(trained: keras.Model) -> None:
    """Creates the optimizer's variables of a compiled model, unless they are there."""
    # Under float16 Keras 3 would create them anew and begin with its first loss scale.
    if not getattr(trained.optimizer, "built", False):
        trained.optimizer.build(trained.trainable_variables)


def optimizer_variables(optimizer: keras.optimizers.Optimizer) -> list:
    """All that an optimizer, which is built, changes in training, with its loss scale under float16."""
    # Keras 2 does not count these two among the optimizer's variables.
    scale = None if KERAS_3 else getattr(optimizer, "_loss_scale", None)
    return [*optimizer.variables, *([scale.current_loss_scale, scale.counter] if scale else [])]


def draw_confusion(
    labels: Sequence[str], predictions: Sequence[str], classes: list[str], shares: bool, axis: Axes
) -> None:
    """Draws a confusion matrix: by scikit-plot on the Addons stack, by scikit-learn on Keras 3.

    Args:
        labels: (n,), of the images.
        predictions: (n,), of the same images.
        classes: in the order of rows and columns.
        shares: whether to draw shares of the true class, or counts.
        axis: to draw on.
    """
    # Imported late: both import pyplot, and `plot_style` chooses its backend before that.
    if KERAS_3:
        from sklearn.metrics import ConfusionMatrixDisplay

        options = {"normalize": "true", "values_format": ".2g"} if shares else {}
        ConfusionMatrixDisplay.from_predictions(labels, predictions, labels=classes, cmap="Greys", ax=axis, **options)
        return
    from scikitplot.metrics import plot_confusion_matrix

    plot_confusion_matrix(labels, predictions, normalize=shares, labels=classes, ax=axis, cmap="Greys")
