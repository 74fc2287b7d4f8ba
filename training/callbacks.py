"""What a long run watches for: a loss that is no number, and the wish that it stop."""

from __future__ import annotations

import json
import math
from pathlib import Path

import keras
import numpy as np
import pandas as pd

import config
from images import image_datasets
from safety import atomic_files
from safety.errors import InputError
from training import checkpoint, resume

NAMED = 3


class StopOnNaN(keras.callbacks.Callback):
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
        names, train = self._names(first, self.done), self.settings.train
        rates = "train.maximal_lr and train.initial_lr" if self.epoch < train.epochs else "train.fine_tune_lr"
        atomic_files.write_text(self.run / "no_number.csv", names.to_csv(index=False))
        raise InputError(
            f"the loss is {logs['loss']} in epoch {self.epoch + 1}, steps {first + 1} to {self.done}, at a learning "
            f"rate of {float(self.rate(step)):.3g}; the files are {', '.join(names.filename[:NAMED])}, ..., all in "
            f"{self.run}/no_number.csv; lower {rates}, or look at these files"
        )

    def _names(self, first: int, after: int) -> pd.DataFrame:
        """Step and file name of every row of these steps of the epoch, counted from 0."""
        order = image_datasets.epoch_order(len(self.names), self.settings.data.seed, self.epoch).numpy()
        size = self.settings.train.batch_size
        rows = np.arange(first * size, min(after * size, len(order)))
        return pd.DataFrame({"step": rows // size + 1, "filename": self.names[order[rows]]})


class StopOnSignal(keras.callbacks.Callback):
    """Ends training after the step in which a signal came: TensorFlow, stopped within one, may raise other errors.

    Args:
        received: what `signals.deferred` yields.
    """

    def __init__(self, received: list[int]) -> None:
        super().__init__()
        self.received = received

    def _stop_if_asked(self, batch: int, logs: dict | None = None) -> None:
        if self.received:
            raise KeyboardInterrupt

    on_train_batch_end = on_test_batch_end = on_epoch_end = _stop_if_asked


class SaveBest(keras.callbacks.Callback):
    """Saves the model, with what it says of itself, whenever the validation loss is lower than ever.

    Keras' ModelCheckpoint cannot put anything into the file, would save the part that is trained where that is the
    head alone, and a reader could meet half of it.

    Args:
        whole: the model to save, which shares its layers with the one that is trained.
        path: of the checkpoint.
        about: what it says of itself, as `save` takes it.

    Attributes:
        best: the lowest loss of the epochs so far; a run that goes on puts it back.
    """

    def __init__(self, whole: keras.Model, path: Path, about: dict) -> None:
        super().__init__()
        self.whole, self.path, self.about, self.best = whole, path, about, math.inf

    def on_epoch_end(self, epoch: int, logs: dict) -> None:
        if logs["val_loss"] < self.best:
            self.best = logs["val_loss"]
            checkpoint.save(self.whole, self.path, {**self.about, "epoch": epoch, "val_loss": self.best})


class SaveState(keras.callbacks.Callback):
    """Writes after each epoch all that training needs to go on, as one file that is there as a whole or not at all.

    Keras' BackupAndRestore keeps neither the best loss so far nor the history, and deletes its folder at the end.

    Args:
        run: the run's folder.
        state: where the run stands when training begins.
        keeper: whose best loss is kept.
    """

    def __init__(self, run: Path, state: resume.State, keeper: SaveBest) -> None:
        super().__init__()
        self.run, self.first, self.history, self.keeper = run, state.first, list(state.history), keeper

    def on_train_begin(self, logs: dict | None = None) -> None:
        # A later phase begins from the best checkpoint, which its own first epoch may replace.
        if self.first:
            self._write()

    def on_epoch_end(self, epoch: int, logs: dict) -> None:
        self.history.append({"epoch": epoch, **{key: float(value) for key, value in sorted(logs.items())}})
        self._write()
        resume.write_history(self.run, self.history)

    def _write(self) -> None:
        says = resume.State(len(self.history), self.keeper.best, tuple(self.history), self.first)._asdict()
        arrays = {f"{number:06}": variable.numpy() for number, variable in enumerate(resume.variables(self.model))}
        with atomic_files.replacing(self.run / resume.STATE) as beside:
            np.savez(beside, says=json.dumps(says), **arrays)


class LogLearningRate(keras.callbacks.Callback):
    """Adds `learning_rate` at the end of each epoch to the logs.

    Args:
        rate: the schedule.
        steps: of an epoch.
    """

    def __init__(self, rate: keras.optimizers.schedules.LearningRateSchedule, steps: int) -> None:
        super().__init__()
        self.rate, self.steps = rate, steps

    def on_epoch_end(self, epoch: int, logs: dict) -> None:
        logs["learning_rate"] = float(self.rate(self.steps * (epoch + 1)))
