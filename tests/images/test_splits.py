import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from tiny_tree import SLIDES, fold_rows, table_of

import config
from images import leaks, splits
from safety.errors import InputError

PROTOCOLS = ["row", "image", "slide", "patient", "fold"]
GROUP_KEYS = {"row": [], "image": ["filename"], "slide": ["filename", "slide"], "patient": ["filename", "slide", "patient"],
        "fold": ["filename"]}  # fmt: skip


def options(protocol, **changes):
    values = {"test_per_class": 10, **changes, "protocol": protocol}
    return config.load_settings(None, [f"data.{key}={value}" for key, value in values.items()]).data


@pytest.fixture(scope="module")
def table():
    return table_of(fold_rows(images=5))


def assert_contract(table, protocol, per_class):
    """Checks the contract with pandas only, without splits.py."""
    used = table[table.set != "unused"]
    for key in GROUP_KEYS[protocol]:
        assert used.groupby(key).set.nunique().max() == 1, key
    assert used[used.set == "test"].label.value_counts().to_dict() == {"benign": per_class, "malignant": per_class}
    assert set(used.groupby("set").label.nunique()) == {2} and {"train", "valid", "test"} == set(used.set)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_protocol_keeps_its_contract(table, protocol, seed):
    parts = splits.split(table, options(protocol, seed=seed))
    assert_contract(parts, protocol, 10)
    assert len(parts) == (len(table) if protocol == "row" else table.filename.nunique())


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("seeds", [range(5), pytest.param(range(50), marks=pytest.mark.long)])
def test_full_table(full_table, protocol, seeds):
    for seed in seeds:
        parts = splits.split(full_table, options(protocol, test_per_class=300, seed=seed))
        assert_contract(parts, protocol, 300)
        train, test = parts[parts.set == "train"], parts[parts.set == "test"]
        assert protocol != "row" or test.filename.isin(train.filename).mean() >= 0.99
        assert protocol != "image" or test.slide.isin(train.slide).all()
        assert protocol not in ("slide", "patient") or test.subtype.nunique() == 8


@pytest.mark.parametrize("protocol, benign, malignant", [("row", 12400, 27145), ("image", 2480, 5429)])
def test_full_counts(full_table, protocol, benign, malignant):
    parts = splits.split(full_table, options(protocol, test_per_class=300))
    assert parts.label.value_counts().to_dict() == {"benign": benign, "malignant": malignant}
    assert (parts.set == "valid").sum() == (7789 if protocol == "row" else 436 + 1026)


def test_the_thesis_is_reproduced_to_the_row(full_table):
    settings = config.load_settings(Path(config.__file__).with_name("thesis.yaml")).data
    parts = splits.split(full_table, settings)
    counts = pd.crosstab(parts.set, parts.label)
    assert counts.loc["train"].tolist() == [9628, 21528]
    assert counts.loc["valid"].tolist() == [2472, 5317]
    assert counts.loc["test"].tolist() == [300, 300]
    drawn = splits.training_rows(parts, settings)
    assert drawn.label.value_counts().to_dict() == {"benign": 21528, "malignant": 21528}


@pytest.mark.parametrize("fold, train, test", [
    (1, 5005, 2904), (2, 5506, 2403), (3, 5332, 2577), (4, 5211, 2698), (5, 4826, 3083),
])  # fmt: skip
def test_official_folds_have_their_counts_and_name_13412(full_table, fold, train, test):
    parts = splits.split(full_table, options("fold", test_per_class=300, fold=fold))
    assert parts.grp.value_counts().to_dict() == {"train": train, "test": test}
    assert set(parts[parts.grp == "test"].set) == {"test", "unused"}
    assert leaks.measure(parts)["both_sides"] == (["14-13412"] if fold in (1, 3, 5) else [])
    assert ("14-13412" in leaks.describe(parts)) == (fold in (1, 3, 5))
    valid, train = parts[parts.set == "valid"], parts[parts.set == "train"]
    assert not set(valid.patient) & set(train.patient)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_split_depends_on_the_seed_and_not_on_the_order(table, protocol):
    settings = options(protocol)
    text = splits.to_csv(splits.split(table, settings))
    assert text == splits.to_csv(splits.split(table.sample(frac=1, random_state=5), settings))
    assert text != splits.to_csv(splits.split(table, options(protocol, seed=1)))


@pytest.mark.parametrize("protocol", ["slide", "patient"])
def test_the_test_images_spread_over_groups_and_magnifications(full_table, protocol):
    parts = splits.split(full_table, options(protocol, test_per_class=300))
    for _, rows in parts[parts.set == "test"].groupby("label"):
        sizes = rows.groupby(protocol).size()
        room = parts[parts.set.isin(["test", "unused"])].groupby(protocol).size()[sizes.index]
        full = sizes[sizes < room]
        assert full.max() - full.min() <= 1
        assert rows.mag.value_counts().max() - rows.mag.value_counts().min() <= 8
        assert len(sizes) >= 0.2 * parts[parts.label == rows.label.iloc[0]][protocol].nunique() - 1


