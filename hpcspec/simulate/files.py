"""Writers of simulated observations in the surveys' own FITS layouts. No dates: the same objects give the same bytes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpcspec.simulate.fitsfile import HDU, table, write
from hpcspec.simulate.instruments import APOGEE_PIXELS, APOGEE_START, APOGEE_STEP, CHIPS, HERMES, Exposure
from hpcspec.simulate.physics import LIGHT, Object, Star

# Mask bits: SDSS SPPIXMASK, DESI specmask, APOGEE PIXMASK.
SDSS_FULLREJECT, SDSS_BRIGHTSKY = 1 << 18, 1 << 23
DESI_ALLBADPIX = 1 << 1
APOGEE_BADPIX, APOGEE_SKYLINE, APOGEE_OFF_CHIP = 1 << 0, 1 << 12, 1 << 14
DESI_PER_FILE = 100
HERMES_NAMES = {"1": "BL", "2": "GN", "3": "RD", "4": "RR"}


@dataclass(frozen=True)
class Observed:
    """One observation: its identifier in the survey, the object, the S/N drawn and its exposures (one an arm)."""

    object_id: str
    index: int
    target: Object
    sn: float
    exposures: list[Exposure]


def object_id(survey: str, seed: int, index: int, target: Object) -> str:
    """The identifier as the survey's reader gives it.

    SDSS: plate, MJD and fibre; DESI: TARGETID; APOGEE: 2MASS name from the position; GALAH: the 15 digits of sobject_id.
    """
    if survey == "sdss":
        plate, mjd, fiber = _plate(seed, index)
        return f"{plate:04d}{mjd}{fiber:04d}"
    if survey == "desi":
        return str(39_627_000_000_000_000 + seed % 1000 * 1_000_000_000 + index)
    if survey == "apogee":
        return _twomass(target.ra, target.dec)
    return f"{14 + seed % 80:02d}0101{index // 392 + 1:04d}01{index % 392 + 1:03d}"


def _plate(seed: int, index: int) -> tuple[int, int, int]:
    return 4000 + index // 1000, 55000 + seed % 4000, index % 1000 + 1


def _twomass(ra: float, dec: float) -> str:
    seconds, arc = int(ra / 15 * 3600 * 100), int(abs(dec) * 3600 * 10)
    h, m, s = seconds // 360000, seconds // 6000 % 60, seconds % 6000
    d, dm, ds = arc // 36000, arc // 600 % 60, arc % 600
    return f"2M{h:02d}{m:02d}{s:04d}{'-' if dec < 0 else '+'}{d:02d}{dm:02d}{ds:03d}"


def _primary(cards: dict[str, Any], data: np.ndarray | None = None) -> HDU:
    return HDU(data, cards={"SIMULATE": True, **cards})


def write_sdss(folder: Path, seed: int, seen: Observed) -> None:
    """spec-PLATE-MJD-FIBER.fits: COADD (flux, loglam, ivar, and_mask, or_mask, model) and the specObj row.

    Datamodel: data.sdss.org/datamodel, spec. Dead pixels have ivar 0 and FULLREJECT; sky lines BRIGHTSKY and a large error.
    """
    (e,) = seen.exposures
    plate, mjd, fiber = _plate(seed, seen.index)
    mask = np.where(e.dead, SDSS_FULLREJECT, 0) | np.where(e.skyline, SDSS_BRIGHTSKY, 0)
    coadd = table("COADD", {
        "flux": e.flux.astype("f4"), "loglam": (1e-4 * (35500 + e.first + np.arange(len(e.flux)))).astype("f4"),
        "ivar": np.where(e.dead, 0, e.sigma**-2).astype("f4"), "and_mask": mask.astype("i4"), "or_mask": mask.astype("i4"),
    })  # fmt: skip
    t = seen.target
    row = table("SPECOBJ", {
        "SPECOBJID": [f"{seen.object_id:>22}"], "PLATE": np.array([plate], "i4"), "MJD": np.array([mjd], "i4"),
        "FIBERID": np.array([fiber], "i4"), "PLUG_RA": [t.ra], "PLUG_DEC": [t.dec], "CLASS": [f"{t.kind:<6}"],
        "SUBCLASS": [" " * 6], "Z": np.array([t.z], "f4"), "Z_ERR": np.array([1e-4], "f4"), "ZWARNING": np.array([0], "i4"),
        "SN_MEDIAN_ALL": np.array([seen.sn], "f4"),
    })  # fmt: skip
    cards = {"PLATEID": plate, "MJD": mjd, "FIBERID": fiber, "PLUG_RA": t.ra, "PLUG_DEC": t.dec,
             "COEFF0": 3.55 + 1e-4 * e.first, "COEFF1": 1e-4, "BUNIT": "1E-17 erg/cm^2/s/Ang"}  # fmt: skip
    write(folder / f"spec-{plate:04d}-{mjd}-{fiber:04d}.fits", [_primary(cards), coadd, row])


def write_desi(folder: Path, number: int, seen: list[Observed]) -> None:
    """coadd-sim-NUMBER.fits (FIBERMAP; {B,R,Z}_WAVELENGTH, _FLUX, _IVAR, _MASK) and redrock-sim-NUMBER.fits (REDSHIFTS).

    Datamodel: desidatamodel, coadd and redrock. The redshifts and classes in the latter are the true ones.
    """
    n = len(seen)
    ids = np.array([int(s.object_id) for s in seen], "i8")
    fibermap = table("FIBERMAP", {
        "TARGETID": ids, "TARGET_RA": [s.target.ra for s in seen], "TARGET_DEC": [s.target.dec for s in seen],
        "FIBER": np.arange(n, dtype="i4"), "OBJTYPE": ["TGT"] * n, "COADD_FIBERSTATUS": np.zeros(n, "i4"),
        "EBV": np.array([s.target.ebv for s in seen], "f4"),
    })  # fmt: skip
    hdus = [_primary({"SURVEY": "main", "PROGRAM": "dark"}), fibermap]
    for k, arm in enumerate(seen[0].exposures):
        name, exposures = arm.name, [s.exposures[k] for s in seen]
        ivar = np.array([np.where(e.dead, 0, e.sigma**-2) for e in exposures], "f4")
        mask = np.array([np.where(e.dead, DESI_ALLBADPIX, 0) for e in exposures], "i4")
        flux = HDU(np.array([e.flux for e in exposures], "f4"), f"{name}_FLUX", {"BUNIT": "10**-17 erg/(s cm2 Angstrom)"})
        hdus += [HDU(arm.wavelength, f"{name}_WAVELENGTH"), flux, HDU(ivar, f"{name}_IVAR"), HDU(mask, f"{name}_MASK")]
    write(folder / f"coadd-sim-{number}.fits", hdus)
    redshifts = table("REDSHIFTS", {
        "TARGETID": ids, "Z": [s.target.z for s in seen], "ZERR": np.full(n, 1e-4), "ZWARN": np.zeros(n, "i8"),
        "SPECTYPE": [f"{s.target.kind:<6}" for s in seen], "SUBTYPE": [" " * 20] * n, "DELTACHI2": np.full(n, 1e3),
    })  # fmt: skip
    write(folder / f"redrock-sim-{number}.fits", [_primary({}), redshifts, fibermap])


def write_apogee(folder: Path, seen: Observed) -> None:
    """apStar-sim-ID.fits: flux, error and mask (8575,) of one visit, at rest; between the chips error 1e10.

    Datamodel: data.sdss.org/datamodel, apStar.
    """
    flux, error = np.zeros(APOGEE_PIXELS, "f4"), np.full(APOGEE_PIXELS, 1e10, "f4")
    mask = np.full(APOGEE_PIXELS, APOGEE_OFF_CHIP, "i2")
    for e in seen.exposures:
        span = slice(*CHIPS[e.name])
        flux[span] = np.where(e.dead, 0, e.flux)
        error[span] = np.where(e.dead, 1e10, e.sigma)
        mask[span] = np.where(e.dead, APOGEE_BADPIX, 0) | np.where(e.skyline, APOGEE_SKYLINE, 0)
    t = seen.target
    grid: dict[str, str | float] = {"CRVAL1": APOGEE_START, "CDELT1": APOGEE_STEP, "CRPIX1": 1, "CTYPE1": "LOG-LINEAR",
                                    "DC-FLAG": 1}  # fmt: skip
    cards = {"OBJID": seen.object_id, "TELESCOP": "apo25m", "SURVEY": "apogee", "RA": t.ra, "DEC": t.dec, "NVISITS": 1,
             "VRAD": 0.0, "VHELIO": t.z * LIGHT, "SNR": seen.sn, "STARFLAG": 0, "ANDFLAG": 0}  # fmt: skip
    units = ("Flux (10^-17 erg/s/cm^2/Ang)", "Error (10^-17 erg/s/cm^2/Ang)", "Flag")
    images = [HDU(a, cards={**grid, "BUNIT": u}) for a, u in zip((flux, error, mask), units, strict=True)]
    write(folder / f"apStar-sim-{seen.object_id}.fits", [_primary(cards), *images])


def write_galah(folder: Path, seen: Observed) -> None:
    """SOBJECT_ID+CCD.fits, four files: counts, relative error, the same two without sky subtraction, and the normalised
    spectrum at rest, as in DR3. Dead pixels are NaN in both flux and error."""
    star = seen.target
    assert isinstance(star, Star)
    for e in seen.exposures:
        start, step = HERMES[e.name]
        wcs: dict[str, str | float] = {"CTYPE1": "LINEAR", "CUNIT1": "Angstroms", "CRPIX1": 1.0, "CRVAL1": start, "CDELT1": step}
        cards = {"OBJECT": seen.object_id, "SPECTID": HERMES_NAMES[e.name], "MEANRA": star.ra, "MEANDEC": star.dec,
                 "RA_ICRS": star.ra, "DEC_ICRS": star.dec, "RV": star.velocity, **wcs}  # fmt: skip
        flux = np.where(e.dead, np.nan, e.flux)
        relative = e.sigma / flux
        rest = {**wcs, "CRVAL1": start / (1 + star.z), "CDELT1": step / (1 + star.z)}
        sky = e.skyline * 3.0 * np.median(e.expected)
        images = [
            ("input_sigma", relative, wcs), ("no_sky_subspectrum", flux + sky, wcs),
            ("no_sky_sigma", e.sigma / (flux + sky), wcs),
            ("normalised spectra", flux / (e.response * star.continuum(e.wavelength)), rest),
        ]  # fmt: skip
        hdus = [HDU(data.astype("f4"), name, grid) for name, data, grid in images]
        write(folder / f"{seen.object_id}{e.name}.fits", [_primary(cards, flux.astype("f4")), *hdus])


def label_row(seen: Observed) -> dict[str, str]:
    """One row of labels.csv; empty cells where a label doesn't apply."""
    labels = seen.target.labels
    digits = {"teff": 2, "logg": 4, "fe_h": 4, "z": 6}
    row = {k: f"{labels[k]:.{d}f}" if k in labels else "" for k, d in digits.items()}
    t = seen.target
    place = {"ra": f"{t.ra:.7f}", "dec": f"{t.dec:.7f}", "sn": f"{seen.sn:.2f}"}
    return {"object_id": seen.object_id, "class": t.kind, **row, **place}
