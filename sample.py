"""Write a synthetic, H&E-like stand-in for BreakHis, so that the whole project runs without the data set.

    python sample.py                             sample/, 3 images of each slide and magnification
    python sample.py tiny --images 1 --seed 7    tiny/, fewer images of other patients

Every image is drawn by this program and is no evidence of anything medical. Two signals are put in on purpose.
The class shows in the nuclei and glands, with overlap. Stain, light and focus differ from patient to patient (and
less from slide to slide) and know nothing of the class: a split that lets a patient stand on both sides can learn
them by heart and so flatters itself, as it does on the real images. The mean colour of an image tells no class.
"""

from __future__ import annotations

import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

import safety.startup  # noqa: F401  before any other import

import numpy as np
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo
from scipy import fft, ndimage
from tqdm import tqdm

from safety import command_line
from safety.errors import InputError

NOTICE = "Synthetic images drawn by a program: no patient, no tissue, no evidence of anything medical."
WIDTH, HEIGHT, LOW = 350, 230, 228  # px, half of the real 700 x 460 and 700 x 456
MAGNIFICATIONS = (40, 100, 200, 400)
PIXELS_PER_UM = 0.35 / 40  # times the magnification: 1 mm across at 40X, 0.1 mm at 400X
FIRST_PATIENT = 90001
LETTERS = (
    ("AB", "CD"),
    ("",),
    ("", "C"),
    ("",),
    ("AB", "CD", "EF"),
    ("",),
    ("AB", "CD"),
    ("",),
)  # of a patient's slides
MARKER = "SYNTHETIC.txt"
VERSION = 1  # changes with every change of what is drawn
GRADE = {"benign": 0.05, "malignant": 0.95}  # 0 is small, even, orderly nuclei, 1 large, varied, crowded ones
GRADE_SPREAD = 0.08, 0.04  # of the grade over patients, and over the images of one
PATIENT_SHARE = 0.68  # of the variance of a slide's manner; the rest is the slide's own
# How far the manner spreads: fibres, clefts, amount of stain, its colour, light (all as exponents) and focus.
STRANDS, CLEFTS, AMOUNT, COLOUR, LIGHT, FOCUS = 0.12, 0.2, 0.08, 0.3, 0.1, 0.2

HOLE, STROMA, CELLS, MUCIN = (0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255)  # channels of the map of regions
STAINS = np.array([[0.65, 0.70, 0.29], [0.10, 0.85, 0.40]])  # haematoxylin, eosin: optical density of R, G, B


class Subtype(NamedTuple):
    """How many patients have it, and how its glands are built (lengths in micrometres)."""

    label: str
    folder: str
    code: str
    patients: int
    spacing: float  # from gland to gland
    radius: float
    stretch: float  # 1 is round
    core: tuple = HOLE  # what the ring of cells encloses
    halo: tuple = STROMA  # and what lies around it
    lane: float = 0.1  # distance of the files in which loose cells stand


SUBTYPES = (
    Subtype("benign", "adenosis", "A", 3, 75, 24, 1.1),
    Subtype("benign", "fibroadenoma", "F", 4, 150, 36, 1.6),
    Subtype("benign", "phyllodes_tumor", "PT", 3, 190, 55, 1.8),
    Subtype("benign", "tubular_adenoma", "TA", 3, 68, 26, 1.1),
    Subtype("malignant", "ductal_carcinoma", "DC", 5, 95, 36, 1.2),
    Subtype("malignant", "lobular_carcinoma", "LC", 4, 170, 28, 1.2, lane=24),
    Subtype("malignant", "mucinous_carcinoma", "MC", 4, 130, 38, 1.2, halo=MUCIN),
    Subtype("malignant", "papillary_carcinoma", "PC", 3, 120, 42, 1.5, core=STROMA, halo=HOLE),
)


