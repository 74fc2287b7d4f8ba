"""Weights files that others made: nothing but plain arrays that lie in the file itself is read from them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

import h5py

# A ResNet50 has 700.
MAX_OBJECTS = 20_000
# Ten times what a ResNet50 takes. A file may be larger than what it takes on the disk: its holes read as zeros.
MAX_BYTES = 2**30


def check(source: str | BinaryIO) -> None:
    """Refuses an HDF5 file with links to elsewhere, or with arrays that are not in it as large as they claim to be.

    Args:
        source: path or open file.

    Raises:
        ValueError: names the object and what is wrong with it.
        OSError: it is no HDF5 file, or a damaged one.
    """
    with h5py.File(source, "r") as file:
        size = file.id.get_filesize()
        if size > MAX_BYTES:
            raise ValueError(f"has {size} bytes, allowed are {MAX_BYTES}")
        for count, found in enumerate(_objects(file)):
            if count == MAX_OBJECTS:
                raise ValueError(f"has more than {MAX_OBJECTS} objects")
            if isinstance(found, h5py.Dataset):
                _check_array(found)


def _objects(file: h5py.File) -> Iterator[h5py.HLObject]:
    """Every object once, whatever circles the links form; refuses links that are no plain ones."""
    waiting, seen = [file["/"]], set()
    while waiting:
        found = waiting.pop()
        address = h5py.h5o.get_info(found.id).addr
        if address in seen:
            continue
        seen.add(address)
        yield found
        for key in found if isinstance(found, h5py.Group) else ():
            if not isinstance(found.get(key, getlink=True), h5py.HardLink):
                raise ValueError(f"{key} in {found.name} is a link to elsewhere")
            waiting.append(found[key])


def _check_array(found: h5py.Dataset) -> None:
    if found.dtype.kind not in "fiub":
        raise ValueError(f"{found.name} holds no numbers")
    if found.external or found.is_virtual:
        raise ValueError(f"{found.name} lies in another file")
    # Only chunks can be compressed, and Keras writes none.
    if found.chunks is not None:
        raise ValueError(f"{found.name} lies in chunks, which could unfold to any size")
    # Space that was never written to could be of any size too.
    if found.id.get_storage_size() != found.nbytes:
        raise ValueError(f"{found.name} takes {found.id.get_storage_size()} bytes for an array of {found.nbytes}")
