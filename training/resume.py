"""Resuming a stopped run: the state that is saved after each epoch, and how a run continues from it."""

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
from devices import keras_stack
from safety import atomic_files, csv_files, errors, limits
from safety.errors import InputError
from training import changed_settings, checkpoint, environment

STATE = "state.npz"
FINISHED = "history.png"
RECORD = "says"
# Settings that a resumed run may change: batches and learning rate of an epoch do not depend on how many follow.
EPOCHS = ("train.epochs", "train.fine_tune_epochs")
# Values of environment.json that a resumed run must share with the run that was stopped.
UNCHANGED = {
    "split_sha256": "the table of the images and their split are",
    "data_sha256": "the images are",
    "weights_sha256": "the base's weights are",
}


class State(NamedTuple):
    """How far a run has come.

    Attributes:
        epoch: the next one, from 0.
        best: the lowest validation loss so far, of the kind that `train.select` names.
        history: a row for each epoch, as in history.csv.
        first: the first epoch of the current phase of the run.
    """

    epoch: int = 0
    best: float = math.inf
    history: tuple[dict, ...] = ()
    first: int = 0


class StateRecord(config.Section):
    """What state.npz holds besides arrays, as JSON under the name RECORD; fields as in `State`."""

    epoch: int = Field(ge=1)
    first: int = Field(ge=0)
    best: float = Field(allow_inf_nan=True)
    history: list[dict[str, int | Annotated[float, Field(allow_inf_nan=True)]]]


def write_history(run: Path, history: list[dict]) -> None:
    """Writes history.csv, without times, so that equal runs have equal files."""
    atomic_files.write_text(run / "history.csv", pd.DataFrame(history).to_csv(index=False))


def save(trained: keras.Model, run: Path, state: State) -> None:
    """Writes state.npz, whole or not at all.

    Args:
        trained: the compiled model, whose trained weights and optimizer are saved.
        run: the run's folder.
        state: to save with them.
    """
    arrays = {f"{number:06}": variable.numpy() for number, variable in enumerate(_variables(trained))}
    with atomic_files.replacing(run / STATE) as temporary:
        np.savez(temporary, **{RECORD: json.dumps(state._asdict())}, **arrays)


def restore(trained: keras.Model, run: Path, first: int = 0) -> State:
    """Sets the model, its optimizer and history.csv to the end of the last epoch that the run finished.

    Args:
        trained: the compiled model; it is left as it is where that epoch was one of another phase.
        run: the run's folder.
        first: the first epoch of the current phase of the run.

    Returns:
        The state of the run; the initial state if no epoch was finished.

    Raises:
        InputError: the state is missing in a later phase, or is that of another network.
    """
    path = run / STATE
    if not path.is_file():
        if first:
            raise InputError(f"{path}: is missing, though epoch {first} was finished; start a new run")
        return State()
    with _damage_named(path):
        record, arrays = _read_state(path)
        if record.first == first:
            _assign(_variables(trained), arrays)
    write_history(run, record.history)
    return State(record.epoch, record.best, tuple(record.history), first)


