"""Stars in the field: radius, distance and dust give magnitudes, colours, parallax and absolute fluxes.

Magnitudes are those of the Sun plus the ratio to the Sun's flux in the same band, whose passbands are simple shapes between
their true limits; so colours follow Teff, log g and [M/H] as the spectra of physics.py do. Between the bands of 2MASS only
the continuum is known. Extinction is ccm89's, applied to the spectrum before the bands.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np

from hpcspec.simulate.extinction import R_V, ccm89, transmission
from hpcspec.simulate.lines import SUN, SUN_LOGG, SUN_TEFF
from hpcspec.simulate.physics import REFERENCE, Atmosphere, Star, planck, stellar_continuum, stellar_depth

STEP = 20.0  # Å
OPTICAL = np.arange(3300.0, 10501.0, STEP)
WAVELENGTH = np.r_[OPTICAL, np.arange(11000.0, 23601.0, 400.0)]  # Å, vacuum
WIDTH = np.r_[np.full(len(OPTICAL), STEP), np.full(len(WAVELENGTH) - len(OPTICAL), 400.0)]
LSF = np.full(len(OPTICAL), 15.0)
CURVE = R_V * ccm89(WAVELENGTH)  # A(λ) / E(B-V)

# Band: absolute magnitude of the Sun (Vega system; Willmer 2018, ApJS 236, 47), limits and width of their slopes (Å).
BANDS = {
    "g": (5.05, 4000, 5500, 80), "v": (4.81, 4950, 6000, 150), "G": (4.67, 3700, 9200, 500), "BP": (4.99, 3500, 6700, 60),
    "RP": (4.17, 6350, 10000, 150), "J": (3.67, 11100, 13600, 100), "H": (3.32, 15000, 18000, 100),
    "K": (3.27, 20000, 23200, 100),
}  # fmt: skip
EMITTED = 1.902e11  # π (R☉/pc)² in 1e-17 erg/s/cm²/Å per unit of physics.planck


@cache
def weights() -> np.ndarray:
    """Photon weights (n, bands) of BANDS on WAVELENGTH."""
    edges = np.array([row[1:] for row in BANDS.values()], np.float64).T[:, None]
    inside = 0.25 * (1 + np.tanh((WAVELENGTH[:, None] - edges[0]) / edges[2]))
    return inside * (1 + np.tanh((edges[1] - WAVELENGTH[:, None]) / edges[2])) * (WAVELENGTH * WIDTH)[:, None]


def surface(air: Atmosphere) -> np.ndarray:
    """Flux (n,) that leaves a star's surface, in the unit of physics.planck, on WAVELENGTH."""
    flux = stellar_continuum(WAVELENGTH, air)
    flux[: len(OPTICAL)] *= np.exp(-stellar_depth(OPTICAL, LSF, air, 0.0))
    return flux


@cache
def _zero() -> np.ndarray:
    return np.array([row[0] for row in BANDS.values()]) + 2.5 * np.log10(surface(SUN) @ weights())


@dataclass(frozen=True)
class FieldStar(Star):
    """A star of a radius (R☉) at a distance (pc)."""

    radius: float
    distance: float

    @classmethod
    def at(cls, ra: float, dec: float, air: Atmosphere, radius: float, distance: float, ebv: float, velocity: float,
           broadening: float) -> FieldStar:  # fmt: skip
        """The star with the flux that its radius and distance give it."""
        amplitude = EMITTED * (radius / distance) ** 2 * float(planck(np.array(REFERENCE), air.teff))
        labels = (air.teff, air.logg, air.fe_h, air.alpha_fe)
        return cls(ra, dec, ebv, amplitude, *labels, velocity, broadening, radius, distance)

    def transmission(self, wavelength: np.ndarray) -> np.ndarray:
        return transmission(wavelength, self.ebv)

    @cached_property
    def sed(self) -> np.ndarray:
        """The flux (n,) that arrives, by unit of physics.planck at the surface, on WAVELENGTH."""
        return surface(self.atmosphere) * 10 ** (-0.4 * self.ebv * CURVE)

    @cached_property
    def magnitudes(self) -> Mapping[str, float]:
        """Apparent magnitudes in BANDS."""
        modulus = 5 * np.log10(self.distance / 10 / self.radius)
        return dict(zip(BANDS, (_zero() - 2.5 * np.log10(self.sed @ weights()) + modulus).tolist(), strict=True))

    def measured(self, rng: np.random.Generator, jitter: float = 0.0) -> dict[str, tuple[float, float]]:
        """What Gaia and 2MASS would say: value and error (mag, mas) by the names of hpcspec's Gaia reader, and the colours
        bp_rp, j_h and j_k. `jitter` (mag) is the star's own variation between the epochs of the surveys."""
        m = self.magnitudes
        faint = 10 ** (0.3 * (m["G"] - 17))
        near = float(np.hypot(0.015, 0.075 * 10 ** (0.2 * (m["G"] - 17))))
        infrared = float(np.hypot(0.022, 0.03 * 10 ** (0.4 * (m["J"] - 15))))
        truth = {
            "phot_g_mean_mag": (m["G"], 0.003 + 0.002 * faint, jitter),
            "bp_rp": (m["BP"] - m["RP"], 0.004 + 0.02 * faint, jitter / 4),
            "j_h": (m["J"] - m["H"], 1.4 * infrared, jitter / 4), "j_k": (m["J"] - m["K"], 1.4 * infrared, jitter / 4),
            "parallax": (1e3 / self.distance, near, 0.0),
        }  # fmt: skip
        noise = rng.standard_normal((len(truth), 2)).tolist()
        return {n: (v + e * a + j * b, e) for (n, (v, e, j)), (a, b) in zip(truth.items(), noise, strict=True)}


def place(rng: np.random.Generator) -> tuple[float, float]:
    """A position (ra, dec) on the sky, degrees."""
    return float(rng.uniform(0, 360)), float(np.degrees(np.arcsin(rng.uniform(-1, 1))))


def far(rng: np.random.Generator, abs_mag: float, bright: float, faint: float, dust: float) -> tuple[float, float]:
    """Distance (pc) and E(B-V) of a star of absolute magnitude G `abs_mag`: without dust it would be seen between `bright` and
    `faint`, mostly at the faint end; dust, whose column has the median `dust` (mag), fills the nearest 1.5 kpc."""
    distance = 10 ** (0.2 * (bright + (faint - bright) * rng.random() ** 0.6 - abs_mag) + 1)
    column = dust * 10 ** (0.35 * rng.standard_normal())
    return float(distance), float(np.clip(column * (1 - np.exp(-distance / 1500)), 0.003, 1.5))


def radius_of(abs_mag: float, teff: float) -> float:
    """Radius (R☉) of a star of absolute magnitude G and Teff (K), by Planck's law at 6200 Å."""
    ratio = planck(np.array(6200.0), teff) / planck(np.array(6200.0), SUN_TEFF)
    return float(np.sqrt(10 ** (-0.4 * (abs_mag - BANDS["G"][0])) / ratio))


def main_sequence(teff: float) -> float:
    """Absolute magnitude G of a dwarf of Teff (K): radius ∝ Teff^1.6."""
    ratio = planck(np.array(6200.0), teff) / planck(np.array(6200.0), SUN_TEFF)
    return float(BANDS["G"][0] - 2.5 * np.log10(ratio) - 8 * np.log10(teff / SUN_TEFF))


def gravity(radius: float, mass: float) -> float:
    """log g (cm s⁻²) of a radius and mass of the Sun's."""
    return float(SUN_LOGG + np.log10(mass) - 2 * np.log10(radius))
