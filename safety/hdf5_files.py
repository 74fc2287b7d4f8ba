"""Untrusted HDF5 files: only arrays stored in the file itself are accepted, of weights only plain ones."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import h5py
import numpy as np

# A ResNet50 has 700.
MAX_OBJECTS = 20_000
# Ten times the size of a ResNet50. A sparse file has a larger size than it uses on disk: its holes read as zeros.
MAX_BYTES = 2**30
# A chunk is read whole. Writers that let an array grow give a small one chunks of many more numbers than it has.
MIN_CHUNK, CHUNK_SHARE = 2**20, 4


def check(source: str | BinaryIO) -> None:
    """Refuses an HDF5 file that links to other files, or whose arrays are not stored in full.

    Args:
        source: path or open file.

    Raises:
        ValueError: names the object and what is wrong with it.
        OSError: it is not an HDF5 file, or is damaged.
    """
    with h5py.File(source, "r") as file:
        size = file.id.get_filesize()
        if size > MAX_BYTES:
            raise ValueError(f"must have at most {MAX_BYTES} bytes, got {size}")
        for count, item in enumerate(_objects(file)):
            if count == MAX_OBJECTS:
                raise ValueError(f"must have at most {MAX_OBJECTS} objects, got more")
            if isinstance(item, h5py.Dataset):
                _check_array(item)


def _objects(file: h5py.File) -> Iterator[h5py.HLObject]:
    """Every object once, even if hard links form a cycle; raises ValueError for any other kind of link."""
    queue, seen = [file["/"]], set()
    while queue:
        item = queue.pop()
        address = h5py.h5o.get_info(item.id).addr
        if address in seen:
            continue
        seen.add(address)
        yield item
        for key in item if isinstance(item, h5py.Group) else ():
            if not isinstance(item.get(key, getlink=True), h5py.HardLink):
                raise ValueError(f"{key} in {item.name} is a link to elsewhere")
            queue.append(item[key])


def _check_array(array: h5py.Dataset) -> None:
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{array.name} must hold numbers, got {array.dtype}")
    if array.external or array.is_virtual:
        raise ValueError(f"{array.name} is stored in another file")
    # Only chunked arrays can be compressed, and Keras writes none.
    if array.chunks is not None:
        raise ValueError(f"{array.name} is stored in chunks, which may decompress to any size")
    # An array that was never written takes no space, whatever its shape.
    stored = array.id.get_storage_size()
    if stored != array.nbytes:
        raise ValueError(f"{array.name} must take {array.nbytes} bytes in the file, got {stored}")


@contextlib.contextmanager
def opened(path: Path, limit: int) -> Iterator[h5py.File]:
    """Opens an HDF5 file of others, of which single arrays are then read with `array` and `texts`.

    Args:
        path: the file.
        limit: largest size of the file in bytes.

    Raises:
        ValueError: the file is larger.
        OSError: it is not an HDF5 file, or is damaged.
    """
    with h5py.File(path, "r") as file:
        if file.id.get_filesize() > limit:
            raise ValueError(f"must have at most {limit} bytes, got {file.id.get_filesize()}")
        yield file


def array(file: h5py.File, name: str) -> h5py.Dataset:
    """An array in the file itself, which may be compressed; not read yet, so that its shape can be checked.

    Raises:
        ValueError: there is none, it is elsewhere, or it is stored in chunks that are much larger than itself.
    """
    if not isinstance(file.get(name, getlink=True), h5py.HardLink):
        raise ValueError(f"needed is the array {name}, got {', '.join(file)[:100] or 'none'}")
    found = file[name]
    if not isinstance(found, h5py.Dataset) or found.external or found.is_virtual:
        raise ValueError(f"{name} is no array, or is stored in another file")
    if found.chunks and np.prod(found.chunks, dtype=object) > CHUNK_SHARE * max(found.size, MIN_CHUNK):
        raise ValueError(f"{name} has chunks of {found.chunks}, for an array of {found.shape}")
    return found


def texts(file: h5py.File, name: str, count: int) -> list[str]:
    """The texts of an array of `count` texts of a fixed length.

    Texts of any length are in a heap of the file, and HDF5 loops for ever in one that is damaged.

    Raises:
        ValueError: as `array`, or it holds no texts in UTF-8, another number of them, or too long ones.
    """
    found = array(file, name)
    if found.dtype.kind != "S" or found.shape != (count,):
        raise ValueError(
            f"{name} must be {count} texts of a fixed length, as np.array(names, 'S') makes them, got {found.dtype} "
            f"{found.shape}"
        )
    if found.nbytes > MAX_BYTES:
        raise ValueError(f"{name} must have at most {MAX_BYTES} bytes, got {found.nbytes}")
    return [text.decode() for text in found[()]]
