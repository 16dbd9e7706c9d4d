"""DESI spectra: `coadd-*.fits` and `spectra-*.fits`, many objects a file.

For each arm B, R, Z: <ARM>_WAVELENGTH (n,), vacuum Å every 0.8 Å, heliocentric; <ARM>_FLUX (rows, n) in
1e-17 erg/s/cm²/Å, <ARM>_IVAR, <ARM>_MASK (0 = good). FIBERMAP has the TARGETID of each row; in `spectra-*` an object has
a row per exposure, and these are combined here with weights ivar, on their common pixels, or delivered one by one. Another
row of a TARGETID, in a file without EXPID, of an exposure that is there, or more than APART off on the sky, is quarantined.
Datamodel: https://desidatamodel.readthedocs.io/en/latest/DESI_SPECTRO_REDUX/SPECPROD/tiles/GROUPTYPE/TILEID/GROUPID/coadd-SPECTROGRAPH-TILEID-GROUPID.html

Redshifts come from the `redrock-*` (older: `zbest-*`) file of the same suffix beside, joined by TARGETID, or else from a
redshift catalogue in the input folder (`zall-*`, `zpix-*`, `ztile-*`; of several rows that of the same tile, survey and
program, then the primary one).

Whole spectra: an exposure with any of BAD_FIBER in FIBERSTATUS, the bits on which the survey's own coadds leave it out, is
left out here too; so is an arm of it with its BAD_AMP bit. The other bits (STUCKPOSITIONER, RESTRICTED, POORPOSITION,
LOWTRANSMISSION, NEARCHARGETRAP, VARIABLETHRU, LOWEFFTIME and those of the petal) are carried in meta, for cuts later.
An object is quarantined if no exposure of it is left, and so are fibres on the sky or on nothing (UNASSIGNED).
Bits: https://desidatamodel.readthedocs.io/en/latest/bitmasks.html#fiberstatus
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping
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
    epoch_of,
    guarded,
    opened,
    pick,
    position,
    reason_of,
    table_row,
)
from hpcspec.surveys.catalogue import Join, look_up, parted, split
from hpcspec.surveys.grids import Grid, linear_grid
from hpcspec.surveys.observation import Arm, BadObject, Observation, make_arm

log = logging.getLogger(__name__)

REDSHIFTS = re.compile(r"^(redrock|zbest)-")
COMPANIONS = re.compile(r"^(redrock|zbest|rrdetails|rrmodel|emline|qso_mgii|qso_qn|mgii|tile-qa)-")
POSITION = (("TARGET_RA", "TARGET_DEC"), ("RA_TARGET", "DEC_TARGET"))
FIBERMAP_META = {
    "objtype": "OBJTYPE", "tileid": "TILEID", "fiber": "FIBER", "petal_loc": "PETAL_LOC",
    "coadd_fiberstatus": "COADD_FIBERSTATUS", "fiberstatus": "FIBERSTATUS",
    "mjd": "MEAN_MJD", "coadd_numexp": "COADD_NUMEXP",
}  # fmt: skip
FILE_META = {"survey": "SURVEY", "program": "PROGRAM"}  # header cards of files by healpix
EXPOSURE_META = {"mjd": "MJD", "expid": "EXPID", "night": "NIGHT", "exptime": "EXPTIME"}
UNASSIGNED = 1 << 0
BAD_FIBER = {
    "BROKENFIBER": 1 << 2, "MISSINGPOSITION": 1 << 8, "BADPOSITION": 1 << 9, "BADFIBER": 1 << 16, "BADTRACE": 1 << 17,
    "BADFLAT": 1 << 18, "BADARC": 1 << 19, "MANYBADCOL": 1 << 20, "MANYREJECTED": 1 << 21,
}  # fmt: skip
BAD_AMP = {"B": 1 << 22, "R": 1 << 23, "Z": 1 << 24}
ALL_BAD = sum(BAD_FIBER.values())
APART = 1.0  # arcsec between rows of one TARGETID beyond which they are not one object
CATALOGUE = Join(
    re.compile(r"^z(all|pix|tile|cat)-.*fits?", re.IGNORECASE),
    "TARGETID",
    {"z": ("Z",), "zerr": ("ZERR",), "zwarn": ("ZWARN",), "class": ("SPECTYPE",), "spectype": ("SPECTYPE",),
     "subtype": ("SUBTYPE",), "survey": ("SURVEY",), "program": ("PROGRAM",)},
    prefer=("ZCAT_PRIMARY", "MAIN_PRIMARY", "SV_PRIMARY"),
)  # fmt: skip
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

    def arm(self, rows: np.ndarray) -> Arm | None:
        """The arm of the object that has these rows: its one exposure as it is, or their mean weighted with ivar; None if
        there is no row."""
        if len(rows) == 0:
            return None
        if len(rows) == 1:
            return make_arm(self.name, self.grid, self.first, self.flux[rows[0]], self.ivar[rows[0]])
        flux, ivar = self.flux[rows].astype(np.float64), self.ivar[rows].astype(np.float64)
        good = np.isfinite(flux) & np.isfinite(ivar) & (ivar > 0)
        flux, ivar = np.where(good, flux, 0), np.where(good, ivar, 0)
        weight = ivar.sum(axis=0)
        mean = np.divide((flux * ivar).sum(axis=0), weight, out=np.zeros_like(weight), where=weight > 0)
        return make_arm(self.name, self.grid, self.first, mean, weight)


def discover(folder: Path) -> list[Source]:
    """One source per file below `folder` that is no companion, with the redshift file of the same suffix and the redshift
    catalogues after it. Raises UserError if there is no FITS file."""
    paths, catalogues = parted(folder, CATALOGUE)
    redshifts = {(p.parent, _suffix(p)): p for p in reversed(paths) if REDSHIFTS.match(p.name)}
    found = []
    for path in paths:
        if not COMPANIONS.match(path.name):
            beside = redshifts.get((path.parent, _suffix(path)))
            companions = (beside, *catalogues) if beside else catalogues
            found.append(Source(str(path.relative_to(folder)), (path, *companions)))
    return found


def read(source: Source) -> Iterator[Observation | Quarantined]:
    """The objects of a file in the order of their first rows, one for each TARGETID, or with `source.epochs` and a file of
    exposures one for each row; fibres without an object are quarantined, and so are, at the end, rows that repeat a TARGETID
    and are no exposure of the same object.

    If the FIBERMAP is readable and the spectra are not, every object is quarantined with the reason.
    """
    path = source.paths[0]
    try:
        fibermap, facts = _fibermap(path)
        targets = np.asarray(fibermap["TARGETID"])
        lead, own = _exposures(fibermap, targets)
    except FAULTS as error:
        yield Quarantined(str(path), "", reason_of(error))
        return
    groups = [np.flatnonzero(own & (lead == row)) for row in np.unique(lead)]
    epochs = fibermap["EXPID"].tolist() if source.epochs and "EXPID" in fibermap.names else None
    if epochs:
        groups = list(np.flatnonzero(own)[:, None])
    yield from _of_groups(source, fibermap, facts, groups, epochs)
    for row in np.flatnonzero(~own):
        reason = f"duplicate identifier: row {row} is no further exposure of the object of row {lead[row]}"
        yield Quarantined(str(path), str(targets[row]), reason)


def _exposures(fibermap: fits.FITS_rec, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each row (n,) the first of the same TARGETID, and whether it is that one or another exposure of its object."""
    _, first, number = np.unique(targets, return_index=True, return_inverse=True)
    lead = first[number]
    own = lead == np.arange(len(targets))
    if "EXPID" in fibermap.names:
        fresh = np.zeros_like(own)
        fresh[np.unique(np.stack([number, fibermap["EXPID"]]), axis=1, return_index=True)[1]] = True
        own |= fresh & _near(fibermap, lead)
    return lead, own


