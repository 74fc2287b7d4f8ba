"""Draws a synthetic data set that looks like BreakHis, so that the whole project runs without the real one.

    python sample.py                             sample/, 3 images of each slide and magnification
    python sample.py tiny --images 1 --seed 7    tiny/, fewer images of other patients

Every image is drawn by this program and is no evidence of anything medical. It has two signals on purpose. The class
changes nuclei and glands, but the classes overlap. Stain, light and focus differ between patients, less between slides,
and not between classes, nor does the mean colour: a network that has seen a patient can recognise the test images.
"""

from __future__ import annotations

import safety.startup

safety.startup.start_command(__name__)  # before all other imports, which take seconds

import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo
from scipy import fft, ndimage
from tqdm import tqdm

from safety import command_line
from safety.errors import InputError, naming

NOTICE = "Synthetic images drawn by a program: no patient, no tissue, no evidence of anything medical."
WIDTH, HEIGHT, LOW = 350, 230, 228  # px, half of the real 700 x 460 and 700 x 456
MAGNIFICATIONS = (40, 100, 200, 400)
PIXELS_PER_UM = 0.35 / 40  # times the magnification: 1 mm across at 40X, 0.1 mm at 400X
FIRST_PATIENT = 90001
BLOCKS = (("AB", "CD"), ("",), ("", "C"), ("",), ("AB", "CD", "EF"), ("",), ("AB", "CD"), ("",))  # of each patient
MARKER = "SYNTHETIC.txt"
VERSION = 1  # to be raised when the images change
GRADE = {"benign": 0.05, "malignant": 0.95}  # 0 is small, even, orderly nuclei, 1 large, varied, crowded ones
GRADE_SPREAD = 0.08, 0.04  # standard deviation of the grade over patients, and over the images of a patient
PATIENT_SHARE = 0.68  # of the variance of a slide's appearance; the rest differs between slides of a patient
# Standard deviations of the appearance: fibres, clefts, amount of stain, its colour, light and focus.
STRANDS, CLEFTS, AMOUNT, COLOUR, LIGHT, FOCUS = 0.12, 0.2, 0.08, 0.3, 0.1, 0.2

HOLE, STROMA, CELLS, MUCIN = (0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255)  # channels of `Scene.regions`
STAINS = np.array([[0.65, 0.70, 0.29], [0.10, 0.85, 0.40]])  # haematoxylin, eosin: optical density of R, G, B


class Subtype(NamedTuple):
    """A tumour subtype: its number of patients, and the shape of its glands (lengths in micrometres)."""

    label: str
    folder: str
    code: str
    patients: int
    spacing: float  # between glands
    radius: float
    stretch: float  # 1 is round
    core: tuple = HOLE  # inside the ring of cells
    halo: tuple = STROMA  # around it
    lane: float = 0.1  # distance between the rows of loose cells


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
    block: int  # number of the slide among those of its patient
    letters: str  # of the block, in the slide's name

    def path(self, mag: int, seq: int) -> str:
        kind = f"SOB_{self.subtype.label[0].upper()}_{self.subtype.code}"
        name = f"{self.year}-{self.patient}{self.letters}"
        place = f"{self.subtype.label}/SOB/{self.subtype.folder}/{kind}_{name}/{mag}X"
        return f"BreaKHis_v1/histology_slides/breast/{place}/{kind}-{name}-{mag}-{seq:03d}.png"


def all_slides() -> list[Slide]:
    kinds = [kind for kind in SUBTYPES for _ in range(kind.patients)]
    return [
        Slide(kind, 14 + (i % 4 == 3), FIRST_PATIENT + i, block, letters)
        for i, (kind, blocks) in enumerate(zip(kinds, cycle(BLOCKS)))
        for block, letters in enumerate(blocks)
    ]


class Appearance(NamedTuple):
    """What all images of one slide have in common."""

    grade: float
    strands: float  # coarseness of the fibres, 1 on average
    clefts: float
    amounts: np.ndarray  # mean amounts of haematoxylin and eosin
    stains: np.ndarray  # as STAINS
    light: np.ndarray  # R, G, B of the background, 0 to 1
    focus: float  # blur in pixels


