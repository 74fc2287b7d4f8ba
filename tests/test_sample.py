import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import config
import data
from images import audit
from sample import MAGNIFICATIONS, all_slides, save
from sample import table as folds_table

ROOT = Path(config.__file__).parent


def write(folder, *arguments):
    return subprocess.run([sys.executable, ROOT / "sample.py", folder, *arguments], capture_output=True, text=True)


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "sample"
    result = write(folder, "--images", "1")
    assert result.returncode == 0, result.stderr
    return folder, result.stdout


@pytest.fixture(scope="module")
def table(sample):
    return data.read_folds(sample[0] / "Folds.csv")


@pytest.fixture(scope="module")
def images(sample, table):
    """A row an image with its mean colour, and how much of it is dark: a rough measure of the nuclei."""
    folder = audit.image_folder(sample[0])
    images = table.drop_duplicates("filename").reset_index(drop=True)
    pixels = [np.asarray(Image.open(folder / path), np.float32) for path in images.path]
    colour = pd.DataFrame([image.mean(axis=(0, 1)) for image in pixels], columns=list("rgb"))
    texture = [[image[..., 0].std(), np.abs(np.diff(image[..., 0], axis=1)).mean(), np.percentile(image[..., 0], 5)]
               for image in pixels]  # fmt: skip
    return images.join(colour).join(pd.DataFrame(texture, columns=["spread", "edges", "dark"]))


def accuracy(images, columns, groups, classifier=None):
    classifier = make_pipeline(StandardScaler(), classifier or LogisticRegression(class_weight="balanced"))
    folds = GroupKFold(5, shuffle=True, random_state=0)
    scores = cross_val_score(
        classifier, images[columns], images.label, groups=groups, cv=folds, scoring="balanced_accuracy"
    )
    return scores.mean()


def test_output_marker_and_images_say_that_the_sample_is_synthetic(sample):
    folder, printed = sample
    assert "Synthetic" in printed.splitlines()[0] and "synthetic" in printed.splitlines()[-1]
    assert "no evidence of anything medical" in data.notice(folder)
    assert "no evidence" in Image.open(next(folder.rglob("*.png"))).info["Comment"]


def test_names_and_folders_are_those_of_breakhis(sample, table):
    folder, _ = sample
    assert set(table.subtype) == {subtype for _, subtype in data.SUBTYPES.values()}
    assert set(table.mag) == {40, 100, 200, 400} and set(table.slide.str[:2]) == {"14", "15"}
    on_disk = {path.name for path in folder.rglob("*.png")}
    assert on_disk == set(table.filename) and len(table) == 5 * len(on_disk)
    pd.testing.assert_series_equal(data.read_tree(audit.image_folder(folder)).filename, pd.Series(sorted(on_disk)),
                                   check_names=False, check_dtype=False)  # fmt: skip


def test_there_are_enough_patients_for_every_protocol(table):
    groups = table.drop_duplicates("slide")
    assert groups.groupby("subtype").patient.nunique().min() >= 3
    assert (groups.groupby(["label", "patient"]).size() > 1).groupby(level=0).sum().min() >= 3
    tested = table[table.grp == "test"].groupby("fold")
    assert (tested.slide.nunique() / table.slide.nunique()).between(0.3, 0.37).all()


def test_both_heights_occur(sample):
    assert {Image.open(path).size for path in sample[0].rglob("*.png")} == {(350, 230), (350, 228)}


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(sample, tmp_path):
    folder, _ = sample
    slides = all_slides()
    for seed, same in ((0, True), (1, False)):
        save(tmp_path / str(seed), seed, (slides[0], 40, 1))
        path = next((tmp_path / str(seed)).rglob("*.png"))
        twin = next(folder.rglob(path.name))
        assert (path.read_bytes() == twin.read_bytes()) is same
        jobs = [(slide, mag, 1) for slide in slides for mag in MAGNIFICATIONS]
        assert (folds_table(slides, jobs, seed) == (folder / "Folds.csv").read_text()) is same


def test_a_second_call_does_nothing_and_other_folders_are_left_alone(sample, tmp_path):
    folder, _ = sample
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert write(folder, "--images", "1").returncode == 0
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.docx").touch()
    for arguments in ((folder, "--images", "2"), (tmp_path / "mine",), (tmp_path / "new", "--images", "0")):
        result = write(*arguments)
        assert result.returncode == 2 and result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "thesis.docx"]


def test_the_mean_colour_does_not_tell_the_class_of_new_patients(images):
    assert accuracy(images, ["r", "g", "b"], images.patient) < 0.65


def test_the_nuclei_tell_the_class_of_new_patients(images):
    colour = accuracy(images, ["r", "g", "b"], images.patient)
    assert accuracy(images, ["spread", "edges", "dark"], images.patient) > max(0.6, colour + 0.08)


def test_the_colour_tells_the_slide_so_a_split_that_divides_slides_scores_higher(images):
    neighbour = KNeighborsClassifier(1)
    assert accuracy(images, ["r", "g", "b"], images.filename, neighbour) > 0.15 + accuracy(
        images, ["r", "g", "b"], images.patient, neighbour
    )


def test_a_folder_that_cannot_be_written_is_named_in_one_line():
    result = write("/proc/none/x", "--images", "1")
    assert result.returncode == 2 and result.stderr.startswith("error: /proc/none: ") and result.stderr.count("\n") == 1
