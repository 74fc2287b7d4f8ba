"""The table of BreakHis, one row for each image and official fold; as a command: its counts, split and audit.

python data.py                       prints the counts, draws overview/distribution.png and overview/samples.png
python data.py --audit               opens every image, reports broken and unusual ones, writes overview/audit.json
python data.py --split split.csv     writes the split as CSV and opens no image
python data.py --augmented augment.turns=true    training images before and after, overview/augmented.png
python data.py --check FILE          checks a split list that others made; needs no images
"""

from __future__ import annotations

import safety.startup

safety.startup.start_command(__name__)  # before all other imports, which take seconds

import json
import shlex
import sys
from pathlib import Path

import pandas as pd

import config
from images import audit, folds_csv, leaks, other_files, split_lists, splits
from safety import atomic_files, command_line, limits
from safety.errors import InputError

ORDER = ["fold", "mag", "grp", "path", "label", "label_int", "filename", "subtype", "slide", "patient"]
# The subtype code in a file name -> class and folder of the subtype.
SUBTYPES = {
    "A": ("benign", "adenosis"),
    "F": ("benign", "fibroadenoma"),
    "PT": ("benign", "phyllodes_tumor"),
    "TA": ("benign", "tubular_adenoma"),
    "DC": ("malignant", "ductal_carcinoma"),
    "LC": ("malignant", "lobular_carcinoma"),
    "MC": ("malignant", "mucinous_carcinoma"),
    "PC": ("malignant", "papillary_carcinoma"),
}
NAME = (
    r"^SOB_(?P<letter>[BM])_(?P<code>A|F|PT|TA|DC|LC|MC|PC)"
    r"-(?P<slide>(?P<patient>1[45]-[0-9]{1,9})[A-Z]{0,9})-(?P<mag>40|100|200|400)-[0-9]{1,9}\.png\Z"
)
# In Kaggle's table a path starts with BreaKHis_v1/, in others with the folder of the class.
PATH = r"^(?:(?:BreaKHis_v1/){0,2}histology_slides/breast/)?(?P<path>(?:benign|malignant)(?:/[^/]+){5})\Z"
# Class, SOB, subtype, slide and magnification.
PLACE = "*/SOB/*/*/*"
NOTICE_BYTES = 2**14
# An absolute path, or one with `..`, could lead out of data.root.
OUTSIDE = r"^[/\\]|^[A-Za-z]:|(?:^|[/\\])\.\.(?:[/\\]|$)"


def read_folds(path: str | Path) -> pd.DataFrame:
    """Reads Folds.csv and checks every row.

    Args:
        path: CSV with the columns fold, mag, grp, filename, as `folds_csv.read` normalises it; a filename starts with
            BreaKHis_v1/ or with its class.

    Returns:
        One row for each image and official fold, ordered by filename and fold. Columns: fold (1 to 5), mag (40, 100,
        200, 400), grp (train, test), path (from the folder of the class on), label (benign, malignant), label_int (0,
        1), filename, subtype (its folder), slide (`14-22549AB`), patient (`14-22549`).

    Raises:
        InputError: the file is missing, is not a CSV or lacks a column; or a row is wrong or contradicts another.
    """
    rows, given, note = folds_csv.read(Path(path))

    def check(valid: pd.Series, rule: str, column: str = "filename") -> None:
        if not valid.all():
            line = valid.index[~valid.astype(bool)][0]
            raise InputError(f"{path}, line {line}: {rule}, got {given.at[line, column][:200]!r}")

    check(rows.fold.isin(list("12345")), "fold must be 1 to 5", "fold")
    check(rows.mag.isin(["40", "100", "200", "400"]), "mag must be 40, 100, 200 or 400", "mag")
    check(rows.grp.isin(["train", "test"]), "grp must be train or test", "grp")
    # Each name once, at its first line.
    distinct = rows.filename.drop_duplicates()
    check(~distinct.str.contains(OUTSIDE), "filename must not be absolute or contain ..")
    paths = distinct.str.extract(PATH).path
    check(paths.notna(), "path must be BreaKHis_v1/histology_slides/breast/<class>/SOB/... or <class>/SOB/...")
    names = describe(paths.str.rsplit("/", n=1).str[-1])
    check(
        names.slide.notna(), "file name must be SOB_<B|M>_<subtype>-<year>-<slide>-<mag>-<seq>.png, B for A, F, PT, TA"
    )
    check(paths == names.path, "path must agree with the file name")
    names = names.set_axis(distinct).loc[rows.filename].set_axis(rows.index)
    check(rows.mag == names.mag.astype(str), "mag must agree with the file name", "mag")
    table = names.assign(fold=rows.fold.astype(int), grp=rows.grp)
    groups = table.groupby(["filename", "fold"]).grp.transform("nunique")
    check(groups == 1, "an image must be train or test in a fold, not both")
    check(~table.duplicated(["filename", "fold"]), "an image must have one row in a fold, not two")
    # After the checks, so that a refusal is one line.
    if note:
        print(note, file=sys.stderr)
    return table[ORDER].sort_values(["filename", "fold"], kind="stable", ignore_index=True)


