"""Compares runs with each other and with published results: a printed table, comparison.csv and .png, seeds.csv."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from evaluation import bootstrap, evaluation_plots, metrics, paired_folds
from evaluation.evaluation import Evaluation
from images import plot_style
from safety import atomic_files, csv_files

# Published test accuracies, all on the real BreakHis.
REFERENCES = {
    "thesis 2023: ResNet50, by row": 0.9467,
    "Zhu et al. 2019: compact CNNs, by patient": 0.875,
    "Zhu et al. 2019: compact CNNs, by image": 0.844,
}

# These always have a column; any other setting has one only where runs differ in it.
ALWAYS = ["protocol", "base"]
# Settings that another column holds, or in which runs of one configuration may differ.
SEPARATE = ["data.protocol", "model.base", "data.test_views", "data.seed", "train.run"]
# The scores and leaks that are always printed, and the other leaks where there are some; the files have all of them.
PRINTED = ["shared_image", "shared_patient", "accuracy", "f1", "roc_auc", "recognition_rate", "patient_accuracy"]


def compare(evaluations: dict[Path, Evaluation]) -> None:
    """Prints the comparison and writes comparison.csv, comparison.png, seeds.csv and pairs.csv next to the first run.

    Args:
        evaluations: a run's folder -> its evaluation.
    """
    configurations, pairs = distinguish(evaluations), pair_up(evaluations)
    runs = tabulate(evaluations, configurations)
    seeds = summarize_seeds(runs, list(configurations))
    out, note = next(iter(evaluations)).parent, notes(evaluations, configurations)
    crossed = all(map(_is_crossed, evaluations.values()))
    if crossed:
        chart = evaluation_plots.cross_validations(headline(evaluations))
    else:
        chart = evaluation_plots.comparison(runs.assign(group=chart_labels(configurations)), REFERENCES)
    atomic_files.write_text(out / "comparison.csv", runs.to_csv(index=False))
    plot_style.save(chart, out / "comparison.png", note)
    atomic_files.write_text(out / "seeds.csv", seeds.to_csv())
    # Pairs of an earlier comparison would be taken for pairs of these runs.
    (out / "pairs.csv").unlink(missing_ok=True)
    if len(pairs):
        atomic_files.write_text(out / "pairs.csv", pairs.to_csv(index=False))
    if crossed:
        print("", in_words(headline(evaluations)).to_string(index=False), sep="\n")
    else:
        _print(runs, seeds)
    if len(pairs):
        print("", "on the same test images:", pairs.to_string(index=False, float_format="%.4f", na_rep="-"), sep="\n")
    files = ["comparison.csv", "comparison.png", "seeds.csv", *(["pairs.csv"] if len(pairs) else [])]
    print(f"\ncomparison: {', '.join(f'{out}/{name}' for name in files)}", note, sep="\n")


def _print(runs: pd.DataFrame, seeds: pd.DataFrame) -> None:
    no_leaks = [name for name in runs if name.startswith("shared_") and not runs[name].any()]
    hidden = ["slides", *(name for name in [*no_leaks, *metrics.SCORES] if name not in PRINTED)]
    shown = [name for name in seeds if name.split(" ")[0] not in hidden]
    print("", runs.drop(columns=hidden).to_string(index=False, float_format="%.4f"), "", sep="\n")
    print(seeds[shown].to_string(float_format="%.4f", na_rep="-"))


def _is_crossed(evaluation: Evaluation) -> bool:
    return "cross_validation" in evaluation.results


def headline(evaluations: dict[Path, Evaluation]) -> pd.DataFrame:
    """What a reader of cross-validations wants first, a row each.

    Returns:
        run, protocol, balanced_accuracy, sensitivity, specificity, low and high of the first's 95 % interval over
        patients (NaN for none), images, the patients of each class (benign, malignant), and shared_patient, the share
        (0 to 1) of test images whose patient is in training.
    """
    rows = []
    for run, evaluation in evaluations.items():
        results = evaluation.results
        row = {"run": csv_files.spreadsheet_safe(run.name), "protocol": results["protocol"], "images": results["n"]}
        row.update({name: results[name] for name in metrics.SPREAD[:3]})
        row["low"], row["high"] = results["intervals"]["balanced_accuracy"]["headline"] or (np.nan, np.nan)
        rows.append({**row, **results["patients_by_class"], "shared_patient": results["leaks"]["shared"]["patient"]})
    return pd.DataFrame(rows)


def in_words(table: pd.DataFrame) -> pd.DataFrame:
    """The table of `headline` as texts, as they are printed."""
    return pd.DataFrame(
        {
            "run": row.run,
            "protocol": row.protocol,
            "balanced accuracy": f"{row.balanced_accuracy:.3f}",
            "95 % over patients": "-" if np.isnan(row.low) else f"{row.low:.3f} to {row.high:.3f}",
            "sensitivity": f"{row.sensitivity:.3f}",
            "specificity": f"{row.specificity:.3f}",
            "images": row.images,
            "patients (benign + malignant)": f"{row.benign} + {row.malignant}",
            "patient in training": f"{row.shared_patient:.0%}",
        }
        for row in table.itertuples()
    )


def notes(evaluations: dict[Path, Evaluation], configurations: pd.DataFrame) -> str:
    """What a reader of the comparison has to know: what makes runs not comparable, then the notes of each run."""
    warnings = [
        *_different_data(evaluations),
        *_different_threshold_rules(evaluations),
        *_equal_seeds(evaluations, configurations),
    ]
    notes_of_runs = [note for evaluation in evaluations.values() for note in evaluation.notes]
    return " ".join(dict.fromkeys([*warnings, *notes_of_runs]))


def _different_data(evaluations: dict[Path, Evaluation]) -> Iterator[str]:
    hashes = {csv_files.spreadsheet_safe(run.name): _data_hash(each) for run, each in evaluations.items()}
    if len(set(hashes.values()) - {None}) > 1:
        yield "These runs were trained on different data; their scores cannot be compared."
    unknown = [name for name, data_hash in hashes.items() if data_hash is None]
    if unknown:
        yield f"The training data of these runs is unknown: {', '.join(unknown)}."


def _different_threshold_rules(evaluations: dict[Path, Evaluation]) -> Iterator[str]:
    rules = dict.fromkeys(evaluation.results["threshold_rule"] for evaluation in evaluations.values())
    crossed = any(map(_is_crossed, evaluations.values()))
    advice = "give crossval.py the same --threshold" if crossed else "--threshold sets one rule for all runs"
    if len(rules) > 1:
        yield f"The threshold rules differ: {', '.join(rules)}; {advice}."


def _equal_seeds(evaluations: dict[Path, Evaluation], configurations: pd.DataFrame) -> Iterator[str]:
    runs = configurations.assign(seed=[evaluation.results["seed"] for evaluation in evaluations.values()])
    runs["run"] = [csv_files.spreadsheet_safe(run.name) for run in evaluations]
    for equal in runs.groupby([*configurations, "seed"], sort=False).run.apply(list):
        if len(equal) > 1:
            yield f"These runs have equal settings and seed, so they show no spread over seeds: {', '.join(equal)}."


def _data_hash(evaluation: Evaluation) -> str | None:
    return evaluation.environment.get("data_sha256")


def distinguish(evaluations: dict[Path, Evaluation]) -> pd.DataFrame:
    """The configuration of each run: protocol, base, and whatever else differs between the runs, as texts.

    What can differ is every setting but the seed, the run's name and a stain that a run has fitted, the threshold rule,
    the number of views that were averaged (for `data.test_views`, which --views replaces), and the source of the test
    images (`split`). Runs with equal rows differ only in their seed.

    Returns:
        A row per run.
    """
    rows = []
    for evaluation in evaluations.values():
        settings = pd.json_normalize(evaluation.settings.model_dump()).iloc[0]
        settings = settings.drop(SEPARATE)
        # Fitted for each run, the target is no setting; earlier versions do not tell.
        if evaluation.environment.get("stain_target") != "given":
            settings["data.stain_target"] = "auto"
        results = evaluation.results
        options = {"threshold": results["threshold_rule"], "views": results.get("views", 1), "split": results["split"]}
        rows.append({**{key: results[key] for key in ALWAYS}, **settings, **options})
    table = pd.DataFrame(rows).astype(str)
    return table.loc[:, table.columns.isin(ALWAYS) | (table.nunique() > 1)]


def chart_labels(configurations: pd.DataFrame) -> list[str]:
    """The label of each run's configuration in the chart: protocol, base if there are several, other differences."""
    columns = [
        name for name in configurations if name not in ALWAYS or (name == "base" and configurations.base.nunique() > 1)
    ]
    return [
        "\n".join([row["protocol"], *(row[name] if name == "base" else f"{name} {row[name]}" for name in columns)])
        for row in configurations.to_dict("records")
    ]


