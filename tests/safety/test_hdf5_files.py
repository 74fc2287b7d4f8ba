import io
import struct
import zipfile
import zlib

import h5py
import keras
import numpy as np
import pytest

from safety import hdf5_files


def write(path, fill):
    with h5py.File(path, "w") as file:
        file["layer/vars/0"] = np.ones((3, 4), np.float32)
        fill(file)
    return path


def virtual(file):
    layout = h5py.VirtualLayout((3,), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "a", (3,))
    file.create_virtual_dataset("a", layout)


def padded(file):
    """A gzip chunk with so many bytes after its end that it takes as much space as the array that it decompresses to."""
    array = file.create_dataset("a", (10**6,), "u1", chunks=(10**6,), compression="gzip")
    chunk = zlib.compress(bytes(10**6))
    array.id.write_direct_chunk((0,), chunk + bytes(10**6 - len(chunk)))
    assert array.id.get_storage_size() == array.nbytes and not array[:].any()


def sparse(file):
    """Eight gigabytes that are allocated in the file but take no space on the disk."""
    early = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    early.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    early.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    h5py.h5d.create(file.id, b"a", h5py.h5t.NATIVE_FLOAT, h5py.h5s.create_simple((2 * 10**9,)), early)
    array = file["a"]
    assert array.id.get_storage_size() == array.nbytes


@pytest.mark.parametrize("fill", [
    lambda file: None,
    lambda file: file.create_dataset("count", data=3),
    lambda file: file.create_dataset("none", shape=(0, 3), dtype="f4"),
    lambda file: file["layer"].__setitem__("up", file["/"]),
], ids=["plain", "scalar", "empty", "cycle"])  # fmt: skip
def test_plain_arrays_and_cyclic_links_are_accepted(tmp_path, fill):
    hdf5_files.check(write(tmp_path / "weights.h5", fill))


@pytest.mark.parametrize("fill, words", [
    (lambda file: file.__setitem__("a", h5py.ExternalLink("other.h5", "/")), "a in / is a link to elsewhere"),
    (lambda file: file.__setitem__("a", h5py.SoftLink("/a")), "a in / is a link to elsewhere"),
    (lambda file: file.create_dataset("a", (3,), "f4", external=[("other", 0, 12)]), "/a is stored in another file"),
    (virtual, "/a is stored in another file"),
    (lambda file: file.create_dataset("a", (10**6, 10**6), "f4", chunks=(100, 100)), "/a is stored in chunks"),
    (lambda file: file.create_dataset("a", (10**6, 10**6), "f4"), "/a must take 4000000000000 bytes in the file, got 0"),
    (padded, "/a is stored in chunks"),
    (sparse, "must have at most 1073741824 bytes, got 8[0-9]{9}"),
    (lambda file: file.create_dataset("a", data="text", dtype=h5py.string_dtype()), "/a must hold numbers, got object"),
    (lambda file: [file.create_group(str(number)) for number in range(50)], "must have at most 40 objects"),
])  # fmt: skip
def test_anything_but_plain_arrays_is_refused(tmp_path, monkeypatch, fill, words):
    monkeypatch.setattr(hdf5_files, "MAX_OBJECTS", 40)
    with pytest.raises(ValueError, match=words):
        hdf5_files.check(write(tmp_path / "weights.h5", fill))


def test_an_array_that_extends_beyond_the_end_of_the_file_is_refused(tmp_path):
    path = write(tmp_path / "weights.h5", lambda file: file.create_dataset("a", (7919,), "u1"))
    with h5py.File(path, "a") as file:
        file["a"][:] = 1
    content = path.read_bytes()
    assert struct.pack("<Q", 7919) in content
    path.write_bytes(content.replace(struct.pack("<Q", 7919), struct.pack("<Q", 2**40)))
    with pytest.raises((KeyError, ValueError), match="invalid dataset size|/a must take"):
        hdf5_files.check(path)


def test_files_that_keras_writes_are_accepted(tmp_path):
    network = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3), keras.layers.BatchNormalization()])
    network.compile(keras.optimizers.SGD(momentum=0.9))
    network.optimizer.build(network.trainable_variables)
    network.save_weights(tmp_path / "new.weights.h5")
    network.save(tmp_path / "all.h5")
    network.save(tmp_path / "all.keras")
    for name in ("new.weights.h5", "all.h5"):
        hdf5_files.check(tmp_path / name)
    with zipfile.ZipFile(tmp_path / "all.keras") as archive:
        hdf5_files.check(io.BytesIO(archive.read("model.weights.h5")))
