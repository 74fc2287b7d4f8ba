"""What others wrote: read within limits, refused in one line, and told in plain characters."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML, tokens
from ruamel.yaml.error import YAMLError

from safety.errors import InputError

# Ten times what every setting with its comment takes; what a parser in Python reads in two seconds at the worst.
YAML_BYTES = 2**15
YAML_DEPTH = 10
# Of a value without quotes. Python does not print a whole number of more than 4,300 digits, not even in an error.
YAML_PLAIN = 1000
UNPLAIN = (tokens.AliasToken, tokens.AnchorToken, tokens.DirectiveToken, tokens.TagToken)
OPENING = (
    tokens.BlockMappingStartToken,
    tokens.BlockSequenceStartToken,
    tokens.FlowMappingStartToken,
    tokens.FlowSequenceStartToken,
)
CLOSING = (tokens.BlockEndToken, tokens.FlowMappingEndToken, tokens.FlowSequenceEndToken)


def parse_yaml(text: str, source: str) -> Any:
    """Reads YAML 1.2 of plain values (1e-4 is a number); raises InputError, naming `source`, for anything else."""
    if len(text) > YAML_BYTES:
        raise InputError(f"{source}: no plain YAML: allowed are {YAML_BYTES} characters, got {len(text)}")
    try:
        _refuse_unplain(text)
        return YAML(typ="safe", pure=True).load(text)
    except (YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or str(error) or type(error).__name__
        raise InputError(f"{source}{where}: no plain YAML: {reason}") from None


def _refuse_unplain(text: str) -> None:
    # Aliases of aliases unfold to any size, a tag asks for more than a plain value, and nesting takes quadratic time.
    depth = 0
    for token in YAML(typ="safe", pure=True).scan(text):
        line = token.start_mark.line + 1
        if isinstance(token, UNPLAIN):
            raise ValueError(f"line {line} has a tag, anchor, alias or directive")
        if isinstance(token, tokens.ScalarToken) and token.plain and len(token.value) > YAML_PLAIN:
            raise ValueError(f"line {line} has {len(token.value)} characters without quotes, allowed are {YAML_PLAIN}")
        depth += isinstance(token, OPENING) - isinstance(token, CLOSING)
        if depth > YAML_DEPTH:
            raise ValueError(f"line {line} is nested deeper than {YAML_DEPTH} levels")


def read_bytes(path: Path, limit: int) -> bytes:
    """The content of a file of at most `limit` bytes; raises InputError for a larger one, a folder, pipe or device."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{path}: is no regular file")
        if status.st_size > limit:
            raise InputError(f"{path}: allowed are {limit} bytes, got {status.st_size}")
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None


def is_within(path: Path, folder: Path) -> bool:
    """Whether the path stays in the folder (or is it) when all links on the way are followed, the folder's own too."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def printable(text: str) -> str:
    """The text with every character escaped that would steer a terminal or begin a new line."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