def tabulate(evaluations: dict[Path, Evaluation], configurations: pd.DataFrame) -> pd.DataFrame:
    """The table of comparison.csv, a row per run: configuration, seed, size of the test set, leaks, scores.

    `shared_image`, `shared_slide` and `shared_patient` are the shares (0 to 1) of test images whose image, slide or
    patient is in the training set too; those with `_valid` are the same for the validation set. `difference` is the
    accuracy minus that of the first run.
    """
    results = {run: evaluation.results for run, evaluation in evaluations.items()}
    first = next(iter(results.values()))
    return pd.DataFrame(
        [
            {
                "run": csv_files.spreadsheet_safe(run.name),
                **configuration,
                **{key: row[key] for key in ("seed", "n", "slides", "patients")},
                **{f"shared_{key}": share for key, share in row["leaks"]["shared"].items()},
                **{f"shared_{key}_valid": share for key, share in row["leaks"]["shared_with_validation"].items()},
                **{key: row[key] for key in metrics.SCORES},
                "difference": row["accuracy"] - first["accuracy"],
            }
            for (run, row), configuration in zip(results.items(), configurations.to_dict("records"))
        ]
    )


def pair_up(evaluations: dict[Path, Evaluation]) -> pd.DataFrame:
    """The table of pairs.csv: `bootstrap.paired` of every two runs that were tested on the same images, and
    `paired_folds.paired` of every two cross-validations on the same folds.

    Runs that are known to be trained on different data are no pair, even if their images have the same names.
    """
    same_images: dict[tuple, list] = {}
    for run, evaluation in evaluations.items():
        # Only the same folds make two cross-validations a pair.
        if _is_crossed(evaluation):
            key = tuple(sorted(zip(*(evaluation.predictions[name] for name in ("filename", "repeat", "fold")))))
            same_images.setdefault(key, []).append((run, evaluation))
        # Under the row protocol a test set can hold an image twice, and rows could not be matched by file name.
        elif evaluation.predictions.filename.is_unique:
            same_images.setdefault(tuple(sorted(evaluation.predictions.filename)), []).append((run, evaluation))
    return pd.DataFrame(
        [
            {
                "first": csv_files.spreadsheet_safe(first_run.name),
                "second": csv_files.spreadsheet_safe(second_run.name),
                **_paired(first, second),
            }
            for runs in same_images.values()
            for (first_run, first), (second_run, second) in itertools.combinations(runs, 2)
            if len({_data_hash(first), _data_hash(second)} - {None}) < 2
        ]
    )


def _paired(first: Evaluation, second: Evaluation) -> dict:
    if _is_crossed(first):
        images = first.results["cross_validation"]["images"]
        return paired_folds.paired(first.predictions, second.predictions, images)
    return bootstrap.paired(first.predictions, second.predictions)


def summarize_seeds(runs: pd.DataFrame, configuration: list[str]) -> pd.DataFrame:
    """The table of seeds.csv, a row per configuration: number of runs, seeds, mean and deviation of every score.

    Args:
        runs: of `tabulate`.
        configuration: the columns that are equal in runs which differ only in their seed.
    """
    groups = runs.groupby(configuration, sort=False)
    scores = groups[list(metrics.SCORES)].agg(["mean", "std"])
    scores.columns = [" ".join(column) for column in scores.columns]
    counts = {"runs": groups.size(), "seeds": groups.seed.agg(lambda seeds: " ".join(map(str, seeds)))}
    return pd.concat([pd.DataFrame(counts | {"patients": groups.patients.mean().round(1)}), scores], axis=1)
