"""CSV files: reading those that others made within limits, and cells that no spreadsheet takes for a formula."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pandas as pd

from safety import limits
from safety.errors import InputError

# Three times the real Folds.csv, whose longest line has 138 bytes.
MAX_BYTES = 2**24
MAX_LINE = 2**12
# Ten times those of Folds.csv. pandas takes the memory of the widest row for each, however short.
MAX_FIELDS = 50


def read(path: Path) -> pd.DataFrame:
    """The cells of a CSV as texts, empty where a row is short.

    Raises:
        InputError: the file is too large, a line too long, a row too wide, or it is no CSV in UTF-8.
    """
    return parse(limits.read_bytes(path, MAX_BYTES), path)


def parse(content: bytes, path: Path, delimiter: str = ",") -> pd.DataFrame:
    """The cells of a CSV's content, as `read` gives them; `path` is for the messages."""
    longest = max(map(len, io.BytesIO(content)), default=0)
    if longest > MAX_LINE:
        raise InputError(f"{path}: allowed are lines of {MAX_LINE} bytes, got one of {longest}")
    if b"\0" in content:
        raise InputError(f"{path}: is no CSV in UTF-8: it holds a NUL byte")
    try:
        widest = max(map(len, csv.reader(io.StringIO(content.decode(), newline=""), delimiter=delimiter)), default=0)
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: is no CSV in UTF-8: {error}") from None
    if widest > MAX_FIELDS:
        raise InputError(f"{path}: allowed are rows of {MAX_FIELDS} fields, got one of {widest}")
    try:
        rows = pd.read_csv(io.BytesIO(content), sep=delimiter, dtype=str, keep_default_na=False, encoding="utf-8")
    except ValueError as error:
        # Behind what pandas says of its own parser.
        raise InputError(f"{path}: is no CSV in UTF-8: {str(error).rpartition('C error: ')[2]}") from None
    if not isinstance(rows.index, pd.RangeIndex):
        raise InputError(f"{path}: its rows have more fields than its first line names")
    return rows.fillna("")


def spreadsheet_safe(value: object) -> str:
    """A text that breaks no CSV and that no spreadsheet takes for a formula."""
    shown = limits.printable(str(value))
    return "'" + shown if shown.startswith(("=", "+", "-", "@")) else shown
