import json
import os
import re
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from PIL import Image

import config
import data
from images import audit, png, splits
from safety.errors import DataError, InputError

NAME = "SOB_B_A-14-101AB-40-001.png"


@pytest.fixture
def table(own_tree):
    return data.read_folds(own_tree / "Folds.csv")


@pytest.fixture
def image(own_tree):
    return next(own_tree.rglob(NAME))


def options(tree, **changes):
    values = {"root": tree, "folds": tree / "Folds.csv", **changes}
    return config.load_settings(None, [f"data.{key}={value}" for key, value in values.items()]).data


def look(table, root):
    return audit.with_pixels(table, options(root))


def test_equal_pixels_are_found_whatever_the_file(table, own_tree, image):
    other = next(own_tree.rglob("SOB_B_A-14-102-40-001.png"))
    Image.open(image).save(other, compress_level=1)
    assert other.read_bytes() != image.read_bytes()
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
    (lambda path: path.write_bytes(b"no image at all"), f"{NAME} is no PNG"),
    (lambda path: Image.open(path).save(path, format="JPEG"), f"{NAME} is no PNG"),
    (cut, f"{NAME} is cut short or damaged"),
    (lambda path: path.write_bytes(path.read_bytes()[:-1]), f"{NAME} is cut short or damaged"),
    (lambda path: path.write_bytes(path.read_bytes()[:-12]), f"{NAME} is cut short or damaged"),
    (lambda path: write_giant(path), f"{NAME} has 20000 x 20000 pixels, more than"),
    (damage, f"{NAME} is cut short or damaged"),
    (os.remove, f"{NAME} is missing"),
])  # fmt: skip
def test_a_broken_image_is_named_and_not_kept(table, own_tree, image, spoil, words):
    spoil(image)
    with pytest.raises(InputError, match=f"(?s)1 of .*{re.escape(words)}"):
        look(table, own_tree)
    kept = pd.read_csv(audit.store_of(options(own_tree)), keep_default_na=False)
    assert len(kept) == table.filename.nunique() - 1 and not kept.error.any()


