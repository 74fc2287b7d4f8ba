"""The pictures on disk: where they are, whether each can be read, and what is in them, found once and kept."""

from __future__ import annotations

import hashlib
import os
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from config import InputError

import numpy as np
import pandas as pd
from PIL import Image
from tqdm import tqdm

import files

PICTURE_FOLDERS = [
    "BreaKHis_v1/BreaKHis_v1/histology_slides/breast",
    "BreaKHis_v1/histology_slides/breast",
    "histology_slides/breast",
    "breast",
    ".",
]
HELP = "get BreakHis as README.md says and set data.root and data.folds, or run `make train`, which needs no data set"
# A picture of more pixels is refused before it is decoded; the real ones have 322,000.
MAX_PIXELS = 50_000_000
FINDINGS = [
    "path", "bytes", "modified", "pixels", "error", "mode", "depth", "width", "height", "brightness", "sharpness",
]  # fmt: skip


def find_pictures(root: str | Path) -> Path:
    """The folder below `root` that holds benign/ and malignant/, at any of the depths in which archives unpack.

    Raises:
        InputError: `root` is no folder or holds neither.
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"data.root: no folder {str(root)!r}; {HELP}")
    for folder in PICTURE_FOLDERS:
        if any((root / folder / label).is_dir() for label in ("benign", "malignant")):
            return root / folder
    raise InputError(f"data.root: neither BreaKHis_v1 nor benign and malignant in {str(root)!r}; {HELP}")


def with_pixels(table: pd.DataFrame, root: str | Path, store: Path) -> pd.DataFrame:
    """Adds the column `pixels`, the hash of each decoded picture, and refuses pictures that cannot be read.

    Raises:
        InputError: says how many pictures are missing or broken and names the first ones.
    """
    findings = inspect(table.path.unique(), find_pictures(root), store)
    bad = findings[findings.error != ""]
    if len(bad):
        first = "; ".join(f"{Path(path).name} {error}" for path, error in zip(bad.path[:3], bad.error))
        raise InputError(f"data.root: {len(bad)} of {len(findings)} images cannot be read below {root}: {first}")
    return table.assign(pixels=table.path.map(findings.set_index("path").pixels))


def known_pixels(table: pd.DataFrame, root: str | Path, store: Path) -> pd.DataFrame:
    """Adds the column `pixels` if an earlier look at all of the pictures is still true; opens no picture."""
    try:
        folder = find_pictures(root)
    except InputError:
        return table
    paths = table.path.unique()
    known = _read_store(paths, folder, store)
    return table.assign(pixels=table.path.map(known.set_index("path").pixels)) if len(known) == len(paths) else table


def data_version(table: pd.DataFrame) -> str:
    """SHA-256 over the names and pixels of the table's images, in hex: equal for equal data, wherever it lies."""
    images = table.drop_duplicates("filename").sort_values("filename")
    return hashlib.sha256("".join(images.filename + images.pixels).encode()).hexdigest()


def inspect(paths: np.ndarray, folder: Path, store: Path) -> pd.DataFrame:
    """Looks at every picture, on all cores, and keeps what it finds in `store`, so that each is decoded once.

    Args:
        paths: of the pictures, below `folder`.
        folder: the one that `find_pictures` gives.
        store: CSV of earlier findings, believed where a picture's size and time stamp are still the same.

    Returns:
        A row a picture, ordered by path: bytes, modified (ns), pixels (SHA-256 of the decoded array), error (empty
        for a good one), mode, depth (bits a channel), width, height (pixels), brightness (mean of grey, 0 to 255) and
        sharpness (variance of grey's Laplacian).
    """
    known = _read_store(paths, folder, store)
    new = sorted(set(paths) - set(known.path))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        looks = pool.map(lambda path: _inspect_one(folder, path), new)
        rows = list(tqdm(looks, "checking images", len(new), unit="img", delay=5))
    if not rows:
        return known.sort_values("path", ignore_index=True)
    found = pd.DataFrame(rows, columns=FINDINGS)
    findings = (pd.concat([known, found]) if len(known) else found).sort_values("path", ignore_index=True)
    if not findings.error.any():
        files.write_text(store, findings.to_csv(index=False))
    return findings


def _inspect_one(folder: Path, path: str) -> dict:
    found = dict.fromkeys(FINDINGS, 0) | {"path": path, "pixels": "", "error": "", "mode": ""}
    try:
        found |= _stamp(folder / path)
        if found["bytes"] == 0:
            return found | {"error": "is empty"}
        with Image.open(folder / path, formats=["PNG"]) as image:
            if image.width * image.height > MAX_PIXELS:
                return found | {"error": f"has {image.width} x {image.height} pixels, more than {MAX_PIXELS}"}
            return found | _look(image) | {"depth": _png_depth(folder / path)}
    except FileNotFoundError:
        return found | {"error": "is missing"}
    except Image.UnidentifiedImageError:
        return found | {"error": "is no PNG"}
    except (OSError, SyntaxError, ValueError, struct.error) as error:
        return found | {"error": f"is cut short or damaged ({error})"}


def read_rgb(path: Path) -> np.ndarray:
    """One picture as (height, width, 3), uint8, at its own size; raises InputError where it cannot be read."""
    found = _inspect_one(path.parent, path.name)
    if found["error"]:
        raise InputError(f"data.root: {path} {found['error']}")
    with Image.open(path, formats=["PNG"]) as image:
        return np.asarray(image.convert("RGB"))


def _look(image: Image.Image) -> dict:
    image.load()
    array = np.asarray(image)
    grey = np.asarray(image.convert("L"), np.float32)
    laplacian = grey[1:-1, :-2] + grey[1:-1, 2:] + grey[:-2, 1:-1] + grey[2:, 1:-1] - 4 * grey[1:-1, 1:-1]
    return {
        "pixels": hashlib.sha256(repr(array.shape).encode() + array.tobytes()).hexdigest(),
        "mode": image.mode,
        "width": image.width,
        "height": image.height,
        "brightness": round(float(grey.mean()), 2),
        "sharpness": round(float(laplacian.var()), 2) if laplacian.size else 0.0,
    }


def _png_depth(path: Path) -> int:
    """Bits a channel: the byte behind width and height in the header, which every PNG begins with."""
    with path.open("rb") as file:
        return file.read(25)[24]


def _stamp(path: Path) -> dict:
    status = path.stat()
    return {"bytes": status.st_size, "modified": status.st_mtime_ns}


def store_of(folds: str | Path) -> Path:
    """Where the findings on a data set's pictures are kept: beside its table, or in cache/ if that is read-only."""
    folds = Path(folds).absolute()
    # The mode too: root may write to a folder that is marked read-only, and should not.
    if os.access(folds.parent, os.W_OK) and folds.parent.stat().st_mode & 0o222:
        return folds.with_suffix(".pixels.csv")
    return Path("cache") / f"{hashlib.sha256(str(folds).encode()).hexdigest()[:16]}.pixels.csv"


def _read_store(paths: np.ndarray, folder: Path, store: Path) -> pd.DataFrame:
    empty = pd.DataFrame(columns=FINDINGS)
    if not store.is_file():
        return empty
    known = pd.read_csv(store, keep_default_na=False)
    if list(known.columns) != FINDINGS:
        return empty
    known = known[known.path.isin(paths)]
    return known[[_is_fresh(folder / row.path, row) for row in known.itertuples()]]


def _is_fresh(path: Path, row: tuple) -> bool:
    return path.is_file() and _stamp(path) == {"bytes": row.bytes, "modified": row.modified}
