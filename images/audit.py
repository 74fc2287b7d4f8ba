"""The images on disk: where they are, whether each can be read, and what is in them, found once and kept."""

from __future__ import annotations

import hashlib
import io
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

import config
from images import png, splits
from safety import atomic_files, csv_files, limits
from safety.errors import DataError, InputError

IMAGE_FOLDERS = [
    "BreaKHis_v1/BreaKHis_v1/histology_slides/breast",
    "BreaKHis_v1/histology_slides/breast",
    "histology_slides/breast",
    "breast",
    ".",
]
HELP = "get BreakHis as README.md says and set data.root and data.folds, or run `make train`, which needs no data set"
# Not one a core, since an image of 5 megapixels takes 80 MB on its way.
READERS = 4
# Robust deviations from the median of a magnification.
OUTLYING = 6
TYPES = {
    "path": str, "bytes": int, "modified": int, "pixels": str, "error": str, "mode": str, "depth": int, "width": int,
    "height": int, "brightness": float, "sharpness": float,
}  # fmt: skip
FINDINGS = list(TYPES)


def image_folder(root: str | Path) -> Path:
    """The folder below `root` that holds benign/ and malignant/, at any of the depths in which archives unpack.

    Raises:
        InputError: `root` is no folder, holds neither, or has a link on the way that leads out of it.
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"data.root: no folder {str(root)!r}; {HELP}")
    if folder := _image_folder(root):
        return folder
    raise InputError(f"data.root: neither BreaKHis_v1 nor benign and malignant in {str(root)!r}; {HELP}")


def _image_folder(root: Path) -> Path | None:
    folders = (root / folder for folder in IMAGE_FOLDERS)
    folder = next((found for found in folders if (found / "benign").is_dir() or (found / "malignant").is_dir()), None)
    if folder and not limits.is_within(folder, root):
        raise InputError(f"data.root: {folder} leads out of {root} by a link; give the folder that it leads to instead")
    return folder


def with_pixels(table: pd.DataFrame, settings: config.Data) -> pd.DataFrame:
    """Adds the column `pixels`, the hash of each decoded image.

    Raises:
        DataError: there are images that cannot be trained on; names them all.
    """
    table, bad = _look_at(table, settings)
    if bad:
        raise DataError(_name_all(bad, table, "mend them, or leave them out with data.on_bad_image=drop"))
    return table


def usable(table: pd.DataFrame, settings: config.Data) -> tuple[pd.DataFrame, dict[str, str]]:
    """The rows that take part with the column `pixels`, and the images that were left out, as file -> reason.

    Raises:
        DataError: as `with_pixels`, unless `settings.on_bad_image` is drop.
    """
    table = splits.select(table, settings)
    if settings.on_bad_image == "stop":
        return with_pixels(table, settings), {}
    table, bad = _look_at(table, settings)
    if bad:
        print(_name_all(bad, table, "they are left out"), file=sys.stderr)
    return table[~table.filename.isin(bad)].reset_index(drop=True), bad


def _name_all(bad: dict[str, str], table: pd.DataFrame, what: str) -> str:
    title = f"data.root: {len(bad)} of {table.filename.nunique()} images cannot be used; {what}"
    return "\n".join([title, *(f"{name} {error}" for name, error in bad.items())])


def _look_at(table: pd.DataFrame, settings: config.Data) -> tuple[pd.DataFrame, dict[str, str]]:
    """The table with the column `pixels`, and what cannot be used, as file -> reason."""
    findings = inspect(table.path.unique(), image_folder(settings.root), store_of(settings))
    bad = findings[findings.error != ""]
    pixels = table.path.map(findings.set_index("path").pixels)
    return table.assign(pixels=pixels), dict(zip(bad.path.str.rsplit("/", n=1).str[-1], bad.error))


def known_pixels(table: pd.DataFrame, settings: config.Data) -> pd.DataFrame:
    """Adds the column `pixels` if an earlier look at all of the images is still true; opens no image."""
    folder = _image_folder(Path(settings.root))
    if not folder:
        return table
    stored = _read_store(store_of(settings))
    known = _fresh(stored[stored.path.isin(table.path)], folder)
    if len(known) < table.path.nunique():
        return table
    return table.assign(pixels=table.path.map(known.set_index("path").pixels))


def data_version(table: pd.DataFrame) -> str:
    """SHA-256 over the names and pixels of the table's images, in hex: equal for equal data, wherever it lies."""
    images = table.drop_duplicates("filename").sort_values("filename")
    return hashlib.sha256("".join(images.filename + images.pixels).encode()).hexdigest()


