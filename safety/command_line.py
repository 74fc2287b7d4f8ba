"""The front door of every command: arguments, errors in one line, exit status."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path
from typing import Any, Callable

from safety import limits
from safety.errors import InputError


def _utf8(text: str) -> str:
    if any("\ud800" <= char <= "\udfff" for char in text):
        raise argparse.ArgumentTypeError(f"allowed is UTF-8, got {text!r}")
    return text


class CommandLine(argparse.ArgumentParser):
    """An argument parser that takes settings too and says what is wrong in one line.

    Args:
        description: what the command does; shown by --help.
    """

    def __init__(self, description: str) -> None:
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
        # TensorFlow takes no other names of files, and no report can hold them; `type=str` lets them pass.
        self.register("type", None, _utf8)
        self.register("type", Path, lambda text: Path(_utf8(text)))

    def parse(self, arguments: list[str]) -> argparse.Namespace:
        """Parses the arguments, settings and options in any order."""
        return self.parse_intermixed_args(arguments)

    def error(self, message: str) -> None:
        raise InputError(f"{message}; --help tells more")


class Terminated(KeyboardInterrupt):
    """SIGTERM came."""


def _terminate(number: int, frame: Any) -> None:
    raise Terminated


def run(main: Callable[[list[str]], int | None]) -> None:
    """Runs a command's `main` with the shell's arguments and exits with the status that it returns (None is 0).

    Wrong input ends in one line and exit status 2, data that must be mended in a line for each finding and 1.
    """
    if signal.getsignal(signal.SIGTERM) != signal.SIG_IGN:
        signal.signal(signal.SIGTERM, _terminate)
    # What the terminal cannot show is escaped, as Python does on standard error by itself.
    if sys.stdout:
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        sys.exit(main(sys.argv[1:]))
    except InputError as error:
        print("error:", "\n".join(map(limits.printable, error.lines)), file=sys.stderr)
        sys.exit(error.status)
    except KeyboardInterrupt as stop:
        sys.exit(143 if isinstance(stop, Terminated) else 130)
    except BrokenPipeError:
        # The reader, `head` say, has seen enough; Python would complain once more when it flushes at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(limits.printable(f"error: {where}cannot be written or read: {error.strerror or error}"), file=sys.stderr)
        sys.exit(2)
