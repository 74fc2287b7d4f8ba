"""Checkpoints: one .keras file with the whole model, pixels in, with its settings; only arrays are read back."""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from pathlib import Path
from typing import Annotated

import keras
import pandas as pd
from pydantic import ConfigDict, Field

import config
import model
from devices import precision
from images import splits
from safety import atomic_files, hdf5_files
from safety.errors import InputError
from training.decision import Decision

ABOUT = "breakhis.json"
ABOUT_BYTES = 2**22
ARRAYS = "model.weights.h5"
# What a file can raise that is damaged, or made to look like a checkpoint.
DAMAGE = (KeyError, ValueError, TypeError, OSError, EOFError, RuntimeError, RecursionError, MemoryError, zlib.error)


class Familiar(config.Section):
    """What the training images look like to the base, as `familiar.describe` gives it."""

    mean: list[float]
    deviation: list[Annotated[float, Field(gt=0)]]
    limit: float = Field(ge=0)


class About(config.Section):
    """What a checkpoint says of itself; what else it says is not looked at."""

    model_config = ConfigDict(extra="ignore")

    settings: config.Settings
    split_sha256: str
    arrays_sha256: str
    decision: Decision = None
    familiar: Familiar = None


def about(settings: config.Settings, table: pd.DataFrame) -> dict:
    """What the checkpoint says of itself."""
    return {"settings": settings.model_dump(), "split_sha256": splits.digest(splits.to_csv(table))}


def save(network: keras.Model, path: Path, about: dict) -> None:
    """Writes the whole model, pixels in, as one .keras file that carries its settings.

    Args:
        about: what the checkpoint says of itself, plain values; `settings` must be among them.
    """
    with atomic_files.replacing(path) as beside:
        network.save(beside)
        with zipfile.ZipFile(beside, "a") as archive:
            archive.writestr(ABOUT, json.dumps({**about, "arrays_sha256": model.weights_hash(network)}, indent=1))


def amend(path: Path, **more: object) -> None:
    """Adds to what the checkpoint says of itself, or replaces what it said under these names; arrays stay."""
    with atomic_files.replacing(path) as beside, zipfile.ZipFile(path) as old, zipfile.ZipFile(beside, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == ABOUT:
                content = json.dumps({**json.loads(content), **more}, indent=1)
            new.writestr(name, content)


def find(run: Path) -> Path:
    """The checkpoint of a run's folder, or the one named; raises InputError where there is none."""
    path = run / "best_model.keras" if run.is_dir() else run
    if not path.is_file():
        raise InputError(f"no checkpoint {str(path)!r}; needed is a run's folder or the best_model.keras in one")
    return path


def load(path: Path) -> tuple[keras.Model, dict]:
    """Reads a checkpoint: the model is built from its settings, and only arrays are taken from the file.

    Nothing in the file is run or unpickled: its layers' configuration, which could name any code, is not read.

    Returns:
        The model, not compiled, and what the checkpoint says of itself, with `settings` as a `config.Settings`.

    Raises:
        InputError: the file is missing, damaged, or was not written by `save`.
    """
    path = find(path)
    try:
        about = _read_about(path)
        precision.use_device(about["settings"].train.precision)
        network = model.build(about["settings"], load_weights=False)
        _check_width(about, network)
        network.load_weights(path)
        if model.weights_hash(network) != about["arrays_sha256"]:
            raise ValueError("its arrays are not those that were saved")
    except zipfile.BadZipFile:
        raise InputError(f"{path}: damaged, or no .keras file") from None
    except DAMAGE as error:
        raise InputError(f"{path}: damaged, or no checkpoint of this project: {error}") from None
    return network, about


def _read_about(path: Path) -> dict:
    """What the checkpoint says of itself, after a look at the archive and at the arrays in it."""
    if path.suffix != ".keras":
        raise ValueError("its name does not end in .keras")
    with zipfile.ZipFile(path) as archive:
        check_members(archive, path.stat().st_size)
        if archive.getinfo(ABOUT).file_size > ABOUT_BYTES:
            raise ValueError(f"allowed are {ABOUT_BYTES} bytes of {ABOUT}, got {archive.getinfo(ABOUT).file_size}")
        # Not from the archive itself, which begins anew at every step back that HDF5 takes.
        hdf5_files.check(io.BytesIO(archive.read(ARRAYS)))
        about = json.loads(archive.read(ABOUT))
    said = config.validate(About, about)
    return {**about, **said.model_dump(exclude_unset=True), "settings": said.settings}


def check_members(archive: zipfile.ZipFile, size: int) -> None:
    """Refuses an archive that unfolds to more than its own size in bytes, as none of Keras and NumPy does."""
    if size > hdf5_files.MAX_BYTES:
        raise ValueError(f"has {size} bytes, allowed are {hdf5_files.MAX_BYTES}")
    members = archive.infolist()
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise ValueError("its members are compressed")
    if sum(member.file_size for member in members) > size:
        raise ValueError("its members are larger than the file")


def _check_width(about: dict, network: keras.Model) -> None:
    width = network.get_layer("pooling").output.shape[-1]
    for name in ("mean", "deviation") if about.get("familiar") else ():
        if len(about["familiar"][name]) != width:
            raise ValueError(f"familiar.{name} has {len(about['familiar'][name])} numbers, needed are {width}")
