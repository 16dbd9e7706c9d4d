"""Wavelength grids: stored once, referenced by many spectra. Wavelengths are vacuum Å."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

# Morton (2000), ApJS 130, 403, as in VALD: air wavelength to vacuum, Å.
_AIR = (8.336624212083e-5, 2.408926869968e-2, 130.1065924522, 1.599740894897e-4, 38.92568793293)

LOG_TOLERANCE = 5e-7  # dex; two float32 steps at log10(λ) = 3.9, 0.5 % of an SDSS pixel


def air_to_vacuum(wavelength: Any) -> Any:
    """Vacuum wavelengths (Å) of air wavelengths (Å), float64 arrays or tensors; the inverse of Morton (2000), ApJS 130, 403,
    after VALD."""
    s2 = (1e4 / wavelength) ** 2
    a, b, c, d, e = _AIR
    return wavelength * (1 + a + b / (c - s2) + d / (e - s2))


KINDS = ("table", "log10", "linear", "linear_air")


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

    @cached_property
    def _table(self) -> np.ndarray:
        return np.array(self.values, np.float64)

    def wavelength(self, first: int, length: int) -> np.ndarray:
        """Vacuum wavelengths (length,), float64, Å, of pixels first … first+length-1."""
        if self.kind == "table":
            return self._table[first : first + length].copy()
        return self.at(np.arange(first, first + length))

    def at(self, pixel: np.ndarray) -> np.ndarray:
        """Vacuum wavelengths, float64, Å, of these pixels, which are on the grid."""
        if self.kind == "table":
            return self._table[pixel]
        x = self.start + self.step * pixel.astype(np.float64)
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
