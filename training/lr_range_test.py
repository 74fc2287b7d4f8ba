"""The learning-rate range test: proposes initial_lr and maximal_lr of the cyclical schedule."""

from __future__ import annotations

import math
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from scipy.ndimage import gaussian_filter1d
from tqdm import tqdm

import config
import model
from devices import keras_stack
from images import plot_style
from safety import atomic_files
from safety.errors import InputError
from training import phases, training_plots

LOWEST, HIGHEST = 1e-6, 10.0
# Of the curve, about seven a decade.
POINTS = 50
# Standard deviation of the Gaussian that smooths the curve, in points.
SMOOTHING = 1.5
# The curve of a single head depends on its first weights as much as on the rate.
HEADS = 5
# Momentum spreads a gradient over 1 / (1 - momentum) steps. The rate takes at least three times as many for a decade,
# or the loss at a point would be that of much smaller rates.
LAGS_PER_DECADE = 3
# A loss of so many times the first one has diverged.
DIVERGED = 4.0


def sweep(phase: phases.Phase, settings: config.Settings) -> pd.DataFrame:
    """Trains five heads from fresh weights while the rate rises exponentially from 1e-6 to 10; restores the weights.

    Args:
        phase: of the head. A sweep has as many steps as the phase, or more where the momentum needs them.
        settings: of the run.

    Returns:
        A row for each point of the curve: rate, loss (training, mean since the point before) and val_loss (by
        which `train.select` chooses the epoch), both as the geometric mean over the five heads.
    """
    lags = LAGS_PER_DECADE * math.log10(HIGHEST / LOWEST) / (1 - settings.train.momentum)
    per_point = math.ceil(max(phase.batches.steps * phase.epochs.stop, lags) / POINTS)
    last = POINTS * per_point - 1
    rate = keras.optimizers.schedules.ExponentialDecay(LOWEST, last, HIGHEST / LOWEST)
    points = phase._replace(
        rate=rate,
        epochs=range(POINTS),
        batches=phase.batches._replace(train_from=lambda point: _from_step(phase, point * per_point), steps=per_point),
    )
    head = phase.trained
    before = head.get_weights()
    try:
        model.compile_model(head, settings.train, rate)
        keras_stack.build_optimizer(head)
        fresh = [variable.numpy() for variable in keras_stack.optimizer_variables(head.optimizer)]
        with tqdm(total=HEADS * POINTS, desc="rates", unit="point", delay=5) as bar:
            progress = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: bar.update())
            losses = []
            for number in range(HEADS):
                _freshen(head, settings.data.seed * HEADS + number, fresh)
                history = phases.fit(points, [progress], verbose=0)
                losses.append([history["loss"], history[settings.train.monitor]])
    finally:
        head.set_weights(before)
    rates = [float(rate(per_point * (point + 1) - 1)) for point in range(POINTS)]
    # A loss of 0 has no logarithm.
    loss, val_loss = np.exp(np.log(np.maximum(losses, keras.backend.epsilon())).mean(axis=0))
    return pd.DataFrame({"rate": rates, "loss": loss, "val_loss": val_loss})


def _from_step(phase: phases.Phase, step: int | tf.Tensor) -> tf.data.Dataset:
    """The batches of the phase from a step on, over and over."""
    again = phase.batches.train_from(0).repeat()
    rest = phase.batches.train_from(step // phase.batches.steps % phase.epochs.stop).concatenate(again)
    return rest.skip(step % phase.batches.steps)


def _freshen(head: keras.Model, seed: int, optimizer: list[np.ndarray]) -> None:
    """Sets new weights of the last layer, as `model.build` draws them, and the optimizer's first values."""
    kernel, bias = head.get_layer("head").weights
    kernel.assign(keras.initializers.GlorotUniform(seed)(kernel.shape))
    bias.assign(tf.zeros_like(bias))
    for variable, value in zip(keras_stack.optimizer_variables(head.optimizer), optimizer):
        variable.assign(value)


def propose(curve: pd.DataFrame) -> tuple[float, float]:
    """The rates at which the smoothed validation loss falls most steeply, and at which it is lowest.

    Smith, "Cyclical Learning Rates for Training Neural Networks", 2017, section 3.3: the triangle moves between the
    rate at which the accuracy begins to rise and the one at which it slows, turns ragged or falls. The exponential rise
    and the steepest fall are those of fast.ai (Howard and Gugger, 2020). The loss is that of the validation images: a
    head that can overfit its training images has their lowest loss where it diverges.

    Args:
        curve: of `sweep`.

    Returns:
        initial_lr and maximal_lr, with two digits.

    Raises:
        InputError: the loss is never lower than at the lowest rate.
    """
    loss = curve.val_loss.to_numpy()
    # Written so that NaN counts as diverged too.
    diverged = np.flatnonzero(~(loss <= DIVERGED * loss[0]))
    loss = gaussian_filter1d(loss[: diverged[0] if len(diverged) else None], SMOOTHING, mode="nearest")
    valley = int(np.argmin(loss)) if len(loss) else 0
    if valley == 0:
        raise InputError(
            f"--find-lr: the validation loss falls at no rate from {LOWEST:g} to {HIGHEST:g}, in the mean of {HEADS} "
            "heads, so no rate can be proposed; see rates.png, and try a larger data.valid_fraction or another "
            "data.seed"
        )
    steepest = int(np.argmin(np.gradient(loss)[:valley])) if valley > 1 else 0
    return float(f"{curve.rate[steepest]:.1e}"), float(f"{curve.rate[valley]:.1e}")


def report(curve: pd.DataFrame, folder: Path, notice: str) -> None:
    """Writes rates.csv and rates.png and prints the proposed rates as lines of config.yaml.

    Args:
        curve: of `sweep`.
        folder: for the files.
        notice: to print below the figure.

    Raises:
        InputError: no rates can be proposed; the files are written before.
    """
    atomic_files.write_text(folder / "rates.csv", curve.to_csv(index=False))
    plot_style.save(training_plots.rates(curve), folder / "rates.png", notice)
    print(f"loss at each rate: {folder}/rates.csv, {folder}/rates.png")
    low, high = propose(curve)
    plot_style.save(training_plots.rates(curve, (low, high)), folder / "rates.png", notice)
    print(f"for the section train of config.yaml:\n  initial_lr: {low:.1e}\n  maximal_lr: {high:.1e}")
