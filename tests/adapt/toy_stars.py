"""Stars with two labels and two lines, whose spectra are known at any labels."""

from __future__ import annotations

import numpy as np
import torch

from hpcspec.adapt.labels import LabelSet
from hpcspec.surveys.grids import Grid
from hpcspec.surveys.observation import Arm, Observation, make_arm
from hpcspec.training.ranks import Ranks
from tests.making import spectrum

ALONE = Ranks(0, 1, torch.device("cpu"))
PIXELS, COUNT, SIGMA = 300, 240, 0.01
GRID = Grid("log10", 0.0, 1e-4)


def arm(teff: float, logg: float, noise: np.ndarray | float = 0.0, moved: float = 0.0) -> Arm:
    """Two lines that deepen with each label, on a slope that depends on one, `moved` by so many pixels; one pixel in fifty is
    bad."""
    x = np.arange(PIXELS) - moved
    a, b = (teff - 5000) / 500, logg - 4
    lines = (0.3 + 0.1 * a) * np.exp(-(((x - 90) / 6) ** 2)) + (0.4 - 0.15 * b + 0.05 * a * b) * np.exp(-(((x - 210) / 4) ** 2))
    flux = (1 + 0.05 * a * (x / PIXELS - 0.5)) * (1 - lines)
    return make_arm("b", GRID, 37000, 100 * (flux + noise), np.full(PIXELS, (100 * SIGMA) ** -2.0), np.arange(PIXELS) % 50 == 7)


def labels_of(rng: np.random.Generator, count: int = COUNT) -> LabelSet:
    values = {"teff": rng.uniform(4500, 5500, count), "logg": rng.uniform(3, 5, count)}
    return LabelSet(np.full(count, "", np.str_), values, {p: np.zeros(count) for p in values})


def one(number: int, of: Arm) -> Observation:
    return spectrum(number, arms=(of,))


def stars(labels: LabelSet, rng: np.random.Generator) -> list[Observation]:
    """Noisy spectra of all of them."""
    pairs = zip(labels.values["teff"], labels.values["logg"], strict=True)
    return [one(n, arm(teff, logg, rng.normal(0, SIGMA, PIXELS))) for n, (teff, logg) in enumerate(pairs)]
