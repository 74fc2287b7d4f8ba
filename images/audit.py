"""The audit: finds the images on disk, inspects each once, and reports what is wrong or unusual."""

from __future__ import annotations

import hashlib
import io
import itertools
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

import config
from images import other_files, png
from safety import atomic_files, csv_files, limits
from safety.errors import DataError, InputError

IMAGE_FOLDERS = [
    "BreaKHis_v1/BreaKHis_v1/histology_slides/breast",
    "BreaKHis_v1/histology_slides/breast",
    "histology_slides/breast",
    "breast",
    ".",
]
LABELS = ("benign", "malignant")
# A fixed number, whatever the number of cores: an image of 5 megapixels needs 80 MB while it is inspected.
READERS = 4
# An outlier is more than this many robust standard deviations from the median of its magnification.
OUTLIER_DEVIATIONS = 6
TYPES = {
    "path": str, "bytes": int, "modified": int, "pixels": str, "error": str, "mode": str, "depth": int, "width": int,
    "height": int, "brightness": float, "sharpness": float,
}  # fmt: skip
COLUMNS = list(TYPES)


def image_folder(root: str | Path) -> Path:
    """The folder that contains benign/ and malignant/.

    Args:
        root: `data.root`; the folder is searched at all depths to which the known archives unpack.

    Raises:
        InputError: `root` is not a folder, contains neither, or a link on the way leads out of it.
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"data.root: must be a folder, got {str(root)!r}; {config.GET_DATA}")
    if folder := _image_folder(root):
        return folder
    raise InputError(
        f"data.root: must contain BreaKHis_v1 or benign and malignant, got {str(root)!r}; {config.GET_DATA}"
    )


def _image_folder(root: Path) -> Path | None:
    folders = (root / folder for folder in IMAGE_FOLDERS)
    folder = next((path for path in folders if (path / "benign").is_dir() or (path / "malignant").is_dir()), None)
    if folder and not limits.is_within(folder, root):
        raise InputError(
            f"data.root: {folder} leads out of {root} by a link; set data.root to the folder that it leads to"
        )
    return folder


def with_pixels(table: pd.DataFrame, settings: config.Data) -> pd.DataFrame:
    """Inspects all images of the table.

    Args:
        table: frame with path and filename.
        settings: the section `data`.

    Returns:
        The table with the column `pixels`, the SHA-256 of each decoded image.

    Raises:
        DataError: some images cannot be used; names them all.
    """
    table, unusable = _inspect_table(table, settings)
    if unusable:
        raise DataError(_list_unusable(unusable, table, "mend them, or leave them out with data.on_bad_image=drop"))
    return table


def usable_rows(table: pd.DataFrame, settings: config.Data) -> tuple[pd.DataFrame, dict[str, str]]:
    """Inspects all images of the table; under `data.on_bad_image: drop` leaves the unusable ones out.

    Args:
        table: frame of `splits.select`.
        settings: the section `data`.

    Returns:
        The remaining rows with the column `pixels`, and the images left out, file name -> reason.

    Raises:
        DataError: some images cannot be used, and `data.on_bad_image` is stop; names them all.
    """
    if settings.on_bad_image == "stop":
        return with_pixels(table, settings), {}
    table, unusable = _inspect_table(table, settings)
    if unusable:
        print(_list_unusable(unusable, table, "they are left out"), file=sys.stderr)
    return table[~table.filename.isin(unusable)].reset_index(drop=True), unusable


def _list_unusable(unusable: dict[str, str], table: pd.DataFrame, consequence: str) -> str:
    title = f"data.root: {len(unusable)} of {table.filename.nunique()} images cannot be used; {consequence}"
    return "\n".join([title, *(f"{name} {error}" for name, error in unusable.items())])


def _inspect_table(table: pd.DataFrame, settings: config.Data) -> tuple[pd.DataFrame, dict[str, str]]:
    """The table with the column `pixels`, and the unusable images, file name -> reason."""
    findings = inspect(table.path.unique(), image_folder(settings.root), findings_path(settings))
    unusable = findings[findings.error != ""]
    pixels = table.path.map(findings.set_index("path").pixels)
    return table.assign(pixels=pixels), dict(zip(_names(unusable.path), unusable.error))


def _names(paths: pd.Series) -> pd.Series:
    return paths.str.rsplit("/", n=1).str[-1]


def known_pixels(table: pd.DataFrame, settings: config.Data) -> pd.DataFrame:
    """Adds the column `pixels` as `with_pixels` does, but opens no image.

    Returns:
        The table, without the column unless all its images were inspected before and have not changed since.
    """
    folder = _image_folder(Path(settings.root))
    if not folder:
        return table
    stored = _read_findings(findings_path(settings))
    unchanged = _unchanged(stored[stored.path.isin(table.path)], folder)
    if len(unchanged) < table.path.nunique():
        return table
    return table.assign(pixels=table.path.map(unchanged.set_index("path").pixels))


def data_version(table: pd.DataFrame) -> str:
    """SHA-256 over the names and pixels of the table's images, in hex; it does not depend on the folder."""
    images = table.drop_duplicates("filename").sort_values("filename")
    return hashlib.sha256("".join(images.filename + images.pixels).encode()).hexdigest()


