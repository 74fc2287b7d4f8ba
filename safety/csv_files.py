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
    return parse_lines(content, path, delimiter).reset_index(drop=True)


def parse_lines(content: bytes, path: Path, delimiter: str = ",") -> pd.DataFrame:
    """Parses the content of a CSV file as `parse` does.

    Returns:
        The frame of `parse`, whose index is the line, from 1, in which a row begins; blank lines count, but are no
        rows.
    """
    longest = max(map(len, io.BytesIO(content)), default=0)
    if longest > MAX_LINE:
        raise InputError(f"{path}: a line must have at most {MAX_LINE} bytes, got {longest}")
    if b"\0" in content:
        raise InputError(f"{path}: must be a CSV in UTF-8, got a NUL byte")
    try:
        rows = _rows(content.decode("utf-8-sig"), delimiter)
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: must be a CSV in UTF-8: {error}") from None
    if not rows:
        raise InputError(f"{path}: must be a CSV in UTF-8: it has no line")
    widest = max(map(len, rows.values()))
    if widest > MAX_FIELDS:
        raise InputError(f"{path}: a row must have at most {MAX_FIELDS} fields, got {widest}")
    (_, header), *lines = rows.items()
    if widest > len(header):
        raise InputError(f"{path}: a row must not have more fields than the header line")
    cells = [row + [""] * (widest - len(row)) for _, row in lines]
    return pd.DataFrame(cells, [line for line, _ in lines], _distinct(header), dtype=object)


def _rows(text: str, delimiter: str) -> dict[int, list[str]]:
    """The cells of each row by the line in which it begins; strict, so that an open quote cannot hide rows."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows, line = {}, 1
    for cells in reader:
        if len(cells) > 1 or "".join(cells).strip():
            rows[line] = cells
        line = reader.line_num + 1
    return rows


def _distinct(names: list[str]) -> list[str]:
    """The names of the columns; the second of a name gets a number, as pandas gives it."""
    return [
        f"{name}.{names[:place].count(name)}" if name in names[:place] else name for place, name in enumerate(names)
    ]


def spreadsheet_safe(value: object) -> str:
    """The value as text without control characters, with an apostrophe before what would be a formula."""
    text = limits.printable(str(value))
    return "'" + text if text.startswith(("=", "+", "-", "@")) else text
