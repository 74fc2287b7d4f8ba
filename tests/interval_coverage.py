"""How often 95 % intervals hold the true value, by simulation: prints the tables of docs/intervals.md.

python -m tests.interval_coverage [REPEATS]    or    make intervals
"""

from __future__ import annotations

import functools
import sys

import numpy as np
import pandas as pd
from scipy import stats
from scipy.special import betaln, expit

from evaluation import small_sample

# The images of BreakHis' 16 benign patients.
SIZES = np.array([53, 60, 64, 65, 65, 66, 68, 120, 126, 129, 138, 158, 236, 256, 383, 493])
PATIENTS = (4, 6, 8, 10, 13, 16, 27, 54)
PAIRS = ((4, 11), (10, 10), (16, 16), (16, 54))
CORRELATIONS = (0.1, 0.2, 0.3, 0.4)
RATES = (0.6, 0.7, 0.8, 0.9, 0.95)
AUCS = (0.8, 0.95)
DRAWS = 1000


def sizes(patients: int, repeats: int, rng: np.random.Generator) -> np.ndarray:
    """Images of each patient, (repeats, patients): BreakHis' own, each once where that suffices."""
    if patients > len(SIZES):
        return rng.choice(SIZES, (repeats, patients))
    return rng.permuted(np.tile(SIZES, (repeats, 1)), axis=1)[:, :patients]


def draw(patients: int, rate: float, correlation: float, repeats: int, rng: np.random.Generator):
    """Right images and images of each patient, both (repeats, patients), beta-binomial."""
    images, scale = sizes(patients, repeats, rng), 1 / correlation - 1
    own = rng.beta(rate * scale, (1 - rate) * scale, images.shape)
    return rng.binomial(images, own), images


def draw_harder(patients: int, rate: float, correlation: float, repeats: int, rng: np.random.Generator):
    """As `draw`, but patients with more images have lower rates (rank correlation about -0.5); also the true rate."""
    images, scale = rng.choice(SIZES, (repeats, patients)), 1 / correlation - 1
    rank = (np.searchsorted(SIZES, images) + 0.5) / len(SIZES)
    normal = np.sqrt(0.75) * rng.normal(size=images.shape) - 0.5 * stats.norm.ppf(rank)
    own = stats.beta.ppf(stats.norm.cdf(normal), rate * scale, (1 - rate) * scale)
    return rng.binomial(images, own), images, (images * own).sum() / images.sum()


def headline(right, images, rng):
    return small_sample.interval(small_sample.estimate_rate(right / images, images, images))


def t_over_patients(right, images, rng):
    share, patients = right / images, images.shape[1]
    half = stats.t.ppf(0.975, patients - 1) * share.std(axis=1, ddof=1) / np.sqrt(patients)
    return share.mean(axis=1) - half, share.mean(axis=1) + half


def cr2(right, images):
    """Pooled rate, its CR2 variance, and the degrees of freedom of Bell and McCaffrey."""
    weight = images / images.sum(axis=1, keepdims=True)
    rate, total = right.sum(axis=1) / images.sum(axis=1), (weight**2).sum(axis=1, keepdims=True)
    leverage = 1 - 2 * weight + total
    scaled = weight**2 / leverage
    variance = (scaled * (right / images - rate[:, None]) ** 2).sum(axis=1)
    residual = total[:, :, None] - weight[:, :, None] - weight[:, None, :] + np.eye(images.shape[1])
    freedom = total[:, 0] ** 2 / (scaled * (residual**2 @ scaled[:, :, None])[:, :, 0]).sum(axis=1)
    return rate, variance, freedom


def cr2_logit(right, images, rng):
    rate, variance, _ = cr2(right, images)
    return small_sample.interval(small_sample.Estimate(rate, variance, images.shape[1] - 1, images.shape[1]))


def cr2_bell_mccaffrey(right, images, rng):
    rate, variance, freedom = cr2(right, images)
    return small_sample.interval(small_sample.Estimate(rate, variance, freedom, images.shape[1]))


def wilson_design_effect(right, images, rng):
    rate, variance, _ = cr2(right, images)
    patients, spread = images.shape[1], rate * (1 - rate)
    effective = np.divide(spread, variance, out=np.full(len(rate), float(patients)), where=variance > 0)
    t = stats.t.ppf(0.975, patients - 1)
    middle = (rate + t**2 / 2 / effective) / (1 + t**2 / effective)
    half = t / (1 + t**2 / effective) * np.sqrt(spread / effective + t**2 / 4 / effective**2)
    return middle - half, middle + half


