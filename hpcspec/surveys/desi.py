"""DESI spectra: `coadd-*.fits` and `spectra-*.fits`, many objects a file.

For each arm B, R, Z: <ARM>_WAVELENGTH (n,), vacuum Å every 0.8 Å, heliocentric; <ARM>_FLUX (rows, n) in
1e-17 erg/s/cm²/Å, <ARM>_IVAR, <ARM>_MASK (0 = good). FIBERMAP has the TARGETID of each row; in `spectra-*` an object has
a row per exposure, and these are combined here with weights ivar, on their common pixels.
Datamodel: https://desidatamodel.readthedocs.io/en/latest/DESI_SPECTRO_REDUX/SPECPROD/tiles/GROUPTYPE/TILEID/GROUPID/coadd-SPECTROGRAPH-TILEID-GROUPID.html

Redshifts come from the `redrock-*` (older: `zbest-*`) file of the same suffix beside, joined by TARGETID.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits

from hpcspec.surveys.base import (
    FAULTS,
    FITS_NAMES,
    FLAM,
    Quarantined,
    Source,
    data_of,
    fits_files,
    guarded,
    opened,
    pick,
    position,
    reason_of,
    table_row,
)
from hpcspec.surveys.grids import Grid, linear_grid
from hpcspec.surveys.observation import Arm, BadObject, Observation, make_arm

log = logging.getLogger(__name__)

REDSHIFTS = re.compile(r"^(redrock|zbest)-")
COMPANIONS = re.compile(r"^(redrock|zbest|rrdetails|rrmodel|emline|qso_mgii|qso_qn|mgii|tile-qa)-")
POSITION = (("TARGET_RA", "TARGET_DEC"), ("RA_TARGET", "DEC_TARGET"))
FIBERMAP_META = {
    "objtype": "OBJTYPE", "tileid": "TILEID", "fiber": "FIBER", "petal_loc": "PETAL_LOC",
    "coadd_fiberstatus": "COADD_FIBERSTATUS", "fiberstatus": "FIBERSTATUS",
}  # fmt: skip
LABELS = frozenset({"class", "z"})
REDSHIFT_META = {"z": "Z", "zerr": "ZERR", "zwarn": "ZWARN", "class": "SPECTYPE", "spectype": "SPECTYPE", "subtype": "SUBTYPE"}


@dataclass(frozen=True)
class Band:
    """One arm of a whole file: grid, and flux and ivar (rows, n) with the mask folded into ivar."""

    name: str
    grid: Grid
    first: int
    flux: np.ndarray
    ivar: np.ndarray

    def arm(self, rows: np.ndarray) -> Arm:
        """The arm of the object that has these rows: its one exposure as it is, or their mean weighted with ivar."""
        if len(rows) == 1:
            return make_arm(self.name, self.grid, self.first, self.flux[rows[0]], self.ivar[rows[0]])
        flux, ivar = self.flux[rows].astype(np.float64), self.ivar[rows].astype(np.float64)
        good = np.isfinite(flux) & np.isfinite(ivar) & (ivar > 0)
        flux, ivar = np.where(good, flux, 0), np.where(good, ivar, 0)
        weight = ivar.sum(axis=0)
        mean = np.divide((flux * ivar).sum(axis=0), weight, out=np.zeros_like(weight), where=weight > 0)
        return make_arm(self.name, self.grid, self.first, mean, weight)


def discover(folder: Path) -> list[Source]:
    """One source per file below `folder` that is not a companion, with the redshift file of the same suffix second.

    Raises UserError if there is no FITS file.
    """
    paths = fits_files(folder)
    redshifts = {(p.parent, _suffix(p)): p for p in reversed(paths) if REDSHIFTS.match(p.name)}
    found = []
    for path in paths:
        if not COMPANIONS.match(path.name):
            beside = redshifts.get((path.parent, _suffix(path)))
            found.append(Source(str(path.relative_to(folder)), (path, beside) if beside else (path,)))
    return found


def read(source: Source) -> Iterator[Observation | Quarantined]:
    """The objects of a file in the order of their first rows, one for each TARGETID; sky fibres are quarantined.

    If the FIBERMAP is readable and the spectra are not, every object is quarantined with the reason.
    """
    path = source.paths[0]
    try:
        fibermap = _fibermap(path)
    except FAULTS as error:
        yield Quarantined(str(path), "", reason_of(error))
        return
    targets = np.asarray(fibermap["TARGETID"])
    ids, first = np.unique(targets, return_index=True)
    ids = ids[np.argsort(first)]
    try:
        bands = _bands(path, len(targets))
    except FAULTS as error:
        for target in ids:
            yield Quarantined(str(path), str(int(target)), reason_of(error))
        return
    redshifts = _redshifts(source.paths[1]) if len(source.paths) > 1 else {}
    for target in ids.tolist():
        rows = np.flatnonzero(targets == target)
        yield from guarded(path, str(target), partial(_spectrum, target, rows, fibermap, bands, redshifts.get(target, {})))


def _spectrum(
    target: int, rows: np.ndarray, fibermap: fits.FITS_rec, bands: list[Band], redshift: Mapping[str, str | int | float]
) -> Observation:
    row = table_row(fibermap, int(rows[0]), {*sum(POSITION, ()), *FIBERMAP_META.values()})
    meta = pick(row, FIBERMAP_META)
    if meta.get("objtype") == "SKY":
        raise BadObject("sky fibre")
    ra, dec = position(row, *POSITION)
    arms = (band.arm(rows) for band in bands)
    good = tuple(a for a in arms if np.any(a.ivar > 0))
    return Observation(str(target), "desi", ra, dec, good, FLAM, meta={**meta, **redshift})


def _fibermap(path: Path) -> fits.FITS_rec:
    """The FIBERMAP. Raises BadObject if this is no DESI file of spectra, or any of FAULTS if it can't be read."""
    with opened(path) as hdus:
        if "FIBERMAP" not in hdus or not any(hdu.name.endswith("_WAVELENGTH") for hdu in hdus):
            raise BadObject("not a DESI file of spectra: no FIBERMAP with <ARM>_WAVELENGTH, _FLUX, _IVAR, _MASK")
        fibermap = data_of(hdus["FIBERMAP"])
    if "TARGETID" not in fibermap.names or fibermap["TARGETID"].dtype.kind not in "iu" or len(fibermap) == 0:
        raise BadObject("FIBERMAP has no rows with an integer TARGETID")
    return fibermap


