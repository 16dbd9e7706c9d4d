"""Variable stars seen three ways: light curve, low-resolution spectrum and scalars of the same star, with known truth.

A star of a class has a period; Teff and the absolute magnitude in G follow from the period (KINDS), the radius from these,
log g from the radius and a mass, colours and the spectrum from Teff, log g and [M/H]; distance and dust give what is seen:

- light curves in V and, for half the stars, g, in seasons; pulsation and spots have larger amplitudes in g
- a spectrum at a moment of the light curve's own, so that a pulsating star's Teff in it differs a little from the mean
- scalars, each with its error: phot_g_mean_mag, bp_rp, j_h, j_k, parallax (see field.py), and `period` (days) where it is
  known: for seven stars in ten, of which one in eight has half, twice or a one-day alias of its period

Anomalies are of two kinds: a star of a class that is none of the ten (meta has no `class`, but `true_class`), or the spectrum
of another star, of another class and at least 1500 K hotter or cooler. The truth about each star is in meta.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from pydantic import Field

from hpcspec.config import Section
from hpcspec.simulate import light_curves as lc
from hpcspec.simulate.field import FieldStar, far, gravity, main_sequence, place, radius_of
from hpcspec.simulate.lines import SUN_TEFF, Atmosphere, hydrogen_lines
from hpcspec.simulate.native import exposed
from hpcspec.simulate.physics import add_lines, planck
from hpcspec.surveys.base import FLAM
from hpcspec.surveys.observation import Curve, Observation, make_curve

CODE = 5  # part of every random seed, as draw.CODES are: never renumber


@dataclass(frozen=True)
class Kind:
    """One kind of variable star. With x = log10(period/days) - mean: Teff = teff[0] + teff[1] x ± teff[2] (K), absolute
    magnitude G = mag[0] + mag[1] x ± mag[2] (None: the main sequence's, ± 0.35); log_period and m_h: mean and scatter;
    amplitude: median (mag) and scatter (dex); chromatic: amplitude in g over that in V; mass (M☉; 0: by Teff)."""

    name: str
    subclass: str
    share: float
    log_period: tuple[float, float]
    teff: tuple[float, float, float]
    mag: tuple[float, float, float] | None
    mass: float
    m_h: tuple[float, float]
    amplitude: tuple[float, float]
    chromatic: float
    shape: lc.Shape


OLD, DISC = (-1.3, 0.4), (-0.1, 0.25)
CONTACT, CLOSE = ((0.16, 0.24), (0.75, 1.0), (0.55, 0.95)), ((0.12, 0.20), (0.25, 0.9), (0.2, 0.6))
APART = ((0.03, 0.14), (0.1, 0.95), (0.0, 0.15))
KINDS = (
    Kind("RRAB", "steady", .09, (-.26, .06), (6600, -2200, 180), (0.60, -1.3, .12), .65, OLD, (.70, .10), 1.25,
         lc.pulsation(.50)),
    Kind("RRAB", "Blazhko", .04, (-.26, .06), (6600, -2200, 180), (0.60, -1.3, .12), .65, OLD, (.62, .10), 1.25,
         lc.pulsation(.45, blazhko=.4)),
    Kind("RRC", "", .09, (-.49, .06), (7100, -2200, 180), (0.55, -1.3, .12), .65, OLD, (.40, .09), 1.25, lc.pulsation(.15)),
    Kind("DSCT", "high amplitude", .05, (-.90, .13), (7300, -1500, 250), (1.5, -3.0, .15), 1.6, DISC, (.33, .12), 1.25,
         lc.pulsation(.38)),
    Kind("DSCT", "low amplitude", .05, (-1.10, .16), (7500, -1200, 250), (2.1, -3.0, .2), 1.6, DISC, (.07, .15), 1.25,
         lc.pulsation(.08, second=.3)),
    Kind("CEP", "fundamental", .05, (.75, .22), (5900, -900, 180), (-3.4, -2.7, .12), 5, DISC, (.65, .12), 1.3,
         lc.pulsation(.42)),
    Kind("CEP", "overtone", .03, (.45, .15), (6200, -900, 180), (-3.15, -2.7, .12), 4, DISC, (.38, .10), 1.3, lc.pulsation(.15)),
    Kind("M", "", .07, (2.45, .13), (3200, -700, 120), (-1.0, -2.0, .25), 1.2, DISC, (2.3, .17), 1.1,
         lc.pulsation(.2, wander=.1)),
    Kind("SR", "regular", .06, (2.15, .20), (3400, -500, 140), (-1.1, -2.0, .3), 1.2, DISC, (.65, .25), 1.15,
         lc.semiregular(.04, 2)),
    Kind("SR", "irregular", .06, (1.75, .20), (3650, -500, 140), (-0.6, -2.0, .3), 1.2, DISC, (.28, .20), 1.15,
         lc.semiregular(.22, 6)),
    Kind("EA", "circular", .07, (.35, .35), (6600, 0, 1000), None, 0, DISC, (.50, .18), 1.0, lc.eclipses(*APART)),
    Kind("EA", "eccentric", .04, (.75, .30), (6600, 0, 1000), None, 0, DISC, (.45, .18), 1.0,
         lc.eclipses(*APART, eccentric=True)),
    Kind("EB", "", .09, (-.10, .22), (6600, 0, 800), None, 0, DISC, (.42, .15), 1.0, lc.eclipses(*CLOSE)),
    Kind("EW", "", .12, (-.44, .09), (5800, 4000, 300), (3.9, -6.0, .3), 1.3, DISC, (.40, .16), 1.0, lc.eclipses(*CONTACT)),
    Kind("ROT", "dwarf", .05, (.55, .40), (4700, 0, 550), None, 0, DISC, (.09, .20), 1.15, lc.rotation),
    Kind("ROT", "giant", .04, (1.25, .35), (4700, 0, 220), (1.6, 0, .6), 1.3, DISC, (.14, .22), 1.15, lc.rotation),
)  # fmt: skip
FOREIGN = (
    Kind("CV", "", .5, (1.5, .25), (11000, 0, 800), (6.5, 0, .7), .8, DISC, (3.0, .08), 1.0, lc.outbursts),
    Kind("RCB", "", .5, (1.6, .1), (6300, 0, 300), (-3.5, 0, .5), .9, OLD, (3.5, .15), 1.2, lc.fades),
)  # fmt: skip
CLASSES = tuple(dict.fromkeys(k.name for k in KINDS))


class Missing(Section):
    """The chance of each kind of measurement to be absent; one always stays."""

    light_curve: float = Field(default=0.0, ge=0, le=1)
    spectrum: float = Field(default=0.0, ge=0, le=1)
    scalars: float = Field(default=0.0, ge=0, le=1)


class Variables(Section):
    """`population: variables`."""

    population: Literal["variables"]
    objects: int = Field(gt=0, le=10_000_000)
    """Number of stars."""
    seed: int = Field(default=1, ge=0, le=10**12)
    """A star follows from the seed and its number alone; the other options change nothing else of it than they say."""
    mislabelled: float = Field(default=0.0, ge=0, le=1)
    """Share of the stars whose `class` in meta is another than `true_class`."""
    anomalies: float = Field(default=0.0, ge=0, le=1)
    """Share of the stars that are anomalies, one half of either kind."""
    missing: Missing = Missing()


@dataclass(frozen=True)
class Variable(FieldStar):
    """A variable star: its kind, log10 of the period (days), absolute magnitude G and amplitude in V (mag)."""

    variety: Kind
    log_period: float
    abs_mag: float
    swing: float

    def rest(self, wavelength: np.ndarray, lsf: np.ndarray) -> np.ndarray:
        """As a star's; that of a cataclysmic one is a hot continuum with hydrogen in emission."""
        if self.variety.name != "CV":
            return super().rest(wavelength, lsf)
        centre, _, width = hydrogen_lines()
        bright = add_lines(wavelength, centre, np.hypot(np.interp(centre, wavelength, lsf), centre * 2e-3), 12 * width)
        return planck(wavelength, self.teff) * (1 + bright)


def drawn(rng: np.random.Generator, kinds: tuple[Kind, ...] = KINDS) -> Variable:
    """A star of one of these kinds, each as often as its share says."""
    share = np.array([k.share for k in kinds])
    kind = kinds[int(rng.choice(len(kinds), p=share / share.sum()))]
    x, colour, light = (np.array([kind.log_period[1], kind.teff[2], 1.0]) * rng.standard_normal(3)).tolist()
    teff = float(np.clip(kind.teff[0] + kind.teff[1] * x + colour, 2800, 12000))
    if kind.mag is None:
        abs_mag, mass = main_sequence(teff) + 0.35 * light, (teff / SUN_TEFF) ** 1.5
    else:
        abs_mag, mass = kind.mag[0] + kind.mag[1] * x + kind.mag[2] * light, kind.mass
    radius = radius_of(abs_mag, teff)
    air = Atmosphere(teff, float(np.clip(gravity(radius, mass), -0.5, 5.0)), float(np.clip(rng.normal(*kind.m_h), -2.5, 0.5)))
    distance, ebv = far(rng, abs_mag, 10.5, 15.5, 0.2)
    velocity = float(rng.normal(0, 140 if kind.m_h is OLD else 35))
    base = FieldStar.at(*place(rng), air, radius, distance, ebv, velocity, float(rng.uniform(5, 60)))
    swing = float(kind.amplitude[0] * 10 ** rng.normal(0, kind.amplitude[1]))
    return Variable(**vars(base), variety=kind, log_period=float(kind.log_period[0] + x), abs_mag=float(abs_mag), swing=swing)


def observation(recipe: Variables, index: int) -> Observation:
    """Star number `index`."""
    stars, fate, curve, light, numbers = (np.random.default_rng([recipe.seed, CODE, index, k]) for k in range(5))
    odd, wrong, *lost = fate.random(5).tolist()
    foreign, mixed = odd < recipe.anomalies / 2, recipe.anomalies / 2 <= odd < recipe.anomalies
    one = drawn(stars, FOREIGN if foreign else KINDS)
    truth = one.variety.name
    mislabelled = not foreign and wrong < recipe.mislabelled
    others = [name for name in CLASSES if name != truth]
    label = str(others[int(fate.integers(len(others)))]) if mislabelled else truth
    absent = np.array(lost) < (recipe.missing.light_curve, recipe.missing.spectrum, recipe.missing.scalars)
    if absent.all():
        absent[int(fate.integers(3))] = False
    meta: dict[str, str | int | float] = {
        "population": "variables", "true_class": truth, "subclass": one.variety.subclass, "mislabelled": int(mislabelled),
        "anomaly": int(foreign or mixed), "anomaly_kind": "class" if foreign else "spectrum" if mixed else "",
        "teff": one.teff, "logg": one.logg, "m_h": one.fe_h, "log_period": one.log_period, "abs_mag": one.abs_mag,
        "amplitude": one.swing, "ebv": one.ebv, "logebv": float(np.log10(one.ebv)), "distance": one.distance,
        "radius": one.radius,
    }  # fmt: skip
    if not foreign:
        meta["class"] = label
    arms = () if absent[1] else tuple(exposed("low", _lit(_another(stars, one) if mixed else one, light), light))
    curves = () if absent[0] else _curves(one, curve)
    scalars = {} if absent[2] else one.measured(numbers, 0.25 * one.swing) | _period(one, numbers)
    name, unit = f"variable-{recipe.seed}-{index:07d}", FLAM if arms else ""
    return Observation(name, "simulated", one.ra, one.dec, arms, unit, meta=meta, curves=curves, scalars=scalars)


def _another(rng: np.random.Generator, one: Variable) -> Variable:
    while True:
        other = drawn(rng)
        if other.variety.name != one.variety.name and abs(other.teff - one.teff) > 1500:
            return other


def _lit(one: Variable, rng: np.random.Generator) -> Variable:
    """The star at a moment of its pulsation: up to 4 % hotter or cooler by magnitude of amplitude."""
    change = 0.04 * min(one.swing, 1.0) * (one.variety.chromatic > 1.2) * np.cos(2 * np.pi * rng.random())
    return replace(one, teff=one.teff * (1 + change))


def _curves(one: Variable, rng: np.random.Generator) -> tuple[Curve, ...]:
    """30 to 200 epochs in V, or V and then g."""
    count = int(10 ** rng.uniform(np.log10(30), np.log10(200)))
    second = int(count * rng.uniform(0.3, 0.6)) if rng.random() < 0.5 else 0
    start = 2456600 + rng.uniform(0, lc.YEAR)
    times = [lc.epochs(rng, count - second, start, int(rng.integers(2, 6))), lc.epochs(rng, second, start + 4 * lc.YEAR, 3)]
    shape = one.variety.shape(rng, np.concatenate(times), 10**one.log_period)
    curves = []
    for band, time, part in zip("vg", times, np.split(shape, [len(times[0])]), strict=True):
        mag = one.magnitudes[band] + one.swing * (one.variety.chromatic if band == "g" else 1.0) * part
        error = lc.noise(rng, mag)
        curves.append(make_curve(band, time, mag + error * rng.standard_normal(len(mag)), error))
    return tuple(c for c in curves if len(c.time))


def _period(one: Variable, rng: np.random.Generator) -> dict[str, tuple[float, float]]:
    """The period as a search for it would give it, if it gave any."""
    period = 10**one.log_period
    known, right, which, jitter = rng.random(4).tolist()
    if known > 0.7:
        return {}
    if right < 0.125:
        period = (0.5 * period, 2 * period, 1 / abs(1 / period - 1.0027))[int(3 * which)]
    scatter = 1e-3 * period * (1 + min(period, 300.0) / 10)
    return {"period": (period + scatter * (2 * jitter - 1), scatter)}
