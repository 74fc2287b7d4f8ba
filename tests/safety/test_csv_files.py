import io
import os

import pandas as pd
import pytest

from safety import csv_files
from safety.errors import InputError

HEAD = b"fold,mag,grp,filename\n"


@pytest.mark.parametrize("content, words", [
    (HEAD + b"1,40,train," + b"a" * 10**6, "lines of 4096 bytes, got one of 1000011"),
    (b"a," * 10**6, "lines of 4096 bytes, got one of 2000000"),
    (HEAD + b"1,40,tr\0ain,a.png\n", "holds a NUL byte"),
    ("fold,mag\n".encode("utf-16"), "holds a NUL byte"),
    (HEAD + "1,40,train,\xe9\n".encode("latin-1"), "no CSV in UTF-8"),
    (HEAD + b'1,40,train,"open', "no CSV in UTF-8"),
    (HEAD + b"1,2,3,4,5\n1,2,3,4,5\n", "more fields than its first line names"),
    (b"", "no CSV in UTF-8"),
    (b"a," * 1000 + b"\n" + b"1\n" * 1000, "rows of 50 fields, got one of 1001"),
    (b"\n \na\n" + b"," * 1000 + b"\n1\n", "rows of 50 fields, got one of 1001"),
    (b'"a\n",' * 1000 + b"\n1\n", "rows of 50 fields, got one of 1001"),
    (b'a"b,"c\nd",' * 1000 + b"\n1\n", "rows of 50 fields, got one of 2001"),
    (b"\r" + b"a," * 1000 + b"\r1\r", "rows of 50 fields, got one of 1001"),
    (b'a\n"' + b"a" * 2**17 + b'"\n', "lines of 4096 bytes"),
    (b'a\n"' + b"a\n" * 2**17 + b'"\n', "no CSV in UTF-8: field larger than field limit"),
])  # fmt: skip
def test_what_is_no_table_is_refused(tmp_path, content, words):
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(InputError, match=words):
        csv_files.read(tmp_path / "a.csv")


def test_a_giant_is_refused_before_it_is_read(tmp_path):
    (tmp_path / "a.csv").touch()
    os.truncate(tmp_path / "a.csv", 2**40)
    with pytest.raises(InputError, match="allowed are 16777216 bytes, got 1099511627776"):
        csv_files.read(tmp_path / "a.csv")


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.csv")
    with pytest.raises(InputError, match="is no regular file"):
        csv_files.read(tmp_path / "a.csv")


def test_cells_are_texts_whatever_they_look_like():
    table = csv_files.parse("\ufefffold,name\r\n01,NA\r\n1\r\n".encode(), "a.csv")
    assert table.to_dict("list") == {"fold": ["01", "1"], "name": ["NA", ""]}


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "a\nb", "\x1b[31m", "\udcff", 'a,"b"'])
def test_no_cell_is_a_formula_or_breaks_a_line(text):
    written = pd.DataFrame({"a": [csv_files.spreadsheet_safe(text)]}).to_csv(index=False)
    read = pd.read_csv(io.StringIO(written)).a[0]
    assert written.count("\n") == 2 and read.isprintable() and read[0] not in "=+-@"
