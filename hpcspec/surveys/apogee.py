"""APOGEE near-infrared spectra, one star a file: `apStar`/`asStar`, `aspcapStar` and `apVisit`.

- apStar, asStar: HDU 1 flux (1e-17 erg/s/cm²/Å), HDU 2 error, HDU 3 mask, each (2 + visits, 8575) with the combined
  spectrum in row 0 and the visits from row 2 on, or (8575,) for one visit; rest frame. Visit n is described by the header
  cards SFILEn (its apVisit file, which names plate, MJD and fibre), JDn, VHELIOn, BCn, SNRVISn, FLAGn.
- aspcapStar: HDU 1 flux over continuum, HDU 2 error, HDU 3 best model, (8575,), no mask; HDU 4 the star's row.
- apVisit: HDU 1 flux, HDU 2 error, HDU 3 mask, HDU 4 wavelength, each (3, 4096) or (3, 2048), red chip first and
  wavelengths falling; one visit, not corrected for any velocity.

Wavelengths are vacuum Å, for the first two 10**(CRVAL1 + CDELT1·i). An arm is a chip: "blue", "green", "red".
Datamodel: https://data.sdss.org/datamodel/files/APOGEE_REDUX/APRED_VERS/stars/TELESCOPE/FIELD/apStar.html

Mask: APOGEE_PIXMASK (https://www.sdss4.org/dr17/irspec/apogee-bitmasks/). BAD_PIXEL holds the bits its pipeline itself
counts as bad. Bits 8 to 13 (Littrow ghost, persistence, sky line, telluric) are warnings, and kept.
A flux of exactly 0 (apStar's and aspcapStar's way to write "no data") is bad too.

Labels come from an `allStar-*.fits` or `allStarLite-*.fits` in the input folder, joined by APOGEE_ID; of a star's several
rows that of the spectrum's telescope and field counts. Releases without TEFF, LOGG and [M/H] columns have them in PARAM.
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
    table_row,
)
from hpcspec.surveys.catalogue import NO_VALUE, Join, look_up, parted, split
from hpcspec.surveys.grids import Grid, table_grid
from hpcspec.surveys.observation import Arm, BadObject, Observation, make_arm, trimmed

LABELS = frozenset({"teff", "teff_err", "logg", "logg_err", "fe_h", "fe_h_err", "m_h", "m_h_err", "alpha_m", "alpha_m_err"})
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
VISIT_META = {"vhelio": "VHELIO", "bc": "BC", "snr": "SNRVIS", "starflag": "FLAG", "fiberid": "FIBER"}
VISIT_FILE = re.compile(r"-(?P<plate>[^-]+)-(?P<mjd>\d{5})-(?P<fiber>\d+)\.fits")
VISIT_CARDS = {"plate": "PLATE", "mjd": "MJD5", "fiber": "FIBERID"}
JD_OF_MJD = 2400000.5
CATALOGUE = Join(
    re.compile(r"^allStar(Lite)?[-_.].*fits?", re.IGNORECASE),
    "APOGEE_ID",
    {
        "teff": ("TEFF",), "teff_err": ("TEFF_ERR",), "logg": ("LOGG",), "logg_err": ("LOGG_ERR",),
        "fe_h": ("FE_H",), "fe_h_err": ("FE_H_ERR",),
        "m_h": ("M_H", "PARAM_M_H", "METALS"), "m_h_err": ("M_H_ERR", "PARAM_M_H_ERR", "METALS_ERR"),
        "alpha_m": ("ALPHA_M", "PARAM_ALPHA_M", "ALPHAFE"), "alpha_m_err": ("ALPHA_M_ERR", "PARAM_ALPHA_M_ERR", "ALPHAFE_ERR"),
        "snr": ("SNR",), "starflag": ("STARFLAG",), "aspcapflag": ("ASPCAPFLAG",), "extratarg": ("EXTRATARG",),
        "vhelio": ("VHELIO_AVG",), "gaia_id": ("GAIAEDR3_SOURCE_ID", "GAIA_SOURCE_ID", "GAIADR2_SOURCE_ID"),
    },
    prefer=("SNR",),
)  # fmt: skip
PARAM = {"teff": 0, "logg": 1, "m_h": 3, "alpha_m": 6}  # positions in PARAM, the same in every release


def discover(folder: Path) -> list[Source]:
    """One source per FITS file below `folder` that is no catalogue. Raises UserError if there is none."""
    paths, catalogues = parted(folder, CATALOGUE)
    return [Source(str(path.relative_to(folder)), (path, *catalogues)) for path in paths]


def read(source: Source) -> Iterator[Observation | Quarantined]:
    """The one star of a file, an arm for each chip that has a good pixel; with `source.epochs` each of its visits."""
    (path,), catalogues = split(source, CATALOGUE)
    name = ID_IN_NAME.search(path.name)
    object_id = name[1] if name else ""
    yield from each_guarded(path, object_id, lambda: _parts(path, object_id, source.epochs, catalogues))


def _parts(path: Path, name: str, epochs: bool, catalogues: tuple[Path, ...]) -> Iterator[tuple[str, Callable[[], Observation]]]:
    """The combined spectrum, or each visit: identifier and what makes it."""
    hdus = open_fits(path)
    header = hdus[0].header
    if len(hdus) < 4 or any(not hdu.is_image or hdu.data is None for hdu in hdus[1:4]):
        raise BadObject("not an APOGEE spectrum: HDUs 1 to 3 are not images of flux, error and mask")
    row = {}
    if len(hdus) > 4 and isinstance(hdus[4], fits.BinTableHDU) and len(hdus[4].data):
        row = table_row(hdus[4].data, 0, {"APOGEE_ID", "RA", "DEC", *ROW_META.values()})
    object_id = str(plain(header.get("OBJID") or row.get("APOGEE_ID") or name))
    combined = partial(_spectrum, hdus, object_id, row, catalogues)
    visits = _visits(hdus, path) if epochs else []
    if not visits:
        yield object_id, combined
    for image, epoch, meta in visits:
        yield f"{object_id}@{epoch}", partial(_epoch, combined, image, epoch, meta)


def _epoch(combined: Callable[[int], Observation], image: int, epoch: str, meta: dict[str, str | int | float]) -> Observation:
    return epoch_of(combined(image), epoch, **meta)


def _visits(hdus: fits.HDUList, path: Path) -> list[tuple[int, str, dict[str, str | int | float]]]:
    """For each visit its row of the images, its name MJD-plate-fibre and what the header says of it."""
    header = hdus[0].header
    if "CRVAL1" not in hdus[1].header and "CRVAL1" not in header:  # apVisit
        named = VISIT_FILE.search(path.name)
        if not named and any(card not in header for card in VISIT_CARDS.values()):
            return []
        parts = {ours: header.get(card, named and named[ours]) for ours, card in VISIT_CARDS.items()}
        return [(0, "{mjd}-{plate}-{fiber:>03}".format(**parts), {})]
    if hdus[3].data.dtype.kind == "f":  # aspcapStar
        return []
    rows = len(np.atleast_2d(hdus[1].data))
    visits = []
    for n, image in enumerate(range(2, rows) if rows > 1 else [0], 1):
        meta = {ours: plain(header[f"{card}{n}"]) for ours, card in VISIT_META.items() if f"{card}{n}" in header}
        if f"JD{n}" in header:
            meta["mjd"] = float(header[f"JD{n}"]) - JD_OF_MJD
        named = VISIT_FILE.search(str(header.get(f"SFILE{n}", "")))
        if named:
            meta["plate"] = named["plate"]
        visits.append((image, "-".join(named.group("mjd", "plate", "fiber")) if named else f"visit{n}", meta))
    return visits


def _spectrum(
    hdus: fits.HDUList, object_id: str, row: Mapping[str, Any], catalogues: tuple[Path, ...], image: int = 0
) -> Observation:
    """The spectrum in one row of the images."""
    header = hdus[0].header
    with about(object_id):
        if "CRVAL1" in hdus[1].header or "CRVAL1" in header:
            whole, product = _on_common_grid(hdus, image)
            arms = [Arm(chip, whole.grid, cut.start, whole.flux[cut], whole.ivar[cut]) for chip, cut in CHIPS.items()]
        else:
            arms, product = _visit(hdus), "apVisit"
        ra, dec = position({**row, **{card: header[card] for card in ("RA", "DEC") if card in header}}, ("RA", "DEC"))
    meta = pick(row, ROW_META) | pick(header, META) | {"product": product}
    return Observation(
        object_id,
        "apogee",
        ra,
        dec,
        tuple(arm for arm in map(trimmed, arms) if arm is not None),
        "relative" if product == "aspcapStar" else FLAM,
        "observed" if product == "apVisit" else "rest",
        _labels(catalogues, object_id, meta) | meta,
    )


def _labels(catalogues: tuple[Path, ...], object_id: str, meta: Mapping[str, Any]) -> dict[str, Any]:
    """What allStar says of the star, of several rows that of this telescope and field."""
    columns = {"TELESCOPE": "telescope", "FIELD": "field", "LOCATION_ID": "location_id"}
    alike = {theirs: meta[ours] for theirs, ours in columns.items() if ours in meta}
    found = look_up(catalogues, CATALOGUE, object_id, alike, ("PARAM", "PARAM_COV"))
    values, covariance = found.pop("PARAM", np.empty(0)), found.pop("PARAM_COV", np.empty(0))
    n = len(values)
    variances = np.diag(covariance.reshape(n, n)) if n and covariance.size == n * n else np.zeros(n)
    for name, i in PARAM.items():
        if name not in found and i < n and values[i] > NO_VALUE:
            found[name] = float(values[i])
            if variances[i] > 0:
                found[f"{name}_err"] = float(np.sqrt(variances[i]))
    return found


def _on_common_grid(hdus: fits.HDUList, image: int) -> tuple[Arm, str]:
    """A whole spectrum (8575,), that in one row of the images, as one arm, and which product it is."""
    header = hdus[1].header if "CRVAL1" in hdus[1].header else hdus[0].header
    start, step = float(header["CRVAL1"]), float(header.get("CDELT1", 0))
    if not (4.1 < start < 4.3 and 0 < step < 1e-4):
        raise BadObject(f"not an APOGEE spectrum: CRVAL1={start}, CDELT1={step} is not its grid in log10 wavelength")
    flux, error, mask = (np.atleast_2d(hdu.data)[image] for hdu in hdus[1:4])
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
