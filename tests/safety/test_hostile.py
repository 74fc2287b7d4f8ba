"""Malformed and hostile inputs: each ends within seconds, in success or in one of our errors, and writes nothing."""

import contextlib
import functools
import io
import signal
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny_tree import fold_rows

import config
import data
from backbones import networks
from devices import keras_stack
from features import feature_files
from images import audit, decoding, external_images, png, splits
from safety import command_line

SECONDS = 10
WORDS = [
    "", "\0", "\n", "\r", "\r\n", '"', "'", ",", ";", "/", "\\", "..", "../", "=1+1", "*", "&a", "*a", "!!str", "<<", "---", "%YAML 1.1",
    "\ufeff", "\ud7ff", "\x1b[31m", "{", "}", "[", "]", ": ", "- ", "? ", "|", ">", "#", "1e999", "-1", "0x10", ".nan", "~", "null",
    "9" * 5000, "a" * 5000, "<script>", "${HOME}", "2020-99-99", "\N{ARABIC-INDIC DIGIT ONE}", "\N{NO-BREAK SPACE}",
]  # fmt: skip


class HangError(BaseException):
    """Raised by the alarm; no `except Exception` swallows it."""


@contextlib.contextmanager
def time_limit():
    def ring(number, frame):
        raise HangError

    old, start = signal.signal(signal.SIGALRM, ring), time.monotonic()
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
        # Python raises HangError only after C code has returned, and C code may swallow it.
        assert time.monotonic() - start < SECONDS
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


def outcome(call) -> str:
    """How a command ends; fails for anything but success and our own errors."""
    stderr = io.StringIO()
    with time_limit(), contextlib.redirect_stderr(stderr), pytest.raises(SystemExit) as ended:
        command_line.run(lambda arguments: call())
    status, lines = ended.value.code or 0, stderr.getvalue().splitlines()
    assert status in (0, 1, 2)
    # A Folds.csv in another notation is read, which is said in a line; what follows may still be refused.
    lines = [line for line in lines if ": read although its notation differs: " not in line]
    assert (lines == []) if status == 0 else lines[0].startswith("error: ")
    assert len(lines) <= 1 or status == 1
    assert all(line.isprintable() for line in lines)
    return "success" if status == 0 else f"exit {status}"


def spliced(valid: bytes, pieces: list[bytes]) -> st.SearchStrategy:
    """The valid content with up to four cuts, each replaced by random bytes or one of the pieces."""
    piece = st.one_of(st.sampled_from(pieces), st.binary(max_size=8))
    cuts = st.lists(st.tuples(st.integers(0, len(valid)), st.integers(0, 12), piece), max_size=4)

    def apply(cuts: list) -> bytes:
        content = valid
        for start, length, new in cuts:
            content = content[:start] + new + content[start + length :]
        return content

    return cuts.map(apply)


def folds_content() -> st.SearchStrategy:
    valid = fold_rows(images=1).iloc[::7].to_csv(index=False)
    name = valid.splitlines()[1].rsplit(",", 1)[1]
    cell = st.one_of(st.sampled_from(["1", "40", "train", name, *WORDS]), st.text(max_size=12))
    row = st.lists(cell, max_size=6).map(",".join)
    rows = st.lists(row, max_size=5).map(
        lambda rows: "\n".join(["fold,mag,grp,filename", *rows]).encode("utf-8", "replace")
    )
    return st.one_of(st.binary(max_size=200), rows, spliced(valid.encode(), [word.encode() for word in WORDS]))


def settings_content() -> st.SearchStrategy:
    valid = (config.DEFAULTS.with_name("sample.yaml")).read_bytes()
    value = st.one_of(st.sampled_from(WORDS), st.text(max_size=12), st.integers().map(str), st.floats().map(str))
    line = st.tuples(st.sampled_from([*config.descriptions(), "data.", "x.y"]), value)
    lines = st.lists(line, max_size=4).map(
        lambda lines: "".join("{}:\n  {}: {}\n".format(*name.split("."), value) for name, value in lines)
    )
    pieces = [word.encode() for word in WORDS]
    return st.one_of(
        st.binary(max_size=200), lines.map(lambda text: text.encode("utf-8", "replace")), spliced(valid, pieces)
    )


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_content() -> st.SearchStrategy:
    pixels = np.random.RandomState(0).randint(0, 256, (12, 16, 3)).astype(np.uint8)
    valid = io.BytesIO()
    Image.fromarray(pixels).save(valid, "PNG")
    kind = st.sampled_from(
        [b"IHDR", b"IDAT", b"IEND", b"PLTE", b"zTXt", b"iCCP", b"tRNS", b"acTL", b"fdAT", b"gAMA", b"eXIf"]
    )
    size = st.one_of(st.integers(0, 40), st.integers(0, 2**32 - 1))
    header = st.builds(struct.pack, st.just(">IIBBBBB"), size, size, *[st.integers(0, 17)] * 5)
    body = st.one_of(
        header, st.binary(max_size=40), st.binary(max_size=40).map(zlib.compress), st.just(zlib.compress(bytes(600)))
    )
    chunks = st.lists(st.builds(chunk, kind, body), max_size=5).map(b"".join)
    made = st.builds(
        lambda first, rest: valid.getvalue()[:8] + first + rest + chunk(b"IEND", b""),
        st.builds(chunk, st.just(b"IHDR"), header),
        chunks,
    )
    inserted = st.builds(lambda more: valid.getvalue()[:33] + more + valid.getvalue()[33:], chunks)
    return st.one_of(st.binary(max_size=100), made, inserted, spliced(valid.getvalue(), [bytes(4), b"\xff" * 4]))


