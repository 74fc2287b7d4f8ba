import contextlib
import io
import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from tiny_tree import REAL, fold_rows, write_tree

import config
import data
from images import split_lists
from safety.errors import InputError

NAMES = {"train": "train", "valid": "val", "test": "test"}
ROOT = Path(data.__file__).parent


@pytest.fixture(scope="module")
def listed():
    """Name and set of each image of the tiny tree; slides in turn, so that patients 101 and 203 are on two sides."""
    table = data.describe(fold_rows(images=1).filename.str.rsplit("/", n=1).str[-1].drop_duplicates())
    order = table.slide.factorize()[0] % 4
    return table.assign(set=pd.Series(order, table.index).map({0: "train", 1: "test", 2: "train", 3: "valid"}))


def in_path(listed):
    return "data/" + listed.set.map(NAMES) + "/" + listed.label + "/" + listed.filename


def by_set(listed, end=""):
    return {NAMES[name]: rows.filename.str.replace(".png", end).tolist() for name, rows in listed.groupby("set")}


def records(listed):
    return [{"image": row.path, "label": row.label_int, "split": row.set} for row in listed.itertuples()]


def write_folder(folder, listed, end, header):
    folder.mkdir()
    for name, rows in listed.groupby("set"):
        rows.path.to_csv(folder / f"breakhis_{name}_list{end}", index=False, header=header)
    (folder / "notes.txt").write_text("not a list")
    return folder


TABLES = {
    "csv": lambda t: t[["label", "filename", "set"]].to_csv(index=False),
    "tsv with an index": lambda t: t.assign(subset=t.set.str.upper(), img=t.path)[["img", "subset"]].to_csv(sep="\t"),
    "semicolons and a byte order mark": lambda t: "\ufeff" + t[["path", "set"]].to_csv(sep=";", index=False),
    "pipes without header": lambda t: t.assign(one=1)[["filename", "mag", "one", "set"]].to_csv(sep="|", index=False, header=False),
    "codes": lambda t: t.assign(split=t.set.map({"train": 0, "valid": 1, "test": 2}))[["filename", "label_int", "split"]].to_csv(index=False),
    "sets in paths": lambda t: in_path(t).to_csv(index=False, header=["images"]),
    "paths alone": lambda t: "\n".join("C:\\" + in_path(t).str.replace("/", "\\")) + "\n",
    "a name and a class a line": lambda t: "\n".join(in_path(t) + " " + t.label_int.astype(str)),
}  # fmt: skip
JSONS = {
    "sets": lambda t: by_set(t, end=""),
    "keys with sets": lambda t: {f"{name}_images": names for name, names in by_set(t, ".png").items()} | {"seed": 1},
    "images and labels": lambda t: {name: {"images": names, "labels": [0] * len(names)} for name, names in by_set(t).items()},
    "records": records,
    "records by set": lambda t: {name: [{"file": name} for name in names] for name, names in by_set(t).items()},
    "columns": lambda t: {"file": t.filename.tolist(), "set": t.set.tolist()},
    "pandas": lambda t: json.loads(t[["path", "set"]].to_json()),
    "set of each name": lambda t: dict(zip(t.filename, t.set)),
    "record of each name": lambda t: {row["image"]: {"label": row["label"], "split": row["split"]} for row in records(t)},
    "nested": lambda t: {"meta": {"names": ["a"]}, "splits": {"train": {"benign": by_set(t[t.label == "benign"])["train"], "malignant": by_set(t[t.label != "benign"])["train"]}, "val": by_set(t)["val"], "test": by_set(t)["test"]}},
}  # fmt: skip


@pytest.fixture
def write(tmp_path, listed):
    def write(kind):
        if kind in TABLES:
            path = tmp_path / "list.txt"
            path.write_text(TABLES[kind](listed), encoding="utf-8")
        elif kind in JSONS:
            path = tmp_path / "list.json"
            path.write_text(json.dumps(JSONS[kind](listed)))
        elif kind == "folder of JSON":
            path = tmp_path / "lists"
            path.mkdir()
            for name, names in by_set(listed).items():
                (path / f"{name}.json").write_text(json.dumps(names))
        else:
            end, header = (".csv", True) if "CSV" in kind else (".txt", False)
            path = write_folder(tmp_path / "lists", listed, end, header)
        return path

    return write


