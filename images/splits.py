"""Who trains, who validates, who tests, under five protocols; the contract that each keeps; and what still leaks."""

from __future__ import annotations

import hashlib

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.model_selection import GroupShuffleSplit, train_test_split

import config
from safety.errors import InputError

SETS = ["train", "valid", "test", "unused"]
COLUMNS = ["filename", "label", "slide", "patient", "set"]
# What must stand on one side only, and is therefore drawn as a whole, under each protocol.
KEPT_WHOLE = {
    "row": [],
    "image": ["filename"],
    "slide": ["filename", "slide"],
    "patient": ["filename", "slide", "patient"],
    "fold": ["filename"],
}
# At least this share of a class' groups is tested, so that a score never rests on the one or two largest.
TEST_SHARE = 0.2


def split(table: pd.DataFrame, settings: config.Data) -> pd.DataFrame:
    """Puts every row into train, valid, test or unused.

    The test set holds `test_per_class` images of each class. Under `row` it is drawn from all rows, as the thesis
    does, and a fraction of the other rows validates. Under `image`, `slide` and `patient` whole groups are drawn for
    the test, then images as evenly as possible over them and their magnifications; what is left of these groups is
    unused; validation takes `valid_fraction` of the other groups of each class. Under `fold` the test images come
    from the test part of the official fold `settings.fold`, and whole patients of its training part validate.
    Images of equal pixels (column `pixels`, where the table has it) are one unit under all but `row`.

    Args:
        table: frame of `data.read_folds`; the draw depends on the names in it and the seed, not on their order.
        settings: the section `data`.

    Returns:
        The rows that take part (all under `row`, else one an image) with the column `set`.

    Raises:
        InputError: the table is too small for the test size, or equal pixels bear both labels.
    """
    table = select(table, settings)
    draw = {"row": _split_rows, "fold": _split_fold}.get(settings.protocol, _split_groups)
    table["set"] = draw(table, settings)
    check(table, settings.protocol)
    return table


def select(table: pd.DataFrame, settings: config.Data) -> pd.DataFrame:
    """The rows that take part, in the order of their names: of one magnification or all, each image once but for row.

    Under `fold` the rows are those of the official fold, so that `grp` is that fold's.
    """
    if settings.magnification != "all":
        table = table[table.mag == settings.magnification]
    if settings.protocol == "fold":
        table = table[table.fold == settings.fold]
    table = table.sort_values(["filename", "fold"], kind="stable")
    if settings.protocol != "row":
        table = table.drop_duplicates("filename")
    return table.reset_index(drop=True)


def _split_rows(table: pd.DataFrame, settings: config.Data) -> pd.Series:
    sizes = table.label.value_counts().reindex(["benign", "malignant"], fill_value=0)
    _refuse_unless_fits(sizes - 2, settings, "rows")
    test = table.groupby("label").sample(settings.test_per_class, random_state=settings.seed)
    rest = table.index.difference(test.index)
    # Not class by class: the thesis' own counts of the validation set are those of a plain draw.
    count = min(max(1, round(settings.valid_fraction * len(rest))), len(rest) - 1)
    valid = train_test_split(rest, test_size=count, random_state=settings.seed)[1]
    return _sets(table, train=rest.difference(valid), valid=valid, test=test.index)


def _split_groups(table: pd.DataFrame, settings: config.Data) -> pd.Series:
    groups = units(table, settings.protocol)
    rng = np.random.RandomState(settings.seed)
    orders = {label: _order(rows, groups, settings, rng) for label, rows in table.groupby("label")}
    # Training and validation need one group each.
    fits = pd.Series({label: order[:-2].sum() for label, order in orders.items()}, dtype=int)
    _refuse_unless_fits(fits, settings, f"images in whole {settings.protocol}s")
    tested = groups.isin([unit for order in orders.values() for unit in _enough(order, settings)])
    test = _draw_evenly(table[tested], groups, settings.test_per_class, rng)
    valid = _draw_valid(table[~tested], groups, settings)
    return _sets(table, train=table.index[~tested].difference(valid), valid=valid, test=test)