def draw_appearance(seed: int, slide: Slide) -> Appearance:
    """The appearance of a slide: partly drawn for its patient, partly for the slide."""
    of_patient = np.random.default_rng([seed, slide.patient]).normal(size=15)
    of_slide = np.random.default_rng([seed, slide.patient, slide.block + 1]).normal(size=15)
    z = PATIENT_SHARE**0.5 * of_patient + (1 - PATIENT_SHARE) ** 0.5 * of_slide
    return Appearance(
        GRADE[slide.subtype.label] + GRADE_SPREAD[0] * z[0],
        np.exp(STRANDS * z[1]),
        2 + CLEFTS * z[2],
        np.array([0.24, 0.28]) * np.exp(AMOUNT * z[3:5]),
        STAINS * np.exp(COLOUR * z[5:11].reshape(2, 3)),
        0.93 * np.exp(LIGHT * z[11:14]),
        0.8 * np.exp(FOCUS * z[14]),
    )


class Blobs(NamedTuple):
    """Irregular ellipses, one for each array entry; positions are complex numbers x + iy in micrometres."""

    centre: np.ndarray
    radius: np.ndarray
    turn: np.ndarray  # direction of the long axis, a complex number of modulus 1
    stretch: np.ndarray
    waves: np.ndarray  # (n, 6): amplitude and phase of the waves of the outline

    def points(self, angles: np.ndarray, size=1.0) -> np.ndarray:
        """Points of the outline, (n, k), of n blobs at the angles (n, k) or (1, k), in radians."""
        ray = np.exp(1j * angles)
        bulge = 1 + sum((self.waves[:, k, None] * ray ** (k + 2)).real for k in range(6))
        oval = ray.real * self.stretch[:, None] + 1j * ray.imag / self.stretch[:, None]
        return self.centre[:, None] + (self.radius * self.turn)[:, None] * oval * bulge * size


class Shape(NamedTuple):
    radius: float  # of the average blob
    spread: float  # standard deviation of the logarithm of the radius
    stretch: float  # 1 is round
    wobble: float  # amplitude of the waves of the outline


def make_blobs(rng, centre: np.ndarray, shape: Shape, turn: np.ndarray | None = None) -> Blobs:
    """Random blobs at these centres, turned at random unless `turn` is given."""
    n = len(centre)
    turn = np.exp(1j * rng.uniform(0, np.pi, n)) if turn is None else turn
    waves = shape.wobble * (rng.normal(size=(n, 6)) + 1j * rng.normal(size=(n, 6))) / np.arange(1, 7)
    radius = shape.radius * np.exp(shape.spread * rng.normal(size=n))
    return Blobs(centre, radius, turn, shape.stretch ** rng.normal(1, 0.5, n), waves)


def scatter(rng, field: complex, spacing: float, density: float) -> np.ndarray:
    """Points of a jittered grid over the field and a margin; each remains with the probability `density`."""
    x, y = (np.arange(-1.0, side / spacing + 2) for side in (field.real, field.imag))
    grid = (x[:, None] + 1j * y).ravel() - rng.uniform() - 1j * rng.uniform()
    grid = grid + rng.uniform(-0.4, 0.4, len(grid)) + 1j * rng.uniform(-0.4, 0.4, len(grid))
    return grid[rng.random(len(grid)) < density] * spacing