@pytest.mark.parametrize("kind", [*TABLES, *JSONS, "folder of CSV", "folder of text", "folder of JSON"])
def test_every_format_gives_each_image_its_set(kind, write, listed, capsys):
    path = write(kind)
    found = split_lists.read(path)
    names = found.value.str.extract(r"(SOB_[^/\\ ]*-(?:40|100|200|400)-\d{3})")[0] + ".png"
    assert dict(zip(names, found.set)) == dict(zip(listed.filename, listed.set)) and len(found) == len(listed)
    assert data.main(["--check", str(path)]) == 0
    test, train = (listed[listed.set == name] for name in ("test", "train"))
    share = test.patient.isin(train.patient).mean()
    out = capsys.readouterr().out
    assert 0 < share < 1 and f"0.0% their image, 0.0% their slide, {share:.1%} their patient" in out
    assert "may be of the same patient" in out


@pytest.mark.parametrize("kind, status", [("csv", 1), ("sets in paths", 1), ("sets", 1)])
def test_an_image_that_is_also_trained_with_gives_status_1(kind, status, tmp_path, listed, capsys):
    twice = pd.concat([listed, listed[listed.set == "test"].head(3).assign(set="train")])
    text = TABLES[kind](twice) if kind in TABLES else json.dumps(JSONS[kind](twice))
    path = tmp_path / ("list.csv" if kind in TABLES else "list.json")
    path.write_text(text)
    assert data.main(["--check", str(path)]) == status
    share = 3 / (listed.set == "test").sum()
    assert f"{share:.1%} their image" in capsys.readouterr().out


def test_equal_pixels_are_found_if_an_earlier_audit_knows_them(tmp_path, listed, capsys):
    rows = fold_rows(images=1)
    write_tree(tmp_path / "tree", rows)
    folder = tmp_path / "tree" / "BreaKHis_v1" / "histology_slides" / "breast"
    test, train = (listed[(listed.set == name) & (listed.label == "benign")].path.iloc[0] for name in ("test", "train"))
    (folder / test).write_bytes((folder / train).read_bytes())
    path = tmp_path / "list.csv"
    path.write_text(TABLES["csv"](listed))
    line = ["--check", str(path), f"data.root={tmp_path / 'tree'}"]
    assert data.main(line) == 0
    data.main(["--audit", f"data.root={tmp_path / 'tree'}", f"data.folds={tmp_path / 'tree' / 'Folds.csv'}"])
    capsys.readouterr()
    assert data.main(line) == 1
    assert f"{1 / (listed.set == 'test').sum():.1%} their image" in capsys.readouterr().out


def test_the_official_folds_share_what_is_known_of_them(full_table, capsys):
    assert data.main(["--check", str(REAL / "Folds.csv")]) == 0
    out = capsys.readouterr().out
    shares = [line.split(",")[-1].split("%")[0].strip() for line in out.splitlines() if "their patient)" in line]
    assert shares == ["39.4", "28.0", "27.0", "31.0", "32.4"]
    assert out.count("14-13412") == 3 and "Of 5 splits 0 have test images that stand in training" in out


def test_a_list_of_rows_shares_all_its_images(full_table, tmp_path, capsys):
    thesis = ["--config", str(ROOT / "thesis.yaml"), f"data.folds={REAL / 'Folds.csv'}"]
    data.main(["--split", "rows.csv", *thesis])
    assert data.main(["--check", "rows.csv"]) == 1
    assert "100.0% their image" in capsys.readouterr().out


def test_folds_without_sets_are_tested_in_turn_in_each_repeat(tmp_path, listed):
    folds = pd.Series(listed.patient.factorize()[0] % 3, listed.index)
    first = listed.assign(fold=folds, repeat=1)
    second = listed.assign(fold=(folds + 1) % 3, repeat=2)
    path = tmp_path / "folds.csv"
    pd.concat([first, second])[["filename", "repeat", "fold"]].to_csv(path, index=False)
    found = split_lists.read(path)
    assert found.split.unique().tolist() == [f"repeat {repeat}, fold {fold}" for repeat in (1, 2) for fold in (0, 1, 2)]
    for title, rows in found.groupby("split"):
        frame = first if "repeat 1" in title else second
        assert sorted(rows.value) == sorted(listed.filename)
        assert set(rows.value[rows.set == "test"]) == set(frame.filename[frame.fold == int(title[-1])])
    assert data.main(["--check", str(path)]) == 0


