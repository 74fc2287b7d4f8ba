"""The files in a folder of images that are not read: which are no files of the user, and how many there are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import PurePath

from safety import limits

# Suffixes that a message names.
NAMED = 6


def is_of_macos(path: PurePath) -> bool:
    """Whether macOS has left this file next to another on a foreign disk; it has the other's name and no image."""
    return path.name.startswith("._")


def count(paths: Iterable[PurePath]) -> str:
    """Counts files by their suffix.

    >>> count([PurePath("a.jpg"), PurePath("b.jpg"), PurePath("c.PNG"), PurePath("d")])
    '2 .jpg, 1 .PNG, 1 without a suffix'
    """
    suffixes = Counter(limits.printable(path.suffix[:20]) or "without a suffix" for path in paths).most_common()
    rest = sum(number for _, number in suffixes[NAMED:])
    words = [f"{number} {suffix}" for suffix, number in suffixes[:NAMED]]
    return ", ".join([*words, *([f"{rest} others"] if rest else [])])
