"""What a long run watches for: a loss that is no number, and the wish that it stop."""

from __future__ import annotations

from pathlib import Path

import config  # first, because it quiets TensorFlow
from config import InputError

import keras
import numpy as np
import pandas as pd

import files
import pictures

NAMED = 3


class StopOnNoNumber(keras.callbacks.Callback):
    """Stops the run, and names the steps, the learning rate and the files, as soon as the loss is NaN or infinite.

    Args:
        run: the run's folder, for the list of the files.
        names: (rows,), the file names of the training rows.
        settings: of the run.
        rate: the schedule of the learning rate.
    """

    def __init__(
        self,
        run: Path,
        names: pd.Series,
        settings: config.Settings,
        rate: keras.optimizers.schedules.LearningRateSchedule,
    ) -> None:
        super().__init__()
        self.run, self.names, self.settings, self.rate = run, names.to_numpy(), settings, rate

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        self.epoch, self.done = epoch, 0

    def on_train_batch_end(self, batch: int, logs: dict) -> None:
        """Keras calls this once for all steps that it runs in one go, with the number of the last."""
        first, self.done = self.done, batch + 1
        if np.isfinite(logs["loss"]):
            return
        step = self.params["steps"] * self.epoch + first
        names = self._names(first, self.done)
        files.write_text(self.run / "no_number.csv", names.to_csv(index=False))
        raise InputError(
            f"the loss is {logs['loss']} in epoch {self.epoch + 1}, steps {first + 1} to {self.done}, at a learning "
            f"rate of {float(self.rate(step)):.3g}; the files are {', '.join(names.filename[:NAMED])}, ..., all in "
            f"{self.run}/no_number.csv; lower train.maximal_lr and train.initial_lr, or look at these files"
        )

    def _names(self, first: int, after: int) -> pd.DataFrame:
        """Step and file name of every row of these steps of the epoch, counted from 0."""
        order = pictures.epoch_order(len(self.names), self.settings.data.seed, self.epoch).numpy()
        size = self.settings.train.batch_size
        rows = np.arange(first * size, min(after * size, len(order)))
        return pd.DataFrame({"step": rows // size + 1, "filename": self.names[order[rows]]})


class StopBetweenSteps(keras.callbacks.Callback):
    """Ends training after the step in which a signal came: TensorFlow, stopped within one, may raise other errors.

    Args:
        came: what `stops.waiting` yields.
    """

    def __init__(self, came: list[int]) -> None:
        super().__init__()
        self.came = came

    def _stop_if_asked(self, batch: int, logs: dict | None = None) -> None:
        if self.came:
            raise KeyboardInterrupt

    on_train_batch_end = on_test_batch_end = on_epoch_end = _stop_if_asked
