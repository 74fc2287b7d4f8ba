"""Evaluates runs on their held-out test sets: python evaluate.py runs/NAME [...]

    python evaluate.py runs/thesis                           writes runs/thesis/evaluation/
    python evaluate.py runs/thesis/best_model.keras          the same
    python evaluate.py runs/a runs/b                         both, and runs/comparison.csv and .png

It needs nothing but the run: settings, split and threshold stand in the checkpoint and beside it.
"""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

import config  # first, because it quiets TensorFlow
from config import InputError

import keras
import numpy as np
import pandas as pd
from sklearn import metrics
from tqdm import tqdm

import audit
import checkpoint
import compare
import data
import features
import files
import model
import pictures
import plots
import splits

RESEARCH_ONLY = "Research only: not validated for, and never to be used in, the diagnosis of patients."
UNTRAINED = "The base is untrained (model.weights=random): no evidence of what a trained one does."
THRESHOLD = 0.5
COLUMNS = ["filename", "label", "slide", "patient", "mag", "subtype", "probability", "prediction"]
SHOWN = 30


def main(arguments: list[str]) -> None:
    """Evaluates each run that is named; several are then compared."""
    parser = config.CommandLine(__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder, or the checkpoint in one")
    parser.add_argument("--split", metavar="FILE", help="take the test images from this split.csv, not from the run's")
    args = parser.parse(arguments)
    paths = [find_checkpoint(Path(run)) for run in args.runs]
    results = {path.parent: evaluate(path, args.split) for path in paths}
    if len(results) > 1:
        compare.compare(results)


def find_checkpoint(run: Path) -> Path:
    """The checkpoint of a run's folder, or the one named; raises InputError where there is none."""
    path = run / "best_model.keras" if run.is_dir() else run
    if not path.is_file():
        raise InputError(f"no checkpoint {str(path)!r}; needed is a run's folder or the best_model.keras in one")
    return path


def evaluate(path: Path, other_split: str | None = None) -> dict:
    """Predicts the test set of a checkpoint; writes metrics, tables and figures into evaluation/ beside it.

    Args:
        path: of a run's checkpoint.
        other_split: a split.csv whose test images take the place of the run's own.

    Returns:
        What is in metrics.json.
    """
    network, about = checkpoint.load(path)
    settings = about["settings"]
    table = read_split(path.with_name("split.csv"), settings.data.protocol, about["split_sha256"])
    if other_split:
        table = with_test_of(table, read_split(Path(other_split)))
    # Once more with the pixels, where training left them: twins under other names are leaks too.
    table = audit.known_pixels(table, settings.data)
    if not other_split:
        splits.check(table, settings.data.protocol)
    folder = audit.find_pictures(settings.data.root)
    test = audit.with_pixels(table[table.set == "test"], settings.data)

    predictions = predict(network, test, settings)
    results = measure(predictions, settings.data) | {
        "protocol": f"{settings.data.protocol}, other split" if other_split else settings.data.protocol,
        "run": path.parent.name,
        "weights": settings.model.weights,
        "split": other_split or "of the run",
        "leaks": splits.leaks(table),
        "notice": data.notice(settings.data.root),
    }
    out = f"evaluation-{Path(other_split).stem}" if other_split else "evaluation"
    write(path.with_name(out), predictions, results, splits.describe(table), folder)
    return results


def read_split(path: Path, protocol: str = "row", sha256: str = "") -> pd.DataFrame:
    """Reads a split.csv and adds what the names say (path, mag, subtype, label_int).

    Args:
        path: the file.
        protocol: the one whose contract it must keep; `row` asks only that the test set is balanced.
        sha256: of the split that the checkpoint was trained with; any other is refused.

    Raises:
        InputError: the file is missing or no split, is another one, breaks the contract, or contradicts its names.
    """
    if not path.is_file():
        raise InputError(f"{path}: there is no such split")
    content = path.read_bytes()
    came = hashlib.sha256(content).hexdigest()
    if sha256 and came != sha256:
        raise InputError(
            f"{path}: not the split that the checkpoint was trained with (SHA-256 {sha256[:12]}, came {came[:12]});"
            " to test on other images give --split FILE, and the report will say so"
        )
    try:
        table = pd.read_csv(io.BytesIO(content), dtype=str, keep_default_na=False)
    except ValueError as error:
        raise InputError(f"{path}: no CSV in UTF-8: {error}") from None
    if list(table.columns) != splits.COLUMNS or not isinstance(table.index, pd.RangeIndex):
        raise InputError(f"{path}: columns must be {', '.join(splits.COLUMNS)}, came {', '.join(table.columns[:8])}")
    named = data.describe(table.filename).assign(set=table.set)
    wrong = (named[splits.COLUMNS] != table).any(axis=1) | ~table.set.isin(splits.SETS)
    if wrong.any():
        line = wrong.idxmax()
        raise InputError(
            f"{path}, line {line + 2}: contradicts the file's name, or no set: {', '.join(table.loc[line])}"
        )
    splits.check(named, protocol)
    return named


def with_test_of(table: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """The training and validation rows of one split with the test rows of another."""
    return pd.concat([table[table.set.isin(["train", "valid"])], other[other.set == "test"]], ignore_index=True)


def predict(network: keras.Model, rows: pd.DataFrame, settings: config.Settings) -> pd.DataFrame:
    """The rows with the probability of malignant and the predicted label.

    Args:
        network: the loaded model.
        rows: with path, pixels, filename and label_int.
        settings: of the run; `train.features` says whether features come from the cache or pictures go in.
    """
    if settings.train.features == "cached":
        kept = features.pooled(network, rows, settings)
        batches = features.eval_dataset(kept, rows.label_int.to_numpy(), settings.train.batch_size)
        probabilities = model.head(network).predict(batches, verbose=0)[:, 0]
    else:
        probabilities = predict_pictures(network, rows, settings)
    predictions = rows.assign(probability=probabilities.astype(float))
    malignant = predictions.probability >= THRESHOLD
    return predictions.assign(prediction=np.where(malignant, "malignant", "benign"))


def predict_pictures(network: keras.Model, rows: pd.DataFrame, settings: config.Settings) -> np.ndarray:
    """The probabilities (rows,) through the whole network; each batch brings its file names along."""
    batches = pictures.eval_dataset(rows, audit.find_pictures(settings.data.root), settings)
    total = -(-len(rows) // settings.train.batch_size)
    names, probabilities = [], []
    for name, images, _ in tqdm(batches, "predicting", total, unit="batch", delay=5):
        names.extend(name.numpy().astype(str))
        probabilities.append(network.predict_on_batch(images)[:, 0])
    if names != rows.filename.tolist():
        raise AssertionError("the predictions came back for other images or in another order")
    return np.concatenate(probabilities)


def measure(predictions: pd.DataFrame, settings: config.Data) -> dict:
    """The figures of metrics.json, all of them scikit-learn's; malignant is the positive class."""
    true, predicted = predictions.label, predictions.prediction
    by_class = metrics.classification_report(true, predicted, labels=data.LABELS, output_dict=True, zero_division=0)
    return {
        "protocol": settings.protocol,
        "seed": settings.seed,
        "threshold": THRESHOLD,
        "n": len(predictions),
        "slides": int(predictions.slide.nunique()),
        "patients": int(predictions.patient.nunique()),
        "accuracy": metrics.accuracy_score(true, predicted),
        "f1": metrics.f1_score(true, predicted, labels=data.LABELS, average="macro", zero_division=0),
        "roc_auc": metrics.roc_auc_score(true == "malignant", predictions.probability),
        "per_class": {
            label: {
                "precision": by_class[label]["precision"],
                "recall": by_class[label]["recall"],
                "f1": by_class[label]["f1-score"],
                "support": int(by_class[label]["support"]),
            }
            for label in data.LABELS
        },
        "confusion_matrix": metrics.confusion_matrix(true, predicted, labels=data.LABELS).tolist(),
    }


def describe(results: dict, predictions: pd.DataFrame) -> str:
    """The figures as text: scikit-learn's report, the confusion matrix, and how many patients stand behind them."""
    (tn, fp), (fn, tp) = results["confusion_matrix"]
    report = metrics.classification_report(
        predictions.label, predictions.prediction, labels=data.LABELS, digits=4, zero_division=0
    )
    return "\n".join(
        [
            f"run {results['run']}: protocol {results['protocol']}, seed {results['seed']}, threshold "
            f"{results['threshold']}; {results['n']} test images of {results['slides']} slides and "
            f"{results['patients']} patients (split {results['split']})",
            "",
            report,
            f"test accuracy: {results['accuracy']:.4f}   F1 (macro): {results['f1']:.4f}   "
            f"ROC AUC: {results['roc_auc']:.4f}",
            f"malignant found: {tp} of {tp + fn}; benign taken for malignant: {fp} of {fp + tn}",
        ]
    )


def write(out: Path, predictions: pd.DataFrame, results: dict, leaks: str, folder: Path) -> None:
    """Writes and prints the report, and writes the tables and figures."""
    untrained = UNTRAINED if results["weights"] == "random" else ""
    note = " ".join(filter(None, [results["notice"], untrained, RESEARCH_ONLY]))
    report = "\n\n".join([describe(results, predictions), leaks, note])
    wrong = predictions[predictions.prediction != predictions.label]
    files.write_text(out / "metrics.json", json.dumps(results, indent=1) + "\n")
    files.write_text(out / "report.txt", report + "\n")
    files.write_text(out / "predictions.csv", predictions[COLUMNS].to_csv(index=False))
    files.write_text(out / "misclassified.csv", wrong[COLUMNS].to_csv(index=False))
    draw(predictions, wrong, folder, out, note)
    print(report, f"\nevaluation: {out}", sep="\n")
    print(f"test accuracy: {results['accuracy']:.4f} ({results['n']} images of {results['patients']} patients)")


def draw(predictions: pd.DataFrame, wrong: pd.DataFrame, folder: Path, out: Path, note: str) -> None:
    """The confusion matrix, the first predictions, and the wrong ones, as PNG."""
    plots.save(plots.confusion(predictions.label, predictions.prediction), out / "confusion_matrix.png", note)
    first = predictions.groupby("label").head(SHOWN // 2)
    titles = {
        "predictions": (first, f"The first {SHOWN // 2} test images of each class"),
        "misclassified": (wrong.head(SHOWN), f"{min(SHOWN, len(wrong))} of {len(wrong)} misclassified test images"),
    }
    for name, (rows, title) in titles.items():
        images = [audit.read_rgb(folder / path) for path in rows.path]
        captions = [
            f"{row.filename[:-4]}\n{row.label} -> {row.prediction} ({row.probability:.2f})" for row in rows.itertuples()
        ]
        title += "; in brackets: probability of malignant"
        plots.save(plots.gallery(images, captions, rows.label, title), out / f"{name}.png", note)


if __name__ == "__main__":
    config.run(main)
