import re
import shlex
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from tiny_tree import fold_rows, tiny_settings, write_tree

import config
import data
from images import audit, data_plots, splits
from safety.errors import InputError

COLUMNS = ["fold", "mag", "grp", "path", "label", "label_int", "filename", "subtype", "slide", "patient"]


def write(tmp_path, rows):
    rows.to_csv(tmp_path / "Folds.csv", index=False)
    return tmp_path / "Folds.csv"


def test_the_columns_are_parsed_from_the_file_names(tmp_path):
    table = data.read_folds(write(tmp_path, fold_rows()))
    assert list(table.columns) == COLUMNS
    row = table[table.filename == "SOB_B_A-14-101AB-400-002.png"].iloc[0]
    assert row.path == "benign/SOB/adenosis/SOB_B_A_14-101AB/400X/SOB_B_A-14-101AB-400-002.png"
    assert (row.label, row.label_int, row.mag, row.subtype) == ("benign", 0, 400, "adenosis")
    assert (row.slide, row.patient) == ("14-101AB", "14-101")
    assert set(table[table.label == "malignant"].label_int) == {1}


@pytest.mark.parametrize(
    "prefix", ["", "BreaKHis_v1/histology_slides/breast/", "BreaKHis_v1/BreaKHis_v1/histology_slides/breast/"]
)
def test_both_shapes_of_path_give_the_same_table(tmp_path, prefix):
    rows = fold_rows()
    expected = data.read_folds(write(tmp_path, rows))
    rows["filename"] = prefix + rows.filename.str.removeprefix("BreaKHis_v1/histology_slides/breast/")
    pd.testing.assert_frame_equal(data.read_folds(write(tmp_path, rows)), expected)


def test_the_order_of_the_file_does_not_matter(tmp_path):
    rows = fold_rows()
    expected = data.read_folds(write(tmp_path, rows))
    pd.testing.assert_frame_equal(data.read_folds(write(tmp_path, rows.sample(frac=1, random_state=1))), expected)


def test_the_full_table_has_the_counts_of_breakhis(full_table):
    assert full_table.label.value_counts().to_dict() == {"malignant": 27145, "benign": 12400}
    images = full_table.drop_duplicates("filename")
    assert images.label.value_counts().to_dict() == {"malignant": 5429, "benign": 2480}
    assert (images.slide.nunique(), images.patient.nunique()) == (81, 70)
    assert images.path.str.rsplit("/", n=2).str[0].nunique() == 82
    assert images.groupby("label").patient.nunique().to_dict() == {"benign": 16, "malignant": 54}
    sizes = images[images.label == "benign"].groupby("patient").size()
    assert sorted(sizes) == [53, 60, 64, 65, 65, 66, 68, 120, 126, 129, 138, 158, 236, 256, 383, 493]


NAME = "BreaKHis_v1/histology_slides/breast/benign/SOB/adenosis/SOB_B_A_14-101AB/40X/SOB_B_A-14-101AB-40-001.png"


