"""Untrusted HDF5 weights files: only plain arrays stored in the file itself are accepted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

import h5py

# A ResNet50 has 700.
MAX_OBJECTS = 20_000
# Ten times the size of a ResNet50. A sparse file has a larger size than it uses on disk: its holes read as zeros.
MAX_BYTES = 2**30


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
