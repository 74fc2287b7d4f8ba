"""A lock: one process at a time works in a run's folder."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from safety.errors import InputError


@contextlib.contextmanager
def exclusive(run: Path) -> Iterator[None]:
    """Locks a run's folder until the block ends; the lock of a process that died does not count.

    The lock file is next to the folder, because it is taken before the folder exists. It is deleted while it is still
    held, so that none stays next to a run; filelock refuses a process that opened it before that and locks it after.

    Raises:
        InputError: another process holds the lock.
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
            path.unlink(missing_ok=True)
