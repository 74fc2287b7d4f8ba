import h5py
import numpy as np
import pytest

import hdf5


def write(path, fill):
    with h5py.File(path, "w") as file:
        file["layer/vars/0"] = np.ones((3, 4), np.float32)
        fill(file)
    return path


def virtual(file):
    layout = h5py.VirtualLayout((3,), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "a", (3,))
    file.create_virtual_dataset("a", layout)


@pytest.mark.parametrize("fill", [
    lambda file: None,
    lambda file: file.create_dataset("count", data=3),
    lambda file: file.create_dataset("none", shape=(0, 3), dtype="f4"),
    lambda file: file["layer"].__setitem__("up", file["/"]),
], ids=["plain", "scalar", "empty", "circle"])  # fmt: skip
def test_plain_arrays_pass_and_circles_end(tmp_path, fill):
    hdf5.check(write(tmp_path / "weights.h5", fill))


@pytest.mark.parametrize("fill, words", [
    (lambda file: file.__setitem__("a", h5py.ExternalLink("other.h5", "/")), "a in / is a link to elsewhere"),
    (lambda file: file.__setitem__("a", h5py.SoftLink("/a")), "a in / is a link to elsewhere"),
    (lambda file: file.create_dataset("a", (3,), "f4", external=[("other", 0, 12)]), "/a lies in another file"),
    (virtual, "/a lies in another file"),
    (lambda file: file.create_dataset("a", (10**6, 10**6), "f4", chunks=(100, 100)), "/a takes 0 bytes for an array of 4000000000000"),
    (lambda file: file.create_dataset("a", (10**6, 10**6), "f4"), "/a takes 0 bytes for an array of 4000000000000"),
    (lambda file: file.create_dataset("a", data=np.zeros(10**6), compression="gzip"), "for an array of 8000000"),
    (lambda file: file.create_dataset("a", data="text", dtype=h5py.string_dtype()), "/a holds no numbers"),
    (lambda file: [file.create_group(str(number)) for number in range(50)], "has more than 40 objects"),
])  # fmt: skip
def test_what_is_no_plain_array_is_refused(tmp_path, monkeypatch, fill, words):
    monkeypatch.setattr(hdf5, "MAX_OBJECTS", 40)
    with pytest.raises(ValueError, match=words):
        hdf5.check(write(tmp_path / "weights.h5", fill))
