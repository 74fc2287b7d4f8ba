import pandas as pd
import pytest
from tiny_tree import fold_rows, table_of

import config
from images import leaks, splits


def options(protocol, **changes):
    values = {"protocol": protocol, **changes}
    return config.load_settings(None, [f"data.{key}={value}" for key, value in values.items()]).data


def test_leaks_of_a_small_table():
    table = pd.DataFrame(
        [("a1", "s1", "p1", "train"), ("a1", "s1", "p1", "test"), ("a2", "s1", "p1", "test"),
         ("a3", "s2", "p1", "test"), ("a4", "s3", "p2", "test"), ("a5", "s9", "p9", "valid")],
        columns=["filename", "slide", "patient", "set"],
    ).assign(label="benign")  # fmt: skip
    measured = leaks.measure(table)
    assert measured["shared"] == {"image": 0.25, "slide": 0.5, "patient": 0.75}
    assert measured["both_sides"] == ["s1"]
    assert measured["sets"]["test"]["benign"] == {"rows": 4, "images": 4, "slides": 3, "patients": 2}
    assert "25.0% of the test images are also in the training set" in leaks.verdict(measured)


def test_the_leaks_are_those_of_the_rows_that_training_reads():
    """An image that upsampling leaves out is not in training; one that is drawn twice is two rows."""
    rows = [("a1", "s1", "p1", "train"), ("a2", "s2", "p2", "train"), ("a2", "s2", "p2", "test"),
            ("a1", "s1", "p1", "valid"), ("a3", "s1", "p1", "valid")]  # fmt: skip
    table = pd.DataFrame(rows, columns=["filename", "slide", "patient", "set"]).assign(label="benign")
    drawn = table.iloc[[0, 0]]
    measured, text = leaks.measure(table, drawn), leaks.describe(table, drawn)
    assert measured["shared"]["image"] == 0 and leaks.measure(table)["shared"]["image"] == 1
    assert measured["sets"]["train"]["benign"] == {"rows": 2, "images": 1, "slides": 1, "patients": 1}
    assert measured["validation_shared"] == {"image": 0.5, "slide": 1, "patient": 1}
    assert "training rows: 2, drawn from 1 of the 2 training images" in text
    assert "validation images that share with training: 50.0% their image, 100.0% their slide" in text


def test_the_validation_patients_are_named_up_to_a_number(full_table):
    parts = splits.split(full_table, options("patient", test_per_class=300))
    valid, text = parts[parts.set == "valid"], leaks.describe(parts)
    for label, rows in valid.groupby("label"):
        patients = sorted(set(rows.patient))
        assert f"validation patients, {label}: {len(patients)}: {', '.join(patients)}\n" in text + "\n"
    text = leaks.describe(splits.split(full_table, options("image", test_per_class=300)))
    assert text.endswith("validation patients, benign: 16\nvalidation patients, malignant: 54")


@pytest.mark.parametrize("twin, shared, key", [
    (("a3", "s3", "p3"), {"image": 0.5, "slide": 0.5, "patient": 0.5}, "image"),
    (("a9", "s3", "p3"), {"image": 0.0, "slide": 0.5, "patient": 0.5}, "slide"),
    (("a9", "s9", "p3"), {"image": 0.0, "slide": 0.0, "patient": 0.5}, "patient"),
])  # fmt: skip
def test_leaks_from_the_validation_set_are_named_too(twin, shared, key):
    """With the test set of another split, the threshold may have been chosen on the same images."""
    rows = [("a1", "s1", "p1", "train"), (*twin, "valid"), ("a3", "s3", "p3", "test"), ("a4", "s4", "p4", "test")]
    table = pd.DataFrame(rows, columns=["filename", "slide", "patient", "set"]).assign(label="benign")
    measured = leaks.measure(table)
    assert not any(measured["shared"].values()) and measured["shared_with_validation"] == shared
    assert f"50.0% of the test images share their {key} with the validation set" in leaks.verdict(measured)
    assert "new patients" not in leaks.describe(table) and "with validation: " in leaks.describe(table)


def test_the_verdict_fits_the_protocol():
    table = table_of(fold_rows(images=5))
    words = {"row": "not a measure of new images", "image": "not a measure of new slides", "slide": "may be optimistic",
             "patient": "new patients of this data set"}  # fmt: skip
    for protocol, sentence in words.items():
        parts = [splits.split(table, options(protocol, test_per_class=20, seed=seed)) for seed in range(8)]
        verdicts = [leaks.verdict(leaks.measure(part)) for part in parts]
        assert any(sentence in verdict for verdict in verdicts), protocol
        assert protocol == "slide" or all(sentence in verdict for verdict in verdicts), protocol
