"""Untrusted input: read within limits, refused in one line, and printed without control characters."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML, tokens
from ruamel.yaml.error import YAMLError

from safety.errors import InputError

# Ten times the size of config.yaml with its comments; the slowest such file takes the parser two seconds.
YAML_BYTES = 2**15
YAML_DEPTH = 10
# Characters of a value without quotes: Python cannot print an integer of more than 4,300 digits, even in an error.
YAML_UNQUOTED = 1000
REFUSED = (tokens.AliasToken, tokens.AnchorToken, tokens.DirectiveToken, tokens.TagToken)
OPENING = (
    tokens.BlockMappingStartToken,
    tokens.BlockSequenceStartToken,
    tokens.FlowMappingStartToken,
    tokens.FlowSequenceStartToken,
)
CLOSING = (tokens.BlockEndToken, tokens.FlowMappingEndToken, tokens.FlowSequenceEndToken)


def parse_yaml(text: str, source: str) -> Any:
    """Parses YAML 1.2 of plain values, in which 1e-4 is a number.

    Args:
        text: at most YAML_BYTES characters.
        source: name of the file or setting, for the messages.

    Returns:
        The value: dict, list, text, number, bool or None.

    Raises:
        InputError: the text is too long, is not YAML, or has tags, anchors, aliases, directives or deep nesting.
    """
    if len(text) > YAML_BYTES:
        raise InputError(f"{source}: must have at most {YAML_BYTES} characters, got {len(text)}")
    try:
        _check_plain(text)
        return YAML(typ="safe", pure=True).load(text)
    except (YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or str(error) or type(error).__name__
        raise InputError(f"{source}{where}: must be plain YAML: {reason}") from None


def read_sections(path: Path) -> dict[str, dict]:
    """A YAML file of sections of keys, as config.yaml is.

    Raises:
        InputError: the file is missing, is not plain YAML, or holds something else.
    """
    try:
        text = read_bytes(path, YAML_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{path}: must be UTF-8 text") from None
    values = parse_yaml(text, str(path))
    keys = values.items() if isinstance(values, dict) else [("", values)]
    wrong = [f"{key}: {value}".removeprefix(": ") for key, value in keys if not isinstance(value, dict)]
    if wrong:
        raise InputError(f"{path}: must hold sections of keys, as config.yaml does, got {wrong[0][:60]!r}")
    return values


def to_yaml(value: Any) -> str:
    """A text, number, bool, None or list of them as YAML in one line.

    >>> to_yaml([[True, False], 0.5, "all"])
    '[[true, false], 0.5, "all"]'
    """
    return value if isinstance(value, str) else json.dumps(value)


def _check_plain(text: str) -> None:
    """Raises ValueError for what could use unlimited memory or time: aliases of aliases, tags, deep nesting."""
    depth = 0
    for token in YAML(typ="safe", pure=True).scan(text):
        line = token.start_mark.line + 1
        if isinstance(token, REFUSED):
            raise ValueError(f"line {line} has a tag, anchor, alias or directive")
        if isinstance(token, tokens.ScalarToken) and token.plain and len(token.value) > YAML_UNQUOTED:
            raise ValueError(
                f"line {line}: a value without quotes must have at most {YAML_UNQUOTED} characters, "
                f"got {len(token.value)}"
            )
        depth += isinstance(token, OPENING) - isinstance(token, CLOSING)
        if depth > YAML_DEPTH:
            raise ValueError(f"line {line} is nested deeper than {YAML_DEPTH} levels")


def read_bytes(path: Path, limit: int) -> bytes:
    """The content of a regular file.

    Args:
        path: the file.
        limit: largest size in bytes.

    Raises:
        InputError: the file cannot be read, is larger, or is a folder, pipe or device.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{path}: must be a regular file")
        if status.st_size > limit:
            raise InputError(f"{path}: must have at most {limit} bytes, got {status.st_size}")
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None


def is_within(path: Path, folder: Path) -> bool:
    """Whether `path` is `folder` or is in it after all symbolic links, also those of `folder`, are resolved."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def printable(text: str) -> str:
    """The text with line breaks and all other characters that could control a terminal escaped."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
