"""Checkpoints: one .keras file with the whole model, pixels in, with its settings; only arrays are read back."""

from __future__ import annotations

import json
import math
import zipfile
import zlib
from pathlib import Path

import config  # first, because it quiets TensorFlow
from config import InputError

import keras

import device
import files
import model

ABOUT = "breakhis.json"


class KeepBest(keras.callbacks.Callback):
    """Saves the model, with what it says of itself, whenever the validation loss is lower than ever.

    Keras' ModelCheckpoint cannot put anything into the file, would save the part that is trained where that is the
    head alone, and a reader could meet half of it.

    Args:
        whole: the model to save, which shares its layers with the one that is trained.
        path: of the checkpoint.
        about: what it says of itself, as `save` takes it.
        best: the lowest loss of the epochs before.
    """

    def __init__(self, whole: keras.Model, path: Path, about: dict, best: float = math.inf) -> None:
        super().__init__()
        self.whole, self.path, self.about, self.best = whole, path, about, best

    def on_epoch_end(self, epoch: int, logs: dict) -> None:
        if logs["val_loss"] < self.best:
            self.best = logs["val_loss"]
            save(self.whole, self.path, {**self.about, "epoch": epoch, "val_loss": self.best})


def save(network: keras.Model, path: Path, about: dict) -> None:
    """Writes the whole model, pixels in, as one .keras file that carries its settings.

    Args:
        about: what the checkpoint says of itself, plain values; `settings` must be among them.
    """
    with files.replacing(path) as beside:
        network.save(beside)
        with zipfile.ZipFile(beside, "a") as archive:
            archive.writestr(ABOUT, json.dumps({**about, "arrays_sha256": model.weights_hash(network)}, indent=1))


def amend(path: Path, **more: object) -> None:
    """Adds to what the checkpoint says of itself, or replaces what it said under these names; arrays stay."""
    with files.replacing(path) as beside, zipfile.ZipFile(path) as old, zipfile.ZipFile(beside, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == ABOUT:
                content = json.dumps({**json.loads(content), **more}, indent=1)
            new.writestr(name, content)


def load(path: Path) -> tuple[keras.Model, dict]:
    """Reads a checkpoint: the model is built from its settings, and only arrays are taken from the file.

    Nothing in the file is run or unpickled: its layers' configuration, which could name any code, is not read.

    Returns:
        The model, not compiled, and what the checkpoint says of itself, with `settings` as a `config.Settings`.

    Raises:
        InputError: the file is missing, damaged, or was not written by `save`.
    """
    if not path.is_file():
        raise InputError(f"no checkpoint {str(path)!r}; needed is a run's folder or the best_model.keras in one")
    try:
        with zipfile.ZipFile(path) as archive:
            about = json.loads(archive.read(ABOUT))
        about["settings"] = config.check_settings(about["settings"])
        device.use_device(about["settings"].train.precision)
        network = model.build(about["settings"], load_weights=False)
        network.load_weights(path)
        if model.weights_hash(network) != about["arrays_sha256"]:
            raise ValueError("its arrays are not those that were saved")
    except zipfile.BadZipFile:
        raise InputError(f"{path}: damaged, or no .keras file") from None
    except (KeyError, ValueError, TypeError, OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: damaged, or no checkpoint of this project: {error}") from None
    return network, about