class Scene:
    """The regions and the nuclei of one image, painted at twice its size, so that reducing it smooths the edges."""

    def __init__(self, rng, kind: Subtype, grade: float, scale: float):
        self.rng, self.kind, self.grade, self.scale = rng, kind, grade, 2 * scale
        self.field = (WIDTH + 1j * HEIGHT) / scale
        self.turn = np.exp(1j * rng.uniform(0, np.pi))  # direction of the fibres
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
        """At higher grades nuclei vary more in size, outline and depth of stain, and are paler inside."""
        grade = self.grade
        blobs = make_blobs(self.rng, centre, Shape(size, 0.06 + 0.3 * grade, stretch, 0.02 + 0.06 * grade), turn)
        fill = np.clip(170 * np.exp((0.1 + 0.25 * grade) * self.rng.normal(size=len(centre))), 60, 255)
        self.paint(self.nuclei, blobs, fill.astype(int).tolist())
        if self.scale > 1:
            self.paint(self.nuclei, blobs, (fill * (0.95 - 0.3 * grade)).astype(int).tolist(), 0.75)

    def loose_nuclei(self) -> None:
        """Spindle-shaped nuclei along the fibres, in some subtypes in rows."""
        lane = scatter(self.rng, self.field, 15, 0.15 + 0.8 * self.grade) / self.turn
        centre = (lane.real + 1j * self.kind.lane * np.round(lane.imag / self.kind.lane)) * self.turn
        turn = self.turn * np.exp(0.3j * self.rng.normal(size=len(centre)))
        self.paint_nuclei(centre, 0.85 * self.size, 1.9 - 0.8 * self.grade, turn)

    def glands(self) -> None:
        rng, kind, grade = self.rng, self.kind, self.grade
        centre = scatter(rng, self.field, kind.spacing, 0.9)
        wave = centre / kind.spacing * np.exp(1j * rng.uniform(0, np.pi)) + rng.uniform(0, 6) * (1 + 1j)
        centre = centre[np.sin(wave.real) + np.sin(wave.imag) > -0.7]  # glands are grouped in lobules
        gland = make_blobs(rng, centre, Shape(kind.radius, 0.1 + 0.2 * grade, kind.stretch, 0.03 + 0.08 * grade))
        core = np.clip(0.72 - 0.6 * grade + 0.1 * rng.normal(size=len(centre)), 0.05, 0.7)
        for region, size in ((kind.halo, 1.4), (CELLS, 1.0), (kind.core, core[:, None])):
            self.cover(gland, region, size)
        self.gland_nuclei(gland, core)

    def gland_nuclei(self, gland: Blobs, core: np.ndarray) -> None:
        """At low grade an even ring of nuclei; at higher grades more of them, also inside and outside of the ring."""
        rng, crowd = self.rng, 1 + 2.8 * self.grade
        count = (crowd * 2.4 * gland.radius / self.size).astype(int)
        owner = np.repeat(np.arange(len(count)), count)
        place = np.arange(len(owner)) + 0.4 * rng.normal(size=len(owner))
        stray = rng.random(len(owner)) < self.grade
        depth = np.where(stray, np.sqrt(rng.uniform(core[owner] ** 2, 1.2)), rng.normal(0.8, 0.05, len(owner)))
        glands = Blobs(*(part[owner] for part in gland))
        centre = glands.points((2 * np.pi * crowd * place / count[owner])[:, None], depth[:, None])[:, 0]
        self.paint_nuclei(centre, self.size, 1.15, np.exp(1j * np.angle(centre - glands.centre)))

    def fat(self) -> None:
        rng, field = self.rng, self.field
        centre = scatter(rng, field, 46, 1)
        away = abs(centre - rng.uniform(0, field.real) - 1j * rng.uniform(0, field.imag))
        drops = make_blobs(rng, centre[away < rng.uniform(-0.8, 0.35) * field.real], Shape(25, 0.1, 1.1, 0.02))
        self.cover(drops, STROMA, 1.08)
        self.cover(drops, HOLE, 0.98)

    def cover(self, blobs: Blobs, region: tuple, size) -> None:
        self.paint(self.regions, blobs, [region], size)
        self.paint(self.nuclei, blobs, [0], size)


def noise(rng, sigma) -> np.ndarray:
    """A periodic Gaussian random field of unit variance, (HEIGHT, WIDTH), smooth over sigma pixels (rows, columns)."""
    spectrum = fft.rfft2(rng.standard_normal((HEIGHT, WIDTH), np.float32))
    field = fft.irfft2(ndimage.fourier_gaussian(spectrum, sigma, n=WIDTH), (HEIGHT, WIDTH))
    return (field - field.mean()) / field.std()


def fibres(rng, scale: float, turn: complex) -> np.ndarray:
    """Wavy fibres in the direction `turn`, fine ones in coarse bundles; scale is in pixels per micrometre."""
    strands = sum(noise(rng, np.array(sigma) * scale) for sigma in ((0.5, 8), (1.5, 20), (5, 40))) / 3**0.5
    rows, columns = np.indices(strands.shape)
    along = (columns + 1j * rows) / turn + 9 * scale * (noise(rng, 40 * scale) + 1j * noise(rng, 40 * scale))
    return ndimage.map_coordinates(strands, [along.imag, along.real], order=1, mode="grid-wrap")


def stain(rng, scene: Scene, look: Appearance) -> tuple[np.ndarray, np.ndarray]:
    """The amounts of haematoxylin and eosin at each pixel."""
    stroma, cells, mucin = np.moveaxis(np.asarray(scene.regions.reduce(2), np.float32) / 255, -1, 0)
    nuclei = np.asarray(scene.nuclei.reduce(2), np.float32) / 255
    strands, grain = fibres(rng, scene.scale / 2 * look.strands, scene.turn), noise(rng, 0.3 * scene.scale)
    stroma = stroma * np.clip(look.clefts + strands, 0.05, 1)
    eosin = stroma * np.clip(0.5 + 0.15 * strands + 0.05 * grain, 0, None) + cells * (0.42 + 0.08 * grain)
    haema = 0.08 * stroma + cells * (0.2 + 0.03 * grain) + mucin * (0.14 + 0.05 * strands)
    haema = np.clip(haema * (1 - nuclei) + nuclei * (1.5 + 0.3 * grain), 0, None)
    return set_mean_amounts(haema, eosin * (1 - 0.6 * nuclei) + 0.02, look.amounts)


