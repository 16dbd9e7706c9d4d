"""Gaia's BP/RP (XP) mean spectra: coefficients of 55 basis functions a band, and what they are sampled on wavelengths.

A band is its coefficients c, their errors σ and their correlations R (the strict lower triangle, row by row). On the
archive's own grid, 336 to 1020 nm by 2 nm, the flux is c·M and its variance the diagonal of Mᵀ(σRσ)M, with the design
matrix M of the external calibration, all bases, no truncation; BP and RP are merged with weights that go from one to the
other between 635 and 643 nm, and a band alone has weight 1 where it reaches (De Angeli et al. 2023, A&A 674, A2;
Montegriffo et al. 2023, A&A 674, A3). That is how the archive's XP_SAMPLED was made. Neighbouring samples are strongly
correlated: the errors hold for each sample alone. Gaia observes from space: its wavelengths are vacuum wavelengths.

M and the weights are part of the package gaiaxpy, which is optional: `pip install "hpcspec[gaia]"`. It is only asked for
those tables, with no network, once in a process.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from hpcspec.surveys.grids import Grid
from hpcspec.surveys.observation import BadObject

log = logging.getLogger(__name__)

BANDS = ("bp", "rp")
BASES = 55
GRID = Grid("linear", 3360.0, 20.0)
SAMPLES = 343
TO_FLAM = 1e19  # W / (m2 nm) in 1e-17 erg / (s cm2 Angstrom)
LOWER = np.tril_indices(BASES, -1)
NULLS = frozenset({"", "null", "none", "nan", "--"})


@dataclass(frozen=True)
class Band:
    """One band's mean spectrum: coefficients and errors (55,), e-/s (errors NaN where they are not known), and the lower
    triangle of the correlations (1485,), or None where they are not known."""

    coefficients: np.ndarray
    errors: np.ndarray
    correlations: np.ndarray | None


def number(cell: Any, what: str) -> float:
    """A scalar cell as a float, NaN where it is missing. Raises BadObject, naming `what`, if it is no number."""
    text = cell.decode("utf-8", "replace") if isinstance(cell, bytes) else cell
    if text is None or text is np.ma.masked or (isinstance(text, str) and text.strip().lower() in NULLS):
        return float("nan")
    try:
        return float(text)
    except (TypeError, ValueError) as error:
        raise BadObject(f"{what}: {str(text)[:40]!r} is not a number") from error


def numbers(cell: Any, what: str) -> np.ndarray:
    """A vector cell as float64 (n,): an array, or text such as "[1.0,2.0]" or "(1.0, 2.0)"; empty where it is missing.

    Raises BadObject, naming `what`, if it is not a list of numbers.
    """
    if cell is None or cell is np.ma.masked:
        return np.empty(0)
    if isinstance(cell, bytes | str):
        text = (cell.decode("utf-8", "replace") if isinstance(cell, bytes) else cell).strip()
        if text.lower() in NULLS:
            return np.empty(0)
        inner = text[1:-1] if text[0] + text[-1] in ("()", "[]", "{}") else text
        pieces = inner.split(",") if inner.strip() else []
        try:
            return np.array(pieces, np.float64)
        except ValueError:
            return np.array([number(piece, what) for piece in pieces])
    try:
        return np.ma.filled(np.ma.asarray(cell, np.float64), np.nan).reshape(-1)
    except (TypeError, ValueError) as error:
        raise BadObject(f"{what}: not a list of numbers") from error


def band_of(row: Mapping[str, Any], band: str) -> Band | None:
    """The band "bp" or "rp" of a table row: <band>_coefficients, _coefficient_errors and _coefficient_correlations, or
    a column a coefficient, <band>_coeff_0 … 54 and e_<band>_coeff_0 … 54. None if the object has no such spectrum.

    Raises BadObject if a vector has another length than it must or a coefficient is not a number.
    """
    names = [f"{band}_coefficients", f"{band}_coefficient_errors", f"{band}_coefficient_correlations"]
    if f"{band}_coeff_0" in row:
        values, errors = (np.array([number(row.get(f"{e}{band}_coeff_{i}"), name) for i in range(BASES)])
                          for e, name in zip(("", "e_"), names[:2], strict=True))  # fmt: skip
        correlations = np.empty(0)
    else:
        values, errors, correlations = (numbers(row.get(name), name) for name in names)
    if len(values) == 0 or np.all(np.isnan(values)):
        return None
    if len(correlations) == BASES**2:
        correlations = correlations.reshape(BASES, BASES)[LOWER]
    for vector, name, length in zip((values, errors, correlations), names, (BASES, BASES, len(LOWER[0])), strict=True):
        if len(vector) != length and (len(vector) or vector is values):
            raise BadObject(f"{name}: {len(vector)} values where {length} belong")
        if vector is not errors and not np.all(np.isfinite(vector)):
            raise BadObject(f"{name}: not all of the {len(vector)} are numbers")
    if len(errors) == 0:
        return Band(values, np.full(BASES, np.nan), None)
    return Band(values, errors, correlations if len(correlations) else None)


def sampled(objects: Sequence[Mapping[str, Band]]) -> tuple[np.ndarray, np.ndarray]:
    """Flux and error (n, 343), float64, W / (m2 nm), of n objects on GRID, from those of their bands that have
    correlations; NaN where none of these reaches, and everywhere if gaiaxpy is not installed, which is logged once."""
    flux, variance = np.zeros((2, len(objects), SAMPLES))
    covered = np.zeros(flux.shape, bool)
    usable = {band: np.array([band in o and o[band].correlations is not None for o in objects], bool) for band in BANDS}
    design = _design() if any(use.any() for use in usable.values()) else None
    for band, (matrix, merge) in (design or {}).items():
        use = np.flatnonzero(usable[band])
        if len(use) == 0:
            continue
        bands = [objects[k][band] for k in use.tolist()]
        errors = np.array([b.errors for b in bands])
        i, j = LOWER  # the covariance is symmetric: its lower triangle counts twice
        covariance = errors[:, i] * errors[:, j] * np.array([b.correlations for b in bands])
        weight = np.where((usable["bp"] & usable["rp"])[use, None], merge, merge > 0)
        reached = weight > 0
        flux[use] += np.where(reached, weight * (np.array([b.coefficients for b in bands]) @ matrix), 0)
        variance[use] += np.where(reached, weight**2 * (errors**2 @ matrix**2 + 2 * covariance @ (matrix[i] * matrix[j])), 0)
        covered[use] |= reached
    with np.errstate(invalid="ignore"):
        return np.where(covered, flux, np.nan), np.where(covered, np.sqrt(variance), np.nan)


@lru_cache(maxsize=1)
def _design() -> dict[str, tuple[np.ndarray, np.ndarray]] | None:
    """By band, the design matrix (55, 343) and the weights (343,) of the DR3 external calibration; None without gaiaxpy."""
    from matplotlib import rc_context

    try:
        with rc_context():  # importing gaiaxpy has every later figure set by LaTeX
            from gaiaxpy.core.config import load_xpmerge_from_xml, load_xpsampling_from_xml
    except ImportError as error:
        log.warning("Gaia XP spectra are read as coefficients only, without the sampled spectrum: %s. "
                    'Install gaiaxpy to have both: pip install "hpcspec[gaia]"', error)  # fmt: skip
        return None
    wavelength, merge = load_xpmerge_from_xml()
    matrices = load_xpsampling_from_xml()
    design = {band: (np.asarray(matrices[band], np.float64), np.asarray(merge[band], np.float64)) for band in BANDS}
    same_grid = np.array_equal(10.0 * np.asarray(wavelength, np.float64), GRID.wavelength(0, SAMPLES))
    if not same_grid or any(m.shape != (BASES, SAMPLES) or w.shape != (SAMPLES,) for m, w in design.values()):
        log.warning("Gaia XP spectra are read as coefficients only: this gaiaxpy samples on another grid "
                    "than 336 to 1020 nm by 2 nm")  # fmt: skip
        return None
    return design
