import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tree import fold_rows

import data
from images import folds, splits
from safety.errors import InputError

KEPT = {"patient": ["filename", "slide", "patient"], "slide": ["filename", "slide"], "image": ["filename"]}
CODES = {"B": ["A", "F", "PT", "TA"], "M": ["DC", "LC", "MC", "PC"]}


def described(names):
    return data.describe(pd.Series(names, dtype=str))


@pytest.fixture(scope="module")
def table():
    return described(fold_rows(images=3).filename.str.rsplit("/", n=1).str[-1].unique())


@st.composite
def tables(draw):
    """Patients of one to three slides, some under two subtypes, of one to four images; some images are twins."""
    names, number = [], 100
    for letter, codes in CODES.items():
        for _ in range(draw(st.integers(3, 9))):
            number += 1
            for block in draw(st.lists(st.sampled_from(["", "AB", "CD"]), min_size=1, max_size=3, unique=True)):
                code, images = draw(st.sampled_from(codes)), draw(st.integers(1, 4))
                names += [f"SOB_{letter}_{code}-14-{number}{block}-40-{image:03}.png" for image in range(images)]
    table = described(names)
    pixels = pd.Series(table.index, table.index)
    for _ in range(draw(st.integers(0, 3))):
        of_class = table.index[table.label == draw(st.sampled_from(splits.LABELS))].tolist()
        pixels[draw(st.sampled_from(of_class))] = pixels[draw(st.sampled_from(of_class))]
    return table.assign(pixels=pixels.astype(str))


def assert_contract(table, drawn, unit, count):
    """The contract by pandas alone: nothing of folds.py or splits.py."""
    for _, part in drawn.groupby("repeat"):
        assert sorted(part.filename) == sorted(table.filename)
        placed = table.merge(part, on="filename")
        for key in KEPT[unit] + (["pixels"] if "pixels" in table else []):
            assert placed.groupby(key).fold.nunique().max() == 1, key
        assert pd.crosstab(placed.fold, placed.label).shape == (count, 2)
        assert placed.groupby("fold").label.nunique().eq(2).all() and set(placed.fold) == set(range(1, count + 1))


@settings(max_examples=40, deadline=None)
@given(tables(), st.sampled_from(folds.UNITS), st.integers(2, 5), st.integers(0, 2**32 - 1), st.randoms())
def test_any_table_is_drawn_within_the_contract_or_refused_with_the_number_that_fits(table, unit, count, seed, random):
    try:
        drawn = folds.draw(table, unit, count, repeats=2, seed=seed)
    except InputError as error:
        fits = int(re.search(r"at most (\d+) folds fit", str(error)).group(1))
        assert fits < count
        if fits > 1:
            assert_contract(table, folds.draw(table, unit, fits, 1, seed), unit, fits)
        return
    assert_contract(table, drawn, unit, count)
    folds.check(drawn, table, unit, count)
    shuffled = table.iloc[random.sample(range(len(table)), len(table))]
    pd.testing.assert_frame_equal(drawn, folds.draw(shuffled, unit, count, 2, seed))


@pytest.mark.parametrize("unit", folds.UNITS)
def test_seeds_and_repeats_differ_and_more_repeats_change_no_earlier_one(table, unit):
    drawn = folds.draw(table, unit, 3, repeats=4, seed=0)
    repeats = drawn.pivot(index="filename", columns="repeat", values="fold")
    assert repeats.T.drop_duplicates().shape[0] == 4
    assert not drawn.fold.equals(folds.draw(table, unit, 3, repeats=4, seed=1).fold)
    pd.testing.assert_frame_equal(drawn[drawn["repeat"] <= 2], folds.draw(table, unit, 3, repeats=2, seed=0))


def test_rows_that_repeat_a_name_count_once(table):
    pd.testing.assert_frame_equal(folds.draw(pd.concat([table, table]), folds=3), folds.draw(table, folds=3))


@pytest.mark.parametrize("unit", folds.UNITS)
@pytest.mark.parametrize("count", [2, 5, 10])
def test_subtypes_and_classes_are_spread_evenly_on_the_full_table(full_table, unit, count):
    images = full_table.drop(columns=["fold", "grp"]).drop_duplicates("filename")
    drawn = folds.draw(images, unit, count, repeats=2, seed=3)
    assert_contract(images, drawn, unit, count)
    placed = images.merge(drawn[drawn["repeat"] == 2], on="filename")
    key = "filename" if unit == "image" else unit
    # 29960, 21998 and 13412 have two subtypes; they are spread with the rarer one.
    rarest = placed.groupby("subtype")[key].nunique()
    units = placed.assign(rare=placed.subtype.map(rarest)).sort_values("rare", kind="stable").drop_duplicates(key)
    for keys in ("label", "subtype"):
        counts = pd.crosstab(units.fold, units[keys]).reindex(range(1, count + 1), fill_value=0)
        assert (counts.max() - counts.min()).max() <= 1, counts


def test_patients_of_equal_size_give_folds_of_equal_size(table):
    placed = table.merge(folds.draw(table, "image", 4), on="filename")
    sizes = pd.crosstab(placed.fold, placed.label)
    assert (sizes.max() - sizes.min()).max() <= 1


@pytest.mark.parametrize("arguments, message", [
    (("patient", 9), "every fold needs a patient of each class: at most 8 folds fit (benign 8, malignant 9 patients), got 9"),
    (("slide", 10), "at most 9 folds fit (benign 9, malignant 10 slides), got 10"),
    (("cell", 5), "allowed are a unit of patient, slide, image"),
    (("patient", 1), "2 or more folds"),
    (("patient", 3, 0), "1 or more repeats"),
])  # fmt: skip
def test_what_cannot_be_drawn_is_refused_in_one_line(table, arguments, message):
    with pytest.raises(InputError, match=re.escape(message)) as refused:
        folds.draw(table, *arguments)
    assert len(refused.value.lines) == 1 and "\n" not in str(refused.value)


