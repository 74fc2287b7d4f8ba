"""The folder of a cross-validation: config.yaml, folds.csv, environment.json, and a file for each finished fold."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from pathlib import Path
from typing import Annotated

import pandas as pd
from pydantic import Field

import config
from safety import atomic_files, csv_files, limits
from safety.errors import InputError
from training import changed_settings, environment
from training.decision import Decision

MAX_BYTES = 2**24
FOLDS = "folds.csv"
UNCHANGED = {
    "data_sha256": "the images are",
    "weights_sha256": "the base is",
    "cross_validation": "folds, repeats, threshold rule or protocol are",
}
Probability = Annotated[float, Field(ge=0, le=1)]
Pair = Annotated[list[float], Field(min_length=2, max_length=2)]


class Result(config.Section):
    """The file of a fold, of `nested.run_fold`."""

    repeat: int = Field(ge=1)
    fold: int = Field(ge=1)
    epochs: list[int]
    losses: list[float]
    decision: Decision
    validation: dict[str, Pair]
    filename: list[str]
    probability: list[Probability]


def is_cross_validation(folder: Path) -> bool:
    """Whether a folder is that of a cross-validation."""
    return (folder / FOLDS).is_file()


def path(folder: Path, repeat: int, fold: int) -> Path:
    """The file of an outer fold."""
    return folder / "folds" / f"{repeat}-{fold}.json"


def is_finished(folder: Path, repeat: int, fold: int) -> bool:
    """Whether an outer fold has been tested."""
    return path(folder, repeat, fold).exists()


def names(drawn: pd.DataFrame) -> list[tuple[int, int]]:
    """The repeat and the number of every outer fold, in order."""
    return sorted(
        {(int(row.repeat), int(row.fold)) for row in drawn[["repeat", "fold"]].drop_duplicates().itertuples()}
    )


def to_json(result: dict) -> str:
    """The text of a fold's file; numbers keep all their digits."""
    return json.dumps(config.validate(Result, result).model_dump())


def open_folder(folder: Path, settings: config.Settings, drawn: pd.DataFrame, record: dict) -> None:
    """Creates the folder with its first files, or checks that it is that of the same cross-validation.

    Args:
        folder: of the cross-validation.
        settings: with the precision and the engine that are used.
        drawn: the tested images: filename, repeat, fold.
        record: for environment.json.

    Raises:
        InputError: the folder is that of something else, or settings, images, base or folds have changed.
    """
    files = {
        "config.yaml": settings.to_yaml(),
        FOLDS: drawn.to_csv(index=False),
        "environment.json": json.dumps(record, indent=1),
    }
    if not folder.exists():
        # Containers on two hosts often have the same process number.
        temporary = folder.with_name(f".{os.getpid()}.{secrets.token_hex(4)}.{folder.name}")
        for name, text in files.items():
            atomic_files.write_text(temporary / name, text)
        (temporary / "folds").mkdir()
        if _rename(temporary, folder):
            return
        _refuse_another_choice(folder, settings)
    if not is_cross_validation(folder):
        raise InputError(f"{folder} exists and is no cross-validation; give another NAME")
    changed_settings.refuse(folder, settings)
    known = environment.read(folder)
    changed = [what for key, what in UNCHANGED.items() if known.get(key) != record[key]]
    changed += [f"{FOLDS} is"] if (folder / FOLDS).read_text() != files[FOLDS] else []
    if changed:
        raise InputError(f"{folder}: {changed[0]} no longer what it was started with; give another NAME")


def _refuse_another_choice(folder: Path, settings: config.Settings) -> None:
    """Refuses where `auto` found something else here than in the process that created the folder meanwhile."""
    changes = changed_settings.between(config.load_settings(folder / "config.yaml", of_run=True), settings)
    for name in ("train.precision", "train.engine"):
        if name in changes:
            theirs, ours = changes[name]
            raise InputError(
                f"{folder} was begun by another process just now, with {name}={theirs}, got {ours}: the same command "
                "goes on with the one of the folder"
            )


def _rename(temporary: Path, folder: Path) -> bool:
    """Whether the folder is ours; False where another job has created it meanwhile."""
    try:
        temporary.rename(folder)
        return True
    except OSError:
        shutil.rmtree(temporary)
        if not folder.exists():
            raise
        return False


def read_results(folder: Path, drawn: pd.DataFrame) -> list[dict]:
    """The results of all outer folds, in order.

    Args:
        folder: of the cross-validation.
        drawn: of `read_folds`.

    Raises:
        InputError: a fold is missing, its file is damaged or that of another fold, or its images are not those
            that were drawn.
    """
    results = []
    for repeat, fold in names(drawn):
        file = path(folder, repeat, fold)
        if not file.is_file():
            raise InputError(f"{file} is missing; the same crossval.py command goes on")
        try:
            values = json.loads(limits.read_bytes(file, MAX_BYTES))
        except (ValueError, RecursionError):
            raise InputError(f"{file}: no JSON") from None
        result = config.validate(Result, values).model_dump()
        if (result["repeat"], result["fold"]) != (repeat, fold):
            raise InputError(
                f"{file}: needed are repeat {repeat} and fold {fold}, got {result['repeat']} and {result['fold']}"
            )
        expected = drawn.filename[(drawn.repeat == repeat) & (drawn.fold == fold)]
        if sorted(result["filename"]) != sorted(expected) or len(result["probability"]) != len(expected):
            raise InputError(f"{file}: its images are not those of {folder / FOLDS}")
        results.append(result)
    return results


def read_folds(folder: Path) -> pd.DataFrame:
    """The tested images: filename, repeat, fold; raises InputError for another file."""
    drawn = csv_files.read(folder / FOLDS)
    numbers = [
        column
        for column in ("repeat", "fold")
        if column in drawn and drawn[column].str.fullmatch("[1-9][0-9]{0,4}").all()
    ]
    if list(drawn.columns) != ["filename", "repeat", "fold"] or len(numbers) < 2 or drawn.empty:
        raise InputError(f"{folder / FOLDS}: needed are the columns filename, repeat, fold")
    return drawn.astype({"repeat": int, "fold": int})
