"""Tests every patient: python crossval.py [NAME] [--folds 5] [--repeats 1] [section.key=value ...]

python crossval.py honest                                five folds of patients, each image is predicted once
python crossval.py honest --repeats 5 --jobs 2           the same five times with other folds, two folds at a time
python crossval.py slides data.protocol=slide            whole slides instead, or image
python crossval.py papers --official                     the five official folds, all of their test images
python crossval.py honest                                the same line goes on after a stop
python crossval.py honest --final                        the same, and a model for predict.py, trained on all images
python crossval.py honest --repeats 5 --share 1/2        the first of two hosts; on the other: --share 2/2

Nested: epoch, threshold and temperature are chosen for each fold on inner folds of its training part alone; then a
head is trained on the whole training part and predicts the fold. One feature cache serves all folds.
"""

from __future__ import annotations

import safety.startup

safety.startup.start_command(__name__)  # before all other imports, which take seconds

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import keras
import pandas as pd

import config
import data
import model
from devices import fastest, precision, strategy
from evaluation import cross_validation, final_model, nested
from features import source
from images import audit, folds, splits
from safety import atomic_files, command_line, lock
from safety.errors import InputError
from training import changed_settings, cross_validation_files, decision, environment, jobs, out_of_fold, resume

HERE = Path(__file__).parent


class CrossValidation(NamedTuple):
    """What a cross-validation starts from.

    Attributes:
        folder: runs/NAME.
        settings: with the precision and the engine that are used.
        plan: with the folds that are used.
        table: a row an image, as in `out_of_fold.Prepared`.
        drawn: the tested images of each outer fold: filename, repeat, fold.
        network: of `model.build`.
    """

    folder: Path
    settings: config.Settings
    plan: nested.Plan
    table: pd.DataFrame
    drawn: pd.DataFrame
    network: keras.Model


def main(arguments: list[str]) -> None:
    """Trains and tests the missing folds of this share, then evaluates all folds if none is missing."""
    parser = command_line.CommandLine(__doc__)
    parser.add_argument(
        "name", nargs="?", metavar="NAME", help="the folder under runs/ [crossval-PROTOCOL-FOLDSxREPEATS-HASH]"
    )
    parser.add_argument("--folds", type=int, default=5, help="outer folds, and inner ones where the units suffice [5]")
    parser.add_argument("--repeats", type=int, default=1, help="how often the folds are drawn anew [1]")
    parser.add_argument("--official", action="store_true", help="test the five official folds instead")
    parser.add_argument(
        "--draw", action="store_true", help="draw the folds from data.seed; default: those of splits/, where they fit"
    )
    parser.add_argument(
        "--threshold", metavar="RULE", default="0.5", help=f"{decision.RULES}; chosen on the inner folds [0.5]"
    )
    parser.add_argument("--final", action="store_true", help="then train the model to keep, on all images")
    parser.add_argument("--folds-only", action="store_true", help="leave the evaluation to a later call")
    jobs.add_options(parser, "folds")
    config.add_settings(parser)
    args = parser.parse(arguments)
    if args.name and "=" in args.name:
        args.name, args.overrides = None, [args.name, *args.overrides]
    settings, plan = read_settings(args)
    folder = Path("runs", settings.train.run)
    jobs.check_count(args.jobs)
    number, count = jobs.parse_share(args.share)
    with resume.advice_on_stop(folder, ""), strategy.scope(settings, folder):
        started = start(folder, settings, plan)
        if args.jobs > 1:
            start_jobs(arguments, folder, [(number + count * job, count * args.jobs) for job in range(args.jobs)])
            # What follows finds all folds of this share.
        cross_validate(started, args)


def read_settings(args: argparse.Namespace) -> tuple[config.Settings, nested.Plan]:
    """The settings, with the name of the folder as train.run, and the plan.

    Raises:
        InputError: an option or a setting is wrong, or they do not fit together.
    """
    if any(text.startswith("train.run=") for text in args.overrides):
        raise InputError("train.run is set by the cross-validation; give its NAME instead")
    if args.official and any(text.startswith("data.protocol=") for text in args.overrides):
        raise InputError("data.protocol: --official sets it to fold; leave it out, or leave out --official")
    if args.official:
        args.overrides.append("data.protocol=fold")
        args.folds, args.repeats = 5, 1
    settings = config.load_settings(args.config, args.overrides)
    if settings.data.stain_target != "auto":
        raise InputError("data.stain_target: must be auto in a cross-validation, which fits one on each training part")
    # Whole patients validate under the official folds too.
    unit = "patient" if args.official else settings.data.protocol
    if args.official and args.final:
        raise InputError(
            "--final: needed is a cross-validation, since the official folds test some images several times"
        )
    if unit not in folds.UNITS:
        raise InputError(f"data.protocol: a cross-validation needs one of {', '.join(folds.UNITS)}, got {unit}")
    if args.folds < 2 or args.repeats < 1:
        raise InputError(
            f"--folds, --repeats: needed are 2 folds or more and 1 repeat or more, got {args.folds} and {args.repeats}"
        )
    if "TF_CONFIG" in os.environ and settings.train.strategy != "one":
        raise InputError("TF_CONFIG: a cross-validation is divided among hosts with --share; unset TF_CONFIG")
    published = unit == "patient" and args.folds == 5 and not (args.draw or args.official)
    plan = nested.Plan(
        unit=unit,
        folds=args.folds,
        repeats=args.repeats,
        official=args.official,
        published=published,
        rule=decision.check_rule(args.threshold),
    )
    if not args.name:
        digest = splits.digest(settings.to_yaml() + plan.model_dump_json())[:8]
        args.name = f"crossval-{settings.data.protocol}-{args.folds}x{args.repeats}-{digest}"
    return config.load_settings(args.config, [*args.overrides, f"train.run={args.name}"]), plan


