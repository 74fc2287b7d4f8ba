"""Predicts new images with a run's checkpoint: python predict.py RUN IMAGE_OR_FOLDER ...

    python predict.py runs/thesis slide.png                        a CSV on standard output
    python predict.py runs/thesis images --out predictions.csv     every image in a folder and its subfolders
    python predict.py runs/thesis images --heatmaps maps           and a Grad-CAM overlay of each image, as PNG
    python predict.py runs/thesis images --views 8                 with the mean over the 8 exact turns of each image
    python predict.py runs/real features.npz                       a run on imported features takes a file of them

PNG, JPEG, TIFF (its first page) and BMP of any size up to 50 megapixels. Transparent pixels become white, 16 bits are
scaled to 8, and the EXIF orientation is applied. An image that cannot be read gets a row with the reason. Files with
other suffixes in a folder are skipped, and counted on standard error.

columns:
  file          the image; control characters are escaped, and a leading ' stops a spreadsheet from computing a name
  probability   of malignant, by the network
  calibrated    the probability after temperature scaling; empty until evaluate.py has been run
  prediction    malignant if the probability is at least the checkpoint's threshold, else benign
  review        yes if a human should check this image, for the reason in `why`
  why           near the threshold, or unlike the training images
  error         why there is no prediction
  views         the number of exact turns of the image over which the probability is the mean; only with several
"""

from __future__ import annotations

import safety.startup

safety.startup.start_command(__name__)  # before all other imports, which take seconds

import argparse
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from PIL import Image
from tqdm import tqdm

import config
import model
from evaluation import calibration, gradcam, metrics, out_of_distribution
from evaluation.evaluation import RESEARCH_ONLY
from features import engine, feature_files, source
from images import external_images, other_files, stain_normalization, turns
from safety import atomic_files, command_line, csv_files
from safety.errors import InputError
from training import checkpoint, decision

# Not one per core: each image may need a gigabyte while it is decoded.
READERS = 4
COLUMNS = ["file", "probability", "calibrated", "prediction", "review", "why", "error"]
# Index: 1 if the probability is near the threshold, plus 2 if the image is unlike the training images.
WHY = ["", "near the threshold", "unlike the training images", "near the threshold; unlike the training images"]
MARGIN = 0.2
VIEWS_HELP = (
    "the probability is that of the plain image (1) or the mean over its 8 exact quarter turns and mirrors (8); "
    "default: as evaluate.py chose threshold and temperature, else data.test_views"
)
NOT_CALIBRATED = "no calibration in the checkpoint; run evaluate.py: threshold 0.5, and `calibrated` is empty"
NOT_DESCRIBED = "no statistics of the training images in the checkpoint; run evaluate.py: no image is flagged as unlike"


def main(arguments: list[str]) -> int:
    """Predicts and writes the table; returns 1 if an image could not be read, else 0."""
    parser = command_line.CommandLine(__doc__)
    parser.add_argument("run", metavar="RUN", help="a run's folder, or the checkpoint in one")
    # `type=str` allows names that are not UTF-8, as they can occur in folders too.
    parser.add_argument(
        "images",
        nargs="+",
        type=str,
        metavar="IMAGE_OR_FOLDER",
        help="folders include subfolders; one feature file, where the run has model.base=file",
    )
    parser.add_argument("--out", metavar="FILE", help="write the CSV to this file, not to standard output")
    parser.add_argument("--heatmaps", metavar="FOLDER", type=Path, help="write a Grad-CAM overlay of each image here")
    parser.add_argument(
        "--margin",
        type=_margin,
        default=MARGIN,
        help="mark predictions for review that are closer to the threshold than this share (0 to 1) of the distance "
        "between the threshold and 0 or 1 (default 0.2)",
    )
    parser.add_argument("--views", type=int, choices=decision.VIEWS, help=VIEWS_HELP)
    args = parser.parse(arguments)
    if args.out and Path(args.out).is_dir():
        raise InputError(f"--out: needed is a file, got the folder {args.out}")
    if args.heatmaps and args.heatmaps.exists() and not args.heatmaps.is_dir():
        raise InputError(f"--heatmaps: needed is a folder, got the file {args.heatmaps}")
    network, about = checkpoint.load(checkpoint.find(Path(args.run)))
    imported = about["settings"].model.imported
    check_kind(imported, args)
    paths = [] if imported else external_images.find(args.images)
    about = with_views(about, args.views, args.run)
    if args.heatmaps:
        args.heatmaps.mkdir(parents=True, exist_ok=True)
    if imported:
        table, skipped = predict_features(network, about, Path(args.images[0]), args.margin), []
    else:
        table = predict(network, about, paths, args.margin, args.heatmaps)
        skipped = external_images.skipped(args.images)
    write(table, args.out)
    print_notes(about, table, skipped)
    return int((table.error != "").any())