def test_several_columns_of_sets_are_splits_of_their_own(tmp_path, listed):
    path = tmp_path / "list.csv"
    turned = listed.set.map({"train": "test", "test": "train", "valid": "valid"})
    listed.assign(a=listed.set, b=turned)[["filename", "a", "b"]].to_csv(path, index=False)
    found = split_lists.read(path)
    assert [rows.set.tolist() for _, rows in found.groupby("split")] == [listed.set.tolist(), turned.tolist()]


@pytest.mark.parametrize("spelling", ["{folder}", "{dashes}", "{slide}"])
def test_slides_stand_for_their_images(spelling, tree, tmp_path, listed, capsys):
    folders = listed.path.str.split("/").str[3]
    names = [
        spelling.format(folder=folder, dashes=folder.replace("_14-", "-14-").replace("_15-", "-15-"), slide=slide)
        for folder, slide in zip(folders, listed.slide)
    ]
    slides = listed.assign(name=names).drop_duplicates("name")
    held, rest = slides[slides.set == "test"].name.tolist(), slides[slides.set != "test"].name.tolist()
    path = tmp_path / "slides.json"
    folds = [
        {"fold": number, "train_patients": rest[number::2], "val_patients": rest[1 - number :: 2]} for number in (0, 1)
    ]
    path.write_text(json.dumps({"test_patients": held, "folds": folds, "meta": {held[0]: {"label": 1}}}))
    assert data.main(["--check", str(path), f"data.folds={tree / 'Folds.csv'}"]) == 0
    table, test = data.read_folds(tree / "Folds.csv").drop_duplicates("filename"), listed[listed.set == "test"]
    images = table[table.slide.isin(test.slide)]
    out = capsys.readouterr().out
    for number in (0, 1):
        train = slides[slides.name.isin(rest[number::2])]
        assert f"folds/{number}:" in out and f"{images.patient.isin(train.patient).mean():.1%} their patient" in out
    assert f" {(images.label == 'benign').sum()} " in out


def test_the_two_folders_of_one_slide_are_told_apart(tmp_path):
    names = [f"SOB_M_{code}-14-13412-40-00{image}.png" for code in ("DC", "LC") for image in (1, 2)]
    names += ["SOB_B_F-14-1-40-001.png", "SOB_B_F-14-2-40-001.png"]
    table = data.describe(pd.Series(names)).assign(fold=1, grp="train")
    listed = pd.DataFrame({"value": ["SOB_M_DC_14-13412", "SOB_M_LC-14-13412"], "set": ["train", "test"], "split": ""})
    found = split_lists._images_of_slides(listed, Path("list"), table)
    assert found.set.tolist() == ["train"] * 2 + ["test"] * 2 and found.filename.tolist() == names[:4]


NAME = "SOB_B_A-14-101AB-40-001.png"
OTHER = "SOB_M_DC-14-201-40-001.png"


@pytest.mark.parametrize("name, content, message", [
    ("a.csv", "", "must be a CSV"),
    ("a.csv", "filename,set\n", "holds no rows"),
    ("a.csv", "some words\nand more\n", "no column has names of BreakHis"),
    ("a.csv", "\x00\x01", "NUL byte"),
    ("a.csv", f"file,set\n{NAME},train\ncat.png,test\n", "row 2 of file: a name as BreakHis gives it is needed, got 'cat.png'"),
    ("a.csv", f"file,set\n{NAME},train\n{OTHER},train\n", "a training and a test set are needed, got train"),
    ("a.csv", f"file,label\n{NAME},0\n{OTHER},1\n", "must give the set as train, training"),
    ("a.csv", f"file,set\n{NAME},train\n{OTHER},\n", "must give the set"),
    ("a.csv", f"file,set\n{NAME},train\nSOB_M_A-14-101AB-40-001.png,test\n", "allowed are names of BreakHis' images"),
    ("a.csv", "slide,set\n14-22549AB,train\n14-1,test\n", "must be a CSV file"),
    ("a.csv", "file,fold\n" + "".join(f"{NAME},{n}\n" for n in range(101)), "allowed are 100 folds"),
    ("train.txt", f"{NAME}\n{OTHER}\n", "goes into a folder|go into a folder"),
    ("a.json", "{", "must be JSON"),
    ("a.json", '{"train": ["x"], "test": []}', "no key gives names"),
    ("a.json", "3", "no key gives names"),
    ("a.json", json.dumps({"train": [NAME, "x"], "test": [OTHER]}), "a list of train must hold names of BreakHis, got 'x'"),
    ("a.json", json.dumps({"train": [NAME]}), "a training and a test set are needed"),
    ("a.json", f'{{"train": ["{NAME}"], "train": ["{OTHER}"], "test": ["{NAME}"]}}', "a key is given twice"),
    ("a.json", "[" * 900 + "]" * 900, "no key gives names|must be JSON|nested"),
    ("a.json", "[" * 99999 + "]" * 99999, "must be JSON"),
    ("a.json", json.dumps([{NAME: n} for n in range(3)] + [{f"k{n}": NAME} for n in range(60)]), "allowed are 50 keys"),
    ("a.json", json.dumps([{"train": [NAME], "test": [OTHER]}] * 101), "allowed are 100 folds or other splits, got 101"),
])  # fmt: skip
def test_nonsense_is_refused_in_one_line(name, content, message, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message) as refused:
        data.main(["--check", str(tmp_path / name)])
    assert refused.value.status == 2 and len(refused.value.lines) == 1


