"""Stars as sets of scalars: XP coefficients, colours, magnitude, parallax and labels, and optionally other surveys' spectra.

A star's spectrum follows Teff, log g and [M/H]; its radius follows log g and a mass, dust reddens it by extinction.ccm89, and
the spectrograph of bp_rp.py and the bands of field.py see it. Scalars, each with its error:

- bp_0 … bp_54, rp_0 … rp_54: the coefficients over the flux in G (as Leung & Bovy 2024, MNRAS 527, 1494, have them)
- phot_g_mean_mag, bp_rp, j_h, j_k (mag), parallax (mas), g_fakemag = parallax 10^(G/5)
- teff (K), logg, m_h, logebv = log10 E(B-V) (dex): for a share `labels` of the stars, as another survey would measure them

The truth is in meta. `spectra` names instruments that see the same star; their arms come in the observed frame.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from hpcspec.config import Section
from hpcspec.simulate import bp_rp
from hpcspec.simulate.draw import CODES, star
from hpcspec.simulate.field import FieldStar, far, main_sequence, place, radius_of
from hpcspec.simulate.lines import SUN_LOGG, SUN_TEFF
from hpcspec.simulate.native import exposed
from hpcspec.surveys.base import FLAM
from hpcspec.surveys.observation import Observation

CODE = 6  # part of every random seed, as draw.CODES are: never renumber
LABEL_ERRORS = {"teff": 0.008, "logg": 0.06, "m_h": 0.04, "logebv": 0.06}  # relative for teff, else dex
NAMES = [f"{band}_{k}" for band in bp_rp.SPECTROGRAPHS for k in range(bp_rp.BASES)]


class XpStars(Section):
    """`population: stars_xp`."""

    population: Literal["stars_xp"]
    objects: int = Field(gt=0, le=10_000_000)
    """Number of stars."""
    seed: int = Field(default=1, ge=0, le=10**12)
    """A star follows from the seed and its number alone."""
    labels: float = Field(default=1.0, ge=0, le=1)
    """Share of the stars whose labels are scalars too."""
    spectra: tuple[Literal["sdss", "desi", "apogee"], ...] = ()
    """Instruments whose spectra of the same star are added."""


def observation(recipe: XpStars, index: int) -> Observation:
    """Star number `index`."""
    rng = np.random.default_rng([recipe.seed, CODE, index])
    one = drawn(rng)
    g = one.magnitudes["G"]
    scalars = one.measured(rng)
    parallax, error = scalars["parallax"]
    luminous = 10 ** (g / 5)
    scalars["g_fakemag"] = (parallax * luminous, error * luminous)
    expected, errors = bp_rp.normalised(one.sed, g)
    seen = expected + errors * rng.standard_normal(len(errors))
    scalars |= dict(zip(NAMES, zip(seen.tolist(), errors.tolist(), strict=True), strict=True))
    truth = {"teff": one.teff, "logg": one.logg, "m_h": one.fe_h, "logebv": float(np.log10(one.ebv))}
    noise = rng.standard_normal(len(truth))
    if rng.random() < recipe.labels:
        for (name, value), z in zip(truth.items(), noise.tolist(), strict=True):
            scale = LABEL_ERRORS[name] * (value if name == "teff" else 1.0)
            scalars[name] = (value + scale * z, scale)
    arms = [arm for name in recipe.spectra
            for arm in exposed(name, one, np.random.default_rng([recipe.seed, CODE, index, CODES[name]]))]  # fmt: skip
    meta: dict[str, str | int | float] = {
        "population": "stars_xp", "class": "giant" if one.logg < 3.7 else "dwarf", **truth, "ebv": one.ebv,
        "distance": one.distance, "radius": one.radius, "alpha_fe": one.alpha_fe, "velocity": one.velocity,
    }  # fmt: skip
    name, unit = f"xp-{recipe.seed}-{index:07d}", FLAM if arms else ""
    return Observation(name, "simulated", one.ra, one.dec, tuple(arms), unit, meta=meta, scalars=scalars)


def drawn(rng: np.random.Generator) -> FieldStar:
    """A star of the disc or halo: a giant, or a dwarf on or above the main sequence."""
    ra, dec = place(rng)
    label = star(rng, {"ra": ra, "dec": dec, "ebv": 0.0, "amplitude": 1.0})
    mass = 1.0 if label.logg < 3.7 else (label.teff / SUN_TEFF) ** 1.5
    radius = float(np.sqrt(mass * 10 ** (SUN_LOGG - label.logg)))
    abs_mag = main_sequence(label.teff) - 5 * np.log10(radius / radius_of(main_sequence(label.teff), label.teff))
    distance, ebv = far(rng, abs_mag, 9.0, 16.0, 0.25)
    return FieldStar.at(ra, dec, label.atmosphere, radius, distance, ebv, label.velocity, label.broadening)
