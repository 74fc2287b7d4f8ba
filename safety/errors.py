"""What the user is told in one line, with the exit status that goes with it."""

from __future__ import annotations


class InputError(ValueError):
    """What the user gave is wrong: one line that names it, what is allowed and what came; exit status 2."""

    status = 2

    @property
    def lines(self) -> list[str]:
        """What the user is told."""
        return [" ".join(str(self).split())]


class DataError(InputError):
    """The data has findings that must be mended: a line that counts them, then a line each; exit status 1."""

    status = 1

    @property
    def lines(self) -> list[str]:
        """What the user is told."""
        return str(self).splitlines()
