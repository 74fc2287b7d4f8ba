"""CSV files: reading untrusted ones within limits, and writing cells that a spreadsheet does not run as a formula."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pandas as pd

from safety import limits
from safety.errors import InputError

# Three times the size of the real Folds.csv; its longest line has 138 bytes.
MAX_BYTES = 2**24
MAX_LINE = 2**12
# Ten times as many as Folds.csv has. pandas allocates the widest row's memory for every row.
MAX_FIELDS = 50


def read(path: Path) -> pd.DataFrame:
    """Reads a CSV with a header line.

    Args:
        path: the file; UTF-8.

    Returns:
        A frame of texts; missing cells at the end of a row are empty texts.

    Raises:
        InputError: the file is too large, a line too long or a row too wide, or it is not a CSV in UTF-8.
    """
    return parse(limits.read_bytes(path, MAX_BYTES), path)


def parse(content: bytes, path: Path, delimiter: str = ",") -> pd.DataFrame:
    """Parses the content of a CSV file as `read` does; `path` is only for the messages."""
    longest = max(map(len, io.BytesIO(content)), default=0)
    if longest > MAX_LINE:
        raise InputError(f"{path}: a line must have at most {MAX_LINE} bytes, got {longest}")
    if b"\0" in content:
        raise InputError(f"{path}: must be a CSV in UTF-8, got a NUL byte")
    try:
        widest = max(map(len, csv.reader(io.StringIO(content.decode(), newline=""), delimiter=delimiter)), default=0)
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: must be a CSV in UTF-8: {error}") from None
    if widest > MAX_FIELDS:
        raise InputError(f"{path}: a row must have at most {MAX_FIELDS} fields, got {widest}")
    try:
        rows = pd.read_csv(io.BytesIO(content), sep=delimiter, dtype=str, keep_default_na=False, encoding="utf-8")
    except ValueError as error:
        # Without the name of pandas' parser.
        raise InputError(f"{path}: must be a CSV in UTF-8: {str(error).rpartition('C error: ')[2]}") from None
    if not isinstance(rows.index, pd.RangeIndex):
        raise InputError(f"{path}: a row must not have more fields than the header line")
    return rows.fillna("")


def spreadsheet_safe(value: object) -> str:
    """The value as text without control characters, with an apostrophe before what would be a formula."""
    text = limits.printable(str(value))
    return "'" + text if text.startswith(("=", "+", "-", "@")) else text