def inspect(paths: np.ndarray, folder: Path, store: Path) -> pd.DataFrame:
    """Looks at every image and keeps what it finds in `store`, so that each is decoded once.

    Args:
        paths: of the images, below `folder`.
        folder: the one that `find_images` gives.
        store: CSV of earlier findings, believed where an image's size and time stamp are still the same.

    Returns:
        A row an image, ordered by path: bytes, modified (ns), pixels (SHA-256 of the decoded array), error (empty
        for a good one), mode, depth (bits a channel), width, height (pixels), brightness (mean of grey, 0 to 255) and
        sharpness (variance of grey's Laplacian).
    """
    stored = _read_store(store)
    known = _fresh(stored[stored.path.isin(paths)], folder)
    new = sorted(set(paths) - set(known.path))
    if not new:
        return known.sort_values("path", ignore_index=True)
    with ThreadPoolExecutor(READERS) as pool:
        looks = pool.map(lambda path: _inspect_one(folder, path), new)
        found = pd.DataFrame(list(tqdm(looks, "checking images", len(new), unit="img", delay=5)), columns=FINDINGS)
    # A bad one is looked at again each time, since it may have been mended, or the disk was at fault.
    keep = [part for part in (stored[~stored.path.isin(new)], found[found.error == ""]) if len(part)]
    if keep:
        atomic_files.write_text(store, pd.concat(keep).to_csv(index=False))
    return (pd.concat([known, found]) if len(known) else found).sort_values("path", ignore_index=True)


def _inspect_one(folder: Path, path: str) -> dict:
    return dict.fromkeys(FINDINGS, 0) | {"path": path, "pixels": "", "mode": ""} | png.look(folder, path)


def read_rgb(folder: Path, path: str) -> np.ndarray:
    """The image `path` below `folder` as (height, width, 3), uint8; raises DataError where it cannot be read."""
    try:
        png.stamp(folder, path)
        return png.decode((folder / path).read_bytes())
    except (png.UnusableError, OSError) as error:
        raise DataError(f"data.root: {folder / path} {error}") from None


def store_of(settings: config.Data) -> Path:
    """Where the findings on the images of `data.root` are kept: among our own files, since they are believed."""
    place = str(Path(settings.root).absolute())
    return Path("cache") / f"{hashlib.sha256(place.encode()).hexdigest()[:16]}.pixels.csv"


def _read_store(store: Path) -> pd.DataFrame:
    """The findings that were kept; none where there is no such file or it is damaged, so that all are made again."""
    try:
        content = limits.read_bytes(store, csv_files.MAX_BYTES)
        known = pd.read_csv(io.BytesIO(content), keep_default_na=False, dtype=TYPES)
    except ValueError:
        return pd.DataFrame(columns=FINDINGS)
    whole = (
        list(known.columns) == FINDINGS
        and known.path.is_unique
        and (known.error == "").all()
        and known.pixels.str.fullmatch("[0-9a-f]{64}").all()
    )
    return known if whole else pd.DataFrame(columns=FINDINGS)


