"""The split into training, validation and test sets under five protocols, and the check of what each promises."""

from __future__ import annotations

import functools
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
# The classes, in the order of label_int.
LABELS = ["benign", "malignant"]
# For each protocol the columns whose values must each be in one set only.
GROUP_KEYS = {
    "row": [],
    "image": ["filename"],
    "slide": ["filename", "slide"],
    "patient": ["filename", "slide", "patient"],
    "fold": ["filename"],
}
# At least this share of the groups of a class is tested, so that no score depends on one or two large groups.
TEST_SHARE = 0.2
# At most this share of them, so that training and validation are not emptied for the test.
MAX_TEST_SHARE = 0.5


def split(table: pd.DataFrame, settings: config.Data, resumed: bool = False) -> pd.DataFrame:
    """Assigns every row to train, valid, test or unused.

    The test set has `test_per_class` images of each class, or with `auto` as many as a fifth of the groups give.

    - `row`: they are drawn from all rows, as in the thesis; `valid_fraction` of the other rows is for validation.
    - `image`, `slide`, `patient`: first whole groups are drawn, then images from these groups, as evenly as possible
      over groups and magnifications; their other images are unused. `valid_fraction` of the other groups of each class
      is for validation.
    - `fold`: they are drawn from the test part of the official fold `settings.fold`; whole patients of its training
      part are for validation.

    At most half of the rows or groups of a class may be needed for the test, where the protocol draws them.
    Under all but `row`, images of equal pixels (column `pixels`, if there is one) stay together.

    Args:
        table: frame of `data.read_table`, in any order; equal names and seeds give equal splits.
        settings: the section `data`.
        resumed: whether a run is resumed; those of earlier versions may need more than half of the groups.

    Returns:
        The rows of `select` with the column `set`.

    Raises:
        InputError: the table is too small for the test size, or equal pixels have both labels.
    """
    table = select(table, settings)
    draw = {"row": _split_rows, "fold": _split_fold}.get(settings.protocol, _split_groups)
    table["set"] = draw(table, settings, resumed)
    check(table, settings.protocol)
    return table


def select(table: pd.DataFrame, settings: config.Data) -> pd.DataFrame:
    """The rows that take part in a split.

    Args:
        table: frame of `data.read_table`.
        settings: the section `data`.

    Returns:
        The rows of `settings.magnification`, and under `fold` of the official fold, ordered by filename and fold; all
        of them under `row`, else one for each image.
    """
    if settings.magnification != "all":
        table = table[table.mag == settings.magnification]
    if settings.protocol == "fold":
        table = table[table.fold == settings.fold]
    table = table.sort_values(["filename", "fold"], kind="stable")
    if settings.protocol != "row":
        table = table.drop_duplicates("filename")
    return table.reset_index(drop=True)


def _split_rows(table: pd.DataFrame, settings: config.Data, resumed: bool) -> pd.Series:
    sizes = table.label.value_counts().reindex(LABELS, fill_value=0)
    available = sizes.map(lambda size: _most_tested(size, resumed))
    size = _test_size(settings, (TEST_SHARE * sizes).astype(int), available, "rows")
    test = table.groupby("label").sample(size, random_state=settings.seed)
    rest = table.index.difference(test.index)
    # Not stratified: only a plain draw gives the thesis' counts of the validation set.
    count = min(max(1, round(settings.valid_fraction * len(rest))), len(rest) - 1)
    valid = train_test_split(rest, test_size=count, random_state=settings.seed)[1]
    return _sets(table, train=rest.difference(valid), valid=valid, test=test.index)


def _split_groups(table: pd.DataFrame, settings: config.Data, resumed: bool) -> pd.Series:
    groups = group_ids(table, settings.protocol)
    rng = np.random.RandomState(settings.seed)
    orders = {label: _draw_order(rows, groups, settings, rng) for label, rows in table.groupby("label")}
    usual, available = (
        pd.Series({label: order[: count(len(order))].sum() for label, order in orders.items()}, dtype=int)
        for count in (_usually_tested, functools.partial(_most_tested, resumed=resumed))
    )
    size = _test_size(settings, usual, available, f"images in whole {settings.protocol}s")
    tested = groups.isin([group for order in orders.values() for group in _test_groups(order, settings, size)])
    test = _draw_evenly(table[tested], groups, size, rng)
    valid = _draw_valid(table[~tested], groups, settings)
    return _sets(table, train=table.index[~tested].difference(valid), valid=valid, test=test)


