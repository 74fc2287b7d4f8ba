"""Errors that end a command with a message for the user and an exit status."""

from __future__ import annotations

import contextlib
import difflib
import errno
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path


class InputError(ValueError):
    """The user's input is wrong; exit status 2.

    The message is one line. It names the key, file or row, what is allowed and what was given.
    """

    status = 2

    @property
    def lines(self) -> list[str]:
        """The lines to print: the message as a single line."""
        return [" ".join(str(self).split())]


class DataError(InputError):
    """The data has findings that must be mended; exit status 1.

    The first line of the message counts the findings, each further line names one.
    """

    status = 1

    @property
    def lines(self) -> list[str]:
        """The lines to print: the count, then the findings."""
        return str(self).splitlines()


def nearest(name: str, allowed: Iterable[str], cutoff: float = 0.5) -> str:
    """The allowed name that `name` is the start of, or that is most like it; empty where none is.

    Args:
        name: that the user gave.
        allowed: names.
        cutoff: how alike they must be, 0 to 1; with 0 the best of them is taken, however bad.

    >>> nearest("Pacient", ["slide", "patient"]), nearest("sheep", ["slide", "patient"])
    ('patient', '')
    >>> nearest("data.mag", ["data.image_size", "data.magnification"])
    'data.magnification'
    """
    by_lower, name = {each.lower(): each for each in allowed}, name.lower()
    longer = sorted((each for each in by_lower if name and each.startswith(name)), key=lambda each: (len(each), each))
    return "".join(by_lower[each] for each in longer[:1] or difflib.get_close_matches(name, by_lower, 1, cutoff))


@contextlib.contextmanager
def naming(path: str | Path, temporary: str | Path = "") -> Iterator[None]:
    """Errors of the operating system in the block name `path`.

    Python names a file that it cannot open, but none in which it cannot write.

    Args:
        path: the file or folder that is written.
        temporary: the name that it has in the block, if that is another.
    """
    try:
        yield
    except OSError as error:
        if error.filename in (None, str(temporary)):
            error.filename = str(path)
        raise


def describe(error: OSError) -> str:
    """An error of the operating system in one line: the file, the reason and, where a disk is full, its free space."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    # All writers of files use `naming`, so that only standard output has no name.
    where = error.filename or ("standard output" if full else "")
    reason = f"{where}: " * bool(where) + f"cannot be written or read: {error.strerror or error}"
    return f"{reason}; {free_mib(error.filename):.1f} MiB are free there" if full else reason


def free_mib(name: str | Path | None) -> float:
    """MiB that are free on the disk of a file, which may not exist, or on that of standard output."""
    path = Path(os.path.abspath(name)) if name else 1
    while name and not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free / 2**20
