import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from features import store
from safety.errors import InputError


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty cache."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_chunk_that_another_process_replaced_is_read_again(place):
    """One process's chunk 0 is deleted, and another one writes other names there."""

    def opened():
        return store.Store(place / "store", (2,), np.float32)

    first, second = opened(), opened()
    first.add(["a", "b"], np.zeros((2, 2)))
    assert second.missing(["a"]) == []
    shutil.rmtree(place / "store")
    opened().add(["c", "d"], np.ones((2, 2)))
    assert second.missing(["a", "c"]) == ["a"] and (second.read(["c"]) == 1).all()


def test_the_longest_unused_goes_first(place):
    for age, name in enumerate(["new", "middle", "old"]):
        (place / "cache" / name).mkdir(parents=True)
        (place / "cache" / name / "arrays.bin").write_bytes(bytes(2**20))
        (place / "cache" / name / "used").touch()
        os.utime(place / "cache" / name / "used", (1e9 - age, 1e9 - age))
    store.make_room(2**19, 3.2 / 1024)
    assert {path.name for path in (place / "cache").iterdir()} == {"new", "middle"}
    (place / "cache" / "middle" / "used").touch()
    store.make_room(2**19, 2.2 / 1024)
    assert {path.name for path in (place / "cache").iterdir()} == {"middle"}
    with pytest.raises(InputError, match="train.cache_gib"):
        store.make_room(2**19, 1.2 / 1024)


def test_a_file_that_another_process_deletes_meanwhile_is_not_counted(place, monkeypatch):
    (place / "cache" / "features").mkdir(parents=True)
    for name in ("arrays.bin", ".1.abc.json"):
        (place / "cache" / "features" / name).write_bytes(bytes(2**20))
    listed = Path.iterdir

    def vanishing(folder):
        for path in list(listed(folder)):
            if path.name.startswith("."):
                path.unlink()
            yield path

    monkeypatch.setattr(Path, "iterdir", vanishing)
    store.make_room(0, 1.5 / 1024)
    assert os.listdir(place / "cache" / "features") == ["arrays.bin"]


def test_old_temporary_files_are_deleted_and_new_ones_stay(place):
    (place / "cache" / "features").mkdir(parents=True)
    for name in (".1.old.json", ".2.new.json", "000000.json"):
        (place / "cache" / "features" / name).touch()
    for name in (".1.old.json", "000000.json"):
        os.utime(place / "cache" / "features" / name, (1e9, 1e9))
    store.make_room(0, 1)
    assert sorted(os.listdir(place / "cache" / "features")) == [".2.new.json", "000000.json"]