def resampled(right, images, rng):
    times = rng.multinomial(images.shape[1], np.full(images.shape[1], 1 / images.shape[1]), DRAWS).T
    return np.sort((right @ times) / (images @ times), axis=1)


def percentile_bootstrap(right, images, rng):
    return np.percentile(resampled(right, images, rng), [2.5, 97.5], axis=1)


def bca_bootstrap(right, images, rng):
    drawn, rate = resampled(right, images, rng), (right.sum(axis=1) / images.sum(axis=1))[:, None]
    below = ((drawn < rate).mean(axis=1) + (drawn <= rate).mean(axis=1)) / 2
    bias = stats.norm.ppf(np.clip(below, 0.5 / DRAWS, 1 - 0.5 / DRAWS))
    without = (right.sum(axis=1, keepdims=True) - right) / (images.sum(axis=1, keepdims=True) - images)
    gap = without.mean(axis=1, keepdims=True) - without
    scale = 6 * (gap**2).sum(axis=1) ** 1.5
    bend = np.divide((gap**3).sum(axis=1), scale, out=np.zeros(len(scale)), where=scale > 0)
    ends = [stats.norm.cdf(bias + (bias + z) / (1 - bend * (bias + z))) for z in stats.norm.ppf([0.025, 0.975])]
    rows = np.arange(len(drawn))
    return [drawn[rows, np.clip((end * DRAWS).astype(int), 0, DRAWS - 1)] for end in ends]


RATE_GRID, CORRELATION_GRID = np.linspace(0.0025, 0.9975, 200), np.linspace(0.01, 0.9, 30)


@functools.lru_cache(None)
def log_likelihood(size: int) -> np.ndarray:
    """Beta-binomial, of each number of right images among `size`, (size + 1, rates, correlations)."""
    a, b = (share[:, None] * (1 / CORRELATION_GRID - 1) for share in (RATE_GRID, 1 - RATE_GRID))
    right = np.arange(size + 1)[:, None, None]
    return (betaln(right + a, size - right + b) - betaln(a, b)).astype(np.float32)


def beta_binomial(right, images, rng):
    """Posterior of the rate: Jeffreys prior of the rate, uniform one of the correlation."""
    prior = -0.5 * np.log(RATE_GRID * (1 - RATE_GRID))[:, None]
    posterior = np.empty((len(right), len(RATE_GRID)))
    for row, (found, sizes_of) in enumerate(zip(right, images)):
        both = prior + sum(log_likelihood(size)[number] for number, size in zip(found, sizes_of))
        posterior[row] = np.exp(both - both.max()).sum(axis=1)
    reached = np.cumsum(posterior, axis=1) / posterior.sum(axis=1, keepdims=True)
    return np.array([np.interp([0.025, 0.975], row, RATE_GRID + 0.0025) for row in reached]).T


METHODS = {
    "bootstrap over patients, percentiles": percentile_bootstrap,
    "bootstrap over patients, BCa": bca_bootstrap,
    "t over patients' shares, not weighted": t_over_patients,
    "Wilson with design effect, t": wilson_design_effect,
    "cluster-robust CR2, logit, t": cr2_logit,
    "cluster-robust CR2, logit, t by Bell and McCaffrey": cr2_bell_mccaffrey,
    "beta-binomial posterior": beta_binomial,
    "**larger of CR2 and variance components, logit, t**": headline,
}


def holds(pair, truth) -> float:
    return float(np.mean((pair[0] <= truth) & (truth <= pair[1])))


def rates(methods: dict, repeats: int, harder: bool = False, patients=PATIENTS) -> pd.DataFrame:
    """A row a cell and method: method, patients, correlation, rate, covered, width."""
    rng, rows = np.random.default_rng(0), []
    for number in patients:
        for correlation in CORRELATIONS:
            for rate in RATES:
                right, images, *truth = (draw_harder if harder else draw)(number, rate, correlation, repeats, rng)
                for name, method in methods.items():
                    low, high = method(right, images, rng)
                    width = float(np.mean(np.clip(high, 0, 1) - np.clip(low, 0, 1)))
                    covered = holds((low, high), truth[0] if truth else rate)
                    rows.append((name, number, correlation, rate, covered, width))
    return pd.DataFrame(rows, columns=["method", "patients", "correlation", "rate", "covered", "width"])


