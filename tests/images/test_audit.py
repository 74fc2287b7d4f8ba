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
from tiny_tree import tiny_settings

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


def inspect(table, root):
    return audit.with_pixels(table, options(root))


def test_equal_pixels_are_found_in_files_that_differ(table, own_tree, image):
    other = next(own_tree.rglob("SOB_B_A-14-102-40-001.png"))
    Image.open(image).save(other, compress_level=1)
    assert other.read_bytes() != image.read_bytes()
    pixels = inspect(table, own_tree).groupby("filename").pixels.first()
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
    (lambda path: path.write_bytes(b"no image at all"), f"{NAME} is not a PNG"),
    (lambda path: Image.open(path).save(path, format="JPEG"), f"{NAME} is not a PNG"),
    (cut, f"{NAME} is cut short or damaged"),
    (lambda path: path.write_bytes(path.read_bytes()[:-1]), f"{NAME} is cut short or damaged"),
    (lambda path: path.write_bytes(path.read_bytes()[:-12]), f"{NAME} is cut short or damaged"),
    (lambda path: write_huge_header(path), f"{NAME} must have at most 5000000 pixels, got 20000 x 20000"),
    (damage, f"{NAME} is cut short or damaged"),
    (os.remove, f"{NAME} is missing"),
])  # fmt: skip
def test_a_broken_image_is_named_and_not_cached(table, own_tree, image, spoil, words):
    spoil(image)
    with pytest.raises(InputError, match=f"(?s)1 of .*{re.escape(words)}"):
        inspect(table, own_tree)
    cached = pd.read_csv(audit.findings_path(options(own_tree)), keep_default_na=False)
    assert len(cached) == table.filename.nunique() - 1 and not cached.error.any()


