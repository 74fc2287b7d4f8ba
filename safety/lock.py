"""One process at a time in a folder."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from safety.errors import InputError


@contextlib.contextmanager
def exclusive(run: Path) -> Iterator[None]:
    """Keeps every other process out of the run's folder; a dead process' lock is void.

    The lock stands beside the folder, since it is held before there is one.

    Raises:
        InputError: another process is in it.
    """
    run = Path(os.path.realpath(run))
    run.parent.mkdir(parents=True, exist_ok=True)
    path = run.with_name(f".{run.name}.lock")
    try:
        lock = FileLock(path).acquire(timeout=0)
    except Timeout:
        raise InputError(f"another process is training or evaluating {run}; wait for it or stop it first") from None
    with lock:
        try:
            yield
        finally:
            if not run.exists():
                path.unlink()