def sums(benign: int, malignant: int, repeats: int, rng: np.random.Generator) -> pd.DataFrame:
    """Coverage of the scores that are put together of both classes, a row a cell."""
    rows = []
    for correlation in CORRELATIONS:
        for truth in [(low, high) for low in (0.6, 0.8, 0.95) for high in (0.8, 0.95)]:
            drawn = [draw(number, rate, correlation, repeats, rng) for number, rate in zip((benign, malignant), truth)]
            pooled = [small_sample.estimate_rate(right / images, images, images) for right, images in drawn]
            equal = [
                small_sample.estimate_rate(right / images, images, np.ones(images.shape)) for right, images in drawn
            ]
            counts = np.array([images.sum(axis=1) for _, images in drawn])
            cases = {"accuracy": (pooled, counts), "balanced accuracy": (pooled, (1, 1)),
                     "recognition rate": (equal, (benign, malignant))}  # fmt: skip
            for name, (parts, weights) in cases.items():
                shares = np.asarray(weights) / np.sum(weights, axis=0)
                rows.append((name, holds(small_sample.combine(parts, weights), shares.T @ np.array(truth))))
    return pd.DataFrame(rows, columns=["score", "covered"])


def scored(patients: int, shift: float, correlation: float, rng: np.random.Generator) -> pd.DataFrame:
    """Images of one class with a normal score of which each patient has a part of its own."""
    patient = np.repeat(np.arange(patients), sizes(patients, 1, rng)[0])
    own, rest = rng.normal(size=patients)[patient], rng.normal(size=len(patient))
    score = shift + np.sqrt(correlation) * own + np.sqrt(1 - correlation) * rest
    return pd.DataFrame({"patient": patient, "probability": expit(score)})


def areas(benign: int, malignant: int, repeats: int, rng: np.random.Generator) -> list[float]:
    """Coverage of the AUC, a figure a cell."""
    found = []
    for correlation in CORRELATIONS:
        for truth in AUCS:
            shift = np.sqrt(2) * stats.norm.ppf(truth)
            pairs = []
            for _ in range(repeats):
                both = scored(malignant, shift, correlation, rng), scored(benign, 0, correlation, rng)
                pairs.append(small_sample.interval(small_sample.estimate_auc(*both)))
            found.append(holds(np.array(pairs).T, truth))
    return found


def span(values) -> str:
    return f"{100 * min(values):.1f} to {100 * max(values):.1f}"


def line(*cells) -> None:
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


def print_methods(found: pd.DataFrame) -> None:
    columns = list(found.patients.unique())
    line("method", *columns, "mean width at 10")
    line(*["---"] * (len(columns) + 2))
    for name, rows in found.groupby("method", sort=False):
        cells = [span(part.covered) for _, part in rows.groupby("patients")]
        line(name, *cells, f"{rows[rows.patients == 10].width.mean():.2f}")


def print_cells(found: pd.DataFrame) -> None:
    line("patients", "correlation", *(f"rate {rate}" for rate in RATES))
    line(*["---"] * (len(RATES) + 2))
    for (patients, correlation), rows in found.groupby(["patients", "correlation"]):
        line(patients, correlation, *(f"{100 * covered:.1f}" for covered in rows.covered))


def print_scores(repeats: int) -> None:
    names = ["accuracy", "balanced accuracy", "recognition rate"]
    line("benign + malignant patients", *names, "ROC AUC")
    line(*["---"] * (len(names) + 2))
    rng = np.random.default_rng(1)
    for benign, malignant in PAIRS:
        both = sums(benign, malignant, repeats, rng)
        cells = [span(both[both.score == name].covered) for name in names]
        line(f"{benign} + {malignant}", *cells, span(areas(benign, malignant, repeats, rng)))


def main(repeats: int = 1000) -> None:
    print(f"Cases in 100 in which the 95 % interval holds the true value, {repeats} repeats a cell.\n")
    print("Methods, by patients; lowest to highest of 20 cells:\n")
    found = rates(METHODS, repeats)
    print_methods(found)
    print("\nThe headline interval, cell by cell:\n")
    print_cells(found[found.method == list(METHODS)[-1]])
    print("\nScores of both classes; lowest to highest of 24 cells, of 8 for the AUC:\n")
    print_scores(repeats)
    print("\nWhere patients with more images are harder:\n")
    print_methods(rates(METHODS, repeats, harder=True, patients=(10, 16, 27, 54)))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
