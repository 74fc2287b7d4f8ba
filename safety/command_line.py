"""What all commands share: the argument parser, errors as one line, exit statuses."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

from safety import errors, limits, signals, startup
from safety.errors import InputError


def _utf8(text: str) -> str:
    if any("\ud800" <= char <= "\udfff" for char in text):
        raise argparse.ArgumentTypeError(f"must be UTF-8, got {text!r}")
    return text


class CommandLine(argparse.ArgumentParser):
    """An argument parser that raises InputError, and accepts options and settings in any order.

    Args:
        description: what the command does; shown by --help.
    """

    def __init__(self, description: str) -> None:
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
        # TensorFlow opens no file names other than UTF-8, and no report can hold them; `type=str` accepts them.
        self.register("type", None, _utf8)
        self.register("type", Path, lambda text: Path(_utf8(text)))

    def parse(self, arguments: list[str]) -> argparse.Namespace:
        """The parsed arguments; raises InputError for wrong ones."""
        return self.parse_intermixed_args(arguments)

    def error(self, message: str) -> None:
        # argparse names the option alone and not what it takes.
        if option := re.fullmatch(r"argument (--\S+): expected one argument", message):
            needed = re.search(rf"{option[1]} ([^]\s]+)", self.format_usage())
            message = f"needed is {needed[0]}, got no {needed[1]}"
        raise InputError(f"{message}; see --help")


class Terminated(KeyboardInterrupt):
    """The process received SIGTERM."""


def _terminate(number: int, frame: Any) -> None:
    raise Terminated


@contextlib.contextmanager
def _stop_signals_raise() -> Iterator[None]:
    """Ctrl-C and SIGTERM raise KeyboardInterrupt in the block; after it they end a command at once, as before it."""
    before = {number: signal.getsignal(number) or signal.SIG_DFL for number in signals.STOP_SIGNALS}
    try:
        for number, handler in zip(before, (signal.default_int_handler, _terminate)):
            if before[number] != signal.SIG_IGN:
                signal.signal(number, handler)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run(main: Callable[[list[str]], int | None]) -> None:
    """Runs a command's `main` and exits; never shows a traceback for wrong input, broken data or a signal.

    Args:
        main: takes the arguments of the shell and returns the exit status; None means 0.

    Exit status: that of `main`; 1 for DataError, 2 for other wrong input and for files that cannot be read or written,
    130 for Ctrl-C, 141 if the reader of the output is gone, 143 for SIGTERM.
    """
    startup.end_imports()
    # Characters that the terminal cannot show are escaped; Python does so by itself only on standard error.
    if sys.stdout:
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with _stop_signals_raise():
            status = main(sys.argv[1:])
            # Where Python does this itself, at the very end, an error is more than one line.
            if sys.stdout:
                sys.stdout.flush()
        sys.exit(status)
    except InputError as error:
        print("error:", "\n".join(map(limits.printable, error.lines)), file=sys.stderr)
        sys.exit(error.status)
    except KeyboardInterrupt as interrupt:
        sys.exit(143 if isinstance(interrupt, Terminated) else 130)
    except BrokenPipeError:
        # The reader, such as `head`, has closed the pipe.
        _discard_output()
        sys.exit(141)
    except OSError as error:
        if error.filename is None:
            _discard_output()
        print("error:", limits.printable(errors.describe(error)), file=sys.stderr)
        sys.exit(2)


def _discard_output() -> None:
    """Discards what standard output could not take; otherwise Python's last flush would print another error."""
    # An output that is no file, as in a notebook, has no descriptor.
    with contextlib.suppress(io.UnsupportedOperation, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
