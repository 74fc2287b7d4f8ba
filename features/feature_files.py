"""Features that other programs computed: .npz, CSV, HDF5 or Parquet with a row an image, or a folder of HDF5 files.

Nothing in a file is unpickled, and no file is read before the sizes that it states are known to be within the limits.
"""

from __future__ import annotations

import csv
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from safety import hdf5_files, limits
from safety.errors import InputError

# Of a file, and of the features in memory. All of BreakHis in 2,560 numbers an image takes 81 MB.
MAX_BYTES = 2**30
MAX_WIDTH = 2**14
MAX_IMAGES = 10**6
MAX_NAME = 255
# Of the column with the file names, and of the features.
NAMES, FEATURES = "filename", "features"
NUMBERED = re.compile(r"(.*?)(0|[1-9][0-9]{0,4})")
DAMAGE = (
    KeyError, ValueError, TypeError, OSError, EOFError, RuntimeError, NotImplementedError, MemoryError, OverflowError,
    zipfile.BadZipFile, zlib.error, csv.Error,
)  # fmt: skip
PICKLES = {".pt", ".pth", ".pkl", ".pickle", ".joblib"}


class FeatureFile(NamedTuple):
    """The content of a feature file, ordered by name.

    Attributes:
        names: of the images, as the file has them, all distinct.
        array: (images, width), float32, all finite.
    """

    names: list[str]
    array: np.ndarray


def read(path: Path) -> FeatureFile:
    """Reads a feature file.

    Args:
        path: a .npz or .h5 with the arrays `filename` (images) and `features` (images, width); a .csv with the column
            `filename` and numbered ones (0, 1, ... or feature_0, feature_1, ...); a .parquet with `filename` and
            numbered columns or lists in a column `features`; or a folder with an .h5 for each image, named after it,
            whose `features` are (width) or (patches, width), of which the mean is taken.

    Raises:
        InputError: it is missing, damaged, too large or laid out otherwise; a name is there twice; or a feature is no
            finite number. Names the row, from 1.
    """
    reader = _reader(path)
    try:
        names, array = reader(path)
    except InputError:
        raise
    except DAMAGE as error:
        reason = limits.printable(str(error) or type(error).__name__)[:200]
        raise InputError(f"{path}: damaged, or no {path.suffix or 'folder'} of features: {reason}") from None
    return _checked(path, [str(name) for name in names], array)


def is_one(path: Path) -> bool:
    """Whether a path is that of a feature file or of a folder of them, by its name; the content may be anything."""
    return path.suffix.lower() in READERS or (path.is_dir() and any(path.glob("*.h5")))


def _reader(path: Path) -> Callable[[Path], tuple[Iterable[str], np.ndarray]]:
    suffix = path.suffix.lower()
    if path.is_dir():
        return _read_folder
    if suffix in PICKLES:
        raise InputError(
            f"{path}: a {suffix} is a pickle, which could run any code and is never read; docs/features.md has the "
            "lines that turn it into an .npz"
        )
    if suffix not in READERS:
        raise InputError(f"{path}: features must be one of {', '.join(READERS)} or a folder of .h5, got {suffix!r}")
    if not path.is_file():
        raise InputError(f"{path}: there is no such file of features")
    if path.stat().st_size > MAX_BYTES:
        raise InputError(f"{path}: must have at most {MAX_BYTES} bytes, got {path.stat().st_size}")
    return READERS[suffix]


def _checked(path: Path, names: list[str], array: np.ndarray) -> FeatureFile:
    """The content ordered by name, so that the order in the file changes no result."""
    _check_layout(path, len(names), array.shape, array.dtype)
    for row, name in enumerate(names, start=1):
        if not (0 < len(name) <= MAX_NAME and name.isprintable()):
            raise InputError(
                f"{path}, row {row}: a file name must be 1 to {MAX_NAME} printable characters, got {name[:50]!r}"
            )
    order = sorted(range(len(names)), key=names.__getitem__)
    for one, other in zip(order, order[1:]):
        if names[one] == names[other]:
            raise InputError(f"{path}, row {other + 1}: a file name must be there once, got {names[one]} again")
    with np.errstate(over="ignore"):
        single = array.astype(np.float32)
    for row in np.flatnonzero(~np.isfinite(single).all(axis=1))[:1]:
        place = np.flatnonzero(~np.isfinite(single[row]))[0]
        raise InputError(
            f"{path}, row {row + 1} ({names[row]}): feature {place} must be a finite number, got {array[row, place]}"
        )
    return FeatureFile([names[row] for row in order], single[order])


