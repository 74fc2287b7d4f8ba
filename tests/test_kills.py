"""SIGKILL at random moments of each long command: the end is as if nothing had happened.

Only one of them is short; the others, with KILLS kills each, are run by hand.
"""

import random
import shutil
import time
import zipfile

import pytest
from killed_runs import MODES, kill_at_random, kill_group_at_random, start, what_is_left
from tiny_tree import tiny_settings

from training import environment

KILLS = 20


@pytest.mark.parametrize("mode, kills, epochs", [
    ("cached", 1, 6),
    pytest.param("cached", 50, 40, marks=pytest.mark.long),
    pytest.param("end_to_end", 20, 12, marks=pytest.mark.long),
    pytest.param("from_scratch", 12, 20, marks=pytest.mark.long),
    pytest.param("fine_tuned", 10, 2, marks=pytest.mark.long),
])  # fmt: skip
def test_a_killed_run_ends_as_one_that_was_left_alone(tree, tmp_path, record_property, mode, kills, epochs):
    settings = tiny_settings(tree, *MODES[mode], f"train.epochs={epochs}")
    undisturbed = start(tmp_path, *settings, "train.run=undisturbed")
    assert undisturbed.wait() == 0, undisturbed.stderr.read()
    expected, rng, done, inside, runs = what_is_left(tmp_path / "runs/undisturbed"), random.Random(kills), 0, 0, 0
    while done < kills:
        name, runs = f"killed{runs}", runs + 1
        there, hit = kill_at_random(tmp_path, name, settings, kills - done, rng)
        assert there, "the run ended before it could be killed"
        done, inside = done + there, inside + hit
        assert what_is_left(tmp_path / "runs" / name) == expected
        assert not list((tmp_path / "runs" / name).glob(".[0-9]*"))
    outcome = f"{mode}: {done} kills in {runs} runs, {inside} of them inside a write; every run ended bit-identical"
    record_property("outcomes", outcome)


@pytest.mark.long
def test_a_killed_grid_ends_as_one_that_was_left_alone(tree, tmp_path, record_property):
    settings = [text for text in tiny_settings(tree, *MODES["from_scratch"]) if not text.startswith("train.run")]
    arguments = ["a", *settings, "train.epochs=6", "data.seed=0,1", "--jobs", "2"]
    expected, seconds = run_grid(tmp_path / "undisturbed", arguments)
    rng, done, grids = random.Random(KILLS), 0, 0
    while done < KILLS:
        place, grids = tmp_path / f"killed{grids}", grids + 1
        place.mkdir()
        done += kill_group_at_random(place, "grid.py", arguments, KILLS - done, seconds, rng)
        assert outcome_of_grid(place) == expected
        assert not list((place / "runs").glob(".*.lock")) and not list((place / "runs").glob("a-*/.*"))
    record_property("outcomes", f"grid.py: {done} kills in {grids} grids; every grid ended bit-identical")


def run_grid(place, arguments):
    place.mkdir()
    started, process = time.monotonic(), start(place, *arguments, command="grid.py")
    stderr = process.communicate()[1]
    assert process.returncode == 0, stderr
    return outcome_of_grid(place), time.monotonic() - started


def outcome_of_grid(place):
    runs = place / "runs"
    return [what_is_left(runs / name) for name in ("a-0", "a-1")], (runs / "comparison.csv").read_bytes()


@pytest.mark.long
def test_a_killed_evaluation_ends_as_one_that_was_left_alone(copy, tmp_path, record_property):
    """After each kill the checkpoint is whole, and so is each file that is in evaluation/."""
    shutil.rmtree(copy / "evaluation")
    started, process = time.monotonic(), start(tmp_path, "runs/tiny", command="evaluate.py")
    assert process.wait() == 0, process.stderr.read()
    seconds, whole = time.monotonic() - started, contents(copy / "evaluation")
    rng, done, inside, evaluations = random.Random(KILLS), 0, 0, 0

    def check():
        nonlocal inside
        assert zipfile.ZipFile(copy / "best_model.keras").testzip() is None
        assert contents(copy / "evaluation").items() <= whole.items()
        inside += any(copy.glob(".[0-9]*"))

    while done < KILLS:
        shutil.rmtree(copy / "evaluation")
        done += kill_group_at_random(tmp_path, "evaluate.py", ["runs/tiny"], KILLS - done, seconds, rng, check)
        evaluations += 1
        assert contents(copy / "evaluation") == whole
        assert not list(copy.glob(".*")) and not list(copy.parent.glob(".*"))
    outcome = f"evaluate.py: {done} kills in {evaluations} evaluations, {inside} of them inside a write"
    record_property("outcomes", f"{outcome}; every evaluation ended with the same files")


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else {}


@pytest.mark.long
@pytest.mark.parametrize("jobs", [1, 2])
def test_a_killed_cross_validation_ends_as_one_that_was_left_alone(tree, tmp_path, record_property, jobs):
    settings = [text for text in tiny_settings(tree, "data.protocol=patient") if not text.startswith("train.run")]
    arguments = ["cv", *settings, "--folds", "2", "--repeats", "2", "--jobs", str(jobs)]
    place, seconds = tmp_path / "undisturbed", -time.monotonic()
    place.mkdir()
    process = start(place, *arguments, command="crossval.py")
    assert process.wait() == 0, process.stderr.read()
    seconds, expected = seconds + time.monotonic(), outcome_of_cross_validation(place)
    rng, done, killed = random.Random(KILLS), 0, 0
    while done < KILLS:
        place, killed = tmp_path / f"killed{killed}", killed + 1
        place.mkdir()
        done += kill_group_at_random(place, "crossval.py", arguments, KILLS - done, seconds, rng)
        assert outcome_of_cross_validation(place) == expected
        assert not list((place / "runs").rglob(".*"))
    outcome = f"crossval.py, {jobs} at a time: {done} kills in {killed} cross-validations"
    record_property("outcomes", f"{outcome}; oof.csv, folds/ and evaluation/ are byte-identical")


def outcome_of_cross_validation(place):
    run = place / "runs/cv"
    evaluation = contents(run / "evaluation")
    # The report states when the cross-validation was started.
    started = environment.read(run)["started"].encode()
    assert started in evaluation["report.html"]
    evaluation["report.html"] = evaluation["report.html"].replace(started, b"")
    return (run / "oof.csv").read_bytes(), contents(run / "folds"), evaluation
