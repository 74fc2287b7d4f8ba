"""The figures of a report: which rows each one shows, in which section, under which heading."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from tqdm import tqdm

from evaluation import bootstrap, calibration, evaluation_plots, gradcam, metrics
from evaluation.evaluation import Evaluation
from images import audit, data_plots, decoding, plot_style, stain_normalization

# Images per gallery and per page of heat maps.
PER_GALLERY = 30
PER_HEATMAP_PAGE = 12
# Heat maps of 120 images of 224 pixels take 7 s on two cores, and drawing their pages as long again.
MAX_WRONG_HEATMAPS = 120
MAX_WRONG_CROSS_VALIDATED = 120
CAPTION_NOTE = "in brackets: probability of malignant"


class ReportFigure(NamedTuple):
    """A figure for a section of the report: file name without suffix, heading, alternative text."""

    section: str
    name: str
    figure: Figure
    heading: str
    alt: str


class SavedFigure(NamedTuple):
    """A figure on disk, without its pixels in memory: file, heading, alternative text."""

    path: Path
    heading: str
    alt: str


def draw(evaluation: Evaluation, network: keras.Model | None) -> dict[str, list[SavedFigure]]:
    """Writes every figure as PNG to the evaluation's folder.

    Returns:
        Section -> its figures, in the order of the report.
    """
    sections: dict[str, list[SavedFigure]] = {}
    with tqdm(desc="drawing", unit=" figures", delay=5) as bar:
        for drawn in all_figures(evaluation, network):
            path = evaluation.folder / f"{drawn.name}.png"
            plot_style.save(drawn.figure, path, evaluation.note)
            sections.setdefault(drawn.section, []).append(SavedFigure(path, drawn.heading, drawn.alt))
            bar.update()
    return sections


def all_figures(evaluation: Evaluation, network: keras.Model | None) -> Iterator[ReportFigure]:
    """Every figure of the report, one at a time, so that only one is in memory; heat maps if there is a network."""
    yield from score_figures(evaluation)
    yield from calibration_figures(evaluation)
    yield from subgroup_figures(evaluation)
    if evaluation.settings.model.imported:
        return
    folder = audit.image_folder(evaluation.settings.data.root)
    yield from galleries(evaluation, folder)
    if network:
        yield from heatmaps(evaluation, folder, network)


def score_figures(evaluation: Evaluation) -> Iterator[ReportFigure]:
    """Confusion matrix, ROC and precision-recall curves, confidence intervals."""
    test, results = evaluation.predictions, evaluation.results
    (tn, fp), (fn, tp) = results["confusion_matrix"]
    figure = evaluation_plots.confusion(test.label, test.prediction)
    alt = f"{fp} of {tn + fp} benign images are predicted malignant, {fn} of {fn + tp} malignant images benign."
    yield ReportFigure("results", "confusion_matrix", figure, "Confusion matrix", alt)
    areas = results["roc_auc"], results["average_precision"]
    malignant, bands = test.label == "malignant", bootstrap.curve_bands(test, results["bootstrap"]["seed"])
    figure = evaluation_plots.curves(malignant, test.probability, bands, areas)
    alt = f"Area under the ROC curve {areas[0]:.3f}, average precision {areas[1]:.3f}."
    yield ReportFigure("results", "curves", figure, "ROC and precision-recall", alt)
    figure = evaluation_plots.intervals(evaluation.scores)
    yield ReportFigure(
        "results", "intervals", figure, "Scores with their intervals", "The table of scores as a figure."
    )


def calibration_figures(evaluation: Evaluation) -> Iterator[ReportFigure]:
    """Reliability before and after temperature scaling, histogram of the probabilities."""
    test, results = evaluation.predictions, evaluation.results
    malignant, errors = test.label == "malignant", results["calibration"]["test"]["ece"]
    # In a cross-validation each fold has its own temperature.
    temperature = test.temperature if "temperature" in test else results["calibration"]["temperature"]
    scaled = calibration.scale(test.probability, temperature)
    bins = [metrics.reliability(malignant, probability) for probability in (test.probability, scaled)]
    figure = evaluation_plots.reliability(*bins, errors)
    alt = f"Expected calibration error {errors[0]:.3f} as predicted, {errors[1]:.3f} after temperature scaling."
    yield ReportFigure("calibration", "reliability", figure, "Reliability", alt)
    figure = evaluation_plots.scores(test, results["threshold"])
    means = test.groupby("label").probability.mean()
    alt = "Mean probability of malignant: " + ", ".join(f"{label} {mean:.2f}" for label, mean in means.items()) + "."
    yield ReportFigure("calibration", "scores", figure, "Probabilities by class", alt)


def subgroup_figures(evaluation: Evaluation) -> Iterator[ReportFigure]:
    """Accuracy by magnification and subtype, and by patient."""
    test, results = evaluation.predictions, evaluation.results
    columns = {"magnification": "mag", "subtype": "subtype"}
    correct = test.assign(correct=(test.prediction == test.label).astype(float))
    patients = {
        name: correct.assign(group=correct[column].astype(str))
        .groupby(["group", "label", "patient"], as_index=False)
        .correct.mean()
        for name, column in columns.items()
    }
    accuracy = {name: results[f"by_{name}"] for name in columns}
    figure = evaluation_plots.groups(patients, accuracy)
    alt = "Accuracy: " + ", ".join(
        f"{group} {scores['accuracy']:.0%}" for groups in accuracy.values() for group, scores in groups.items()
    )
    yield ReportFigure("subgroups", "groups", figure, "Accuracy by magnification and subtype", alt)
    threshold = test.threshold if "threshold" in test else results["threshold"]
    figure = evaluation_plots.patients(metrics.by_patient(test, threshold))
    alt = f"Mean share of correct images {results['recognition_rate']:.1%}."
    yield ReportFigure("subgroups", "patients", figure, "Accuracy by patient", alt)


def galleries(evaluation: Evaluation, folder: Path) -> Iterator[ReportFigure]:
    """The first predictions, the least and the most certain ones, and every misclassified image.

    Args:
        evaluation: what to show.
        folder: of the images, as `audit.image_folder` returns it.
    """
    test, wrong, half = evaluation.predictions, evaluation.misclassified, PER_GALLERY // 2
    if "cross_validation" in evaluation.results:
        # Of all images there are, several times each: their pages would be too many to look at.
        wrong = wrong.drop_duplicates("filename").head(MAX_WRONG_CROSS_VALIDATED)
        test = test.drop_duplicates("filename")
    first = test.groupby("label").head(half)
    yield _gallery("examples", "predictions", first, f"The first {half} test images of each class", folder)
    order = evaluation.certainty(test).sort_values(kind="stable").index
    yield _gallery("examples", "least_certain", test.loc[order[:half]], "The least certain predictions", folder)
    yield _gallery("examples", "most_certain", test.loc[order[::-1][:half]], "The most certain predictions", folder)
    for number, (rows, span) in enumerate(_pages(wrong, PER_GALLERY), start=1):
        title = f"Misclassified images {span} of {len(wrong)}, the most certain first"
        yield _gallery("errors", f"misclassified-{number:02}", rows, title, folder)


def _gallery(section: str, name: str, rows: pd.DataFrame, title: str, folder: Path) -> ReportFigure:
    images = [audit.read_rgb(folder, path) for path in rows.path]
    figure = data_plots.gallery(images, captions(rows), rows.label, f"{title}; {CAPTION_NOTE}")
    return ReportFigure(section, name, figure, title, f"{len(rows)} images with their predictions.")


def captions(rows: pd.DataFrame) -> list[str]:
    """For each image its name, true and predicted class, and probability of malignant."""
    return [
        f"{row.filename[:-4]}\n{row.label} -> {row.prediction} ({row.probability:.2f})" for row in rows.itertuples()
    ]


def heatmaps(evaluation: Evaluation, folder: Path, network: keras.Model) -> Iterator[ReportFigure]:
    """Pages of images, each next to its Grad-CAM heat map for the predicted class.

    Args:
        evaluation: what to show.
        folder: of the images, as `audit.image_folder` returns it.
        network: of `checkpoint.load`.
    """
    for name, rows, title in heatmap_pages(evaluation):
        data = evaluation.settings.data
        images = decoding.decode([folder / path for path in rows.path], data.image_size)
        images = np.stack([stain_normalization.normalise(image, data) for image in images])
        maps = gradcam.heatmaps(network, images.astype(np.float32), (rows.prediction == "malignant").to_numpy())
        pairs = [np.hstack([image, gradcam.overlay(image, heat)]) for image, heat in zip(images, maps)]
        heading = f"Grad-CAM of {title}"
        note = f"{CAPTION_NOTE}\nbright: evidence for the predicted class, each map scaled to its own maximum"
        figure = data_plots.gallery(pairs, captions(rows), rows.label, f"{heading}; {note}", columns=4)
        yield ReportFigure("heatmaps", f"heatmaps-{name}", figure, heading, "Each image next to its heat map.")


def heatmap_pages(evaluation: Evaluation) -> Iterator[tuple[str, pd.DataFrame, str]]:
    """Name, rows and title of each page of heat maps: misclassified images, and the most certain correct ones."""
    test, wrong = evaluation.predictions, evaluation.misclassified
    shown = wrong.head(MAX_WRONG_HEATMAPS)
    limit = f" (heat maps of {len(shown)} only)" if len(shown) < len(wrong) else ""
    for number, (rows, span) in enumerate(_pages(shown, PER_HEATMAP_PAGE), start=1):
        yield f"wrong-{number:02}", rows, f"misclassified images {span} of {len(wrong)}, the most certain first{limit}"
    correct = test[test.prediction == test.label].sort_values("probability", kind="stable")
    benign, malignant = correct[correct.label == "benign"], correct[correct.label == "malignant"].iloc[::-1]
    for label, rows in {"benign": benign, "malignant": malignant}.items():
        if len(rows):
            yield label, rows.head(PER_HEATMAP_PAGE), f"the most certain correct predictions of {label}"


def _pages(rows: pd.DataFrame, size: int) -> Iterator[tuple[pd.DataFrame, str]]:
    """The rows of each page, and their numbers as text, for example `1 to 30`."""
    for start in range(0, len(rows), size):
        page = rows.iloc[start : start + size]
        yield page, f"{start + 1} to {start + len(page)}"
