"""Which objects there are: truth drawn from (seed, survey, index) alone, so asking for more changes none of the first."""

from __future__ import annotations

import numpy as np

from hpcspec.simulate.physics import BROAD, Galaxy, Object, Quasar, Star

CODES = {"sdss": 1, "desi": 2, "apogee": 3, "galah": 4}  # part of every random seed: never renumber
SHARED = 0  # in the place of a survey's code: objects that are in every survey
SHARE_EVERY = 5
STARS_ONLY = ("apogee", "galah")


def is_shared(index: int) -> bool:
    """Whether object `index` is the same star in every survey (each fifth is)."""
    return index % SHARE_EVERY == 0


def truth(survey: str, seed: int, index: int) -> Object:
    """The object `index` of a survey's simulation with this seed.

    Among the optical surveys' objects that aren't shared, classes are drawn so that of all 50 % are stars, 30 % galaxies
    and 20 % quasars.
    """
    shared = is_shared(index)
    rng = np.random.default_rng([seed, SHARED if shared else CODES[survey], index])
    pick = rng.random()
    place = {
        "ra": float(rng.uniform(0, 360)),
        "dec": float(np.degrees(np.arcsin(rng.uniform(-0.6, 0.9)))),
        "ebv": float(min(rng.exponential(0.08), 0.5)),
        "amplitude": float(10 ** rng.uniform(0.3, 2.3)),
    }
    if shared or survey in STARS_ONLY or pick < 0.375:
        return star(rng, place)
    return _galaxy(rng, place) if pick < 0.75 else _quasar(rng, place)


def star(rng: np.random.Generator, place: dict[str, float]) -> Star:
    """A giant, dwarf or turn-off star of the disc or the halo."""
    halo = rng.random() < 0.15
    fe_h = float(np.clip(rng.normal(-1.2, 0.4) if halo else rng.normal(-0.15, 0.25), -2.0, 0.5))
    if rng.random() < 0.45:  # red-giant branch
        logg = rng.uniform(0.5, 3.6)
        teff = np.clip(3700 + 420 * logg - 300 * fe_h + rng.normal(0, 80), 3600, 5700)
    else:  # main sequence and turn-off
        teff = rng.uniform(3700, 8000)
        logg = 4.75 - 1.2e-4 * (teff - 3700) + rng.normal(0, 0.05) - abs(rng.normal(0, 0.2)) * (teff > 5200)
    rotation = abs(rng.normal(0, 30)) / (1 + np.exp(-(teff - 6700) / 250))
    return Star(
        **place,
        teff=float(teff),
        logg=float(np.clip(logg, 0.5, 5.0)),
        fe_h=fe_h,
        alpha_fe=float(np.clip(-0.2 * fe_h, -0.1, 0.3) + rng.normal(0, 0.04)),
        velocity=float(rng.normal(0, 140 if halo else 40)),
        broadening=float(np.hypot(4.0, rotation)),
    )


def _galaxy(rng: np.random.Generator, place: dict[str, float]) -> Galaxy:
    young = float(rng.beta(0.8, 1.2))
    halpha = 10 ** rng.normal(0.2 + 1.6 * young, 0.3)
    oxygen, nitrogen = 10 ** rng.normal(-0.25, 0.3), 10 ** rng.normal(-0.4, 0.15)
    emission = {
        "H": halpha, "OII": 0.45 * halpha * 10 ** rng.normal(0, 0.15), "OIII": 0.5 * halpha * oxygen,
        "NeIII": 0.04 * halpha * oxygen, "NII": halpha * nitrogen,
        "SII": 0.2 * halpha * 10 ** rng.normal(0, 0.1), "SIII": 0.1 * halpha,
    }  # fmt: skip
    return Galaxy(
        **place,
        redshift=float(np.clip(0.01 + rng.gamma(2.0, 0.17), 0.01, 1.0)),
        young=young,
        fe_h=float(rng.uniform(-0.6, 0.3)),
        dispersion=float(rng.uniform(90, 300) * (1 - 0.4 * young)),
        emission={k: float(v) for k, v in emission.items()},
        gas=float(rng.uniform(60, 180)),
    )


def _quasar(rng: np.random.Generator, place: dict[str, float]) -> Quasar:
    n = 260
    return Quasar(
        **place,
        redshift=float(rng.uniform(0.2, 3.5)),
        slope=float(rng.normal(-1.5, 0.3)),
        width=float(np.clip(rng.lognormal(np.log(1900), 0.35), 800, 4000)),
        strength=10 ** rng.normal(0, 0.15, len(BROAD) + 1),
        absorbers=rng.uniform(0.7, 0.999, n),
        depths=10 ** rng.normal(0, 0.5, n),
    )
