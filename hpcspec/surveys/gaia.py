"""Gaia BP/RP (XP) mean spectra as the archive delivers them, and Gaia, 2MASS and WISE measurements of the same sources.

XP_CONTINUOUS (DataLink, and the bulk XpContinuousMeanSpectrum_*.csv.gz): the coefficients are scalars bp_0 … bp_54 and
rp_0 … rp_54 with their errors, in the archive's own normalisation (e-/s; not divided by the G flux, which is at hand as
the scalar phot_g_mean_mag where its table is). Where the correlations are there too, the spectrum sampled from them is
the arm "xp" (xp.py says how and what it needs). XP_SAMPLED: that arm as the archive sampled it. An object that lacks BP or
RP has what it has; bp_n_relevant_bases and all other short columns are in meta.
Datamodel: https://gea.esac.esa.int/archive/documentation/GDR3/Gaia_archive/chap_datamodel/sec_dm_spectroscopic_tables/

SCALARS are taken from the same table or, by source_id, from tables beside it in the folder: gaia_source*, GaiaSource*,
astrophysical_parameters*, *2mass*, *allwise*; of the bulk files that carry a range of HEALPix pixels in their names,
those of the same range. Without any XP file, the rows of gaia_source are the objects.

Positions are ra and dec (ICRS at the catalogue's epoch) or, where no table has them, the centre of the pixel of 51 arcsec
that is part of every source_id; meta says so ("position").
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
from astropy_healpix import HEALPix

from hpcspec.errors import UserError
from hpcspec.surveys import xp
from hpcspec.surveys.base import FAULTS, FLAM, Quarantined, Source, about, files_below, guarded, plain, position, reason_of
from hpcspec.surveys.gaia_tables import TABLES, Row, columns, rows
from hpcspec.surveys.grids import linear_grid
from hpcspec.surveys.observation import Arm, BadObject, Observation, make_arm, trimmed

CHUNK = 256
PIXELS, PIXEL_OF = HEALPix(nside=4096, order="nested"), 1 << 35  # source_id // PIXEL_OF is a pixel of HEALPix level 12
MAGNITUDE = 2.5 / np.log(10)  # error of a magnitude over the flux's relative error
WORDS = 64  # characters of the longest text that is kept in meta
BESIDE = re.compile(r"^(gaia_?source|astrophysical_?parameters|.*(2mass|tmass|allwise))", re.IGNORECASE)
COEFFICIENT = re.compile(r"^(e_)?[br]p_coeff_\d+$")
INTEGER = re.compile(r"0|-?[1-9]\d{0,17}|[1-8]\d{18}")  # 64 bits
FLOAT = re.compile(r"[-+]?(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][-+]?\d+)?")
RANGE = re.compile(r"_(\d{6}-\d{6})\.")

# Scalar: value column, error. The error is a column; a pair of columns for the 16th and 84th percentiles, of which it is half
# the distance; or "…_flux", of which the relative error makes the magnitude's.
SCALARS: dict[str, tuple[str, str | tuple[str, str]]] = {
    **{f"phot_{b}_mean_mag": (f"phot_{b}_mean_mag", f"phot_{b}_mean_flux") for b in ("g", "bp", "rp")},
    **{n: (n, "") for n in ("bp_rp", "ruwe", "phot_bp_rp_excess_factor", "pm")},
    **{n: (n, f"{n}_error") for n in ("parallax", "pmra", "pmdec", "radial_velocity", "vbroad", "grvs_mag")},
    **{n: (n, (f"{n}_lower", f"{n}_upper")) for n in (
        "teff_gspphot", "logg_gspphot", "mh_gspphot", "distance_gspphot", "azero_gspphot", "ag_gspphot", "abp_gspphot",
        "arp_gspphot", "ebpminrp_gspphot", "mg_gspphot", "radius_gspphot")},
    **{f"{b}_m": (f"{b}_m", f"{b}_msigcom") for b in ("j", "h", "ks")},
    **{f"w{i}mpro": (f"w{i}mpro", f"w{i}mpro_error") for i in range(1, 5)},
}  # fmt: skip
ALIASES = {"k_m": "ks_m", "k_msigcom": "ks_msigcom", **{f"w{i}sigmpro": f"w{i}mpro_error" for i in range(1, 5)}}
LABELS = frozenset(n for n in SCALARS if n.endswith("_gspphot"))
XP = {"bp_coefficients", "rp_coefficients", "bp_coeff_0", "rp_coeff_0", "flux"}


def _columns(value: str, error: str | tuple[str, str]) -> set[str]:
    if isinstance(error, str) and error.endswith("_flux"):
        return {value, f"{error}_over_error", error, f"{error}_error"}
    return {value, *([error] if isinstance(error, str) else error)} - {""}


USED = frozenset().union(*(_columns(*s) for s in SCALARS.values()))
WANTED = USED | ALIASES.keys() | {"ra", "dec"}


@dataclass(frozen=True)
class Beside:
    """A table that is joined by source_id: ids (n,) rising, and the numeric columns (n,) in that order."""

    ids: np.ndarray
    values: Mapping[str, np.ndarray]

    @classmethod
    def read(cls, path: Path) -> Beside:
        """Raises any of FAULTS."""
        table = columns(path, WANTED)
        ids = table.pop("source_id")
        order = np.argsort(ids, kind="stable")
        return cls(ids[order], {n: v[order] for n, v in table.items()})

    def of(self, source_id: int) -> dict[str, float]:
        """What the table has on a source."""
        i = int(np.searchsorted(self.ids, source_id))
        if i == len(self.ids) or self.ids[i] != source_id:
            return {}
        return {n: float(v[i]) for n, v in self.values.items() if np.isfinite(v[i])}


@dataclass(frozen=True)
class Parsed:
    """One row: its object, the bands of its continuous spectrum and its other cells."""

    object_id: str
    bands: dict[str, xp.Band]
    cells: Row


def discover(folder: Path) -> list[Source]:
    """One source per table below `folder`, with the tables beside it; these are sources of their own only where they are
    beside none. Raises UserError if there is no table."""
    tables = files_below(folder, TABLES)
    if not tables:
        what = "holds no tables" if os.path.isdir(folder) else "does not exist"
        raise UserError(f"input folder {folder} {what}: give the folder that holds Gaia's XP files (CSV, ECSV, FITS, VOTable, "
                        "Parquet) with --input")  # fmt: skip
    beside: dict[tuple[Path, str], list[Path]] = {}
    for path in tables:
        if BESIDE.match(path.name):
            beside.setdefault((path.parent, _range(path)), []).append(path)
    found: list[Source] = []
    taken: set[Path] = set()
    # XP files first, then gaia_source where no XP file has taken it, then what is left
    for path in sorted(tables, key=lambda p: (bool(BESIDE.match(p.name)), not p.name.lower().startswith("gaia"), p)):
        if path not in taken:
            ranges = {key[1] for key in beside if key[0] == path.parent} if not _range(path) else {_range(path), ""}
            joined = sorted(p for r in ranges for p in beside.get((path.parent, r), ()) if p != path)
            found.append(Source(str(path.relative_to(folder)), (path, *joined)))
            taken |= set(joined)
    return sorted(found)


def _range(path: Path) -> str:
    """The HEALPix pixels that a bulk file covers, as its name says, or ""."""
    found = RANGE.search(path.name)
    return found[1] if found else ""


def read(source: Source) -> Iterator[Observation | Quarantined]:
    """The objects of a table, one a row. A damaged table beside it is quarantined, and the objects come without it."""
    path, *companions = source.paths
    beside = []
    for companion in companions:
        try:
            beside.append(Beside.read(companion))
        except FAULTS as error:
            yield Quarantined(str(companion), "", f"objects of {path.name} come without this table: {reason_of(error)}")
    table = rows(path)
    while chunk := list(islice(table, CHUNK)):
        if not BESIDE.match(path.name) and isinstance(chunk[0], dict) and not XP & chunk[0].keys():
            yield Quarantined(str(path), "", "not a Gaia XP table: no columns bp_coefficients, rp_coefficients or flux")
            return
        yield from objects(path, chunk, beside)


def objects(path: Path, chunk: list[Row | BadObject], beside: list[Beside]) -> Iterator[Observation | Quarantined]:
    parsed = [_parsed(row, beside) for row in chunk]
    flux, error = xp.sampled([p.bands if isinstance(p, Parsed) else {} for p in parsed])
    for i, one in enumerate(parsed):
        if isinstance(one, BadObject):
            yield Quarantined(str(path), one.object_id, one.reason)
        else:
            yield from guarded(path, one.object_id, partial(_observation, one, flux[i], error[i]))


def _parsed(row: Row | BadObject, beside: list[Beside]) -> Parsed | BadObject:
    if isinstance(row, BadObject):
        return row
    try:
        object_id = _object_id(row)
        with about(object_id):
            for table in beside:
                row = table.of(int(object_id)) | row
            row = {ALIASES.get(name, name): cell for name, cell in row.items()}
            bands = {band: found for band in xp.BANDS if (found := xp.band_of(row, band))}
            return Parsed(object_id, bands, row)
    except BadObject as bad:
        return bad


def _observation(one: Parsed, flux: np.ndarray, error: np.ndarray) -> Observation:
    cells, arms = one.cells, _arms(one.cells, flux, error)
    scalars = {f"{name}_{i}": pair for name, band in one.bands.items()
               for i, pair in enumerate(zip(band.coefficients.tolist(), band.errors.tolist(), strict=True))}  # fmt: skip
    for name, (value, how) in SCALARS.items():
        if np.isfinite(found := xp.number(cells.get(value), value)):
            scalars[name] = (found, _error(cells, how))
    if "bp_rp" in scalars and {"phot_bp_mean_mag", "phot_rp_mean_mag"} <= scalars.keys():
        scalars["bp_rp"] = (scalars["bp_rp"][0], float(np.hypot(scalars["phot_bp_mean_mag"][1], scalars["phot_rp_mean_mag"][1])))
    if not arms and not scalars:
        raise BadObject("nothing measured: no BP or RP spectrum and none of the known columns")
    labels = {name: scalars[name][0] for name in sorted(LABELS & scalars.keys())}
    errors = {f"{name}_error": scalars[name][1] for name in labels if np.isfinite(scalars[name][1])}
    try:
        (ra, dec), where = position(cells, ("ra", "dec")), "object"
    except BadObject:
        (ra, dec), where = _pixel_centre(int(one.object_id)), "healpix 12 centre"
    meta = _rest(cells) | labels | errors | {"position": where}
    return Observation(one.object_id, "gaia", ra, dec, arms, FLAM if arms else "", meta=meta, scalars=scalars)


def _arms(cells: Row, flux: np.ndarray, error: np.ndarray) -> tuple[Arm, ...]:
    """The archive's own samples if the row has them, else those made of the coefficients; W / (m2 nm) becomes FLAM."""
    grid, first = xp.GRID, 0
    if "flux" in cells:
        flux, error = xp.numbers(cells["flux"], "flux"), xp.numbers(cells.get("flux_error"), "flux_error")
        wavelength = xp.numbers(cells.get("wavelength"), "wavelength")
        if len(wavelength):
            grid, first = linear_grid(10.0 * wavelength, grid.start, grid.step)
        if len(flux) != (len(wavelength) or xp.SAMPLES) or len(error) != len(flux):
            raise BadObject(f"not a sampled XP spectrum: {len(flux)} fluxes and {len(error)} errors where "
                            f"{len(wavelength) or xp.SAMPLES} belong")  # fmt: skip
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        arm = trimmed(make_arm("xp", grid, first, xp.TO_FLAM * flux, (xp.TO_FLAM * error) ** -2.0, ~(error > 0)))
    return (arm,) if arm else ()


