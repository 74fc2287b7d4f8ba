"""Runs the frozen base once for each image and view, and keeps its output on disk under cache/.

The output of a frozen part of the network for an image never changes. So every epoch, every repeated row and every
later run with the same part reads it from the cache instead of running the part again.

How an image is batched can change the last bits of its features: on processors with AVX2 alone they depend on its
place in the batch. They are equal to 1e-5 however the images are divided among batches, devices and processes. They
are equal to the bit where the division is the same, as when a single process goes on with a stopped extraction: what
is missing then begins with a new chunk, and every chunk has its own batches. Several workers divide what is missing
anew, and a run that starts when another one has computed some of its images divides the rest.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from filelock import FileLock, Timeout
from tqdm import tqdm

import config
import model
from devices import strategy
from features import engine, store
from features.engine import BATCH
from features.store import Store
from images import audit, augmentation, decoding, stain_normalization, turns
from safety import atomic_files
from safety.errors import InputError

# To be raised when the same settings give other features, or other decoded images, than before.
VERSION, IMAGES_VERSION = 2, 1


Item, Result = TypeVar("Item"), TypeVar("Result")


class Features(NamedTuple):
    """Features and labels of rows: view v of row r is array[places[r, v]].

    Attributes:
        array: memory map (places in the cache, *shape), float32; shape is (2048,) for the pooled features of ResNet50.
        places: (rows, views), int64.
        labels: (rows,), 0 for benign and 1 for malignant.
    """

    array: np.ndarray
    places: np.ndarray
    labels: np.ndarray

    def select(self, rows: slice | np.ndarray) -> Features:
        """The features and labels of some of the rows."""
        return Features(self.array, self.places[rows], self.labels[rows])


class Pass(NamedTuple):
    """One pass of one view of one image through the base.

    Attributes:
        name: of its features in the cache.
        path: of the image, below the folder of the images.
        pixels: hash of the decoded image.
        view: number, from 0.
    """

    name: str
    path: str
    pixels: str
    view: int


class Extraction(NamedTuple):
    """What is extracted, from where, and where it is kept.

    Attributes:
        part: of the network, from the pixels on.
        weights: their hash.
        engine: of `engine.compiled`.
        features: its output, by the name of the pass.
        images: the decoded images, by their pixels' hash.
        folder: of the image files.
        data: how the stain is normalised; the decoded images on disk are as they were.
        augment: how views are augmented; None for exact turns, of which view 0 is the plain image.
        seed: of the augmentation.
    """

    part: keras.Model
    weights: str
    engine: str
    features: Store
    images: Store
    folder: Path
    data: config.Data
    augment: config.Augment | None
    seed: int


def pooled(
    network: keras.Model, rows: pd.DataFrame, settings: config.Settings, augmented: bool = False, turned: int = 1
) -> Features:
    """The base's pooled output (2048 numbers for ResNet50) for each row; see `extract`.

    Args:
        network: of `model.build` or `checkpoint.load`.
        rows: as for `extract`.
        settings: of the run.
        augmented: as for `extract`.
        turned: as for `extract`.

    Raises:
        InputError: as `extract`.
    """
    return extract(_pooled(network), rows, settings, augmented, turned)


@functools.lru_cache(maxsize=1)
def _pooled(network: keras.Model) -> keras.Model:
    # The same part for all rows of a run, so that its graph is traced once.
    return model.pooled(network)


def extract(
    part: keras.Model, rows: pd.DataFrame, settings: config.Settings, augmented: bool = False, turned: int = 1
) -> Features:
    """The output of a frozen part of the network for each row, from the cache or computed and added to it.

    Args:
        part: from the pixels on; its name is that of the layer where it ends.
        rows: with path, pixels and label_int; rows of equal pixels share their features.
        settings: of the run.
        augmented: whether to take `augment.views` augmented views of each image instead of the plain image. A view
            depends on the seed, the image and the number of the view alone, so a larger `augment.views` keeps the
            views that are there.
        turned: views of each image where it is not augmented: its first exact turns, of which 0 is the plain image.

    Returns:
        The features, with `augment.views` or `turned` views a row.

    Raises:
        InputError: the limit of the cache or the disk is too small, or features are missing in a read-only cache.
    """
    views = settings.augment.views if augmented else turned
    size = settings.data.image_size
    images_once = rows.drop_duplicates("pixels").sort_values("path")
    passes = [
        Pass(f"{row.pixels}-{view}", row.path, row.pixels, view)
        for row in images_once.itertuples()
        for view in range(views)
    ]
    weights = model.weights_hash(part)
    extraction = Extraction(
        part,
        weights,
        settings.train.engine,
        Store(store.CACHE / f"features-{key(part, settings, augmented, weights)}", part.output.shape[1:], np.float32),
        Store(store.CACHE / f"images-{IMAGES_VERSION}-{size}", (size, size, 3), np.uint8),
        audit.image_folder(settings.data.root),
        settings.data,
        settings.augment if augmented else None,
        settings.data.seed,
    )
    with _locked(extraction.features.folder):
        strategy.barrier()
        _complete(extraction, passes, settings.train.cache_gib)
    cached = extraction.features
    places = [[cached.places[f"{pixels}-{view}"] for view in range(views)] for pixels in rows.pixels]
    return Features(cached.memmap(), np.array(places), rows.label_int.to_numpy())


def key(part: keras.Model, settings: config.Settings, augmented: bool, weights: str = "") -> str:
    """A hash of everything besides the pixels that the features depend on; each key has its own folder.

    Args:
        part: as for `extract`.
        settings: of the run.
        augmented: as for `extract`.
        weights: `model.weights_hash` of the part, where it is known.
    """
    values = {
        "version": VERSION,
        # Of this part alone: training what comes after it changes nothing.
        "weights": weights or model.weights_hash(part),
        "output": part.name,
        "image_size": settings.data.image_size,
        "precision": engine.precision(part),
        # Settings that earlier versions did not know have defaults; they are in the key only where they differ.
        "augment": settings.augment.model_dump(exclude={"views"}, exclude_defaults=True) if augmented else None,
        "seed": settings.data.seed if augmented else None,
    }
    if settings.data.stain != "none":
        values["stain"] = [settings.data.stain, *settings.data.stain_target]
    # Earlier versions had TensorFlow alone; their features stay valid.
    if settings.train.engine == "openvino":
        values["engine"] = "openvino"
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Holds the folder's lock, so that two runs never compute the same features: the second waits for the first.

    Of the workers of a run the first holds it for all. In a cache that is read-only nobody computes any.
    """
    if strategy.worker()[0] > 0 or not atomic_files.can_write(folder):
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "compute.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"features: another run computes them, waiting for it ({folder})", flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _complete(extraction: Extraction, passes: list[Pass], limit_gib: float) -> None:
    """Computes the passes that are missing in the cache, each worker its share."""
    features, images = extraction.features, extraction.images
    missing = set(features.missing([item.name for item in passes]))
    todo = [item for item in passes if item.name in missing]
    what = "augmented views" if extraction.augment else "exact turns" if any(item.view for item in passes) else "images"
    print(
        f"features of {len(passes)} {what}: {len(passes) - len(todo)} in the cache, {len(todo)} passes to do",
        flush=True,
    )
    if not atomic_files.can_write(features.folder):
        if todo:
            raise InputError(
                f"{store.CACHE}/: must be writable for {len(todo)} features that are not in it, but is read-only; "
                "train.features=end_to_end trains without it"
            )
        return
    for folder in (features.folder, images.folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "used").touch()
    if not todo:
        return
    if strategy.worker()[0] == 0:
        # They are checked when they are read, while the base works.
        undecoded = images.absent(list(dict.fromkeys(item.pixels for item in todo)))
        store.make_room(len(todo) * features.item_bytes + len(undecoded) * images.item_bytes, limit_gib)
    # All workers must have seen what is missing before one adds to the cache, or their shares would not fit together.
    strategy.barrier()
    # All workers, since TensorFlow creates variables on all at once.
    base = _compiled(extraction.part, extraction.weights, extraction.engine)
    if share := strategy.share(todo):
        _compute(base, extraction, share)
    strategy.barrier()
    store.wait_for(features, [item.name for item in passes])


