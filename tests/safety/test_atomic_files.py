import os
import subprocess
import sys
from pathlib import Path

import pytest

import config
from safety import atomic_files

ROOT = Path(config.__file__).parent


def test_a_name_as_long_as_a_file_system_takes_is_written(tmp_path):
    for name in ("a" * 250 + ".csv", "\N{MICROSCOPE}" * 60 + ".png", "a." + "b" * 252):
        atomic_files.write_text(tmp_path / name, "text")
        assert (tmp_path / name).read_text() == "text"
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("name", ["best_model.keras", "state.npz", "a.pixels.csv"])
def test_the_name_beside_is_known_by_its_process_and_its_suffix(tmp_path, name):
    with atomic_files.replacing(tmp_path / name) as beside:
        beside.touch()
        assert beside.match(f".{os.getpid()}.*") and beside.suffix == Path(name).suffix


def test_two_files_are_written_at_once(tmp_path):
    with atomic_files.replacing(tmp_path / "a.csv") as first, atomic_files.replacing(tmp_path / "b.csv") as second:
        first.write_text("a")
        second.write_text("b")
    assert [(tmp_path / name).read_text() for name in ("a.csv", "b.csv")] == ["a", "b"]


def test_the_user_writes_through_a_link_and_a_run_does_not(tmp_path):
    (tmp_path / "target.csv").write_text("old")
    (tmp_path / "link.csv").symlink_to("target.csv")
    atomic_files.write_out(str(tmp_path / "link.csv"), "new")
    assert (tmp_path / "link.csv").is_symlink() and (tmp_path / "target.csv").read_text() == "new"
    atomic_files.write_text(tmp_path / "link.csv", "other")
    assert not (tmp_path / "link.csv").is_symlink() and (tmp_path / "target.csv").read_text() == "new"


@pytest.mark.parametrize("name", atomic_files.STDOUT)
def test_standard_output_by_name_is_written_on_where_it_goes_into_a_file(tmp_path, name):
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


def test_what_is_no_unicode_is_escaped(tmp_path):
    atomic_files.write_text(tmp_path / "a.txt", "a\udcffü")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "a\\udcffü"
