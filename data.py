"""The table of BreakHis, one row an image and official fold; as a script it prints and draws the table and its split.

python data.py                       prints the counts, draws overview/distribution.png and overview/samples.png
python data.py --split split.csv     writes the split as CSV and opens no image
python data.py --check FILE          checks a split list that others made; needs no images
"""

from __future__ import annotations

import json
from pathlib import Path

import safety.startup  # noqa: F401  before any other import

import pandas as pd

import config
from images import audit, data_plots, leaks, plot_style, split_lists, splits
from safety import atomic_files, command_line, csv_files, limits
from safety.errors import InputError

COLUMNS = ["fold", "mag", "grp", "filename"]
ORDER = ["fold", "mag", "grp", "path", "label", "label_int", "filename", "subtype", "slide", "patient"]
LABELS = ["benign", "malignant"]
# The code in a file's name -> its class and its folder.
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
# Kaggle's copy spells a path from BreaKHis_v1/ on, others from the class' folder on.
PATH = r"^(?:(?:BreaKHis_v1/){0,2}histology_slides/breast/)?(?P<path>(?:benign|malignant)(?:/[^/]+){5})\Z"
NOTICE_BYTES = 2**14
OUTSIDE = r"^[/\\]|^[A-Za-z]:|(?:^|[/\\])\.\.(?:[/\\]|$)"


def read_folds(path: str | Path) -> pd.DataFrame:
    """Reads Folds.csv and checks every row.

    Args:
        path: CSV with the columns fold, mag, grp, filename; the file names in either of their two shapes.

    Returns:
        One row an image and official fold, ordered by filename and fold whatever the order in the file. Columns:
        fold (1 to 5), mag (40, 100, 200, 400), grp (train, test), path (from the class' folder on), label (benign,
        malignant), label_int (0, 1), filename, subtype (its folder), slide (`14-22549AB`), patient (`14-22549`).

    Raises:
        InputError: the file is missing, is no CSV or lacks a column, or a row is wrong or contradicts itself.
    """
    rows = _read_csv(Path(path))

    def check(good: pd.Series, rule: str, column: str = "filename") -> None:
        if not good.all():
            line = good.index[~good.astype(bool)][0]
            raise InputError(f"{path}, line {line + 2}: {rule}, got {rows.at[line, column][:200]!r}")

    check(rows.fold.isin(list("12345")), "fold must be 1 to 5", "fold")
    check(rows.mag.isin(["40", "100", "200", "400"]), "mag must be 40, 100, 200 or 400", "mag")
    check(rows.grp.isin(["train", "test"]), "grp must be train or test", "grp")
    check(~rows.filename.str.contains(OUTSIDE), "a path must not be absolute or climb with ..")
    paths = rows.filename.str.extract(PATH).path
    check(paths.notna(), "a path reads BreaKHis_v1/histology_slides/breast/<class>/SOB/... or <class>/SOB/...")
    names = describe(paths.str.rsplit("/", n=1).str[-1])
    check(names.slide.notna(), "a name reads SOB_<B|M>_<subtype>-<year>-<slide>-<mag>-<seq>.png, B for A, F, PT, TA")
    check(paths == names.path, "the path contradicts the file's name")
    check(rows.mag == names.mag.astype(str), "mag contradicts the file's name", "mag")
    table = names.assign(fold=rows.fold.astype(int), grp=rows.grp)
    groups = table.groupby(["filename", "fold"]).grp.transform("nunique")
    check(groups == 1, "an image is both train and test in one fold")
    return table[ORDER].sort_values(["filename", "fold"], kind="stable", ignore_index=True)


