"""Objects of the Multimodal Universe (The Multimodal Universe Collaboration 2024, arXiv 2412.02527): what the columns of its
tables mean for each survey, whatever files hold them (`multimodal_hdf5`, `hats`).

A row is one object: `spectrum_lambda` (Å), `_flux`, `_ivar` and, but for GALAH, `_mask` (True = bad) or `_bitmask`, all
padded at the end to the longest of the file with λ = -1; `object_id`, `ra`, `dec`, and columns of the survey's catalogue.
An ivar of inf is an error of 0, and not used. Column names are compared without regard to case. Labels go into meta under
the names the surveys' own readers use. Builders: https://github.com/MultimodalUniverse/MultimodalUniverse/tree/main/scripts

- SDSS: the coadd on multiples of 1e-4 in log10; the mask is any bit of and_mask, or ivar <= 1e-6. Science targets, no sky.
- DESI: the three arms coadded to one, 3600 to 9824 Å every 0.8 Å; early files have no mask, and the two ends for λ.
- APOGEE: apStar at rest, cropped to the detectors; the mask is any bit, warnings too, the bitmask is APOGEE_PIXMASK.
- GALAH: the four CCDs one after another, in *air*, and two pixels too far: the builder takes CRVAL1 + (i + 1 + CRPIX1)·CDELT1
  where FITS has i + 1 - CRPIX1, and CRPIX1 is 1 in DR3's files. Both are put right here. Counts, whatever their loader says.
- Gaia: `coeff`, `coeff_error` (110,), the BP then the RP coefficients of XP continuous spectra; gaia_source's columns.

ZWARN and ZWARNING are the survey's bits in HDF5 (a value other than 0 warns) and a boolean in HATS (True warns).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpcspec.surveys import apogee, desi, gaia, galah, sdss
from hpcspec.surveys.base import FAULTS, FLAM, Quarantined, about, guarded, plain, position, reason_of
from hpcspec.surveys.catalogue import NO_VALUE
from hpcspec.surveys.grids import Grid, linear_grid, log_grid
from hpcspec.surveys.observation import Arm, BadObject, Observation, make_arm, trimmed
from hpcspec.surveys.xp import BASES

Row = Mapping[str, Any]  # cells by the column's name in upper case

UNREADABLE = (*FAULTS, RuntimeError)  # h5py and pyarrow raise RuntimeError and NotImplementedError too
BYTES_AS_TEXT = re.compile(r"""^b(['"])(.*)\1$""")  # str() of bytes, in object_id of HATS

FLUX = ("SPECTRUM_FLUX", "SPECTRUM_IVAR")
PIXELS = {*FLUX, "SPECTRUM_LAMBDA", "SPECTRUM_MASK", "SPECTRUM_BITMASK", "SPECTRUM_LAMBDA_MIN", "SPECTRUM_LAMBDA_MAX"}
CCDS = {ccd: f"SPECTRUM_{ccd}_IND_START" for ccd in "BGRI"}
GALAH_SHIFT = 2  # pixels, 2·CRPIX1
APOGEE_START, APOGEE_STEP, APOGEE_LENGTH = 4.179, 6e-6, 8575
COEFFICIENTS = {
    "COEFF": ("BP_COEFFICIENTS", "RP_COEFFICIENTS"),
    "COEFF_ERROR": ("BP_COEFFICIENT_ERRORS", "RP_COEFFICIENT_ERRORS"),
}

# Our name in meta to theirs, of which the first that a row has counts.
SDSS_META = {ours: (theirs,) for ours, theirs in sdss.META.items()}
DESI_META = {ours: (theirs,) for ours, theirs in (desi.FIBERMAP_META | desi.REDSHIFT_META).items()}
DESI_META |= {"survey": ("SURVEY",), "program": ("PROGRAM",)}
APOGEE_META = {**apogee.CATALOGUE.columns, **{name.lower(): (name,) for name in ("TELESCOPE", "FIELD", "NVISITS")}}
GALAH_META = {name: theirs for name, theirs in galah.CATALOGUE.columns.items() if name not in ("ra", "dec")}
GALAH_META |= {"rv": ("RV",), "rv_err": ("E_RV",), "vmic": ("VMIC",), "vbroad": ("VBROAD",), "ebv": ("EBV",)}


@dataclass(frozen=True)
class Layout:
    """One survey's tables: how a row is built into observations, the columns of its identifier, best first, those of meta,
    the others that are read, groups of columns of which a file must have at least one each, and which of meta are labels."""

    build: Callable[[Path, Row], Iterator[Observation | Quarantined]]
    identifiers: tuple[str, ...]
    meta: Mapping[str, tuple[str, ...]]
    others: frozenset[str]
    needed: tuple[frozenset[str], ...]
    labels: frozenset[str]

    @property
    def columns(self) -> frozenset[str]:
        """All columns that are read."""
        return self.others.union(self.identifiers, ("RA", "DEC"), *self.meta.values())

    def labels_of(self, columns: set[str]) -> frozenset[str]:
        """The names in meta that can serve as labels in a file with these columns (upper case)."""
        return frozenset(name for name in self.labels if columns.intersection(self.meta.get(name, (name.upper(),))))


def missing(survey: str, columns: set[str]) -> str:
    """Why a file with these columns (upper case) is not this survey's; "" if it is."""
    for group in LAYOUTS[survey].needed:
        if not group & columns:
            return f"not a {survey} table of the Multimodal Universe: no column {' or '.join(sorted(group)).lower()}"
    return ""


def observed(survey: str, path: Path, row: Row) -> Observation | Quarantined:
    """The object of one row, checked, or a quarantined row with the reason."""
    try:
        (one,) = LAYOUTS[survey].build(path, row)
    except UNREADABLE as error:
        return lost(survey, path, row, reason_of(error))
    return one


def lost(survey: str, path: Path, row: Row, reason: str) -> Quarantined:
    """The quarantined row of an object of whose row only the columns in `row`, if any, could be read."""
    try:
        return Quarantined(str(path), _object_id(survey, row), reason)
    except BadObject:
        return Quarantined(str(path), "", reason)


def _object_id(survey: str, row: Row) -> str:
    """The survey's identifier, else the Multimodal Universe's copy of it, as text.

    Raises BadObject if there is none, or only as a floating-point number, which rounds it.
    """
    names, as_float = LAYOUTS[survey].identifiers, ""
    for name in names:
        value = row.get(name)
        if isinstance(value, float | np.floating):
            as_float = f"; {name.lower()} is a floating-point number"
        elif isinstance(value, str | bytes | int | np.integer):
            text = str(plain(value))
            quoted = BYTES_AS_TEXT.match(text)
            text = quoted[2].strip() if quoted else text
            if text and text != "0":
                return text
    raise BadObject(f"no object identifier: looked for {', '.join(names).lower()}{as_float}")


def _vector(row: Row, name: str, cut: slice = slice(None)) -> np.ndarray:
    """A cell (n,), cut; a trailing axis of 1 is dropped. Raises BadObject if it isn't a vector of numbers."""
    vector = np.asarray(row[name])
    vector = vector[:, 0] if vector.ndim == 2 and vector.shape[1] == 1 else vector
    if vector.dtype == object:
        vector = vector.astype(np.float64)
    if vector.ndim != 1 or vector.dtype.kind not in "biuf":
        raise BadObject(f"{name.lower()} is not a vector of numbers: {vector.dtype} {vector.shape}")
    return vector[cut]


def _pixels(row: Row, cut: slice = slice(None), bits: int = -1) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Wavelength as stored (float64), flux, ivar and "is bad", (n,) each, of the pixels in `cut` that aren't padding.
    `bits` are those of a bitmask that make a pixel bad.

    Raises BadObject if nothing is left, or lengths differ.
    """
    flux, ivar = (_vector(row, name, cut) for name in FLUX)
    if "SPECTRUM_LAMBDA" in row:
        wavelength = _vector(row, "SPECTRUM_LAMBDA", cut).astype(np.float64)
    else:
        wavelength = np.linspace(float(row["SPECTRUM_LAMBDA_MIN"]), float(row["SPECTRUM_LAMBDA_MAX"]), len(flux))
    bad = np.zeros(flux.shape, bool)
    if "SPECTRUM_BITMASK" in row:
        bad = (_vector(row, "SPECTRUM_BITMASK", cut).astype(np.int64) & bits) != 0
    elif "SPECTRUM_MASK" in row:
        bad = _vector(row, "SPECTRUM_MASK", cut) != 0
    if not wavelength.shape == flux.shape == ivar.shape == bad.shape:
        lengths = f"wavelength {wavelength.shape}, flux {flux.shape}, ivar {ivar.shape} and mask {bad.shape}"
        raise BadObject(f"{lengths} differ in length")
    use = np.isfinite(wavelength) & (wavelength > 0)
    if not use.any():
        raise BadObject("no pixel has a wavelength")
    return wavelength[use], flux[use], ivar[use], bad[use]


def _meta(survey: str, row: Row) -> dict[str, str | int | float]:
    """Those cells of the row that go into meta, without numbers that say there is none: NaN, and -9999."""
    there = {ours: next((row[name] for name in names if name in row and np.ndim(row[name]) == 0), None)
             for ours, names in LAYOUTS[survey].meta.items()}  # fmt: skip
    found = {ours: plain(value) for ours, value in there.items() if value is not None}
    return {ours: value for ours, value in found.items() if not isinstance(value, float) or value > NO_VALUE}


def _sdss(row: Row) -> Observation:
    object_id = _object_id("sdss", row)
    with about(object_id):
        wavelength, flux, ivar, bad = _pixels(row)
        arm = make_arm("coadd", *log_grid(np.log10(wavelength)), flux, ivar, bad)
        ra, dec = position(row, ("RA", "DEC"), *sdss.ROW_POSITION)
    return Observation(object_id, "sdss", ra, dec, (arm,), FLAM, meta=_meta("sdss", row) | {"sky": 0})


def _desi(row: Row) -> Observation:
    object_id = _object_id("desi", row)
    meta = _meta("desi", row)
    if meta.get("objtype") == "SKY":
        raise BadObject("sky fibre", object_id)
    with about(object_id):
        wavelength, flux, ivar, bad = _pixels(row)
        arm = make_arm("BRZ", *linear_grid(wavelength, 3600.0, 0.8, 2e-3), flux, ivar, bad)
        ra, dec = position(row, ("RA", "DEC"), *desi.POSITION)
    return Observation(object_id, "desi", ra, dec, (arm,), FLAM, meta=meta)


def _apogee(row: Row) -> Observation:
    object_id = _object_id("apogee", row)
    with about(object_id):
        wavelength, flux, ivar, bad = _pixels(row, bits=apogee.BAD_PIXEL)
        place = (np.log10(wavelength) - APOGEE_START) / APOGEE_STEP
        pixel = np.rint(place).astype(np.int64)
        if np.abs(place - pixel).max() > 0.25 or pixel.min() < 0 or pixel.max() >= APOGEE_LENGTH or np.any(np.diff(pixel) < 1):
            raise BadObject("not an APOGEE spectrum: the wavelengths are not pixels of its grid")
        bad = bad | (flux == 0) | ~(ivar > apogee.NO_DATA_ERROR**-2)
        cropped = make_arm("all", Grid("log10", APOGEE_START, APOGEE_STEP), 0, flux, ivar, bad)
        whole = np.zeros((2, APOGEE_LENGTH), np.float32)
        whole[:, pixel] = cropped.flux, cropped.ivar
        arms = (Arm(chip, cropped.grid, cut.start, whole[0, cut], whole[1, cut]) for chip, cut in apogee.CHIPS.items())
        good = tuple(arm for arm in map(trimmed, arms) if arm is not None)
        ra, dec = position(row, ("RA", "DEC"))
    return Observation(object_id, "apogee", ra, dec, good, FLAM, "rest", _meta("apogee", row) | {"product": "apStar"})


def _galah(row: Row) -> Observation:
    object_id = _object_id("galah", row)
    with about(object_id):
        starts = [int(row[name]) for name in CCDS.values()]
        ends = [*starts[1:], len(_vector(row, "SPECTRUM_FLUX"))]
        if starts[0] < 0 or any(end - start < 2 for start, end in zip(starts, ends, strict=True)):
            raise BadObject(f"the CCDs start at pixels {starts} of {ends[-1]}")
        arms = []
        for ccd, start, end in zip(CCDS, starts, ends, strict=True):
            wavelength, flux, ivar, bad = _pixels(row, slice(start, end))
            arms.append(make_arm(ccd, _air_grid(ccd, wavelength), 0, flux, ivar, bad))
        ra, dec = position(row, ("RA", "DEC"))
    good = tuple(arm for arm in arms if np.any(arm.ivar > 0))
    meta = _meta("galah", row) | {"position": "object", "arms": "".join(arm.name for arm in good)}
    return Observation(object_id, "galah", ra, dec, good, "counts", meta=meta)


def _air_grid(ccd: str, wavelength: np.ndarray) -> Grid:
    """The even grid that wavelengths (n,) in air, in single precision, were written from, moved to where it belongs.

    Raises BadObject if they aren't evenly spaced.
    """
    pixel = np.arange(len(wavelength))
    step, start = np.polyfit(pixel, wavelength, 1) if len(wavelength) > 1 else (0.0, 0.0)
    if step <= 0 or np.abs(start + step * pixel - wavelength).max() > 2e-3:
        raise BadObject(f"arm {ccd}: wavelengths are not evenly spaced")
    return Grid("linear_air", round(float(start - GALAH_SHIFT * step), 4), round(float(step), 9))


def _gaia(path: Path, row: Row) -> Iterator[Observation | Quarantined]:
    """The row as the archive would write it, read by Gaia's own reader."""
    try:
        cells = {name.lower(): cell for name, cell in row.items() if name not in COEFFICIENTS and name != "OBJECT_ID"}
        cells["source_id"] = _object_id("gaia", row)
        with about(cells["source_id"]):
            for both, bands in COEFFICIENTS.items():
                if both in row:
                    vector = _vector(row, both)
                    if len(vector) != 2 * BASES:
                        raise BadObject(f"{both.lower()}: {len(vector)} values where {2 * BASES} belong")
                    cells |= zip(map(str.lower, bands), (vector[:BASES], vector[BASES:]), strict=True)
    except BadObject as bad:
        yield Quarantined(str(path), bad.object_id, bad.reason)
        return
    yield from gaia.objects(path, [cells], [])


def _one(build: Callable[[Row], Observation]) -> Callable[[Path, Row], Iterator[Observation | Quarantined]]:
    return lambda path, row: guarded(path, "", lambda: build(row))


def _groups(*groups: Iterable[str]) -> tuple[frozenset[str], ...]:
    return tuple(map(frozenset, groups))


_SPECTRUM = ({FLUX[0]}, {FLUX[1]}, {"SPECTRUM_LAMBDA"})
_XP = {name for both, bands in COEFFICIENTS.items() for name in (both, *bands)}
_GAIA = {name.upper() for name in gaia.WANTED} | _XP | {"BP_COEFFICIENT_CORRELATIONS", "RP_COEFFICIENT_CORRELATIONS"}

LAYOUTS = {
    "sdss": Layout(_one(_sdss), ("SPECOBJID", "OBJECT_ID"), SDSS_META, frozenset(PIXELS.union(*sdss.ROW_POSITION)),
                   _groups(*_SPECTRUM, {"ZWARNING"}), sdss.LABELS),
    "desi": Layout(_one(_desi), ("TARGETID", "OBJECT_ID"), DESI_META, frozenset(PIXELS.union(*desi.POSITION)),
                   _groups(*_SPECTRUM[:2], {"SPECTRUM_LAMBDA", "SPECTRUM_LAMBDA_MIN"}, {"ZWARN", "TARGETID"}), desi.LABELS),
    "apogee": Layout(_one(_apogee), ("APOGEE_ID", "OBJECT_ID"), APOGEE_META, frozenset(PIXELS),
                     _groups(*_SPECTRUM, {"APOGEE_ID", "M_H", "ALPHA_M"}), apogee.LABELS),
    "galah": Layout(_one(_galah), ("SOBJECT_ID", "OBJECT_ID"), GALAH_META, frozenset(PIXELS.union(CCDS.values())),
                    _groups(*_SPECTRUM, *({name} for name in CCDS.values())), galah.LABELS | {"vmic", "vbroad"}),
    "gaia": Layout(_gaia, ("SOURCE_ID", "OBJECT_ID"), {}, frozenset(_GAIA), _groups(_XP | {"PHOT_G_MEAN_MAG"}), gaia.LABELS),
}  # fmt: skip