def test_slides_of_one_patient_stay_together(full_table):
    for seed in range(20):
        parts = splits.split(full_table, options("patient", test_per_class=300, seed=seed))
        sets = set(parts[parts.patient == "14-22549"].set) - {"unused"}
        assert len(sets) == 1, seed


@pytest.mark.parametrize("protocol", PROTOCOLS[1:])
def test_images_of_equal_pixels_stay_together(table, protocol):
    """Each image of 14-203CD has the pixels of one of 14-204, so both patients must be in one set."""
    pixels = table.filename.str.replace("M_LC-14-204", "M_DC-14-203CD")
    for seed in range(6):
        parts = splits.split(table.assign(pixels=pixels), options(protocol, seed=seed))
        used = parts[parts.set != "unused"]
        assert used.groupby("pixels").set.nunique().max() == 1
        if protocol in ("slide", "patient"):
            assert used[used.slide.isin(["14-203CD", "14-204"])].set.nunique() <= 1


def test_without_known_pixels_equal_images_are_divided_and_the_check_sees_it(table):
    pixels = table.filename.str.replace("M_LC-14-204", "M_DC-14-203CD")
    divided = [
        splits.split(table, options("image", seed=seed)).assign(
            pixels=lambda t: t.filename.map(dict(zip(table.filename, pixels)))
        )
        for seed in range(3)
    ]
    with pytest.raises(InputError, match="pixels"):
        for parts in divided:
            splits.check(parts, "image")


def test_equal_pixels_under_both_labels_are_refused(table):
    pixels = table.filename.str.replace("M_LC-14-204", "B_F-14-103")
    with pytest.raises(InputError, match="both labels: SOB_"):
        splits.split(table.assign(pixels=pixels), options("image"))


@pytest.mark.parametrize("protocol, changes, words", [
    ("row", {"test_per_class": 451}, "must be at most 450 (benign 450, malignant 500, in half of the rows of a class) or auto, got 451"),
    ("image", {"test_per_class": 91}, "must be at most 90 (benign 90, malignant 100, in half of the images of a class) or auto, got 91"),
    ("slide", {"test_per_class": 81}, "must be at most 80 (benign 80, malignant 100, in half of the slides"),
    ("patient", {"test_per_class": 101}, "in half of the patients of a class) or auto, got 101"),
    ("fold", {"test_per_class": 100}, "official fold 1 for protocol fold: must be at most 60"),
    ("patient", {"test_per_class": 60, "magnification": 40}, "in whole patients"),
])  # fmt: skip
def test_a_test_set_that_is_too_large_is_refused_with_the_size_that_works(table, protocol, changes, words):
    with pytest.raises(InputError, match=re.escape(words)) as refusal:
        splits.split(table, options(protocol, **changes))
    if protocol == "row":
        return  # a plain draw may leave a class out of validation, which `check` refuses
    largest = int(re.search(r"at most (\d+)", str(refusal.value))[1])
    splits.split(table, options(protocol, **{**changes, "test_per_class": largest}))


def test_one_class_alone_is_refused(table):
    for protocol in PROTOCOLS:
        with pytest.raises(InputError, match="at most 0"):
            splits.split(table[table.label == "benign"], options(protocol))


def test_magnification_is_respected(table):
    parts = splits.split(table, options("patient", magnification=100))
    assert set(parts.mag) == {100}


