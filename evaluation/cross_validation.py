"""The evaluation of a cross-validation: every image is predicted once a repeat by a head trained without its fold.

Folds that are drawn hold whole units. An official fold is a repeat of its own, predicts its test images alone, and can
have a patient on both sides.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

import config
import data
from evaluation import bootstrap, calibration, metrics, nested, report
from evaluation.evaluation import Evaluation
from features import source
from images import leaks
from safety import atomic_files, limits
from safety.errors import InputError
from training import cross_validation_files, decision, environment

COLUMNS = [
    "filename", "label", "slide", "patient", "mag", "subtype", "repeat", "fold", "probability", "calibrated",
    "prediction",
]  # fmt: skip
SPREADS = (
    "The deviation over folds is that of single folds, each on other {units}: it shows how much a score on so few "
    "{units} depends on who they are. It is no standard error of the mean, because the folds share most of their "
    "training images. The deviation over repeats shows how much the score depends on how the {units} were dealt to the "
    "folds. It does not show what other patients would give: the intervals over patients do."
)


def evaluate(folder: Path) -> Evaluation:
    """Writes oof.csv and evaluation/ of a cross-validation whose folds are all finished.

    Raises:
        InputError: a file is missing, damaged or from another cross-validation.
    """
    settings, record = config.load_settings(folder / "config.yaml", of_run=True), environment.read(folder)
    drawn = cross_validation_files.read_folds(folder)
    results = cross_validation_files.read_results(folder, drawn)
    predictions = collect(results)
    atomic_files.write_text(folder / "oof.csv", predictions[COLUMNS].to_csv(index=False))
    plan = plan_of(folder, record)
    table = source.of(settings).known_pixels(images_of(predictions, settings, plan, record))
    shares = shared(table, drawn)
    measured = measure(predictions, results, settings, plan, table) | {
        "run": limits.printable(folder.name),
        "base": settings.model.base,
        "weights": settings.model.weights,
        "split": describe_plan(plan),
        "leaks": shares,
        "notice": limits.printable(str(record.get("notice", ""))),
        "finished": True,
    }
    if plan.official:
        measured["cross_validation"]["published_figures"] = published_figures(predictions, table, drawn)
    text = "\n".join(
        [
            f"{describe_plan(plan)}; epoch, threshold and temperature are chosen for each fold on its "
            "training part alone.",
            leaks.verdict(shares),
            f"({leaks.describe_shares(shares)})",
        ]
    )
    evaluation = Evaluation(measured, predictions, folder / "evaluation", text, settings, record)
    report.write(evaluation, None)
    return evaluation


def plan_of(folder: Path, record: dict) -> nested.Plan:
    """The plan of a cross-validation, from its environment.json; raises InputError where there is none."""
    if not isinstance(record.get("cross_validation"), dict):
        raise InputError(f"{folder}/environment.json: no environment of a cross-validation")
    return config.validate(nested.Plan, record["cross_validation"])


def describe_plan(plan: nested.Plan) -> str:
    """The outer folds in words."""
    if plan.official:
        return "the five official folds, all of their test images"
    source = "the published ones" if plan.published else "drawn from the seed"
    return f"{plan.repeats} x {plan.folds} folds of whole {plan.unit}s, {source}"


def describe(filenames: pd.Series) -> pd.DataFrame:
    """What the file names say, a row an image, numbered from 0; raises InputError for another name."""
    table = data.describe(filenames.reset_index(drop=True))
    if table.slide.isna().any():
        raise InputError(f"folds.csv: no name of BreakHis: {table.filename[table.slide.isna()].iloc[0][:200]!r}")
    return table


def images_of(predictions: pd.DataFrame, settings: config.Settings, plan: nested.Plan, record: dict) -> pd.DataFrame:
    """All images that the folds trained on or tested, a row each, numbered from 0.

    Args:
        predictions: of `collect`.
        settings: of the cross-validation.
        plan: of the cross-validation.
        record: the content of environment.json.

    Raises:
        InputError: under the official folds `data.folds` cannot be read, or lacks a tested image.
    """
    tested = predictions.filename.drop_duplicates()
    if not plan.official:
        return describe(tested)
    # Some slides are in the training part of every official fold, so that no prediction names them.
    rows, magnification = source.of(settings).rows(data.read_table(settings.data)), settings.data.magnification
    rows = rows[(rows.mag == magnification) | (magnification == "all")]
    rows = rows[~rows.filename.isin(list(record.get("dropped", {})))]
    absent = tested[~tested.isin(rows.filename)]
    if len(absent):
        raise InputError(
            f"data.folds: {settings.data.folds} needs a row for each tested image, got none for {absent.iloc[0]}"
        )
    return describe(rows.filename.drop_duplicates())


def collect(results: list[dict]) -> pd.DataFrame:
    """The out-of-fold predictions, ordered by repeat and filename.

    Args:
        results: of `cross_validation_files.read_results`.

    Returns:
        A row an image and repeat: COLUMNS, label_int, path, and the `threshold` and `temperature` of its fold.
    """
    parts = []
    for result in results:
        choice = result["decision"]
        part = describe(pd.Series(result["filename"])).assign(
            repeat=result["repeat"],
            fold=result["fold"],
            probability=result["probability"],
            calibrated=calibration.scale(result["probability"], choice["temperature"]),
            prediction=metrics.classify(np.array(result["probability"]), choice["threshold"]),
            threshold=choice["threshold"],
            temperature=choice["temperature"],
            **({"views": choice["views"]} if choice["views"] > 1 else {}),
        )
        parts.append(part)
    return pd.concat(parts).sort_values(["repeat", "filename"], ignore_index=True)


def measure(
    predictions: pd.DataFrame, results: list[dict], settings: config.Settings, plan: nested.Plan, table: pd.DataFrame
) -> dict:
    """The part of metrics.json that follows from the predictions; arguments as of this module's functions."""
    malignant, threshold = predictions.label == "malignant", predictions.threshold
    images = predictions.drop_duplicates("filename")
    temperatures = pd.Series([result["decision"]["temperature"] for result in results])
    fitted = [calibration.can_fit(rows) for rows in training_parts(table, predictions)]
    share, tested_share = (float((rows.label == "malignant").mean()) for rows in (table, images))
    scaled = calibration.measure(malignant, predictions.probability, predictions.temperature)
    return metrics.measure(predictions, settings.data, threshold) | {
        "n": len(images),
        "views": settings.data.test_views,
        "threshold_rule": plan.rule,
        "threshold_chosen": decision.is_chosen(plan.rule),
        "intervals": bootstrap.intervals(predictions, threshold, settings.data.seed),
        "bootstrap": {"draws": bootstrap.DRAWS, "level": bootstrap.LEVEL, "seed": settings.data.seed},
        "calibration": {
            "temperature": temperatures.mean(),
            "over_folds": [temperatures.mean(), temperatures.min(), temperatures.max()],
            "temperature_fitted": all(fitted),
            "folds_fitted": [sum(fitted), len(fitted)],
            "valid": _mean_validation(results),
            "test": scaled,
        },
        "malignant_share": {"valid": share, "test": tested_share, "all": share},
        "cross_validation": {
            **plan.model_dump(),
            "images": len(table),
            **spread(predictions),
            "spread_note": SPREADS.format(units="patients" if plan.official else f"{plan.unit}s"),
            "choices": [{key: result[key] for key in ("repeat", "fold", "epochs", "decision")} for result in results],
        },
    }


