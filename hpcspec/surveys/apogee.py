"""APOGEE near-infrared spectra, one star a file: `apStar`/`asStar`, `aspcapStar` and `apVisit`.

- apStar, asStar: HDU 1 flux (1e-17 erg/s/cm²/Å), HDU 2 error, HDU 3 mask, each (2 + visits, 8575) with the combined
  spectrum in row 0, or (8575,); rest frame.
- aspcapStar: HDU 1 flux over continuum, HDU 2 error, HDU 3 best model, (8575,), no mask; HDU 4 the star's row.
- apVisit: HDU 1 flux, HDU 2 error, HDU 3 mask, HDU 4 wavelength, each (3, 4096) or (3, 2048), red chip first and
  wavelengths falling; one visit, not corrected for any velocity.

Wavelengths are vacuum Å, for the first two 10**(CRVAL1 + CDELT1·i). An arm is a chip: "blue", "green", "red".
Datamodel: https://data.sdss.org/datamodel/files/APOGEE_REDUX/APRED_VERS/stars/TELESCOPE/FIELD/apStar.html

Mask: APOGEE_PIXMASK (https://www.sdss4.org/dr17/irspec/apogee-bitmasks/). BAD_PIXEL holds the bits its pipeline itself
counts as bad. Bits 8 to 13 (Littrow ghost, persistence, sky line, telluric) are warnings, and kept.
A flux of exactly 0 (apStar's and aspcapStar's way to write "no data") is bad too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from astropy.io import fits

from hpcspec.surveys.base import (
    FLAM,
    Quarantined,
    Source,
    about,
    guarded,
    open_fits,
    pick,
    plain,
    position,
    single_file_sources,
    table_row,
)
from hpcspec.surveys.grids import Grid, table_grid
from hpcspec.surveys.observation import Arm, BadObject, Observation, make_arm, trimmed

LABELS: frozenset[str] = frozenset()
BAD_PIXEL = 0b11111111 | 1 << 14  # BADPIX, CRPIX, SATPIX, UNFIXABLE, BADDARK, BADFLAT, BADERR, NOSKY; NOT_ENOUGH_PSF
NO_DATA_ERROR = 1e10  # the error of a pixel without data
# Pixels of the common grid, cut in the middle of the two gaps.
CHIPS = {"blue": slice(0, 3435), "green": slice(3435, 6215), "red": slice(6215, None)}
ID_IN_NAME = re.compile(r"-([A-Z0-9]{2}\d{8}[+-]\d{7})")
META = {
    "snr": "SNR", "nvisits": "NVISITS", "vhelio": "VHELIO", "starflag": "STARFLAG", "telescope": "TELESCOP",
    "field": "FIELD", "location_id": "LOCID", "plate": "PLATE", "mjd": "MJD5", "fiberid": "FIBERID", "bc": "BC",
}  # fmt: skip
ROW_META = {"snr": "SNR", "nvisits": "NVISITS", "vhelio": "VHELIO", "starflag": "STARFLAG", "field": "FIELD"}


def discover(folder: Path) -> list[Source]:
    """One source per FITS file below `folder`. Raises UserError if there is none."""
    return single_file_sources(folder)


def read(source: Source) -> Iterator[Observation | Quarantined]:
    """The one star of a file, an arm for each chip that has a good pixel."""
    path = source.paths[0]
    name = ID_IN_NAME.search(path.name)
    yield from guarded(path, name[1] if name else "", lambda: _spectrum(path, name[1] if name else ""))


def _spectrum(path: Path, name: str) -> Observation:
    hdus = open_fits(path)
    header = hdus[0].header
    if len(hdus) < 4 or any(not hdu.is_image or hdu.data is None for hdu in hdus[1:4]):
        raise BadObject("not an APOGEE spectrum: HDUs 1 to 3 are not images of flux, error and mask")
    row = {}
    if len(hdus) > 4 and isinstance(hdus[4], fits.BinTableHDU) and len(hdus[4].data):
        row = table_row(hdus[4].data, 0, {"APOGEE_ID", "RA", "DEC", *ROW_META.values()})
    object_id = str(plain(header.get("OBJID") or row.get("APOGEE_ID") or name))
    with about(object_id):
        if "CRVAL1" in hdus[1].header or "CRVAL1" in header:
            whole, product = _on_common_grid(hdus)
            arms = [Arm(chip, whole.grid, cut.start, whole.flux[cut], whole.ivar[cut]) for chip, cut in CHIPS.items()]
        else:
            arms, product = _visit(hdus), "apVisit"
        ra, dec = position({**row, **{card: header[card] for card in ("RA", "DEC") if card in header}}, ("RA", "DEC"))
    return Observation(
        object_id,
        "apogee",
        ra,
        dec,
        tuple(arm for arm in map(trimmed, arms) if arm is not None),
        "relative" if product == "aspcapStar" else FLAM,
        "observed" if product == "apVisit" else "rest",
        pick(row, ROW_META) | pick(header, META) | {"product": product},
    )


def _on_common_grid(hdus: fits.HDUList) -> tuple[Arm, str]:
    """The whole combined spectrum (8575,) as one arm, and which product it is."""
    header = hdus[1].header if "CRVAL1" in hdus[1].header else hdus[0].header
    start, step = float(header["CRVAL1"]), float(header.get("CDELT1", 0))
    if not (4.1 < start < 4.3 and 0 < step < 1e-4):
        raise BadObject(f"not an APOGEE spectrum: CRVAL1={start}, CDELT1={step} is not its grid in log10 wavelength")
    flux, error, mask = (np.atleast_2d(hdu.data)[0] for hdu in hdus[1:4])
    normalised = mask.dtype.kind == "f"  # aspcapStar has its model where apStar has its mask
    bad = _bad(flux, error, None if normalised else mask)
    grid = Grid("log10", start + (1 - float(header.get("CRPIX1", 1))) * step, step)
    return make_arm("all", grid, 0, flux, _ivar(error), bad), "aspcapStar" if normalised else "apStar"


def _visit(hdus: fits.HDUList) -> list[Arm]:
    """One arm per chip, blue first, wavelengths rising."""
    flux, error, mask = (hdu.data for hdu in hdus[1:4])
    wavelength = hdus[4].data if len(hdus) > 4 and hdus[4].is_image else None
    if flux.ndim != 2 or len(flux) != 3 or wavelength is None or np.mean(np.abs(wavelength - 1.6e4) < 2e3) < 0.5:
        raise BadObject("not an APOGEE spectrum: no CRVAL1, and not three chips with their wavelengths in HDU 4")
    if not flux.shape == error.shape == mask.shape == wavelength.shape:
        raise BadObject(f"flux {flux.shape}, error {error.shape}, mask {mask.shape}, wavelength {wavelength.shape} differ")
    bad, ivar = _bad(flux, error, mask), _ivar(error)
    arms = []
    for name, chip in zip(CHIPS, np.argsort(wavelength.mean(axis=1)), strict=True):
        rising = slice(None, None, 1 if wavelength[chip, 0] < wavelength[chip, -1] else -1)
        grid = table_grid(wavelength[chip, rising])
        arms.append(make_arm(name, grid, 0, flux[chip, rising], ivar[chip, rising], bad[chip, rising]))
    return arms


def _bad(flux: np.ndarray, error: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """True where a pixel must not be used; the shape of `flux`. Raises BadObject if the shapes differ."""
    if flux.shape != error.shape or (mask is not None and mask.shape != flux.shape):
        raise BadObject(
            f"flux {flux.shape}, error {error.shape} and mask {None if mask is None else mask.shape} differ in length"
        )
    bad = (flux == 0) | ~(error > 0) | (error >= NO_DATA_ERROR)
    return bad if mask is None else bad | ((mask.astype(np.int64) & BAD_PIXEL) != 0)


def _ivar(error: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        return error.astype(np.float64) ** -2