def _split_fold(table: pd.DataFrame, settings: config.Data) -> pd.Series:
    patients, twins = units(table, "patient"), units(table, "image")
    theirs = table.grp == "test"
    sizes = table.label[theirs].value_counts().reindex(["benign", "malignant"], fill_value=0)
    _refuse_unless_fits(sizes, settings, f"test images of official fold {settings.fold}")
    rng = np.random.RandomState(settings.seed)
    test = _draw_evenly(table[theirs], patients, settings.test_per_class, rng)
    # Slide 13412 stands on both sides of some folds, with the same images under two names.
    rest = table[~theirs & ~twins.isin(twins[test])]
    if rest.groupby("label").patient.nunique().reindex(["benign", "malignant"], fill_value=0).min() < 2:
        raise InputError(f"data.fold: official fold {settings.fold} leaves a class fewer than 2 patients to train with")
    valid = _draw_valid(rest, patients, settings)
    return _sets(table, train=rest.index.difference(valid), valid=valid, test=test)


def _sets(table: pd.DataFrame, **rows: pd.Index) -> pd.Series:
    sets = pd.Series("unused", table.index)
    for name, index in rows.items():
        sets.loc[index] = name
    return sets


def _refuse_unless_fits(fits: pd.Series, settings: config.Data, what: str) -> None:
    if len(fits) < 2 or fits.min() < settings.test_per_class:
        fits = fits.reindex(["benign", "malignant"], fill_value=0).clip(0)
        raise InputError(
            f"data.test_per_class: too few {what} for protocol {settings.protocol}: at most {fits.min()} a class fit "
            f"(benign {fits.benign}, malignant {fits.malignant}), got {settings.test_per_class}"
        )


def units(table: pd.DataFrame, protocol: str) -> pd.Series:
    """The number of each row's group: rows are joined by every name that the protocol keeps whole, and by pixels.

    Args:
        table: frame with filename, label, slide, patient and, where known, pixels.
        protocol: a key of `KEPT_WHOLE`.

    Returns:
        A number a row; equal for the rows that must stay together.

    Raises:
        InputError: one group has both labels.
    """
    keys = KEPT_WHOLE[protocol] + (["pixels"] if "pixels" in table else [])
    names, total = [], len(table)
    for key in keys:
        codes, values = pd.factorize(table[key])
        names.append(codes + total)
        total += len(values)
    rows = np.tile(np.arange(len(table)), len(keys))
    graph = coo_array((np.ones(len(rows)), (rows, np.concatenate(names))), shape=(total, total))
    groups = pd.Series(connected_components(graph, directed=False)[1][: len(table)], table.index)
    labels = table.groupby(groups).label.nunique()
    if labels.max() > 1:
        mixed = table.filename[groups == labels.idxmax()]
        raise InputError(f"equal pixels or one {protocol} under both labels: {', '.join(mixed.head(3))}")
    return groups


def rarest_subtypes(table: pd.DataFrame, units: pd.Series) -> pd.Series:
    """The subtype for which each unit counts; of several the one that the fewest units have.

    Patient 29960, for example, is one of only two with adenosis.
    """
    units_with = units.groupby(table.subtype).nunique()
    return table.subtype.map(units_with).groupby(units).idxmin().map(table.subtype)


def _order(rows: pd.DataFrame, units: pd.Series, settings: config.Data, rng: np.random.RandomState) -> pd.Series:
    """The images in each group, in the order in which groups are taken for the test.

    Single images are taken at random. Of slides and patients, every subtype gives one, then each in its proportion.
    """
    units = units[rows.index]
    sizes = units.value_counts().sort_index()
    sizes = sizes.loc[rng.permutation(sizes.index)]
    if settings.protocol == "image":
        return sizes
    rarest = rarest_subtypes(rows, units)[sizes.index]
    rank, count = rarest.groupby(rarest).cumcount(), rarest.map(rarest.value_counts())
    return sizes.loc[((rank + 0.5) / count).where(rank > 0, -count).sort_values(kind="stable").index]


