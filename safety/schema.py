"""The types of settings and of what files record: strict sections, texts, amounts, ranges, choices; their errors."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, TypeVar, Union

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from safety.errors import nearest


def explain(item: Any, settings: dict[str, str], files: dict) -> str:
    """An error of pydantic in words: the key, what is allowed and what was got, and the file that it is from.

    Args:
        item: of `ValidationError.errors()`.
        settings: names of all settings and sections, and what they are, with their range.
        files: name of a setting -> its file, or None.
    """
    name, setting = (".".join(map(str, parts)) for parts in (item["loc"], item["loc"][:2]))
    where = f"{files[setting]}: " if files.get(setting) else ""
    if item["type"] == "extra_forbidden":
        return f"{where}{name}: no such setting; the nearest is {nearest(name, [*settings], cutoff=0)}"
    if item["type"] == "missing":
        return f"{name}: is missing, and there is no default"
    message = item["msg"].removeprefix("Value error, ").replace("a valid boolean", "true or false")
    got = "" if "got" in message else f", got {str(item['input'])[:60]!r}"
    if item["type"] == "literal_error":
        choice = nearest(str(item["input"])[:60], re.findall("'(.*?)'", message))
        got += f"; the nearest is {choice}" * bool(choice)
    elif got and not message.startswith("must be") and settings.get(setting):
        got += f"; {setting} is: {settings[setting]}"
    # A check of several sections names the key by itself.
    return f"{where}{name}: {message[0].lower()}{message[1:]}{got}" if name else message


class Section(BaseModel):
    """A section of the settings; it refuses unknown keys and wrong types, and is immutable."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def _off_is_zero(value: Any) -> Any:
    return 0.0 if value is False or value == "off" else value


def _printable(value: str) -> str:
    if not value or not value.isprintable():
        raise ValueError("must be printable characters, at least one")
    return value


def _run_name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", value):
        raise ValueError("must be 1 to 100 letters, digits, ., _ and -, the first a letter or a digit")
    return value


def _auto_or_count(value: Any) -> Any:
    if value != "auto" and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise ValueError("must be auto or a whole number, 1 or more")
    return value


def _auto_or_numbers(value: Any) -> Any:
    numbers = isinstance(value, list) and all(type(item) in (int, float) and -10 <= item <= 10 for item in value)
    if value != "auto" and not numbers:
        raise ValueError("must be auto or a list of numbers from -10 to 10")
    return value


# Settings are printed as they are; other characters could control the terminal.
PrintableStr = Annotated[str, AfterValidator(_printable)]
RunName = Annotated[str, AfterValidator(_run_name)]
Amount = Annotated[float, BeforeValidator(_off_is_zero)]
Switch = Annotated[bool, BeforeValidator(lambda value: False if value in (0, "off") else value)]
Positive = Annotated[float, Field(gt=0)]
Momentum = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1, le=100_000)]

# Python 3.9 has no `|` of types, and pydantic evaluates these.
AutoOrCount = Annotated[Union[int, Literal["auto"]], BeforeValidator(_auto_or_count)]  # noqa: UP007
AutoOrNumbers = Annotated[Union[list[float], Literal["auto"]], BeforeValidator(_auto_or_numbers)]  # noqa: UP007


def _ordered(values: list[float]) -> list[float]:
    if values[0] > values[1]:
        raise ValueError(f"must be [low, high] with low at most high, got {values}")
    return values


def _distinct(values: list) -> list:
    if len(set(values)) < len(values):
        raise ValueError(f"must be choices that all differ, got {values}")
    return values


Item = TypeVar("Item")
Range = Annotated[list[Item], Field(min_length=2, max_length=2), AfterValidator(_ordered)]
Choices = Annotated[list[Item], Field(min_length=1), AfterValidator(_distinct)]
