"""Leaks: which images, slides and patients of the test set are also in the training or validation set."""

from __future__ import annotations

import pandas as pd

from images import splits

COLUMNS = {"image": "filename", "slide": "slide", "patient": "patient"}
# Slides in more than one set are listed by name up to this number.
MAX_NAMED = 5


def measure(table: pd.DataFrame) -> dict:
    """Measures what the test set shares with the training set and with the validation set.

    Args:
        table: frame with filename, label, slide, patient, set and, if known, pixels.

    Returns:
        `shared`: for image, slide and patient the share (0 to 1) of test rows whose image (by pixels if known, else by
        name), slide or patient is also in the training set. `shared_with_validation`: the same for the validation set.
        `both_sides`: the slides of the test set that are also in the training or validation set. `sets`: for each set
        and class the numbers of rows, images, slides and patients.
    """
    train, valid, test = (table[table.set == name] for name in splits.SETS[:3])
    keys = COLUMNS | ({"image": "pixels"} if "pixels" in table else {})
    sizes = {
        name: {
            label: {"rows": len(rows), **{f"{key}s": int(rows[column].nunique()) for key, column in COLUMNS.items()}}
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
    """The sizes of the sets and the leaks between them, as text; `table` as in `measure`."""
    measured = measure(table)
    sizes = pd.DataFrame({(name, label): n for name, part in measured["sets"].items() for label, n in part.items()}).T
    lines = [sizes.to_string(), "", verdict(measured), f"({describe_shares(measured)})"]
    if 0 < len(measured["both_sides"]) <= MAX_NAMED:
        slides = ", ".join(measured["both_sides"])
        lines.append(f"(slides in the test set that are also in the training or validation set: {slides})")
    return "\n".join(lines)


def describe_shares(measured: dict) -> str:
    """The shares of `measure` in percent, in one line; those of the validation set only if there are any."""
    sets = {"training": measured["shared"]}
    if any(measured["shared_with_validation"].values()):
        sets["validation"] = measured["shared_with_validation"]
    return "test images that share with " + "; with ".join(
        f"{name}: " + ", ".join(f"{share:.1%} their {key}" for key, share in shares.items())
        for name, shares in sets.items()
    )


def verdict(measured: dict) -> str:
    """What a score on this split measures, in one to three sentences; `measured` is the result of `measure`."""
    shared, validation = measured["shared"], _validation_sentence(measured["shared_with_validation"])
    if shared["image"]:
        return (
            f"{shared['image']:.1%} of the test images are also in the training set: the score is not a measure of new "
            f"images. It shows what the network remembers.{validation}"
        )
    if shared["slide"]:
        return (
            f"{shared['slide']:.1%} of the test images come from slides of the training set: the score is optimistic; "
            f"it is not a measure of new slides or patients.{validation}"
        )
    if shared["patient"]:
        return (
            f"No test image or slide is in the training set, but {shared['patient']:.1%} of the test images come from "
            f"patients that are: the score may be optimistic.{validation}"
        )
    alone = "No test image, slide or patient is in the training set"
    return f"{alone}.{validation}" if validation else f"{alone}: the score measures new patients of this data set."


def _validation_sentence(shared: dict[str, float]) -> str:
    for key, share in shared.items():
        if share:
            return (
                f" {share:.1%} of the test images share their {key} with the validation set, on which the epoch, the "
                "threshold and the temperature were chosen, so the score is optimistic."
            )
    return ""