class Slide(NamedTuple):
    subtype: Subtype
    year: int
    patient: int
    block: int  # which of the patient's slides
    letters: str

    def path(self, mag: int, seq: int) -> str:
        kind = f"SOB_{self.subtype.label[0].upper()}_{self.subtype.code}"
        name = f"{self.year}-{self.patient}{self.letters}"
        return (
            f"BreaKHis_v1/histology_slides/breast/{self.subtype.label}/SOB/{self.subtype.folder}/"
            f"{kind}_{name}/{mag}X/{kind}-{name}-{mag}-{seq:03d}.png"
        )


def all_slides() -> list[Slide]:
    kinds = [kind for kind in SUBTYPES for _ in range(kind.patients)]
    return [
        Slide(kind, 14 + (i % 4 == 3), FIRST_PATIENT + i, block, letters)
        for i, (kind, blocks) in enumerate(zip(kinds, cycle(LETTERS)))
        for block, letters in enumerate(blocks)
    ]


class Manner(NamedTuple):
    """What makes the images of one slide alike."""

    grade: float
    strands: float  # micrometres per micrometre: how coarse the fibres are
    clefts: float
    amounts: np.ndarray  # mean haematoxylin and eosin
    stains: np.ndarray  # as STAINS
    light: np.ndarray  # R, G, B of the empty field, 0..1
    focus: float  # blur in pixels


def manner(seed: int, slide: Slide) -> Manner:
    """Drawn for the patient, with a smaller share of the slide's own."""
    shared = np.random.default_rng([seed, slide.patient]).normal(size=15)
    own = np.random.default_rng([seed, slide.patient, slide.block + 1]).normal(size=15)
    z = PATIENT_SHARE**0.5 * shared + (1 - PATIENT_SHARE) ** 0.5 * own
    return Manner(
        GRADE[slide.subtype.label] + GRADE_SPREAD[0] * z[0],
        np.exp(STRANDS * z[1]),
        2 + CLEFTS * z[2],
        np.array([0.24, 0.28]) * np.exp(AMOUNT * z[3:5]),
        STAINS * np.exp(COLOUR * z[5:11].reshape(2, 3)),
        0.93 * np.exp(LIGHT * z[11:14]),
        0.8 * np.exp(FOCUS * z[14]),
    )


class Blobs(NamedTuple):
    """Wobbly ellipses, one an array entry; positions are complex numbers in micrometres."""

    centre: np.ndarray
    radius: np.ndarray
    turn: np.ndarray  # a unit number along the long axis
    stretch: np.ndarray
    waves: np.ndarray  # (n, 6): strength and phase of the waves of the outline

    def points(self, angles: np.ndarray, size=1.0) -> np.ndarray:
        """Points of the outline: for n blobs and (n, k) or (1, k) angles an array (n, k)."""
        ray = np.exp(1j * angles)
        bulge = 1 + sum((self.waves[:, k, None] * ray ** (k + 2)).real for k in range(6))
        oval = ray.real * self.stretch[:, None] + 1j * ray.imag / self.stretch[:, None]
        return self.centre[:, None] + (self.radius * self.turn)[:, None] * oval * bulge * size


def make_blobs(rng, centre, radius, spread, stretch, wobble, turn=None) -> Blobs:
    n = len(centre)
    turn = np.exp(1j * rng.uniform(0, np.pi, n)) if turn is None else turn
    waves = wobble * (rng.normal(size=(n, 6)) + 1j * rng.normal(size=(n, 6))) / np.arange(1, 7)
    return Blobs(centre, radius * np.exp(spread * rng.normal(size=n)), turn, stretch ** rng.normal(1, 0.5, n), waves)


def scatter(rng, field: complex, spacing: float, keep: float) -> np.ndarray:
    """The points of a jittered grid over the field and a margin, each kept with that probability."""
    x, y = (np.arange(-1.0, side / spacing + 2) for side in (field.real, field.imag))
    grid = (x[:, None] + 1j * y).ravel() - rng.uniform() - 1j * rng.uniform()
    grid = grid + rng.uniform(-0.4, 0.4, len(grid)) + 1j * rng.uniform(-0.4, 0.4, len(grid))
    return grid[rng.random(len(grid)) < keep] * spacing


