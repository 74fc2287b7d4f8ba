"""Writes an evaluation to files: tables, figures, report.txt, and report.html with everything on one page."""

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

from backbones.table import BASES
from evaluation import bootstrap, calibration, figures, metrics
from evaluation.evaluation import RESEARCH_ONLY, Evaluation
from images import leaks, splits
from safety import atomic_files

COLUMNS = ["filename", "label", "slide", "patient", "mag", "subtype", "probability", "prediction"]
# Photographs above this size in bytes are embedded as JPEG, a tenth of their PNG.
MAX_PNG_BYTES = 300_000
TILES = {
    "accuracy", "balanced_accuracy", "sensitivity", "specificity", "roc_auc", "recognition_rate", "patient_accuracy",
}  # fmt: skip


def write(evaluation: Evaluation, network: keras.Model | None) -> None:
    """Writes all files of an evaluation, or none, and prints report.txt; without a network there are no heat maps."""
    parts = [to_text(evaluation), evaluation.split_description, evaluation.source_note, evaluation.note]
    text = "\n\n".join(filter(None, parts))
    with atomic_files.filling(evaluation.folder) as folder:
        _write_files(evaluation._replace(folder=folder), network, text)
        written = {path.name for path in folder.iterdir()}
    # An earlier evaluation can have had more pages.
    for path in [*evaluation.folder.glob("misclassified-*.png"), *evaluation.folder.glob("heatmaps-*.png")]:
        if path.name not in written:
            path.unlink()
    results = evaluation.results
    print(text, f"\nevaluation: {evaluation.folder}", sep="\n")
    first = "balanced_accuracy" if "cross_validation" in results else "accuracy"
    name = {"accuracy": "test accuracy", "balanced_accuracy": "cross-validated balanced accuracy"}[first]
    print(f"{name}: {results[first]:.4f} ({results['n']} images of {results['patients']} patients)")
    print(f"report: {evaluation.folder / 'report.html'}")


def _write_files(evaluation: Evaluation, network: keras.Model | None, text: str) -> None:
    sections = figures.draw(evaluation, network)
    columns = COLUMNS + [name for name in ("repeat", "fold", "views") if name in evaluation.predictions]
    for name, content in {
        "metrics.json": json.dumps(evaluation.results, indent=1) + "\n",
        "report.txt": text + "\n",
        "predictions.csv": evaluation.predictions[columns].to_csv(index=False),
        "misclassified.csv": evaluation.misclassified[columns].to_csv(index=False),
        "scores.csv": evaluation.scores.to_csv(index=False),
        "groups.csv": metrics.groups_table(evaluation.results).to_csv(index=False),
        "report.html": to_html(evaluation, sections),
    }.items():
        atomic_files.write_text(evaluation.folder / name, content)


def to_text(evaluation: Evaluation) -> str:
    """The metrics as text: scikit-learn's report, confusion matrix, scores with intervals, subgroups, calibration."""
    results, predictions = evaluation.results, evaluation.predictions
    by_class = classification_report(
        predictions.label, predictions.prediction, labels=splits.LABELS, digits=4, zero_division=0
    )
    columns = [f"predicted {label}" for label in splits.LABELS]
    rule = f" ({results['threshold_rule']})" if results["threshold_chosen"] else ""
    patients = ", ".join(f"{count} {label}" for label, count in results["patients_by_class"].items())
    views = f", mean over {results['views']} exact turns of each image" if results.get("views", 1) > 1 else ""
    return "\n".join(
        [
            f"run {results['run']}: protocol {results['protocol']}, seed {results['seed']}, threshold "
            f"{results['threshold']:.4g}{rule}{views}; {results['n']} test images of "
            f"{results['slides']} slides and {results['patients']} patients, {patients} (split {results['split']})",
            "",
            by_class,
            pd.DataFrame(results["confusion_matrix"], splits.LABELS, columns).to_string(),
            "",
            f"test accuracy: {results['accuracy']:.4f}   F1 (macro): {results['f1']:.4f}   "
            f"ROC AUC: {results['roc_auc']:.4f}",
            "",
            *_score_lines(evaluation),
            "",
            *_spread_lines(results),
            textwrap.fill(evaluation.prevalence_note, 120),
            "",
            _groups_text(results),
            "",
            _calibration_text(results["calibration"]),
        ]
    )


