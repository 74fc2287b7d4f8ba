"""Checkpoints: one .keras file with the whole model and its settings, of which only arrays and settings are read."""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import keras
import numpy as np
import pandas as pd
from pydantic import AfterValidator, ConfigDict, Field

import config
import model
from devices import precision
from features import feature_files
from images import splits
from safety import atomic_files, errors, hdf5_files
from safety.errors import InputError, nearest
from training.decision import Decision

# The member of the archive that holds the metadata.
METADATA = "breakhis.json"
METADATA_BYTES = 2**22
ARRAYS = "model.weights.h5"
# Errors of a file that is damaged, or made to look like a checkpoint.
DAMAGE = (KeyError, ValueError, TypeError, OSError, EOFError, RuntimeError, RecursionError, MemoryError, zlib.error)


# Features are float32; a deviation is the root of a variance of `model.floored`, which adds 1e-7.
LARGEST = float(np.finfo(np.float32).max)
Feature = Annotated[float, Field(ge=-LARGEST, le=LARGEST)]
Deviation = Annotated[float, Field(ge=3e-4, le=LARGEST)]


# A score and the ends of its interval.
Score = Annotated[float, Field(ge=0, le=1)]


def _check_interval(values: list[float | None]) -> list[float | None]:
    if values[0] is None or (values[1] is None) != (values[2] is None):
        raise ValueError("needed are a value, and both ends of its interval or null for both")
    return values


Interval = Annotated[list[Score | None], Field(min_length=3, max_length=3), AfterValidator(_check_interval)]


class FeatureStatistics(config.Section):
    """Statistics of the training features, by which images unlike them are noticed; of `out_of_distribution`."""

    mean: list[Feature]
    deviation: list[Deviation]
    limit: float = Field(ge=0, le=LARGEST)


class CrossValidated(config.Section):
    """The scores of the cross-validation by which a model that is trained on all images is known.

    Attributes:
        folds: in words.
        patients: tested.
        balanced_accuracy: [value, low and high of its 95 % interval, both None where a class has a single patient].
        sensitivity: as balanced_accuracy.
        specificity: as balanced_accuracy.
        roc_auc: as balanced_accuracy.
    """

    folds: config.PrintableStr
    patients: int = Field(ge=1)
    balanced_accuracy: Interval
    sensitivity: Interval
    specificity: Interval
    roc_auc: Interval


class Metadata(config.Section):
    """The metadata of a checkpoint; other keys are ignored."""

    model_config = ConfigDict(extra="ignore")

    settings: config.Settings
    split_sha256: str
    arrays_sha256: str
    # Checkpoints from before features could be imported have none, and need none.
    width: int = Field(None, ge=1, le=feature_files.MAX_WIDTH)
    decision: Decision = None
    familiar: FeatureStatistics = None
    cross_validated: CrossValidated = None


def metadata(settings: config.Settings, table: pd.DataFrame) -> dict:
    """The metadata of a run's checkpoint: its settings, and the hash of its split, in hex."""
    return {"settings": settings.model_dump(), "split_sha256": splits.digest(splits.to_csv(table))}


def save(network: keras.Model, path: Path, metadata: dict) -> None:
    """Writes the whole model, from pixels to probability, with its metadata as one .keras file.

    Args:
        network: the model.
        path: of the file.
        metadata: plain values, as JSON takes them; those of `metadata` must be among them.
    """
    with atomic_files.replacing(path) as temporary:
        network.save(temporary)
        with zipfile.ZipFile(temporary, "a") as archive:
            content = {**metadata, "arrays_sha256": model.weights_hash(network), "width": model.width(network)}
            archive.writestr(METADATA, json.dumps(content, indent=1))


def amend(path: Path, **more: object) -> None:
    """Adds values to a checkpoint's metadata, or replaces those of the same names; the arrays stay."""
    with (
        atomic_files.replacing(path) as temporary,
        zipfile.ZipFile(path) as old,
        zipfile.ZipFile(temporary, "w") as new,
    ):
        for name in old.namelist():
            content = old.read(name)
            if name == METADATA:
                content = json.dumps({**json.loads(content), **more}, indent=1)
            new.writestr(name, content)


def find(run: Path, *others: str) -> Path:
    """The checkpoint of a run's folder, or `run` itself if it is a file.

    Args:
        run: the folder, or the checkpoint in it.
        others: files of folders under runs/ that the user may have meant too.

    Raises:
        InputError: there is none.
    """
    path = run / "best_model.keras" if run.is_dir() else run
    if not path.is_file():
        alike = nearest_run(run, "best_model.keras", *others)
        raise InputError(f"no checkpoint {str(path)!r}; needed is a run's folder or the best_model.keras in one{alike}")
    return path


def nearest_run(run: Path, *files: str) -> str:
    """The end of a message about a run that is missing: the one in runs/ with the nearest name; empty if it is there.

    Where the run is there and the file is not, it names the run's checkpoint.

    Args:
        run: that the user gave: its folder, or a file in it.
        files: of which a folder must hold one.
    """
    folder = run.parent if run.suffix == ".keras" else run
    names = [path.parent.name for file in files for path in Path("runs").glob(f"*/{file}")]
    if folder.exists():
        checkpoint = folder / "best_model.keras"
        return f"; there is {checkpoint}" if run != folder and checkpoint.exists() else ""
    return f"; the nearest run is runs/{nearest(folder.name, names, cutoff=0)}" if names else "; runs/ has none"


