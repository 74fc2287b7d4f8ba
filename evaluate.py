"""Evaluates runs on their held-out test sets: python evaluate.py runs/NAME [...]

    python evaluate.py runs/thesis                           writes runs/thesis/evaluation/ with report.html in it
    python evaluate.py runs/thesis/best_model.keras          the same
    python evaluate.py runs/thesis --threshold youden        with a threshold chosen on the validation set
    python evaluate.py runs/thesis --views 8                 with the mean over the 8 exact turns of each image
    python evaluate.py runs/a runs/b                         both, and runs/comparison.csv and .png

It needs only the run's folder and the images: settings, split and threshold are in the checkpoint and next to it.
"""

from __future__ import annotations

import safety.startup

safety.startup.start_command(__name__)  # before all other imports, which take seconds

import argparse
from pathlib import Path

import pandas as pd

import config
import data
from evaluation import (
    bootstrap,
    calibration,
    comparison,
    cross_validation,
    metrics,
    out_of_distribution,
    predictions,
    report,
)
from evaluation.evaluation import Evaluation
from features import source
from images import audit, leaks, splits
from safety import atomic_files, command_line, limits, lock
from safety.errors import InputError
from training import checkpoint, cross_validation_files, decision, environment, resume


def main(arguments: list[str]) -> None:
    """Evaluates every run on the command line, and compares them if there are several."""
    parser = command_line.CommandLine(__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder, or the checkpoint in one")
    parser.add_argument("--split", metavar="FILE", help="use the test images of this split.csv, not those of the run")
    parser.add_argument(
        "--threshold",
        metavar="RULE",
        help=f"an image is predicted malignant if its probability is at least the threshold: {decision.RULES}; all but "
        "the number are chosen on the validation set; default: the checkpoint's last rule, else 0.5",
    )
    parser.add_argument("--views", type=int, choices=decision.VIEWS, help=decision.VIEWS_HELP)
    args = parser.parse(arguments)
    rule = decision.check_rule(args.threshold) if args.threshold else None
    crossed = [Path(run) for run in args.runs if cross_validation_files.is_cross_validation(Path(run))]
    evaluations = evaluate_cross_validations(crossed, args) if crossed else {}
    for path in [] if crossed else [find(Path(run)) for run in args.runs]:
        with lock.exclusive(path.parent):
            atomic_files.remove_leftovers(path.parent)
            evaluations[path.parent] = evaluate(path, rule, args.split, args.views)
    if len(evaluations) > 1:
        comparison.compare(evaluations)


def evaluate_cross_validations(folders: list[Path], args: argparse.Namespace) -> dict[Path, Evaluation]:
    """Evaluates cross-validations anew, from the predictions of their folds.

    Raises:
        InputError: there are runs among them, or an option that only a run has.
    """
    if len(folders) < len(args.runs) or args.threshold or args.split or args.views:
        raise InputError(
            f"{folders[0]} is a cross-validation: allowed next to it are other cross-validations, without --threshold, "
            "--split and --views; crossval.py --threshold chooses on inner folds"
        )
    evaluations = {}
    for folder in folders:
        with lock.exclusive(folder):
            evaluations[folder] = cross_validation.evaluate(folder)
    return evaluations


def find(run: Path) -> Path:
    """The checkpoint of a run, in the run's folder.

    Args:
        run: the folder, or the checkpoint in it.

    Raises:
        InputError: there is no checkpoint, or no split next to it.
    """
    path = checkpoint.find(run, cross_validation_files.FOLDS)
    split = path.with_name("split.csv")
    if not split.is_file():
        raise InputError(
            f"{split}: there is no such split, which names the test images; {path.name} was moved out of its run, or "
            "split.csv was: needed is a run's folder with both, got one alone"
        )
    return path


def evaluate(
    path: Path, rule: str | None = None, other_split: str | None = None, views: int | None = None
) -> Evaluation:
    """Predicts a checkpoint's test set and writes metrics, tables, figures and report to evaluation/ next to it.

    Threshold and temperature are chosen on the validation set alone and saved in the checkpoint.

    Args:
        path: the checkpoint of a run.
        rule: for the threshold, as in `calibration.choose_threshold`; None for the rule in the checkpoint, else 0.5.
        other_split: a split.csv whose test images replace those of the run.
        views: as for `predictions.predict`, for validation and test alike; None for that in the checkpoint, else
            `data.test_views`.

    Returns:
        What was written.

    Raises:
        InputError: a file of the run is missing, damaged, or from another run.
    """
    network, about = checkpoint.load(path)
    settings = about["settings"]
    table = read_table(path, about, other_split)
    images = source.of(settings)
    rows = images.with_pixels(table[table.set.isin(["valid", "test"])])
    earlier = {"rule": "0.5", "views": settings.data.test_views, **about.get("decision", {})}
    views = views or earlier["views"]
    predicted = predictions.predict(network, rows, settings, views)
    valid, test = (predicted[predicted.set == name] for name in ("valid", "test"))

    choice = {**calibration.decide(valid, rule or earlier["rule"]), "views": views}
    familiar = about.get("familiar") or out_of_distribution.describe_training(
        network, images.with_pixels(table[table.set == "train"]), settings
    )
    checkpoint.amend(path, decision=choice, familiar=familiar)

    test = test.assign(prediction=metrics.classify(test.probability, choice["threshold"]))
    results = measure(test, valid, settings, choice) | describe_run(path, table, settings, other_split)
    folder = path.with_name(f"evaluation-{name_of(other_split)}" if other_split else "evaluation")
    split_description = leaks.describe(table, splits.training_rows(table, settings.data))
    evaluation = Evaluation(results, test, folder, split_description, settings, environment.read(path.parent))
    report.write(evaluation, network)
    return evaluation


def read_table(path: Path, about: dict, other_split: str | None) -> pd.DataFrame:
    """The split that is evaluated, a row per image, with known pixel hashes: leaks.py compares images by pixels.

    Args:
        path: the checkpoint; its split.csv is next to it.
        about: of `checkpoint.load`.
        other_split: a split.csv whose test images replace those of the run; it may leak, and the report says so.

    Raises:
        InputError: a split is missing, is not that of the checkpoint, or breaks the run's protocol.
    """
    protocol = about["settings"].data.protocol
    table = predictions.read_split(path.with_name("split.csv"), protocol, about["split_sha256"])
    images = source.of(about["settings"])
    own = images.known_pixels(table)
    check_features(path, own, about["settings"])
    if other_split:
        return images.known_pixels(predictions.with_test_of(table, predictions.read_split(Path(other_split))))
    splits.check(own, protocol)
    return own


def check_features(path: Path, table: pd.DataFrame, settings: config.Settings) -> None:
    """Refuses imported features that are not those of the training; a base's weights are in the checkpoint itself.

    Args:
        path: the checkpoint of a run.
        table: of the run, with pixels.
        settings: of the run.

    Raises:
        InputError: the file has changed.
    """
    known = environment.read(path.parent).get("data_sha256")
    if settings.model.imported and known and audit.data_version(table) != known:
        raise InputError(
            f"model.weights: {settings.model.weights}: its features are not those that {path.parent} was trained with"
        )


def measure(test: pd.DataFrame, valid: pd.DataFrame, settings: config.Settings, choice: dict) -> dict:
    """The part of metrics.json that follows from the predictions: scores, their intervals, calibration."""
    seed, temperature = settings.data.seed, choice["temperature"]
    return metrics.measure(test, settings.data, choice["threshold"]) | {
        "views": choice["views"],
        "threshold_rule": choice["rule"],
        "threshold_chosen": decision.is_chosen(choice["rule"]),
        "intervals": bootstrap.intervals(test, choice["threshold"], seed),
        "bootstrap": {"draws": bootstrap.DRAWS, "level": bootstrap.LEVEL, "seed": seed},
        "calibration": {
            "temperature": temperature,
            "validation_patients": calibration.patients_of(valid),
            "temperature_fitted": calibration.can_fit(valid),
            **{
                name: calibration.measure(rows.label == "malignant", rows.probability, temperature)
                for name, rows in (("valid", valid), ("test", test))
            },
        },
    }


def describe_run(path: Path, table: pd.DataFrame, settings: config.Settings, other_split: str | None) -> dict:
    """The part of metrics.json that follows from the run and its split."""
    return {
        "protocol": f"{settings.data.protocol}, other split" if other_split else settings.data.protocol,
        "run": limits.printable(path.parent.name),
        "base": settings.model.base,
        "weights": settings.model.weights,
        "split": limits.printable(other_split or "of the run"),
        "leaks": leaks.measure(table, splits.training_rows(table, settings.data)),
        "malignant_share": malignant_shares(table),
        "notice": data.notice(settings.data.root),
        "finished": resume.is_finished(path.parent) or not (path.parent / resume.STATE).exists(),
    }


def malignant_shares(table: pd.DataFrame) -> dict[str, float]:
    """The share (0 to 1) of malignant images in the validation set, the test set and all images."""
    parts = {"valid": table[table.set == "valid"], "test": table[table.set == "test"], "all": table}
    images = {name: part.drop_duplicates("filename") for name, part in parts.items()}
    return {name: float((part.label == "malignant").mean()) for name, part in images.items()}


def name_of(split: str) -> str:
    """A name for another split: its file's name and a hash of its content, since every run's file is split.csv."""
    name = limits.printable(Path(split).stem[:40])
    return f"{name}-{splits.digest(Path(split).read_bytes().decode())[:8]}"


if __name__ == "__main__":
    command_line.run(main)
