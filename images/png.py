"""One PNG: whether training can use it, and what is in it; nothing is decoded before its size is known."""

from __future__ import annotations

import hashlib
import stat
import struct
from pathlib import Path

import numpy as np
from PIL import Image

from safety import limits

# An image of more pixels is refused before it is decoded; the real ones have 322,000.
MAX_PIXELS = 5_000_000
# What that many pixels take without compression, and some more for the rest.
MAX_BYTES = 2**24
# Pillow would refuse the largest before they can be named, and warn of others; this project looks for itself.
Image.MAX_IMAGE_PIXELS = None
HEADER = struct.Struct(">8sI4sIIBB")
COLOURS = {0: "grey", 2: "RGB", 3: "palette", 4: "grey with alpha", 6: "RGBA"}


class UnusableError(ValueError):
    """Why an image cannot be trained on, to be said after its name."""


def look(folder: Path, path: str) -> dict:
    """What is in the image `path` below `folder`.

    Returns:
        bytes, modified (ns), pixels (SHA-256 of the decoded array), error (empty for a good one), mode, depth (bits a
        channel), width, height (pixels), brightness (mean of grey, 0 to 255), sharpness (variance of its Laplacian).
    """
    try:
        return stamp(folder, path) | {"error": ""} | _measure(decode((folder / path).read_bytes()))
    except FileNotFoundError:
        return {"error": "is missing"}
    except UnusableError as error:
        return {"error": str(error)}
    except OSError as error:
        return {"error": f"cannot be read ({error.strerror})"}


def stamp(folder: Path, path: str) -> dict:
    """Size and time stamp of a file; raises UnusableError for none, a giant, or a link that leads out of `folder`.

    `folder` itself may be a link.
    """
    status = (folder / path).stat()
    if not stat.S_ISREG(status.st_mode):
        raise UnusableError("is no regular file")
    if not limits.is_within(folder / path, folder):
        raise UnusableError("is a link that leads out of the folder of the images")
    if status.st_size > MAX_BYTES:
        raise UnusableError(f"has {status.st_size} bytes, more than {MAX_BYTES}")
    return {"bytes": status.st_size, "modified": status.st_mtime_ns}


def decode(content: bytes) -> np.ndarray:
    """The image (height, width, 3), uint8, by the decoder that training uses, so that they never disagree.

    Raises:
        UnusableError: it is no PNG, too large, damaged, or not RGB of 8 bits.
    """
    if not content:
        raise UnusableError("is empty")
    if len(content) < HEADER.size or not content.startswith(b"\x89PNG\r\n\x1a\n"):
        raise UnusableError("is no PNG")
    _, _, _, width, height, depth, colour = HEADER.unpack_from(content)
    if width * height > MAX_PIXELS:
        raise UnusableError(f"has {width} x {height} pixels, more than {MAX_PIXELS}")
    if (COLOURS.get(colour), depth) != ("RGB", 8):
        mode = COLOURS.get(colour, "no colour type")
        raise UnusableError(f"is {mode} of {depth} bits a channel, needed is RGB of 8")
    # Not at the top, so that what opens no image needs no TensorFlow.
    import tensorflow as tf

    try:
        return tf.io.decode_png(content, channels=3).numpy()
    except tf.errors.InvalidArgumentError:
        raise UnusableError("is cut short or damaged") from None


def _measure(array: np.ndarray) -> dict:
    grey = np.asarray(Image.fromarray(array).convert("L"), np.float32)
    laplacian = grey[1:-1, :-2] + grey[1:-1, 2:] + grey[:-2, 1:-1] + grey[2:, 1:-1] - 4 * grey[1:-1, 1:-1]
    return {
        "pixels": hashlib.sha256(repr(array.shape).encode() + array.tobytes()).hexdigest(),
        "mode": "RGB",
        "depth": 8,
        "width": array.shape[1],
        "height": array.shape[0],
        "brightness": round(float(grey.mean()), 2),
        "sharpness": round(float(laplacian.var()), 2) if laplacian.size else 0.0,
    }