def read_tree(folder: Path) -> pd.DataFrame:
    """Reads the names of the images themselves, for archives that come without Folds.csv.

    Args:
        folder: the one that `audit.find_images` gives.

    Returns:
        The frame of `read_folds` with one row an image; fold and grp are missing, since no name holds them.

    Raises:
        InputError: there is no image, or one whose name or place is not BreakHis'.
    """
    paths = pd.Series(
        sorted(path.relative_to(folder).as_posix() for path in folder.glob("*/SOB/*/*/*/*.png")), dtype=str
    )
    if paths.empty:
        raise InputError(f"data.folds=tree: no images below {folder}; {audit.HELP}")
    names = describe(paths.str.rsplit("/", n=1).str[-1])
    wrong = names.path.isna() | (names.path != paths)
    if wrong.any():
        raise InputError(f"data.folds=tree: {folder / paths[wrong.idxmax()]} is not named or placed as BreakHis does")
    return names.assign(fold=pd.NA, grp=pd.NA)[ORDER].sort_values("filename", ignore_index=True)


def read_table(settings: config.Data) -> pd.DataFrame:
    """Reads Folds.csv, or the folders under `data.folds: tree`; raises InputError as `read_folds` and `read_tree`."""
    if settings.folds != "tree":
        return read_folds(settings.folds)
    if settings.protocol in ("row", "fold"):
        reason = "is drawn from the rows" if settings.protocol == "row" else "takes the official folds"
        raise InputError(
            f"data.protocol={settings.protocol} {reason} of Folds.csv, which folders do not have; "
            "allowed with data.folds=tree are image, slide and patient"
        )
    return read_tree(audit.image_folder(settings.root))


