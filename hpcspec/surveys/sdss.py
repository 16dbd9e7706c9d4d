"""SDSS optical spectra (SDSS, SEGUE, BOSS, eBOSS; SDSS-V BOSS): `spec-PLATE-MJD-FIBER.fits`, full or lite.

One object a file. HDU 1 is the coadd: flux (1e-17 erg/s/cm²/Å), loglam (log10 of the vacuum wavelength in Å, multiples
of 1e-4, heliocentric), ivar, and_mask. HDU 2, one row, is the object's entry in the survey catalogue. Column names come
in either case, and HDU names may be absent. The single exposures of a full file are not read. Sky fibres come out as
spectra; ZWARNING bit 0 and objtype or sourcetype "SKY" tell them.
Datamodel: https://data.sdss.org/datamodel/files/BOSS_SPECTRO_REDUX/RUN2D/spectra/PLATE4/spec.html

Mask: SPPIXMASK (https://www.sdss3.org/dr10/algorithms/bitmask_sppixmask.php). The reduction has already set ivar to 0
where it found a pixel unusable; BAD_PIXEL adds the bits that say the same or that the flux is not the object's. Bits
0 to 15 speak of a whole half of a spectrum, and 16, 17, 19, 20, 21 are warnings on pixels whose ivar is meant to hold.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

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
from hpcspec.surveys.grids import log_grid
from hpcspec.surveys.observation import BadObject, Observation, make_arm

FULLREJECT = 1 << 18  # rejected in extraction
NOSKY = 1 << 22  # sky level unknown
BRIGHTSKY = 1 << 23  # sky so far above the object that the flux may not be the object's
NODATA = 1 << 24  # nothing to combine
COMBINEREJ = 1 << 25  # rejected in the combination
BADFLUXFACTOR = 1 << 26  # low flux calibration
BAD_PIXEL = FULLREJECT | NOSKY | BRIGHTSKY | NODATA | COMBINEREJ | BADFLUXFACTOR

COADD = {"FLUX", "LOGLAM", "IVAR", "AND_MASK"}
LABELS = frozenset({"class", "subclass", "z"})
META = {
    "plate": "PLATE", "mjd": "MJD", "fiberid": "FIBERID", "catalogid": "CATALOGID",
    "class": "CLASS", "subclass": "SUBCLASS", "z": "Z", "z_err": "Z_ERR", "zwarning": "ZWARNING",
    "sn_median_all": "SN_MEDIAN_ALL", "run2d": "RUN2D", "objtype": "OBJTYPE", "sourcetype": "SOURCETYPE",
}  # fmt: skip
# The primary header's RA and DEC are the plate's centre.
ROW_POSITION = (("PLUG_RA", "PLUG_DEC"), ("RACAT", "DECCAT"), ("FIBER_RA", "FIBER_DEC"), ("RA", "DEC"))
FILE_NAME = re.compile(r"spec-(?:\w+-)?(\d+)-(\d{5})-(\d+)")


def discover(folder: Path) -> list[Source]:
    """One source per FITS file below `folder`. Raises UserError if there is none."""
    return single_file_sources(folder)


def read(source: Source) -> Iterator[Observation | Quarantined]:
    """The one object of a spec file: one arm, "coadd"."""
    path = source.paths[0]
    name = FILE_NAME.search(path.name)
    yield from guarded(path, _joined(*name.groups()) if name else "", lambda: _spectrum(path))


def _spectrum(path: Path) -> Observation:
    hdus = open_fits(path)
    coadd = _table(hdus, COADD)
    if coadd is None:
        raise BadObject("not an SDSS spectrum: no coadd table with the columns flux, loglam, ivar and and_mask")
    header, catalogue = hdus[0].header, _table(hdus, {"CLASS", "Z", "MJD"})
    row = table_row(catalogue, 0, {"SPECOBJID", *META.values(), *sum(ROW_POSITION, ())}) if catalogue is not None else {}
    object_id = _object_id(row, header, path)
    with about(object_id):
        grid, first = log_grid(coadd["LOGLAM"])
        arm = make_arm("coadd", grid, first, coadd["FLUX"], coadd["IVAR"], (coadd["AND_MASK"] & BAD_PIXEL) != 0)
        try:
            ra, dec = position(row, *ROW_POSITION)
        except BadObject:
            ra, dec = position(header, ("PLUG_RA", "PLUG_DEC"))
    meta = pick(header, {"plate": "PLATEID", "mjd": "MJD", "fiberid": "FIBERID"}) | pick(row, META)
    return Observation(object_id, "sdss", ra, dec, (arm,), FLAM, meta=meta)


def _table(hdus: fits.HDUList, columns: set[str]) -> fits.FITS_rec | None:
    """The first table with all these columns and at least one row."""
    for hdu in hdus[1:]:
        if isinstance(hdu, fits.BinTableHDU) and len(hdu.data) and columns <= {name.upper() for name in hdu.columns.names}:
            return hdu.data
    return None


def _object_id(row: Mapping[str, Any], header: Mapping[str, Any], path: Path) -> str:
    """SPECOBJID (64 bits, as text or integer; SPEC_ID in the header is the same), else plate, MJD and fibre.

    Raises BadObject if nothing identifies the object.
    """
    for value in (row.get("SPECOBJID"), header.get("SPEC_ID")):
        text = str(plain(value)) if isinstance(value, str | bytes | int | np.integer) else ""
        if text.isdigit() and int(text) > 0:
            return text
    named = FILE_NAME.search(path.name)
    for source, plate in ((row, "PLATE"), (header, "PLATEID")):
        if {plate, "MJD", "FIBERID"} <= set(source.keys()):
            return _joined(source[plate], source["MJD"], source["FIBERID"])
    if not named:
        raise BadObject("no object identifier: no SPECOBJID, no plate, MJD and fibre, and the file name doesn't tell")
    return _joined(*named.groups())


def _joined(plate: Any, mjd: Any, fiber: Any) -> str:
    return f"{int(plate):04d}{int(mjd)}{int(fiber):04d}"
