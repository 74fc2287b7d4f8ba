"""One PNG file: whether training can use it, and what it contains; it is decoded only after its size is checked."""

from __future__ import annotations

import hashlib
import io
import stat
import struct
from pathlib import Path

import numpy as np
from PIL import Image

from safety import limits

# The real images have 322,000 pixels.
MAX_PIXELS = 5_000_000
# As many pixels without compression, and some space for the other chunks.
MAX_BYTES = 2**24
# Pillow's own limit is off: `_check_header` checks MAX_PIXELS first, so that each image that is too large can be named.
Image.MAX_IMAGE_PIXELS = None
HEADER = struct.Struct(">8sI4sIIBB")
COLOURS = {0: "grey", 2: "RGB", 3: "palette", 4: "grey with alpha", 6: "RGBA"}


class UnusableError(ValueError):
    """An image cannot be used for training; the message is a phrase to put after its name, such as "is empty"."""


def inspect(folder: Path, path: str) -> dict:
    """Decodes and measures one image.

    Args:
        folder: the folder of the images.
        path: of the image, relative to `folder`.

    Returns:
        bytes, modified (ns), pixels (SHA-256 of the decoded array), error (empty for a valid image), mode, depth (bits
        per channel), width and height (pixels), brightness (mean of the grey image, 0 to 255) and sharpness (variance
        of the grey image's Laplacian). Only `error` if the image cannot be used.
    """
    try:
        return file_status(folder, path) | {"error": ""} | _measure(decode((folder / path).read_bytes()))
    except FileNotFoundError:
        return {"error": "is missing"}
    except UnusableError as error:
        return {"error": str(error)}
    except OSError as error:
        return {"error": f"cannot be read ({error.strerror})"}


def file_status(folder: Path, path: str) -> dict:
    """Size and time of the last change of a file.

    Args:
        folder: the folder of the images; may itself be a symbolic link.
        path: of the file, relative to `folder`.

    Returns:
        bytes, modified (ns).

    Raises:
        UnusableError: it is not a regular file, is too large, or is a link that leads out of `folder`.
        OSError: it is missing or cannot be read.
    """
    status = (folder / path).stat()
    if not stat.S_ISREG(status.st_mode):
        raise UnusableError("is not a regular file")
    if not limits.is_within(folder / path, folder):
        raise UnusableError("is a link that leads out of the folder of the images")
    if status.st_size > MAX_BYTES:
        raise UnusableError(f"must have at most {MAX_BYTES} bytes, got {status.st_size}")
    return {"bytes": status.st_size, "modified": status.st_mtime_ns}


def decode(content: bytes) -> np.ndarray:
    """Decodes a PNG with the decoder that training uses, so that the two never disagree.

    Args:
        content: of the file.

    Returns:
        RGB, (height, width, 3), uint8.

    Raises:
        UnusableError: it is not a PNG, is too large or damaged, or is not RGB of 8 bits per channel.
    """
    _check_header(content)
    # Not at the top, so that what opens no image needs no TensorFlow.
    import tensorflow as tf

    try:
        return tf.io.decode_png(content, channels=3).numpy()
    except tf.errors.InvalidArgumentError:
        raise UnusableError("is cut short or damaged") from None


def decode_for_figure(content: bytes) -> np.ndarray:
    """The same by Pillow, which is imported in a tenth of TensorFlow's time; arguments and result as for `decode`.

    The end of a file may be missing: that training refuses such an image, the audit tells.
    """
    _check_header(content)
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            return np.asarray(image.convert("RGB"))
    # Pillow raises almost any exception, and at some images that training takes.
    except Exception:
        return decode(content)


def _check_header(content: bytes) -> None:
    if not content:
        raise UnusableError("is empty")
    if len(content) < HEADER.size or not content.startswith(b"\x89PNG\r\n\x1a\n"):
        raise UnusableError("is not a PNG")
    _, _, _, width, height, depth, colour = HEADER.unpack_from(content)
    if width * height > MAX_PIXELS:
        raise UnusableError(f"must have at most {MAX_PIXELS} pixels, got {width} x {height}")
    if (COLOURS.get(colour), depth) != ("RGB", 8):
        mode = COLOURS.get(colour, f"colour type {colour}")
        raise UnusableError(f"must be RGB of 8 bits per channel, got {mode} of {depth}")


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
