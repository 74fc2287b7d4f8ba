"""Evaluates runs on their held-out test sets: python evaluate.py runs/NAME [...]

    python evaluate.py runs/thesis                           writes runs/thesis/evaluation/, report.html among it
    python evaluate.py runs/thesis/best_model.keras          the same
    python evaluate.py runs/thesis --threshold youden        with the threshold that the validation set favours
    python evaluate.py runs/a runs/b                         both, and runs/comparison.csv and .png

It needs nothing but the run: settings, split and threshold stand in the checkpoint and beside it.
"""

from __future__ import annotations

from pathlib import Path

import safety.startup  # noqa: F401  before any other import

import keras
import numpy as np
import pandas as pd

import config
import data
from evaluation import bootstrap, calibration, comparison, metrics, out_of_distribution, predictions, report
from evaluation.results import Evaluation
from features import extraction
from images import audit, leaks, splits
from safety import command_line, limits, lock
from training import checkpoint, environment, resume
from training.decision import RULES, check_rule, is_chosen


def main(arguments: list[str]) -> None:
    """Evaluates each run that is named; several are then compared."""
    parser = command_line.CommandLine(__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder, or the checkpoint in one")
    parser.add_argument("--split", metavar="FILE", help="take the test images from this split.csv, not from the run's")
    parser.add_argument(
        "--threshold",
        metavar="RULE",
        help=f"from which probability on an image is called malignant: {RULES}; all but the number are "
        "chosen on the validation set; default: the one chosen last for this checkpoint, else 0.5",
    )
    args = parser.parse(arguments)
    rule = check_rule(args.threshold) if args.threshold else None
    paths = [checkpoint.find(Path(run)) for run in args.runs]
    evaluated = {}
    for path in paths:
        with lock.exclusive(path.parent):
            evaluated[path.parent] = evaluate(path, rule, args.split)
    if len(evaluated) > 1:
        comparison.compare(evaluated)


def evaluate(path: Path, rule: str | None = None, other_split: str | None = None) -> Evaluation:
    """Predicts the test set of a checkpoint; writes metrics, tables, figures and report into evaluation/ beside it.

    The threshold and the temperature come from the validation set alone and then stand in the checkpoint.

    Args:
        path: of a run's checkpoint.
        rule: for the threshold, as `calibration.choose_threshold` takes it; None for the one in the checkpoint.
        other_split: a split.csv whose test images take the place of the run's own.
    """
    network, about = checkpoint.load(path)
    settings = about["settings"]
    table = images_of(path, about, other_split)
    rows = audit.with_pixels(table[table.set.isin(["valid", "test"])], settings.data)
    valid, test = (predictions.predict(network, rows[rows.set == name], settings) for name in ("valid", "test"))

    decision = decide(valid, rule or about.get("decision", {}).get("rule", "0.5"))
    checkpoint.amend(
        path, decision=decision, familiar=about.get("familiar") or describe_training(network, table, settings)
    )
    test = test.assign(prediction=np.where(test.probability >= decision["threshold"], "malignant", "benign"))
    results = score(test, valid, settings, decision) | {
        "protocol": f"{settings.data.protocol}, other split" if other_split else settings.data.protocol,
        "run": limits.printable(path.parent.name),
        "base": settings.model.base,
        "weights": settings.model.weights,
        "split": limits.printable(other_split or "of the run"),
        "leaks": leaks.measure(table),
        "malignant_share": shares_of_malignant(table),
        "notice": data.notice(settings.data.root),
        "finished": resume.is_finished(path.parent) or not (path.parent / resume.STATE).exists(),
    }
    out = path.with_name(f"evaluation-{name_of(other_split)}" if other_split else "evaluation")
    evaluation = Evaluation(results, test, out, leaks.describe(table), settings, environment.read(path.parent))
    report.write(evaluation, network)
    return evaluation


def name_of(split: str) -> str:
    """Tells other splits apart whose files bear the same name, as those of all runs do."""
    name = limits.printable(Path(split).stem[:40])
    return f"{name}-{splits.digest(Path(split).read_bytes().decode())[:8]}"


def images_of(path: Path, about: dict, other_split: str | None) -> pd.DataFrame:
    """The split's table, with the pixels where training left them: twins under other names are leaks too."""
    settings = about["settings"].data
    table = predictions.read_split(path.with_name("split.csv"), settings.protocol, about["split_sha256"])
    if other_split:
        table = predictions.with_test_of(table, predictions.read_split(Path(other_split)))
    table = audit.known_pixels(table, settings)
    if not other_split:
        splits.check(table, settings.protocol)
    return table


def shares_of_malignant(table: pd.DataFrame) -> dict[str, float]:
    """The share (0 to 1) of the images of validation, of the test set and of all that are malignant."""
    parts = {"valid": table[table.set == "valid"], "test": table[table.set == "test"], "all": table}
    images = {name: part.drop_duplicates("filename") for name, part in parts.items()}
    return {name: float((part.label == "malignant").mean()) for name, part in images.items()}


def describe_training(network: keras.Model, table: pd.DataFrame, settings: config.Settings) -> dict:
    """What the training images look like to the base, so that predict.py can tell others from them."""
    train = audit.with_pixels(table[table.set == "train"], settings.data)
    kept = extraction.pooled(network, train, settings, augmented=settings.cached and settings.augment.active)
    return out_of_distribution.describe(kept.array, kept.places)


def decide(valid: pd.DataFrame, rule: str) -> dict:
    """Threshold and temperature, from the validation set's label and probability alone."""
    malignant = (valid.label == "malignant").to_numpy()
    return {
        "rule": rule,
        "threshold": calibration.choose_threshold(malignant, valid.probability, rule),
        "temperature": calibration.fit_temperature(malignant, valid.probability),
    }


def score(test: pd.DataFrame, valid: pd.DataFrame, settings: config.Settings, decision: dict) -> dict:
    """What metrics.json holds of the predictions: scores, their intervals, calibration."""
    temperature = decision["temperature"]
    return metrics.measure(test, settings.data, decision["threshold"]) | {
        "threshold_rule": decision["rule"],
        "threshold_chosen": is_chosen(decision["rule"]),
        "intervals": bootstrap.intervals(test, decision["threshold"], settings.data.seed),
        "bootstrap": {"draws": bootstrap.DRAWS, "level": bootstrap.LEVEL, "seed": settings.data.seed},
        "calibration": {
            "temperature": temperature,
            **{
                name: calibration.describe(part.label == "malignant", part.probability, temperature)
                for name, part in (("valid", valid), ("test", test))
            },
        },
    }


if __name__ == "__main__":
    command_line.run(main)
