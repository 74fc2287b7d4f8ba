"""Runs side by side, and beside what is published: a table, comparison.csv and .png, seeds.csv."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from evaluation import bootstrap, evaluation_plots, metrics
from evaluation.results import Evaluation
from images import plot_style
from safety import atomic_files, csv_files

# Published test accuracies, all on the real BreakHis.
REFERENCES = {
    "thesis 2023: ResNet50, by row": 0.9467,
    "Zhu et al. 2019: compact CNNs, by patient": 0.875,
    "Zhu et al. 2019: compact CNNs, by image": 0.844,
}

# What seeds.csv tells apart without being asked; any other setting has a column where runs differ in it.
ALWAYS = ["protocol", "base"]
# What is printed of the scores; the files have all.
PRINTED = ["accuracy", "f1", "roc_auc", "recognition_rate", "patient_accuracy"]


def compare(evaluated: dict[Path, Evaluation]) -> None:
    """Prints the runs side by side and writes comparison.csv, .png, seeds.csv and pairs.csv beside the first.

    Args:
        evaluated: a run's folder -> its evaluation.
    """
    alike, pairs = kinds(evaluated), pair_up(evaluated)
    table = tabulate(evaluated, alike)
    summed = over_seeds(table, list(alike))
    out, note = next(iter(evaluated)).parent, describe_differences(evaluated, alike)
    atomic_files.write_text(out / "comparison.csv", table.to_csv(index=False))
    atomic_files.write_text(out / "seeds.csv", summed.to_csv())
    plot_style.save(
        evaluation_plots.comparison(table.assign(group=names(alike)), REFERENCES), out / "comparison.png", note
    )
    written = [f"{out}/comparison.csv", f"{out}/comparison.png", f"{out}/seeds.csv"]
    more = [key for key in metrics.SCORES if key not in PRINTED]
    print("", table.drop(columns=more).to_string(index=False, float_format="%.4f"), "", sep="\n")
    shown = [name for name in summed if name.split(" ")[0] not in more]
    print(summed[shown].to_string(float_format="%.4f", na_rep="-"))
    # That of an earlier comparison would pass for one of these runs.
    (out / "pairs.csv").unlink(missing_ok=True)
    if len(pairs):
        atomic_files.write_text(out / "pairs.csv", pairs.to_csv(index=False))
        written.append(f"{out}/pairs.csv")
        print("", "on the same test images:", pairs.to_string(index=False, float_format="%.4f", na_rep="-"), sep="\n")
    print(f"\ncomparison: {', '.join(written)}", note, sep="\n")


def describe_differences(evaluated: dict[Path, Evaluation], alike: pd.DataFrame) -> str:
    """What stands below the comparison: whether the runs saw different data, equal seeds, and the runs' own notes."""
    own = [note for found in evaluated.values() for note in found.notes]
    said = [*_differences_of_data(evaluated), *_thresholds(evaluated), *_equal_seeds(evaluated, alike)]
    return " ".join(dict.fromkeys([*said, *own]))


def _differences_of_data(evaluated: dict[Path, Evaluation]) -> Iterator[str]:
    if len({_data_of(found) for found in evaluated.values()} - {None}) > 1:
        yield "These runs were trained on different data; their scores cannot be compared."
    unknown = [csv_files.spreadsheet_safe(run.name) for run, found in evaluated.items() if _data_of(found) is None]
    if unknown:
        yield f"Unknown is what data was trained on by {', '.join(unknown)}."


def _thresholds(evaluated: dict[Path, Evaluation]) -> Iterator[str]:
    rules = dict.fromkeys(found.results["threshold_rule"] for found in evaluated.values())
    if len(rules) > 1:
        yield f"Unequal are the rules of the thresholds: {', '.join(rules)}; with --threshold all runs take one."


def _equal_seeds(evaluated: dict[Path, Evaluation], alike: pd.DataFrame) -> Iterator[str]:
    runs = alike.assign(seed=[found.results["seed"] for found in evaluated.values()])
    runs["run"] = [csv_files.spreadsheet_safe(run.name) for run in evaluated]
    for equal in runs.groupby([*alike, "seed"], sort=False).run.apply(list):
        if len(equal) > 1:
            yield f"Equal in settings and seed, so no spread over seeds: {', '.join(equal)}."


