"""GALAH spectra (HERMES): `<sobject_id><ccd>.fits`, one file for each of an object's up to four CCDs.

The primary HDU is the sky-subtracted flux (counts) on a linear grid of *air* wavelengths (CRVAL1, CDELT1, CRPIX1),
barycentric. The error is *relative*: extension "input_sigma" in DR3 (flux, input_sigma, no_sky_subspectrum,
no_sky_sigma, normalised spectra), "relative_error" in the later reduction 6 (flux, normalized, relative_error, sky, …).
So σ = relative error · flux and ivar = 1/σ². A relative error that is not positive where the flux is marks a bad pixel.
Datamodel: https://docs.datacentral.org.au/galah/dr3/galah-dr3-spectra/ ; Kos et al. (2017), MNRAS 464, 1259.

DR3 files don't hold the star's position, only the centre of its 2-degree field; meta says so ("position"). The position and
labels come from a main catalogue in the input folder (DR3's GALAH_DR3_main_*.fits, DR4's galah_dr4_all*.fits), joined by
sobject_id; `flag_sp` is its quality flag, 0 for a good fit.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits

from hpcspec.surveys.base import FAULTS, Quarantined, Source, guarded, open_fits, pick, plain, position, reason_of
from hpcspec.surveys.catalogue import Join, look_up, parted, split
from hpcspec.surveys.grids import Grid
from hpcspec.surveys.observation import Arm, BadObject, Observation, make_arm

LABELS = frozenset({"teff", "teff_err", "logg", "logg_err", "fe_h", "fe_h_err", "alpha_fe", "alpha_fe_err"})
FILE_NAME = re.compile(r"^(\d{15})([1-4])\.fit", re.IGNORECASE)
ARMS = {"1": "B", "2": "G", "3": "R", "4": "I"}
CAMERAS = {"BL": "B", "GN": "G", "RD": "R", "RR": "I"}  # SPECTID
ERRORS = ("INPUT_SIGMA", "RELATIVE_ERROR")
POSITIONS = {"object": (("RA_ICRS", "DEC_ICRS"), ("RA_OBS", "DEC_OBS"), ("RA", "DEC")), "field centre": (("MEANRA", "MEANDEC"),)}
META = {
    "utmjd": "UTMJD", "baryeff": "BARYEFF", "pipe_ver": "PIPE_VER", "gaia_id": "GAIA_ID", "2mass_id": "2MASS_ID",
    "rvcom": "RVCOM", "e_rvcom": "E_RVCOM", "teff_r": "TEFF_R", "logg_r": "LOGG_R", "fe_h_r": "FE_H_R",
}  # fmt: skip
CATALOGUE = Join(
    re.compile(r"^GALAH_(i?DR)\d+_(main_)?\w*all(star|spec)\w*\.fits?|^GALAH_DR3_main_", re.IGNORECASE),
    "SOBJECT_ID",
    {
        "teff": ("TEFF",), "teff_err": ("E_TEFF",), "logg": ("LOGG",), "logg_err": ("E_LOGG",),
        "fe_h": ("FE_H",), "fe_h_err": ("E_FE_H",), "alpha_fe": ("ALPHA_FE",), "alpha_fe_err": ("E_ALPHA_FE",),
        "flag_sp": ("FLAG_SP",), "flag_fe_h": ("FLAG_FE_H",), "red_flag": ("RED_FLAG",),
        "snr": ("SNR_PX_CCD3", "SNR_C3_IRAF"), "rv": ("RV_GALAH", "RV_COMP_1"),
        "gaia_id": ("GAIADR3_SOURCE_ID", "DR3_SOURCE_ID", "GAIA_EDR3_SOURCE_ID", "SOURCE_ID", "DR2_SOURCE_ID"),
        "2mass_id": ("TMASS_ID", "STAR_ID"), "ra": ("RA", "RA_DR2"), "dec": ("DEC", "DEC_DR2"),
    },
)  # fmt: skip


def discover(folder: Path) -> list[Source]:
    """One source per object and folder, with the files of its CCDs; a file of another name, or a second file of the
    same CCD, is a source of its own. Raises UserError if there is no FITS file."""
    paths, catalogues = parted(folder, CATALOGUE)
    groups: dict[str, dict[str, Path]] = {}
    for path in paths:
        relative, name = path.relative_to(folder), FILE_NAME.match(path.name)
        key, ccd = (str(relative.with_name(name[1])), name[2]) if name else (str(relative), "")
        if ccd in groups.get(key, {}):
            key = str(relative)
        groups.setdefault(key, {})[ccd] = path
    return sorted(Source(key, (*(files[ccd] for ccd in sorted(files)), *catalogues)) for key, files in groups.items())


def read(source: Source) -> Iterator[Observation | Quarantined]:
    """The one object of a source, with an arm B, G, R, I for each CCD that has a file with a good pixel.

    A damaged file quarantines the object, and the row names that file.
    """
    paths, catalogues = split(source, CATALOGUE)
    name = FILE_NAME.match(paths[0].name)
    object_id = name[1] if name else ""
    arms, headers = [], []
    for path in paths:
        try:
            arm, header = _arm(path)
        except FAULTS as error:
            yield Quarantined(str(path), object_id, reason_of(error))
            return
        arms.append(arm)
        headers.append(header)
    yield from guarded(paths[0], object_id, lambda: _spectrum(object_id, arms, headers, catalogues))


def _arm(path: Path) -> tuple[Arm, fits.Header]:
    hdus = open_fits(path)
    header, flux = hdus[0].header, hdus[0].data
    error = next((hdu.data for hdu in hdus[1:] if hdu.name.upper() in ERRORS), None)
    if flux is None or flux.ndim != 1 or error is None:
        raise BadObject("not a GALAH spectrum: no 1-D primary flux with an extension input_sigma or relative_error")
    lost = [name for name in ("CRVAL1", "CDELT1") if name not in header]
    if lost:
        raise BadObject(f"no wavelengths: {' and '.join(lost)} missing in the primary header")
    name = FILE_NAME.match(path.name)
    camera = ARMS[name[2]] if name else CAMERAS.get(str(header.get("SPECTID")).strip(), "")
    if not camera:
        raise BadObject("no CCD: neither the file name nor SPECTID tells which")
    start, step = float(header["CRVAL1"]), float(header["CDELT1"])
    if step <= 0:
        raise BadObject(f"no wavelengths: CDELT1 is {step}")
    grid = Grid("linear_air", start + (1 - float(header.get("CRPIX1", 1))) * step, step)
    if np.shape(error) != flux.shape:
        raise BadObject(f"flux {flux.shape} and relative error {np.shape(error)} differ in length")
    sigma = flux.astype(np.float64) * error
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        return make_arm(camera, grid, 0, flux, sigma**-2, (flux > 0) & (error <= 0)), header


def _spectrum(object_id: str, arms: list[Arm], headers: list[fits.Header], catalogues: tuple[Path, ...]) -> Observation:
    header = headers[0]
    written = str(plain(header.get("OBJECT", "")))
    if not object_id and not re.fullmatch(r"\d{15}", written):
        raise BadObject("no object identifier: neither the file name nor OBJECT is a sobject_id of 15 digits")
    object_id = object_id or written
    found = look_up(catalogues, CATALOGUE, object_id)
    listed: dict[str, Any] = {name: found.pop(name) for name in ("ra", "dec") if name in found}
    known = any(name in header for pair in POSITIONS["object"] for name in pair)
    ra, dec = position({**header, **listed}, *POSITIONS["object"], ("ra", "dec"), *POSITIONS["field centre"])
    good = tuple(arm for arm in arms if np.any(arm.ivar > 0))
    where = {"position": "object" if known or len(listed) == 2 else "field centre", "arms": "".join(arm.name for arm in good)}
    return Observation(object_id, "galah", ra, dec, good, "counts", meta=found | pick(header, META) | where)