def _bands(path: Path, rows: int) -> list[Band]:
    """All arms of a file; its resolution matrices, most of it, stay unread.

    Raises BadObject for arrays that are missing or don't fit, or any of FAULTS.
    """
    bands = []
    with opened(path) as hdus:
        names = [hdu.name for hdu in hdus]
        for name in (n.removesuffix("_WAVELENGTH") for n in names if n.endswith("_WAVELENGTH")):
            lost = [f"{name}_{part}" for part in ("FLUX", "IVAR", "MASK") if f"{name}_{part}" not in names]
            if lost:
                raise BadObject(f"arm {name}: HDU {', '.join(lost)} missing")
            wavelength, flux, ivar, mask = (_array(hdus, f"{name}_{part}") for part in ("WAVELENGTH", "FLUX", "IVAR", "MASK"))
            if not flux.shape == ivar.shape == mask.shape == (rows, wavelength.size):
                shapes = f"flux {flux.shape}, ivar {ivar.shape}, mask {mask.shape}"
                raise BadObject(f"arm {name}: {shapes} are not ({rows} fibres, {wavelength.size} wavelengths)")
            ivar[mask != 0] = 0
            bands.append(Band(name, *linear_grid(wavelength, 3600.0, 0.8), flux, ivar))
    return bands


def _array(hdus: fits.HDUList, name: str) -> np.ndarray:
    data = data_of(hdus[name])
    if data is None or not isinstance(data, np.ndarray) or data.dtype.names:
        raise BadObject(f"HDU {name} is not an image with data")
    return data


def _redshifts(path: Path) -> dict[int, Mapping[str, Any]]:
    """{TARGETID: z, zerr, zwarn, spectype, subtype}; a companion that can't be read costs the redshifts only."""
    try:
        with opened(path) as hdus:
            table = data_of(hdus["REDSHIFTS" if "REDSHIFTS" in hdus else "ZBEST"])
        return {
            int(target): pick(table_row(table, i, REDSHIFT_META.values()), REDSHIFT_META)
            for i, target in enumerate(table["TARGETID"])
        }
    except FAULTS as error:
        log.warning("no redshifts from %s: %s", path, reason_of(error))
        return {}


def _suffix(path: Path) -> str:
    """What the files of one group share: "4-80613-thru20210324" of "coadd-4-80613-thru20210324.fits"."""
    return FITS_NAMES.sub("", path.name).partition("-")[2]