@pytest.mark.parametrize("column, value, words", [
    ("fold", "6", "fold must be 1 to 5, got '6'"),
    ("fold", "", "fold must be 1 to 5"),
    ("mag", "50", "mag must be 40, 100, 200 or 400, got '50'"),
    ("mag", "100", "mag must agree with the file name, got '100'"),
    ("grp", "valid", "grp must be train or test, got 'valid'"),
    ("grp", "test", "must be train or test in a fold, not both"),
    ("filename", "/etc/passwd", "must not be absolute"),
    ("filename", "C:\\breast\\a.png", "must not be absolute"),
    ("filename", NAME.replace("benign/", "benign/../"), "must not be absolute or contain .."),
    ("filename", "../" + NAME, "must not be absolute or contain .."),
    ("filename", "photo.png", "path must be"),
    ("filename", NAME.replace("benign", "harmless"), "path must be"),
    ("filename", NAME.replace(".png", ".jpg"), "file name must be"),
    ("filename", NAME.replace("-14-101AB-40", "-16-101AB-40"), "file name must be"),
    ("filename", NAME.replace("SOB_B_A-14", "SOB_M_A-14"), "file name must be"),
    ("filename", NAME.replace("SOB_B_A-14", "SOB_B_XX-14"), "file name must be"),
    ("filename", NAME.replace("SOB_B_A-14", "SOB_B_F-14"), "path must agree with the file name"),
    ("filename", NAME.replace("breast/benign", "breast/malignant"), "path must agree with the file name"),
    ("filename", NAME.replace("SOB_B_A_14-101AB/", "SOB_B_A_14-102/"), "path must agree with the file name"),
    ("filename", NAME.replace("/40X/", "/100X/"), "path must agree with the file name"),
])  # fmt: skip
def test_a_wrong_row_is_named(tmp_path, column, value, words):
    rows = fold_rows().astype(str).reset_index(drop=True)
    assert rows.filename[0] == NAME
    # The duplicate with another grp is in the same fold as the row that it contradicts.
    rows = pd.concat([rows, rows.iloc[[0]]], ignore_index=True)
    rows.loc[len(rows) - 1, column] = value if value != rows.grp[0] else "train"
    line = len(rows) + 1 if words != "must be train or test in a fold, not both" else 2
    with pytest.raises(InputError, match=f"line {line}: .*{re.escape(words)}"):
        data.read_folds(write(tmp_path, rows))


def rewritten(rows, separator=",", **changes):
    """The text of Folds.csv with changed values; `changes` has a function of the text of a value for each column."""
    rows = rows.astype(str)
    for column, change in changes.items():
        rows[column] = rows[column].map(change)
    return "\n".join(separator.join(cells) for cells in [list(rows), *rows.to_numpy().tolist()]) + "\n"


HOSTED = "/kaggle/input/breakhis/BreaKHis_v1/"


@pytest.mark.parametrize("words, text", [
    ("separator ';'", lambda rows: rewritten(rows, ";")),
    (r"separator '\t'", lambda rows: rewritten(rows, "\t")),
    ("blanks around 760 values of filename", lambda rows: rewritten(rows, ", ")),
    ("quotes around 760 values of mag", lambda rows: rewritten(rows, ", ", mag='"{}"'.format)),
    ("capitals in the header", lambda rows: rewritten(rows.rename(columns=str.upper))),
    ("capitals in 760 values of grp", lambda rows: rewritten(rows, grp=str.upper)),
    ("backslashes in 760 values of filename", lambda rows: rewritten(rows, filename=lambda name: name.replace("/", "\\"))),
    ("./ before 760 values of filename", lambda rows: rewritten(rows, filename="./{}".format)),
    ("folders above histology_slides in 760 values", lambda rows: rewritten(rows, filename=(HOSTED + "{}").format)),
    ("folders above histology_slides in 760 values", lambda rows: rewritten(rows, filename="C:\\data\\{}".format)),
    ("X after 760 values of mag", lambda rows: rewritten(rows, mag="{}X".format)),
    ("decimals of 760 values of mag", lambda rows: rewritten(rows, fold="{}.0".format, mag="{}.0".format)),
])  # fmt: skip
def test_another_notation_gives_the_same_table_and_is_printed_once(tmp_path, capsys, words, text):
    rows = fold_rows()
    expected = data.read_folds(write(tmp_path, rows))
    assert capsys.readouterr().err == ""
    (tmp_path / "Folds.csv").write_text(text(rows))
    pd.testing.assert_frame_equal(data.read_folds(tmp_path / "Folds.csv"), expected)
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and f"{words}" in err


