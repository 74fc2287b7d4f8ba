"""Images that are not from BreakHis: PNG, JPEG, TIFF and BMP of any size, found and read within limits."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL import Image, ImageOps

from images import decoding, other_files
from safety import limits
from safety.errors import InputError

SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"}
FORMATS = ["PNG", "JPEG", "TIFF", "BMP"]
# Decoding this many takes about a gigabyte of memory.
MAX_PIXELS = 50_000_000
# Decoding one scan of a JPEG takes as long as the whole image; a progressive JPEG has about ten.
MAX_SCANS = 50
MAX_JPEG_BYTES = 2**28
# The marker of a scan and the length of its header; without the length, metadata could match.
SCAN = re.compile(rb"\xff\xda\x00[\x06\x08\x0a\x0c\x0e]")
GREY_16 = "I;16"
MODES = ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"]


def find(names: list[str]) -> list[Path]:
    """The image files that are named, and those in and below the folders that are named.

    Args:
        names: files, of any suffix, and folders, in which only files with one of SUFFIXES count.

    Returns:
        Each file once, in the order of the names; those of a folder sorted.

    Raises:
        InputError: a file or folder does not exist, or there is no image at all.
    """
    paths = [path for name in names for path in _find_below(Path(name))]
    if not paths:
        others = other_files.count(skipped(names))
        raise InputError(f"no PNG, JPEG, TIFF or BMP in {', '.join(names)}{others and f'; skipped: {others}'}")
    return list(dict.fromkeys(paths))


def skipped(names: list[str]) -> list[Path]:
    """The other files in and below the folders that are named, each once."""
    named = set(map(Path, names))
    below = {path for folder in filter(Path.is_dir, named) for path in _files(folder) if not _is_image(path)}
    return sorted(below - named)


def _find_below(path: Path) -> list[Path]:
    if not path.exists():
        raise InputError(f"no file or folder {str(path)!r}")
    return sorted(filter(_is_image, _files(path))) if path.is_dir() else [path]


def _files(folder: Path) -> Iterator[Path]:
    """The files in and below a folder; raises OSError for a folder that cannot be read, which rglob leaves out."""
    for place, _, names in os.walk(folder, onerror=_raise):
        paths = (Path(place, name) for name in names)
        yield from (path for path in paths if path.is_file() and not other_files.is_of_macos(path))


def _raise(error: OSError) -> None:
    raise error


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES


def read(path: Path, size: int) -> tuple[np.ndarray, str]:
    """Reads and resizes one image; an image that cannot be read is black and comes with the reason.

    Returns:
        (size, size, 3), float32 RGB from 0 to 255, as `decoding.read` returns it, and why it is black, else "".
    """
    try:
        return decoding.resize(tf.constant(read_rgb(path)), size).numpy(), ""
    except Image.UnidentifiedImageError:
        error = "is no PNG, JPEG, TIFF or BMP"
    except InputError as refusal:
        error = str(refusal)
    # Pillow's decoders raise almost any exception on damaged files.
    except Exception as damage:
        error = f"cannot be read, cut short or damaged ({damage or type(damage).__name__})"
    return np.zeros((size, size, 3), np.float32), error


def read_rgb(path: Path) -> np.ndarray:
    """One image as (height, width, 3), uint8 RGB, upright by its EXIF orientation, on white where it is transparent.

    Raises:
        InputError: it is empty or no regular file, has too many pixels or scans, or a mode without an RGB form.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise InputError("is no regular file")
    if status.st_size == 0:
        raise InputError("is empty")
    with Image.open(path, formats=FORMATS) as image:
        _check(image, path)
        rgba = _to_8_bits(ImageOps.exif_transpose(image)).convert("RGBA")
    white = Image.new("RGBA", rgba.size, "white")
    return np.asarray(Image.alpha_composite(white, rgba).convert("RGB"))


def _check(image: Image.Image, path: Path) -> None:
    """Refuses an image by its header, before its pixels are decoded."""
    if not 0 < image.width * image.height <= MAX_PIXELS:
        raise InputError(f"allowed are 1 to {MAX_PIXELS} pixels, got {image.width} x {image.height} pixels")
    if image.format in ("JPEG", "MPO"):
        scans = len(SCAN.findall(limits.read_bytes(path, MAX_JPEG_BYTES)))
        if scans > MAX_SCANS:
            raise InputError(f"allowed are {MAX_SCANS} scans of a JPEG, got {scans}")
    if image.mode not in MODES and not image.mode.startswith(GREY_16):
        raise InputError(f"allowed are the modes {', '.join(MODES)} and 16-bit grey, got mode {image.mode}")


def _to_8_bits(image: Image.Image) -> Image.Image:
    """16-bit grey scaled to 8 bits, any other image unchanged."""
    # Pillow scales 16-bit colour when it reads it, but clips 16-bit grey at 255 when it converts it.
    if not image.mode.startswith(GREY_16):
        return image
    return Image.fromarray(np.rint(np.asarray(image) / 257).astype(np.uint8))