def read_tree(folder: Path) -> pd.DataFrame:
    """Builds the table from the names of the image files, for archives without Folds.csv; counts what it leaves out.

    Args:
        folder: what `audit.image_folder` returns.

    Returns:
        The frame of `read_folds` with one row for each image; fold and grp are missing, as no file name has them.

    Raises:
        InputError: there are no images, or one is not named or placed as in BreakHis.
    """
    images = (path for path in folder.glob(f"{PLACE}/*.png") if not other_files.is_of_macos(path))
    paths = pd.Series(sorted(path.relative_to(folder).as_posix() for path in images), dtype=str)
    others = [Path(path) for path in audit.unnamed_files(paths, folder)]
    left_out = f"left out, because only {PLACE}/*.png is read: {other_files.count(others)}" if others else ""
    if paths.empty:
        raise InputError(f"data.folds=tree: no images in {folder}; {left_out + '; ' * bool(others)}{config.GET_DATA}")
    if others:
        first = limits.printable(str(others[0]))
        print(f"data.folds=tree: {len(others)} files in {folder} are {left_out}; the first is {first}", file=sys.stderr)
    names = describe(paths.str.rsplit("/", n=1).str[-1])
    wrong = names.path.isna() | (names.path != paths)
    if wrong.any():
        raise InputError(f"data.folds=tree: {folder / paths[wrong.idxmax()]} is not named or placed as in BreakHis")
    return names.assign(fold=pd.NA, grp=pd.NA)[ORDER].sort_values("filename", ignore_index=True)


def read_table(settings: config.Data) -> pd.DataFrame:
    """Reads the table from Folds.csv, or from the image files under `data.folds: tree`.

    Args:
        settings: the section `data`.

    Returns:
        The frame of `read_folds` or `read_tree`.

    Raises:
        InputError: as these do; or the protocol needs Folds.csv.
    """
    if settings.folds != "tree":
        return read_folds(settings.folds)
    if settings.protocol in ("row", "fold"):
        raise InputError(
            "data.protocol: must be image, slide or patient with data.folds=tree, because the others need Folds.csv, "
            f"got {settings.protocol}"
        )
    return read_tree(audit.image_folder(settings.root))


def describe(filenames: pd.Series) -> pd.DataFrame:
    """Parses the file names of BreakHis.

    Args:
        filenames: such as SOB_B_A-14-22549AB-40-001.png.

    Returns:
        One row for each name: filename, label, label_int, subtype, slide, patient, mag and path (from the folder of
        the class on). All but filename are missing if the name has another form or its class letter contradicts its
        subtype.
    """
    parts = filenames.str.extract(NAME)
    label = _map(parts.code, {code: label for code, (label, _) in SUBTYPES.items()})
    parts = parts.where(label.str[0].str.upper() == parts.letter)
    subtype = _map(parts.code, {code: subtype for code, (_, subtype) in SUBTYPES.items()})
    folder = "SOB_" + parts.letter + "_" + parts.code + "_" + parts.slide
    return pd.DataFrame(
        {
            "filename": filenames,
            "label": label,
            "label_int": label.map(splits.LABELS.index, na_action="ignore"),
            "subtype": subtype,
            "slide": parts.slide,
            "patient": parts.patient,
            "mag": parts.mag.astype("Int64"),
            "path": label + "/SOB/" + subtype + "/" + folder + "/" + parts.mag + "X/" + filenames,
        }
    )


def _map(texts: pd.Series, values: dict[str, str]) -> pd.Series:
    # Where all are missing, pandas would not take the result for texts.
    return texts.map(values).astype(texts.dtype)


def notice(root: str | Path) -> str:
    """The first line of SYNTHETIC.txt in `root`, which is shown with every result; empty if there is no such file."""
    marker = Path(root) / "SYNTHETIC.txt"
    if not (marker.is_file() and limits.is_within(marker, root)):
        return ""
    lines = limits.read_bytes(marker, NOTICE_BYTES).decode("utf-8", "replace").splitlines()
    return limits.printable(lines[0]) if lines else ""


def summary(table: pd.DataFrame) -> str:
    """Numbers of rows, images, slides and patients by class and subtype; of images by magnification and group."""

    def count(keys: list[str]) -> str:
        groups = table.groupby(keys)
        unique = groups[["filename", "slide", "patient"]].nunique()
        return unique.set_axis(["images", "slides", "patients"], axis=1).assign(rows=groups.size()).to_string()

    images = table.drop_duplicates("filename")
    by_mag = pd.crosstab([images.label, images.subtype], images.mag, margins=True, margins_name="all")
    group_sizes = [
        f"images of each {label} {key}: {' '.join(map(str, sorted(part.groupby(key).size())))}"
        for key in ("slide", "patient")
        for label, part in images.groupby("label")
    ]
    blocks = [count(["label"]), count(["label", "subtype"]), by_mag.to_string(), "\n".join(group_sizes)]
    return "\n\n".join(blocks)


