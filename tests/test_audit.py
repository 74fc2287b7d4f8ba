import os
import re
import shutil

from config import InputError

import numpy as np
import pytest
from PIL import Image

import audit
import data

NAME = "SOB_B_A-14-101AB-40-001.png"


@pytest.fixture
def table(own_tree):
    return data.read_folds(own_tree / "Folds.csv")


@pytest.fixture
def picture(own_tree):
    return next(own_tree.rglob(NAME))


def look(table, root):
    return audit.with_pixels(table, root, audit.store_of(root / "Folds.csv"))


def test_equal_pixels_are_found_whatever_the_file(table, own_tree, picture):
    other = next(own_tree.rglob("SOB_B_A-14-102-40-001.png"))
    Image.open(picture).save(other, compress_level=1)
    assert other.read_bytes() != picture.read_bytes()
    pixels = look(table, own_tree).groupby("filename").pixels.first()
    assert pixels[NAME] == pixels[other.name]
    assert pixels.nunique() == len(pixels) - 1


def cut(path):
    path.write_bytes(path.read_bytes()[:-200])


def damage(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


@pytest.mark.parametrize("spoil, words", [
    (lambda path: path.write_bytes(b""), f"{NAME} is empty"),
    (lambda path: path.write_bytes(b"no picture at all"), f"{NAME} is no PNG"),
    (lambda path: Image.open(path).save(path, format="JPEG"), f"{NAME} is no PNG"),
    (cut, f"{NAME} is cut short or damaged"),
    (damage, f"{NAME} is cut short or damaged"),
    (os.remove, f"{NAME} is missing"),
])  # fmt: skip
def test_a_broken_picture_is_named_and_nothing_is_kept(table, own_tree, picture, spoil, words):
    spoil(picture)
    with pytest.raises(InputError, match=f"1 of .*{re.escape(words)}"):
        look(table, own_tree)
    assert not audit.store_of(own_tree / "Folds.csv").exists()


def test_a_giant_is_refused_before_it_is_decoded(table, own_tree, picture, monkeypatch):
    monkeypatch.setattr(audit, "MAX_PIXELS", 48 * 32 - 1)
    monkeypatch.setattr(audit, "_look", lambda image: pytest.fail("decoded"))
    with pytest.raises(InputError, match="48 x 32 pixels, more than"):
        look(table, own_tree)


def test_pictures_are_opened_once_and_again_when_they_change(table, own_tree, picture, monkeypatch):
    first = look(table, own_tree)
    opened = []
    inspect_one = audit._inspect_one
    monkeypatch.setattr(audit, "_inspect_one", lambda folder, path: opened.append(path) or inspect_one(folder, path))
    assert look(table, own_tree).pixels.equals(first.pixels) and opened == []
    Image.fromarray(np.zeros((32, 48, 3), np.uint8)).save(picture)
    assert not look(table, own_tree).pixels.equals(first.pixels)
    assert [os.path.basename(path) for path in opened] == [NAME]


def test_known_pixels_opens_nothing_and_believes_only_what_is_fresh(table, own_tree, picture, monkeypatch):
    store = audit.store_of(own_tree / "Folds.csv")
    assert "pixels" not in audit.known_pixels(table, own_tree, store)
    first = look(table, own_tree)
    monkeypatch.setattr(audit, "_inspect_one", lambda folder, path: pytest.fail("opened"))
    assert audit.known_pixels(table, own_tree, store).equals(first)
    os.utime(picture, ns=(1, 1))
    assert "pixels" not in audit.known_pixels(table, own_tree, store)
    assert "pixels" not in audit.known_pixels(table, own_tree / "nowhere", store)


def test_findings_beside_a_read_only_table_go_to_the_cache(own_tree):
    own_tree.chmod(0o555)
    assert audit.store_of(own_tree / "Folds.csv").parts[0] == "cache"
    own_tree.chmod(0o755)
    assert audit.store_of(own_tree / "Folds.csv").parent == own_tree


def test_the_data_version_follows_the_pixels_and_not_the_place(table, own_tree, picture, tmp_path):
    version = audit.data_version(look(table, own_tree))
    moved = tmp_path / "moved"
    shutil.copytree(own_tree, moved)
    assert audit.data_version(look(table, moved)) == version
    Image.fromarray(np.zeros((32, 48, 3), np.uint8)).save(picture)
    assert audit.data_version(look(table, own_tree)) != version


@pytest.mark.parametrize("place", ["nowhere", "."])
def test_a_root_without_images_says_how_to_go_on(tmp_path, place):
    with pytest.raises(InputError, match="data.root: .*make train"):
        audit.find_pictures(tmp_path / place)


def test_real_images_are_all_read(real_sample, tmp_path):
    table = audit.with_pixels(data.read_folds(real_sample / "Folds.csv"), real_sample, tmp_path / "store.csv")
    assert table.filename.nunique() == table.pixels.nunique() == 172
