"""The figures of an evaluation: what is drawn, from which rows, under which heading."""

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
from evaluation.results import Evaluation
from images import audit, data_plots, decoding, plot_style

SHOWN = 30
EXPLAINED = 12
# The maps of 120 images of 224 pixels take 7 s on two cores, and drawing their pages as long again.
MOST_EXPLAINED = 120
IN_BRACKETS = "in brackets: probability of malignant"


class Drawn(NamedTuple):
    """A figure on disk: its file, its heading, the words for those who cannot see it."""

    path: Path
    heading: str
    alt: str


class Drawing(NamedTuple):
    """A figure to be written: the section that it belongs to, its file's stem, heading and alternative text."""

    section: str
    name: str
    figure: Figure
    heading: str
    alt: str


def draw(found: Evaluation, network: keras.Model) -> dict[str, list[Drawn]]:
    """Writes every figure as PNG into the evaluation's folder; gives the sections with what belongs into them."""
    sections: dict[str, list[Drawn]] = {}
    with tqdm(desc="drawing", unit="figure", delay=5) as bar:
        for drawing in all_drawings(found, network):
            path = found.out / f"{drawing.name}.png"
            plot_style.save(drawing.figure, path, found.note)
            sections.setdefault(drawing.section, []).append(Drawn(path, drawing.heading, drawing.alt))
            bar.update()
    return sections


def all_drawings(found: Evaluation, network: keras.Model) -> Iterator[Drawing]:
    """One after the other, so that no two figures are in memory."""
    yield from of_scores(found)
    yield from of_calibration(found)
    yield from of_groups(found)
    folder = audit.image_folder(found.settings.data.root)
    yield from galleries(found, folder)
    yield from heatmaps(found, folder, network)


def of_scores(found: Evaluation) -> Iterator[Drawing]:
    """Confusion matrix, curves, intervals."""
    test, results = found.predictions, found.results
    (tn, fp), (fn, tp) = results["confusion_matrix"]
    alt = f"Of {tn + fp} benign images {fp} were called malignant, of {fn + tp} malignant ones {fn} benign."
    yield Drawing(
        "results", "confusion_matrix", evaluation_plots.confusion(test.label, test.prediction), "Confusion matrix", alt
    )
    areas = results["roc_auc"], results["average_precision"]
    malignant, bands = test.label == "malignant", bootstrap.curve_bands(test, results["bootstrap"]["seed"])
    figure = evaluation_plots.curves(malignant, test.probability, bands, areas)
    alt = f"Area under the ROC curve {areas[0]:.3f}, average precision {areas[1]:.3f}."
    yield Drawing("results", "curves", figure, "ROC and precision-recall", alt)
    figure = evaluation_plots.intervals(found.scores)
    yield Drawing("results", "intervals", figure, "Scores with both intervals", "The table of scores as a figure.")


def of_calibration(found: Evaluation) -> Iterator[Drawing]:
    """Reliability before and after temperature scaling, histogram of the probabilities."""
    test, results = found.predictions, found.results
    malignant, errors = test.label == "malignant", results["calibration"]["test"]["ece"]
    scaled = calibration.scale(test.probability, results["calibration"]["temperature"])
    bins = [metrics.reliability(malignant, probability) for probability in (test.probability, scaled)]
    alt = f"Expected calibration error {errors[0]:.3f} as predicted, {errors[1]:.3f} scaled."
    yield Drawing("calibration", "reliability", evaluation_plots.reliability(*bins, errors), "Reliability", alt)
    figure = evaluation_plots.scores(test, results["threshold"])
    means = test.groupby("label").probability.mean()
    alt = "Mean probability of malignant: " + ", ".join(f"{label} {mean:.2f}" for label, mean in means.items()) + "."
    yield Drawing("calibration", "scores", figure, "Probabilities by class", alt)


def of_groups(found: Evaluation) -> Iterator[Drawing]:
    """Accuracy by magnification and subtype, and patient by patient."""
    test, results = found.predictions, found.results
    names = {"magnification": "mag", "subtype": "subtype"}
    right = test.assign(right=(test.prediction == test.label).astype(float))
    patients = {
        name: right.assign(group=right[column].astype(str))
        .groupby(["group", "label", "patient"], as_index=False)
        .right.mean()
        for name, column in names.items()
    }
    accuracy = {name: results[f"by_{name}"] for name in names}
    told = [f"{group} {part['accuracy']:.0%}" for parts in accuracy.values() for group, part in parts.items()]
    figure = evaluation_plots.groups(patients, accuracy)
    yield Drawing("parts", "groups", figure, "Accuracy by magnification and subtype", "Accuracy: " + ", ".join(told))
    figure = evaluation_plots.patients(metrics.by_patient(test, results["threshold"]))
    alt = f"Mean share of right images {results['recognition_rate']:.1%}."
    yield Drawing("parts", "patients", figure, "Patient by patient", alt)


