"""Writing files so that no reader ever meets half of one."""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path

import stops

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
    with stops.waiting():
        try:
            yield beside
            with beside.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(beside, path)
        finally:
            beside.unlink(missing_ok=True)


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