class Scene:
    """The regions and the nuclei of one image, painted at twice its size so that halving smooths the edges."""

    def __init__(self, rng, kind: Subtype, grade: float, scale: float):
        self.rng, self.kind, self.grade, self.scale = rng, kind, grade, 2 * scale
        self.field = (WIDTH + 1j * HEIGHT) / scale
        self.turn = np.exp(1j * rng.uniform(0, np.pi))  # along the fibres
        self.regions = Image.new("RGB", (2 * WIDTH, 2 * HEIGHT), STROMA)
        self.nuclei = Image.new("L", self.regions.size)
        self.size = 2.1 + 3.3 * grade  # radius of a nucleus
        self.loose_nuclei()
        self.glands()
        self.fat()

    def paint(self, canvas: Image.Image, blobs: Blobs, fills, size=1.0) -> None:
        corners = int(np.clip(4 * self.scale, 8, 24)) if canvas is self.nuclei else 32
        points = blobs.points(np.linspace(0, 2 * np.pi, corners, endpoint=False)[None], size) * self.scale
        pen = ImageDraw.Draw(canvas)
        for row, fill in zip(points.view(float).tolist(), cycle(fills)):  # x, y, x, y, ...
            pen.polygon(row, fill=fill)

    def paint_nuclei(self, centre: np.ndarray, size: float, stretch: float, turn) -> None:
        """Higher grades vary more in size, outline and depth of stain, and are paler inside their rim."""
        grade = self.grade
        blobs = make_blobs(self.rng, centre, size, 0.06 + 0.3 * grade, stretch, 0.02 + 0.06 * grade, turn)
        fill = np.clip(170 * np.exp((0.1 + 0.25 * grade) * self.rng.normal(size=len(centre))), 60, 255)
        self.paint(self.nuclei, blobs, fill.astype(int).tolist())
        if self.scale > 1:
            self.paint(self.nuclei, blobs, (fill * (0.95 - 0.3 * grade)).astype(int).tolist(), 0.75)

    def loose_nuclei(self) -> None:
        """Spindles along the fibres, in some subtypes one behind the other."""
        lane = scatter(self.rng, self.field, 15, 0.15 + 0.8 * self.grade) / self.turn
        centre = (lane.real + 1j * self.kind.lane * np.round(lane.imag / self.kind.lane)) * self.turn
        turn = self.turn * np.exp(0.3j * self.rng.normal(size=len(centre)))
        self.paint_nuclei(centre, 0.85 * self.size, 1.9 - 0.8 * self.grade, turn)

    def glands(self) -> None:
        rng, kind, grade = self.rng, self.kind, self.grade
        centre = scatter(rng, self.field, kind.spacing, 0.9)
        wave = centre / kind.spacing * np.exp(1j * rng.uniform(0, np.pi)) + rng.uniform(0, 6) * (1 + 1j)
        centre = centre[np.sin(wave.real) + np.sin(wave.imag) > -0.7]  # they stand in lobules
        gland = make_blobs(rng, centre, kind.radius, 0.1 + 0.2 * grade, kind.stretch, 0.03 + 0.08 * grade)
        core = np.clip(0.72 - 0.6 * grade + 0.1 * rng.normal(size=len(centre)), 0.05, 0.7)
        for region, size in ((kind.halo, 1.4), (CELLS, 1.0), (kind.core, core[:, None])):
            self.cover(gland, region, size)
        self.gland_nuclei(gland, core)

    def gland_nuclei(self, gland: Blobs, core: np.ndarray) -> None:
        """An even ring at low grade; the higher the grade, the more crowd in and stray across and out."""
        rng, crowd = self.rng, 1 + 2.8 * self.grade
        count = (crowd * 2.4 * gland.radius / self.size).astype(int)
        owner = np.repeat(np.arange(len(count)), count)
        place = np.arange(len(owner)) + 0.4 * rng.normal(size=len(owner))
        stray = rng.random(len(owner)) < self.grade
        depth = np.where(stray, np.sqrt(rng.uniform(core[owner] ** 2, 1.2)), rng.normal(0.8, 0.05, len(owner)))
        own = Blobs(*(part[owner] for part in gland))
        centre = own.points((2 * np.pi * crowd * place / count[owner])[:, None], depth[:, None])[:, 0]
        self.paint_nuclei(centre, self.size, 1.15, np.exp(1j * np.angle(centre - own.centre)))

    def fat(self) -> None:
        rng, field = self.rng, self.field
        centre = scatter(rng, field, 46, 1)
        away = abs(centre - rng.uniform(0, field.real) - 1j * rng.uniform(0, field.imag))
        drops = make_blobs(rng, centre[away < rng.uniform(-0.8, 0.35) * field.real], 25, 0.1, 1.1, 0.02)  # or none
        self.cover(drops, STROMA, 1.08)
        self.cover(drops, HOLE, 0.98)

    def cover(self, blobs: Blobs, region: tuple, size) -> None:
        self.paint(self.regions, blobs, [region], size)
        self.paint(self.nuclei, blobs, [0], size)