def galleries(found: Evaluation, folder: Path) -> Iterator[Drawing]:
    """The first predictions, every wrong one, the most and the least certain."""
    test, wrong = found.predictions, found.wrong
    first = test.groupby("label").head(SHOWN // 2)
    certain = calibration.certainty(test.probability, found.results["threshold"]).sort_values(kind="stable").index
    yield _gallery("images", "predictions", first, f"The first {SHOWN // 2} test images of each class", folder)
    least, most = test.loc[certain[: SHOWN // 2]], test.loc[certain[::-1][: SHOWN // 2]]
    yield _gallery("images", "least_certain", least, "The least certain predictions", folder)
    yield _gallery("images", "most_certain", most, "The most certain predictions", folder)
    for page, (rows, place) in enumerate(_pages(wrong, SHOWN), start=1):
        title = f"Misclassified images {place} of {len(wrong)}, the surest first"
        yield _gallery("errors", f"misclassified-{page:02}", rows, title, folder)


def _gallery(section: str, name: str, rows: pd.DataFrame, title: str, folder: Path) -> Drawing:
    images = [audit.read_rgb(folder, path) for path in rows.path]
    figure = data_plots.gallery(images, captions(rows), rows.label, f"{title}; {IN_BRACKETS}")
    return Drawing(section, name, figure, title, f"{len(rows)} images with their predictions.")


def captions(rows: pd.DataFrame) -> list[str]:
    """For each image its name, true and predicted class, and probability of malignant."""
    return [
        f"{row.filename[:-4]}\n{row.label} -> {row.prediction} ({row.probability:.2f})" for row in rows.itertuples()
    ]


def heatmaps(found: Evaluation, folder: Path, network: keras.Model) -> Iterator[Drawing]:
    """What the network looked at, each image beside its map."""
    for name, rows, words in explained(found):
        images = decoding.decode([folder / path for path in rows.path], found.settings.data.image_size)
        heats = gradcam.heatmaps(network, images.astype(np.float32), (rows.prediction == "malignant").to_numpy())
        pairs = [np.hstack([image, gradcam.overlay(image, heat)]) for image, heat in zip(images, heats)]
        heading = f"Grad-CAM of {words}"
        title = f"{heading}; {IN_BRACKETS}\nbright: what spoke for the predicted class, each scaled to its own maximum"
        figure = data_plots.gallery(pairs, captions(rows), rows.label, title, columns=4)
        yield Drawing("heat", f"heatmaps-{name}", figure, heading, "Each image beside its heat map.")


def explained(found: Evaluation) -> Iterator[tuple[str, pd.DataFrame, str]]:
    """The name, rows and words of each page of heat maps: the wrong ones, and the surest right ones of each class."""
    test, wrong = found.predictions, found.wrong
    shown = wrong.head(MOST_EXPLAINED)
    left_out = f" (heat maps of {len(shown)} only)" if len(shown) < len(wrong) else ""
    for page, (rows, place) in enumerate(_pages(shown, EXPLAINED), start=1):
        words = f"the wrong predictions {place} of {len(wrong)}, the surest first{left_out}"
        yield f"wrong-{page:02}", rows, words
    right = test[test.prediction == test.label].sort_values("probability", kind="stable")
    benign, malignant = right[right.label == "benign"], right[right.label == "malignant"].iloc[::-1]
    for label, rows in {"benign": benign, "malignant": malignant}.items():
        if len(rows):
            yield label, rows.head(EXPLAINED), f"the surest right predictions of {label}"


def _pages(rows: pd.DataFrame, size: int) -> Iterator[tuple[pd.DataFrame, str]]:
    """The rows of each page, and which they are, `1 to 30` for instance."""
    for start in range(0, len(rows), size):
        page = rows.iloc[start : start + size]
        yield page, f"{start + 1} to {start + len(page)}"
