"""What every reader delivers: a spectrum of one or more arms, each on its native grid.

Conventions, the same for every survey: wavelengths are vacuum Å; `ivar` is 0 for every pixel that must not be used
(the survey's own mask, NaN and inf folded in) and `flux` is finite everywhere; positions are ICRS degrees.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

# Morton (2000), ApJS 130, 403, as in VALD: air wavelength to vacuum, Å.
_AIR = (8.336624212083e-5, 2.408926869968e-2, 130.1065924522, 1.599740894897e-4, 38.92568793293)

LOG_TOLERANCE = 5e-7  # dex; two float32 steps at log10(λ) = 3.9, 0.5 % of an SDSS pixel


class BadSpectrum(ValueError):
    """One object that can't be used; the message is the reason written to the quarantine table."""

    def __init__(self, reason: str, object_id: str = ""):
        super().__init__(reason)
        self.reason, self.object_id = reason, object_id


def air_to_vacuum(wavelength: np.ndarray) -> np.ndarray:
    """Vacuum wavelength (Å) of an air wavelength (Å); the inverse of Morton (2000), ApJS 130, 403, after VALD."""
    s2 = (1e4 / np.asarray(wavelength, np.float64)) ** 2
    a, b, c, d, e = _AIR
    return wavelength * (1 + a + b / (c - s2) + d / (e - s2))


@dataclass(frozen=True)
class Grid:
    """A wavelength grid, stored once and referenced by many spectra.

    kind: "log10" (λ = 10**(start + step·i)), "linear" (λ = start + step·i), "linear_air" (the same in air, delivered
    in vacuum), or "table" (λ = values[i]).
    """

    kind: str
    start: float = 0.0
    step: float = 0.0
    values: tuple[float, ...] = ()

    def wavelength(self, first: int, length: int) -> np.ndarray:
        """Vacuum wavelengths (length,), float64, Å, of pixels first … first+length-1."""
        if self.kind == "table":
            return np.array(self.values[first : first + length], np.float64)
        x = self.start + self.step * np.arange(first, first + length, dtype=np.float64)
        if self.kind == "log10":
            return 10.0**x
        if self.kind == "linear":
            return x
        if self.kind == "linear_air":
            return air_to_vacuum(x)
        raise ValueError(f"unknown grid kind {self.kind!r}")


def table_grid(wavelength: np.ndarray) -> Grid:
    """A grid that lists its vacuum wavelengths (n,), Å, exactly."""
    return Grid("table", values=tuple(np.asarray(wavelength, np.float64).tolist()))


def log_grid(loglam: np.ndarray, step: float = 1e-4) -> tuple[Grid, int]:
    """The grid and first pixel of log10 vacuum wavelengths (n,) written in single precision.

    Multiples of `step` become slices of the one grid that starts at 0; an even spacing with another phase becomes a
    log10 grid with that phase; anything else, not finite values too, becomes a table.
    """
    loglam = np.asarray(loglam, np.float64)
    if loglam.ndim == 1 and len(loglam) and np.all(np.isfinite(loglam)):
        first = round(loglam[0] / step)
        offset = loglam - step * np.arange(first, first + len(loglam))
        if np.abs(offset).max() < LOG_TOLERANCE:
            return Grid("log10", 0.0, step), first
        phase = round(float(np.median(offset)), 9)
        if np.abs(offset - phase).max() < LOG_TOLERANCE:
            return Grid("log10", phase, step), first
    with np.errstate(over="ignore"):
        return table_grid(10.0 ** loglam.ravel()), 0


def linear_grid(wavelength: np.ndarray, start: float, step: float, tolerance: float = 1e-4) -> tuple[Grid, int]:
    """The grid and first pixel of vacuum wavelengths (n,), Å: a slice of start + step·i where that holds to within
    `tolerance` Å, otherwise a table."""
    wavelength = np.asarray(wavelength, np.float64)
    if wavelength.ndim == 1 and len(wavelength) and np.all(np.isfinite(wavelength)):
        first = round((wavelength[0] - start) / step)
        if np.abs(wavelength - start - step * np.arange(first, first + len(wavelength))).max() < tolerance:
            return Grid("linear", start, step), first
    return table_grid(wavelength.ravel()), 0