def _error(cells: Row, how: str | tuple[str, str]) -> float:
    if isinstance(how, tuple):
        low, high = (xp.number(cells.get(name), name) for name in how)
        return (high - low) / 2
    if not how.endswith("_flux"):
        return xp.number(cells.get(how), how)
    signal_to_noise = xp.number(cells.get(f"{how}_over_error"), how)
    if not np.isfinite(signal_to_noise):
        noise = xp.number(cells.get(f"{how}_error"), how)
        signal_to_noise = xp.number(cells.get(how), how) / noise if noise > 0 else float("nan")
    return float(MAGNITUDE / signal_to_noise) if signal_to_noise > 0 else float("nan")


def _object_id(row: Row) -> str:
    """source_id, 64 bits, as text; else from the designation, "Gaia DR3 <source_id>".

    Raises BadObject if there is none, or if it has been a floating-point number somewhere.
    """
    named = re.fullmatch(r"Gaia E?DR\d+ (\d+)", str(plain(row.get("designation", ""))))
    cell = row.get("source_id", named[1] if named else None)
    if cell is None:
        raise BadObject("not a Gaia table: no column source_id")
    text = str(plain(cell)) if isinstance(cell, str | bytes | int | np.integer) else ""
    if not text.isdecimal() or not int(text) < 12 * 4**12 * PIXEL_OF:
        raise BadObject(f"no object identifier: source_id {str(cell)[:40]!r} is not one of Gaia's 64-bit integers")
    return str(int(text))


def _pixel_centre(source_id: int) -> tuple[float, float]:
    ra, dec = PIXELS.healpix_to_lonlat(source_id // PIXEL_OF)
    return float(ra.deg), float(dec.deg)


def _rest(cells: Row) -> dict[str, str | int | float]:
    """The cells that are scalar, short and not used otherwise, as the archive has them; numbers in text become numbers."""
    meta: dict[str, str | int | float] = {}
    for name, cell in cells.items():
        if name in USED or name in ("source_id", "ra", "dec") or cell is None or np.ndim(cell) or COEFFICIENT.search(name):
            continue
        value = plain(cell)
        typed = _typed(value) if isinstance(value, str) else value
        if typed is not None and (not isinstance(typed, float) or np.isfinite(typed)):
            meta[name] = typed
    return meta


def _typed(text: str) -> str | int | float | None:
    """Text as int, float or str; None if it says that there is nothing or is not short."""
    if text.lower() in xp.NULLS or len(text) > WORDS or text[0] in "([{":
        return None
    if INTEGER.fullmatch(text):
        return int(text)
    return float(text) if FLOAT.fullmatch(text) else text
