"""The rule of the threshold, and the decision that evaluate.py keeps in a checkpoint: threshold and temperature."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

import config
from safety.errors import InputError

# Allowed, lowest and highest. A lower one would scale the surest probabilities of a float32 all to 1.0.
TEMPERATURES = (0.5, 10.0)
RULES = "a number from 0 to 1, youden, f1, or sensitivity=S with S above 0 and at most 1"


def check_rule(rule: str) -> str:
    """The rule with its number in plain form (`.5` is `0.5`); raises InputError unless it is one of RULES."""
    name, _, value = rule.partition("=")
    if not is_chosen(rule):
        return str(_number(rule))
    if name == "sensitivity" and _number(value):
        return f"{name}={_number(value)}"
    if rule in ("youden", "f1"):
        return rule
    raise InputError(f"--threshold: allowed are {RULES}, got {rule!r}")


def is_chosen(rule: str) -> bool:
    """Whether the rule chooses the threshold on the validation set; a number is the threshold itself."""
    return _number(rule) is None


def _number(text: str) -> float | None:
    try:
        return float(text) if 0 <= float(text) <= 1 else None
    except ValueError:
        return None


class Decision(config.Section):
    """What evaluate.py chose on the validation set.

    Attributes:
        rule: of the threshold.
        threshold: probability from which an image is called malignant.
        temperature: by which the log-odds are divided to calibrate the probabilities.
    """

    rule: Annotated[str, AfterValidator(check_rule)]
    threshold: float = Field(ge=0, le=1)
    temperature: float = Field(gt=0)
