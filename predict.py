"""Predicts new images with a run's checkpoint: python predict.py RUN IMAGE_OR_FOLDER ...

    python predict.py runs/thesis slide.png                          a CSV on standard output
    python predict.py runs/thesis images --out predictions.csv     every image in a folder and below it
    python predict.py runs/thesis images --heatmaps maps           and what speaks for each prediction, as PNG

PNG, JPEG, TIFF (its first page) and BMP of any size up to 50 megapixels. What is transparent is laid on white, 16 bits
are scaled to 8, and a camera's orientation is honoured. An image that cannot be read gets a row that says why.

columns:
  file          the image; control characters are escaped, and ' stands before what a spreadsheet would compute
  probability   of malignant, by the network
  calibrated    the same after the temperature scaling of evaluate.py; empty where it has not been run
  prediction    malignant from the checkpoint's threshold on, else benign
  review        yes where a human should look first, for the reason in `why`
  why           near the threshold, or unlike the training images
  error         why there is no prediction
"""

from __future__ import annotations

import argparse
import re
import stat
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import safety.startup  # noqa: F401  before any other import

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from PIL import Image, ImageOps
from tqdm import tqdm

import model
from evaluation import calibration, gradcam, out_of_distribution, results
from features import extraction
from images import decoding
from safety import atomic_files, command_line, csv_files, limits
from safety.errors import InputError
from training import checkpoint

SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"}
# As many take about a gigabyte on their way.
MAX_PIXELS = 50_000_000
# Every scan of a JPEG takes as long as the whole image; a progressive one has about ten.
MAX_SCANS = 50
MAX_JPEG_BYTES = 2**28
# The marker, then the length of its header, which tells it from the same two bytes in metadata.
SCAN = re.compile(rb"\xff\xda\x00[\x06\x08\x0a\x0c\x0e]")
FORMATS = ["PNG", "JPEG", "TIFF", "BMP"]
GREY_16 = "I;16"
MODES = ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"]
# Not one a core, because of that gigabyte.
READERS = 4
COLUMNS = ["file", "probability", "calibrated", "prediction", "review", "why", "error"]
# By whether the probability is near the threshold (1) and the image beyond the limit of the training images (2).
WHY = ["", "near the threshold", "unlike the training images", "near the threshold; unlike the training images"]
MARGIN = 0.2
NOT_CALIBRATED = "evaluate.py has not calibrated this checkpoint yet: threshold 0.5, and `calibrated` stays empty"
NOT_DESCRIBED = "evaluate.py has not described its training images yet: none can be flagged as unlike them"


def main(arguments: list[str]) -> int:
    """Predicts, writes the table, and returns 1 if there was an image that could not be read."""
    parser = command_line.CommandLine(__doc__)
    parser.add_argument("run", metavar="RUN", help="a run's folder, or the checkpoint in one")
    # Their names may be of any bytes, as of those that are found in folders.
    parser.add_argument(
        "images", nargs="+", type=str, metavar="IMAGE_OR_FOLDER", help="folders are searched to the bottom"
    )
    parser.add_argument("--out", metavar="FILE", help="write the CSV here, not to standard output")
    parser.add_argument("--heatmaps", metavar="FOLDER", type=Path, help="write a Grad-CAM overlay of each image here")
    parser.add_argument(
        "--margin",
        type=_margin,
        default=MARGIN,
        help="review what is nearer to the threshold than this share of the way from it to 0 or to 1 (0.2)",
    )
    args = parser.parse(arguments)
    paths = find(args.images)
    if args.out and Path(args.out).is_dir():
        raise InputError(f"--out: {args.out} is a folder; needed is the name of a file")
    if args.heatmaps and args.heatmaps.exists() and not args.heatmaps.is_dir():
        raise InputError(f"--heatmaps: {args.heatmaps} is a file; needed is the name of a folder")
    network, about = checkpoint.load(checkpoint.find(Path(args.run)))
    if args.heatmaps:
        args.heatmaps.mkdir(parents=True, exist_ok=True)
    table = predict(network, about, paths, args.margin, args.heatmaps)
    write(table, args.out)
    unread = int((table.error != "").sum())
    report(about, unread, len(table))
    return 1 if unread else 0


