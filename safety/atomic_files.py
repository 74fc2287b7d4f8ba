"""Writing files so that no reader ever meets half of one."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from safety import signals
from safety.errors import InputError

# Even where it goes into a file, it is written on and not replaced.
STDOUT = ("/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Gives a name beside `path` to write to; after the block the file stands at `path`, or is gone if it raised.

    The name keeps the suffix of `path`, by which Keras, NumPy and Matplotlib choose the format, and is never longer
    than a file system takes. A link at `path` is replaced and not followed: in a run that others made it could lead
    anywhere.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{os.getpid()}.{secrets.token_hex(4)}{path.suffix[-8:]}")
    with signals.deferred():
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
        with signals.deferred():
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
    """Writes UTF-8 text as a whole or not at all; what is no Unicode in it, of a file's name, is escaped."""
    with replacing(path) as beside:
        beside.write_bytes(_encoded(text))


def write_out(name: str, text: str) -> None:
    """Writes text as `write_text` to where the user said: through a link, and as it comes to a device or pipe."""
    if name in STDOUT:
        sys.stdout.flush()
        sys.stdout.buffer.write(_encoded(text))
        sys.stdout.flush()
    elif os.path.exists(name) and not os.path.isfile(name):
        Path(name).write_bytes(_encoded(text))
    else:
        write_text(os.path.realpath(name), text)


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")
