"""Ctrl-C and SIGTERM: kept waiting where they would do harm."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

STOPS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def deferred() -> Iterator[list[int]]:
    """Ctrl-C and SIGTERM wait until the block is left; a second one does not.

    Yields:
        The numbers of the signals that received.
    """
    received: list[int] = []
    # Python runs handlers in the main thread alone, and allows them to be set there alone.
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def note(number: int, frame: object) -> None:
        received.append(number)
        if len(received) > 1:
            raise KeyboardInterrupt

    # A process in the background may have been told to take no notice of Ctrl-C.
    heard = [number for number in STOPS if signal.getsignal(number) != signal.SIG_IGN]
    handlers = {number: signal.signal(number, note) for number in heard}
    try:
        yield received
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if received:
            signal.raise_signal(received[0])


@contextlib.contextmanager
def immediate() -> Iterator[None]:
    """Ctrl-C and SIGTERM end the process where it waits for others; Python would see them only after the wait."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.signal(number, signal.SIG_DFL) for number in STOPS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