def _margin(text: str) -> float:
    if not 0 <= float(text) <= 1:
        raise argparse.ArgumentTypeError(f"allowed is 0 to 1, got {text}")
    return float(text)


def find(names: list[str]) -> list[Path]:
    """The images that are named and those in the folders that are named, each once, a folder's in sorted order.

    Raises:
        InputError: there is no such file or folder, or no image in any.
    """
    paths = [path for name in names for path in _below(Path(name))]
    if not paths:
        raise InputError(f"no PNG, JPEG, TIFF or BMP in {', '.join(names)}")
    return list(dict.fromkeys(paths))


def _below(path: Path) -> list[Path]:
    if not path.exists():
        raise InputError(f"no file or folder {str(path)!r}")
    if not path.is_dir():
        return [path]
    return sorted(found for found in path.rglob("*") if found.suffix.lower() in SUFFIXES and found.is_file())


def predict(
    network: keras.Model, about: dict, paths: list[Path], margin: float = MARGIN, heatmaps: Path | None = None
) -> pd.DataFrame:
    """A row for each image, with COLUMNS.

    Args:
        network: of `checkpoint.load`.
        about: of `checkpoint.load`.
        paths: of the images.
        margin: what is less certain, by `calibration.certainty`, is to be reviewed.
        heatmaps: folder for an overlay of each image, as the network sees it, named by its row and file.
    """
    base, head = model.feature_function(model.pooled(network), extraction.BATCH), model.head(network)
    tables = []
    for start, images, errors in _batches(paths, about["settings"].data.image_size):
        pooled = _run(base, images)
        found = pd.DataFrame({"file": paths[start : start + len(images)], "error": errors})
        found["probability"] = head.predict_on_batch(pooled)[:, 0].astype(float)
        found["distance"] = (
            out_of_distribution.distances(pooled, about["familiar"]) if about.get("familiar") else np.nan
        )
        tables.append(judge(found, about, margin))
        if heatmaps:
            _draw(network, images, tables[-1], heatmaps, start)
    return pd.concat(tables, ignore_index=True)


def _batches(paths: list[Path], size: int) -> Iterator[tuple[int, np.ndarray, tuple[str, ...]]]:
    """At most features.BATCH images at a time: the number of the first, the images, what is wrong with each."""
    with ThreadPoolExecutor(READERS) as pool, tqdm(None, "predicting", len(paths), unit="img", delay=5) as bar:
        for start in range(0, len(paths), extraction.BATCH):
            some = paths[start : start + extraction.BATCH]
            images, errors = zip(*pool.map(lambda path: read(path, size), some))
            yield start, np.stack(images), errors
            bar.update(len(some))


def read(path: Path, size: int) -> tuple[np.ndarray, str]:
    """One image as `images.read` gives it, (size, size, 3), and the reason why it is black instead, if it is."""
    try:
        return decoding.resize(tf.constant(read_rgb(path)), size).numpy(), ""
    except Image.UnidentifiedImageError:
        error = "is no PNG, JPEG, TIFF or BMP"
    except InputError as refused:
        error = str(refused)
    # On damaged files Pillow's decoders raise nearly everything.
    except Exception as damage:
        error = f"cannot be read, cut short or damaged ({damage or type(damage).__name__})"
    return np.zeros((size, size, 3), np.float32), error


