"""The frozen base, run once for each image and view and kept on disk under cache/.

What a frozen part of the network makes of an image never changes, so every epoch, every repeated row and every later
run with the same part reads it instead of running the part again.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from filelock import FileLock, Timeout
from tqdm import tqdm

import config
import model
from devices import strategy
from features import store
from features.store import Store
from images import audit, decoding, warp

# One shape for every pass: one graph, and an image's features do not hang on how many came with it.
BATCH = 32
# Changes whenever the same settings would give other numbers than before.
VERSION = 1


class Features(NamedTuple):
    """Features of some rows: row r's view v is array[places[r, v]].

    Attributes:
        array: memory map (any number, *shape of an image's features: 2048 for ResNet50's pooled ones), float32.
        places: (rows, views), int64.
    """

    array: np.ndarray
    places: np.ndarray


class Pass(NamedTuple):
    """One pass of one view of one image through the base."""

    name: str
    path: str
    pixels: str
    view: int


def pooled(network: keras.Model, rows: pd.DataFrame, settings: config.Settings, augmented: bool = False) -> Features:
    """The base's pooled output for each row; arguments and errors as those of `extract`, network of `model.build`."""
    return extract(_pooled(network), rows, settings, augmented)


@functools.lru_cache(maxsize=1)
def _pooled(network: keras.Model) -> keras.Model:
    # The same part for all rows of a run, so that its graph is made once.
    return model.pooled(network)


def extract(part: keras.Model, rows: pd.DataFrame, settings: config.Settings, augmented: bool = False) -> Features:
    """The output of a frozen part of the network for each row, from the cache or computed into it.

    Args:
        part: from the pixels on; its name is that of the layer where it ends.
        rows: with path and pixels; rows of equal pixels share their features.
        settings: of the run.
        augmented: whether to take `augment.views` warped views of each image in place of the plain one. A view's
            warp hangs on the seed, the image and the view's number alone: more views leave the first as they are.

    Raises:
        InputError: the cache's limit or the disk is too small.
    """
    views = settings.augment.views if augmented else 1
    images_once = rows.drop_duplicates("pixels").sort_values("path")
    passes = [
        Pass(f"{row.pixels}-{view}", row.path, row.pixels, view)
        for row in images_once.itertuples()
        for view in range(views)
    ]
    kept = Store(store.CACHE / f"features-{key(part, settings, augmented)}", part.output.shape[1:], np.float32)
    kept.folder.mkdir(parents=True, exist_ok=True)
    with _exclusive(kept.folder):
        strategy.barrier()
        _complete(kept, passes, part, settings, augmented)
    places = [[kept.places[f"{pixels}-{view}"] for view in range(views)] for pixels in rows.pixels]
    return Features(kept.memmap(), np.array(places))


def key(part: keras.Model, settings: config.Settings, augmented: bool) -> str:
    """A hash of all that features hang on beside the pixels: another setting never meets old features."""
    says = {
        "version": VERSION,
        # Of this part alone: what is trained behind it changes nothing.
        "weights": model.weights_hash(part),
        "output": part.name,
        "image_size": settings.data.image_size,
        "precision": model.base_of(part).layers[-1].compute_dtype,
        "augment": settings.augment.model_dump(exclude={"views"}) if augmented else None,
        "seed": settings.data.seed if augmented else None,
    }
    return hashlib.sha256(json.dumps(says, sort_keys=True).encode()).hexdigest()[:16]


@contextlib.contextmanager
def _exclusive(folder: Path) -> Iterator[None]:
    """Holds the folder's lock; a process that computes the same features is waited for, not repeated.

    Of a run's workers the first holds it for all.
    """
    if strategy.worker()[0] > 0:
        yield
        return
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


