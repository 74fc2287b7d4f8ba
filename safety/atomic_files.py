"""Atomic writes: a file or folder appears complete or not at all, also when the process is killed."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from safety import signals
from safety.errors import InputError, naming

# The shell may redirect standard output to a file; these names must write to that file, not replace it.
STDOUT = ("/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yields a temporary name in the folder of `path`; after the block the file is moved to `path`.

    If the block raises, the temporary file is deleted and `path` stays as it was. Signals wait until the block ends.
    The temporary name keeps the suffix of `path`, because Keras, NumPy and Matplotlib choose the format by it, and is
    short enough for every file system. A symbolic link at `path` is replaced and not followed: in a run from somebody
    else it could lead anywhere.

    Args:
        path: where the complete file goes; missing folders are created.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}.{secrets.token_hex(4)}{path.suffix[-8:]}")
    with signals.deferred(), naming(path, temporary):
        try:
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
            _sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def can_write(path: Path) -> bool:
    """Whether a file or folder can be made at `path`, or changed in it if it is a folder; nothing is tried."""
    there = next(place for place in (path, *Path(os.path.abspath(path)).parents) if place.is_dir())
    return os.access(there, os.W_OK | os.X_OK)


def _sync(folder: Path) -> None:
    """Writes the folder itself to disk; otherwise a power cut could undo the renaming of a file in it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def filling(folder: Path) -> Iterator[Path]:
    """Yields a temporary folder next to `folder`; after the block its files are moved into `folder`.

    If the block raises, `folder` stays as it was. Other files in `folder` are left alone.

    Raises:
        InputError: `folder` is a symbolic link, which could lead anywhere.
    """
    if folder.is_symlink():
        raise InputError(f"{folder}: must be a folder, got a link; files written there would end up elsewhere")
    temporary = folder.with_name(f".{os.getpid()}.{folder.name}")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        with signals.deferred():
            folder.mkdir(exist_ok=True)
            for path in temporary.iterdir():
                os.replace(path, folder / path.name)
    finally:
        shutil.rmtree(temporary)


def remove_leftovers(folder: Path, of: str = "*") -> None:
    """Deletes the temporary files and folders that killed processes left in `folder`.

    Call it only while no other process writes there.

    Args:
        folder: where to look.
        of: pattern of the name after the process number; for `filling`, the name of the folder.
    """
    for left in folder.glob(f".[0-9]*.{of}"):
        shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()


def write_text(path: str | Path, text: str) -> None:
    """Writes UTF-8 text as `replacing` does; characters that are not Unicode, as in some file names, are escaped."""
    with replacing(path) as temporary:
        temporary.write_bytes(_encoded(text))


def write_out(name: str, text: str) -> None:
    """Writes text to an output that the user named: a file, a link (which is followed), a device or a pipe."""
    if name in STDOUT:
        sys.stdout.flush()
        sys.stdout.buffer.write(_encoded(text))
        sys.stdout.flush()
    elif os.path.exists(name) and not os.path.isfile(name):
        with naming(name):
            Path(name).write_bytes(_encoded(text))
    else:
        write_text(os.path.realpath(name), text)


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")
