"""Arrays on disk, found by name, written in chunks that are there as a whole or not at all: what cache/ is made of."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import shutil
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from filelock import FileLock
from tqdm import tqdm

from safety import atomic_files
from safety.errors import InputError

CACHE = Path("cache")
CHUNK = 256
# Seconds for which an entry of the cache is safe from deletion after its last use.
RECENT = 3600


class Store:
    """Arrays of one shape on disk, found by name, in chunks that are there as a whole or not at all.

    The arrays stand in one memory-mapped file, chunk after chunk; beside it each chunk has an index file with its
    names and its checksum, which is written last and by renaming, so that what a killed process left is not seen.

    Args:
        folder: of the store; made when the first chunk is added.
        shape: of one array.
        dtype: of the arrays.
    """

    def __init__(self, folder: Path, shape: tuple[int, ...], dtype: type) -> None:
        self.folder, self.shape, self.dtype = folder, shape, np.dtype(dtype)
        self.item_bytes = int(np.prod(shape)) * self.dtype.itemsize
        self.chunks: dict[int, Chunk] = {}
        self.places: dict[str, int] = {}
        self.checked: set[int] = set()

    def missing(self, names: list[str]) -> list[str]:
        """Those of the names that have no array here; a chunk whose checksum is wrong is given up first."""
        self._read_index()
        unchecked = sorted({self.places[name] // CHUNK for name in names if name in self.places} - self.checked)
        for chunk in tqdm(unchecked, "checking the cache", unit="chunk", delay=5):
            self._check(chunk)
        return [name for name in names if name not in self.places]

    def add(self, names: list[str], arrays: np.ndarray) -> None:
        """Writes one chunk of at most CHUNK arrays."""
        self.folder.mkdir(parents=True, exist_ok=True)
        content = np.ascontiguousarray(arrays, self.dtype).ravel()
        with FileLock(self.folder / "write.lock"):
            self._read_index()
            chunk = next(number for number in itertools.count() if number not in self.chunks)
            with open(os.open(self._data, os.O_RDWR | os.O_CREAT, 0o644), "r+b") as file:
                file.seek(chunk * CHUNK * self.item_bytes)
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            index = {"names": names, "sha256": hashlib.sha256(content).hexdigest()}
            atomic_files.write_text(self._index(chunk), json.dumps(index))
        (self.folder / "used").touch()
        self._read_index()

    def read(self, names: list[str]) -> np.ndarray:
        """A copy of the arrays of these names, in their order."""
        return self.memmap()[[self.places[name] for name in names]]

    def memmap(self) -> np.ndarray:
        """All arrays as one read-only memory map (places, *shape); `places` says which is whose."""
        count = self._data.stat().st_size // self.item_bytes
        return np.memmap(self._data, self.dtype, "r", shape=(count, *self.shape))

    @property
    def _data(self) -> Path:
        return self.folder / "arrays.bin"

    def _index(self, chunk: int) -> Path:
        return self.folder / f"{chunk:06}.json"

    def _read_index(self) -> None:
        """Reads the index files that are new or not the ones read before: another process may have replaced them."""
        stamps = {path: path.stat().st_mtime_ns for path in sorted(self.folder.glob("[0-9]*.json"))}
        chunks = {}
        for path, stamp in stamps.items():
            number = int(path.stem)
            old = self.chunks.get(number)
            new = old if old and old.stamp == stamp else _read_chunk(path, stamp)
            if new:
                chunks[number] = new
            if new is not old:
                self.checked.discard(number)
        self.chunks = chunks
        self.places = {
            name: number * CHUNK + row for number, chunk in chunks.items() for row, name in enumerate(chunk.names)
        }

    def _check(self, number: int) -> None:
        content = b""
        if self._data.exists():
            with self._data.open("rb") as file:
                file.seek(number * CHUNK * self.item_bytes)
                content = file.read(len(self.chunks[number].names) * self.item_bytes)
        if hashlib.sha256(content).hexdigest() != self.chunks[number].sha256:
            tqdm.write(f"cache: chunk {number} of {self.folder} is damaged and is computed again")
            self._index(number).unlink(missing_ok=True)
            self._read_index()
        else:
            self.checked.add(number)


class Chunk(NamedTuple):
    """What an index file says of its chunk, and the time stamp of the file."""

    names: list[str]
    sha256: str
    stamp: int


def _read_chunk(path: Path, stamp: int) -> Chunk | None:
    try:
        index = json.loads(path.read_text())
        return Chunk(index["names"], index["sha256"], stamp)
    except (ValueError, KeyError, TypeError):
        tqdm.write(f"cache: {path} is damaged, and its chunk is computed again")
        path.unlink(missing_ok=True)
        return None


def wait_for(kept: Store, names: list[str]) -> None:
    """Waits for arrays that other processes have written: a folder on a network shows them some seconds later.

    Raises:
        InputError: they do not come within a minute.
    """
    for _ in range(60):
        if not kept.missing(names):
            return
        time.sleep(1)
    raise InputError(f"{kept.folder}: what other workers computed is not here; cache/ must be one folder for all hosts")


def make_room(needed: int, limit_gib: float) -> None:
    """Deletes cache entries, the longest unused first, until `needed` more bytes stay below the limit.

    Entries that were used within the last hour stay: this run or another one may be reading them.

    Raises:
        InputError: what must stay and the new bytes exceed the limit, or the disk has not that much free space.
    """
    entries = sorted((folder for folder in CACHE.iterdir() if folder.is_dir()), key=_last_use)
    sizes = {folder: _clean_size(folder) for folder in entries}
    limit = int(limit_gib * 2**30)
    for folder in entries:
        if sum(sizes.values()) + needed <= limit or time.time() - _last_use(folder) < RECENT:
            break
        print(f"cache: {folder} is deleted to stay below {limit_gib:g} GiB")
        shutil.rmtree(folder)
        del sizes[folder]
    total = sum(sizes.values()) + needed
    if total > limit:
        raise InputError(
            f"train.cache_gib: the features of this run need {total / 2**30:.2f} GiB, "
            f"with what was used within the hour; allowed are {limit_gib:g}"
        )
    free = shutil.disk_usage(CACHE).free
    if free < needed:
        raise InputError(
            f"cache/: {needed / 2**30:.2f} GiB are needed for features, {free / 2**30:.2f} are free on the disk"
        )


def _clean_size(folder: Path) -> int:
    """The bytes of its files, once what a process that died over RECENT seconds ago had begun to write is gone."""
    size = 0
    for path in folder.iterdir():
        # Another process replaces and deletes files at any time.
        with contextlib.suppress(FileNotFoundError):
            status = path.stat()
            if path.match(".[0-9]*.*") and time.time() - status.st_mtime > RECENT:
                path.unlink()
            else:
                size += status.st_size
    return size


def _last_use(folder: Path) -> float:
    used = folder / "used"
    return used.stat().st_mtime if used.exists() else 0.0
