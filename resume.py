"""A run that was stopped and goes on: what is kept after each epoch, and how a run takes it up again."""

from __future__ import annotations

import contextlib
import json
import math
import sys
import zipfile
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import config  # first, because it quiets TensorFlow
from config import InputError

import keras
import numpy as np
import pandas as pd
from filelock import AcquireReturnProxy, FileLock, Timeout

import checkpoint
import files
import splits

STATE = "state.npz"


class State(NamedTuple):
    """Where a run stands.

    Attributes:
        epoch: the next one, from 0.
        best: the lowest validation loss so far.
        history: a row an epoch, as in history.csv.
    """

    epoch: int = 0
    best: float = math.inf
    history: tuple[dict, ...] = ()


class KeepState(keras.callbacks.Callback):
    """Writes after each epoch all that training needs to go on, as one file that is there as a whole or not at all.

    Keras' BackupAndRestore keeps neither the best loss so far nor the history, and deletes its folder at the end.

    Args:
        run: the run's folder.
        state: where the run stands when training begins.
        keeper: whose best loss is kept.
    """

    def __init__(self, run: Path, state: State, keeper: checkpoint.KeepBest) -> None:
        super().__init__()
        self.run, self.history, self.keeper = run, list(state.history), keeper

    def on_epoch_end(self, epoch: int, logs: dict) -> None:
        self.history.append({"epoch": epoch, **{key: float(value) for key, value in sorted(logs.items())}})
        says = {"epoch": epoch + 1, "best": self.keeper.best, "history": self.history}
        arrays = {f"{number:06}": variable.numpy() for number, variable in enumerate(_variables(self.model))}
        with files.replacing(self.run / STATE) as beside:
            np.savez(beside, says=json.dumps(says), **arrays)
        write_history(self.run, self.history)


def write_history(run: Path, history: list[dict]) -> None:
    """Writes history.csv; it holds nothing that differs between equal runs, the time for instance."""
    files.write_text(run / "history.csv", pd.DataFrame(history).to_csv(index=False))


def restore(trained: keras.Model, run: Path) -> State:
    """Puts the compiled model, its optimizer and history.csv where the run's last whole epoch left them.

    Returns:
        Where the run stands; the beginning if no epoch was finished.

    Raises:
        InputError: the file is damaged, or is the state of another network.
    """
    path = run / STATE
    if not path.is_file():
        return State()
    try:
        with np.load(path, allow_pickle=False) as kept:
            says = json.loads(str(kept["says"]))
            arrays = [kept[name] for name in sorted(set(kept.files) - {"says"})]
        state = State(says["epoch"], says["best"], tuple(says["history"]))
        trained.optimizer.build(trained.trainable_variables)
        variables = _variables(trained)
        if len(arrays) != len(variables):
            raise ValueError(f"needed are {len(variables)} arrays, came {len(arrays)}")
        for variable, array in zip(variables, arrays):
            variable.assign(array)
    except (OSError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: damaged, or the state of another network: {error}") from None
    write_history(run, list(state.history))
    return state


def _variables(trained: keras.Model) -> list:
    """All that training changes: the weights of every layer but a frozen base, and the optimizer's variables."""
    frozen = [layer for layer in trained.layers if isinstance(layer, keras.Model) and not layer.trainable]
    layers = [layer for layer in trained.layers if layer not in frozen]
    return [*(weight for layer in layers for weight in layer.weights), *trained.optimizer.variables]


def settings_of(run: Path, given: list[str]) -> config.Settings:
    """The settings that a run began with.

    Args:
        run: its folder.
        given: settings and config file of the command line; a resumed run takes none.

    Raises:
        InputError: there is nothing to resume, the run is finished, or settings were given.
    """
    if given:
        raise InputError(f"--resume takes the settings from {run}/config.yaml and no others, came {' '.join(given)}")
    for name in ("config.yaml", "split.csv", "environment.json"):
        if not (run / name).is_file():
            raise InputError(f"--resume: {run} has no {name}, so there is nothing to go on with; needed is runs/NAME")
    if (run / "history.png").exists():
        raise InputError(f"--resume: {run} is finished; evaluate it with: python evaluate.py {run}")
    return config.load_settings(run / "config.yaml")


def reopen(run: Path, table: pd.DataFrame) -> None:
    """Makes sure that the split is the one that the run began with, and notes in environment.json that it goes on."""
    if splits.digest(splits.to_csv(table)) != splits.digest((run / "split.csv").read_text(encoding="utf-8")):
        raise InputError(f"--resume: the images or their table changed: the split is no longer that of {run}/split.csv")
    surroundings = json.loads((run / "environment.json").read_text(encoding="utf-8"))
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    surroundings["resumed"] = [*surroundings.get("resumed", []), now]
    files.write_text(run / "environment.json", json.dumps(surroundings, indent=1))
    # What a killed process had begun to write.
    for left in run.glob(".[0-9]*.*"):
        left.unlink()


def lock(run: Path) -> AcquireReturnProxy:
    """Keeps every other process out of the run's folder until it is left as a context; a dead process' lock is void.

    Raises:
        InputError: another process is in it.
    """
    try:
        return FileLock(run / "train.lock").acquire(timeout=0)
    except Timeout:
        raise InputError(f"another process is training in {run}; wait for it or stop it first") from None


@contextlib.contextmanager
def told(run: Path) -> Iterator[None]:
    """Says how to go on when the run is stopped or the disk is full."""
    try:
        yield
    except (KeyboardInterrupt, OSError):
        if run.exists():
            print(f"\nstopped; go on with: python train.py --resume {run}", file=sys.stderr)
        raise