def check_kind(imported: bool, args: argparse.Namespace) -> None:
    """Refuses images for a run on imported features, a feature file for a run on images, and what needs pixels.

    Args:
        imported: whether the run was trained on imported features.
        args: of the command line.

    Raises:
        InputError: they do not fit together.
    """
    # A folder or a longer list may hold such files next to images.
    one = len(args.images) == 1 and feature_files.is_one(Path(args.images[0]))
    if imported != one and (imported or Path(args.images[0]).is_file()):
        needed = "one feature file" if imported else "images"
        trained = "imported features" if imported else "images"
        raise InputError(f"{args.run} was trained on {trained}: needed is {needed}, got {', '.join(args.images)[:200]}")
    if imported and (args.heatmaps or args.views == 8):
        option = "--heatmaps" if args.heatmaps else "--views"
        raise InputError(f"{option}: needed are images, which a feature file does not have")


def _margin(text: str) -> float:
    if not 0 <= float(text) <= 1:
        raise argparse.ArgumentTypeError(f"allowed is 0 to 1, got {text}")
    return float(text)


def with_views(about: dict, views: int | None, run: str) -> dict:
    """The content of the checkpoint's metadata with the number of views that is asked for.

    Args:
        about: of `checkpoint.load`.
        views: as in `decision.VIEWS`; None for that of the decision, else `data.test_views`.
        run: for the message.

    Raises:
        InputError: threshold and temperature were chosen with another number of views.
    """
    chosen = about.get("decision")
    if chosen and views and views != chosen.get("views", 1):
        raise InputError(
            f"--views: threshold and temperature of {run} were chosen with {chosen.get('views', 1)}, got {views}; "
            f"first run: python evaluate.py {run} --views {views}"
        )
    return {**about, "views": views or (chosen or {}).get("views", about["settings"].data.test_views)}


def predict(
    network: keras.Model, about: dict, paths: list[Path], margin: float = MARGIN, heatmaps: Path | None = None
) -> pd.DataFrame:
    """Predicts image files.

    Args:
        network: of `checkpoint.load`.
        about: of `checkpoint.load`; the key `views` of `with_views` may be missing, which is 1.
        paths: of the images.
        margin: predictions with a `calibration.certainty` below this are marked for review.
        heatmaps: folder for an overlay of each image, at the network's input size, named by row number and file.

    Returns:
        A row per image, in the order of `paths`, with COLUMNS, and where several views are averaged, `views`.
    """
    # The form that evaluate.py takes the features from.
    settings = about["settings"]
    base = engine.compiled(model.pooled(network), settings.train.engine, folded=settings.model.frozen)
    head = model.head(network)
    tables = []
    familiar, views = about.get("familiar"), about.get("views", 1)
    for start, images, errors in _batches(paths, settings.data):
        features = [_pooled_features(base, images, view) for view in range(views)]
        rows = pd.DataFrame({"file": paths[start : start + len(images)], "error": errors})
        rows["probability"] = np.mean([head.predict_on_batch(each)[:, 0] for each in features], axis=0).astype(float)
        rows["distance"] = out_of_distribution.distances(features[0], familiar) if familiar else np.nan
        tables.append(judge(rows, about, margin))
        if heatmaps:
            _write_overlays(network, images, tables[-1], heatmaps, start)
    table = pd.concat(tables, ignore_index=True)
    return table.assign(views=views) if views > 1 else table


def predict_features(network: keras.Model, about: dict, path: Path, margin: float = MARGIN) -> pd.DataFrame:
    """Predicts the images of a feature file, ordered by name; arguments and result as for `predict`.

    Raises:
        InputError: the file cannot be read, or its features are not as many as those of the run.
    """
    names, features = feature_files.read(path)
    source.check_width(network, features, path)
    familiar = about.get("familiar")
    rows = pd.DataFrame({"file": names, "error": ""})
    rows["probability"] = model.head(network).predict(features, verbose=0)[:, 0].astype(float)
    rows["distance"] = out_of_distribution.distances(features, familiar) if familiar else np.nan
    return judge(rows, about, margin)


