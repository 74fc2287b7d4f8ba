"""Split lists that others made: read in any common format, and what their test set shares with training."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd

import config
from images import audit, leaks
from safety import csv_files, limits
from safety.errors import InputError

WORDS = {
    "train": "train", "training": "train", "val": "valid", "valid": "valid", "validation": "valid", "dev": "valid",
    "test": "test", "testing": "test", "unused": "unused",
}  # fmt: skip
CODES = {"0": "train", "1": "valid", "2": "test"}
# Only in columns of these names 0, 1 and 2 are sets; elsewhere they are classes.
SET_COLUMNS = ["set", "split", "grp", "group", "subset", "partition", "phase"]
IMAGE = re.compile(r"(SOB_[BM]_[A-Z]{1,2}-1[45]-[0-9]{1,9}[A-Z]{0,9}-(?:40|100|200|400)-[0-9]{1,9})(?![0-9])")
SLIDE = re.compile(r"(?:^|[/\\])((?:SOB_[BM]_[A-Z]{1,2}[-_])?1[45]-[0-9]{1,9}[A-Z]{0,9})[/\\]?\s*$")
IN_PATH = re.compile(rf"(?:^|[/\\])({'|'.join(WORDS)})[/\\]", re.IGNORECASE)
FILES = [".csv", ".json", ".tsv", ".txt"]
# Each takes a copy of the rows where a list has folds and no sets.
MAX_SPLITS = 100
COLUMNS = ["split", "set", "value"]
CAVEAT = (
    "A patient is a slide's number without its letters. No source states that one number is one patient: images that "
    "share it may be of the same patient."
)


def check(
    path: str | Path, settings: config.Data, describe: Callable, read_table: Callable[[config.Data], pd.DataFrame]
) -> int:
    """Prints what the test set of each split in a list shares with training and validation.

    Args:
        path: a file or folder, as for `read`.
        settings: the section `data`; pixels are compared if an earlier audit of its `root` knows them.
        describe: `data.describe`.
        read_table: `data.read_table`; called only for a list that names slides instead of images.

    Returns:
        The exit status: 1 if the test set of a split has images of its training set, else 0.

    Raises:
        InputError: the list cannot be read.
    """
    listed = read(Path(path))
    if listed.value.map(IMAGE.search).any():
        table = _images(listed, Path(path), describe)
    else:
        table = _images_of_slides(listed, Path(path), read_table(settings))
    table = audit.known_pixels(table, settings)
    found = {}
    for title, rows in table.groupby("split", sort=False):
        found[title] = leaks.measure(rows)
        print(*([f"{limits.printable(title)}:"] if title else []), leaks.describe(rows), "", sep="\n")
    if len(found) > 1:
        print(_verdict([one["shared"] for one in found.values()]))
    print(CAVEAT)
    return 1 if any(one["shared"]["image"] for one in found.values()) else 0


def _verdict(shared: list[dict[str, float]]) -> str:
    images, slides, patients = (sum(one[key] > 0 for one in shared) for key in leaks.COLUMNS)
    shares = [one["patient"] for one in shared]
    return (
        f"Of {len(shared)} splits {images} have test images that stand in training, {slides} share slides and "
        f"{patients} share patients with it ({min(shares):.1%} to {max(shares):.1%} of the test images)."
    )


def _images(listed: pd.DataFrame, path: Path, describe: Callable) -> pd.DataFrame:
    names = listed.value.str.extract(IMAGE.pattern)[0] + ".png"
    table = describe(names)
    wrong = table.slide.isna()
    if wrong.any():
        raise InputError(f"{path}: allowed are names of BreakHis' images, got {listed.value[wrong].iloc[0][:200]!r}")
    return table.assign(split=listed.split, set=listed.set)


def _images_of_slides(listed: pd.DataFrame, path: Path, table: pd.DataFrame) -> pd.DataFrame:
    """The images of the table in each listed slide; 13412 has two folders, which a full name tells apart."""
    images = table.drop_duplicates("filename")
    ids = listed.value.str.extract(SLIDE.pattern)[0].str.replace(r"(?<=[A-Z])-(?=1[45]-)", "_", regex=True)
    named = pd.concat([images.assign(id=images.path.str.split("/").str[3]), images.assign(id=images.slide)])
    wrong = ~ids.isin(named.id)
    if wrong.any():
        raise InputError(f"{path}: allowed are slides of data.folds, got {listed.value[wrong].iloc[0][:200]!r}")
    return listed.drop(columns="value").assign(id=ids).merge(named.drop(columns=["fold", "grp"]), on="id")


def read(path: Path) -> pd.DataFrame:
    """Reads a split list.

    Args:
        path: CSV, TSV or other delimited text with or without a header, or JSON; or a folder with a file for each set,
            such as train.txt, valid.txt and test.txt. BreakHis' names may stand anywhere in a value. The set stands in
            a column or key, or as a folder in the path of each image. A column `fold` makes each fold a split of its
            own, in which, if there is no column with sets, this fold is the test set.

    Returns:
        A row an image (or slide) and split: split (its title, empty if there is one only), set (train, valid, test),
        value (as listed).

    Raises:
        InputError: there are no names or no sets, or a split lacks training or test.
    """
    if path.is_dir():
        files = {file: _set_in(file.stem) for file in sorted(path.iterdir()) if file.suffix.lower() in FILES}
        parts = [_read_file(file, name) for file, name in files.items() if name]
        if not parts:
            raise InputError(f"{path}: allowed is a folder with files such as train.txt and test.txt, got neither")
    else:
        parts = [_read_file(path, "")]
    listed = pd.concat(parts, ignore_index=True)
    _refuse_many(listed.split.nunique(), path)
    for title, sets in listed.groupby("split", sort=False).set:
        if not {"train", "test"} <= set(sets):
            where = f"{path}, {title}" if title else f"{path}"
            raise InputError(f"{where}: a training and a test set are needed, got {' and '.join(sorted(set(sets)))}")
    return listed


def _refuse_many(splits: int, path: Path) -> None:
    if splits > MAX_SPLITS:
        raise InputError(f"{path}: allowed are {MAX_SPLITS} folds or other splits, got {splits}")


def _read_file(path: Path, in_set: str) -> pd.DataFrame:
    """The rows of one file as `read` returns them; all in one set where its name gives that."""
    content = limits.read_bytes(path, csv_files.MAX_BYTES)
    if path.suffix.lower() != ".json":
        return _from_table(_parse_table(content, path), path, in_set)
    try:
        node = json.loads(content, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: must be JSON: {error}") from None
    return _from_json(node, path, in_set)


def _unique(pairs: list[tuple[str, Any]]) -> dict:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a key is given twice")
    return dict(pairs)


def _set_in(text: str) -> str:
    """The set that a file's name or a key gives, such as train of `train_patients`; empty for none or several."""
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+", text)
    sets = {WORDS[word.lower()] for word in words if word.lower() in WORDS}
    return sets.pop() if len(sets) == 1 else ""


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(IMAGE.search(value) or SLIDE.search(value))