@functools.lru_cache
def small_base():
    layers = [keras.layers.Conv2D(2, 1, name="conv"), keras.layers.BatchNormalization(name="bn")]
    return keras.Sequential([keras.Input((4, 4, 3)), *layers])


def weights_content() -> st.SearchStrategy:
    with tempfile.TemporaryDirectory() as place:
        # Keras 3 writes no other name.
        path = Path(place, "a.weights.h5" if keras_stack.KERAS_3 else "a.h5")
        small_base().save_weights(path)
        valid = path.read_bytes()
    pieces = [bytes(8), b"\xff" * 8, b"TREE", b"SNOD", b"HEAP", b"OHDR", b"conv", b"kernel:0", b"\x89HDF"]
    return st.one_of(st.binary(max_size=100), spliced(valid, pieces), overwritten(valid, pieces))


def features_content(write) -> Callable:
    """Contents of a feature file, from a valid one that `write` makes."""

    def contents() -> st.SearchStrategy:
        names, values = ["b.png", "a.png", "c.png"], np.random.RandomState(0).rand(3, 4).astype(np.float32)
        with tempfile.TemporaryDirectory() as place:
            write(Path(place, "a"), names, values)
            valid = next(Path(place).iterdir()).read_bytes()
        pieces = [
            bytes(8),
            b"\xff" * 8,
            b"nan",
            b"1e999",
            b"features",
            b"filename",
            b"TREE",
            b"PK\3\4",
            b",",
            b'"',
            b"\n",
        ]
        return st.one_of(st.binary(max_size=100), spliced(valid, pieces), overwritten(valid, pieces))

    return contents


def write_csv(path, names, values):
    rows = [[name, *map(str, row)] for name, row in zip(names, values)]
    path.write_text("\n".join(map(",".join, [["filename", "0", "1", "2", "3"], *rows])))


def write_hdf5(path, names, values):
    with h5py.File(path, "w") as file:
        file["filename"] = np.array(names, "S")
        file.create_dataset("features", data=values, chunks=(2, 4), compression="gzip")


def write_npz(path, names, values):
    np.savez_compressed(path, filename=np.array(names), features=values)


def overwritten(valid: bytes, pieces: list[bytes]) -> st.SearchStrategy:
    """The valid content with up to three places overwritten, so that all after them keep their addresses."""
    used = [place for place in range(len(valid)) if valid[place]]
    cuts = st.lists(
        st.tuples(st.sampled_from(used), st.one_of(st.sampled_from(pieces), st.binary(min_size=1, max_size=8))),
        min_size=1,
        max_size=3,
    )

    def apply(cuts: list) -> bytes:
        content = valid
        for start, new in cuts:
            content = content[:start] + new + content[start + len(new) :]
        return content

    return cuts.map(apply)


def read_weights(path):
    networks.load(small_base(), str(path))


def read_features(path):
    feature_files.read(path)


def read_folds(path):
    splits.split(data.read_folds(path), config.load_settings().data.model_copy(update={"test_per_class": 1}))


def read_settings(path):
    config.load_settings(path).to_yaml().encode()


def read_image(path):
    external_images.read(path, 32)
    if png.inspect(path.parent, path.name)["error"] == "":
        assert decoding.read(str(path), 32).shape == (32, 32, 3)
        np.testing.assert_array_equal(audit.read_rgb(path.parent, path.name), png.decode(path.read_bytes()))
    audit.read_rgb(path.parent, path.name)


TARGETS = {
    "Folds.csv": (folds_content, read_folds, 8000),
    "config.yaml": (settings_content, read_settings, 4000),
    "PNG": (png_content, read_image, 12000),
    "weights.h5": (weights_content, read_weights, 4000),
    "features.npz": (features_content(write_npz), read_features, 700),
    "features.csv": (features_content(write_csv), read_features, 700),
    "features.h5": (features_content(write_hdf5), read_features, 700),
}


@pytest.mark.parametrize("long", [False, pytest.param(True, marks=pytest.mark.long)], ids=["short", "long"])
@pytest.mark.parametrize("name", TARGETS)
def test_random_content_is_read_or_refused_and_writes_nothing(name, long, tmp_path, monkeypatch, record_property):
    contents, read, count = TARGETS[name]
    monkeypatch.chdir(tmp_path)
    path, outcomes = tmp_path / f"input{Path(name).suffix}", Counter()

    @settings(
        max_examples=count if long else 120,
        derandomize=not long,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(contents())
    def attempt(content):
        path.write_bytes(content)
        outcomes[outcome(lambda: read(path))] += 1

    attempt()
    assert list(tmp_path.rglob("*")) == [path]
    record_property("outcomes", f"{name}: {sum(outcomes.values())} inputs, {dict(outcomes)}")


@pytest.mark.long
@pytest.mark.parametrize("name, runs", [("Folds.csv", 9000), ("config.yaml", 2000), ("PNG", 9000)])
def test_content_found_by_coverage_is_read_or_refused_and_writes_nothing(name, runs, tmp_path, record_property):
    pytest.importorskip("atheris", reason="atheris is not installed: pip install atheris")
    script = Path(__file__).with_name("fuzz_atheris.py")
    command = [sys.executable, script, name, str(runs), tmp_path]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0 and f"{runs} inputs" in result.stdout, result.stderr[-3000:]
    assert {path.name for path in tmp_path.iterdir()} == {"input", "corpus"}
    record_property("outcomes", result.stdout.splitlines()[-1])