def noise(rng, sigma) -> np.ndarray:
    """A Gaussian field of unit variance that wraps around, smooth over sigma pixels (rows, columns)."""
    spectrum = fft.rfft2(rng.standard_normal((HEIGHT, WIDTH), np.float32))
    field = fft.irfft2(ndimage.fourier_gaussian(spectrum, sigma, n=WIDTH), (HEIGHT, WIDTH))
    return (field - field.mean()) / field.std()


def fibres(rng, scale: float, turn: complex) -> np.ndarray:
    """Wavy strands that run along turn, fine ones in coarse bundles; scale is in pixels per micrometre."""
    strands = sum(noise(rng, np.array(sigma) * scale) for sigma in ((0.5, 8), (1.5, 20), (5, 40))) / 3**0.5
    rows, columns = np.indices(strands.shape)
    along = (columns + 1j * rows) / turn + 9 * scale * (noise(rng, 40 * scale) + 1j * noise(rng, 40 * scale))
    return ndimage.map_coordinates(strands, [along.imag, along.real], order=1, mode="grid-wrap")


def stain(rng, scene: Scene, way: Manner) -> tuple[np.ndarray, np.ndarray]:
    """Haematoxylin and eosin of each pixel."""
    stroma, cells, mucin = np.moveaxis(np.asarray(scene.regions.reduce(2), np.float32) / 255, -1, 0)
    nuclei = np.asarray(scene.nuclei.reduce(2), np.float32) / 255
    strands, grain = fibres(rng, scene.scale / 2 * way.strands, scene.turn), noise(rng, 0.3 * scene.scale)
    stroma = stroma * np.clip(way.clefts + strands, 0.05, 1)
    eosin = stroma * np.clip(0.5 + 0.15 * strands + 0.05 * grain, 0, None) + cells * (0.42 + 0.08 * grain)
    haema = 0.08 * stroma + cells * (0.2 + 0.03 * grain) + mucin * (0.14 + 0.05 * strands)
    haema = np.clip(haema * (1 - nuclei) + nuclei * (1.5 + 0.3 * grain), 0, None)
    return settle(haema, eosin * (1 - 0.6 * nuclei) + 0.02, way.amounts)


def settle(haema, eosin, amounts) -> tuple[np.ndarray, np.ndarray]:
    """Bring the mean amounts to the slide's own, so that many nuclei do not make an image more purple."""
    eosin = eosin * (amounts[1] / eosin.mean())
    ratio = amounts[0] / haema.mean()
    haema = haema * min(ratio, ratio**0.5)  # few nuclei must not turn black: what is missing tints all tissue
    return haema + eosin * ((amounts[0] - haema.mean()) / amounts[1]), eosin


