"""Exposures of the simulated instruments as arms on their native grids, without files between."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np

from hpcspec.simulate.instruments import INSTRUMENTS, LOW_STEP, Instrument, low_resolution
from hpcspec.simulate.physics import Object
from hpcspec.surveys.grids import Grid, linear_grid, log_grid
from hpcspec.surveys.observation import Arm, make_arm

GRIDS = {
    "low": lambda w: log_grid(np.log10(w), LOW_STEP),
    "sdss": lambda w: log_grid(np.log10(w)),
    "desi": lambda w: linear_grid(w, 3600.0, 0.8),
    "apogee": lambda w: log_grid(np.log10(w), 6e-6),
}


@cache
def instrument(name: str) -> tuple[Instrument, dict[str, tuple[Grid, int]]]:
    """An instrument of GRIDS in the observed frame; by arm its grid and the number on it of the arm's first pixel."""
    one = low_resolution() if name == "low" else replace(INSTRUMENTS[name](), frame="observed")
    return one, {arm.name: GRIDS[name](arm.wavelength) for arm in one.arms}


def exposed(name: str, target: Object, rng: np.random.Generator) -> list[Arm]:
    """One observation of an object by an instrument of GRIDS, its dead pixels with ivar 0."""
    one, grids = instrument(name)
    _, exposures = one.observe(target, rng)
    return [make_arm(e.name, grids[e.name][0], grids[e.name][1] + e.first, e.flux, e.sigma**-2.0, e.dead) for e in exposures]
