"""Repeated k-fold that keeps patients, slides or images whole, and the folds that `splits/` publishes."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from images import splits
from safety import csv_files
from safety.errors import InputError

CANONICAL = Path(__file__).parents[1] / "splits" / "patient-5fold.csv"
ADVICE = "; --draw draws folds for these images"
UNITS = ["patient", "slide", "image"]


def draw(table: pd.DataFrame, unit: str = "patient", folds: int = 5, repeats: int = 1, seed: int = 0) -> pd.DataFrame:
    """Draws repeated, stratified k-fold over whole units.

    In each repeat the units of a subtype are dealt to the folds one by one, in random order, each to the fold that has
    the fewest units of this subtype; among equals the one with the fewest units of the class, then with the fewest
    images of the class, then any. So the folds differ by at most one unit of each subtype and of each class.
    scikit-learn's StratifiedGroupKFold evens out images alone: it leaves two to six of BreakHis' 16 benign patients
    in a fold and hardly depends on its seed.

    Args:
        table: images with filename, label, slide, patient, subtype and, where known, pixels; rows that repeat a file
            name count once. The draw depends on the names and the seed, not on the order of the rows.
        unit: what is kept in one fold: patient, slide or image. Images of equal pixels are one unit in any case.
        folds: number of folds, at least 2.
        repeats: number of independent draws; the first ones do not depend on how many follow.
        seed: of the draws, 0 to 2**32 - 1.

    Returns:
        A row an image and repeat, ordered by repeat and filename: filename, repeat (from 1), fold (1 to `folds`).

    Raises:
        InputError: an argument is out of its range, or a class has fewer units than folds.
    """
    if unit not in UNITS or folds < 2 or repeats < 1:
        raise InputError(
            f"folds: allowed are a unit of {', '.join(UNITS)}, 2 or more folds, 1 or more repeats, "
            f"got {unit}, {folds}, {repeats}"
        )
    images = table.drop_duplicates("filename").sort_values("filename", ignore_index=True)
    units = splits.group_ids(images, unit)
    # Named after their first image, so that the draw depends on no numbering.
    units = units.map(images.filename.groupby(units).min())
    labels, subtypes = images.label.groupby(units).first(), splits.rarest_subtypes(images, units)
    groups = pd.DataFrame({"label": labels, "subtype": subtypes, "images": units.value_counts()})
    _refuse_unless_fits(groups, unit, folds)
    rng = np.random.RandomState(seed)
    drawn = [
        pd.DataFrame({"filename": images.filename, "repeat": repeat, "fold": units.map(_deal(groups, folds, rng))})
        for repeat in range(1, repeats + 1)
    ]
    return pd.concat(drawn, ignore_index=True)


def _refuse_unless_fits(groups: pd.DataFrame, unit: str, folds: int) -> None:
    counts = groups.label.value_counts().reindex(["benign", "malignant"], fill_value=0)
    if counts.min() < folds:
        raise InputError(
            f"folds: every fold needs a {unit} of each class: at most {counts.min()} folds fit "
            f"(benign {counts.benign}, malignant {counts.malignant} {unit}s), got {folds}"
        )


def _deal(groups: pd.DataFrame, folds: int, rng: np.random.RandomState) -> pd.Series:
    """The fold (from 1) of each unit; `draw` says by which rule."""
    fold_of = pd.Series(0, groups.index)
    for _, of_class in groups.groupby("label"):
        units, images = np.zeros(folds, int), np.zeros(folds, int)
        for _, of_subtype in of_class.groupby("subtype"):
            same = np.zeros(folds, int)
            for unit in rng.permutation(of_subtype.index):
                fold = np.lexsort((rng.permutation(folds), images, units, same))[0]
                fold_of[unit] = fold + 1
                same[fold] += 1
                units[fold] += 1
                images[fold] += of_subtype.images[unit]
    return fold_of


def is_published(table: pd.DataFrame) -> bool:
    """Whether every patient of the table has a place in the published folds."""
    return set(table.patient) <= set(csv_files.read(CANONICAL).patient)


def read_canonical(table: pd.DataFrame, repeats: int = 1) -> pd.DataFrame:
    """The published folds, `splits/patient-5fold.csv`, of the images in a table.

    Args:
        table: as for `draw`; it may hold a part of BreakHis.
        repeats: how many of the file's ten repeats are taken, from the first on.

    Returns:
        The frame that `draw` returns for five folds of patients.

    Raises:
        InputError: the file has fewer repeats or lacks a patient, a fold has no image of a class, or images of equal
            pixels are in two folds.
    """
    published = csv_files.read(CANONICAL).set_index("patient").astype(int)
    if not 1 <= repeats <= len(published.columns):
        raise InputError(f"{CANONICAL.name}: allowed are 1 to {len(published.columns)} repeats, got {repeats}{ADVICE}")
    images = table.drop_duplicates("filename").sort_values("filename", ignore_index=True)
    unknown = images.patient[~images.patient.isin(published.index)]
    if len(unknown):
        raise InputError(f"{CANONICAL.name}: allowed are the patients of BreakHis, got {unknown.iloc[0]}")
    parts = [
        pd.DataFrame({"filename": images.filename, "repeat": repeat, "fold": images.patient.map(published[name])})
        for repeat, name in enumerate(published.columns[:repeats], 1)
    ]
    drawn = pd.concat(parts, ignore_index=True)
    check(drawn, images, "patient", folds=5, advice=ADVICE)
    return drawn


def official(table: pd.DataFrame) -> pd.DataFrame:
    """The test images of BreakHis' five official folds; each fold is a repeat, because their test parts overlap.

    Args:
        table: frame of `data.read_folds`, or a part of its images.

    Returns:
        A row a test image and fold, ordered by fold and filename: filename, repeat and fold (both 1 to 5).

    Raises:
        InputError: the table has no official folds, an image has no row in one of them, or a part lacks a class.
    """
    if table.fold.isna().any():
        raise InputError("--official: needed is a Folds.csv, because the folders alone name no official folds")
    rows = table.drop_duplicates(["filename", "fold"])
    counts = rows.filename.value_counts()
    if counts.min() < 5:
        raise InputError(
            f"--official: every image needs a row in each of the 5 folds, got {counts.min()} of {counts.idxmin()}"
        )
    parts = pd.crosstab([rows.fold, rows.grp], rows.label).reindex(columns=splits.LABELS, fill_value=0)
    if len(parts) < 10 or parts.to_numpy().min() == 0:
        raise InputError("--official: each part of each official fold needs images of both classes")
    tested = rows[rows.grp == "test"].sort_values(["fold", "filename"], ignore_index=True)
    return pd.DataFrame({"filename": tested.filename, "repeat": tested.fold, "fold": tested.fold})


def check(drawn: pd.DataFrame, table: pd.DataFrame, unit: str, folds: int, advice: str = "") -> None:
    """The contract of folds: each image once a repeat, no unit in two folds, both classes in every fold.

    Args:
        drawn: frame that `draw` returns.
        table: the images that were drawn from, as for `draw`.
        unit: what is kept in one fold: patient, slide or image.
        folds: number of folds.
        advice: to end the error with.

    Raises:
        InputError: the contract is broken; names the first offender.
    """
    images = table.drop_duplicates("filename").set_index("filename", drop=False)
    units = splits.group_ids(images, unit)
    for repeat, part in drawn.groupby("repeat"):
        if sorted(part.filename) != sorted(images.filename):
            raise InputError(f"folds: repeat {repeat} must hold each image once{advice}")
        part = part.set_index("filename").fold
        counts = part.groupby(units).nunique()
        if counts.max() > 1:
            parted = sorted(part.index[units[part.index] == counts.idxmax()])
            raise InputError(
                f"folds: repeat {repeat} parts a {unit} or equal pixels, of {', '.join(parted[:3])}{advice}"
            )
        there = set(zip(part, images.label[part.index]))
        missing = [pair for pair in product(range(1, folds + 1), ("benign", "malignant")) if pair not in there]
        if missing:
            raise InputError(f"folds: repeat {repeat}, fold {missing[0][0]} has no {missing[0][1]} image{advice}")
