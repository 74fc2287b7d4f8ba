"""Feature files: every layout that is read gives the same features, and everything else is refused in one line."""

import pickle
import zipfile

import h5py
import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from features import feature_files
from safety.errors import InputError

NAMES = ["b.png", "a.png", "c.png"]
VALUES = np.random.RandomState(0).normal(0, 1, (3, 4)).astype(np.float32)
IN_ORDER = VALUES[[1, 0, 2]]


def npz(path, names=NAMES, features=VALUES, **options):
    save = np.savez_compressed if options.get("compressed") else np.savez
    save(path, filename=np.array(names), features=features)
    return path


def csv(path, names=NAMES, features=VALUES, columns=("0", "1", "2", "3")):
    rows = [",".join([name, *map(repr, map(float, row))]) for name, row in zip(names, features)]
    path.write_text("\n".join([",".join(["filename", *columns]), *rows]) + "\n")
    return path


def hdf5(path, names=NAMES, features=VALUES, **options):
    with h5py.File(path, "w") as file:
        file["filename"] = np.array(names, "S")
        file.create_dataset("features", data=features, **options)
    return path


def folder(path, arrays):
    """A folder as TRIDENT writes it: for each image an .h5 with features and coords, in chunks that can grow."""
    path.mkdir()
    for name, array in arrays.items():
        with h5py.File(path / f"{name}.h5", "w") as file:
            file.create_dataset("features", data=array, chunks=(1, array.shape[-1]), maxshape=(None, array.shape[-1]))
            file["coords"] = np.zeros((len(array), 2))
    return path


def write_parquet(path, lists):
    columns = {"features": list(VALUES)} if lists else {f"feature_{n}": VALUES[:, n] for n in range(4)}
    parquet.write_table(pyarrow.table({"filename": NAMES, **columns}), path)
    return path


@pytest.mark.parametrize(
    "write",
    [
        lambda place: npz(place / "a.npz"),
        lambda place: npz(place / "a.npz", features=VALUES.astype(float), compressed=True),
        lambda place: csv(place / "a.csv"),
        lambda place: csv(place / "a.csv", columns=[f"feature_{n}" for n in (1, 2, 3, 4)]),
        lambda place: hdf5(place / "a.h5"),
        lambda place: hdf5(place / "a.hdf5", compression="gzip", chunks=(2, 4)),
        lambda place: folder(place / "a", {n[:-4]: np.stack([v - 1, v + 1]) for n, v in zip(NAMES, VALUES)}),
        lambda place: write_parquet(place / "a.parquet", lists=True),
        lambda place: write_parquet(place / "a.parquet", lists=False),
    ],
    ids=["npz", "npz, compressed", "csv", "csv from 1", "h5", "h5, compressed", "TRIDENT", "parquet lists", "parquet"],
)
def test_every_layout_gives_the_same_features_ordered_by_name(write, tmp_path):
    path = write(tmp_path)
    names, features = feature_files.read(path)
    suffix = "" if path.is_dir() else ".png"
    assert names == [f"{name}{suffix}" for name in "abc"] and features.dtype == np.float32
    np.testing.assert_allclose(features, IN_ORDER, atol=1e-6)


def changed(row, column, value, dtype=float):
    features = VALUES.astype(dtype)
    features[row, column] = value
    return features


@pytest.mark.parametrize(
    "names, features, message",
    [
        (NAMES, changed(1, 2, np.nan), r"row 2 \(a.png\): feature 2 must be a finite number, got nan"),
        (NAMES, changed(2, 0, np.inf), r"row 3 \(c.png\): feature 0 must be a finite number, got inf"),
        (NAMES, changed(0, 3, 1e300), r"row 1 \(b.png\): feature 3 must be a finite number, got 1e\+300"),
        (["a.png", "b.png", "a.png"], VALUES, "row 3: a file name must be there once, got a.png again"),
        (["a.png", "", "c.png"], VALUES, "row 2: a file name must be 1 to 255 printable characters, got ''"),
        (["a.png", "b\n", "c.png"], VALUES, r"row 2: a file name must be 1 to 255 printable characters, got 'b\\n'"),
        (NAMES[:2], VALUES, r"images x width for 2 file names, at least 1 x 1, got \(3, 4\)"),
        (NAMES, VALUES[:, 0], r"images x width for 3 file names, at least 1 x 1, got \(3,\)"),
        (NAMES, VALUES[:, :0], r"at least 1 x 1, got \(3, 0\)"),
        (NAMES, VALUES.astype(int), "must be floating-point numbers, got int64"),
        (NAMES, VALUES.astype(complex), "must be floating-point numbers, got complex128"),
        (NAMES, VALUES.astype(str), "must be floating-point numbers, got <U32"),
        (NAMES, VALUES.astype(object), "must be floating-point numbers, got object"),
        (np.array(NAMES, object), VALUES, "filename must be texts in one dimension, got object"),
        (NAMES, np.zeros((3, 2**14 + 1), np.float32), "at most 1000000 images x 16384"),
    ],
)
def test_a_wrong_row_or_type_is_named(names, features, message, tmp_path):
    with pytest.raises(InputError, match=message) as refused:
        feature_files.read(npz(tmp_path / "a.npz", names, features))
    assert str(refused.value).startswith(str(tmp_path / "a.npz")) and len(refused.value.lines) == 1


