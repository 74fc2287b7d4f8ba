"""Writing files so that no reader ever meets half of one."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import stops
from untrusted import InputError


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Gives a name beside `path` to write to; after the block the file stands at `path`, or is gone if it raised.

    The name keeps the suffix of `path`, by which Keras, NumPy and Matplotlib choose the format.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{os.getpid()}.{path.name}")
    with stops.waiting():
        try:
            yield beside
            with beside.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(beside, path)
            _sync(path.parent)
        finally:
            beside.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    """After a power cut a file that was renamed may bear its old name unless its folder was written too."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


@contextlib.contextmanager
def filling(folder: Path) -> Iterator[Path]:
    """Gives a folder beside `folder` to write to; after the block its files stand in `folder`, or nowhere if it raised.

    Files of other names that were in `folder` stay there.

    Raises:
        InputError: `folder` is a link, which could lead anywhere.
    """
    if folder.is_symlink():
        raise InputError(f"{folder}: is a link; what is written there would land elsewhere")
    beside = folder.with_name(f".{os.getpid()}.{folder.name}")
    beside.mkdir(parents=True)
    try:
        yield beside
        with stops.waiting():
            folder.mkdir(exist_ok=True)
            for path in beside.iterdir():
                os.replace(path, folder / path.name)
    finally:
        shutil.rmtree(beside)


def remove_leftovers(folder: Path, of: str = "*") -> None:
    """Deletes what killed processes had begun to write; the caller knows that no other process is writing there."""
    for left in folder.glob(f".[0-9]*.{of}"):
        shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()


def write_text(path: str | Path, text: str) -> None:
    """Writes UTF-8 text as a whole or not at all; a device or pipe is written to as it is."""
    if Path(path).exists() and not Path(path).is_file():
        Path(path).write_text(text, encoding="utf-8")
        return
    with replacing(path) as beside:
        beside.write_text(text, encoding="utf-8")
