"""Leaks: which images, slides and patients of one set are also in another."""

from __future__ import annotations

import pandas as pd

from images import splits

COLUMNS = {"image": "filename", "slide": "slide", "patient": "patient"}
# Slides in more than one set are listed by name up to this number.
MAX_NAMED = 5
# Validation patients of a class are listed by number up to this many: a fifth of BreakHis' 54 malignant ones, and some.
MAX_PATIENTS = 15


def measure(table: pd.DataFrame, drawn: pd.DataFrame | None = None) -> dict:
    """Measures what the test set shares with training and validation, and what validation shares with training.

    Args:
        table: frame with filename, label, slide, patient, set and, if known, pixels.
        drawn: the rows that training reads, of `splits.training_rows`; None for those of the training set.

    Returns:
        `shared`: for image, slide and patient the share (0 to 1) of test rows whose image (by pixels if known, else by
        name), slide or patient is also in the training set. `shared_with_validation`: the same for the validation set.
        `validation_shared`: the same for validation rows and the training set. `both_sides`: the slides of the test set
        that are also in the training or validation set. `sets`: for each set and class the numbers of rows, images,
        slides and patients. `validation_patients`: those of each class.
    """
    if drawn is not None:
        table = pd.concat([drawn, table[table.set != "train"]])
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
        "shared": _shares(test, train, keys),
        "shared_with_validation": _shares(test, valid, keys),
        "validation_shared": _shares(valid, train, keys),
        "both_sides": sorted(set(test.slide) & set(table.slide[table.set.isin(["train", "valid"])])),
        "sets": {name: sizes[name] for name in splits.SETS if name in sizes},
        "validation_patients": {label: sorted(rows.patient.unique()) for label, rows in valid.groupby("label")},
    }


def _shares(rows: pd.DataFrame, others: pd.DataFrame, keys: dict[str, str]) -> dict[str, float]:
    return {key: float(rows[column].isin(others[column]).mean()) if len(rows) else 0.0 for key, column in keys.items()}


def describe(table: pd.DataFrame, drawn: pd.DataFrame | None = None) -> str:
    """The sizes of the sets and the leaks between them, as text; arguments as in `measure`."""
    measured = measure(table, drawn)
    sizes = pd.DataFrame({(name, label): n for name, part in measured["sets"].items() for label, n in part.items()}).T
    lines = [sizes.to_string(), "", verdict(measured), f"({describe_shares(measured)})"]
    if 0 < len(measured["both_sides"]) <= MAX_NAMED:
        slides = ", ".join(measured["both_sides"])
        lines.append(f"(slides in the test set that are also in the training or validation set: {slides})")
    if drawn is not None:
        images = table.filename[table.set == "train"].nunique()
        lines.append(
            f"training rows: {len(drawn)}, drawn from {drawn.filename.nunique()} of the {images} training images"
        )
    for label, patients in measured["validation_patients"].items():
        named = f": {', '.join(patients)}" if len(patients) <= MAX_PATIENTS else ""
        lines.append(f"validation patients, {label}: {len(patients)}{named}")
    return "\n".join(lines)


def describe_shares(measured: dict) -> str:
    """The shares of `measure` in percent, in one line; those of the test with validation only if there are any."""
    pairs = {"test images that share with training": measured["shared"]}
    if any(measured["shared_with_validation"].values()):
        pairs["with validation"] = measured["shared_with_validation"]
    if measured["validation_patients"]:
        pairs["validation images that share with training"] = measured["validation_shared"]
    return "; ".join(
        f"{pair}: " + ", ".join(f"{share:.1%} their {key}" for key, share in shares.items())
        for pair, shares in pairs.items()
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