def _split_fold(table: pd.DataFrame, settings: config.Data, resumed: bool) -> pd.Series:
    patients, images = group_ids(table, "patient"), group_ids(table, "image")
    official_test = table.grp == "test"
    sizes = table.label[official_test].value_counts().reindex(LABELS, fill_value=0)
    size = _test_size(settings, sizes, sizes, f"test images of official fold {settings.fold}")
    rng = np.random.RandomState(settings.seed)
    test = _draw_evenly(table[official_test], patients, size, rng)
    # Slide 13412 is in both parts of some folds, with the same images under two names.
    rest = table[~official_test & ~images.isin(images[test])]
    remaining = rest.groupby("label").patient.nunique().reindex(LABELS, fill_value=0).min()
    if remaining < 2:
        raise InputError(
            f"data.fold: official fold {settings.fold} must leave at least 2 patients of each class for training and "
            f"validation, got {remaining}"
        )
    valid = _draw_valid(rest, patients, settings)
    return _sets(table, train=rest.index.difference(valid), valid=valid, test=test)


def _sets(table: pd.DataFrame, **rows: pd.Index) -> pd.Series:
    sets = pd.Series("unused", table.index)
    for name, index in rows.items():
        sets.loc[index] = name
    return sets


def _most_tested(count: int, resumed: bool = False) -> int:
    """How many of a class' groups (or rows) may be needed for the test; training and validation need one each."""
    return max(0, min(count if resumed else int(MAX_TEST_SHARE * count), count - 2))


def _usually_tested(count: int) -> int:
    """How many of a class' groups are tested, unless the size of the test set needs more."""
    return min(max(4, round(TEST_SHARE * count)), _most_tested(count))


def _test_size(settings: config.Data, usual: pd.Series, available: pd.Series, what: str) -> int:
    """The images of each class in the test set: `usual` ones with `auto`, and at most those that are `available`."""
    size = usual.min() if settings.test_per_class == "auto" else settings.test_per_class
    if len(available) < 2 or not 1 <= size <= available.min():
        available = available.reindex(LABELS, fill_value=0)
        half = "" if settings.protocol == "fold" else f", in half of the {settings.protocol}s of a class"
        raise InputError(
            f"data.test_per_class: too few {what} for protocol {settings.protocol}: must be at most {available.min()} "
            f"(benign {available.benign}, malignant {available.malignant}{half}) or auto, got {settings.test_per_class}"
        )
    return int(size)


def group_ids(table: pd.DataFrame, protocol: str) -> pd.Series:
    """The number of each row's group: rows that share any of the protocol's keys, or pixels, are in one group.

    Args:
        table: frame with filename, label, slide, patient and, where known, pixels.
        protocol: a key of `GROUP_KEYS`.

    Returns:
        A number for each row; equal for the rows that must stay together.

    Raises:
        InputError: one group has both labels.
    """
    keys = GROUP_KEYS[protocol] + (["pixels"] if "pixels" in table else [])
    nodes, total = [], len(table)
    for key in keys:
        codes, values = pd.factorize(table[key])
        nodes.append(codes + total)
        total += len(values)
    rows = np.tile(np.arange(len(table)), len(keys))
    graph = coo_array((np.ones(len(rows)), (rows, np.concatenate(nodes))), shape=(total, total))
    groups = pd.Series(connected_components(graph, directed=False)[1][: len(table)], table.index)
    labels = table.groupby(groups).label.nunique()
    if labels.max() > 1:
        mixed = table.filename[groups == labels.idxmax()]
        raise InputError(f"split: equal pixels or one {protocol} under both labels: {', '.join(mixed.head(3))}")
    return groups


def rarest_subtypes(table: pd.DataFrame, groups: pd.Series) -> pd.Series:
    """The subtype for which each group counts; of several the one that the fewest groups have.

    Patient 29960, for example, is one of only two with adenosis.
    """
    group_counts = groups.groupby(table.subtype).nunique()
    return table.subtype.map(group_counts).groupby(groups).idxmin().map(table.subtype)


def _draw_order(rows: pd.DataFrame, groups: pd.Series, settings: config.Data, rng: np.random.RandomState) -> pd.Series:
    """The number of images of each group, in the order in which groups are taken for the test.

    Single images are taken at random; of slides and patients first one of each subtype, then in proportion.
    """
    groups = groups[rows.index]
    sizes = groups.value_counts().sort_index()
    sizes = sizes.loc[rng.permutation(sizes.index)]
    if settings.protocol == "image":
        return sizes
    rarest = rarest_subtypes(rows, groups)[sizes.index]
    rank, count = rarest.groupby(rarest).cumcount(), rarest.map(rarest.value_counts())
    return sizes.loc[((rank + 0.5) / count).where(rank > 0, -count).sort_values(kind="stable").index]