def load(path: Path) -> tuple[keras.Model, dict]:
    """Reads a checkpoint: the model is built from its settings, and only its arrays are taken from the file.

    Nothing in the file is run or unpickled: the configuration of its layers, which could name any code, is not read.

    Args:
        path: of the checkpoint, or the folder of its run.

    Returns:
        The model, not compiled, and the metadata, with `settings` as a `config.Settings`.

    Raises:
        InputError: the file is missing, damaged, or was not written by `save`; its precision or engine is not here.
        OSError: as `load_into`.
    """
    path = find(path)
    metadata = check(path)
    settings = metadata["settings"]
    precision.use_device(settings.train.precision, engine=settings.train.engine)
    with _damage_named(path):
        network = model.build(settings, load_weights=False, width=metadata.get("width"))
        _check_width(metadata, network)
    _take_arrays(network, path, metadata)
    return network, metadata


def load_into(network: keras.Model, path: Path) -> None:
    """Gives a network the arrays of a checkpoint of its kind.

    Args:
        network: of `model.build`, with the settings of the checkpoint.
        path: of the checkpoint.

    Raises:
        InputError: the file is missing, damaged or of another network, or was not written by `save`.
        OSError: the folder of temporary files is full; names it.
    """
    _take_arrays(network, path, check(path))


def check(path: Path) -> dict:
    """The metadata of a checkpoint, as of `load`; its arrays are read and checked, but given to no network.

    Raises:
        InputError: the file is damaged, or was not written by `save`.
    """
    with _damage_named(path):
        return _read_metadata(path)


def _take_arrays(network: keras.Model, path: Path, metadata: dict) -> None:
    """As `load_into`; the metadata are those of `check`."""
    with _arrays_alone(path) as arrays, _damage_named(path):
        network.load_weights(arrays)
        if model.weights_hash(network) != metadata["arrays_sha256"]:
            raise ValueError("its arrays are not those that were saved")


@contextlib.contextmanager
def _arrays_alone(path: Path) -> Iterator[Path]:
    """The arrays of a checkpoint in a temporary file of their own, for Keras' `load_weights`.

    From the archive Keras takes four times as long, since a ZipFile reads from the start again at every step back that
    HDF5 takes.
    """
    with contextlib.ExitStack() as stack:
        # Not for what the caller does with the file.
        with errors.naming(tempfile.gettempdir()):
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            with zipfile.ZipFile(path) as archive:
                arrays = archive.extract(ARRAYS, folder)
        yield Path(arrays)


@contextlib.contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"{path}: is missing") from None
    except zipfile.BadZipFile:
        raise InputError(f"{path}: damaged, or no .keras file") from None
    except DAMAGE as error:
        raise InputError(f"{path}: damaged, or no checkpoint of this project: {error}") from None


def _read_metadata(path: Path) -> dict:
    """The checked metadata; the archive and the arrays in it are checked first."""
    if path.suffix != ".keras":
        raise ValueError("its name does not end in .keras")
    with zipfile.ZipFile(path) as archive:
        check_members(archive, path.stat().st_size)
        size = archive.getinfo(METADATA).file_size
        if size > METADATA_BYTES:
            raise ValueError(f"allowed are {METADATA_BYTES} bytes of {METADATA}, got {size}")
        # From memory, for the same reason as in `_arrays_alone`.
        hdf5_files.check(io.BytesIO(archive.read(ARRAYS)))
        values = json.loads(archive.read(METADATA))
    checked = config.validate(Metadata, values)
    if checked.settings.data.stain != "none" and checked.settings.data.stain_target == "auto":
        raise ValueError("data.stain_target must be the numbers that training fitted, got auto")
    if checked.settings.model.imported and checked.width is None:
        raise ValueError("width: is missing, the number of imported features of an image")
    return {**values, **checked.model_dump(exclude_unset=True), "settings": checked.settings}


def check_members(archive: zipfile.ZipFile, size: int) -> None:
    """Refuses an archive whose members take more bytes than the archive, which none of Keras and NumPy does.

    Args:
        archive: of Keras or NumPy, whose members are not compressed.
        size: of its file in bytes.

    Raises:
        ValueError: the archive or its members are too large, or a member is compressed.
    """
    if size > hdf5_files.MAX_BYTES:
        raise ValueError(f"has {size} bytes, allowed are {hdf5_files.MAX_BYTES}")
    members = archive.infolist()
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise ValueError("its members are compressed")
    if sum(member.file_size for member in members) > size:
        raise ValueError("its members are larger than the file")


def _check_width(metadata: dict, network: keras.Model) -> None:
    width = model.width(network)
    for name in ("mean", "deviation") if metadata.get("familiar") else ():
        if len(metadata["familiar"][name]) != width:
            raise ValueError(f"familiar.{name} has {len(metadata['familiar'][name])} numbers, needed are {width}")