@dataclass(frozen=True)
class Arm:
    """One contiguous stretch of native pixels: flux and ivar (n,), float32, on `grid` from pixel `first` on."""

    name: str
    grid: Grid
    first: int
    flux: np.ndarray
    ivar: np.ndarray

    @property
    def wavelength(self) -> np.ndarray:
        """Vacuum wavelengths (n,), float64, Å."""
        return self.grid.wavelength(self.first, len(self.flux))


@dataclass(frozen=True)
class Spectrum:
    """One object as its survey observed it.

    meta holds the survey's own values under its own names (str, int or float), never an identifier as a float.
    """

    object_id: str
    survey: str
    ra: float
    dec: float
    arms: tuple[Arm, ...]
    flux_unit: str
    frame: str = "observed"
    meta: Mapping[str, str | int | float] = field(default_factory=dict)

    @property
    def sn_median(self) -> float:
        """Median signal to noise per pixel over the good pixels of all arms."""
        sn = np.concatenate([a.flux[a.ivar > 0] * np.sqrt(a.ivar[a.ivar > 0]) for a in self.arms])
        return float(np.median(sn)) if len(sn) else 0.0


def make_arm(name: str, grid: Grid, first: int, flux: np.ndarray, ivar: np.ndarray, bad: np.ndarray | None = None) -> Arm:
    """An `Arm` with bad pixels folded in: where `bad` (n,) is True or flux or ivar is not finite or not positive,
    ivar becomes 0 (and a flux that is not finite becomes 0).

    Raises BadSpectrum if the lengths differ.
    """
    flux, ivar = np.asarray(flux), np.asarray(ivar)
    if flux.ndim != 1 or flux.shape != ivar.shape or (bad is not None and np.shape(bad) != flux.shape):
        raise BadSpectrum(f"arm {name}: flux {flux.shape}, ivar {ivar.shape} and mask {np.shape(bad)} differ in length")
    with np.errstate(over="ignore"):  # float64 beyond float32 becomes inf and is folded in below
        flux, ivar = flux.astype(np.float32), ivar.astype(np.float32)
    finite = np.isfinite(flux)
    use = finite & np.isfinite(ivar) & (ivar > 0)
    if bad is not None:
        use &= ~np.asarray(bad, bool)
    return Arm(name, grid, int(first), np.where(finite, flux, np.float32(0)), np.where(use, ivar, np.float32(0)))


def trimmed(arm: Arm) -> Arm | None:
    """The arm without its leading and trailing bad pixels; None if it has no good one."""
    good = np.flatnonzero(arm.ivar > 0)
    if len(good) == 0:
        return None
    use = slice(int(good[0]), int(good[-1]) + 1)
    return Arm(arm.name, arm.grid, arm.first + use.start, arm.flux[use], arm.ivar[use])


def check(spectrum: Spectrum) -> Spectrum:
    """The spectrum itself, if a model can use it.

    Raises BadSpectrum for an empty identifier, a position off the sky, wavelengths that are not finite, positive and
    increasing, or no valid pixel at all.
    """
    if not spectrum.object_id:
        raise BadSpectrum("no object identifier")
    if not (np.isfinite(spectrum.ra) and -90 <= spectrum.dec <= 90 and 0 <= spectrum.ra <= 360):
        raise BadSpectrum(f"position off the sky: ra={spectrum.ra} dec={spectrum.dec}", spectrum.object_id)
    for arm in spectrum.arms:
        w = arm.wavelength
        if len(w) == 0 or not np.all(np.isfinite(w)) or w[0] <= 0 or np.any(np.diff(w) <= 0):
            raise BadSpectrum(f"arm {arm.name}: wavelengths are not finite, positive and increasing", spectrum.object_id)
    if not any((arm.ivar > 0).any() for arm in spectrum.arms):
        raise BadSpectrum("no valid pixel (every ivar is 0, or every flux is NaN)", spectrum.object_id)
    if not any(np.any(arm.flux[arm.ivar > 0] != 0) for arm in spectrum.arms):
        raise BadSpectrum("every valid flux is exactly 0", spectrum.object_id)
    return spectrum