@contextlib.contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    try:
        yield
    except (*checkpoint.DAMAGE, NotImplementedError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: damaged, or the state of another network or an earlier version: {error}") from None


def _read_state(path: Path) -> tuple[StateRecord, list[np.ndarray]]:
    with zipfile.ZipFile(path) as archive:
        checkpoint.check_members(archive, path.stat().st_size)
    with np.load(path, allow_pickle=False) as file:
        record = config.validate(StateRecord, json.loads(str(file[RECORD])))
        if len(record.history) != record.epoch:
            raise ValueError(f"its history has {len(record.history)} epochs, needed are {record.epoch}")
        return record, [file[name] for name in sorted(set(file.files) - {RECORD})]


def _assign(variables: list, arrays: list[np.ndarray]) -> None:
    if len(arrays) != len(variables):
        raise ValueError(f"needed are {len(variables)} arrays, got {len(arrays)}")
    for variable, array in zip(variables, arrays):
        variable.assign(array)


def _variables(trained: keras.Model) -> list:
    """All that training changes: the weights of every layer that is not frozen, and the optimizer's variables."""
    keras_stack.build_optimizer(trained)
    weights = [weight for layer in _layers(trained) if layer.trainable for weight in layer.weights]
    return [*weights, *keras_stack.optimizer_variables(trained.optimizer)]


def _layers(part: keras.Model) -> Iterator[keras.layers.Layer]:
    """All layers, also those of models among them."""
    for layer in part.layers:
        yield from _layers(layer) if isinstance(layer, keras.Model) else [layer]


def settings_of(run: Path, file: str | None, overrides: list[str]) -> config.Settings:
    """The settings that a run is resumed with: those that it was started with, of which EPOCHS may change.

    Args:
        run: its folder; its config.yaml may have been edited since the start.
        file: config file of the command line; a resumed run takes none.
        overrides: settings of the command line.

    Raises:
        InputError: there is nothing to resume, the run is finished, or a setting has changed that may not.
    """
    if file:
        raise InputError(f"--resume takes the settings from {run}/config.yaml and from no other file, got {file}")
    for name in ("config.yaml", "split.csv", "environment.json"):
        if not (run / name).is_file():
            alike = checkpoint.nearest_run(run, "split.csv")
            raise InputError(f"--resume: {run} is no folder of a run: it has no {name}; needed is runs/NAME{alike}")
    settings = config.load_settings(run / "config.yaml", overrides, of_run=True)
    changes = _changes(run, settings)
    for name, values in changes.items():
        if name not in EPOCHS:
            raise InputError(
                f"--resume: {changed_settings.describe(run, name, values)}; only {' and '.join(EPOCHS)} may change; "
                "change it back, or start a new run"
            )
    if changes:
        _check_epochs(run, settings, changes)
    elif is_finished(run):
        raise InputError(
            f"--resume: {run} is finished; evaluate it with: python evaluate.py {run}; or train longer with: "
            f"python train.py --resume {run} train.epochs=N"
        )
    return settings


def _changes(run: Path, settings: config.Settings) -> dict[str, list]:
    """The settings that are not those of the run's record: name -> [old value, new value].

    An older run has no record but its config.yaml, and an older record lacks newer settings or names their values
    otherwise.
    """
    recorded = environment.read(run).get("settings")
    if not recorded:
        return changed_settings.between(config.load_settings(run / "config.yaml", of_run=True), settings)
    earlier = config.load_settings(of_run=True).model_dump().items()
    merged = {section: {**keys, **recorded.get(section, {})} for section, keys in earlier}
    return changed_settings.between(config.validate(config.Settings, merged), settings)


def _check_epochs(run: Path, settings: config.Settings, changes: dict[str, list]) -> None:
    """Raises InputError where the run would not equal one that was started with these numbers of epochs."""
    if not (run / STATE).is_file():
        return
    with _damage_named(run / STATE):
        record, _ = _read_state(run / STATE)
    if record.first and "train.epochs" in changes:
        raise InputError(
            f"--resume: fine-tuning began after epoch {record.first} of {run}, so train.epochs may not change, got "
            f"{settings.train.epochs}; change train.fine_tune_epochs, or start a new run"
        )
    last = settings.epochs if record.first else settings.train.epochs
    if last < record.epoch:
        raise InputError(
            f"--resume: {run} has trained {record.epoch} epochs already; needed are as many or more, got {last}"
        )


def is_finished(run: Path) -> bool:
    """Whether the run has written the last of its files."""
    return (run / FINISHED).exists()


def reopen(run: Path, current: dict, settings: config.Settings) -> None:
    """Checks that split, images and base are those that the run was started with, and records that it is resumed.

    Args:
        run: its folder.
        current: the environment.json of a run that would start now, of `environment.collect`.
        settings: of `settings_of`, with the precision and the engine that are used.

    Raises:
        InputError: one of them has changed, or the state or the checkpoint is missing or damaged; the folder is left
            as it was.
    """
    recorded = environment.read(run)
    split = hashlib.sha256(limits.read_bytes(run / "split.csv", csv_files.MAX_BYTES)).hexdigest()
    changed = [what for name, what in UNCHANGED.items() if recorded.get(name) != current[name]]
    if split != current["split_sha256"]:
        changed.append(f"{run}/split.csv is")
    if changed:
        raise InputError(f"--resume: {changed[0]} no longer what {run} was started with; start a new run")
    _check_files(run)
    changes = _changes(run, settings)
    if changes:
        _write_settings(run, settings)
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    resumed = {"at": now, "versions": current["versions"], **({"changed": changes} if changes else {})}
    record = {**recorded, "settings": settings.model_dump(), "resumed": [*recorded.get("resumed", []), resumed]}
    atomic_files.write_text(run / "environment.json", json.dumps(record, indent=1))
    atomic_files.remove_leftovers(run)
    if (run / "evaluation").exists():
        print(f"{run}/evaluation is of the epochs so far; evaluate the run again when it is finished")


def _check_files(run: Path) -> None:
    """Raises InputError where the state or the checkpoint, which the run needs to continue, is missing or damaged."""
    state, best = run / STATE, run / "best_model.keras"
    if state.is_file():
        with _damage_named(state):
            record, _ = _read_state(state)
        if math.isfinite(record.best) and not best.is_file():
            raise InputError(f"{best}: is missing, though an epoch was finished; start a new run")
    elif (run / "history.csv").exists():
        raise InputError(f"{state}: is missing, so the run cannot continue {run}/history.csv; start a new run")
    if best.is_file():
        # It may stay the best one until the end of the run.
        checkpoint.check(best)


def _write_settings(run: Path, settings: config.Settings) -> None:
    """Writes changed settings to config.yaml and the checkpoint; environment.json, the record, must follow.

    In this order, a run that is killed in between has either its old settings or is resumed with the new ones.
    """
    (run / FINISHED).unlink(missing_ok=True)
    atomic_files.write_text(run / "config.yaml", settings.to_yaml())
    if (run / "best_model.keras").is_file():
        checkpoint.amend(run / "best_model.keras", settings=settings.model_dump())


@contextlib.contextmanager
def advice_on_stop(run: Path, again: str) -> Iterator[None]:
    """Prints how to go on when training is stopped, and turns TensorFlow's errors into one line.

    Args:
        run: the run's folder.
        again: arguments of train.py that continue from this folder; empty if only the same command does.

    Raises:
        InputError: in place of an error of TensorFlow.
    """
    try:
        yield
    except (KeyboardInterrupt, OSError, tf.errors.OpError) as stop:
        if not is_finished(run):
            command = f"python train.py {again}" if again and run.exists() else "the same command"
            print(f"\nstopped; go on with: {command}", file=sys.stderr)
        if isinstance(stop, tf.errors.OpError):
            raise InputError(f"TensorFlow: {_reason(stop, run)}") from None
        raise


def _reason(error: tf.errors.OpError, run: Path) -> str:
    # Before the reason TensorFlow names the node of its graph.
    reason = error.message.splitlines()[0].rpartition("}} ")[2]
    full = isinstance(error, tf.errors.ResourceExhaustedError) and "No space left on device" in reason
    # Only TensorBoard's files are written by TensorFlow itself.
    return f"{reason}; {errors.free_mib(run / 'tensorboard'):.1f} MiB are free there" if full else reason