def test_a_missing_file_and_a_folder_without_lists_are_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        split_lists.read(tmp_path / "none.csv")
    with pytest.raises(InputError, match="allowed is a folder with files such as train.txt and test.txt"):
        split_lists.read(tmp_path)


@pytest.mark.parametrize("content, status, lines", [("file,set\nSOB_B_A-14-101AB-40-001.png,train\n" + NAME + ",test\n", 1, 0),
                                                    ("nonsense\n", 2, 1)])  # fmt: skip
def test_the_command_needs_no_tensorflow(content, status, lines, tmp_path):
    path = tmp_path / "list.csv"
    path.write_text(content)
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); sys.modules['tensorflow'] = None\n"
        "import data; from safety import command_line; sys.argv = sys.argv[1:]; command_line.run(data.main)"
    )
    ended = subprocess.run([sys.executable, "-c", script, ROOT, "--check", path], capture_output=True, text=True)
    assert ended.returncode == status and len(ended.stderr.splitlines()) == lines, ended.stderr


def contents():
    """Lists with cuts and pieces of other lists put in."""
    listed = pd.DataFrame({"f": [NAME, OTHER] * 2, "set": ["train", "train", "test", "test"], "fold": [1, 2, 1, 2]})
    valid = [listed.to_csv(index=False), json.dumps(by_set(listed.rename(columns={"f": "filename"}))),
             json.dumps(listed.to_dict("records")), listed.to_json(), json.dumps({"folds": [{"train": [NAME], "test": [OTHER]}]})]  # fmt: skip
    words = ["", NAME, OTHER, "train", "test", "fold", '"', "[", "]", "{", "}", ":", ",", "\n", "\t", "|", "null", "1e999", "NaN", "14-1", "\x00", "\\ud800", "9" * 5000]  # fmt: skip
    piece = st.one_of(st.sampled_from(words), st.text(max_size=4))
    cuts = st.lists(st.tuples(st.integers(0, 300), st.integers(0, 20), piece), max_size=4)

    def apply(text, cuts):
        for start, length, new in cuts:
            text = text[:start] + new + text[start + length :]
        return text.encode("utf-8", "replace")

    return st.one_of(st.binary(max_size=60), st.builds(apply, st.sampled_from(valid), cuts))


@pytest.mark.parametrize("name", ["list.csv", "list.json"])
def test_any_content_is_read_or_refused(name, tmp_path):
    path, settings = tmp_path / name, config.load_settings().data

    @hypothesis_settings(max_examples=150, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
    @given(contents())
    def attempt(content):
        path.write_bytes(content)
        with contextlib.redirect_stdout(io.StringIO()):
            try:
                assert split_lists.check(path, settings, data.describe, data.read_table) in (0, 1)
            except InputError as error:
                assert len(error.lines) == 1

    attempt()


def test_the_unused_rows_of_our_own_splits_take_no_part(tmp_path, capsys):
    names = ["B_A-14-1-40-001", "M_DC-14-2-40-001", "B_A-14-3-40-001", "M_DC-14-4-40-001", "B_A-14-3-40-002"]
    sets = ["train", "train", "test", "test", "unused"]
    lines = [f"SOB_{name}.png,{part}" for name, part in zip(names, sets)]
    (tmp_path / "split.csv").write_text("\n".join(["filename,set", *lines]))
    assert data.main(["--check", str(tmp_path / "split.csv")]) == 0
    output = capsys.readouterr().out
    assert "unused benign" in output and "0.0% their patient" in output
