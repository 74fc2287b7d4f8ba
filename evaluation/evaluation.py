"""The evaluation of a run: what its figures, its report and a comparison are made from."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pandas as pd

import config
from evaluation import bootstrap, calibration

RESEARCH_ONLY = "Research only: not validated for, and never to be used in, the diagnosis of patients."
UNTRAINED = "The base is untrained (model.weights=random): these results say nothing about a trained base."
EQUAL_FEATURES = (
    "The features are imported and no image was opened: images count as equal where all their features are. An equal "
    "image of which the encoder gave other last digits is not found; slides and patients are known by the file names."
)
UNFINISHED = "Training was stopped early and not resumed: this is the best epoch so far."


class Evaluation(NamedTuple):
    """The evaluation of a run.

    Attributes:
        results: the content of metrics.json.
        predictions: a row per test image, with report.COLUMNS and path.
        folder: where its files are written.
        split_description: the sizes of the sets, and what the test set shares with training, as text.
        settings: of the run.
        environment: the content of environment.json; may be empty.
    """

    results: dict
    predictions: pd.DataFrame
    folder: Path
    split_description: str
    settings: config.Settings
    environment: dict

    @property
    def misclassified(self) -> pd.DataFrame:
        """The misclassified images, the most certain first."""
        wrong = self.predictions[self.predictions.prediction != self.predictions.label]
        return wrong.loc[self.certainty(wrong).sort_values(ascending=False, kind="stable").index]

    def certainty(self, rows: pd.DataFrame) -> pd.Series:
        """`calibration.certainty` of rows of the predictions, in a cross-validation at the threshold of their fold."""
        threshold = rows.threshold if "threshold" in rows else self.results["threshold"]
        return calibration.certainty(rows.probability, threshold)

    @property
    def scores(self) -> pd.DataFrame:
        """The table of scores.csv."""
        return bootstrap.table(self.results)

    @property
    def prevalence_note(self) -> str:
        """The share of malignant images, and which scores depend on it."""
        share = self.results["malignant_share"]
        return (
            f"{share['test']:.1%} of the test images are malignant, {share['valid']:.1%} of the validation images and "
            f"{share['all']:.1%} of all. Accuracy, precision, F1, Matthews correlation, average precision, Brier score "
            "and calibration error depend on the share in the test set, the temperature on that in the validation "
            "set; sensitivity, specificity and ROC AUC do not."
        )

    @property
    def source_note(self) -> str:
        """How equal images were found where no image was opened; empty for a run on images."""
        return EQUAL_FEATURES if self.settings.model.imported else ""

    @property
    def dropped_note(self) -> str:
        """How many broken images training dropped; empty for none."""
        count = len(self.environment.get("dropped", {}))
        return f"{count} broken images were left out before the split; environment.json names them." if count else ""

    @property
    def notes(self) -> list[str]:
        """What a reader of any figure has to know, a sentence or two each."""
        untrained = UNTRAINED if self.results["weights"] == "random" and self.results["base"] != "cnn" else ""
        unfinished = "" if self.results["finished"] else UNFINISHED
        return list(filter(None, [self.results["notice"], untrained, unfinished, self.dropped_note, RESEARCH_ONLY]))

    @property
    def note(self) -> str:
        """All notes in one text."""
        return " ".join(self.notes)
