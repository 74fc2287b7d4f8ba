"""Errors that end a command with a message for the user and an exit status."""

from __future__ import annotations


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
