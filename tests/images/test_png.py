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
    """A PNG of 48 x 32 with these chunks behind its header."""
    file = io.BytesIO()
    Image.fromarray(np.random.RandomState(0).randint(0, 256, (32, 48, 3)).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()[:33] + b"".join(more) + file.getvalue()[33:]


def header(width, height):
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))


BOMB = zlib.compress(bytes(2**28))


@pytest.mark.parametrize("make, words", [
    (lambda path: path.symlink_to(path.parent.parent / "outside.png"), "is a link that leads out of the folder"),
    (lambda path: path.symlink_to(path), "cannot be read (Too many levels of symbolic links)"),
    (os.mkfifo, "is no regular file"),
    (os.mkdir, "is no regular file"),
    (lambda path: path.symlink_to("/dev/zero"), "is no regular file"),
    (lambda path: [path.touch(), os.truncate(path, 2**40)], "has 1099511627776 bytes, more than"),
    (lambda path: path.write_bytes(content()[:8] + header(60000, 60000)), "has 60000 x 60000 pixels, more than"),
    (lambda path: path.write_bytes(content()[:8] + header(2500, 2001)), "has 2500 x 2001 pixels, more than 5000000"),
    (lambda path: path.write_bytes(content()[:8] + header(2**32 - 1, 2**32 - 1)), "4294967295 pixels, more than"),
    (lambda path: path.write_bytes(content()[:8] + header(0, 0) + content()[33:]), "is cut short or damaged"),
    (lambda path: path.write_bytes(content(header(60000, 60000))), "is cut short or damaged"),
    (lambda path: path.write_bytes(content()[:20]), "is no PNG"),
])  # fmt: skip
def test_what_cannot_be_used_is_told(tmp_path, make, words):
    (tmp_path / "outside.png").write_bytes(content())
    (tmp_path / "tree").mkdir()
    make(tmp_path / "tree" / "a.png")
    found = png.look(tmp_path / "tree", "a.png")
    assert words in found["error"] and "pixels" not in found


def test_a_folder_that_leads_out_is_told_and_one_that_stays_is_followed(tmp_path):
    for name in ("outside", "tree/real"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "a.png").write_bytes(content())
    (tmp_path / "tree" / "away").symlink_to(tmp_path / "outside")
    (tmp_path / "tree" / "near").symlink_to("real")
    assert "leads out" in png.look(tmp_path / "tree", "away/a.png")["error"]
    assert png.look(tmp_path / "tree", "near/a.png")["error"] == ""
    (tmp_path / "mine").symlink_to("tree")
    assert png.look(tmp_path / "mine", "real/a.png")["error"] == ""


PEAK = """
import resource, sys
from pathlib import Path
import safety.startup
from images import png
for name in ("plain.png", "zTXt.png", "iCCP.png"):
    found = png.look(Path(sys.argv[1]), name)
    print(name, repr(found["error"]), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 2**10)
"""


def test_what_unfolds_beside_the_image_is_never_unfolded(tmp_path):
    """A quarter of a gigabyte of zeros in a chunk that training has no use for; in a process that never held as much."""
    pytest.importorskip("resource")
    (tmp_path / "plain.png").write_bytes(content())
    (tmp_path / "zTXt.png").write_bytes(content(chunk(b"zTXt", b"note\0\0" + BOMB)))
    (tmp_path / "iCCP.png").write_bytes(content(chunk(b"iCCP", b"profile\0\0" + BOMB)))
    told = subprocess.check_output([sys.executable, "-c", PEAK, tmp_path], text=True, cwd=Path(png.__file__).parents[1])
    names, errors, peaks = zip(*(line.split() for line in told.splitlines()))
    assert names == ("plain.png", "zTXt.png", "iCCP.png") and set(errors) == {"''"}
    assert int(peaks[-1]) - int(peaks[0]) < 64