def training_parts(table: pd.DataFrame, drawn: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """The images that each outer fold trains on, fold by fold.

    Args:
        table: of `images_of`, with pixels where known.
        drawn: the tested images: filename, repeat, fold.
    """
    known = table if "pixels" in table else table.assign(pixels=table.filename)
    for repeat, fold in cross_validation_files.names(drawn):
        yield table.iloc[nested.parts(known, drawn, repeat, fold)[0]]


def _mean_validation(results: list[dict]) -> dict:
    names = results[0]["validation"]
    return {name: np.mean([result["validation"][name] for result in results], axis=0).tolist() for name in names}


def spread(predictions: pd.DataFrame) -> dict:
    """The scores of each fold and of each repeat, with mean and deviation (n - 1).

    Returns:
        `by_fold`, `by_repeat`: a list of rows, each repeat, fold, n, patients and metrics.SPREAD; `over_folds` and
        `over_repeats`:
        {"mean": {score: value}, "deviation": {score: value}}, where a deviation of a single row is None.
    """
    tables = {
        "fold": pd.DataFrame([score(rows) for _, rows in predictions.groupby(["repeat", "fold"])]),
        "repeat": pd.DataFrame([score(rows) for _, rows in predictions.groupby("repeat")]).drop(columns="fold"),
    }
    found = {}
    for name, table in tables.items():
        deviation = table[metrics.SPREAD].std().to_dict() if len(table) > 1 else dict.fromkeys(metrics.SPREAD)
        found[f"by_{name}"] = table.to_dict("records")
        found[f"over_{name}s"] = {"mean": table[metrics.SPREAD].mean().to_dict(), "deviation": deviation}
    return found


def score(rows: pd.DataFrame) -> dict:
    """repeat, fold, n, patients and metrics.SPREAD of the images of a fold or a repeat."""
    by_group = metrics.by_group(rows.assign(all="all"), "all")["all"]
    patients = metrics.score_patients(rows, rows.threshold)
    return {
        "repeat": int(rows.repeat.iloc[0]),
        "fold": int(rows.fold.iloc[0]),
        "n": len(rows),
        "patients": int(rows.patient.nunique()),
        "balanced_accuracy": (by_group["sensitivity"] + by_group["specificity"]) / 2,
        **{name: by_group[name] for name in ("sensitivity", "specificity", "accuracy", "roc_auc")},
        **patients,
    }


def published_figures(predictions: pd.DataFrame, table: pd.DataFrame, drawn: pd.DataFrame) -> list[dict]:
    """The figures that papers print of the official folds: mean and deviation (n - 1) over the five folds.

    Args:
        predictions: of `collect`.
        table: of `images_of`, with pixels where known.
        drawn: the tested images: filename, repeat, fold.

    Returns:
        A row for each magnification and for all: magnification, the accuracy of images, the recognition rate of
        patients (Spanhol et al. 2016), both with their deviation, and `shared_patient`, the mean share of test images
        whose patient is in the training part.
    """
    rows = []
    tests = (tested for _, tested in predictions.groupby(["repeat", "fold"]))
    for tested, trained in zip(tests, training_parts(table, drawn)):
        for mag in [*sorted(tested.mag.unique()), "all"]:
            part = tested if mag == "all" else tested[tested.mag == mag]
            rows.append(
                {
                    "magnification": str(mag),
                    "accuracy": (part.prediction == part.label).mean(),
                    "recognition_rate": metrics.by_patient(part, part.threshold).correct.mean(),
                    "shared_patient": part.patient.isin(trained.patient).mean(),
                }
            )
    folds = pd.DataFrame(rows).groupby("magnification", sort=False)
    mean, deviation = folds.mean(), folds.std()
    mean["accuracy_deviation"], mean["recognition_rate_deviation"] = deviation.accuracy, deviation.recognition_rate
    return mean.reset_index().to_dict("records")


def shared(table: pd.DataFrame, drawn: pd.DataFrame) -> dict:
    """What the test parts share with their training parts, as `leaks.measure` gives it, over all folds.

    Args:
        table: of `images_of`, with pixels where known.
        drawn: the tested images: filename, repeat, fold.
    """
    sizes, shares, slides = [], [], set()
    tests = (table[table.filename.isin(tested.filename)] for _, tested in drawn.groupby(["repeat", "fold"]))
    for test, train in zip(tests, training_parts(table, drawn)):
        measured = leaks.measure(pd.concat([train.assign(set="train"), test.assign(set="test")]))
        shares.append(measured["shared"])
        slides.update(measured["both_sides"])
        sizes.append(len(test))
    mean = {key: float(np.average([each[key] for each in shares], weights=sizes)) for key in shares[0]}
    return {
        "shared": mean,
        # The inner folds validate on the whole training part.
        "shared_with_validation": mean,
        "both_sides": sorted(slides),
        "sets": {},
        "validation_patients": {},
    }