def test_one_class_alone_is_refused(table):
    with pytest.raises(InputError, match="at most 0 folds fit"):
        folds.draw(table[table.label == "benign"], "patient", 3)


def test_a_draw_that_breaks_the_contract_is_found(table):
    drawn = folds.draw(table, "patient", 3, repeats=2)
    with pytest.raises(InputError, match="repeat 1 must hold each image once"):
        folds.check(drawn.drop(index=0), table, "patient", 3)
    with pytest.raises(InputError, match="repeat 2 parts a patient"):
        moved = drawn.copy()
        moved.loc[moved.index[-1], "fold"] = moved.fold.iloc[-1] % 3 + 1
        folds.check(moved, table, "patient", 3)
    with pytest.raises(InputError, match="fold 4 has no benign image"):
        folds.check(drawn, table, "patient", 4)
    twins = table.assign(pixels=np.where(table.patient.isin(["14-102", "14-103"]), "same", table.filename))
    apart = table.assign(fold=table.patient.factorize()[0] % 3 + 1, repeat=1)[["filename", "repeat", "fold"]]
    with pytest.raises(InputError, match="equal pixels"):
        folds.check(apart, twins, "image", 3)


def published():
    return pd.read_csv(folds.CANONICAL)


def test_every_patient_has_one_published_fold_a_repeat():
    frame = published()
    assert list(frame) == ["patient", *(f"repeat{number}" for number in range(1, 11))]
    assert len(frame) == 70 and frame.patient.is_unique and frame.notna().all(axis=None)
    assert all(set(frame[name]) == {1, 2, 3, 4, 5} for name in frame.columns[1:])
    assert frame.drop(columns="patient").T.drop_duplicates().shape[0] == 10


def test_the_published_folds_are_drawn_from_the_full_table_with_seed_0(full_table):
    drawn = folds.draw(full_table, "patient", 5, repeats=10, seed=0)
    placed = drawn.merge(full_table[["filename", "patient"]].drop_duplicates()).drop_duplicates(["patient", "repeat"])
    wide = placed.pivot(index="patient", columns="repeat", values="fold").add_prefix("repeat").reset_index()
    assert wide.to_csv(index=False, lineterminator="\n") == folds.CANONICAL.read_text()
    pd.testing.assert_frame_equal(folds.read_canonical(full_table, 10), drawn)
    pd.testing.assert_frame_equal(folds.read_canonical(full_table), drawn[drawn["repeat"] == 1])


def images_of(patients, code):
    return [f"SOB_{code}-{patient}-40-{image:03}.png" for patient in patients for image in (1, 2)]


@pytest.fixture
def one_of_each():
    """Two images of a benign and a malignant patient of each fold of the first repeat."""
    benign = ["14-13200", "14-14134", "14-15275", "14-16184", "14-19854", "14-21978", "14-21998", "14-22549", "14-22704",
              "14-23060", "14-23222", "14-25197", "14-29315", "14-29960", "14-3411", "14-9133"]  # fmt: skip
    frame = published().assign(benign=lambda frame: frame.patient.isin(benign))
    names = frame.drop_duplicates(["repeat1", "benign"]).groupby("benign").patient
    return described(images_of(names.get_group(True), "B_F") + images_of(names.get_group(False), "M_DC"))


def test_the_published_folds_serve_a_part_of_breakhis(one_of_each):
    drawn = folds.read_canonical(one_of_each)
    assert_contract(one_of_each, drawn, "patient", 5)
    fold_of = published().set_index("patient").repeat1
    patients = drawn.filename.map(one_of_each.set_index("filename").patient)
    assert (drawn.fold == patients.map(fold_of)).all()


def test_published_folds_that_do_not_fit_are_refused(one_of_each, table):
    with pytest.raises(InputError, match="allowed are 1 to 10 repeats, got 11; --draw draws"):
        folds.read_canonical(one_of_each, 11)
    with pytest.raises(InputError, match="allowed are the patients of BreakHis, got 14-10"):
        folds.read_canonical(table)
    with pytest.raises(InputError, match="fold . has no benign image; --draw draws"):
        folds.read_canonical(one_of_each[one_of_each.patient != one_of_each.patient.iloc[0]])
    twins = one_of_each.filename.where(one_of_each.label == "malignant", "same")
    with pytest.raises(InputError, match="parts a patient or equal pixels, of SOB_.*; --draw draws folds"):
        folds.read_canonical(one_of_each.assign(pixels=twins))


def test_the_official_folds_test_what_the_authors_list(full_table):
    drawn = folds.official(full_table)
    assert drawn.groupby("fold").size().tolist() == [2904, 2403, 2577, 2698, 3083]
    assert (drawn.repeat == drawn.fold).all() and not drawn.duplicated().any()


@pytest.mark.parametrize("change, message", [
    (lambda rows: rows.assign(fold=pd.NA), "needed is a Folds.csv"),
    (lambda rows: rows.iloc[1:], "needs a row in each of the 5 folds, got 4 of SOB_"),
    (lambda rows: rows[rows.label == "benign"], "needs images of both classes"),
])  # fmt: skip
def test_a_table_without_the_official_folds_is_refused(change, message):
    rows = fold_rows()
    described_rows = described(rows.filename.str.rsplit("/", n=1).str[-1].tolist())
    rows = described_rows.assign(fold=rows.fold.to_numpy(), grp=rows.grp.to_numpy())
    assert len(folds.official(rows))
    with pytest.raises(InputError, match=message):
        folds.official(change(rows))
