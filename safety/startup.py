"""Runs before any other import: checks the Python version, silences TensorFlow and ends commands quietly on signals."""

from __future__ import annotations

import os
import signal
import sys
import warnings

if not (3, 9) <= sys.version_info[:2] <= (3, 11):
    print(
        f"error: Python 3.9, 3.10 or 3.11 is needed (for TensorFlow Addons), got {sys.version.split()[0]}",
        file=sys.stderr,
    )
    sys.exit(2)

# TensorFlow reads this level at import. Level 2 still reports three missing CUDA plug-ins on machines without a GPU.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# TensorFlow Addons warns of its end of life at every import; requirements.txt pins versions that work with it.
warnings.filterwarnings("ignore", message=r"\s*TensorFlow Addons")


def exit_on_signals(name: str) -> None:
    """Makes Ctrl-C and SIGTERM end a command quietly, with status 130 or 143, until `command_line.run` handles them.

    The process ends at once, because an exception in the middle of an import could be caught or printed there.

    Args:
        name: `__name__` of the caller; only a command's is `__main__`. Where the module is imported, in a notebook for
            example, nothing changes.
    """
    if name != "__main__":
        return
    for number in (signal.SIGINT, signal.SIGTERM):
        # What the parent process has set to be ignored, as for a job in the background, stays ignored.
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda number, frame: os._exit(128 + number))
