"""LAMOST low-resolution spectra: `spec-LMJD-PLANID_spXX-FFF.fits`, one object a file, in both of the survey's layouts.

- Image (DR1 to DR7): primary HDU (5, n): flux, inverse variance, wavelength, and-mask, or-mask. In DR1 the third row is
  the flux over a continuum instead, and the wavelength is 10**(COEFF0 + COEFF1·i).
- Table (DR8 on): HDU "COADD", one row of vectors FLUX, IVAR, WAVELENGTH, ANDMASK, ORMASK.

Wavelengths are vacuum Å, heliocentric, on multiples of 1e-4 in log10; the flux calibration is relative.
Datamodel: https://www.lamost.org/dr10/v2.0/doc/lr-data-production-description

Mask: a pixel is bad where the and-mask is not 0 (bad in every exposure). Such pixels already have ivar 0 in the survey's
files. The or-mask (bad in some exposure, which the combination has left out) kills good pixels and is not used.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from astropy.io import fits

from hpcspec.surveys.base import Quarantined, Source, about, guarded, open_fits, pick, plain, position, single_file_sources
from hpcspec.surveys.grids import log_grid
from hpcspec.surveys.observation import BadObject, Observation, make_arm

COLUMNS = ("FLUX", "IVAR", "WAVELENGTH", "ANDMASK")
LABELS = frozenset({"class", "subclass", "z"})
META = {
    "class": "CLASS", "subclass": "SUBCLASS", "z": "Z", "z_err": "Z_ERR", "desig": "DESIG", "lmjd": "LMJD",
    "planid": "PLANID", "spid": "SPID", "fiberid": "FIBERID", "data_v": "DATA_V",
}  # fmt: skip
SN = {f"snr{band}": (f"SNR{band.upper()}", f"SN_{band.upper()}") for band in "ugriz"}


def discover(folder: Path) -> list[Source]:
    """One source per FITS file below `folder`. Raises UserError if there is none."""
    return single_file_sources(folder)


def read(source: Source) -> Iterator[Observation | Quarantined]:
    """The one object of a file: one arm, "coadd"."""
    path = source.paths[0]
    yield from guarded(path, "", lambda: _spectrum(path))


def _spectrum(path: Path) -> Observation:
    hdus = open_fits(path)
    header = hdus[0].header
    if "LAMOST" not in f"{header.get('TELESCOP')} {header.get('ORIGIN')} {header.get('DATA_V')}".upper():
        raise BadObject("not a LAMOST spectrum: neither TELESCOP nor ORIGIN names LAMOST")
    object_id = _object_id(header)
    with about(object_id):
        flux, ivar, wavelength, mask = _vectors(hdus)
        grid, first = log_grid(_loglam(header, wavelength, len(flux)))
        arm = make_arm("coadd", grid, first, flux, ivar, mask != 0)
        if len(arm.flux) != len(wavelength):
            raise BadObject(f"flux {flux.shape} and wavelength {wavelength.shape} differ in length")
        ra, dec = position(header, ("RA", "DEC"))
    sn = {ours: name for ours, names in SN.items() for name in names if name in header}
    return Observation(object_id, "lamost", ra, dec, (arm,), "relative", meta=pick(header, META | sn))


def _vectors(hdus: fits.HDUList) -> list[np.ndarray]:
    """Flux, ivar, wavelength and and-mask, (n,) each, of either layout."""
    image = hdus[0].data
    if image is not None:
        if image.ndim != 2 or len(image) < len(COLUMNS):
            raise BadObject(f"not a LAMOST low-resolution spectrum: primary image of shape {image.shape}, not (5, n)")
        return list(image[: len(COLUMNS)])
    if "COADD" not in hdus or not isinstance(hdus["COADD"], fits.BinTableHDU):
        raise BadObject("not a LAMOST low-resolution spectrum: neither a primary image nor a table COADD")
    table = hdus["COADD"].data
    lost = [name for name in COLUMNS if name not in {column.upper() for column in table.names}]
    if lost or len(table) == 0:
        raise BadObject(f"HDU COADD has {len(table)} rows and lacks columns {lost}")
    return [np.atleast_1d(table[name][0]) for name in COLUMNS]


def _loglam(header: fits.Header, wavelength: np.ndarray, length: int) -> np.ndarray:
    """log10 of the wavelengths (n,): the stored ones, or, where the row holds something else (DR1), the header's."""
    if np.mean(wavelength > 1000) > 0.5:
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.log10(np.asarray(wavelength, np.float64))
    for start, step in (("COEFF0", "COEFF1"), ("CRVAL1", "CD1_1")):
        if start in header and step in header:
            return float(header[start]) + float(header[step]) * np.arange(length)
    raise BadObject("no wavelengths: no wavelength row, and no COEFF0 and COEFF1 in the header")


def _object_id(header: fits.Header) -> str:
    """OBSID; DR1 headers lack it, and the spectrum's name LMJD-PLANID_spXX-FFF, as unique, is used.

    Raises BadObject if neither is there.
    """
    obsid = str(plain(header.get("OBSID", ""))).removesuffix(".0")
    if obsid.isdigit() and int(obsid) > 0:
        return obsid
    if any(name not in header for name in ("LMJD", "PLANID", "SPID", "FIBERID")):
        raise BadObject("no object identifier: no OBSID, and not all of LMJD, PLANID, SPID and FIBERID")
    return f"{int(header['LMJD'])}-{plain(header['PLANID'])}_sp{int(header['SPID']):02d}-{int(header['FIBERID']):03d}"