def _compute(base: Callable, extraction: Extraction, passes: list[Pass]) -> None:
    """Computes the passes by a function of `_compiled` and adds them to the cache, chunk by chunk."""
    chunks = [passes[start : start + store.CHUNK] for start in range(0, len(passes), store.CHUNK)]
    with tqdm(total=len(passes), desc="features", unit="img", delay=5) as bar:
        for chunk, images in zip(chunks, _ahead(functools.partial(_read, extraction=extraction), chunks)):
            extraction.features.add([item.name for item in chunk], _run(base, chunk, images, extraction))
            bar.update(len(chunk))


def _ahead(function: Callable[[Item], Result], items: list[Item]) -> Iterator[Result]:
    """The results of a function in turn; the next one is computed in a thread while the caller works on this one."""
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(function, items[0])
        for following in items[1:]:
            result, waiting = waiting.result(), pool.submit(function, following)
            yield result
        yield waiting.result()


@functools.lru_cache(maxsize=1)
def _compiled(part: keras.Model, weights: str, name: str) -> Callable:
    # Kept for the next rows of the same run, since it takes seconds; other weights need another graph.
    return engine.compiled(part, name)


def _read(chunk: list[Pass], extraction: Extraction) -> dict[str, np.ndarray]:
    """The chunk's images by their pixels' hash, (size, size, 3), uint8, normalised; each is decoded once in all."""
    images = extraction.images
    paths = {item.pixels: extraction.folder / item.path for item in chunk}
    undecoded = images.missing(list(paths))
    if undecoded:
        images.add(undecoded, decoding.decode([paths[pixels] for pixels in undecoded], images.shape[0]))
    return {
        pixels: stain_normalization.normalise(image, extraction.data)
        for pixels, image in zip(paths, images.read(list(paths)))
    }


def _run(base: Callable, chunk: list[Pass], images: dict, extraction: Extraction) -> np.ndarray:
    """The features (len(chunk), *shape) of the passes, in batches of BATCH, one for each device at a time."""
    batches = [chunk[start : start + BATCH] for start in range(0, len(chunk), BATCH)]
    count = strategy.device_count()
    groups = [batches[start : start + count] for start in range(0, len(batches), count)]
    filled = _ahead(lambda group: [_batch(passes, images, extraction) for passes in group], groups)
    outputs = [output for group in filled for output in base(group)]
    # The last batch is filled up.
    return np.concatenate(outputs)[: len(chunk)]


def _batch(passes: list[Pass], images: dict, extraction: Extraction) -> np.ndarray | tf.Tensor:
    """The views of the passes, (BATCH, size, size, 3), float32, filled up with zeros."""
    batch = np.zeros((BATCH, *extraction.images.shape), np.float32)
    for place, item in zip(batch, passes):
        place[:] = images[item.pixels]
    if not extraction.augment and not any(item.view for item in passes):
        return batch
    if not extraction.augment:
        return turns.turn(tf.constant(batch), [item.view for item in passes] + [0] * (BATCH - len(passes)))
    draws = np.zeros((BATCH, augmentation.DRAWS), np.float32)
    draws[: len(passes)] = [augmentation.draws_of(item.name, extraction.seed) for item in passes]
    return augmentation.augment(tf.constant(batch), extraction.augment, tf.constant(draws))