def sample_images(table: pd.DataFrame, folder: Path) -> dict:
    """The first image of each subtype and magnification: (subtype, mag) -> (height, width, 3), uint8."""
    return {pair: audit.read_rgb(folder, rows.path.iloc[0]) for pair, rows in table.groupby(["subtype", "mag"])}


def main(arguments: list[str]) -> int:
    """Prints and draws the table and its split, or audits the images; returns 1 if the audit finds errors."""
    parser = command_line.CommandLine(__doc__)
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument("--split", metavar="FILE", help="write the split as CSV and do nothing else; opens no image")
    modes.add_argument("--audit", action="store_true", help="open every image and report what is wrong or unusual")
    modes.add_argument(
        "--augmented", action="store_true", help="only draw training images before and after data.stain and augment"
    )
    modes.add_argument("--check", metavar="FILE", help="only check a split list: CSV, TSV, JSON or a folder of them")
    parser.add_argument(
        "--out", metavar="FOLDER", default="overview", help="folder for the figures and the report (default overview)"
    )
    config.add_settings(parser)
    args = parser.parse(arguments)
    settings = config.load_settings(args.config, args.overrides)
    if args.check:
        return split_lists.check(args.check, settings.data, describe, read_table)
    if settings.model.imported:
        raise InputError("model.base: data.py shows images, so all but file are allowed; train.py writes split.csv")
    table = read_table(settings.data)
    if args.audit:
        return show_audit(table, settings.data, Path(args.out))
    if args.augmented:
        return show_augmented(table, settings, Path(args.out))
    if not args.split:
        # Refuses a missing folder before anything is printed.
        audit.image_folder(settings.data.root)
    parts = audit.known_pixels(splits.select(table, settings.data), settings.data)
    if "pixels" not in parts and settings.data.protocol != "row":
        again = shlex.join(
            ["python", "data.py", "--audit", *(["--config", args.config] if args.config else []), *args.overrides]
        )
        print(f"note: train.py may split differently, since equal pixels are not known yet; first run: {again}")
    parts = splits.split(parts, settings.data)
    if args.split:
        if Path(args.split).with_name("best_model.keras").exists():
            raise InputError(f"--split: would overwrite the split of a run; name another file, got {args.split}")
        atomic_files.write_out(args.split, splits.to_csv(parts))
        print(f"{args.split}: {len(parts)} lines, SHA-256 {splits.digest(splits.to_csv(parts))}")
    else:
        show_table(table, parts, settings.data, Path(args.out))
    return 0


def show_table(table: pd.DataFrame, parts: pd.DataFrame, settings: config.Data, out: Path) -> None:
    """Prints the counts of the table and of its split; draws the split and one image of each kind."""
    # Here and below, since Matplotlib takes a second to import and a table or split without figures needs none.
    from images import data_plots, plot_style

    folder, note = audit.image_folder(settings.root), notice(settings.root)
    sheet = data_plots.sheet(sample_images(table, folder), {name: label for label, name in SUBTYPES.values()})
    print(summary(table), leaks.describe(parts, splits.training_rows(parts, settings)), sep="\n\n")
    plot_style.save(data_plots.split(parts), out / "distribution.png", note)
    plot_style.save(sheet, out / "samples.png", note)
    print(f"drawn: {out}/distribution.png, {out}/samples.png", *([note] if note else []), sep="\n")


def show_augmented(table: pd.DataFrame, settings: config.Settings, out: Path) -> int:
    """Draws training images before and after normalisation and augmentation."""
    # TensorFlow, which takes seconds to import, is needed here alone.
    from images import augmented_sheet, plot_style

    table, _ = audit.usable_rows(splits.select(table, settings.data), settings.data)
    table = splits.split(table, settings.data)
    figure = augmented_sheet.sheet(table[table.set == "train"], settings)
    plot_style.save(figure, out / "augmented.png", notice(settings.data.root))
    print(f"drawn: {out}/augmented.png")
    return 0


def show_audit(table: pd.DataFrame, settings: config.Data, out: Path) -> int:
    """Prints the audit, writes it as JSON and draws up to 60 suspicious images; returns the exit status."""
    from images import data_plots, plot_style

    folder = audit.image_folder(settings.root)
    findings = audit.inspect(table.path.unique(), folder, audit.findings_path(settings))
    report = audit.report(table, findings, folder)
    atomic_files.write_text(out / "audit.json", json.dumps(report, indent=1))
    print(audit.describe(report), f"\nwritten: {out}/audit.json", end="")
    suspicious = audit.suspicious_images(report, findings).head(60)
    if len(suspicious):
        images = [audit.read_rgb(folder, path) for path in suspicious.path]
        captions = suspicious.path.str.rsplit("/", n=1).str[-1] + "\n" + suspicious.reason
        labels = suspicious.path.str.split("/").str[0]
        plot_style.save(data_plots.gallery(images, captions, labels, "Suspicious images"), out / "suspicious.png")
        print(f", {out}/suspicious.png", end="")
    print()
    return 1 if report["errors"] else 0


if __name__ == "__main__":
    command_line.run(main)