def write_giant(path):
    """A few bytes that promise 400 million pixels."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 20000, 20000, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b""))


@pytest.mark.parametrize("content", [b"", b"\xff\x00\xfe", b"path\n1,2,3\n4\n", b"path,bytes\n"])
def test_damaged_findings_are_made_again(table, own_tree, content):
    first = look(table, own_tree)
    audit.store_of(options(own_tree)).write_bytes(content)
    assert look(table, own_tree).equals(first)


@pytest.mark.parametrize("forge", [
    lambda kept: pd.concat([kept, kept]),
    lambda kept: kept.assign(pixels="../elsewhere"),
    lambda kept: kept.assign(error="is odd"),
    lambda kept: kept.assign(brightness="bright"),
])  # fmt: skip
def test_forged_findings_are_made_again(table, own_tree, forge):
    first, store = look(table, own_tree), audit.store_of(options(own_tree))
    forge(pd.read_csv(store, keep_default_na=False)).to_csv(store, index=False)
    assert look(table, own_tree).equals(first)


def test_a_image_that_became_a_way_out_is_no_longer_believed(table, own_tree, image, tmp_path):
    look(table, own_tree)
    shutil.move(image, tmp_path / "outside.png")
    image.symlink_to(tmp_path / "outside.png")
    assert "pixels" not in audit.known_pixels(table, options(own_tree))
    with pytest.raises(DataError, match="is a link that leads out"):
        look(table, own_tree)


def test_a_giant_is_refused_before_it_is_decoded(table, own_tree, image, monkeypatch):
    monkeypatch.setattr(png, "MAX_PIXELS", 48 * 32 - 1)
    monkeypatch.setattr(tf.io, "decode_png", lambda *args, **options: pytest.fail("decoded"))
    with pytest.raises(InputError, match="48 x 32 pixels, more than"):
        look(table, own_tree)


def test_images_are_opened_once_and_again_when_they_change(table, own_tree, image, monkeypatch):
    first = look(table, own_tree)
    opened = []
    inspect_one = audit._inspect_one
    monkeypatch.setattr(audit, "_inspect_one", lambda folder, path: opened.append(path) or inspect_one(folder, path))
    assert look(table, own_tree).pixels.equals(first.pixels) and opened == []
    Image.fromarray(np.zeros((32, 48, 3), np.uint8)).save(image)
    assert not look(table, own_tree).pixels.equals(first.pixels)
    assert [os.path.basename(path) for path in opened] == [NAME]


def test_known_pixels_opens_nothing_and_believes_only_what_is_fresh(table, own_tree, image, monkeypatch):
    assert "pixels" not in audit.known_pixels(table, options(own_tree))
    first = look(table, own_tree)
    monkeypatch.setattr(audit, "_inspect_one", lambda folder, path: pytest.fail("opened"))
    assert audit.known_pixels(table, options(own_tree)).equals(first)
    os.utime(image, ns=(1, 1))
    assert "pixels" not in audit.known_pixels(table, options(own_tree))
    assert "pixels" not in audit.known_pixels(table, options(own_tree, root="nowhere"))
    assert "pixels" not in audit.known_pixels(
        table, options(own_tree, root=own_tree / "BreaKHis_v1" / "histology_slides" / "breast" / "benign")
    )


def test_findings_that_came_with_the_images_are_not_believed(table, own_tree, image, tmp_path):
    """They would hide a broken image, and put its features under the name of another one."""
    look(table, own_tree)
    forged = pd.read_csv(audit.store_of(options(own_tree)), keep_default_na=False)
    os.remove(audit.store_of(options(own_tree)))
    forged.to_csv(own_tree / "Folds.pixels.csv", index=False)
    times = (image.stat().st_atime_ns, image.stat().st_mtime_ns)
    image.write_bytes(bytes(image.stat().st_size))
    os.utime(image, ns=times)
    with pytest.raises(InputError, match="is no PNG"):
        look(table, own_tree)
    assert audit.store_of(options(own_tree)).parts[0] == "cache"


def test_the_data_version_follows_the_pixels_and_not_the_place(table, own_tree, image, tmp_path):
    version = audit.data_version(look(table, own_tree))
    moved = tmp_path / "moved"
    shutil.copytree(own_tree, moved)
    assert audit.data_version(look(table, moved)) == version
    Image.fromarray(np.zeros((32, 48, 3), np.uint8)).save(image)
    assert audit.data_version(look(table, own_tree)) != version


@pytest.mark.parametrize("place", ["nowhere", "."])
def test_a_root_without_images_says_how_to_go_on(tmp_path, place):
    with pytest.raises(InputError, match="data.root: .*make train"):
        audit.image_folder(tmp_path / place)


def test_real_images_are_all_read(real_sample, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table = look(data.read_folds(real_sample / "Folds.csv"), real_sample)
    assert table.filename.nunique() == table.pixels.nunique() == 172


def test_looking_at_some_images_forgets_none_of_the_others(table, own_tree, image):
    look(table, own_tree)
    Image.fromarray(np.zeros((32, 48, 3), np.uint8)).save(image)
    look(table[table.filename == NAME], own_tree)
    assert "pixels" in audit.known_pixels(table, options(own_tree))


@pytest.fixture
def audited(own_tree, tmp_path, monkeypatch, capsys):
    """Runs data.py --audit on the tree; returns its exit status, what it printed and audit.json."""
    monkeypatch.chdir(tmp_path)

    def call():
        status = data.main(["--audit", f"data.root={own_tree}", f"data.folds={own_tree}/Folds.csv"])
        return status, capsys.readouterr().out, json.loads((tmp_path / "overview" / "audit.json").read_text())

    return call


def test_the_audit_of_a_sound_tree_counts_and_passes(audited):
    status, printed, found = audited()
    assert (status, found["errors"]) == (0, {})
    counts = [found[key] for key in ("rows", "images", "folders", "slides", "patients")]
    assert counts == [19 * 4 * 5, 19 * 4, 19, 19, 17]
    assert found["images_by_rows"] == {"5": 76} and found["images_by_size"] == {"48 x 32": 76}
    assert len(found["data_sha256"]) == 64 and "errors, which training refuses: 0" in printed


@pytest.mark.parametrize("spoil, words", [
    (cut, "is cut short or damaged"),
    (os.remove, "is missing"),
    (lambda path: path.write_bytes(b""), "is empty"),
    (lambda path: Image.open(path).convert("RGBA").save(path), "is RGBA of 8 bits a channel, needed is RGB of 8"),
    (lambda path: Image.open(path).convert("L").save(path), "is grey of 8 bits"),
    (lambda path: Image.fromarray(np.zeros((32, 48), np.uint16)).save(path), "is grey of 16 bits"),
    (lambda path: write_16_bit_rgb(path), "is RGB of 16 bits"),
])  # fmt: skip
def test_what_training_cannot_use_is_an_error_of_the_audit_and_of_training(
    audited, table, own_tree, image, spoil, words
):
    spoil(image)
    status, printed, found = audited()
    assert status == 1 and list(found["errors"]) == [NAME] and words in found["errors"][NAME]
    assert f"error: {NAME} {words}" in printed and found["data_sha256"] == ""
    with pytest.raises(InputError, match=words):
        look(table, own_tree)


def write_16_bit_rgb(path):
    path.write_bytes(tf.io.encode_png(np.zeros((32, 48, 3), np.uint16)).numpy())


def test_oddities_are_warnings(audited, own_tree, image, tmp_path):
    other = next(own_tree.rglob("SOB_B_A-14-102-40-001.png"))
    shutil.copy(image, other)
    (image.parent / "notes.txt").write_text("a stray one")
    dark = next(own_tree.rglob("SOB_B_F-14-103-100-001.png"))
    Image.fromarray(np.zeros((32, 48, 3), np.uint8)).save(dark)
    status, printed, found = audited()
    warnings = found["warnings"]
    assert status == 0 and found["errors"] == {}
    assert warnings["equal pixels under several names"] == [[NAME, other.name]]
    assert [Path(path).name for path in warnings["file that no row names"]] == ["notes.txt"]
    assert dark.name in warnings["brightness outlier"] and dark.name in warnings["sharpness outlier"]
    assert f"{NAME} = {other.name}" in printed
    assert (tmp_path / "overview" / "suspicious.png").is_file()


def test_equal_pixels_under_both_labels_are_an_error(audited, own_tree, image):
    shutil.copy(image, next(own_tree.rglob("SOB_M_LC-14-204-40-001.png")))
    status, _, found = audited()
    assert status == 1 and set(found["errors"]) == {NAME, "SOB_M_LC-14-204-40-001.png"}


def test_repeats_other_than_five_are_named(audited, own_tree):
    rows = pd.read_csv(own_tree / "Folds.csv")
    rows.iloc[1:].to_csv(own_tree / "Folds.csv", index=False)
    _, _, found = audited()
    assert found["warnings"]["rows other than five"] == [NAME] and found["images_by_rows"] == {"4": 1, "5": 75}


def test_the_audit_of_the_real_sample_finds_its_oddities_alone(real_sample, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table = data.read_folds(real_sample / "Folds.csv")
    folder = audit.image_folder(real_sample)
    found = audit.report(table, audit.inspect(table.path.unique(), folder, tmp_path / "store.csv"), folder)
    assert (found["errors"], found["images"], found["slides"]) == ({}, 172, 25)
    assert set(found["images_by_size"]) == {"700 x 460", "700 x 456"}
    assert [line.split(":")[0] for line in found["warnings"]["slide in several subtype folders"]] == ["14-13412"]


def test_on_the_real_sample_22549_never_parts_and_a_copy_is_caught(real_sample, tmp_path):
    """An image of 14-22549AB copied under a name of another patient joins the two."""
    root = tmp_path / "sample"
    shutil.copytree(real_sample, root)
    original = next(root.rglob("SOB_B_A-14-22549AB-*.png"))
    copy = next(root.rglob("SOB_B_F-*.png"))
    copy.chmod(0o644)
    shutil.copyfile(original, copy)
    table = look(data.read_folds(root / "Folds.csv"), root)
    twin = table[table.filename.isin([original.name, copy.name])]
    assert twin.pixels.nunique() == 1
    for seed in range(10):
        parts = splits.split(table, options(root, protocol="patient", test_per_class=10, seed=seed))
        used = parts[parts.set != "unused"]
        assert used[used.patient == "14-22549"].set.nunique() <= 1
        assert used[used.patient.isin(["14-22549", twin.patient.iloc[-1]])].set.nunique() <= 1


def test_a_folder_of_images_outside_of_the_root_is_refused(table, own_tree, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "BreaKHis_v1").symlink_to(own_tree / "BreaKHis_v1")
    for call in (lambda: audit.image_folder(tmp_path / "mine"), lambda: look(table, tmp_path / "mine")):
        with pytest.raises(InputError, match="data.root: .*mine/BreaKHis_v1.* leads out of .*mine by a link"):
            call()


def test_a_root_that_is_a_link_and_links_within_it_are_followed(own_tree, tmp_path):
    (tmp_path / "linked").symlink_to(own_tree)
    shutil.move(own_tree / "BreaKHis_v1", own_tree / "unpacked")
    (own_tree / "BreaKHis_v1").symlink_to("unpacked")
    assert audit.image_folder(tmp_path / "linked") == tmp_path / "linked" / "BreaKHis_v1/histology_slides/breast"


def test_a_image_in_a_folder_that_leads_out_is_not_shown(own_tree, image, tmp_path):
    folder = audit.image_folder(own_tree)
    path = image.relative_to(folder).as_posix()
    assert audit.read_rgb(folder, path).shape == (32, 48, 3)
    shutil.move(image.parent, tmp_path / "outside")
    image.parent.symlink_to(tmp_path / "outside")
    with pytest.raises(DataError, match="is a link that leads out"):
        audit.read_rgb(folder, path)


def test_a_missing_image_that_takes_no_part_stops_nothing(table, own_tree, tmp_path, capsys):
    next(own_tree.rglob("*-400-*.png")).unlink()
    rows, dropped = audit.usable(table, options(own_tree, magnification=40))
    assert set(rows.mag) == {40} and rows.pixels.str.len().eq(64).all() and dropped == {}
    with pytest.raises(DataError, match="(?s)1 of 76 images .*is missing"):
        audit.usable(table, options(own_tree))
    told = [
        f"data.root={own_tree}",
        f"data.folds={own_tree}/Folds.csv",
        "data.magnification=40",
        "data.test_per_class=2",
    ]
    data.main([*told, "--split", str(tmp_path / "split.csv")])
    assert "not known yet" not in capsys.readouterr().out


def test_no_more_images_are_open_at_once_than_memory_allows(table, own_tree, monkeypatch):
    pools = []
    pool = audit.ThreadPoolExecutor
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(audit, "ThreadPoolExecutor", lambda count: pools.append(count) or pool(count))
    look(table, own_tree)
    assert pools == [audit.READERS] and audit.READERS <= 8