def write_huge_header(path):
    """A small file whose header claims 400 million pixels."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 20000, 20000, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b""))


@pytest.mark.parametrize("content", [b"", b"\xff\x00\xfe", b"path\n1,2,3\n4\n", b"path,bytes\n"])
def test_with_damaged_findings_all_images_are_inspected_again(table, own_tree, content):
    first = inspect(table, own_tree)
    audit.findings_path(options(own_tree)).write_bytes(content)
    assert inspect(table, own_tree).equals(first)


@pytest.mark.parametrize("forge", [
    lambda cached: pd.concat([cached, cached]),
    lambda cached: cached.assign(pixels="../elsewhere"),
    lambda cached: cached.assign(error="is odd"),
    lambda cached: cached.assign(brightness="bright"),
])  # fmt: skip
def test_with_forged_findings_all_images_are_inspected_again(table, own_tree, forge):
    first, store = inspect(table, own_tree), audit.findings_path(options(own_tree))
    forge(pd.read_csv(store, keep_default_na=False)).to_csv(store, index=False)
    assert inspect(table, own_tree).equals(first)


def test_cached_findings_are_not_used_after_an_image_became_a_link_out_of_the_root(table, own_tree, image, tmp_path):
    inspect(table, own_tree)
    shutil.move(image, tmp_path / "outside.png")
    image.symlink_to(tmp_path / "outside.png")
    assert "pixels" not in audit.known_pixels(table, options(own_tree))
    with pytest.raises(DataError, match="is a link that leads out"):
        inspect(table, own_tree)


def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(table, own_tree, image, monkeypatch):
    monkeypatch.setattr(png, "MAX_PIXELS", 48 * 32 - 1)
    monkeypatch.setattr(tf.io, "decode_png", lambda *args, **options: pytest.fail("decoded"))
    with pytest.raises(InputError, match="must have at most 1535 pixels, got 48 x 32"):
        inspect(table, own_tree)


def test_images_are_opened_once_and_again_when_they_change(table, own_tree, image, monkeypatch):
    first = inspect(table, own_tree)
    opened = []
    inspect_one = audit._inspect_one
    monkeypatch.setattr(audit, "_inspect_one", lambda folder, path: opened.append(path) or inspect_one(folder, path))
    assert inspect(table, own_tree).pixels.equals(first.pixels) and opened == []
    Image.fromarray(np.zeros((32, 48, 3), np.uint8)).save(image)
    assert not inspect(table, own_tree).pixels.equals(first.pixels)
    assert [os.path.basename(path) for path in opened] == [NAME]


def test_known_pixels_opens_no_image_and_ignores_findings_of_changed_ones(table, own_tree, image, monkeypatch):
    assert "pixels" not in audit.known_pixels(table, options(own_tree))
    first = inspect(table, own_tree)
    monkeypatch.setattr(audit, "_inspect_one", lambda folder, path: pytest.fail("opened"))
    assert audit.known_pixels(table, options(own_tree)).equals(first)
    os.utime(image, ns=(1, 1))
    assert "pixels" not in audit.known_pixels(table, options(own_tree))
    assert "pixels" not in audit.known_pixels(table, options(own_tree, root="nowhere"))
    assert "pixels" not in audit.known_pixels(
        table, options(own_tree, root=own_tree / "BreaKHis_v1" / "histology_slides" / "breast" / "benign")
    )


def test_findings_in_the_folder_of_the_images_are_ignored(table, own_tree, image, tmp_path):
    """They would hide a broken image, and put its features under the name of another one."""
    inspect(table, own_tree)
    forged = pd.read_csv(audit.findings_path(options(own_tree)), keep_default_na=False)
    os.remove(audit.findings_path(options(own_tree)))
    forged.to_csv(own_tree / "Folds.pixels.csv", index=False)
    times = (image.stat().st_atime_ns, image.stat().st_mtime_ns)
    image.write_bytes(bytes(image.stat().st_size))
    os.utime(image, ns=times)
    with pytest.raises(InputError, match="is not a PNG"):
        inspect(table, own_tree)
    assert audit.findings_path(options(own_tree)).parts[0] == "cache"


def test_the_data_version_depends_on_the_pixels_and_not_on_the_folder(table, own_tree, image, tmp_path):
    version = audit.data_version(inspect(table, own_tree))
    moved = tmp_path / "moved"
    shutil.copytree(own_tree, moved)
    assert audit.data_version(inspect(table, moved)) == version
    Image.fromarray(np.zeros((32, 48, 3), np.uint8)).save(image)
    assert audit.data_version(inspect(table, own_tree)) != version


@pytest.mark.parametrize("place", ["nowhere", "."])
def test_the_message_about_a_root_without_images_names_a_way_out(tmp_path, place):
    with pytest.raises(InputError, match="data.root: .*make train.*make real"):
        audit.image_folder(tmp_path / place)


def test_real_images_are_all_read(real_sample, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table = inspect(data.read_folds(real_sample / "Folds.csv"), real_sample)
    assert table.filename.nunique() == table.pixels.nunique() == 172


def test_inspecting_some_images_keeps_the_findings_of_the_others(table, own_tree, image):
    inspect(table, own_tree)
    Image.fromarray(np.zeros((32, 48, 3), np.uint8)).save(image)
    inspect(table[table.filename == NAME], own_tree)
    assert "pixels" in audit.known_pixels(table, options(own_tree))


@pytest.fixture
def audited(own_tree, tmp_path, monkeypatch, capsys):
    """Runs data.py --audit; returns its exit status, its output and audit.json."""
    monkeypatch.chdir(tmp_path)

    def call():
        status = data.main(["--audit", f"data.root={own_tree}", f"data.folds={own_tree}/Folds.csv"])
        return status, capsys.readouterr().out, json.loads((tmp_path / "overview" / "audit.json").read_text())

    return call


def test_the_audit_of_a_valid_data_set_counts_and_passes(audited):
    status, printed, report = audited()
    assert (status, report["errors"]) == (0, {})
    counts = [report[key] for key in ("rows", "images", "folders", "slides", "patients")]
    assert counts == [19 * 4 * 5, 19 * 4, 19, 19, 17]
    assert report["images_by_rows"] == {"5": 76} and report["images_by_size"] == {"48 x 32": 76}
    assert len(report["data_sha256"]) == 64 and "errors, which training refuses: 0" in printed


@pytest.mark.parametrize("spoil, words", [
    (cut, "is cut short or damaged"),
    (os.remove, "is missing"),
    (lambda path: path.write_bytes(b""), "is empty"),
    (lambda path: Image.open(path).convert("RGBA").save(path), "must be RGB of 8 bits per channel, got RGBA of 8"),
    (lambda path: Image.open(path).convert("L").save(path), "per channel, got grey of 8"),
    (lambda path: Image.fromarray(np.zeros((32, 48), np.uint16)).save(path), "per channel, got grey of 16"),
    (lambda path: write_16_bit_rgb(path), "per channel, got RGB of 16"),
])  # fmt: skip
def test_what_training_cannot_use_is_an_error_of_the_audit_and_of_training(
    audited, table, own_tree, image, spoil, words
):
    spoil(image)
    status, printed, report = audited()
    assert status == 1 and list(report["errors"]) == [NAME] and words in report["errors"][NAME]
    assert f"error: {NAME} " in printed and words in printed and report["data_sha256"] == ""
    with pytest.raises(InputError, match=words):
        inspect(table, own_tree)


def write_16_bit_rgb(path):
    path.write_bytes(tf.io.encode_png(np.zeros((32, 48, 3), np.uint16)).numpy())


def test_unusual_images_are_warnings(audited, own_tree, image, tmp_path):
    other = next(own_tree.rglob("SOB_B_A-14-102-40-001.png"))
    shutil.copy(image, other)
    (image.parent / "notes.txt").write_text("a stray one")
    dark = next(own_tree.rglob("SOB_B_F-14-103-100-001.png"))
    Image.fromarray(np.zeros((32, 48, 3), np.uint8)).save(dark)
    status, printed, report = audited()
    warnings = report["warnings"]
    assert status == 0 and report["errors"] == {}
    assert warnings["equal pixels under several names"] == [[NAME, other.name]]
    assert [Path(path).name for path in warnings["file that no row names"]] == ["notes.txt"]
    assert dark.name in warnings["brightness outlier"] and dark.name in warnings["sharpness outlier"]
    assert f"{NAME} = {other.name}" in printed
    assert (tmp_path / "overview" / "suspicious.png").is_file()


def test_equal_pixels_under_both_labels_are_an_error(audited, own_tree, image):
    shutil.copy(image, next(own_tree.rglob("SOB_M_LC-14-204-40-001.png")))
    status, _, report = audited()
    assert status == 1 and set(report["errors"]) == {NAME, "SOB_M_LC-14-204-40-001.png"}


def test_repeats_other_than_five_are_named(audited, own_tree):
    rows = pd.read_csv(own_tree / "Folds.csv")
    rows.iloc[1:].to_csv(own_tree / "Folds.csv", index=False)
    _, _, report = audited()
    assert report["warnings"]["rows other than five"] == [NAME] and report["images_by_rows"] == {"4": 1, "5": 75}


def test_the_audit_of_the_real_sample_warns_of_nothing_but_13412_in_two_folders(real_sample, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table = data.read_folds(real_sample / "Folds.csv")
    folder = audit.image_folder(real_sample)
    report = audit.report(table, audit.inspect(table.path.unique(), folder, tmp_path / "store.csv"), folder)
    assert (report["errors"], report["images"], report["slides"]) == ({}, 172, 25)
    assert set(report["images_by_size"]) == {"700 x 460", "700 x 456"}
    assert [line.split(":")[0] for line in report["warnings"]["slide in several subtype folders"]] == ["14-13412"]


def test_on_the_real_sample_22549_and_the_patient_of_a_copied_image_stay_together(real_sample, tmp_path):
    """An image of 14-22549AB is copied to a name of another patient, so both patients must be in one set."""
    root = tmp_path / "sample"
    shutil.copytree(real_sample, root)
    original = next(root.rglob("SOB_B_A-14-22549AB-*.png"))
    copy = next(root.rglob("SOB_B_F-*.png"))
    copy.chmod(0o644)
    shutil.copyfile(original, copy)
    table = inspect(data.read_folds(root / "Folds.csv"), root)
    twin = table[table.filename.isin([original.name, copy.name])]
    assert twin.pixels.nunique() == 1
    for seed in range(10):
        parts = splits.split(table, options(root, protocol="patient", test_per_class=10, seed=seed))
        used = parts[parts.set != "unused"]
        assert used[used.patient == "14-22549"].set.nunique() <= 1
        assert used[used.patient.isin(["14-22549", twin.patient.iloc[-1]])].set.nunique() <= 1


def test_a_folder_of_images_that_a_link_puts_outside_the_root_is_refused(table, own_tree, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "BreaKHis_v1").symlink_to(own_tree / "BreaKHis_v1")
    for call in (lambda: audit.image_folder(tmp_path / "mine"), lambda: inspect(table, tmp_path / "mine")):
        with pytest.raises(InputError, match="data.root: .*mine/BreaKHis_v1.* leads out of .*mine by a link"):
            call()


def test_a_root_that_is_a_link_and_links_within_it_are_followed(own_tree, tmp_path):
    (tmp_path / "linked").symlink_to(own_tree)
    shutil.move(own_tree / "BreaKHis_v1", own_tree / "unpacked")
    (own_tree / "BreaKHis_v1").symlink_to("unpacked")
    assert audit.image_folder(tmp_path / "linked") == tmp_path / "linked" / "BreaKHis_v1/histology_slides/breast"


def test_an_image_behind_a_link_out_of_the_root_is_not_read(own_tree, image, tmp_path):
    folder = audit.image_folder(own_tree)
    path = image.relative_to(folder).as_posix()
    assert audit.read_rgb(folder, path).shape == (32, 48, 3)
    shutil.move(image.parent, tmp_path / "outside")
    image.parent.symlink_to(tmp_path / "outside")
    with pytest.raises(DataError, match="is a link that leads out"):
        audit.read_rgb(folder, path)


def test_a_missing_image_of_another_magnification_is_ignored(table, own_tree, tmp_path, capsys):
    next(own_tree.rglob("*-400-*.png")).unlink()
    settings = options(own_tree, magnification=40)
    rows, dropped = audit.usable_rows(splits.select(table, settings), settings)
    assert set(rows.mag) == {40} and rows.pixels.str.len().eq(64).all() and dropped == {}
    with pytest.raises(DataError, match="(?s)1 of 76 images .*is missing"):
        audit.usable_rows(table, options(own_tree))
    arguments = [
        f"data.root={own_tree}",
        f"data.folds={own_tree}/Folds.csv",
        "data.magnification=40",
        "data.test_per_class=2",
    ]
    data.main([*arguments, "--split", str(tmp_path / "split.csv")])
    assert "not known yet" not in capsys.readouterr().out


def test_no_more_images_are_open_at_once_than_memory_allows(table, own_tree, monkeypatch):
    pools = []
    pool = audit.ThreadPoolExecutor
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(audit, "ThreadPoolExecutor", lambda count: pools.append(count) or pool(count))
    inspect(table, own_tree)
    assert pools == [audit.READERS] and audit.READERS <= 8


def test_a_missing_data_set_is_named_before_anything_is_printed(own_tree, capsys):
    with pytest.raises(InputError, match="data.root: must be a folder"):
        data.main([*tiny_settings(own_tree), "data.root=nothing"])
    assert capsys.readouterr() == ("", "")
