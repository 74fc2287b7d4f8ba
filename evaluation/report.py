"""An evaluation as files: tables, figures, report.txt, and report.html, which holds all of it in one page."""

from __future__ import annotations

import base64
import io
import json
import textwrap
from pathlib import Path

import jinja2
import keras
import numpy as np
import pandas as pd
from PIL import Image
from sklearn.metrics import classification_report

import data
from evaluation import bootstrap, calibration, figures, metrics
from evaluation.results import RESEARCH_ONLY, Evaluation
from images import leaks
from safety import atomic_files

COLUMNS = ["filename", "label", "slide", "patient", "mag", "subtype", "probability", "prediction"]


def write(found: Evaluation, network: keras.Model) -> None:
    """Writes and prints the report, and writes the tables, the figures and the page: all of them, or none."""
    text = "\n\n".join([describe(found), found.split_in_words, found.note])
    with atomic_files.filling(found.out) as out:
        _fill(found._replace(out=out), network, text)
        new = {path.name for path in out.iterdir()}
    for old in [*found.out.glob("misclassified-*.png"), *found.out.glob("heatmaps-*.png")]:
        if old.name not in new:
            old.unlink()
    print(text, f"\nevaluation: {found.out}", sep="\n")
    results = found.results
    print(f"test accuracy: {results['accuracy']:.4f} ({results['n']} images of {results['patients']} patients)")
    print(f"report: {found.out / 'report.html'}")


def _fill(found: Evaluation, network: keras.Model, text: str) -> None:
    results, out = found.results, found.out
    atomic_files.write_text(out / "metrics.json", json.dumps(results, indent=1) + "\n")
    atomic_files.write_text(out / "report.txt", text + "\n")
    atomic_files.write_text(out / "predictions.csv", found.predictions[COLUMNS].to_csv(index=False))
    atomic_files.write_text(out / "misclassified.csv", found.wrong[COLUMNS].to_csv(index=False))
    atomic_files.write_text(out / "scores.csv", found.scores.to_csv(index=False))
    atomic_files.write_text(out / "groups.csv", metrics.groups_table(results).to_csv(index=False))
    atomic_files.write_text(out / "report.html", page(found, figures.draw(found, network)))


def describe(found: Evaluation) -> str:
    """The figures as text: scikit-learn's report, the scores with their intervals, the parts, the calibration."""
    results, predictions = found.results, found.predictions
    (tn, fp), (fn, tp) = results["confusion_matrix"]
    report = classification_report(
        predictions.label, predictions.prediction, labels=data.LABELS, digits=4, zero_division=0
    )
    called = [f"called {label}" for label in data.LABELS]
    patients = ", ".join(f"{count} {label}" for label, count in results["patients_by_class"].items())
    return "\n".join(
        [
            f"run {results['run']}: protocol {results['protocol']}, seed {results['seed']}, threshold "
            f"{results['threshold']:.4g} ({results['threshold_rule']}); {results['n']} test images of "
            f"{results['slides']} slides and {results['patients']} patients, {patients} (split {results['split']})",
            "",
            report,
            pd.DataFrame(results["confusion_matrix"], data.LABELS, called).to_string(),
            "",
            f"test accuracy: {results['accuracy']:.4f}   F1 (macro): {results['f1']:.4f}   "
            f"ROC AUC: {results['roc_auc']:.4f}",
            f"malignant found: {tp} of {tp + fn}; benign taken for malignant: {fp} of {fp + tn}",
            "",
            *describe_scores(found),
            "",
            textwrap.fill(found.prevalence, 120),
            "",
            describe_groups(results),
            "",
            describe_calibration(results["calibration"]),
        ]
    )


def describe_scores(found: Evaluation) -> list[str]:
    """The scores with both intervals, and why one is missing."""
    lines = [f"{'':28} {'':>7}   95 % resampling patients   resampling images"]
    for row in found.scores.itertuples():
        pairs = [
            "-" if np.isnan(low) else f"{low:.4f} to {high:.4f}"
            for low, high in ((row.patient_low, row.patient_high), (row.image_low, row.image_high))
        ]
        lines.append(f"{row.name:28} {row.value:7.4f}   {pairs[0]:24}   {pairs[1]}")
    if min(found.results["patients_by_class"].values()) < 2:
        lines.append("(a class of the test set has a single patient, so there is no interval over patients)")
    return lines


def describe_groups(results: dict) -> str:
    """The rates by magnification, subtype and slide."""
    table = metrics.groups_table(results)
    shown = table.loc[
        table.grouping.isin(["magnification", "subtype", "slide"]),
        ["grouping", "group", "n", "patients", "accuracy", "sensitivity", "specificity", "roc_auc"],
    ]
    return shown.to_string(index=False, float_format="%.4f", na_rep="-")


def describe_calibration(found: dict) -> str:
    """The temperature and what it does to the test set."""
    (loss, scaled_loss), (ece, scaled_ece) = found["test"]["log_loss"], found["test"]["ece"]
    return (
        f"temperature {calibration.in_words(found['temperature'])}, fitted on validation; on the test set log loss "
        f"{loss:.4f} -> {scaled_loss:.4f}, expected calibration error {ece:.4f} -> {scaled_ece:.4f}"
    )


def page(found: Evaluation, sections: dict[str, list[figures.Drawn]]) -> str:
    """The whole evaluation as one HTML page that needs nothing beside it; every text from data is escaped."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    template = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    shares = found.results["leaks"]
    return template.get_template("report.html.jinja").render(
        found=found,
        results=found.results,
        scores=found.scores.replace({np.nan: None}).to_dict("records"),
        groups=metrics.groups_table(found.results).replace({np.nan: None}),
        verdict=leaks.verdict(shares),
        shares=leaks.describe_shares(shares),
        leaky=any([*shares["shared"].values(), *shares["shared_with_validation"].values()]),
        temperature=calibration.in_words(found.results["calibration"]["temperature"]),
        sections=sections,
        embed=embed,
        settings=found.settings.to_yaml(),
        level=bootstrap.LEVEL,
        draws=bootstrap.DRAWS,
        research_only=RESEARCH_ONLY,
    )


def embed(path: Path) -> str:
    """The image as a data URL; photographs as JPEG, a tenth of their PNG."""
    with Image.open(path) as image:
        content = io.BytesIO()
        if path.stat().st_size > 300_000:
            image.convert("RGB").save(content, "JPEG", quality=85)
            return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode()
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
