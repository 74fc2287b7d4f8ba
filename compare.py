"""Runs side by side, and beside what is published: a table, comparison.csv and comparison.png."""

from __future__ import annotations

import itertools
from pathlib import Path

import config  # noqa: F401  first, because it quiets TensorFlow

import pandas as pd

import files
import intervals
import plots
import tables
from report import Evaluation

# Published test accuracies, all on the real BreakHis.
REFERENCES = {
    "thesis 2023: ResNet50, by row": 0.9467,
    "Zhu et al. 2019: compact CNNs, by patient": 0.875,
    "Zhu et al. 2019: compact CNNs, by image": 0.844,
}


SCORES = ["accuracy", "f1", "roc_auc", "recognition_rate", "patient_accuracy"]


def compare(evaluated: dict[Path, Evaluation]) -> None:
    """Prints the runs side by side and writes comparison.csv, .png and pairs.csv beside the first.

    Args:
        evaluated: a run's folder -> its evaluation.
    """
    table, pairs = tabulate(evaluated), pair_up(evaluated)
    out, note = next(iter(evaluated)).parent, describe_differences(evaluated)
    files.write_text(out / "comparison.csv", table.to_csv(index=False))
    plots.save(plots.comparison(table, REFERENCES), out / "comparison.png", note)
    written = [f"{out}/comparison.csv", f"{out}/comparison.png"]
    print("", table.to_string(index=False, float_format="%.4f"), "", sep="\n")
    print(over_seeds(table).to_string(float_format="%.4f", na_rep="-"))
    if len(pairs):
        files.write_text(out / "pairs.csv", pairs.to_csv(index=False))
        written.append(f"{out}/pairs.csv")
        print("", "on the same test images:", pairs.to_string(index=False, float_format="%.4f", na_rep="-"), sep="\n")
    print(f"\ncomparison: {', '.join(written)}", note, sep="\n")


def describe_differences(evaluated: dict[Path, Evaluation]) -> str:
    """What stands below the comparison: the runs' own notes, and whether they saw different data."""
    versions = {found.environment.get("data_sha256") for found in evaluated.values()}
    notes = dict.fromkeys(note for found in evaluated.values() for note in found.notes)
    different = ["These runs were trained on different data; their scores cannot be compared."] * (len(versions) > 1)
    return " ".join([*different, *notes])


def tabulate(evaluated: dict[Path, Evaluation]) -> pd.DataFrame:
    """A row a run: protocol, base, seed, what the test set rests on and shares with training, scores.

    `difference` is the accuracy less that of the first run; shared_image, shared_slide and shared_patient are the
    shares (0 to 1) of the test images whose image, slide and patient stand in training.
    """
    results = {run: found.results for run, found in evaluated.items()}
    first = next(iter(results.values()))
    return pd.DataFrame(
        [
            {
                "run": tables.plain(run.name),
                **{key: found[key] for key in ("protocol", "base", "seed", "n", "slides", "patients")},
                **{f"shared_{key}": share for key, share in found["leaks"]["shared"].items()},
                **{key: found[key] for key in SCORES},
                "difference": found["accuracy"] - first["accuracy"],
            }
            for run, found in results.items()
        ]
    )


def pair_up(evaluated: dict[Path, Evaluation]) -> pd.DataFrame:
    """A row for each two runs that were tested on the same images, with what `intervals.paired` gives."""
    tested: dict[tuple, list] = {}
    for run, found in evaluated.items():
        # Under the row protocol an image may be tested twice; a pair of rows must be the same pair in both runs.
        if found.predictions.filename.is_unique:
            tested.setdefault(tuple(sorted(found.predictions.filename)), []).append(
                (tables.plain(run.name), found.predictions)
            )
    return pd.DataFrame(
        [
            {"first": one, "second": other, **intervals.paired(left, right)}
            for runs in tested.values()
            for (one, left), (other, right) in itertools.combinations(runs, 2)
        ]
    )


def over_seeds(table: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard deviation of the scores of each protocol and base, in the order in which they came."""
    groups = table.groupby(["protocol", "base"], sort=False)
    scores = groups[SCORES].agg(["mean", "std"])
    scores.columns = [" ".join(column) for column in scores.columns]
    return scores.assign(runs=groups.size(), patients=groups.patients.mean().round(1))
