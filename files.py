"""Writing files so that no reader ever meets half of one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import stops


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
        finally:
            beside.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Writes UTF-8 text as a whole or not at all; a device or pipe is written to as it is."""
    if Path(path).exists() and not Path(path).is_file():
        Path(path).write_text(text, encoding="utf-8")
        return
    with replacing(path) as beside:
        beside.write_text(text, encoding="utf-8")
