"""SDSS optical spectra (SDSS, SEGUE, BOSS, eBOSS; SDSS-V BOSS): `spec-PLATE-MJD-FIBER.fits`, full or lite.

One object a file. HDU 1 is the coadd: flux (1e-17 erg/s/cm²/Å), loglam (log10 of the vacuum wavelength in Å, multiples
of 1e-4, heliocentric), ivar, and_mask. HDU 2, one row, is the object's entry in the survey catalogue. Column names come
in either case, and HDU names may be absent. In a full file HDU 4 on are the single exposures, a table for each camera
(b1, b2, r1 or r2) and exposure with flux, loglam, ivar and mask in the coadd's units and frame, but on the native pixels, in
b with wavelengths falling. Lite files, which hold none, give their coadd also where epochs are asked for.

Sky fibres come out as spectra, for models of the sky and as a test of flags. meta["sky"] is 1 for them (bit 0 of ZWARNING, or
objtype or sourcetype "SKY") and 0 for objects; their class, z and other labels mean nothing.
Datamodel: https://data.sdss.org/datamodel/files/BOSS_SPECTRO_REDUX/RUN2D/spectra/PLATE4/spec.html

Mask: SPPIXMASK (https://www.sdss3.org/dr10/algorithms/bitmask_sppixmask.php). The reduction has already set ivar to 0
where it found a pixel unusable; BAD_PIXEL adds the bits that say the same or that the flux is not the object's. Bits
0 to 15 speak of a whole half of a spectrum, and 16, 17, 19, 20, 21 are warnings on pixels whose ivar is meant to hold.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits

from hpcspec.surveys.base import (
    FLAM,
    Quarantined,
    Source,
    about,
    each_guarded,
    epoch_of,
    open_fits,
    pick,
    plain,
    position,
    single_file_sources,
    table_row,
)
from hpcspec.surveys.grids import log_grid, table_grid
from hpcspec.surveys.observation import Arm, BadObject, Observation, make_arm

FULLREJECT = 1 << 18  # rejected in extraction
NOSKY = 1 << 22  # sky level unknown
BRIGHTSKY = 1 << 23  # sky so far above the object that the flux may not be the object's
NODATA = 1 << 24  # nothing to combine
COMBINEREJ = 1 << 25  # rejected in the combination
BADFLUXFACTOR = 1 << 26  # low flux calibration
BAD_PIXEL = FULLREJECT | NOSKY | BRIGHTSKY | NODATA | COMBINEREJ | BADFLUXFACTOR

COADD = {"FLUX", "LOGLAM", "IVAR", "AND_MASK"}
EXPOSURE = {"FLUX", "LOGLAM", "IVAR", "MASK"}
EXPOSURE_NAME = re.compile(r"^([BR][12])-(\d+)", re.IGNORECASE)  # camera and exposure number
SKY = 1  # ZWARNING
DAY = 86400.0
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
    """The one object of a spec file: one arm, "coadd"; with `source.epochs` each exposure of a full file, arms "b" and "r"."""
    path = source.paths[0]
    name = FILE_NAME.search(path.name)
    yield from each_guarded(path, _joined(*name.groups()) if name else "", lambda: _parts(path, source.epochs))


def _parts(path: Path, epochs: bool) -> Iterator[tuple[str, Callable[[], Observation]]]:
    """The coadd, or each exposure: identifier and what makes it."""
    hdus = open_fits(path)
    coadd = _table(hdus, COADD)
    if coadd is None:
        raise BadObject("not an SDSS spectrum: no coadd table with the columns flux, loglam, ivar and and_mask")
    header, catalogue = hdus[0].header, _table(hdus, {"CLASS", "Z", "MJD"})
    row = table_row(catalogue, 0, {"SPECOBJID", *META.values(), *sum(ROW_POSITION, ())}) if catalogue is not None else {}
    object_id = _object_id(row, header, path)
    exposures = _exposures(hdus) if epochs else {}
    if not exposures:
        yield object_id, lambda: _spectrum(object_id, row, header, _coadd(coadd))
    for number, cameras in exposures.items():
        yield f"{object_id}@{number}", partial(_exposure, object_id, row, header, number, cameras)


def _spectrum(object_id: str, row: Mapping[str, Any], header: fits.Header, *arms: Arm) -> Observation:
    with about(object_id):
        try:
            ra, dec = position(row, *ROW_POSITION)
        except BadObject:
            ra, dec = position(header, ("PLUG_RA", "PLUG_DEC"))
    meta = pick(header, {"plate": "PLATEID", "mjd": "MJD", "fiberid": "FIBERID"}) | pick(row, META)
    if {"zwarning", "objtype", "sourcetype"} & meta.keys():
        warning, kinds = meta.get("zwarning"), (meta.get("objtype"), meta.get("sourcetype"))
        meta["sky"] = int("SKY" in kinds or (isinstance(warning, int) and warning & SKY == SKY))
    return Observation(object_id, "sdss", ra, dec, arms, FLAM, meta=meta)


def _coadd(table: fits.FITS_rec) -> Arm:
    grid, first = log_grid(table["LOGLAM"])
    return make_arm("coadd", grid, first, table["FLUX"], table["IVAR"], (table["AND_MASK"] & BAD_PIXEL) != 0)


def _exposures(hdus: fits.HDUList) -> dict[int, dict[str, fits.BinTableHDU]]:
    """{exposure number: {camera: its table}}, in the order of the file."""
    found: dict[int, dict[str, fits.BinTableHDU]] = {}
    for hdu in hdus[1:]:
        name = EXPOSURE_NAME.match(hdu.name)
        if name and isinstance(hdu, fits.BinTableHDU):
            found.setdefault(int(name[2]), {})[name[1][0].lower()] = hdu
    return found


def _exposure(
    object_id: str, row: Mapping[str, Any], header: fits.Header, number: int, cameras: Mapping[str, fits.BinTableHDU]
) -> Observation:
    """One exposure: its mjd is that of the middle, TAI."""
    arms = []
    for camera, hdu in sorted(cameras.items()):
        table = hdu.data
        if lacking := EXPOSURE - {column.upper() for column in hdu.columns.names}:
            raise BadObject(f"{hdu.name}: no column {min(lacking)}")
        rising = slice(None, None, 1 if len(table) < 2 or table["LOGLAM"][0] < table["LOGLAM"][-1] else -1)
        flux, loglam, ivar, mask = (table[name][rising] for name in ("FLUX", "LOGLAM", "IVAR", "MASK"))
        grid = table_grid(10.0 ** loglam.astype(np.float64))
        arms.append(make_arm(camera, grid, 0, flux, ivar, (mask & BAD_PIXEL) != 0))
    good = tuple(arm for arm in arms if np.any(arm.ivar > 0))
    times = next(iter(cameras.values())).header
    meta = pick(times, {"exptime": "EXPTIME"})
    if "TAI-BEG" in times and "TAI-END" in times:
        meta["mjd"] = (float(times["TAI-BEG"]) + float(times["TAI-END"])) / 2 / DAY
    return epoch_of(_spectrum(object_id, row, header, *good), number, expid=number, **meta)


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