@pytest.mark.parametrize("text, line, words", [
    (f"\n\nfold,mag,grp,filename\n\n1,40,train,{NAME}\n \n\n6,40,train,{NAME}\n", 8, "fold must be 1 to 5, got '6'"),
    (f"fold,mag,grp,filename\r\n\r\n1,40,train,{NAME}\r\n1, 4 0 ,train,{NAME}\r\n", 4, "mag must be .*, got ' 4 0 '"),
    (f"fold,mag,grp,filename\n1,40,train,{NAME}\n2,40,train,{NAME}\n\n1,40,train,{NAME}\n", 5, "one row in a fold, not two"),
    (f"fold;mag;grp;filename\n1;40;train;{HOSTED}../BreaKHis_v1/{NAME[12:]}\n", 2, "must not be absolute or contain .., got"),
    (f"fold;mag;grp;filename\n1;40;train;{HOSTED}{NAME[12:].replace('benign', '..')}\n", 2, "must not be absolute or contain .., got"),
    (f"fold,mag,grp,filename\n1,40,train,/data/{NAME[36:]}\n", 2, "must not be absolute"),
    (f"fold,mag,grp,filename\n1,40.5,train,{NAME}\n", 2, "mag must be .*, got '40.5'"),
])  # fmt: skip
def test_what_is_ambiguous_or_twice_is_refused_with_its_line(tmp_path, text, line, words):
    (tmp_path / "Folds.csv").write_bytes(text.encode())
    with pytest.raises(InputError, match=f"line {line}: .*{words}"):
        data.read_folds(tmp_path / "Folds.csv")


def test_names_of_columns_are_quoted_and_must_differ(tmp_path):
    for header, words in [
        ("fold,mag,grp,file name ", "filename is missing.*'file name '"),
        ("fold,mag,grp,filename,MAG", "mag is there twice"),
    ]:
        (tmp_path / "Folds.csv").write_text(f"{header}\n1,40,train,{NAME}\n")
        with pytest.raises(InputError, match=f"column {words}"):
            data.read_folds(tmp_path / "Folds.csv")


@pytest.mark.parametrize("column", ["fold", "mag", "grp", "filename"])
def test_a_missing_column_is_named(tmp_path, column):
    with pytest.raises(InputError, match=f"column {column} is missing"):
        data.read_folds(write(tmp_path, fold_rows().drop(columns=column)))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"fold,mag,grp,filename\n1,40,train,a.png,\n2,40,train,a.png,\n",
        b"fold,mag,grp,filename\n",
        b"\xff\xfe\x00\x01",
        b"fold,mag,grp,filename\n1,40\n",
        b'fold\n"open',
        b"a,b\n1,2,3\n4,5,6,7\n",
    ],
)
def test_a_file_that_is_not_a_table_is_refused(tmp_path, content):
    (tmp_path / "Folds.csv").write_bytes(content)
    with pytest.raises(InputError, match=r"Folds\.csv"):
        data.read_folds(tmp_path / "Folds.csv")


def test_names_with_line_ends_or_endless_numbers_are_refused(tmp_path):
    for name in (NAME + "\n", NAME.replace("101AB", "1" * 300), NAME.replace("001.png", "1" * 300 + ".png")):
        (tmp_path / "Folds.csv").write_text(f'fold,mag,grp,filename\n1,40,train,"{name}"\n')
        with pytest.raises(InputError, match="line 2: (file name|path) must be"):
            data.read_folds(tmp_path / "Folds.csv")


def test_the_message_about_a_missing_table_names_a_way_out(tmp_path):
    with pytest.raises(InputError, match=r"make train.* --config sample.yaml.*make real"):
        data.read_folds(tmp_path / "Folds.csv")