def _parse_table(content: bytes, path: Path) -> pd.DataFrame:
    content = content.removeprefix(b"\xef\xbb\xbf").lstrip(b"\r\n")
    first = content.partition(b"\n")[0].decode("utf-8", "replace").strip("\r")
    delimiter = max(",\t|;", key=first.count)
    if any(map(_is_name, first.split(delimiter))):
        header = delimiter.join(f"column {number + 1}" for number in range(first.count(delimiter) + 1))
        content = f"{header}\n".encode() + content
    rows = csv_files.parse(content, path, delimiter)
    if rows.empty:
        raise InputError(f"{path}: holds no rows")
    return rows


def _from_table(rows: pd.DataFrame, path: Path, in_set: str) -> pd.DataFrame:
    values = _names(rows, path)
    listed = pd.DataFrame({"split": "", "set": in_set, "value": values})
    if in_set:
        return listed
    columns = {str(column).strip().lower(): cells.str.strip() for column, cells in rows.items()}
    titled = [f"{name} " + columns[name] for name in ("repeat", "fold") if name in columns]
    sets = _set_columns(columns)
    if not sets and "fold" in columns:
        return _each_fold_tested(listed, columns, path)
    if titled:
        listed["split"] = titled[0].str.cat(titled[1:], ", ")
    if not sets:
        return listed.assign(set=_sets_in_paths(values, columns, path))
    prefixes = dict.fromkeys(sets, "") if len(sets) == 1 else {name: f"{name} " for name in sets}
    return pd.concat([listed.assign(set=sets[name], split=prefixes[name] + listed.split) for name in sets])


def _names(rows: pd.DataFrame, path: Path) -> pd.Series:
    """The column with the names of images, or where there is none, with those of slides."""
    for pattern in (IMAGE, SLIDE):
        named = rows.apply(lambda cells, pattern=pattern: cells.map(lambda cell: bool(pattern.search(cell))))
        column = named.sum().idxmax()
        if named[column].all():
            return rows[column]
        if named[column].any():
            row = int(named[column].to_numpy().argmin())
            got = rows[column].iloc[row][:200]
            raise InputError(f"{path}, row {row + 1} of {column}: a name as BreakHis gives it is needed, got {got!r}")
    columns = ", ".join(map(str, rows.columns[:8]))
    raise InputError(f"{path}: no column has names of BreakHis, such as SOB_B_A-14-22549AB-40-001.png, got {columns}")