def _near(fibermap: fits.FITS_rec, lead: np.ndarray) -> np.ndarray:
    """Whether each row (n,) lies within APART of the row `lead`; True where the file has no positions."""
    there = set(map(str.upper, fibermap.names))
    names = next((pair for pair in POSITION if set(pair) <= there), None)
    if names is None:
        return np.ones(len(lead), bool)
    ra, dec = (np.asarray(fibermap[name], np.float64) for name in names)
    across = ((ra - ra[lead] + 180) % 360 - 180) * np.cos(np.radians(dec))
    return np.asarray(np.hypot(across, dec - dec[lead]) * 3600 <= APART)


def _of_groups(
    source: Source, fibermap: fits.FITS_rec, facts: Mapping[str, Any], groups: list[np.ndarray], epochs: list[int] | None
) -> Iterator[Observation | Quarantined]:
    """An object for each group of rows."""
    (path, *beside), catalogues = split(source, CATALOGUE)
    targets = np.asarray(fibermap["TARGETID"])
    ids = [f"{targets[rows[0]]}@{epochs[rows[0]]}" if epochs else str(targets[rows[0]]) for rows in groups]
    try:
        bands = _bands(path, len(targets))
    except FAULTS as error:
        for object_id in ids:
            yield Quarantined(str(path), object_id, reason_of(error))
        return
    redshifts = _redshifts(beside[0]) if beside else {}
    for object_id, rows in zip(ids, groups, strict=True):
        target = int(targets[rows[0]])
        build = partial(_spectrum, target, rows, fibermap, facts, bands, redshifts.get(target, {}), catalogues)
        yield from guarded(path, object_id, partial(_epoch, build, epochs[rows[0]]) if epochs else build)


