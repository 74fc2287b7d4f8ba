"""Settings that a folder under runs/ was not started with: what goes on there with them would be something else."""

from __future__ import annotations

from pathlib import Path

import config
from safety import limits
from safety.errors import InputError


def between(before: config.Settings, after: config.Settings) -> dict[str, list]:
    """The settings that differ: name -> [value before, value after]."""
    sections = after.model_dump()
    return {
        f"{section}.{key}": [old, sections[section][key]]
        for section, keys in before.model_dump().items()
        for key, old in keys.items()
        if old != sections[section][key]
    }


def describe(folder: Path, name: str, values: list) -> str:
    """A changed setting in words, for an error; `name` and `values` as `between` returns them."""
    old, new = (limits.to_yaml(value)[:60] for value in values)
    return f"{folder} was started with {name}={old}, got {new}"


def refuse(folder: Path, settings: config.Settings) -> None:
    """Refuses to go on in a folder with other settings than those in its config.yaml.

    Args:
        folder: of a run or a cross-validation; one without a config.yaml has not been started.
        settings: to go on with; where they have `auto`, any value that was found for it is the same.

    Raises:
        InputError: a setting differs.
    """
    if not (folder / "config.yaml").is_file():
        return
    before = config.load_settings(folder / "config.yaml", of_run=True)
    changes = between(before, with_known_values(folder, settings))
    for name, values in changes.items():
        more = f" (and {len(changes) - 1} more that differ)" if len(changes) > 1 else ""
        raise InputError(f"{describe(folder, name, values)}{more}; change it back, or give another NAME")


def with_known_values(folder: Path, settings: config.Settings) -> config.Settings:
    """The settings with `auto` replaced by what was found for it: the values in the folder's config.yaml."""
    if not (folder / "config.yaml").is_file():
        return settings
    known = config.load_settings(folder / "config.yaml", of_run=True)
    data, train = settings.data, settings.train
    if data.stain_target == "auto" and data.stain == known.data.stain:
        data = data.model_copy(update={"stain_target": known.data.stain_target})
    for key in ("precision", "engine"):
        if getattr(train, key) == "auto":
            train = train.model_copy(update={key: getattr(known.train, key)})
    return settings.model_copy(update={"data": data, "train": train})
