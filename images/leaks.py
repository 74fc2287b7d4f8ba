"""What the test set of a split shares with its training and validation sets."""

from __future__ import annotations

import pandas as pd

from images import splits

NAMES = {"image": "filename", "slide": "slide", "patient": "patient"}
# More slides than these are counted, not named.
NAMED = 5


def measure(table: pd.DataFrame) -> dict:
    """What the test set shares with the training set and with the validation set.

    Returns:
        `shared`: for image, slide and patient the share (0 to 1) of test rows whose image (by pixels where known, else
        by name), slide, patient stands in training too. `shared_with_validation`: the same of validation. `sets`: rows,
        images, slides and patients of each set and class. `both_sides`: the slides in test and in training or
        validation.
    """
    train, valid, test = (table[table.set == name] for name in splits.SETS[:3])
    keys = {"image": "pixels" if "pixels" in table else "filename", "slide": "slide", "patient": "patient"}
    sizes = {
        name: {
            label: {"rows": len(rows), **{f"{key}s": int(rows[column].nunique()) for key, column in NAMES.items()}}
            for label, rows in part.groupby("label")
        }
        for name, part in table.groupby("set")
    }
    return {
        "shared": {key: float(test[column].isin(train[column]).mean()) for key, column in keys.items()},
        "shared_with_validation": {key: float(test[column].isin(valid[column]).mean()) for key, column in keys.items()},
        "both_sides": sorted(set(test.slide) & set(table.slide[table.set.isin(["train", "valid"])])),
        "sets": {name: sizes[name] for name in splits.SETS if name in sizes},
    }


def describe(table: pd.DataFrame) -> str:
    """The sets in numbers, and what the test set shares with the training set, in plain words."""
    found = measure(table)
    sizes = pd.DataFrame({(name, label): n for name, part in found["sets"].items() for label, n in part.items()}).T
    lines = [sizes.to_string(), "", verdict(found), f"({describe_shares(found)})"]
    if 0 < len(found["both_sides"]) <= NAMED:
        lines.append(f"(slides on both sides, in test and in training or validation: {', '.join(found['both_sides'])})")
    return "\n".join(lines)


def describe_shares(found: dict) -> str:
    """What the test set shares with training, and with validation if it does, in percent; of `leaks`."""
    parts = {"training": found["shared"], "validation": found["shared_with_validation"]}
    told = {
        name: ", ".join(f"{share:.1%} their {key}" for key, share in shared.items())
        for name, shared in parts.items()
        if name == "training" or any(shared.values())
    }
    return "test images that share with " + "; with ".join(f"{name}: {shares}" for name, shares in told.items())


def verdict(found: dict) -> str:
    """What a score on this split measures, in a sentence or two; `found` comes from `leaks`."""
    shared, chosen = found["shared"], _share_of_choices(found["shared_with_validation"])
    if shared["image"]:
        return (
            f"{shared['image']:.1%} of the test images stand in the training set: the score is not a measure of new "
            f"images. It shows what the network remembers.{chosen}"
        )
    if shared["slide"]:
        return (
            f"{shared['slide']:.1%} of the test images come from slides of the training set: the score flatters; "
            f"it is no measure of new slides or patients.{chosen}"
        )
    if shared["patient"]:
        return (
            f"No test image or slide stands in training, but {shared['patient']:.1%} of the test images come from "
            f"patients that do: the score may flatter.{chosen}"
        )
    if chosen:
        return f"No test image, slide or patient stands in training.{chosen}"
    return "No test image, slide or patient stands in training: the score is one for new patients of this data set."


def _share_of_choices(shared: dict[str, float]) -> str:
    for key, share in shared.items():
        if share:
            return (
                f" {share:.1%} of the test images share their {key} with the validation set, on which the epoch, the "
                "threshold and the temperature were chosen, which flatters the score."
            )
    return ""