def _enough(order: pd.Series, settings: config.Data) -> pd.Index:
    needed = int(np.searchsorted(order.cumsum(), settings.test_per_class)) + 1
    if settings.protocol != "image":
        needed = max(needed, min(max(4, round(TEST_SHARE * len(order))), len(order) - 2))
    return order.index[:needed]


def _draw_evenly(rows: pd.DataFrame, units: pd.Series, per_class: int, rng: np.random.RandomState) -> pd.Index:
    """Rows of each class, as evenly as possible over its groups, and within these over the magnifications."""
    rows = rows.assign(unit=units[rows.index]).loc[rng.permutation(rows.index)]
    rows["turn"] = rows.groupby(["unit", "mag"]).cumcount()
    # Each group begins with another magnification, so that the last, unfinished round is even over them too.
    start = rows.unit.map({unit: place for place, unit in enumerate(rows.unit.unique())})
    rows["mag_turn"] = (pd.factorize(rows.mag, sort=True)[0] + start) % rows.mag.nunique()
    rows = rows.sort_values(["turn", "mag_turn"], kind="stable")
    rows["turn"] = rows.groupby("unit").cumcount()
    return rows.sort_values("turn", kind="stable").groupby("label").head(per_class).index


def _draw_valid(rows: pd.DataFrame, units: pd.Series, settings: config.Data) -> pd.Index:
    """Whole groups of each class, `valid_fraction` of its groups, at least one, and at least one left to train."""
    drawn = []
    for _, part in rows.groupby("label"):
        groups = units[part.index]
        count = min(max(1, round(settings.valid_fraction * groups.nunique())), groups.nunique() - 1)
        splitter = GroupShuffleSplit(1, test_size=count, random_state=settings.seed)
        drawn.append(part.index[next(splitter.split(part, groups=groups))[1]])
    return drawn[0].union(drawn[1])


def upsample(train: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Draws as many rows of each class, with replacement, as the largest class has.

    As in the thesis the largest class is drawn anew too, so that about a third of its rows are left out by chance.
    """
    if "set" in train and set(train.set) != {"train"}:
        raise ValueError(f"only training rows may be drawn again, got {sorted(set(train.set))}")
    largest = train.label.value_counts().max()
    return train.groupby("label").sample(largest, replace=True, random_state=seed).reset_index(drop=True)


def check(table: pd.DataFrame, protocol: str) -> None:
    """The contract of a split: what `KEPT_WHOLE` names stands in one set only, and the test set is balanced.

    Args:
        table: frame with filename, label, slide, patient, set and, where known, pixels.
        protocol: the protocol it was made under.

    Raises:
        InputError: the contract is broken; names the first offender.
    """
    used = table[table.set != "unused"]
    twins = ["pixels"] if "pixels" in table and protocol != "row" else []
    for key in KEPT_WHOLE[protocol] + twins:
        sets = used.groupby(key).set.unique()
        parted = sets[sets.map(len) > 1]
        if len(parted):
            raise InputError(f"split: {key} {parted.index[0]} stands in {' and '.join(sorted(parted.iloc[0]))}")
    counts = pd.crosstab(used.label, used.set).reindex(index=["benign", "malignant"], columns=SETS[:3], fill_value=0)
    if counts.to_numpy().min() == 0 or counts.test.nunique() > 1:
        raise InputError(
            f"split: every set needs both classes and the test set as many of each, got "
            f"{'; '.join(f'{name} {b} benign, {m} malignant' for name, (b, m) in counts.items())}"
        )


def to_csv(table: pd.DataFrame) -> str:
    """The split as the text of split.csv: filename, label, slide, patient, set; under `row` a line a row."""
    return table[COLUMNS].to_csv(index=False, lineterminator="\n")


def digest(text: str) -> str:
    """SHA-256 of a split's text, in hex."""
    return hashlib.sha256(text.encode()).hexdigest()