def draw(seed: int, slide: Slide, mag: int, seq: int) -> Image.Image:
    rng, way = np.random.default_rng([seed, slide.patient, slide.block + 1, mag, seq]), manner(seed, slide)
    grade = np.clip(way.grade + GRADE_SPREAD[1] * rng.normal(), 0, 1.2)
    haema, eosin = stain(rng, Scene(rng, slide.subtype, grade, PIXELS_PER_UM * mag), way)
    # Beer and Lambert: each stain takes its share of the light, colour by colour.
    density = np.stack([haema, eosin], axis=-1).astype(np.float32) @ way.stains.astype(np.float32)
    light = ndimage.gaussian_filter(way.light * np.exp(-density), (way.focus, way.focus, 0))
    light += 0.004 * rng.standard_normal(light.shape, np.float32)
    pixels = np.clip(255 * light, 0, 255).astype(np.uint8)
    return Image.fromarray(pixels[: LOW if rng.random() < 0.05 else HEIGHT])


def save(root: Path, seed: int, job: tuple[Slide, int, int]) -> None:
    path = root / job[0].path(*job[1:])
    path.parent.mkdir(parents=True, exist_ok=True)
    note = PngInfo()
    note.add_text("Comment", NOTICE)
    draw(seed, *job).save(path, pnginfo=note)


def table(slides: list[Slide], jobs: list[tuple[Slide, int, int]], seed: int) -> str:
    """Folds.csv: each image once in each of five folds, in each of which a third of either class' slides is tested."""
    lines = ["fold,mag,grp,filename"]
    for fold in range(1, 6):
        rng = np.random.default_rng([seed, fold])
        tested: set[Slide] = set()
        for label in GRADE:
            own = [slide for slide in slides if slide.subtype.label == label]
            tested.update(own[place] for place in rng.permutation(len(own))[: round(len(own) / 3)])
        for slide, mag, seq in jobs:
            lines.append(f"{fold},{mag},{'test' if slide in tested else 'train'},{slide.path(mag, seq)}")
    return "\n".join(lines) + "\n"


def write(folder: Path, seed: int, images: int, marker: str) -> None:
    """Writes the tree beside its place and renames it, so that a killed run leaves no half sample."""
    slides = all_slides()
    jobs = [(slide, mag, seq) for slide in slides for mag in MAGNIFICATIONS for seq in range(1, images + 1)]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as beside:
        root = Path(beside) / folder.name
        root.mkdir()
        with ProcessPoolExecutor() as pool:
            done = pool.map(partial(save, root, seed), jobs, chunksize=4)
            list(tqdm(done, "drawing", len(jobs), unit="img"))
        (root / "Folds.csv").write_text(table(slides, jobs, seed))
        (root / MARKER).write_text(marker)
        root.rename(folder)


def main(arguments: list[str]) -> None:
    """Reads the arguments, and does nothing where the same sample is there."""
    parser = command_line.CommandLine(__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("sample"), help="where it goes (default sample)")
    parser.add_argument("--seed", type=int, default=0, help="another seed draws other patients (default 0)")
    parser.add_argument("--images", type=int, default=3, help="of each slide and magnification (default 3)")
    args = parser.parse(arguments)
    if args.seed < 0 or not 1 <= args.images <= 999:
        raise InputError(f"--seed must be 0 or more, got {args.seed}; --images 1 to 999, got {args.images}")
    marker = f"{NOTICE}\npython sample.py --seed {args.seed} --images {args.images}, version {VERSION}\n"
    print(NOTICE)
    there = args.folder / MARKER
    if args.folder.exists() and not (there.is_file() and there.read_text() == marker):
        raise InputError(f"{args.folder} is there and is not this sample; delete it or name another folder")
    if args.folder.exists():
        print(f"synthetic sample: {args.folder} (it was there already)")
    else:
        write(args.folder, args.seed, args.images, marker)
        print(f"synthetic sample: {args.folder}")


if __name__ == "__main__":
    command_line.run(main)