def set_mean_amounts(haema, eosin, amounts) -> tuple[np.ndarray, np.ndarray]:
    """Scales both stains to the mean amounts of the slide, so that many nuclei do not make an image more purple."""
    eosin = eosin * (amounts[1] / eosin.mean())
    ratio = amounts[0] / haema.mean()
    haema = haema * min(ratio, ratio**0.5)  # few nuclei must not turn black; the rest of the stain goes to all tissue
    return haema + eosin * ((amounts[0] - haema.mean()) / amounts[1]), eosin


def draw(seed: int, slide: Slide, mag: int, seq: int) -> Image.Image:
    rng, look = np.random.default_rng([seed, slide.patient, slide.block + 1, mag, seq]), draw_appearance(seed, slide)
    grade = np.clip(look.grade + GRADE_SPREAD[1] * rng.normal(), 0, 1.2)
    haema, eosin = stain(rng, Scene(rng, slide.subtype, grade, PIXELS_PER_UM * mag), look)
    # Beer-Lambert law: optical densities add up, colour by colour.
    density = np.stack([haema, eosin], axis=-1).astype(np.float32) @ look.stains.astype(np.float32)
    light = ndimage.gaussian_filter(look.light * np.exp(-density), (look.focus, look.focus, 0))
    light += 0.004 * rng.standard_normal(light.shape, np.float32)
    pixels = np.clip(255 * light, 0, 255).astype(np.uint8)
    return Image.fromarray(pixels[: LOW if rng.random() < 0.05 else HEIGHT])


def save(root: Path, seed: int, job: tuple[Slide, int, int]) -> None:
    path = root / job[0].path(*job[1:])
    path.parent.mkdir(parents=True, exist_ok=True)
    comment = PngInfo()
    comment.add_text("Comment", NOTICE)
    draw(seed, *job).save(path, pnginfo=comment)


def table(slides: list[Slide], jobs: list[tuple[Slide, int, int]], seed: int) -> str:
    """The text of Folds.csv: five folds of all images; in each a third of the slides of each class is tested."""
    lines = ["fold,mag,grp,filename"]
    for fold in range(1, 6):
        rng = np.random.default_rng([seed, fold])
        tested: set[Slide] = set()
        for label in GRADE:
            group = [slide for slide in slides if slide.subtype.label == label]
            tested.update(group[index] for index in rng.permutation(len(group))[: round(len(group) / 3)])
        for slide, mag, seq in jobs:
            lines.append(f"{fold},{mag},{'test' if slide in tested else 'train'},{slide.path(mag, seq)}")
    return "\n".join(lines) + "\n"


def write(folder: Path, seed: int, images: int, marker: str) -> None:
    """Writes the data set to a temporary folder and renames it, so that a killed process leaves no incomplete one."""
    slides = all_slides()
    jobs = [(slide, mag, seq) for slide in slides for mag in MAGNIFICATIONS for seq in range(1, images + 1)]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with naming(folder), tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        root = Path(temporary) / folder.name
        root.mkdir()
        pool = ProcessPoolExecutor()
        try:
            list(tqdm(pool.map(partial(save, root, seed), jobs, chunksize=4), "drawing", len(jobs), unit="img"))
        finally:
            pool.shutdown(cancel_futures=True)
        (root / "Folds.csv").write_text(table(slides, jobs, seed))
        (root / MARKER).write_text(marker)
        root.rename(folder)


def main(arguments: list[str]) -> None:
    """Draws the data set, unless the same one exists already."""
    parser = command_line.CommandLine(__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("sample"), help="folder to write (default sample)")
    parser.add_argument("--seed", type=int, default=0, help="random seed of patients and images (default 0)")
    parser.add_argument("--images", type=int, default=3, help="of each slide and magnification, 1 to 999 (default 3)")
    args = parser.parse(arguments)
    if args.seed < 0 or not 1 <= args.images <= 999:
        raise InputError(f"--seed: must be 0 or more, got {args.seed}; --images: must be 1 to 999, got {args.images}")
    marker = f"{NOTICE}\npython sample.py --seed {args.seed} --images {args.images}, version {VERSION}\n"
    print(NOTICE)
    if not args.folder.exists():
        write(args.folder, args.seed, args.images, marker)
    elif not ((args.folder / MARKER).is_file() and (args.folder / MARKER).read_text() == marker):
        raise InputError(f"{args.folder}: exists and is not this sample; delete it or name another folder")
    print(f"synthetic sample: {args.folder}")


if __name__ == "__main__":
    command_line.run(main)
