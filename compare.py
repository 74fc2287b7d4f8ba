"""Runs side by side, and beside what is published: a table, comparison.csv and comparison.png."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

import files
import plots

# Published test accuracies, all on the real BreakHis.
REFERENCES = {
    "thesis 2023: ResNet50, by row": 0.9467,
    "Zhu et al. 2019: compact CNNs, by patient": 0.875,
    "Zhu et al. 2019: compact CNNs, by image": 0.844,
}


def compare(results: dict[Path, dict]) -> None:
    """Prints the runs side by side and writes comparison.csv and comparison.png beside the first.

    Args:
        results: a run's folder -> what is in its metrics.json.
    """
    table = tabulate(results)
    out = next(iter(results)).parent
    note = " ".join(sorted({found["notice"] for found in results.values()} - {""}))
    files.write_text(out / "comparison.csv", table.to_csv(index=False))
    plots.save(plots.comparison(table, REFERENCES), out / "comparison.png", note)
    print("", table.to_string(index=False, float_format="%.4f"), "", sep="\n")
    print(over_seeds(table).to_string(float_format="%.4f"))
    print(f"\ncomparison: {out}/comparison.csv, {out}/comparison.png", *([note] if note else []), sep="\n")


def tabulate(results: dict[Path, dict]) -> pd.DataFrame:
    """A row a run: protocol, seed, what the test set rests on and shares with training, scores.

    `difference` is the accuracy less that of the first run; shared_image, shared_slide and shared_patient are the
    shares (0 to 1) of the test images whose image, slide and patient stand in training.
    """
    first = next(iter(results.values()))
    return pd.DataFrame(
        [
            {
                "run": run.name,
                **{key: found[key] for key in ("protocol", "seed", "n", "slides", "patients")},
                **{f"shared_{key}": share for key, share in found["leaks"]["shared"].items()},
                **{key: found[key] for key in ("accuracy", "f1", "roc_auc")},
                "difference": found["accuracy"] - first["accuracy"],
            }
            for run, found in results.items()
        ]
    )


def over_seeds(table: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard deviation of the scores of each protocol, in the order in which the protocols came."""
    groups = table.groupby("protocol", sort=False)
    scores = groups[["accuracy", "f1", "roc_auc"]].agg(["mean", "std"])
    scores.columns = [" ".join(column) for column in scores.columns]
    return scores.assign(runs=groups.size(), patients=groups.patients.mean())
