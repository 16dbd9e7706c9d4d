"""Spectra in any format that specutils identifies by itself: 1-D FITS with a WCS, tables, ECSV, ASDF, JWST, and many more.

Needs `pip install "hpcspec[generic]"`. What is done with a spectrum:

- Wavelengths become Å and rise. They are converted from air if the file says so (CTYPE AWAV, or AIRORVAC or VACUUM cards),
  and taken as they are otherwise; meta["wavelengths"] is "air", "vacuum" or "unknown" accordingly.
- Flux keeps its unit; flux densities, that may overflow single precision in cgs units, become 1e-17 erg/s/cm²/Å or Jy.
- An uncertainty of any kind becomes ivar. If a file gives none at all, one σ per arm is estimated from the scatter of second
  differences between neighbouring pixels (Stoehr et al. 2008, ASP Conf. 394, 505) and meta["error"] is "estimated", not "given".
- The spectra of a file that cover different wavelengths are the arms of one object; others are objects of their own,
  numbered "#1" and on. Rows of a two-dimensional flux are objects, told apart by a table of as many rows if there is one.
- The identifier is the header's or table's, else the file's name; the position is the header's or table's, else NaN, with
  meta["position"] "none". An OBJECT that several files share makes them repeats of one object, of which the first counts.

specutils takes GALAH's relative errors for absolute ones: a survey with a reader of its own here is better read by that.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from astropy import units as u
from astropy.coordinates import SkyCoord

from hpcspec.errors import UserError
from hpcspec.surveys.base import (
    DAMAGE,
    FITS_NAMES,
    FLAM,
    Quarantined,
    Source,
    each_guarded,
    files_below,
    opened,
    pick,
    plain,
    quiet,
    reason_of,
)
from hpcspec.surveys.grids import air_to_vacuum, table_grid
from hpcspec.surveys.observation import Arm, BadObject, Observation, make_arm

if TYPE_CHECKING:
    from specutils import Spectrum

T = TypeVar("T")
LABELS: frozenset[str] = frozenset()
NAMES = re.compile(r"\.(fits?(\.(gz|fz|bz2))?|ecsv|asdf|ascii|txt|dat)$", re.IGNORECASE)
ANY = ("wcs1d-fits", "tabular-fits")  # formats that specutils also recognises in files of more particular ones
SCIENCE = ("reduced", "science", "combined_science")  # what loaders of files with several products call the spectrum
COMMON = (FLAM, "Jy")
IDS = ("TARGETID", "OBJID", "SPEC_ID", "OBSID", "OBJECT", "TARGNAME", "TARGET", "ID")
POSITIONS = (("PLUG_RA", "PLUG_DEC"), ("TARGET_RA", "TARGET_DEC"), ("RA_TARG", "DEC_TARG"), ("RA_OBJ", "DEC_OBJ"),
             ("RAJ2000", "DEJ2000"), ("RA", "DEC"))  # fmt: skip
META = {"telescope": "TELESCOP", "instrument": "INSTRUME", "date_obs": "DATE-OBS", "mjd": "MJD", "exptime": "EXPTIME"}


def discover(folder: Path) -> list[Source]:
    """One source per file below `folder` with a name that may be a spectrum's.

    Raises UserError if there is none, or specutils is not installed.
    """
    _specutils()
    if not os.path.isdir(folder):
        raise UserError(f"input folder {folder} does not exist: give the folder that holds the spectra with --input")
    paths = [p for p in files_below(folder, NAMES) if not p.name.startswith(".")]
    if not paths:
        raise UserError(f"input folder {folder} holds no FITS, ECSV, ASDF or text file: give the spectra's folder with --input")
    return [Source(str(path.relative_to(folder)), (path,)) for path in paths]


def read(source: Source) -> Iterator[Observation | Quarantined]:
    """The objects of one file. Raises UserError if specutils is not installed."""
    _specutils()
    path = source.paths[0]
    yield from each_guarded(path, "", _caught(lambda: _parts(path)))


def _parts(path: Path) -> list[tuple[str, Callable[[], Observation]]]:
    """Each object of a file: its identifier and what makes it."""
    spectra = _load(path)
    bare = all(spectrum.uncertainty is None for spectrum in spectra)
    sets = [spectra] if _are_arms(spectra) else [[spectrum] for spectrum in spectra]
    header = next((dict(s.meta["header"]) for s in spectra if isinstance(s.meta.get("header"), Mapping)), {})
    parts = []
    for number, arms in enumerate(sets, 1):
        several = arms[0].flux.ndim == 2
        for n in range(arms[0].flux.shape[0] if several else 1):
            row = n if several else None
            own = _table_row(arms, row)
            object_id = _object_id({**header, **own}, path)
            object_id += f"#{number}" if len(sets) > 1 else ""
            object_id += f"#{n + 1}" if several and len(arms[0].flux) > 1 and not own else ""
            parts.append((object_id, _caught(partial(_observation, object_id, arms, row, {**header, **own}, bare))))
    return parts


def _caught(build: Callable[[], T]) -> Callable[[], T]:
    """`build`, whose errors are all BadObject: loaders are other people's code and raise anything on a file that is not
    theirs, and units and coordinates raise errors of their own."""

    def built() -> T:
        try:
            return build()
        except BadObject:
            raise
        except Exception as error:
            raise BadObject(reason_of(error)) from error

    return built


def _specutils() -> Any:
    try:
        import specutils
    except ImportError as error:
        raise UserError('--survey generic needs specutils, which is not installed: pip install "hpcspec[generic]"') from error
    return specutils


def _load(path: Path) -> list[Spectrum]:
    """All spectra of a file, by the most particular format that can read it.

    Raises BadObject if there is no such format, or what the last loader that was tried raises.
    """
    specutils = _specutils()
    from specutils.io.registers import identify_spectrum_format

    if path.stat().st_size == 0:
        raise BadObject("empty file")
    if FITS_NAMES.search(path.name):
        with opened(path):  # raises what is wrong with it, before a loader falls over it
            pass
    failed: Exception = BadObject("not a spectrum in any format that specutils identifies")
    with quiet(DAMAGE):
        for kind in (specutils.SpectrumList, specutils.SpectrumCollection):
            found = identify_spectrum_format(str(path), kind)
            for name in sorted([found] if isinstance(found, str) else found, key=ANY.__contains__):
                try:
                    read = kind.read(str(path), format=name)
                    spectra = [read[i] for i in range(len(read))]
                except Exception as error:
                    failed = error
                    continue
                if spectra:
                    return [s for s in spectra if s.meta.get("purpose") in SCIENCE] or spectra
    raise failed


def _are_arms(spectra: Sequence[Spectrum]) -> bool:
    """Whether spectra cover different wavelengths: each pair overlaps by less than half of the shorter."""
    if len({s.flux.shape[:-1] for s in spectra}) != 1:
        return False
    spans = sorted((float(w.min()), float(w.max())) for w in (_angstrom(s) for s in spectra))
    return all(b - c < 0.5 * min(b - a, d - c) for (a, b), (c, d) in zip(spans, spans[1:], strict=False))


def _angstrom(spectrum: Spectrum) -> np.ndarray:
    return u.Quantity(spectrum.spectral_axis).to_value(u.AA, u.spectral())


def _observation(
    object_id: str, spectra: Sequence[Spectrum], row: int | None, known: Mapping[str, Any], bare: bool
) -> Observation:
    medium = _medium(spectra[0], known)
    unit = spectra[0].flux.unit
    unit = next((u.Unit(common) for common in COMMON if unit.is_equivalent(common)), unit)
    arms = [_arm(str(s.meta.get("band", n)), s, row, unit, medium == "air", bare) for n, s in enumerate(spectra, 1)]
    arms = sorted((arm for arm in arms if np.any(arm.ivar > 0)), key=lambda arm: arm.wavelength[0])
    ra, dec = _position(known)
    meta = pick(known, META) | {"wavelengths": medium, "error": "estimated" if bare else "given"}
    if np.isnan(ra):
        meta["position"] = "none"
    text = next((common for common in COMMON if u.Unit(common) == unit), unit.to_string())
    return Observation(object_id, "generic", ra, dec, tuple(arms), text, meta=meta)


def _arm(name: str, spectrum: Spectrum, row: int | None, unit: u.UnitBase, air: bool, bare: bool) -> Arm:
    if spectrum.flux.ndim > 2:
        raise BadObject(f"flux of shape {spectrum.flux.shape} is neither a spectrum nor rows of spectra")
    at = () if row is None else (row,)
    wavelength = _angstrom(spectrum)
    flux = np.asarray(spectrum.flux.to_value(unit)[at], np.float64)
    bad = None if spectrum.mask is None else np.asarray(spectrum.mask)[at].astype(bool)
    if bare:
        sigma = np.full(flux.shape, estimated_error(flux if bad is None else flux[~bad]))
    elif spectrum.uncertainty is None:
        raise BadObject("no uncertainty, though other spectra of the file have one")
    else:
        sigma = _sigma(spectrum, unit)[at]
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        ivar = np.where(sigma > 0, sigma**-2.0, 0.0)
    rising = slice(None, None, 1 if wavelength[0] < wavelength[-1] else -1)
    if air:
        wavelength = air_to_vacuum(wavelength)
    return make_arm(name, table_grid(wavelength[rising]), 0, flux[rising], ivar[rising], None if bad is None else bad[rising])


def _sigma(spectrum: Spectrum, unit: u.UnitBase) -> np.ndarray:
    """The standard deviation in `unit`, of the shape of the flux. Raises BadObject for an uncertainty of unknown kind."""
    from astropy.nddata import StdDevUncertainty

    given = spectrum.uncertainty
    if given.uncertainty_type not in ("std", "var", "ivar"):
        raise BadObject(f"uncertainty of a kind that is not known: {given.uncertainty_type!r}")
    with np.errstate(divide="ignore", invalid="ignore"):
        deviation = given.represent_as(StdDevUncertainty)
    return u.Quantity(deviation.array, deviation.unit or spectrum.flux.unit).to_value(unit)


def estimated_error(flux: np.ndarray) -> float:
    """The noise σ of a flux (n,) from the median of its second differences over two pixels: Stoehr et al. (2008).

    Raises BadObject if fewer than 10 values are finite, or they don't scatter.
    """
    good = flux[np.isfinite(flux)]
    sigma = 1.482602 / np.sqrt(6) * np.median(np.abs(2 * good[2:-2] - good[:-4] - good[4:])) if len(good) >= 10 else 0.0
    if not sigma > 0:
        raise BadObject("no uncertainty in the file, and none can be estimated: the flux has too few values or no scatter")
    return float(sigma)


def _medium(spectrum: Spectrum, known: Mapping[str, Any]) -> str:
    """What the file says its wavelengths are in: "air", "vacuum", or "unknown"."""
    axis = getattr(getattr(spectrum.wcs, "wcs", None), "ctype", None)
    ctype = str(axis[0] if axis is not None and len(axis) else known.get("CTYPE1", "")).upper()
    said = str(known.get("AIRORVAC", "")).strip().lower()
    if ctype.startswith("AWAV") or said == "air" or known.get("VACUUM") in (False, 0):
        return "air"
    if ctype.startswith(("WAVE", "FREQ")) or said.startswith("vac") or known.get("VACUUM") in (True, 1):
        return "vacuum"
    return "unknown"


def _table_row(spectra: Sequence[Spectrum], row: int | None) -> dict[str, Any]:
    """The row of an object in a table that belongs to the spectra, under the names of IDS and POSITIONS."""
    if row is None:
        return {}
    wanted = {*IDS, *sum(POSITIONS, ())}
    for table in (value for spectrum in spectra for value in spectrum.meta.values()):
        names = getattr(table, "colnames", None) or getattr(getattr(table, "dtype", None), "names", None) or ()
        if len(names) and len(table) == spectra[0].flux.shape[0] and set(names) & set(IDS):
            return {name: table[name][row] for name in names if name in wanted}
    return {}


def _object_id(known: Mapping[str, Any], path: Path) -> str:
    for name in IDS:
        value = plain(known.get(name, ""))
        if isinstance(value, int) or (isinstance(value, str) and value):
            return str(value)
    return NAMES.sub("", path.name)


def _position(known: Mapping[str, Any]) -> tuple[float, float]:
    """ICRS degrees from cards in degrees or sexagesimal (hours and degrees); NaN where there are none that can be read."""
    frame = "fk4" if str(known.get("RADESYS", known.get("RADECSYS", ""))).strip().upper() == "FK4" else "icrs"
    for ra, dec in POSITIONS:
        if ra in known and dec in known:
            try:
                text = (str(plain(known[ra])), str(plain(known[dec])))
                hours = re.search(r"\d[\s:h]+\d", text[0]) is not None
                found = SkyCoord(*text, unit=(u.hourangle if hours else u.deg, u.deg), frame=frame).icrs
            except (ValueError, TypeError, u.UnitsError):
                continue
            if np.isfinite(found.ra.deg) and np.isfinite(found.dec.deg):
                return float(found.ra.deg), float(found.dec.deg)
    return float("nan"), float("nan")