def _set_columns(columns: dict[str, pd.Series]) -> dict[str, pd.Series]:
    """The columns that give a set in every row, each a split of its own."""
    words = {name: cells.str.lower().map(WORDS) for name, cells in columns.items()}
    codes = {name: columns[name].map(CODES) for name in SET_COLUMNS if name in columns}
    return {name: sets for name, sets in [*words.items(), *codes.items()] if sets.notna().all()}


def _each_fold_tested(listed: pd.DataFrame, columns: dict[str, pd.Series], path: Path) -> pd.DataFrame:
    """Folds without sets: each is tested in turn, in its repeat if there are repeats, and all others train."""
    parts = []
    repeats = columns.get("repeat", pd.Series("", listed.index))
    for repeat, rows in listed.groupby(repeats):
        folds = columns["fold"][rows.index]
        _refuse_many(folds.nunique(), path)
        for fold in sorted(folds.unique(), key=lambda name: (len(name), name)):
            title = f"repeat {repeat}, fold {fold}" if "repeat" in columns else f"fold {fold}"
            parts.append(rows.assign(split=title, set=folds.eq(fold).map({True: "test", False: "train"})))
    return pd.concat(parts)


def _sets_in_paths(values: pd.Series, columns: dict[str, pd.Series], path: Path) -> pd.Series:
    sets = values.str.extract(IN_PATH)[0].str.lower().map(WORDS)
    if sets.isna().any():
        raise InputError(
            f"{path}: a column, key or folder must give the set as {', '.join(WORDS)}, got columns "
            f"{', '.join(list(columns)[:8])}; lists of one set each go into a folder, as train.txt and test.txt"
        )
    return sets


def _from_json(node: Any, path: Path, in_set: str) -> pd.DataFrame:
    records = _records(node)
    if records:
        keys = set().union(*records)
        if len(keys) > csv_files.MAX_FIELDS:
            raise InputError(f"{path}: allowed are {csv_files.MAX_FIELDS} keys, got {len(keys)}")
        return _from_table(pd.DataFrame(records, dtype=object).fillna("").astype(str), path, in_set)
    try:
        leaves = list(_leaves(node, (), in_set, path))
    except RecursionError:
        raise InputError(f"{path}: must be JSON: it is nested too deeply") from None
    # A test set that is given once, outside the folds, is that of each fold.
    outer = {place[:depth] for place, _, _ in leaves for depth in range(len(place))}
    places = list(dict.fromkeys(place for place, _, _ in leaves if place not in outer))
    _refuse_many(len(places), path)
    parts = [
        ("/".join(map(str, place)), name, value)
        for place in places
        for above, name, value in leaves
        if above == place[: len(above)]
    ]
    if not parts:
        raise InputError(f"{path}: no key gives names of BreakHis and their set, which may read {', '.join(WORDS)}")
    return pd.DataFrame(parts, columns=COLUMNS)


def _records(node: Any) -> list[dict]:
    """JSON that is a table: records, columns, or a set or record under each name; empty for JSON of another form."""
    if isinstance(node, dict) and node and all(map(_is_name, node)):
        node = [{"name": key, **(value if isinstance(value, dict) else {"set": value})} for key, value in node.items()]
    elif isinstance(node, dict) and not any(map(_set_in, node)):
        # pandas writes a column as a list, or as an object of index and value.
        columns = {key: dict(enumerate(value)) if isinstance(value, list) else value for key, value in node.items()}
        if len({tuple(column) if isinstance(column, dict) else column for column in columns.values()}) == 1:
            node = [dict(zip(columns, row)) for row in zip(*(column.values() for column in columns.values()))]
    if not (isinstance(node, list) and all(isinstance(record, dict) for record in node)):
        return []
    records = [{k: v for k, v in record.items() if not isinstance(v, (dict, list))} for record in node]
    return records if any(map(_is_name, (value for record in records for value in record.values()))) else []


def _leaves(node: Any, place: tuple, in_set: str, path: Path) -> Iterator[tuple[tuple, str, str]]:
    """Place, set and value of each name below a key that gives a set; the place is made of the keys above that one."""
    if in_set and _is_name(node):
        yield place, in_set, node
    elif isinstance(node, dict):
        for key, child in node.items():
            found = in_set or _set_in(key)
            yield from _leaves(child, place if found else (*place, key), found, path)
    elif isinstance(node, list):
        named = sum(map(_is_name, node))
        if in_set and 0 < named < len(node):
            wrong = next(value for value in node if not _is_name(value))
            raise InputError(f"{path}: a list of {in_set} must hold names of BreakHis, got {str(wrong)[:200]!r}")
        for number, child in enumerate(node):
            yield from _leaves(child, place if in_set else (*place, number), in_set, path)
