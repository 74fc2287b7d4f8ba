"""A run that was stopped and goes on: what is kept after each epoch, and how a run takes it up again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import sys
import zipfile
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Annotated, NamedTuple

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from pydantic import Field

import config
from safety import atomic_files, csv_files, limits
from safety.errors import InputError
from training import checkpoint, environment

STATE = "state.npz"
# What environment.json says and what must stay as it was.
SAME = {
    "split_sha256": "the table of the images and their split are",
    "data_sha256": "the images are",
    "weights_sha256": "the base's weights are",
}


class State(NamedTuple):
    """Where a run stands.

    Attributes:
        epoch: the next one, from 0.
        best: the lowest validation loss so far.
        history: a row an epoch, as in history.csv.
        first: the epoch that the present phase of the run began with.
    """

    epoch: int = 0
    best: float = math.inf
    history: tuple[dict, ...] = ()
    first: int = 0


class Says(config.Section):
    """What stands beside the arrays in the file."""

    epoch: int = Field(ge=1)
    first: int = Field(ge=0)
    best: float = Field(allow_inf_nan=True)
    history: list[dict[str, int | Annotated[float, Field(allow_inf_nan=True)]]]


def write_history(run: Path, history: list[dict]) -> None:
    """Writes history.csv; it holds nothing that differs between equal runs, the time for instance."""
    atomic_files.write_text(run / "history.csv", pd.DataFrame(history).to_csv(index=False))


def restore(trained: keras.Model, run: Path, first: int = 0) -> State:
    """Puts the compiled model, its optimizer and history.csv where the run's last whole epoch left them.

    Args:
        trained: the model, which stays as it is where that epoch was one of another phase.
        run: the run's folder.
        first: the epoch that the present phase of the run begins with.

    Returns:
        Where the run stands; the beginning if no epoch was finished.

    Raises:
        InputError: the state or the checkpoint is missing or damaged, or is that of another network.
    """
    path = run / STATE
    if not path.is_file():
        if (run / "history.csv").exists():
            raise InputError(f"{path}: is missing, so the run cannot go on from {run}/history.csv; start it anew")
        return State(first=first)
    try:
        says, arrays = _read_state(path)
        if says.first == first:
            _assign(variables(trained), arrays)
    except (*checkpoint.DAMAGE, MemoryError, NotImplementedError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: damaged, or the state of another network: {error}") from None
    if math.isfinite(says.best) and not (run / "best_model.keras").is_file():
        raise InputError(f"{run}/best_model.keras: is missing, though an epoch was finished; start the run anew")
    write_history(run, says.history)
    return State(says.epoch, says.best, tuple(says.history), first)


def _read_state(path: Path) -> tuple[Says, list[np.ndarray]]:
    with zipfile.ZipFile(path) as archive:
        checkpoint.check_members(archive, path.stat().st_size)
    with np.load(path, allow_pickle=False) as kept:
        says = config.validate(Says, json.loads(str(kept["says"])))
        if len(says.history) != says.epoch:
            raise ValueError(f"its history has {len(says.history)} epochs, not {says.epoch}")
        return says, [kept[name] for name in sorted(set(kept.files) - {"says"})]


def _assign(variables: list, arrays: list[np.ndarray]) -> None:
    if len(arrays) != len(variables):
        raise ValueError(f"needed are {len(variables)} arrays, got {len(arrays)}")
    for variable, array in zip(variables, arrays):
        variable.assign(array)


def variables(trained: keras.Model) -> list:
    """All that training changes: the weights of every layer that is not frozen, and the optimizer's variables."""
    trained.optimizer.build(trained.trainable_variables)
    layers = [inner for layer in trained.layers for inner in getattr(layer, "layers", [layer]) if inner.trainable]
    weights = [weight for layer in layers for weight in layer.weights]
    # Under float16 Keras counts these two not among the optimizer's variables.
    scale = getattr(trained.optimizer, "_loss_scale", None)
    return [*weights, *trained.optimizer.variables, *([scale.current_loss_scale, scale.counter] if scale else [])]


def settings_of(run: Path, given: list[str]) -> config.Settings:
    """The settings that a run began with.

    Args:
        run: its folder.
        given: settings and config file of the command line; a resumed run takes none.

    Raises:
        InputError: there is nothing to resume, the run is finished, or settings were given.
    """
    if given:
        raise InputError(f"--resume takes the settings from {run}/config.yaml and no others, got {' '.join(given)}")
    for name in ("config.yaml", "split.csv", "environment.json"):
        if not (run / name).is_file():
            raise InputError(f"--resume: {run} is no folder of a run: it has no {name}; needed is runs/NAME")
    if is_finished(run):
        raise InputError(f"--resume: {run} is finished; evaluate it with: python evaluate.py {run}")
    return config.load_settings(run / "config.yaml")


def is_finished(run: Path) -> bool:
    """Whether the run has written the last of its files."""
    return (run / "history.png").exists()


def reopen(run: Path, environment_now: dict) -> None:
    """Makes sure that split, images and base are those that the run began with, and notes that it goes on.

    Args:
        run: its folder.
        surroundings: what environment.json would say of a run that began now.

    Raises:
        InputError: one of them is another one.
    """
    began = environment.read(run)
    split = hashlib.sha256(limits.read_bytes(run / "split.csv", csv_files.MAX_BYTES)).hexdigest()
    changed = [what for name, what in SAME.items() if began.get(name) != environment_now[name]]
    if split != environment_now["split_sha256"]:
        changed.append(f"{run}/split.csv is")
    if changed:
        raise InputError(f"--resume: {changed[0]} no longer what {run} began with; start a new run")
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    resumed = [*began.get("resumed", []), {"at": now, "versions": environment_now["versions"]}]
    atomic_files.write_text(run / "environment.json", json.dumps({**began, "resumed": resumed}, indent=1))
    atomic_files.remove_leftovers(run)
    if (run / "evaluation").exists():
        print(f"{run}/evaluation is of the epochs so far; evaluate the run anew when it is finished")


@contextlib.contextmanager
def advice_on_stop(run: Path, again: str) -> Iterator[None]:
    """Says how to go on when training is stopped; what TensorFlow then raises is told in one line.

    Args:
        run: the run's folder.
        again: arguments of train.py that go on from what is in it.
    """
    try:
        yield
    except (KeyboardInterrupt, OSError, tf.errors.OpError) as stop:
        if not is_finished(run):
            command = f"python train.py {again}" if run.exists() else "the same command; no epoch was begun"
            print(f"\nstopped; go on with: {command}", file=sys.stderr)
        if isinstance(stop, tf.errors.OpError):
            raise InputError(f"TensorFlow: {stop.message.splitlines()[0]}") from None
        raise