def _complete(kept: Store, passes: list[Pass], part: keras.Model, settings: config.Settings, augmented: bool) -> None:
    missing = set(kept.missing([item.name for item in passes]))
    todo = [item for item in passes if item.name in missing]
    what = "augmented views" if augmented else "images"
    print(
        f"features of {len(passes)} {what}: {len(passes) - len(todo)} in the cache, {len(todo)} passes to do",
        flush=True,
    )
    sources = Store(
        store.CACHE / f"images-{VERSION}-{settings.data.image_size}", (settings.data.image_size,) * 2 + (3,), np.uint8
    )
    for folder in (kept.folder, sources.folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "used").touch()
    if not todo:
        return
    if strategy.worker()[0] == 0:
        fresh = sources.missing(list(dict.fromkeys(item.pixels for item in todo)))
        store.make_room(len(todo) * kept.item_bytes + len(fresh) * sources.item_bytes, settings.train.cache_gib)
    # No worker adds to the cache before all have seen what is missing, so that they share out the same.
    strategy.barrier()
    if mine := strategy.share(todo):
        _extract(kept, sources, mine, part, settings, augmented)
    strategy.barrier()
    store.wait_for(kept, [item.name for item in passes])


def _extract(
    kept: Store, sources: Store, todo: list[Pass], part: keras.Model, settings: config.Settings, augmented: bool
) -> None:
    folder = audit.image_folder(settings.data.root)
    base = _compiled(part, model.weights_hash(part))
    chunks = [todo[start : start + store.CHUNK] for start in range(0, len(todo), store.CHUNK)]
    with ThreadPoolExecutor(1) as reader, tqdm(total=len(todo), desc="features", unit="img", delay=5) as bar:
        # The next chunk is read and decoded while the base works on this one.
        ahead = reader.submit(_read, chunks[0], sources, folder)
        for chunk, following in itertools.zip_longest(chunks, chunks[1:]):
            images = ahead.result()
            if following:
                ahead = reader.submit(_read, following, sources, folder)
            augment = settings.augment if augmented else None
            kept.add([item.name for item in chunk], _run(base, chunk, images, augment, settings.data.seed, bar))


@functools.lru_cache(maxsize=1)
def _compiled(part: keras.Model, weights: str) -> Callable:
    # Kept for the next rows of the same run, since making the graph takes seconds; other weights make another one.
    return strategy.replicate(model.feature_function(part, BATCH))


def _read(chunk: list[Pass], sources: Store, folder: Path) -> dict[str, np.ndarray]:
    """The chunk's images under their pixels' names, (size, size, 3), uint8; decoded only if never seen before."""
    paths = {item.pixels: folder / item.path for item in chunk}
    new = sources.missing(list(paths))
    if new:
        decoded = decoding.decode([paths[pixels] for pixels in new], sources.shape[0])
        sources.add(new, decoded)
    return dict(zip(paths, sources.read(list(paths))))


def _run(
    base: Callable, chunk: list[Pass], images: dict, augment: config.Augment | None, seed: int, bar: tqdm
) -> np.ndarray:
    """The features (len(chunk), *shape) of the passes, in batches of BATCH, one for each device at a time."""
    features = []
    batches = [chunk[start : start + BATCH] for start in range(0, len(chunk), BATCH)]
    for start in range(0, len(batches), strategy.device_count()):
        now = batches[start : start + strategy.device_count()]
        outputs = base([_filled(batch, images, augment, seed) for batch in now])
        features += [output[: len(batch)] for output, batch in zip(outputs, now)]
        bar.update(sum(map(len, now)))
    return np.concatenate(features)


def _filled(batch: list[Pass], images: dict, augment: config.Augment | None, seed: int) -> tf.Tensor:
    """The images of the passes, warped, (BATCH, size, size, 3), float32, filled up with zeros."""
    filled = np.zeros((BATCH, *images[batch[0].pixels].shape), np.float32)
    filled[: len(batch)] = [images[item.pixels] for item in batch]
    if not augment:
        return tf.constant(filled)
    draws = [_draws(item, seed) for item in batch] + [np.zeros(warp.DRAWS)] * (BATCH - len(batch))
    return warp.warp(tf.constant(filled), augment, tf.constant(np.array(draws, np.float32)))


def _draws(item: Pass, seed: int) -> np.ndarray:
    # The generator's stream is one that NumPy promises never to change.
    digest = hashlib.sha256(f"{seed}/{item.name}".encode()).digest()
    return np.random.RandomState(np.frombuffer(digest, np.uint32)).uniform(-1, 1, warp.DRAWS)