def inspect(paths: np.ndarray, folder: Path, cache: Path) -> pd.DataFrame:
    """Inspects every image; findings are cached, so that each image is decoded once.

    Args:
        paths: of the images, relative to `folder`.
        folder: what `image_folder` returns.
        cache: CSV of earlier findings; used for images whose size and time stamp have not changed, and updated.

    Returns:
        One row for each image, ordered by path. Columns: path, and those of `png.inspect`.
    """
    cached = _read_findings(cache)
    unchanged = _unchanged(cached[cached.path.isin(paths)], folder)
    new = sorted(set(paths) - set(unchanged.path))
    if not new:
        return unchanged.sort_values("path", ignore_index=True)
    with ThreadPoolExecutor(READERS) as pool:
        rows = pool.map(lambda path: _inspect_one(folder, path), new)
        findings = pd.DataFrame(list(tqdm(rows, "checking images", len(new), unit="img", delay=5)), columns=COLUMNS)
    # Unusable images are not cached: they may be mended, or the error was one of the disk.
    parts = [part for part in (cached[~cached.path.isin(new)], findings[findings.error == ""]) if len(part)]
    if parts and atomic_files.can_write(cache):
        atomic_files.write_text(cache, pd.concat(parts).to_csv(index=False))
    elif parts:
        print(f"{cache}: cannot be written, so these images will be checked again next time", file=sys.stderr)
    return (pd.concat([unchanged, findings]) if len(unchanged) else findings).sort_values("path", ignore_index=True)


def _inspect_one(folder: Path, path: str) -> dict:
    return dict.fromkeys(COLUMNS, 0) | {"path": path, "pixels": "", "mode": ""} | png.inspect(folder, path)


def read_rgb(folder: Path, path: str) -> np.ndarray:
    """Reads one image for a figure.

    Args:
        folder: what `image_folder` returns.
        path: relative to it.

    Returns:
        RGB, (height, width, 3), uint8.

    Raises:
        DataError: the image cannot be used.
    """
    try:
        png.file_status(folder, path)
        return png.decode_for_figure((folder / path).read_bytes())
    except (png.UnusableError, OSError) as error:
        raise DataError(f"data.root: {folder / path} {error}") from None


def findings_path(settings: config.Data) -> Path:
    """The CSV of the findings on the images of `data.root`.

    It is in cache/ and not in `data.root`: findings that come with a data set could hide a broken image.
    """
    root = str(Path(settings.root).absolute())
    return Path("cache") / f"{hashlib.sha256(root.encode()).hexdigest()[:16]}.pixels.csv"


def _read_findings(path: Path) -> pd.DataFrame:
    """The cached findings; empty if the file is missing or damaged, so that all images are inspected again."""
    try:
        content = limits.read_bytes(path, csv_files.MAX_BYTES)
        findings = pd.read_csv(io.BytesIO(content), keep_default_na=False, dtype=TYPES)
    except ValueError:
        return pd.DataFrame(columns=COLUMNS)
    valid = (
        list(findings.columns) == COLUMNS
        and findings.path.is_unique
        and (findings.error == "").all()
        and findings.pixels.str.fullmatch("[0-9a-f]{64}").all()
    )
    return findings if valid else pd.DataFrame(columns=COLUMNS)