@pytest.mark.parametrize("protocol, limited", [("image", "filename"), ("slide", "slide"), ("patient", "patient")])
@pytest.mark.parametrize("mag", [40, 400])
def test_at_most_half_of_a_class_is_taken_and_a_resumed_run_is_not_refused(full_table, protocol, limited, mag):
    refused = 0
    for seed in range(8):
        settings = options(protocol, test_per_class=300, magnification=mag, seed=seed)
        try:
            parts = splits.split(full_table, settings)
        except InputError:
            refused += 1
            assert_contract(splits.split(full_table, settings, resumed=True), protocol, 300)
            continue
        tested = parts[parts.set == "test"].groupby("label")[limited].nunique()
        assert (tested <= parts.groupby("label")[limited].nunique() // 2).all()
    # 400X has 588 benign images.
    assert refused == {40: 0, 400: 8}[mag] if protocol == "image" else refused > 0


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("mag", ["all", 40])
def test_auto_takes_what_a_fifth_of_the_groups_gives(full_table, protocol, mag):
    parts = splits.split(full_table, options(protocol, test_per_class="auto", magnification=mag))
    assert_contract(parts, protocol, (parts.set == "test").sum() // 2)
    key = {"row": None, "fold": None, "image": "filename"}.get(protocol, protocol)
    for label, rows in parts.groupby("label"):
        groups, test = rows[key].nunique() if key else len(rows), rows[rows.set == "test"]
        if protocol != "fold":
            assert (test[key].nunique() if key else len(test)) <= max(4, round(0.2 * groups)), label
    official = parts.label[parts.grp == "test"].value_counts().min()
    assert protocol != "fold" or (parts.set == "test").sum() == 2 * official


def shuffled(table):
    parts = splits.split(table, options("row"))
    train = parts[parts.set == "train"].sample(frac=1, random_state=4)
    return train.assign(number=range(len(train)))


def test_upsampling_both_draws_both_classes_anew(table):
    train = shuffled(table)
    drawn = splits.upsample(train, options("row", upsample="both", seed=3))
    assert drawn.label.value_counts().to_dict() == {"benign": 794, "malignant": 794}
    assert 0.5 < drawn[drawn.label == "malignant"].number.nunique() / 794 < 0.75
    expected = train.groupby("label").sample(794, replace=True, random_state=3).reset_index(drop=True)
    pd.testing.assert_frame_equal(drawn, expected)


@pytest.mark.parametrize("rare", ["benign", "malignant"])
@pytest.mark.parametrize("seed", range(3))
def test_upsampling_the_minority_keeps_every_row_and_the_larger_class_once(table, rare, seed):
    train = shuffled(table)
    train = train.drop(train.index[train.label == rare][50:])
    settings = options("row", upsample="minority", seed=seed)
    drawn = splits.upsample(train, settings)
    counts = train.label.value_counts()
    assert drawn.label.value_counts().to_dict() == dict.fromkeys(counts.index, counts.max())
    times = drawn.number.value_counts()
    assert set(times.index) == set(train.number)
    assert (times[train.number[train.label != rare]] == 1).all()
    assert times[train.number[train.label == rare]].max() > 1
    pd.testing.assert_frame_equal(drawn, splits.upsample(train, settings))


def test_upsampling_none_keeps_the_rows_as_they_are_and_no_kind_takes_other_sets(table):
    train = shuffled(table)
    pd.testing.assert_frame_equal(splits.upsample(train, options("row", upsample="none")), train)
    for kind in ("none", "both", "minority"):
        with pytest.raises(ValueError, match="only training rows"):
            splits.upsample(splits.split(table, options("row")), options("row", upsample=kind))


@pytest.mark.parametrize("protocol, move, words", [
    ("image", "filename", "filename SOB_"),
    ("slide", "slide", "slide 1"),
    ("patient", "patient", "patient 1"),
])  # fmt: skip
def test_a_broken_contract_is_named(table, protocol, move, words):
    parts = splits.split(table, options(protocol))
    test = parts[parts.set == "test"].iloc[[0]]
    leaked = test.assign(set="train") if move == "filename" else test.assign(set="train", filename="other")
    if move == "patient":
        leaked = leaked.assign(slide=leaked.patient + "ZZ")
    with pytest.raises(InputError, match=f"{words}.* must be in one set, got test and train"):
        splits.check(pd.concat([parts, leaked]), protocol)
    with pytest.raises(InputError, match="the same number of each"):
        splits.check(parts.drop(test.index), protocol)


slide_lists = st.lists(st.sampled_from(SLIDES), min_size=1, max_size=len(SLIDES), unique=True)


@hypothesis_settings(max_examples=150, deadline=None)
@given(
    slides=slide_lists,
    protocol=st.sampled_from(PROTOCOLS),
    images=st.integers(1, 3),
    mags=st.lists(st.sampled_from([40, 100, 200, 400]), min_size=1, unique=True).map(tuple),
    changes=st.fixed_dictionaries(
        {
            "test_per_class": st.integers(1, 40),
            "valid_fraction": st.sampled_from([0.01, 0.2, 0.5, 0.99]),
            "seed": st.integers(0, 2**32 - 1),
        }
    ),
    copies=st.integers(0, 5),
)
def test_on_any_table_the_contract_holds_or_the_split_is_refused(slides, protocol, images, mags, changes, copies):
    table = table_of(fold_rows(slides, mags, images))
    codes = pd.factorize(table.filename)[0]
    table["pixels"] = np.where(codes < copies, 0, codes).astype(str)
    try:
        parts = splits.split(table, options(protocol, **changes))
    except InputError as refusal:
        # The refusal must come before the draw, not from the check of its result.
        assert "must be in one set" not in str(refusal)
        return
    assert_contract(parts, protocol, changes["test_per_class"])
    used = parts[parts.set != "unused"]
    assert protocol == "row" or used.groupby("pixels").set.nunique().max() == 1
