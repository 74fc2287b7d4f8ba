import os
import subprocess
import sys
from pathlib import Path

import pytest

import config
from safety import atomic_files

ROOT = Path(config.__file__).parent


def test_the_longest_names_that_a_file_system_accepts_can_be_written(tmp_path):
    for name in ("a" * 250 + ".csv", "\N{MICROSCOPE}" * 60 + ".png", "a." + "b" * 252):
        atomic_files.write_text(tmp_path / name, "text")
        assert (tmp_path / name).read_text() == "text"
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("name", ["best_model.keras", "state.npz", "a.pixels.csv"])
def test_the_temporary_name_has_the_process_number_and_the_suffix(tmp_path, name):
    with atomic_files.replacing(tmp_path / name) as temporary:
        temporary.touch()
        assert temporary.match(f".{os.getpid()}.*") and temporary.suffix == Path(name).suffix


def test_two_files_can_be_written_at_once(tmp_path):
    with atomic_files.replacing(tmp_path / "a.csv") as first, atomic_files.replacing(tmp_path / "b.csv") as second:
        first.write_text("a")
        second.write_text("b")
    assert [(tmp_path / name).read_text() for name in ("a.csv", "b.csv")] == ["a", "b"]


def test_write_out_follows_a_link_and_write_text_replaces_it(tmp_path):
    (tmp_path / "target.csv").write_text("old")
    (tmp_path / "link.csv").symlink_to("target.csv")
    atomic_files.write_out(str(tmp_path / "link.csv"), "new")
    assert (tmp_path / "link.csv").is_symlink() and (tmp_path / "target.csv").read_text() == "new"
    atomic_files.write_text(tmp_path / "link.csv", "other")
    assert not (tmp_path / "link.csv").is_symlink() and (tmp_path / "target.csv").read_text() == "new"


@pytest.mark.parametrize("name", atomic_files.STDOUT)
def test_standard_output_redirected_to_a_file_is_appended_to(tmp_path, name):
    code = f"from safety import atomic_files; print('first'); atomic_files.write_out({name!r}, 'second\\n'); print('third')"
    with (tmp_path / "out.csv").open("w") as out:
        subprocess.run([sys.executable, "-c", code], stdout=out, cwd=ROOT, check=True)
    assert (tmp_path / "out.csv").read_text() == "first\nsecond\nthird\n"


def test_a_pipe_is_written_to_and_stays_one(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    atomic_files.write_out(str(tmp_path / "pipe"), "text")
    assert os.read(reader, 10) == b"text" and (tmp_path / "pipe").is_fifo()
    os.close(reader)


def test_characters_that_are_not_unicode_are_escaped(tmp_path):
    atomic_files.write_text(tmp_path / "a.txt", "a\udcffü")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "a\\udcffü"