@pytest.mark.parametrize(
    "content, message",
    [
        ("filename,label,0\na,1,2\n", "numbered ones in order .* got 'label'"),
        ("filename,0,2\na,1,2\n", "numbered ones in order .* got '2'"),
        ("filename,f0,g1\na,1,2\n", "numbered ones in order .* got 'g1'"),
        ("name,0\na,1\n", "must have one column filename, got name, 0"),
        ("filename,0,filename\na,1,b\n", "must have one column filename"),
        ("filename,0\na,x\n", "row 1: features must be numbers: could not convert string to float: 'x'"),
        ("filename,0\na,1\nb,\n", "row 2: features must be numbers"),
        ("filename,0\na,1\nb\n", "row 2: must have 2 cells, got 1"),
        ("filename,0\na,1\nb,1e99\n", r"row 2 \(b\): feature 0 must be a finite number, got inf"),
        ("filename\na\n", r"at least 1 x 1, got \(1, 0\)"),
        ("filename,0\n", r"at least 1 x 1, got \(0,\)"),
        ("", "must have one column filename, got none"),
    ],
)
def test_a_label_does_not_pass_for_a_feature_and_a_wrong_cell_is_named(content, message, tmp_path):
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(InputError, match=message):
        feature_files.read(tmp_path / "a.csv")


def test_a_pickle_is_never_read(tmp_path):
    class Opened:
        def __reduce__(self):
            return pytest.fail, ("unpickled",)

    for suffix in (".pt", ".pkl"):
        (tmp_path / f"a{suffix}").write_bytes(pickle.dumps(Opened()))
        with pytest.raises(InputError, match="is a pickle, which could run any code"):
            feature_files.read(tmp_path / f"a{suffix}")
    np.savez(tmp_path / "a.npz", filename=np.array(NAMES), features=np.array([Opened()] * 3, object))
    with pytest.raises(InputError, match="got object"):
        feature_files.read(tmp_path / "a.npz")


@pytest.mark.parametrize(
    "name, message",
    [
        ("none.npz", "no such file of features"),
        ("a.txt", "must be one of .npz, .csv, .h5, .hdf5, .parquet or a folder of .h5, got '.txt'"),
        ("empty", "needed is a folder with an .h5 for each image, got none"),
        ("zip.npz", "damaged, or no .npz of features: File is not a zip file"),
        ("bad.h5", "damaged, or no .h5 of features"),
    ],
)
def test_what_is_no_feature_file_is_refused(name, message, tmp_path):
    (tmp_path / "empty").mkdir()
    for other in ("a.txt", "zip.npz", "bad.h5"):
        (tmp_path / other).write_bytes(b"no such thing")
    with pytest.raises(InputError, match=message):
        feature_files.read(tmp_path / name)


def test_an_array_that_is_elsewhere_or_too_large_is_not_read(tmp_path):
    hdf5(tmp_path / "other.h5")
    with h5py.File(tmp_path / "link.h5", "w") as file:
        file["filename"], file["features"] = NAMES, h5py.ExternalLink("other.h5", "/features")
    with h5py.File(tmp_path / "large.h5", "w") as file:
        file["filename"] = NAMES
        file.create_dataset("features", (10**6, 2**14), np.float32, chunks=(1, 2**14), compression="gzip")
    with h5py.File(tmp_path / "slide.h5", "w") as file:
        file["features"] = VALUES
    with h5py.File(tmp_path / "heap.h5", "w") as file:
        file["filename"], file["features"] = NAMES, VALUES
    messages = {
        "link": "needed is the array features",
        "large": "at most",
        "slide": "name their folder",
        "heap": "filename must be 3 texts of a fixed length",
    }
    for name, message in messages.items():
        with pytest.raises(InputError, match=message):
            feature_files.read(tmp_path / f"{name}.h5")
    # An array whose header promises more than the file holds.
    with zipfile.ZipFile(npz(tmp_path / "a.npz")) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content.replace(b"(3, 4)", b"(9, 9)"))
    with pytest.raises(InputError, match="features needs 324 bytes, got 48"):
        feature_files.read(tmp_path / "a.npz")


def test_the_folder_of_an_encoder_names_the_file_of_another_width(tmp_path):
    folder(tmp_path / "a", {"x": VALUES, "y": VALUES[:, :3]})
    with pytest.raises(InputError, match=r"y.h5: must have 4 features, as x.h5 has, got 3"):
        feature_files.read(tmp_path / "a")


def test_a_small_parquet_file_of_endless_rows_is_refused_before_it_is_read(tmp_path):
    names = pyarrow.array(["a.png"]).take(pyarrow.array(np.zeros(1_000_001, np.int64)))
    parquet.write_table(pyarrow.table({"filename": names, "0": np.zeros(1_000_001)}), tmp_path / "a.parquet")
    assert (tmp_path / "a.parquet").stat().st_size < 50_000
    with pytest.raises(InputError, match="must have at most 1000000 images, in .* bytes, got 1000001"):
        feature_files.read(tmp_path / "a.parquet")


def test_parquet_names_the_package_that_it_needs(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    (tmp_path / "a.parquet").write_bytes(b"")
    with pytest.raises(InputError, match="Parquet needs the package pyarrow"):
        feature_files.read(tmp_path / "a.parquet")
