"""Ctrl-C and SIGTERM: deferred where an interruption would do harm, immediate where Python would wait."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def deferred() -> Iterator[list[int]]:
    """Ctrl-C and SIGTERM take effect when the block ends; a second one takes effect at once.

    Yields:
        The numbers of the signals received so far.
    """
    received: list[int] = []
    # Python runs signal handlers in the main thread only, and lets only that thread set them.
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def receive(number: int, frame: object) -> None:
        received.append(number)
        if len(received) > 1:
            raise KeyboardInterrupt

    # A signal that the parent process has set to be ignored, as for a job in the background, stays ignored.
    active = [number for number in STOP_SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    handlers = {number: signal.signal(number, receive) for number in active}
    try:
        yield received
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if received:
            signal.raise_signal(received[0])


@contextlib.contextmanager
def immediate() -> Iterator[None]:
    """Ctrl-C and SIGTERM end the process at once; inside a blocking C call Python would handle them only afterwards."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.signal(number, signal.SIG_DFL) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