def _fresh(known: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """Those of the findings whose images still have the size and time stamp of then."""
    return known[np.array([_is_fresh(row, folder) for row in known.itertuples()], bool)]


def _is_fresh(row: tuple, folder: Path) -> bool:
    try:
        return png.stamp(folder, row.path) == {"bytes": row.bytes, "modified": row.modified}
    except (png.UnusableError, OSError):
        return False


def report(table: pd.DataFrame, findings: pd.DataFrame, folder: Path) -> dict:
    """What is wrong and what is odd about a data set.

    Args:
        table: frame of `data.read_table`.
        findings: frame of `inspect` on all of its images.
        folder: the one that `find_images` gives.

    Returns:
        counts; `errors`, what training refuses, as file -> reason; `warnings`, what it can live with, as kind -> files
        or groups of files; `data_sha256`, the version of the data, empty where there are errors.
    """
    good = findings[findings.error == ""]
    images = table.drop_duplicates("filename").merge(good, on="path")
    twins = images.groupby("pixels").filename.agg(list)
    twins = twins[twins.map(len) > 1]
    contradictions = images.groupby("pixels").label.nunique().pipe(lambda labels: labels[labels > 1].index)
    named = set(table.path)
    on_disk = (path for label in ("benign", "malignant") for path in (folder / label).rglob("*") if path.is_file())
    repeats = table.filename.value_counts()
    errors = dict(zip(findings.path.str.rsplit("/", n=1).str[-1], findings.error))
    errors |= {
        name: "has the pixels of an image of the other class" for pixels in contradictions for name in twins[pixels]
    }
    return {
        "rows": len(table),
        "images": int(table.filename.nunique()),
        "folders": int(table.path.str.rsplit("/", n=2).str[0].nunique()),
        "slides": int(table.slide.nunique()),
        "patients": int(table.patient.nunique()),
        "images_by_rows": {int(rows): int(count) for rows, count in repeats.value_counts().sort_index().items()},
        "images_by_size": {str(size): int(count) for size, count in _sizes(good).value_counts().items()},
        "data_sha256": "" if any(errors.values()) else data_version(images),
        "errors": {name: error for name, error in errors.items() if error},
        "warnings": {
            "equal pixels under several names": twins.tolist(),
            "slide in several subtype folders": _in_several_folders(table),
            "rows other than five": sorted(repeats[repeats != 5].index) if table.fold.notna().all() else [],
            "file that no row names": sorted(
                path.relative_to(folder).as_posix()
                for path in on_disk
                if path.relative_to(folder).as_posix() not in named
            ),
            "size other than 700 x 460 and 700 x 456": _other_sizes(images),
            "brightness outlier": _outliers(images, images.brightness),
            "sharpness outlier": _outliers(images, np.log1p(images.sharpness)),
        },
    }


def _sizes(findings: pd.DataFrame) -> pd.Series:
    return findings.width.astype(str) + " x " + findings.height.astype(str)


def _other_sizes(images: pd.DataFrame) -> list[str]:
    sizes = _sizes(images)
    return (images.filename + ": " + sizes)[~sizes.isin(["700 x 460", "700 x 456"])].tolist()


def _in_several_folders(table: pd.DataFrame) -> list[str]:
    subtypes = table.groupby("slide").subtype.unique()
    return [f"{slide}: {', '.join(sorted(names))}" for slide, names in subtypes.items() if len(names) > 1]


def _outliers(images: pd.DataFrame, values: pd.Series) -> list[str]:
    """Images further from the median of their magnification than OUTLYING times its robust deviation."""
    distance = values - values.groupby(images.mag).transform("median")
    deviation = 1.4826 * distance.abs().groupby(images.mag).transform("median")
    return sorted(images.filename[distance.abs() > OUTLYING * deviation])


def describe(report: dict) -> str:
    """The report as text for the console: counts, then errors, then warnings, each with its first examples."""
    lines = [f"{key:<16} {report[key]}" for key in ("rows", "images", "folders", "slides", "patients")]
    lines += [f"{count:>16} images have {rows} rows" for rows, count in report["images_by_rows"].items()]
    lines += [f"{count:>16} images of {size} pixels" for size, count in report["images_by_size"].items()]
    lines += [f"data version     {report['data_sha256'] or 'none: there are errors'}", ""]
    lines += [f"error: {name} {error}" for name, error in report["errors"].items()]
    for kind, found in report["warnings"].items():
        first = ", ".join(" = ".join(item) if isinstance(item, list) else item for item in found[:5])
        lines += [f"warning: {kind}: {len(found)} ({first}{', ...' if len(found) > 5 else ''})"] if found else []
    wrong, odd = len(report["errors"]), sum(map(len, report["warnings"].values()))
    lines = list(map(limits.printable, lines))
    return "\n".join([*lines, "", f"errors, which training refuses: {wrong}; warnings, which it can live with: {odd}"])


def suspects(report: dict, findings: pd.DataFrame) -> pd.DataFrame:
    """The readable images that the report names, as path and `why`."""
    why = {name: error for name, error in report["errors"].items() if error.startswith("has the pixels")}
    for kind, found in report["warnings"].items():
        why |= {name: kind for item in found for name in (item if isinstance(item, list) else [item])}
    good = findings[findings.error == ""]
    named = good.assign(why=good.path.str.rsplit("/", n=1).str[-1].map(why))
    return named.dropna(subset="why")[["path", "why"]]
