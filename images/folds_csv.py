"""Folds.csv as other programs may have saved it: what is unambiguous is normalised, and noted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd

import config
from safety import csv_files, limits
from safety.errors import InputError

COLUMNS = ["fold", "mag", "grp", "filename"]
DELIMITERS = [",", ";", "\t", "|"]
# Not line breaks: no name has one.
BLANKS = " \t\N{NO-BREAK SPACE}"
# What a hosted notebook or another computer puts before the folders of the archive; never `..`.
ABOVE = (
    r"^(?!(?:BreaKHis_v1/){0,2}histology_slides/)(?!(?:.*/)?\.\./).*/(?=histology_slides/breast/(?:benign|malignant)/)"
)


def _replaced(pattern: str, by: str) -> Callable[[pd.Series], pd.Series]:
    return lambda cells: cells.str.replace(pattern, by, regex=True)


# Columns, what is normalised in them, and how; in this order.
STEPS = [
    (COLUMNS, "blanks around", lambda cells: cells.str.strip(BLANKS)),
    (COLUMNS, "quotes around", _replaced(r'^"([^"]*)"\Z', r"\1")),
    (["fold", "mag"], "decimals of", _replaced(r"^([0-9]+)\.0+\Z", r"\1")),
    (["mag"], "X after", _replaced(r"^([0-9]+)[xX]\Z", r"\1")),
    (["grp"], "capitals in", lambda cells: cells.str.lower()),
    (["filename"], "backslashes in", lambda cells: cells.str.replace("\\", "/", regex=False)),
    (["filename"], "./ before", _replaced(r"^(?:\./)+", "")),
    (["filename"], "folders above histology_slides in", _replaced(ABOVE, "")),
]


def read(path: Path) -> tuple[pd.DataFrame, pd.DataFrame, str]:
    """Reads Folds.csv; its values are not checked.

    Args:
        path: CSV with the columns fold, mag, grp, filename, separated by commas, semicolons, tabs or bars.

    Returns:
        The rows with COLUMNS as normalised texts, the same as the file has them, and a note on what was normalised,
        empty for nothing. The index is the row's line in the file, from 1; blank lines count.

    Raises:
        InputError: the file is missing, is not a CSV, has no rows, or lacks a column or has it twice.
    """
    if not path.is_file():
        what = "is no file" if path.exists() else "does not exist"
        raise InputError(f"data.folds: must be a CSV file or tree, got {str(path)!r}, which {what}; {config.GET_DATA}")
    content = limits.read_bytes(path, csv_files.MAX_BYTES)
    header = content.removeprefix(b"\xef\xbb\xbf").lstrip().partition(b"\n")[0]
    delimiter = max(DELIMITERS, key=lambda delimiter: header.count(delimiter.encode()))
    given = csv_files.parse_lines(content, path, delimiter)
    names = [str(name).strip(BLANKS).strip('"').lower() for name in given.columns]
    for column in COLUMNS:
        if names.count(column) != 1:
            found = "missing" if column not in names else "there twice"
            got = ", ".join(repr(str(name)[:50]) for name in given.columns[:8])
            raise InputError(f"{path}: column {column} is {found}; must have {', '.join(COLUMNS)}, got {got}")
    if given.empty:
        raise InputError(f"{path}: must have at least one row, got none")
    changes = [f"separator {delimiter!r}"] if delimiter != "," else []
    changes += ["blanks or capitals in the header"] if not set(COLUMNS) <= set(given.columns) else []
    given = given.set_axis(names, axis=1)[COLUMNS]
    rows, counts = _normalise(given)
    note = f"{limits.printable(str(path))}: read although its notation differs: {', '.join(changes + counts)}"
    return rows, given, note if changes + counts else ""


def _normalise(given: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """The normalised rows, and for each kind of change how many values it concerns."""
    rows, counts = given.copy(), []
    for columns, words, step in STEPS:
        for column in columns:
            # Each name is there in every fold, so most values are there several times.
            distinct = pd.Series(rows[column].unique())
            after = rows[column].map(dict(zip(distinct, step(distinct))))
            changed = int((after != rows[column]).sum())
            counts += [f"{words} {changed} values of {column}"] if changed else []
            rows[column] = after
    return rows, counts