def _check_layout(path: Path, images: int | None, shape: tuple[int, ...], dtype: np.dtype) -> None:
    """Refuses features that are no (images, width) of floating-point numbers; before they are read, where possible."""
    if dtype.kind != "f":
        raise InputError(f"{path}: features must be floating-point numbers, got {dtype}")
    if len(shape) != 2 or images not in (None, shape[0]) or 0 in shape:
        count = "" if images is None else f" for {images} file names"
        raise InputError(f"{path}: features must be images x width{count}, at least 1 x 1, got {shape}")
    if shape[0] > MAX_IMAGES or shape[1] > MAX_WIDTH or shape[0] * shape[1] * max(4, dtype.itemsize) > MAX_BYTES:
        raise InputError(
            f"{path}: features must be of at most {MAX_IMAGES} images x {MAX_WIDTH}, in {MAX_BYTES} bytes, got {shape}"
        )


def _read_npz(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: info.file_size for info in archive.infolist()}
        headers = {name: _npy_header(archive, members, name) for name in (NAMES, FEATURES)}
    shape, dtype = headers[NAMES]
    if len(shape) != 1 or dtype.kind != "U":
        raise InputError(f"{path}: {NAMES} must be texts in one dimension, got {dtype} {shape}")
    _check_layout(path, shape[0], *headers[FEATURES])
    with np.load(path, allow_pickle=False) as arrays:
        return arrays[NAMES], arrays[FEATURES]


