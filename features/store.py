"""The folders of cache/: arrays on disk by name, written in chunks of which no reader ever sees a part."""

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
from safety.errors import InputError, naming

CACHE = Path("cache")
# Arrays in a chunk; whole batches, so that an extraction that goes on has the same batches (see `extraction`).
CHUNK = 256
# Seconds after its last use in which a folder of the cache is not deleted.
RECENT = 3600


class Store:
    """Arrays of one shape on disk by name, in chunks of which no reader ever sees a part.

    The arrays are in one memory-mapped file, chunk after chunk. Each chunk also has an index file with its names and
    its checksum. It is written last and by renaming, so the half-written chunk of a killed process is ignored.

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
        """The names that have no array here; damaged chunks are dropped first, by their checksums."""
        self._read_index()
        unchecked = sorted({self.places[name] // CHUNK for name in names if name in self.places} - self.checked)
        for chunk in tqdm(unchecked, "checking the cache", unit="chunk", delay=5):
            self._check(chunk)
        return [name for name in names if name not in self.places]

    def absent(self, names: list[str]) -> list[str]:
        """The names that have no array here by the index alone, which is quick; arrays may be damaged."""
        self._read_index()
        return [name for name in names if name not in self.places]

    def add(self, names: list[str], arrays: np.ndarray) -> None:
        """Writes one chunk.

        Args:
            names: at most CHUNK.
            arrays: (names, *shape).
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        content = np.ascontiguousarray(arrays, self.dtype).ravel()
        with FileLock(self.folder / "write.lock"):
            self._read_index()
            chunk = next(number for number in itertools.count() if number not in self.chunks)
            with naming(self._data), open(os.open(self._data, os.O_RDWR | os.O_CREAT, 0o644), "r+b") as file:
                file.seek(chunk * CHUNK * self.item_bytes)
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            index = {"names": names, "sha256": hashlib.sha256(content).hexdigest()}
            atomic_files.write_text(self._index(chunk), json.dumps(index))
        (self.folder / "used").touch()
        self._read_index()

    def read(self, names: list[str]) -> np.ndarray:
        """A copy of the arrays of these names, (names, *shape), in their order."""
        return self.memmap()[[self.places[name] for name in names]]

    def memmap(self) -> np.ndarray:
        """All arrays as one read-only memory map (places, *shape); `places` maps a name to its place."""
        count = self._data.stat().st_size // self.item_bytes
        return np.memmap(self._data, self.dtype, "r", shape=(count, *self.shape))

    @property
    def _data(self) -> Path:
        return self.folder / "arrays.bin"

    def _index(self, chunk: int) -> Path:
        return self.folder / f"{chunk:06}.json"

    def _read_index(self) -> None:
        """Reads the index files that are new or were replaced by another process since the last time."""
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
        if self._checksum(number) != self.chunks[number].sha256:
            tqdm.write(f"cache: chunk {number} of {self.folder} is damaged and will be computed again")
            self._index(number).unlink(missing_ok=True)
            self._read_index()
        else:
            self.checked.add(number)

    def _checksum(self, number: int) -> str:
        """The checksum of a chunk's bytes on disk, or of those that are left of them."""
        digest, left = hashlib.sha256(), len(self.chunks[number].names) * self.item_bytes
        # A small buffer: memory for the whole chunk takes as long as its checksum, while the base uses all cores.
        buffer = memoryview(bytearray(2**18))
        if self._data.exists():
            with self._data.open("rb", buffering=0) as file:
                file.seek(number * CHUNK * self.item_bytes)
                while size := file.readinto(buffer[:left]):
                    digest.update(buffer[:size])
                    left -= size
        return digest.hexdigest()


class Chunk(NamedTuple):
    """The content of a chunk's index file, and the time stamp of the file.

    Attributes:
        names: of its arrays, in their order.
        sha256: of the bytes of its arrays, in hex.
        stamp: modification time in ns, by which a replaced file is noticed.
    """

    names: list[str]
    sha256: str
    stamp: int


def _read_chunk(path: Path, stamp: int) -> Chunk | None:
    try:
        index = json.loads(path.read_text())
        return Chunk(index["names"], index["sha256"], stamp)
    except (ValueError, KeyError, TypeError):
        tqdm.write(f"cache: {path} is damaged, and its chunk will be computed again")
        path.unlink(missing_ok=True)
        return None


def wait_for(arrays: Store, names: list[str]) -> None:
    """Waits for arrays that other processes have written: a network folder shows them some seconds later.

    Raises:
        InputError: they do not appear within a minute.
    """
    for _ in range(60):
        if not arrays.missing(names):
            return
        time.sleep(1)
    raise InputError(
        f"{arrays.folder}: the features of other workers are not here; cache/ must be one folder for all hosts"
    )


def make_room(needed: int, limit_gib: float) -> None:
    """Deletes folders of the cache, the longest unused first, until `needed` more bytes stay below the limit.

    Folders that were used within the last hour stay: this run or another one may be reading them.

    Args:
        needed: bytes that are about to be written.
        limit_gib: `train.cache_gib`, GiB.

    Raises:
        InputError: the folders that must stay and the new bytes exceed the limit, or the disk has too little space.
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
            f"with those used within the last hour; allowed are {limit_gib:g}"
        )
    free = shutil.disk_usage(CACHE).free
    if free < needed:
        raise InputError(
            f"cache/: {needed / 2**30:.2f} GiB are needed for features, {free / 2**30:.2f} are free on the disk"
        )


def _clean_size(folder: Path) -> int:
    """The bytes of the folder's files; temporary files that a process left over RECENT seconds ago are deleted."""
    size = 0
    for path in folder.iterdir():
        # Another process may replace or delete a file at any time.
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
