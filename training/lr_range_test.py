"""The learning-rate range test: between which rates the cyclical schedule should move."""

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
from images import plot_style
from safety import atomic_files
from safety.errors import InputError
from training import phases, training_plots

LOWEST, HIGHEST = 1e-6, 10.0
# Of the curve, some seven a decade.
POINTS = 50
# Deviation of the Gaussian that smooths the curve, in points.
SMOOTHING = 1.5
# One head's first weights can lie so well or ill that its curve says more of them than of the rate.
HEADS = 5
# Momentum spreads a gradient over 1 / (1 - momentum) steps; a rate's loss must not be that of a rate long past.
LAGS_PER_DECADE = 3
# A loss that is so many times the one that the sweep began with has left the valley for good.
DIVERGED = 4.0


def sweep(phase: phases.Phase, settings: config.Settings) -> pd.DataFrame:
    """Trains from fresh weights while the rate rises exponentially from 1e-6 to 10, five times, and puts all back.

    Args:
        phase: of the head, whose weights are the same before and after; a sweep has as many steps, or more where the
            momentum needs them.
        settings: of the run.

    Returns:
        A row a point of the curve: rate, loss (training, mean since the point before) and val_loss, both as the
        geometric mean over the five heads.
    """
    lags = LAGS_PER_DECADE * math.log10(HIGHEST / LOWEST) / (1 - settings.train.momentum)
    per_point = math.ceil(max(phase.steps * phase.last, lags) / POINTS)
    last = POINTS * per_point - 1
    rate = keras.optimizers.schedules.ExponentialDecay(LOWEST, last, HIGHEST / LOWEST)
    head = phase.trained
    before = head.get_weights()
    try:
        model.compile_model(head, settings.train, rate)
        head.optimizer.build(head.trainable_variables)
        with tqdm(total=HEADS * POINTS, desc="rates", unit="point", delay=5) as bar:
            moved = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: bar.update())
            losses = []
            for number in range(HEADS):
                _freshen(head, settings.data.seed * HEADS + number)
                options = {"validation_data": phase.valid_batches, "callbacks": [moved], "verbose": 0}
                fitted = head.fit(phase.batches_from(0).repeat(), epochs=POINTS, steps_per_epoch=per_point, **options)
                losses.append([fitted.history["loss"], fitted.history["val_loss"]])
    finally:
        head.set_weights(before)
    rates = [float(rate(per_point * (point + 1) - 1)) for point in range(POINTS)]
    # A loss of 0 has no logarithm.
    loss, val_loss = np.exp(np.log(np.maximum(losses, keras.backend.epsilon())).mean(axis=0))
    return pd.DataFrame({"rate": rates, "loss": loss, "val_loss": val_loss})


def _freshen(head: keras.Model, seed: int) -> None:
    """New weights for the last layer, as `model.build` draws them, and an optimizer without a past."""
    kernel, bias = head.get_layer("head").weights
    kernel.assign(keras.initializers.GlorotUniform(seed)(kernel.shape))
    for variable in [bias, *head.optimizer.variables]:
        variable.assign(tf.zeros_like(variable))


def propose(curve: pd.DataFrame) -> tuple[float, float]:
    """Where the smoothed validation loss falls most steeply, and its valley before it diverges.

    Smith, "Cyclical Learning Rates for Training Neural Networks", 2017, section 3.3: the triangle moves between the
    rate at which the accuracy begins to rise and the one at which it slows, turns ragged or falls. The exponential rise
    and the steepest fall are those of fast.ai (Howard and Gugger, 2020). The loss is that of the validation images: a
    head that can learn its training images by heart has the valley of their loss where it diverges.

    Args:
        curve: as `sweep` gives it.

    Returns:
        initial_lr and maximal_lr, with two digits.

    Raises:
        InputError: the loss falls nowhere below where it began.
    """
    loss = curve.val_loss.to_numpy()
    # Written so that NaN diverges too.
    diverged = np.flatnonzero(~(loss <= DIVERGED * loss[0]))
    loss = gaussian_filter1d(loss[: diverged[0] if len(diverged) else None], SMOOTHING, mode="nearest")
    valley = int(np.argmin(loss)) if len(loss) else 0
    if valley == 0:
        raise InputError(
            f"--find-lr: the validation loss falls at no rate from {LOWEST:g} to {HIGHEST:g}, in the mean of {HEADS} "
            "fresh heads, so none can be proposed; look at rates.png, and try a larger data.valid_fraction or another "
            "data.seed"
        )
    steepest = int(np.argmin(np.gradient(loss)[:valley])) if valley > 1 else 0
    return float(f"{curve.rate[steepest]:.1e}"), float(f"{curve.rate[valley]:.1e}")


def report(curve: pd.DataFrame, folder: Path, notice: str) -> None:
    """Writes rates.csv and rates.png into the folder and prints the proposal as lines of config.yaml.

    Raises:
        InputError: there is none; curve and figure are written all the same.
    """
    atomic_files.write_text(folder / "rates.csv", curve.to_csv(index=False))
    plot_style.save(training_plots.rates(curve), folder / "rates.png", notice)
    print(f"loss at each rate: {folder}/rates.csv, {folder}/rates.png")
    low, high = propose(curve)
    plot_style.save(training_plots.rates(curve, (low, high)), folder / "rates.png", notice)
    print(f"for the section train of config.yaml:\n  initial_lr: {low:.1e}\n  maximal_lr: {high:.1e}")