def _npy_header(archive: zipfile.ZipFile, members: dict[str, int], name: str) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of an array, of which the member holds as many bytes as they need and no more than MAX_BYTES."""
    size = members.get(f"{name}.npy")
    if size is None:
        raise ValueError(f"needed are the arrays {NAMES} and {FEATURES}, got {', '.join(sorted(members))[:100]}")
    with archive.open(f"{name}.npy") as file:
        version = np.lib.format.read_magic(file)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = header(file)
        needed = int(np.prod(shape, dtype=object)) * dtype.itemsize
        if not dtype.hasobject and (needed != size - file.tell() or needed > MAX_BYTES):
            raise ValueError(f"{name} needs {needed} bytes, got {size - file.tell()}; allowed are {MAX_BYTES}")
    return shape, dtype


def _read_hdf5(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with hdf5_files.opened(path, MAX_BYTES) as file:
        if NAMES not in file:
            raise ValueError(f"needed are the arrays {NAMES} and {FEATURES}; for a file an image name their folder")
        features = hdf5_files.array(file, FEATURES)
        _check_layout(path, None, features.shape, features.dtype)
        return hdf5_files.texts(file, NAMES, len(features)), features[()]


def _read_folder(path: Path) -> tuple[list[str], np.ndarray]:
    """A folder with an .h5 for each image, named after it."""
    files = sorted(path.glob("*.h5"))
    if not files:
        raise InputError(f"{path}: needed is a folder with an .h5 for each image, got none")
    rows = [_mean_of_patches(file) for file in files]
    for file, row in zip(files, rows):
        if len(row) != len(rows[0]):
            raise InputError(f"{file}: must have {len(rows[0])} features, as {files[0].name} has, got {len(row)}")
    return [file.stem for file in files], np.stack(rows)


def _mean_of_patches(path: Path) -> np.ndarray:
    """The features (width,) of an image: those in the file, or the mean over its patches."""
    try:
        with hdf5_files.opened(path, MAX_BYTES) as file:
            features = hdf5_files.array(file, FEATURES)
            shape = features.shape if len(features.shape) == 2 else (1, *features.shape)
            _check_layout(path, None, shape, features.dtype)
            return np.asarray(features[()], np.float32).reshape(shape).mean(axis=0)
    except InputError:
        raise
    except DAMAGE as error:
        raise ValueError(f"{path.name}: {error}") from None


def _read_csv(path: Path) -> tuple[list[str], np.ndarray]:
    names, rows = [], []
    with path.open(encoding="utf-8-sig", newline="") as file:
        lines = csv.reader(file, strict=True)
        header = next(lines, [])
        place, numbered = _columns(path, header)
        for cells in filter(None, lines):
            number = len(rows) + 1
            if len(cells) != len(header):
                raise InputError(f"{path}, row {number}: must have {len(header)} cells, got {len(cells)}")
            names.append(cells[place])
            rows.append(_numbers(path, number, [cells[column] for column in numbered]))
            _check_layout(path, None, (number, len(numbered)), rows[0].dtype)
    return names, np.array(rows)


def _numbers(path: Path, row: int, cells: list[str]) -> np.ndarray:
    try:
        with np.errstate(over="ignore"):
            return np.array([float(cell) for cell in cells], np.float32)
    except ValueError as error:
        raise InputError(f"{path}, row {row}: features must be numbers: {limits.printable(str(error))[:80]}") from None


def _columns(path: Path, header: list[str]) -> tuple[int, list[int]]:
    """The places of the file names and of the features, which are numbered: a label must not pass for a feature."""
    if header.count(NAMES) != 1:
        raise InputError(
            f"{path}: must have one column {NAMES}, got {limits.printable(', '.join(header[:8]))[:100] or 'none'}"
        )
    places = [place for place, name in enumerate(header) if name != NAMES]
    first = NUMBERED.fullmatch(header[places[0]]) if places else None
    for number, place in enumerate(places, start=int(first[2]) if first else 0):
        if header[place] != (f"{first[1]}{number}" if first else None):
            raise InputError(
                f"{path}: allowed are the columns {NAMES} and numbered ones in order (0, 1, ... or feature_0, "
                f"feature_1, ...), got {limits.printable(header[place])[:50]!r}"
            )
    return header.index(NAMES), places


def _read_parquet(path: Path) -> tuple[list[str], np.ndarray]:
    try:
        from pyarrow import lib, parquet
    except ImportError as error:
        raise InputError(f"{path}: Parquet needs the package pyarrow (with NumPy 1: pyarrow<20): {error}") from None
    try:
        return _read_table(path, parquet.ParquetFile(path))
    except lib.ArrowException as error:
        raise ValueError(str(error)) from None


def _read_table(path: Path, file: object) -> tuple[list[str], np.ndarray]:
    about = file.metadata
    groups = [about.row_group(number) for number in range(about.num_row_groups)]
    # Repeated values take hardly any bytes in the file, and 8 each in memory.
    values = sum(group.column(number).num_values for group in groups for number in range(group.num_columns))
    size = max(8 * values, sum(group.total_byte_size for group in groups))
    if about.num_rows > MAX_IMAGES or size > 2 * MAX_BYTES:
        raise InputError(
            f"{path}: must have at most {MAX_IMAGES} images, in {2 * MAX_BYTES} bytes, got {about.num_rows}, in {size}"
        )
    names = file.schema_arrow.names
    lists = sorted(names) == sorted([NAMES, FEATURES])
    if not lists:
        _columns(path, names)
    table = file.read()
    labels = table.column(NAMES).to_pylist()
    if lists:
        return labels, np.array([np.asarray(row, float) for row in table.column(FEATURES).to_pylist()])
    return labels, np.stack([table.column(name).to_numpy() for name in names if name != NAMES], axis=1)


READERS = {
    ".npz": _read_npz,
    ".csv": _read_csv,
    ".h5": _read_hdf5,
    ".hdf5": _read_hdf5,
    ".parquet": _read_parquet,
}
