import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from images import png


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def content(*more):
    """A PNG of 48 x 32 with these chunks after its header."""
    file = io.BytesIO()
    Image.fromarray(np.random.RandomState(0).randint(0, 256, (32, 48, 3)).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()[:33] + b"".join(more) + file.getvalue()[33:]


def header(width, height):
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))


BOMB = zlib.compress(bytes(2**28))


@pytest.mark.parametrize("make, words", [
    (lambda path: path.symlink_to(path.parent.parent / "outside.png"), "is a link that leads out of the folder"),
    (lambda path: path.symlink_to(path), "cannot be read (Too many levels of symbolic links)"),
    (os.mkfifo, "is not a regular file"),
    (os.mkdir, "is not a regular file"),
    (lambda path: path.symlink_to("/dev/zero"), "is not a regular file"),
    (lambda path: [path.touch(), os.truncate(path, 2**40)], "must have at most 16777216 bytes, got 1099511627776"),
    (lambda path: path.write_bytes(content()[:8] + header(60000, 60000)), "must have at most 5000000 pixels, got 60000 x 60000"),
    (lambda path: path.write_bytes(content()[:8] + header(2500, 2001)), "must have at most 5000000 pixels, got 2500 x 2001"),
    (lambda path: path.write_bytes(content()[:8] + header(2**32 - 1, 2**32 - 1)), "got 4294967295 x 4294967295"),
    (lambda path: path.write_bytes(content()[:8] + header(0, 0) + content()[33:]), "is cut short or damaged"),
    (lambda path: path.write_bytes(content(header(60000, 60000))), "is cut short or damaged"),
    (lambda path: path.write_bytes(content()[:20]), "is not a PNG"),
])  # fmt: skip
def test_an_unusable_file_is_refused_with_the_reason(tmp_path, make, words):
    (tmp_path / "outside.png").write_bytes(content())
    (tmp_path / "tree").mkdir()
    make(tmp_path / "tree" / "a.png")
    result = png.inspect(tmp_path / "tree", "a.png")
    assert words in result["error"] and "pixels" not in result


def test_a_link_out_of_the_folder_is_refused_and_one_within_is_followed(tmp_path):
    for name in ("outside", "tree/real"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "a.png").write_bytes(content())
    (tmp_path / "tree" / "outward").symlink_to(tmp_path / "outside")
    (tmp_path / "tree" / "inward").symlink_to("real")
    assert "leads out" in png.inspect(tmp_path / "tree", "outward/a.png")["error"]
    assert png.inspect(tmp_path / "tree", "inward/a.png")["error"] == ""
    (tmp_path / "mine").symlink_to("tree")
    assert png.inspect(tmp_path / "mine", "real/a.png")["error"] == ""


PEAK = """
import resource, sys
from pathlib import Path
import safety.startup
from images import png
for name in ("plain.png", "zTXt.png", "iCCP.png"):
    result = png.inspect(Path(sys.argv[1]), name)
    print(name, repr(result["error"]), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 2**10)
"""


def test_compressed_chunks_other_than_the_image_are_never_decompressed(tmp_path):
    """A chunk that decompresses to 256 MiB; a process of its own, because only the peak of its memory can be read."""
    pytest.importorskip("resource")
    (tmp_path / "plain.png").write_bytes(content())
    (tmp_path / "zTXt.png").write_bytes(content(chunk(b"zTXt", b"note\0\0" + BOMB)))
    (tmp_path / "iCCP.png").write_bytes(content(chunk(b"iCCP", b"profile\0\0" + BOMB)))
    output = subprocess.check_output(
        [sys.executable, "-c", PEAK, tmp_path], text=True, cwd=Path(png.__file__).parents[1]
    )
    names, errors, peaks = zip(*(line.split() for line in output.splitlines()))
    assert names == ("plain.png", "zTXt.png", "iCCP.png") and set(errors) == {"''"}
    assert int(peaks[-1]) - int(peaks[0]) < 64


def test_a_figure_shows_the_pixels_of_training(tmp_path):
    """Pillow refuses the large text, which training does not read."""
    plain = content()
    for one in (plain, content(chunk(b"zTXt", b"note\0\0" + BOMB))):
        np.testing.assert_array_equal(png.decode_for_figure(one), png.decode(one))
    with pytest.raises(png.UnusableError, match="^is cut short or damaged$"):
        png.decode_for_figure(plain[:200])
    with pytest.raises(png.UnusableError, match="^is empty$"):
        png.decode_for_figure(b"")