def _data_of(found: Evaluation) -> str | None:
    return found.environment.get("data_sha256")


def kinds(evaluated: dict[Path, Evaluation]) -> pd.DataFrame:
    """A row a run: protocol, base, and what else the runs differ in other than seed and name, as texts.

    That is any other setting, the rule of the threshold, and whose test images were taken.
    """
    rows = []
    for found in evaluated.values():
        settings = pd.json_normalize(found.settings.model_dump()).iloc[0]
        settings = settings.drop(["data.protocol", "model.base", "data.seed", "train.run"])
        asked = {"threshold": found.results["threshold_rule"], "split": found.results["split"]}
        rows.append({**{key: found.results[key] for key in ALWAYS}, **settings, **asked})
    table = pd.DataFrame(rows).astype(str)
    return table.loc[:, table.columns.isin(ALWAYS) | (table.nunique() > 1)]


def names(alike: pd.DataFrame) -> list[str]:
    """What the chart calls each run's kind: its protocol, its base if there are several, what else they differ in."""
    several = [name for name in alike if name not in ALWAYS or (name == "base" and alike.base.nunique() > 1)]
    return [
        "\n".join([row["protocol"], *(row[name] if name == "base" else f"{name} {row[name]}" for name in several)])
        for row in alike.to_dict("records")
    ]


def tabulate(evaluated: dict[Path, Evaluation], alike: pd.DataFrame) -> pd.DataFrame:
    """A row a run: its kind and seed, what the test set rests on and shares with training, scores.

    `difference` is the accuracy less that of the first run; shared_image, shared_slide and shared_patient are the
    shares (0 to 1) of the test images whose image, slide and patient stand in training, shared_image_valid and so on
    the same of validation.
    """
    results = {run: found.results for run, found in evaluated.items()}
    first = next(iter(results.values()))
    return pd.DataFrame(
        [
            {
                "run": csv_files.spreadsheet_safe(run.name),
                **kind,
                **{key: found[key] for key in ("seed", "n", "slides", "patients")},
                **{f"shared_{key}": share for key, share in found["leaks"]["shared"].items()},
                **{f"shared_{key}_valid": share for key, share in found["leaks"]["shared_with_validation"].items()},
                **{key: found[key] for key in metrics.SCORES},
                "difference": found["accuracy"] - first["accuracy"],
            }
            for (run, found), kind in zip(results.items(), alike.to_dict("records"))
        ]
    )


def pair_up(evaluated: dict[Path, Evaluation]) -> pd.DataFrame:
    """A row for each two runs that were tested on the same images, with what `intervals.paired` gives.

    Runs that are known to be of different data are no pair, whatever the names of their images.
    """
    tested: dict[tuple, list] = {}
    for run, found in evaluated.items():
        # Under the row protocol an image may be tested twice; a pair of rows must be the same pair in both runs.
        if found.predictions.filename.is_unique:
            tested.setdefault(tuple(sorted(found.predictions.filename)), []).append((run, found))
    return pd.DataFrame(
        [
            {
                "first": csv_files.spreadsheet_safe(one.name),
                "second": csv_files.spreadsheet_safe(other.name),
                **bootstrap.paired(left.predictions, right.predictions),
            }
            for runs in tested.values()
            for (one, left), (other, right) in itertools.combinations(runs, 2)
            if len({_data_of(left), _data_of(right)} - {None}) < 2
        ]
    )


def over_seeds(table: pd.DataFrame, alike: list[str]) -> pd.DataFrame:
    """Each kind of run, in the order in which they came: number of runs, seeds, and every score's mean and deviation.

    Args:
        table: of `tabulate`.
        alike: the columns in which runs must agree to be summed up; runs differ in their seed then.
    """
    groups = table.groupby(alike, sort=False)
    scores = groups[list(metrics.SCORES)].agg(["mean", "std"])
    scores.columns = [" ".join(column) for column in scores.columns]
    counts = {"runs": groups.size(), "seeds": groups.seed.agg(lambda seeds: " ".join(map(str, seeds)))}
    return pd.concat([pd.DataFrame(counts | {"patients": groups.patients.mean().round(1)}), scores], axis=1)