def _unchanged(findings: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """The findings whose images still have the same size and time stamp."""
    return findings[np.array([_is_unchanged(row, folder) for row in findings.itertuples()], bool)]


def _is_unchanged(row: tuple, folder: Path) -> bool:
    try:
        return png.file_status(folder, row.path) == {"bytes": row.bytes, "modified": row.modified}
    except (png.UnusableError, OSError):
        return False


def report(table: pd.DataFrame, findings: pd.DataFrame, folder: Path) -> dict:
    """What is wrong and what is unusual in a data set.

    Args:
        table: frame of `data.read_table`.
        findings: frame of `inspect` on all of its images.
        folder: what `image_folder` returns.

    Returns:
        Counts: rows, images, folders, slides, patients, images_by_rows, images_by_size. `data_sha256`: the version of
        the data, empty if there are errors. `errors`: the images that training refuses, file name -> reason.
        `warnings`: what training accepts, kind -> files or groups of files.
    """
    valid = findings[findings.error == ""]
    images = table.drop_duplicates("filename").merge(valid, on="path")
    errors = _errors(findings, images)
    row_counts = table.filename.value_counts().value_counts().sort_index()
    return {
        "rows": len(table),
        "images": int(table.filename.nunique()),
        "folders": int(table.path.str.rsplit("/", n=2).str[0].nunique()),
        "slides": int(table.slide.nunique()),
        "patients": int(table.patient.nunique()),
        "images_by_rows": {int(rows): int(count) for rows, count in row_counts.items()},
        "images_by_size": {str(size): int(count) for size, count in _sizes(valid).value_counts().items()},
        "data_sha256": "" if errors else data_version(images),
        "errors": errors,
        "warnings": _warnings(table, images, folder),
    }


def _errors(findings: pd.DataFrame, images: pd.DataFrame) -> dict[str, str]:
    errors = dict(zip(_names(findings.path), findings.error))
    labels = images.groupby("pixels").label.nunique()
    contradictory = images.filename[images.pixels.isin(labels.index[labels > 1])]
    errors |= dict.fromkeys(contradictory, "has the pixels of an image of the other class")
    return {name: error for name, error in errors.items() if error}


def _warnings(table: pd.DataFrame, images: pd.DataFrame, folder: Path) -> dict[str, list]:
    same_pixels = images.groupby("pixels").filename.agg(list)
    rows = table.filename.value_counts()
    return {
        "equal pixels under several names": same_pixels[same_pixels.map(len) > 1].tolist(),
        "slide in several subtype folders": _in_several_folders(table),
        # A table read from the folders has one row for each image, and no folds.
        "rows other than five": sorted(rows[rows != 5].index) if table.fold.notna().all() else [],
        "file that no row names": unnamed_files(table.path, folder),
        "size other than 700 x 460 and 700 x 456": _other_sizes(images),
        "brightness outlier": _outliers(images, images.brightness),
        "sharpness outlier": _outliers(images, np.log1p(images.sharpness)),
    }


def unnamed_files(paths: Iterable[str], folder: Path) -> list[str]:
    """The files in the folders of the classes, relative to `folder`, that are none of `paths`."""
    # The second pattern also finds what is in linked folders, as do those who read the images.
    files = itertools.chain(*((folder / label).rglob("*") for label in LABELS), folder.glob("*/SOB/*/*/*/*"))
    own = {path for path in files if path.is_file() and not other_files.is_of_macos(path)}
    return sorted({path.relative_to(folder).as_posix() for path in own} - set(paths))


def _sizes(findings: pd.DataFrame) -> pd.Series:
    return findings.width.astype(str) + " x " + findings.height.astype(str)


def _other_sizes(images: pd.DataFrame) -> list[str]:
    sizes = _sizes(images)
    return (images.filename + ": " + sizes)[~sizes.isin(["700 x 460", "700 x 456"])].tolist()


def _in_several_folders(table: pd.DataFrame) -> list[str]:
    subtypes = table.groupby("slide").subtype.unique()
    return [f"{slide}: {', '.join(sorted(names))}" for slide, names in subtypes.items() if len(names) > 1]


def _outliers(images: pd.DataFrame, values: pd.Series) -> list[str]:
    """Images whose value is far from the median of their magnification, in robust standard deviations."""
    distance = values - values.groupby(images.mag).transform("median")
    deviation = 1.4826 * distance.abs().groupby(images.mag).transform("median")
    return sorted(images.filename[distance.abs() > OUTLIER_DEVIATIONS * deviation])


def describe(report: dict) -> str:
    """The report as text for the console: counts, errors, and warnings with up to five examples each."""
    lines = [f"{key:<16} {report[key]}" for key in ("rows", "images", "folders", "slides", "patients")]
    lines += [f"{count:>16} images have {rows} rows" for rows, count in report["images_by_rows"].items()]
    lines += [f"{count:>16} images of {size} pixels" for size, count in report["images_by_size"].items()]
    lines += [f"data version     {report['data_sha256'] or 'none: there are errors'}", ""]
    lines += [f"error: {name} {error}" for name, error in report["errors"].items()]
    for kind, items in report["warnings"].items():
        examples = ", ".join(" = ".join(item) if isinstance(item, list) else item for item in items[:5])
        lines += [f"warning: {kind}: {len(items)} ({examples}{', ...' if len(items) > 5 else ''})"] if items else []
    errors, warnings = len(report["errors"]), sum(map(len, report["warnings"].values()))
    lines = list(map(limits.printable, lines))
    return "\n".join([*lines, "", f"errors, which training refuses: {errors}; warnings, which it accepts: {warnings}"])


def suspicious_images(report: dict, findings: pd.DataFrame) -> pd.DataFrame:
    """The images that the report names and that can be shown: path and `reason`."""
    reasons = {name: error for name, error in report["errors"].items() if error.startswith("has the pixels")}
    for kind, items in report["warnings"].items():
        reasons |= {name: kind for item in items for name in (item if isinstance(item, list) else [item])}
    valid = findings[findings.error == ""]
    return valid.assign(reason=_names(valid.path).map(reasons)).dropna(subset="reason")[["path", "reason"]]