def _epoch(build: Callable[[], Observation], exposure: int) -> Observation:
    return epoch_of(build(), exposure)


def _spectrum(
    target: int,
    rows: np.ndarray,
    fibermap: fits.FITS_rec,
    facts: Mapping[str, str | int | float],
    bands: list[Band],
    redshift: Mapping[str, str | int | float],
    catalogues: tuple[Path, ...],
) -> Observation:
    columns = {*sum(POSITION, ()), *FIBERMAP_META.values(), *EXPOSURE_META.values()}
    row = table_row(fibermap, int(rows[0]), columns)
    meta = {**facts, **pick(row, FIBERMAP_META), **(pick(row, EXPOSURE_META) if len(rows) == 1 else {})}
    if meta.get("objtype") == "SKY":
        raise BadObject("sky fibre")
    status = _status(fibermap, rows)
    usable = (status & ALL_BAD) == 0
    if not usable.any():
        said = np.bitwise_or.reduce(status)
        named = ", ".join(name for name, bit in BAD_FIBER.items() if said & bit)
        raise BadObject(f"no good exposure: FIBERSTATUS {named}")
    if np.all(status[usable] & UNASSIGNED):
        raise BadObject("fibre without an object: FIBERSTATUS UNASSIGNED")
    if len(rows) > 1:
        meta |= {"numexp": int(usable.sum()), "fiberstatus": int(np.bitwise_and.reduce(status[usable]))}
    ra, dec = position(row, *POSITION)
    arms = (band.arm(rows[usable & ((status & BAD_AMP.get(band.name, 0)) == 0)]) for band in bands)
    good = tuple(arm for arm in arms if arm is not None and np.any(arm.ivar > 0))
    if not redshift and catalogues:
        alike = {name: meta[name.lower()] for name in ("TILEID", "SURVEY", "PROGRAM") if name.lower() in meta}
        redshift = look_up(catalogues, CATALOGUE, str(target), alike)
    return Observation(str(target), "desi", ra, dec, good, FLAM, meta={**meta, **redshift})


def _status(fibermap: fits.FITS_rec, rows: np.ndarray) -> np.ndarray:
    """FIBERSTATUS of these rows, or COADD_FIBERSTATUS (which is that of the exposures in the coadd, or of all if none is in
    it); 0 in files without either."""
    for name in ("FIBERSTATUS", "COADD_FIBERSTATUS"):
        if name in fibermap.names:
            return np.asarray(fibermap[name][rows], np.int64)
    return np.zeros(len(rows), np.int64)


def _fibermap(path: Path) -> tuple[fits.FITS_rec, dict[str, str | int | float]]:
    """The FIBERMAP and what the headers say of the whole file.

    Raises BadObject if this is no DESI file of spectra, or any of FAULTS if it can't be read.
    """
    with opened(path) as hdus:
        if "FIBERMAP" not in hdus or not any(hdu.name.endswith("_WAVELENGTH") for hdu in hdus):
            raise BadObject("not a DESI file of spectra: no FIBERMAP with <ARM>_WAVELENGTH, _FLUX, _IVAR, _MASK")
        fibermap = data_of(hdus["FIBERMAP"])
        facts = pick(hdus[0].header, FILE_META) | pick(hdus["FIBERMAP"].header, FILE_META)
    if "TARGETID" not in fibermap.names or fibermap["TARGETID"].dtype.kind not in "iu" or len(fibermap) == 0:
        raise BadObject("FIBERMAP has no rows with an integer TARGETID")
    return fibermap, facts


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