def read_rgb(path: Path) -> np.ndarray:
    """One image as (height, width, 3), uint8, upright, on white where it is transparent.

    Raises:
        InputError: it is empty or no regular file, has too many pixels or scans, or channels that cannot be shown as
            RGB.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise InputError("is no regular file")
    if status.st_size == 0:
        raise InputError("is empty")
    with Image.open(path, formats=FORMATS) as image:
        if not 0 < image.width * image.height <= MAX_PIXELS:
            raise InputError(f"has {image.width} x {image.height} pixels, allowed are 1 to {MAX_PIXELS}")
        if image.format in ("JPEG", "MPO"):
            _check_scans(path)
        if image.mode not in MODES and not image.mode.startswith(GREY_16):
            raise InputError(f"is of the mode {image.mode}, allowed are {', '.join(MODES)} and grey of 16 bits")
        colors = _of_8_bits(ImageOps.exif_transpose(image)).convert("RGBA")
    white = Image.new("RGBA", colors.size, "white")
    return np.asarray(Image.alpha_composite(white, colors).convert("RGB"))


def _check_scans(path: Path) -> None:
    scans = len(SCAN.findall(limits.read_bytes(path, MAX_JPEG_BYTES)))
    if scans > MAX_SCANS:
        raise InputError(f"has {scans} scans, allowed are {MAX_SCANS}")


def _of_8_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits scaled to 8, anything else as it is."""
    # Pillow brings 16 bits of colour to 8 when it reads them, but clips grey at 255 when it converts it.
    if not image.mode.startswith(GREY_16):
        return image
    return Image.fromarray(np.rint(np.asarray(image) / 257).astype(np.uint8))


def _run(base: Callable, images: np.ndarray) -> np.ndarray:
    """The pooled features of at most features.BATCH images, the batch filled up with zeros."""
    filled = np.zeros((extraction.BATCH, *images.shape[1:]), np.float32)
    filled[: len(images)] = images
    return base(tf.constant(filled)).numpy()[: len(images)]


def judge(found: pd.DataFrame, about: dict, margin: float) -> pd.DataFrame:
    """Adds what follows from the probability and the distance; gives COLUMNS.

    Args:
        found: with file, probability, distance (of `familiar.distances`) and error (empty for an image that was read).
        about: of `checkpoint.load`; `decision` and `familiar` count, where it has them.
        margin: what is less certain, by `calibration.certainty`, is to be reviewed.
    """
    decision = about.get("decision") or {"threshold": 0.5, "temperature": np.nan}
    limit = (about.get("familiar") or {"limit": np.inf})["limit"]
    near = calibration.certainty(found.probability, decision["threshold"]) < margin
    unlike = found.distance > limit
    why = np.array(WHY)[near.astype(int) + 2 * unlike.astype(int)]
    table = found.assign(
        calibrated=calibration.scale(found.probability, decision["temperature"]),
        prediction=np.where(found.probability >= decision["threshold"], "malignant", "benign"),
        review=np.where(near | unlike, "yes", "no"),
        why=why,
    )
    judged = ["probability", "calibrated", "prediction", "review", "why"]
    return table[COLUMNS].assign(**{name: table[name].where(table.error == "") for name in judged})


def _draw(network: keras.Model, images: np.ndarray, table: pd.DataFrame, folder: Path, start: int) -> None:
    """Overlays of the images that were read; the number of the row makes the name its own."""
    heat = gradcam.heatmaps(network, images, (table.prediction == "malignant").to_numpy())
    for place in np.flatnonzero(table.error == ""):
        # Cut, since the number must not make a name longer than a file system takes.
        name = f"{start + place + 1:05}-{table.file[place].stem[:60]}.png"
        with atomic_files.replacing(folder / name) as beside:
            Image.fromarray(gradcam.overlay(images[place], heat[place])).save(beside)


def write(table: pd.DataFrame, out: str | None) -> None:
    """Writes the table as CSV in UTF-8, to a file as a whole, or to standard output where none is named."""
    text = table.assign(
        file=table.file.map(csv_files.spreadsheet_safe), error=table.error.map(csv_files.spreadsheet_safe)
    ).to_csv(index=False)
    atomic_files.write_out(out or "/dev/stdout", text)


def report(about: dict, unread: int, total: int) -> None:
    """What the reader of the table should know, a line each on standard error."""
    lines = [
        NOT_CALIBRATED if not about.get("decision") else "",
        NOT_DESCRIBED if not about.get("familiar") else "",
        f"{unread} of {total} images could not be read; the column `error` says why" if unread else "",
        results.RESEARCH_ONLY,
    ]
    print(*filter(None, lines), sep="\n", file=sys.stderr)


if __name__ == "__main__":
    command_line.run(main)
