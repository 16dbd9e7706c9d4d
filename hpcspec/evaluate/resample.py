"""Spectra resampled to a common grid, as files: what the model is spared, for comparison."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from astropy import units as u
from astropy.io import fits
from astropy.nddata import InverseVariance
from joblib import Parallel, delayed

from hpcspec.evaluate.inputs import NotMeasured
from hpcspec.surveys.observation import Arm, Observation


def write_resampled(objects: Iterable[Observation], folder: Path, step: float) -> None:
    """Write `folder/<number>.fits`, which the reader `generic` reads: one arm with the flux of all arms on the multiples of
    `step` Å, conserved (Carnall 2017, arXiv 1705.05165); pixels that a bad one is part of are bad. Where arms overlap, their
    mean by ivar.

    Raises NotMeasured if specutils is not installed.
    """
    try:
        import specutils  # noqa: F401
    except ImportError:
        raise NotMeasured('resampling needs specutils: pip install "hpcspec[generic]"') from None
    folder.mkdir(parents=True, exist_ok=True)
    Parallel(os.cpu_count())(delayed(_write)(folder / f"{n:06d}.fits", one, step) for n, one in enumerate(objects))


def _write(path: Path, one: Observation, step: float) -> None:
    from specutils import Spectrum

    low, high = min(a.wavelength[0] for a in one.arms), max(a.wavelength[-1] for a in one.arms)
    grid = step * np.arange(np.ceil(low / step), np.floor(high / step) + 1)
    flux, ivar = (sum(x) for x in zip(*(_on(arm, grid) for arm in one.arms), strict=True))
    flux = np.divide(flux, ivar, out=np.zeros_like(flux), where=ivar > 0)
    header = fits.Header({"OBJID": one.object_id, "RA": one.ra, "DEC": one.dec, "VACUUM": True})
    made = Spectrum(spectral_axis=grid * u.AA, flux=flux * u.adu, uncertainty=InverseVariance(ivar),
                    mask=ivar == 0, meta={"header": header})  # fmt: skip
    made.write(path, format="tabular-fits", overwrite=True)


def _on(arm: Arm, grid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Flux times ivar, and ivar, of an arm on a grid."""
    from specutils import Spectrum
    from specutils.manipulation import FluxConservingResampler

    good, bad_at = arm.ivar > 0, arm.wavelength[arm.ivar <= 0]
    spectrum = Spectrum(spectral_axis=arm.wavelength[good] * u.AA, flux=arm.flux[good].astype(float) * u.adu,
                        uncertainty=InverseVariance(arm.ivar[good].astype(float)))  # fmt: skip
    out = FluxConservingResampler(extrapolation_treatment="zero_fill")(spectrum, grid * u.AA)
    ivar = np.nan_to_num(out.uncertainty.array)
    half = 0.5 * (grid[1] - grid[0])
    touched = np.searchsorted(bad_at, grid + half) > np.searchsorted(bad_at, grid - half)
    ivar = np.where(touched | (grid < arm.wavelength[good][0]) | (grid > arm.wavelength[good][-1]), 0.0, ivar)
    return np.nan_to_num(out.flux.value) * ivar, ivar