def _score_lines(evaluation: Evaluation) -> list[str]:
    lines = [f"{'':28} {'':>7}   95 % over patients   resampling patients   resampling images"]
    for row in evaluation.scores.itertuples():
        intervals = [
            "-" if np.isnan(low) else f"{low:.4f} to {high:.4f}"
            for low, high in (
                (row.headline_low, row.headline_high),
                (row.patient_low, row.patient_high),
                (row.image_low, row.image_high),
            )
        ]
        lines.append(f"{row.name:28} {row.value:7.4f}   {intervals[0]:18}   {intervals[1]:19}   {intervals[2]}")
    if evaluation.results["warning"]:
        lines += ["", textwrap.fill(f"warning: {evaluation.results['warning']}", 120)]
    if min(evaluation.results["patients_by_class"].values()) < 2:
        lines.append("(no interval over patients: one class of the test set has a single patient)")
    return lines


def _spread_lines(results: dict) -> list[str]:
    """The table of folds and repeats of a cross-validation; empty for a run."""
    if "cross_validation" not in results:
        return []
    found = results["cross_validation"]
    rows = pd.DataFrame(found["by_fold"])
    lines = [rows.to_string(index=False, float_format="%.4f"), ""]
    for name in ["folds"] if found["official"] else ["folds", "repeats"]:
        for part, values in found[f"over_{name}"].items():
            shown = [f"{key} {value:.4f}" for key, value in values.items() if value is not None]
            lines.append(f"{part} over {name}: {', '.join(shown) or '- (a single one)'}")
    lines += ["", textwrap.fill(found["spread_note"], 120), ""]
    for row in found.get("published_figures", []):
        lines.append(
            f"official folds, magnification {row['magnification']:>3}: accuracy of images {row['accuracy']:.1%} +- "
            f"{row['accuracy_deviation']:.1%}, recognition rate {row['recognition_rate']:.1%} +- "
            f"{row['recognition_rate_deviation']:.1%}; {row['shared_patient']:.1%} of the test images have "
            "their patient in training"
        )
    return [*lines, ""]


def _groups_text(results: dict) -> str:
    table = metrics.groups_table(results)
    shown = table.loc[
        table.grouping.isin(["magnification", "subtype", "slide"]),
        ["grouping", "group", "n", "patients", "accuracy", "sensitivity", "specificity", "roc_auc"],
    ]
    return shown.to_string(index=False, float_format="%.4f", na_rep="-")


def _calibration_text(results: dict) -> str:
    (loss, scaled_loss), (ece, scaled_ece) = results["test"]["log_loss"], results["test"]["ece"]
    return (
        f"{calibration.describe_temperature(results)}; on the test set log loss {loss:.4f} -> {scaled_loss:.4f}, "
        f"expected calibration error {ece:.4f} -> {scaled_ece:.4f}"
    )


def to_html(evaluation: Evaluation, sections: dict[str, list[figures.SavedFigure]]) -> str:
    """The whole evaluation as one HTML page without links to other files; every text from data is escaped.

    Args:
        evaluation: what to show.
        sections: the figures of each section, as `figures.draw` returns them.
    """
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    template = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    results = evaluation.results
    shared = results["leaks"]
    return template.get_template("report.html.jinja").render(
        evaluation=evaluation,
        results=results,
        network=BASES[results["base"]].constructor if results["base"] in BASES else results["base"],
        cross_validated="cross_validation" in results,
        imported=evaluation.settings.model.imported,
        tiles=TILES if "cross_validation" in results else TILES - {"balanced_accuracy"},
        spread_scores=metrics.SPREAD,
        score_names=metrics.SCORES,
        scores=evaluation.scores.replace({np.nan: None}).to_dict("records"),
        groups=metrics.groups_table(results).replace({np.nan: None}),
        verdict=leaks.verdict(shared),
        shares=leaks.describe_shares(shared),
        leaky=any([*shared["shared"].values(), *shared["shared_with_validation"].values()]),
        temperature=calibration.describe_temperature(results["calibration"]),
        sections=sections,
        data_url=data_url,
        settings=evaluation.settings.to_yaml(),
        level=bootstrap.LEVEL,
        draws=bootstrap.DRAWS,
        research_only=RESEARCH_ONLY,
    )


def data_url(path: Path) -> str:
    """A PNG file as a data URL for HTML; as JPEG if it is larger than MAX_PNG_BYTES."""
    content, kind = path.read_bytes(), "png"
    if len(content) > MAX_PNG_BYTES:
        jpeg = io.BytesIO()
        with Image.open(path) as image:
            image.convert("RGB").save(jpeg, "JPEG", quality=85)
        content, kind = jpeg.getvalue(), "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
