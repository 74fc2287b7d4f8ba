"""Keras callbacks of a run: stop on NaN or on a signal, save the best model and the state, log the learning rate."""

from __future__ import annotations

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

# Files that the message names; nan_steps.csv has all.
NAMED = 3


class StopOnNaN(keras.callbacks.Callback):
    """Stops the run as soon as the loss is NaN or infinite, and names the steps, the learning rate and the files.

    Args:
        run: the run's folder, for nan_steps.csv.
        names: (rows,), the file names of the training rows.
        settings: of the run.
        rate: the learning rate as a function of the step.
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
        # Which may lie past the end of the epoch.
        first, self.done = self.done, min(batch + 1, self.params["steps"])
        if np.isfinite(logs["loss"]):
            return
        step = self.params["steps"] * self.epoch + first
        files, train = self._files(first, self.done), self.settings.train
        rates = "train.maximal_lr and train.initial_lr" if self.epoch < train.epochs else "train.fine_tune_lr"
        atomic_files.write_text(self.run / "nan_steps.csv", files.to_csv(index=False))
        raise InputError(
            f"the loss is {logs['loss']} in epoch {self.epoch + 1}, steps {first + 1} to {self.done}, at a learning "
            f"rate of {float(self.rate(step)):.3g}; the files are {', '.join(files.filename[:NAMED])}, ..., all in "
            f"{self.run}/nan_steps.csv; lower {rates}, or check these files"
        )

    def _files(self, first: int, end: int) -> pd.DataFrame:
        """Step, from 1, and file name of every row of the steps first to end - 1 of the epoch, counted from 0."""
        order = image_datasets.epoch_order(len(self.names), self.settings.data.seed, self.epoch).numpy()
        size = self.settings.train.batch_size
        rows = np.arange(first * size, min(end * size, len(order)))
        return pd.DataFrame({"step": rows // size + 1, "filename": self.names[order[rows]]})


class StopOnSignal(keras.callbacks.Callback):
    """Stops training after the step in which a signal was received; within a step TensorFlow may raise other errors.

    Args:
        received: the list that `signals.deferred` yields.
    """

    def __init__(self, received: list[int]) -> None:
        super().__init__()
        self.received = received

    def _stop_if_received(self, batch: int, logs: dict | None = None) -> None:
        if self.received:
            raise KeyboardInterrupt

    on_train_batch_end = on_test_batch_end = on_epoch_end = _stop_if_received


class SaveBest(keras.callbacks.Callback):
    """Saves the whole model with its metadata whenever the monitored loss is lower than in all epochs before.

    Keras' ModelCheckpoint cannot add metadata, would save the head alone where that is trained, and writes in place,
    so that a reader could meet half a file.

    Args:
        whole: the model to save, which shares the layers that learn with the one that is trained.
        path: of the checkpoint.
        metadata: as `checkpoint.save` takes it.
        monitor: the name of the loss in the logs, of `config.Train.monitor`.

    Attributes:
        best: the lowest monitored loss so far; a resumed run sets it.
    """

    def __init__(self, whole: keras.Model, path: Path, metadata: dict, monitor: str = "val_loss") -> None:
        super().__init__()
        self.whole, self.path, self.metadata, self.monitor, self.best = whole, path, metadata, monitor, math.inf

    def on_epoch_end(self, epoch: int, logs: dict) -> None:
        if logs[self.monitor] < self.best:
            self.best = logs[self.monitor]
            losses = {"val_loss": logs["val_loss"], self.monitor: self.best}
            checkpoint.save(self.whole, self.path, {**self.metadata, "epoch": epoch, **losses})


class SaveState(keras.callbacks.Callback):
    """Saves the state of training after each epoch, so that a stopped run can be resumed.

    Keras' BackupAndRestore stores neither the best loss so far nor the history, and deletes its folder at the end.

    Args:
        run: the run's folder.
        state: of the run when this phase starts.
        save_best: the callback that knows the best loss; it must come before this one.
    """

    def __init__(self, run: Path, state: resume.State, save_best: SaveBest) -> None:
        super().__init__()
        self.run, self.first, self.history, self.save_best = run, state.first, list(state.history), save_best

    def on_train_begin(self, logs: dict | None = None) -> None:
        # A later phase starts from the best checkpoint, which its own first epoch may replace.
        if self.first:
            self._save()

    def on_epoch_end(self, epoch: int, logs: dict) -> None:
        self.history.append({"epoch": epoch, **{key: float(value) for key, value in sorted(logs.items())}})
        self._save()
        resume.write_history(self.run, self.history)

    def _save(self) -> None:
        state = resume.State(len(self.history), self.save_best.best, tuple(self.history), self.first)
        resume.save(self.model, self.run, state)


class LogLearningRate(keras.callbacks.Callback):
    """Adds `learning_rate`, that of the end of the epoch, to the logs; must come before the callbacks that write them.

    Args:
        rate: the learning rate as a function of the step.
        steps: in an epoch.
    """

    def __init__(self, rate: keras.optimizers.schedules.LearningRateSchedule, steps: int) -> None:
        super().__init__()
        self.rate, self.steps = rate, steps

    def on_epoch_end(self, epoch: int, logs: dict) -> None:
        logs["learning_rate"] = float(self.rate(self.steps * (epoch + 1)))
