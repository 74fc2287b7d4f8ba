"""What the evaluation of a run found, which its figures and its report are made from."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pandas as pd

import config
from evaluation import bootstrap, calibration

RESEARCH_ONLY = "Research only: not validated for, and never to be used in, the diagnosis of patients."
UNTRAINED = "The base is untrained (model.weights=random): no evidence of what a trained one does."
UNFINISHED = "Training was stopped and has not gone on: this is the best of the epochs that were done."


class Evaluation(NamedTuple):
    """What an evaluation found.

    Attributes:
        results: what is in metrics.json.
        predictions: a row a test image.
        out: folder for the files.
        split_in_words: the sets in numbers and what the test set shares with training.
        settings: of the run.
        environment: what environment.json says; may be empty.
    """

    results: dict
    predictions: pd.DataFrame
    out: Path
    split_in_words: str
    settings: config.Settings
    environment: dict

    @property
    def wrong(self) -> pd.DataFrame:
        """The misclassified images, the surest first."""
        wrong = self.predictions[self.predictions.prediction != self.predictions.label]
        sure = calibration.certainty(wrong.probability, self.results["threshold"])
        return wrong.loc[sure.sort_values(ascending=False, kind="stable").index]

    @property
    def scores(self) -> pd.DataFrame:
        """The table of scores.csv."""
        return bootstrap.table(self.results)

    @property
    def prevalence(self) -> str:
        """How many of the images are malignant, and what hangs on it."""
        share = self.results["malignant_share"]
        return (
            f"Malignant are {share['test']:.1%} of the test images, {share['valid']:.1%} of those of validation and "
            f"{share['all']:.1%} of all. Accuracy, precision, F1, Matthews correlation, average precision, Brier score "
            "and calibration error hold for the share of the test set, the temperature for that of validation; "
            "sensitivity, specificity and ROC AUC do not hang on it."
        )

    @property
    def notes(self) -> list[str]:
        """What a reader of any of the figures has to know, a sentence or two each."""
        untrained = UNTRAINED if self.results["weights"] == "random" and self.results["base"] != "cnn" else ""
        unfinished = "" if self.results["finished"] else UNFINISHED
        notes = (self.results["notice"], untrained, unfinished, self.left_out, RESEARCH_ONLY)
        return [note for note in notes if note]

    @property
    def left_out(self) -> str:
        """How many images training found broken and dropped, and where they are named."""
        count = len(self.environment.get("dropped", {}))
        return f"{count} broken images were left out before the split; environment.json names them." if count else ""

    @property
    def note(self) -> str:
        """The same in one text."""
        return " ".join(self.notes)
