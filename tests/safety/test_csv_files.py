import io
import os

import pandas as pd
import pytest

from safety import csv_files
from safety.errors import InputError

HEAD = b"fold,mag,grp,filename\n"


@pytest.mark.parametrize("content, words", [
    (HEAD + b"1,40,train," + b"a" * 10**6, "at most 4096 bytes, got 1000011"),
    (b"a," * 10**6, "at most 4096 bytes, got 2000000"),
    (HEAD + b"1,40,tr\0ain,a.png\n", "got a NUL byte"),
    ("fold,mag\n".encode("utf-16"), "got a NUL byte"),
    (HEAD + "1,40,train,\xe9\n".encode("latin-1"), "must be a CSV in UTF-8"),
    (HEAD + b'1,40,train,"open', "must be a CSV in UTF-8"),
    (HEAD + b"1,2,3,4,5\n1,2,3,4,5\n", "more fields than the header line"),
    (b"", "must be a CSV in UTF-8"),
    (b"a," * 1000 + b"\n" + b"1\n" * 1000, "at most 50 fields, got 1001"),
    (b"\n \na\n" + b"," * 1000 + b"\n1\n", "at most 50 fields, got 1001"),
    (b'"a\n",' * 1000 + b"\n1\n", "at most 50 fields, got 1001"),
    (b'a"b,"c\nd",' * 1000 + b"\n1\n", "at most 50 fields, got 2001"),
    (b"\r" + b"a," * 1000 + b"\r1\r", "at most 50 fields, got 1001"),
    (b'a\n"' + b"a" * 2**17 + b'"\n', "at most 4096 bytes"),
    (b'a\n"' + b"a\n" * 2**17 + b'"\n', "must be a CSV in UTF-8: field larger than field limit"),
])  # fmt: skip
def test_a_file_that_is_not_a_table_is_refused(tmp_path, content, words):
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(InputError, match=words):
        csv_files.read(tmp_path / "a.csv")


def test_a_file_that_is_too_large_is_refused_before_it_is_read(tmp_path):
    (tmp_path / "a.csv").touch()
    os.truncate(tmp_path / "a.csv", 2**40)
    with pytest.raises(InputError, match="must have at most 16777216 bytes, got 1099511627776"):
        csv_files.read(tmp_path / "a.csv")


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.csv")
    with pytest.raises(InputError, match="must be a regular file"):
        csv_files.read(tmp_path / "a.csv")


def test_all_cells_are_read_as_texts():
    table = csv_files.parse("\ufefffold,name\r\n01,NA\r\n1\r\n".encode(), "a.csv")
    assert table.to_dict("list") == {"fold": ["01", "1"], "name": ["NA", ""]}


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "a\nb", "\x1b[31m", "\udcff", 'a,"b"'])
def test_no_cell_is_a_formula_or_breaks_a_line(text):
    written = pd.DataFrame({"a": [csv_files.spreadsheet_safe(text)]}).to_csv(index=False)
    read = pd.read_csv(io.StringIO(written)).a[0]
    assert written.count("\n") == 2 and read.isprintable() and read[0] not in "=+-@"