def _test_groups(order: pd.Series, settings: config.Data, size: int) -> pd.Index:
    needed = int(np.searchsorted(order.cumsum(), size)) + 1
    if settings.protocol != "image":
        needed = max(needed, _usually_tested(len(order)))
    return order.index[:needed]


def _draw_evenly(rows: pd.DataFrame, groups: pd.Series, per_class: int, rng: np.random.RandomState) -> pd.Index:
    """`per_class` rows of each class, as evenly as possible over its groups and their magnifications."""
    rows = rows.assign(group=groups[rows.index]).loc[rng.permutation(rows.index)]
    rows["round"] = rows.groupby(["group", "mag"]).cumcount()
    # Each group starts with another magnification, so that the last, incomplete round is even over them too.
    start = rows.group.map({group: number for number, group in enumerate(rows.group.unique())})
    rows["mag_order"] = (pd.factorize(rows.mag, sort=True)[0] + start) % rows.mag.nunique()
    rows = rows.sort_values(["round", "mag_order"], kind="stable")
    rows["round"] = rows.groupby("group").cumcount()
    return rows.sort_values("round", kind="stable").groupby("label").head(per_class).index


def _draw_valid(rows: pd.DataFrame, groups: pd.Series, settings: config.Data) -> pd.Index:
    """Whole groups of each class: `valid_fraction` of them, but at least one, and one less than all at most."""
    drawn = []
    for _, part in rows.groupby("label"):
        class_groups = groups[part.index]
        count = min(max(1, round(settings.valid_fraction * class_groups.nunique())), class_groups.nunique() - 1)
        splitter = GroupShuffleSplit(1, test_size=count, random_state=settings.seed)
        drawn.append(part.index[next(splitter.split(part, groups=class_groups))[1]])
    return drawn[0].union(drawn[1])


def training_rows(table: pd.DataFrame, settings: config.Data) -> pd.DataFrame:
    """The rows that an epoch passes over: those of the training set, upsampled; `table` as `split` returns it."""
    return upsample(table[table.set == "train"], settings)


def upsample(train: pd.DataFrame, settings: config.Data) -> pd.DataFrame:
    """Draws rows, with replacement, until both classes have as many as the larger one, as `settings.upsample` says.

    - `minority`: every row once, and rows of the smaller class again.
    - `both`: both classes are drawn anew, as in the thesis; about a third of the larger one's rows is left out.
    - `none`: every row once.

    Args:
        train: the training rows.
        settings: the section `data`.

    Returns:
        The drawn rows.

    Raises:
        ValueError: there are rows of another set, whose repetition would falsify a score.
    """
    if "set" in train and set(train.set) != {"train"}:
        raise ValueError(f"only training rows may be upsampled, got {sorted(set(train.set))}")
    if settings.upsample == "none":
        return train
    counts = train.label.value_counts()
    if settings.upsample == "both":
        drawn = train.groupby("label").sample(counts.max(), replace=True, random_state=settings.seed)
    else:
        smaller = train[train.label == counts.idxmin()]
        again = smaller.sample(counts.max() - counts.min(), replace=True, random_state=settings.seed)
        drawn = pd.concat([train, again])
    return drawn.reset_index(drop=True)


def check(table: pd.DataFrame, protocol: str) -> None:
    """Checks that no group is in two sets, that each set has both classes, and that the test set is balanced.

    Args:
        table: frame with filename, label, slide, patient, set and, if known, pixels.
        protocol: the protocol of the split.

    Raises:
        InputError: a check fails; names the first violation.
    """
    used = table[table.set != "unused"]
    pixels = ["pixels"] if "pixels" in table and protocol != "row" else []
    for key in GROUP_KEYS[protocol] + pixels:
        pairs = used[[key, "set"]].drop_duplicates()
        shared = pairs[pairs.duplicated(key, keep=False)].groupby(key).set.unique()
        if len(shared):
            raise InputError(
                f"split: {key} {shared.index[0]} must be in one set, got {' and '.join(sorted(shared.iloc[0]))}"
            )
    counts = pd.crosstab(used.label, used.set).reindex(index=LABELS, columns=SETS[:3], fill_value=0)
    if counts.to_numpy().min() == 0 or counts.test.nunique() > 1:
        raise InputError(
            f"split: each set must have both classes, and the test set the same number of each, got "
            f"{'; '.join(f'{name} {b} benign, {m} malignant' for name, (b, m) in counts.items())}"
        )


def to_csv(table: pd.DataFrame) -> str:
    """The text of split.csv: filename, label, slide, patient, set, in the order of the table."""
    return table[COLUMNS].to_csv(index=False, lineterminator="\n")


def digest(text: str) -> str:
    """SHA-256 of a text, in hex."""
    return hashlib.sha256(text.encode()).hexdigest()