def _read_csv(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise InputError(f"data.folds: no table {str(path)!r}; {audit.HELP}")
    rows = csv_files.read(path)
    missing = [column for column in COLUMNS if column not in rows]
    if missing:
        columns = ", ".join(map(str, rows.columns[:8]))
        raise InputError(f"{path}: column {missing[0]} is missing; needed are {', '.join(COLUMNS)}, got {columns}")
    if rows.empty:
        raise InputError(f"{path}: holds no rows")
    return rows


def describe(filenames: pd.Series) -> pd.DataFrame:
    """What the names of BreakHis' files say.

    Args:
        filenames: such as SOB_B_A-14-22549AB-40-001.png.

    Returns:
        A row a name: filename, label, label_int, subtype, slide, patient, mag and path (from the class' folder on);
        all but the first are missing for a name of another shape or whose class letter contradicts its subtype.
    """
    parts = filenames.str.extract(NAME)
    label = parts.code.map({code: label for code, (label, _) in SUBTYPES.items()})
    parts = parts.where(label.str[0].str.upper() == parts.letter)
    subtype = parts.code.map({code: subtype for code, (_, subtype) in SUBTYPES.items()})
    folder = "SOB_" + parts.letter + "_" + parts.code + "_" + parts.slide
    return pd.DataFrame(
        {
            "filename": filenames,
            "label": label,
            "label_int": label.map(LABELS.index, na_action="ignore"),
            "subtype": subtype,
            "slide": parts.slide,
            "patient": parts.patient,
            "mag": parts.mag.astype("Int64"),
            "path": label + "/SOB/" + subtype + "/" + folder + "/" + parts.mag + "X/" + filenames,
        }
    )


def notice(root: str | Path) -> str:
    """The first line of SYNTHETIC.txt in `root`, to be shown with every result; empty where it has none."""
    marker = Path(root) / "SYNTHETIC.txt"
    if not (marker.is_file() and limits.is_within(marker, root)):
        return ""
    lines = limits.read_bytes(marker, NOTICE_BYTES).decode("utf-8", "replace").splitlines()
    return limits.printable(lines[0]) if lines else ""


def summary(table: pd.DataFrame) -> str:
    """The table in counts: rows, images, slides, patients by class and subtype; images by magnification and group."""

    def count(keys: list[str]) -> str:
        groups = table.groupby(keys)
        unique = groups[["filename", "slide", "patient"]].nunique()
        return unique.set_axis(["images", "slides", "patients"], axis=1).assign(rows=groups.size()).to_string()

    images = table.drop_duplicates("filename")
    by_mag = pd.crosstab([images.label, images.subtype], images.mag, margins=True, margins_name="all")
    spread = [
        f"images of each {label} {key}: {' '.join(map(str, sorted(part.groupby(key).size())))}"
        for key in ("slide", "patient")
        for label, part in images.groupby("label")
    ]
    blocks = [count(["label"]), count(["label", "subtype"]), by_mag.to_string(), "\n".join(spread)]
    return "\n\n".join(blocks)


def sample_images(table: pd.DataFrame, folder: Path) -> dict:
    """The first image of each subtype and magnification, as arrays under (subtype, mag)."""
    return {pair: audit.read_rgb(folder, rows.path.iloc[0]) for pair, rows in table.groupby(["subtype", "mag"])}


def main(arguments: list[str]) -> int:
    """Prints and draws the table and its split; returns 1 where the audit finds what training cannot do with."""
    parser = command_line.CommandLine(__doc__)
    parser.add_argument("--split", metavar="FILE", help="only write the split as CSV; opens no image")
    parser.add_argument("--audit", action="store_true", help="open every image and report what is wrong or odd")
    parser.add_argument("--out", metavar="FOLDER", default="overview", help="where the images go (default overview)")
    parser.add_argument("--check", metavar="FILE", help="only check a split list: CSV, TSV, JSON or a folder of them")
    config.add_settings(parser)
    args = parser.parse(arguments)
    settings = config.load_settings(args.config, args.overrides)
    if args.check:
        return split_lists.check(args.check, settings.data, describe, read_table)
    table = read_table(settings.data)
    if args.audit:
        return show_audit(table, settings.data, Path(args.out))
    parts = audit.known_pixels(splits.select(table, settings.data), settings.data)
    if "pixels" not in parts and settings.data.protocol != "row":
        print("equal pixels are not known yet, so train.py may split otherwise; python data.py --audit finds them")
    parts = splits.split(parts, settings.data)
    if args.split:
        if Path(args.split).with_name("best_model.keras").exists():
            raise InputError(f"--split writes, and {args.split} would be a run's own split; name another file")
        atomic_files.write_out(args.split, splits.to_csv(parts))
        print(f"{args.split}: {len(parts)} lines, SHA-256 {splits.digest(splits.to_csv(parts))}")
    else:
        show_table(table, parts, settings.data, Path(args.out))
    return 0


def show_table(table: pd.DataFrame, parts: pd.DataFrame, settings: config.Data, out: Path) -> None:
    """Prints the counts of the table and its split; draws the distribution and a sheet of sample images."""
    folder, note = audit.image_folder(settings.root), notice(settings.root)
    sheet = data_plots.sheet(sample_images(table, folder), {name: label for label, name in SUBTYPES.values()})
    print(summary(table), leaks.describe(parts), sep="\n\n")
    plot_style.save(data_plots.split(parts), out / "distribution.png", note)
    plot_style.save(sheet, out / "samples.png", note)
    print(f"drawn: {out}/distribution.png, {out}/samples.png", *([note] if note else []), sep="\n")


def show_audit(table: pd.DataFrame, settings: config.Data, out: Path) -> int:
    """Prints the audit, writes it as JSON, draws the suspicious images; returns the exit status."""
    folder = audit.image_folder(settings.root)
    findings = audit.inspect(table.path.unique(), folder, audit.store_of(settings))
    report = audit.report(table, findings, folder)
    atomic_files.write_text(out / "audit.json", json.dumps(report, indent=1))
    print(audit.describe(report), f"\nwritten: {out}/audit.json", end="")
    suspects = audit.suspects(report, findings).head(60)
    if len(suspects):
        images = [audit.read_rgb(folder, path) for path in suspects.path]
        captions = suspects.path.str.rsplit("/", n=1).str[-1] + "\n" + suspects.why
        labels = suspects.path.str.split("/").str[0]
        plot_style.save(data_plots.gallery(images, captions, labels, "Suspicious images"), out / "suspicious.png")
        print(f", {out}/suspicious.png", end="")
    print()
    return 1 if report["errors"] else 0


if __name__ == "__main__":
    command_line.run(main)
