"""A BP/RP spectrograph like Gaia's: prisms, a Gaussian line-spread function, and spectra as 55 coefficients a band.

Light of wavelength λ falls on pixel u(λ), whose dispersion runs linearly between the ends of the band. The mean spectrum is
the sum of Hermite functions of u, rotated so that the light of stars gathers in the first few (Carrasco et al. 2021, A&A
652, A86). Errors follow those of real coefficients: a floor, photon noise and a share of the first coefficient, smaller to
the last. Unlike real ones they are not correlated.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from itertools import product

import numpy as np

from hpcspec.simulate.field import BANDS, CURVE, OPTICAL, STEP, surface, weights
from hpcspec.simulate.lines import Atmosphere

BASES = 55
SIGMA = 1.0  # pixels, of the line-spread function
G_ZERO = 25.687  # magnitude G of 1 e-/s
G_BAND = list(BANDS).index("G")


def hermite(x: np.ndarray, count: int) -> np.ndarray:
    """The first `count` Hermite functions, orthonormal, at x (n,): (count, n)."""
    phi = np.empty((count, len(x)))
    phi[0], phi[1] = np.pi**-0.25 * np.exp(-x * x / 2), np.pi**-0.25 * np.sqrt(2) * x * np.exp(-x * x / 2)
    for n in range(2, count):
        phi[n] = np.sqrt(2 / n) * x * phi[n - 1] - np.sqrt(1 - 1 / n) * phi[n - 2]
    return phi


@dataclass(frozen=True)
class Spectrograph:
    """One band: limits (Å), dispersion at both (Å per pixel), peak response, and of the coefficients' errors the terms of the
    first one's variance (floor (e-/s)², photon noise, share of the first coefficient) and knots (order, ratio to the first)."""

    limits: tuple[float, float]
    dispersion: tuple[float, float]
    peak: float
    noise: tuple[float, float, float]
    knots: tuple[tuple[float, ...], tuple[float, ...]]

    def pixel(self, wavelength: np.ndarray) -> np.ndarray:
        """u (n,) of wavelengths (n,), Å, from 0 at the lower limit."""
        (low, high), (first, last) = self.limits, self.dispersion
        slope = (last - first) / (high - low)
        return np.log1p(slope * (wavelength - low) / first) / slope

    def response(self, wavelength: np.ndarray) -> np.ndarray:
        """The share of photons (n,) that is counted at wavelengths (n,), Å."""
        low, high = self.limits
        return self.peak * 0.25 * (1 + np.tanh((wavelength - low - 150) / 80)) * (1 + np.tanh((high - 150 - wavelength) / 80))

    def _hermite(self, pixel: np.ndarray) -> np.ndarray:
        half = 0.5 * float(self.pixel(np.array(self.limits[1])))
        scale = (half + 4 * SIGMA) / np.sqrt(2 * BASES + 1)
        return hermite((pixel - half) / scale, BASES) / np.sqrt(scale)

    @cached_property
    def _projection(self) -> np.ndarray:
        """Coefficients of the Hermite functions per photon flux on OPTICAL: (n, 55), the line-spread function included."""
        fine = np.linspace(-8 * SIGMA, float(self.pixel(np.array(self.limits[1]))) + 8 * SIGMA, 600)
        inside = (OPTICAL > self.limits[0]) & (OPTICAL < self.limits[1])
        away = (self.pixel(np.where(inside, OPTICAL, self.limits[0]))[:, None] - fine) / SIGMA
        spread = np.exp(-0.5 * away**2) / (np.sqrt(2 * np.pi) * SIGMA) * (fine[1] - fine[0])
        return (inside * self.response(OPTICAL) * STEP)[:, None] * (spread @ self._hermite(fine).T)

    @cached_property
    def rotation(self) -> np.ndarray:
        """The bases (55, 55), rows of coefficients of the Hermite functions: principal axes of stars of all kinds behind
        little and much dust, with the higher orders last where stars don't tell them apart."""
        stars = [
            surface(Atmosphere(teff, logg, fe_h))[: len(OPTICAL)] * 10 ** (-0.4 * ebv * CURVE[: len(OPTICAL)])
            for teff, logg, fe_h, ebv in product((3600, 4200, 5000, 6000, 7500), (1.0, 3.0, 4.5), (-1.5, 0.0), (0.0, 0.5))
        ]
        c = (np.array(stars) * OPTICAL) @ self._projection
        c /= np.linalg.norm(c, axis=1, keepdims=True)
        _, axes = np.linalg.eigh(c.T @ c - np.diag(1e-9 * np.arange(1, BASES + 1)))
        axes = axes[:, ::-1].T
        lead = axes[np.arange(BASES), np.abs(axes).argmax(1)]
        sign = np.where(lead < 0, -1.0, 1.0)
        sign[0] = np.sign((c @ axes[0]).sum())
        return axes * sign[:, None]

    @cached_property
    def design(self) -> np.ndarray:
        """Coefficients per photon flux on OPTICAL: (n, 55)."""
        return self._projection @ self.rotation.T

    def errors(self, first: float) -> np.ndarray:
        """Errors (55,) of coefficients whose first is this, e-/s."""
        floor, photon, share = self.noise
        variance = floor + photon * abs(first) + (share * first) ** 2
        return np.sqrt(variance) * np.interp(np.arange(BASES), *self.knots)

    def sampled(self, coefficients: np.ndarray, wavelength: np.ndarray) -> np.ndarray:
        """The energy flux (n,), arbitrary unit, that coefficients (55,) say arrived at wavelengths (n,), Å, within the limits:
        the sum of the bases over response and dispersion, still as wide as the line-spread function."""
        (low, high), (first, last) = self.limits, self.dispersion
        width = first + (last - first) * (wavelength - low) / (high - low)
        counted = coefficients @ self.rotation @ self._hermite(self.pixel(wavelength))
        return counted / (width * self.response(wavelength) * wavelength)


SPECTROGRAPHS = {
    "bp": Spectrograph((3300.0, 6800.0), (30.0, 270.0), 1.0, (0.10, 2.65e-3, 6.2e-4),
                       ((0, 12, 20, 30, 40, 49, 54), (1.0, 0.85, 0.65, 0.42, 0.33, 0.18, 0.04))),
    "rp": Spectrograph((6200.0, 10500.0), (70.0, 150.0), 0.9, (0.11, 1.15e-3, 2.0e-4),
                       ((0, 19, 30, 38, 45, 52, 54), (1.0, 0.97, 0.75, 0.55, 0.42, 0.24, 0.06))),
}  # fmt: skip


@cache
def _designs() -> np.ndarray:
    return np.concatenate([s.design for s in SPECTROGRAPHS.values()], 1)


def normalised(sed: np.ndarray, g: float) -> tuple[np.ndarray, np.ndarray]:
    """Noiseless coefficients (110,), BP before RP, over the G flux, and their errors (110,) at magnitude G.

    sed: flux (n,), any unit, on field.WAVELENGTH.
    """
    c = (sed[: len(OPTICAL)] * OPTICAL) @ _designs() / (sed @ weights()[:, G_BAND])
    flux = 10 ** (0.4 * (G_ZERO - g))
    errors = [s.errors(flux * c[i * BASES]) for i, s in enumerate(SPECTROGRAPHS.values())]
    return c, np.concatenate(errors) / flux