def _batches(paths: list[Path], data: config.Data) -> Iterator[tuple[int, np.ndarray, tuple[str, ...]]]:
    """Reads at most BATCH images at a time: the index of the first, the images, and their errors."""

    def read(path: Path) -> tuple[np.ndarray, str]:
        image, error = external_images.read(path, data.image_size)
        return stain_normalization.normalise(image, data), error

    with ThreadPoolExecutor(READERS) as pool, tqdm(None, "predicting", len(paths), unit="img", delay=5) as bar:
        for start in range(0, len(paths), engine.BATCH):
            batch = paths[start : start + engine.BATCH]
            images, errors = zip(*pool.map(read, batch))
            yield start, np.stack(images), errors
            bar.update(len(batch))


def _pooled_features(base: Callable, images: np.ndarray, view: int) -> np.ndarray:
    """The pooled features of an exact turn of at most BATCH images, padded with zeros to the one shape."""
    padded = np.zeros((engine.BATCH, *images.shape[1:]), np.float32)
    padded[: len(images)] = images
    return base([turns.turn(tf.constant(padded), [view] * engine.BATCH)])[0][: len(images)]


def judge(rows: pd.DataFrame, about: dict, margin: float) -> pd.DataFrame:
    """Adds prediction, calibrated probability and whether to review; these are empty for images with an error.

    Args:
        rows: with file, probability, distance (of `out_of_distribution.distances`) and error (empty for none).
        about: of `checkpoint.load`; only its keys `decision` and `familiar` are used, and both may be missing.
        margin: predictions with a `calibration.certainty` below this are marked for review.

    Returns:
        The same rows, with COLUMNS.
    """
    choice = about.get("decision") or {"threshold": 0.5, "temperature": np.nan}
    limit = (about.get("familiar") or {"limit": np.inf})["limit"]
    near = calibration.certainty(rows.probability, choice["threshold"]) < margin
    unlike = rows.distance > limit
    table = rows.assign(
        calibrated=calibration.scale(rows.probability, choice["temperature"]),
        prediction=metrics.classify(rows.probability, choice["threshold"]),
        review=np.where(near | unlike, "yes", "no"),
        why=np.array(WHY)[near.astype(int) + 2 * unlike.astype(int)],
    )
    judged = ["probability", "calibrated", "prediction", "review", "why"]
    return table[COLUMNS].assign(**{name: table[name].where(table.error == "") for name in judged})


def _write_overlays(network: keras.Model, images: np.ndarray, table: pd.DataFrame, folder: Path, start: int) -> None:
    """Writes a Grad-CAM overlay of each image that was read; the row number makes its file name unique."""
    heat = gradcam.heatmaps(network, images, (table.prediction == "malignant").to_numpy())
    for index in np.flatnonzero(table.error == ""):
        # Cut, since file systems limit the length of a name.
        name = f"{start + index + 1:05}-{table.file[index].stem[:60]}.png"
        with atomic_files.replacing(folder / name) as temporary:
            Image.fromarray(gradcam.overlay(images[index], heat[index])).save(temporary)


def write(table: pd.DataFrame, out: str | None) -> None:
    """Writes the table as CSV in UTF-8 to the file `out`, all of it or nothing, or to standard output if None."""
    text = table.assign(
        file=table.file.map(csv_files.spreadsheet_safe), error=table.error.map(csv_files.spreadsheet_safe)
    ).to_csv(index=False)
    atomic_files.write_out(out or "/dev/stdout", text)


def print_notes(about: dict, table: pd.DataFrame, skipped: list[Path]) -> None:
    """Prints to standard error what a reader of the table has to know, a line each."""
    unread = int((table.error != "").sum())
    lines = [
        _evidence(about["cross_validated"]) if about.get("cross_validated") else "",
        NOT_CALIBRATED if not about.get("decision") else "",
        NOT_DESCRIBED if not about.get("familiar") else "",
        f"{unread} of {len(table)} images could not be read; the column `error` says why" if unread else "",
        f"{len(skipped)} other files were skipped: {other_files.count(skipped)}" if skipped else "",
        RESEARCH_ONLY,
    ]
    print(*filter(None, lines), sep="\n", file=sys.stderr)


def _evidence(scores: dict) -> str:
    """What is known of a model that is trained on all images, which no test set is left for."""
    value, low, high = scores["balanced_accuracy"]
    if low is None or high is None:
        interval = "no interval: a class has a single patient"
    else:
        interval = f"{low:.3f} to {high:.3f}, 95 % over {scores['patients']} patients"
    return (
        f"this model is trained on all images; cross-validated balanced accuracy of its settings: {value:.3f} "
        f"({interval}; {scores['folds']})"
    )


if __name__ == "__main__":
    command_line.run(main)