def test_the_command_prints_and_draws(tree, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    data.main(tiny_settings(tree))
    printed = capsys.readouterr().out
    for word in ("adenosis", "papillary_carcinoma", "400", "patients", "valid", "images of each benign slide"):
        assert word in printed
    assert (tmp_path / "overview" / "distribution.png").is_file() and (tmp_path / "overview" / "samples.png").is_file()


def test_augmented_draws_the_views_of_the_training_images(tree, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shown = []
    monkeypatch.setattr(data_plots, "gallery", lambda *given: shown.extend(given) or plt.figure())
    changes = ["data.stain=reinhard", "augment.turns=true", "augment.views=2"]
    data.main([*tiny_settings(tree), "--augmented", *changes])
    assert "drawn: overview/augmented.png" in capsys.readouterr().out and Path("overview/augmented.png").is_file()
    images, captions, labels, _, columns = shown
    assert list(captions) == ["as it is", "reinhard", "view 1", "view 2"] * 4 and columns == 4
    assert sorted(labels) == ["benign"] * 8 + ["malignant"] * 8
    for plain, normalised, *views in zip(*(images[start::4] for start in range(4))):
        assert not (plain == normalised).all()
        pixels = sorted(map(tuple, normalised.reshape(-1, 3)))
        assert all(sorted(map(tuple, view.reshape(-1, 3))) == pixels for view in views)
    with pytest.raises(InputError, match="--augmented: needed is data.stain or a setting of augment that is on"):
        data.main([*tiny_settings(tree), "--augmented"])


def test_split_writes_the_split_and_opens_no_image(tree, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Folds.csv").write_bytes((tree / "Folds.csv").read_bytes())
    data.main([*tiny_settings(tmp_path / "nowhere"), f"data.folds={tmp_path}/Folds.csv", "--split", "split.csv"])
    table = pd.read_csv("split.csv")
    assert list(table.columns) == splits.COLUMNS
    assert (table[table.set == "test"].label.value_counts() == 10).all()


def test_the_note_on_unknown_pixels_gives_a_command_with_the_same_settings(tree, tmp_path, capsys):
    (tmp_path / "my own.yaml").write_text("data: {seed: 3}\n")
    arguments = [
        "--config",
        "my own.yaml",
        f"data.root={tree}",
        f"data.folds={tree}/Folds.csv",
        "data.test_per_class=4",
    ]
    data.main([*arguments, "--split", "split.csv"])
    command = capsys.readouterr().out.splitlines()[0].partition("first run: ")[2]
    assert shlex.split(command) == ["python", "data.py", "--audit", *arguments]
    data.main(shlex.split(command)[2:])
    capsys.readouterr()
    data.main([*arguments, "--split", "split.csv"])
    assert "first run" not in capsys.readouterr().out


def test_the_notice_of_a_synthetic_tree_is_found(tree, tmp_path):
    assert data.notice(tree) == ""
    (tmp_path / "SYNTHETIC.txt").write_text("made up\nmore")
    assert data.notice(tmp_path) == "made up"
    (tmp_path / "SYNTHETIC.txt").rename(tmp_path.parent / "other.txt")
    (tmp_path / "SYNTHETIC.txt").symlink_to("../other.txt")
    assert data.notice(tmp_path) == ""


@pytest.mark.parametrize("content, expected", [(b"", ""), (b"a\x1b[31m\xff\nb", "a\\x1b[31m\ufffd")])
def test_the_notice_is_one_plain_line_whatever_the_file_holds(tmp_path, content, expected):
    (tmp_path / "SYNTHETIC.txt").write_bytes(content)
    assert data.notice(tmp_path) == expected


@pytest.mark.parametrize(
    "name", ["SOB_B_A-14-101AB-40-001\n.png", "SOB_B_A-14-101AB-40-009.png\n.png", "=1+1.png", "\x1b[31m.png"]
)
def test_strange_names_in_the_folders_are_refused(own_tree, name):
    image = next(own_tree.rglob("SOB_B_A-14-101AB-40-001.png"))
    image.rename(image.with_name(name))
    with pytest.raises(InputError, match="is not named or placed"):
        data.read_tree(audit.image_folder(own_tree))


def test_a_root_that_is_a_file_is_refused_and_cyclic_links_are_harmless(own_tree):
    with pytest.raises(InputError, match="must be a folder"):
        audit.image_folder(own_tree / "Folds.csv")
    expected = data.read_tree(audit.image_folder(own_tree))
    (audit.image_folder(own_tree) / "benign" / "cycle").symlink_to(own_tree)
    pd.testing.assert_frame_equal(data.read_tree(audit.image_folder(own_tree)), expected)


@pytest.mark.parametrize(
    "depth", ["BreaKHis_v1/BreaKHis_v1/histology_slides/breast", "BreaKHis_v1/histology_slides/breast", "."]
)
def test_every_depth_of_folder_is_found(tmp_path, depth):
    (tmp_path / depth / "benign").mkdir(parents=True)
    assert audit.image_folder(tmp_path).resolve() == (tmp_path / depth).resolve()


def test_a_doubled_folder_gives_the_same_images(tree, tmp_path):
    write_tree(tmp_path / "data" / "BreaKHis_v1", fold_rows())
    (tmp_path / "data" / "BreaKHis_v1" / "Folds.csv").rename(tmp_path / "data" / "Folds.csv")
    doubled, single = (
        audit.with_pixels(data.read_folds(root / "Folds.csv"), config.load_settings(None, tiny_settings(root)).data)
        for root in (tmp_path / "data", tree)
    )
    pd.testing.assert_frame_equal(doubled, single)


@pytest.mark.parametrize("protocol", ["image", "slide", "patient"])
def test_the_folders_give_the_same_split_as_the_table(tree, protocol):
    texts = []
    for folds in (tree / "Folds.csv", "tree"):
        overrides = tiny_settings(tree, f"data.folds={folds}", f"data.protocol={protocol}")
        settings = config.load_settings(None, overrides).data
        texts.append(splits.to_csv(splits.split(data.read_table(settings), settings)))
    assert texts[0] == texts[1]


def test_the_folders_give_the_same_images_as_the_table(tree):
    table, folders = data.read_folds(tree / "Folds.csv"), data.read_tree(audit.image_folder(tree))
    columns = ["filename", "path", "mag", "label", "label_int", "subtype", "slide", "patient"]
    expected = table.drop_duplicates("filename")[columns].reset_index(drop=True)
    pd.testing.assert_frame_equal(folders[columns], expected, check_dtype=False)


@pytest.mark.parametrize("protocol", ["row", "fold"])
def test_protocols_that_need_the_table_are_refused_without_it(tree, protocol):
    settings = config.load_settings(None, tiny_settings(tree, "data.folds=tree", f"data.protocol={protocol}"))
    with pytest.raises(InputError, match=f"must be image, slide or patient with data.folds=tree, .* got {protocol}"):
        data.read_table(settings.data)


def test_a_misplaced_image_in_the_folders_is_named(own_tree):
    image = next(own_tree.rglob("SOB_B_A-14-101AB-40-001.png"))
    image.rename(image.with_name("SOB_B_A-14-102-40-009.png"))
    with pytest.raises(InputError, match="SOB_B_A-14-102-40-009.png is not named or placed"):
        data.read_tree(audit.image_folder(own_tree))


def test_what_is_left_out_of_the_folders_is_counted(own_tree, capsys):
    """Read and left out are together what is on disk, without the files that macOS adds."""
    folder = audit.image_folder(own_tree)
    expected = data.read_tree(folder)
    assert capsys.readouterr().err == ""
    images = sorted(folder.rglob("*.png"))
    for image, suffix in zip(images, [".PNG", ".jpg", ".jpg", ".tif", ""]):
        image.rename(image.with_suffix(suffix))
    images[5].rename(folder / "benign" / images[5].name)
    images[6].with_name("._" + images[6].name).write_bytes(b"Mac OS X")
    table, err = data.read_tree(folder), capsys.readouterr().err
    assert len(table) + 6 == len(expected) and set(table.filename) < set(expected.filename)
    assert err.count("\n") == 1 and f"data.folds=tree: 6 files in {folder} are left out, because only */SOB/" in err
    counts = err.rpartition("is read: ")[2].partition(";")[0]
    assert set(counts.split(", ")) == {"2 .jpg", "1 .PNG", "1 .tif", "1 without a suffix", "1 .png"}


def test_folders_of_other_formats_alone_are_refused_with_their_count(own_tree):
    for image in own_tree.rglob("*.png"):
        image.rename(image.with_suffix(".jpg"))
    with pytest.raises(InputError, match="no images in .*; left out, because only .* is read: 76 .jpg; get BreakHis"):
        data.read_tree(audit.image_folder(own_tree))
