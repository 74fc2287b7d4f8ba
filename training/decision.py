"""What evaluate.py chooses on the validation set and saves in the checkpoint: the threshold and the temperature."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

import config
from safety.errors import InputError

# Below 0.5, float32 probabilities close to 1 would all be scaled to exactly 1, and their order would be lost.
TEMPERATURE_RANGE = (0.5, 10.0)
# With fewer validation patients of a class the temperature stays 1: images of one patient resemble each other, so it
# would be that of a few patients. From five on, no single one is more than a fifth of its class.
MIN_PATIENTS = 5
# Numbers of exact turns of an image whose probabilities can be averaged: the plain image alone, or all.
VIEWS = (1, 8)
VIEWS_HELP = (
    "the probability of an image is that of the plain image (1) or the mean over its 8 exact quarter turns and mirrors "
    "(8), for validation and test; default: that of the checkpoint's last evaluation, else data.test_views"
)
RULES = "a number from 0 to 1, youden, f1, or sensitivity=S with S above 0 and at most 1"


def check_rule(rule: str) -> str:
    """The threshold rule with its number in plain form (`.5` becomes `0.5`).

    Raises:
        InputError: it is none of RULES.
    """
    name, _, value = rule.partition("=")
    if not is_chosen(rule):
        return str(_number(rule))
    if name == "sensitivity" and _number(value):
        return f"{name}={_number(value)}"
    if rule in ("youden", "f1"):
        return rule
    raise InputError(f"--threshold: allowed are {RULES}, got {rule!r}")


def is_chosen(rule: str) -> bool:
    """Whether the threshold is chosen on the validation set; False for a rule that is a number."""
    return _number(rule) is None


def _number(text: str) -> float | None:
    try:
        return float(text) if 0 <= float(text) <= 1 else None
    except ValueError:
        return None


class Decision(config.Section):
    """The key `decision` of a checkpoint: what evaluate.py chose on the validation set.

    Attributes:
        rule: of the threshold.
        threshold: probability from which an image is called malignant.
        temperature: by which the log-odds are divided to calibrate the probabilities.
        views: exact turns of each image whose mean probability is taken; earlier versions took the plain image alone.
    """

    rule: Annotated[str, AfterValidator(check_rule)]
    threshold: float = Field(ge=0, le=1)
    temperature: float = Field(ge=TEMPERATURE_RANGE[0], le=TEMPERATURE_RANGE[1])
    views: Literal[1, 8] = 1

    @model_validator(mode="after")
    def _threshold_is_that_of_the_rule(self) -> Decision:
        if not is_chosen(self.rule) and self.threshold != float(self.rule):
            raise ValueError(f"threshold must be the number of its rule, {self.rule}, got {self.threshold}")
        return self
