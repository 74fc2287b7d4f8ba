import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import config
import data
from features.store import Store
from images import plot_style
from safety import atomic_files, command_line, errors

ROOT = Path(config.__file__).parent
FULL = r"error: {}: cannot be written or read: No space left on device; [0-9]+\.[0-9] MiB are free there\n"


@pytest.fixture
def full_disk(monkeypatch):
    def full(number):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)


def message(capsys, write):
    with pytest.raises(SystemExit) as ended:
        command_line.run(lambda arguments: write())
    assert ended.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("path, write", [
    ("new/a.csv", lambda path: atomic_files.write_text(path, "text")),
    ("out.csv", lambda path: atomic_files.write_out(path, "text")),
    ("a.png", lambda path: plot_style.save(plot_style.plt.figure(), Path(path))),
    ("store/arrays.bin", lambda path: Store(Path(path).parent, (2,), np.float32).add(["a"], np.ones((1, 2)))),
])  # fmt: skip
def test_a_full_disk_is_one_line_with_the_path_and_the_free_space(full_disk, capsys, tmp_path, path, write):
    assert re.fullmatch(FULL.format(f".*{path}"), message(capsys, lambda: write(str(tmp_path / path))))


def test_a_device_that_is_full_is_named(capsys):
    assert re.fullmatch(FULL.format("/dev/full"), message(capsys, lambda: atomic_files.write_out("/dev/full", "text")))


@pytest.mark.parametrize("arguments, words", [
    (["--audit", "--augmented"], "argument --augmented: not allowed with argument --audit; see --help"),
    (["--split", "a.csv", "--audit"], "argument --audit: not allowed with argument --split; see --help"),
    (["--check", "a.csv", "--split", "b.csv"], "argument --split: not allowed with argument --check; see --help"),
    (["--check"], "needed is --check FILE, got no FILE; see --help"),
    (["--split", "--out", "a"], "needed is --split FILE, got no FILE; see --help"),
])  # fmt: skip
def test_one_mode_of_data_py_at_a_time_with_its_file(arguments, words):
    with pytest.raises(errors.InputError, match=f"^{words}$"):
        data.main(arguments)


@pytest.mark.parametrize("flush", [True, False])
def test_standard_output_on_a_full_disk_is_one_line(flush):
    code = f"from safety import command_line; command_line.run(lambda arguments: print('text', flush={flush}))"
    with open("/dev/full", "w") as full:
        result = subprocess.run([sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert result.returncode == 2 and re.fullmatch(FULL.format("standard output"), result.stderr)


def test_an_error_elsewhere_in_the_block_keeps_its_own_file(tmp_path):
    with pytest.raises(FileNotFoundError) as raised, errors.naming(tmp_path / "a"):
        (tmp_path / "b").read_text()
    assert raised.value.filename == str(tmp_path / "b")