def start(folder: Path, settings: config.Settings, plan: nested.Plan) -> CrossValidation:
    """Checks the images and creates the folder of a cross-validation, or opens it again.

    Its config.yaml then has the precision and the engine of all processes; `auto` could find others in each.
    """
    settings = fastest.with_fastest(changed_settings.with_known_values(folder, settings))
    rows = read_rows(settings)
    plan = with_folds_found(plan, rows)
    table, drawn, dropped = read_images(rows, settings, plan)
    chosen = settings.train
    device = precision.use_device(chosen.precision, chosen.deterministic, chosen.engine) + strategy.describe()
    network = model.build(settings, width=source.of(settings).width)
    record = environment.describe(settings, network) | {
        "device": device,
        "data_sha256": audit.data_version(table),
        "dropped": dropped,
        "cross_validation": plan.model_dump(),
    }
    cross_validation_files.open_folder(folder, settings, drawn, record)
    print(f"device: {device}", flush=True)
    return CrossValidation(folder, settings, plan, table, drawn, network)


def start_jobs(arguments: list[str], folder: Path, shares: list[tuple[int, int]]) -> None:
    """Runs this command in a process for each share, all at once; their output goes to runs/NAME.log and on.

    Raises:
        InputError: a process failed.
    """
    folder.parent.mkdir(exist_ok=True)

    def start(share: tuple[int, int]) -> Path | None:
        log = folder.with_name(f"{folder.name}-{share[0]}.log")
        options = ["--folds-only", "--jobs", "1", "--share", f"{share[0]}/{share[1]}"]
        command = [sys.executable, HERE / "crossval.py", *arguments, *options]
        with log.open("w") as file:
            status = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT).returncode
        return log if status else None

    failed = [log for log in jobs.run(start, shares, len(shares), "jobs") if log]
    if failed:
        raise InputError(
            f"{len(failed)} of {len(shares)} jobs failed; the last line of {failed[0]}:\n{jobs.last_line(failed[0])}\n"
            "the same command goes on"
        )


def cross_validate(started: CrossValidation, args: argparse.Namespace) -> None:
    """Trains and tests the missing folds of this share, then evaluates all if none is missing."""
    folder, settings, plan, table, drawn, network = started
    names = cross_validation_files.names(drawn)
    missing = [pair for pair in jobs.share(names, args.share) if not cross_validation_files.is_finished(folder, *pair)]
    print(f"{len(names)} folds, of which this process trains and tests {len(missing)}", flush=True)
    prepared = out_of_fold.prepare(network, table, settings) if missing or args.final else None
    for repeat, fold in missing:
        test_fold(folder, prepared, drawn, (repeat, fold), plan)
    absent = [pair for pair in names if not cross_validation_files.is_finished(folder, *pair)]
    if absent:
        print(f"{len(absent)} folds of other shares are missing; the last share evaluates all")
    if absent or args.folds_only:
        return
    with lock.exclusive(folder):
        # All folds are finished, so no other process writes there.
        for place, of in ((folder.parent, folder.name), (folder, "*"), (folder / "folds", "*")):
            atomic_files.remove_leftovers(place, of)
        evaluation = cross_validation.evaluate(folder)
        if args.final:
            print(f"final model: {final_model.train(folder, prepared, evaluation)}")


def read_rows(settings: config.Settings) -> pd.DataFrame:
    """The rows of `data.read_table` of `data.magnification`, a row an image and official fold; only usable ones."""
    rows = source.of(settings).rows(data.read_table(settings.data))
    return rows[(rows.mag == settings.data.magnification) | (settings.data.magnification == "all")]


def with_folds_found(plan: nested.Plan, rows: pd.DataFrame) -> nested.Plan:
    """The plan, whose folds are drawn where the published ones lack a patient of the rows."""
    return plan.model_copy(update={"published": plan.published and folds.is_published(rows)})


def read_images(
    rows: pd.DataFrame, settings: config.Settings, plan: nested.Plan
) -> tuple[pd.DataFrame, pd.DataFrame, dict]:
    """The table, a row an image, the tested images of each outer fold, and the images that were left out."""
    images = source.of(settings)
    images.check()
    draw_folds(rows, settings, plan)
    table, dropped = images.usable_rows(rows.drop_duplicates("filename").reset_index(drop=True))
    rows = rows.merge(table[["filename", "pixels"]], on="filename")
    return table, draw_folds(rows, settings, plan), dropped


def draw_folds(rows: pd.DataFrame, settings: config.Settings, plan: nested.Plan) -> pd.DataFrame:
    """The tested images: filename, repeat, fold."""
    if plan.official:
        return folds.official(rows)
    if plan.published:
        return folds.read_canonical(rows, plan.repeats)
    return folds.draw(rows, plan.unit, plan.folds, plan.repeats, settings.data.seed)


def test_fold(
    folder: Path, prepared: out_of_fold.Prepared, drawn: pd.DataFrame, pair: tuple[int, int], plan: nested.Plan
) -> None:
    """Tests an outer fold and writes its file."""
    path = cross_validation_files.path(folder, *pair)
    with lock.exclusive(path.with_suffix("")):
        result = nested.run_fold(prepared, drawn, *pair, plan)
        atomic_files.write_text(path, cross_validation_files.to_json(result))
    decided = result["decision"]
    print(
        f"repeat {pair[0]}, fold {pair[1]}: {len(result['filename'])} images tested; chosen: epochs "
        f"{' + '.join(map(str, result['epochs']))}, threshold {decided['threshold']:.4g}, temperature "
        f"{decided['temperature']:.3f}",
        flush=True,
    )


if __name__ == "__main__":
    command_line.run(main)
