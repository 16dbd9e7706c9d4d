"""What tables of one row an object tell about light curves: positions, scalars and classes, by the names of the columns."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from hpcspec.errors import UserError
from hpcspec.surveys.base import FAULTS, Source, plain, reason_of
from hpcspec.surveys.observation import BadObject
from hpcspec.surveys.tables import Wanted, batches, code, files, head, unpacked, value

Scalars = dict[str, tuple[float, float]]

CLASS_NAMES = ("class", "type", "variable_type", "var_type", "vartype", "obj_type", "label")
IDENTIFIERS = ("object_id", "asassn_name", "asas_sn_id", "filename", "name", "id")
POSITIONS = (("raj2000", "dej2000"), ("ra_deg", "dec_deg"), ("ra", "dec"), ("_ra", "_dec"))
SCALARS = {
    "period": "period", "amplitude": "amplitude", "mean_vmag": "mag_v", "mean_gmag": "mag_g", "pstarrs_g_mag": "mag_g",
    "phot_g_mean_mag": "phot_g_mean_mag", "phot_bp_mean_mag": "phot_bp_mean_mag", "phot_rp_mean_mag": "phot_rp_mean_mag",
    "bp_rp": "bp_rp", "parallax": "parallax", "pmra": "pmra", "pmdec": "pmdec", "j_mag": "j_mag", "h_mag": "h_mag",
    "k_mag": "k_mag", "w1_mag": "w1_mag", "w2_mag": "w2_mag", "w3_mag": "w3_mag", "w4_mag": "w4_mag", "j_k": "j_k",
    "w1_w2": "w1_w2", "w3_w4": "w3_w4",
}  # fmt: skip
"""Columns that are measurements of the object, and the scalars they become: periods in days, amplitudes, magnitudes and
colours in mag, parallaxes in mas, proper motions in mas/yr."""


def described(row: Mapping[str, Any], names: Mapping[str, str] = SCALARS) -> tuple[Scalars, dict[str, str | int | float]]:
    """The scalars and the meta of an object's row: what `names` knows with its error, and every cell that says something,
    identifiers (…id) as text, and the class, whatever its column is called, as text under "class"."""
    said = {name: cell for name, cell in row.items() if name and cell is not None and str(plain(cell)).lower() not in ("", "nan")}
    meta = {name: code(cell) if re.search(r"(?i)id$", name) else value(cell) for name, cell in said.items()}
    lower = {name.lower(): cell for name, cell in meta.items()}
    scalars: Scalars = {}
    for theirs, ours in names.items():
        error = next((lower[e] for e in (f"e_{theirs}", f"{theirs}_err", f"{theirs}_error") if e in lower), np.nan)
        if isinstance(lower.get(theirs), int | float):
            scalars[ours] = float(lower[theirs]), float(error) if isinstance(error, int | float) else np.nan
    found = next((name for name in CLASS_NAMES if name in lower), None)
    if found is not None:
        label = next(cell for name, cell in said.items() if name.lower() == found)
        meta = {k: v for k, v in meta.items() if k.lower() != found} | {"class": code(label)}
    return scalars, meta


def place(row: Mapping[str, Any]) -> tuple[float, float]:
    """Right ascension and declination, degrees, of an object's row; NaN, NaN where it has none."""
    lower = {name.lower(): cell for name, cell in row.items()}
    for ra, dec in POSITIONS:
        try:
            found = float(lower[ra]), float(lower[dec])
        except (KeyError, TypeError, ValueError):
            continue
        if np.all(np.isfinite(found)):
            return found
    return np.nan, np.nan


def sources(folder: Path, names: re.Pattern[str], what: str, is_table: Callable[[Path], bool]) -> list[Source]:
    """One source per file below `folder` whose name matches and that is no table of objects, followed by the tables of its
    folder and of the one above.

    Raises UserError if there is none.
    """
    found = files(folder, names, what)
    tables = [path for path in found if is_table(path)]
    near = {where: tuple(t for t in tables if t.parent in (where, where.parent)) for where in {p.parent for p in found}}
    curves = sorted(set(found) - set(tables))
    if not curves:
        raise UserError(f"input folder {folder} holds tables of objects, but no {what}")
    return [Source(str(path.relative_to(folder)), (path, *near[path.parent])) for path in curves]


@dataclass(frozen=True)
class Catalogue:
    """Rows of tables beside the light curves by identifier, spaces left out, and what was wrong with the tables."""

    rows: Mapping[str, Mapping[str, str]]
    fault: str = ""

    def row(self, *identifiers: str) -> Mapping[str, str]:
        """The first row of one of the identifiers, {} without. Raises BadObject if it may be lost in a damaged table."""
        found = next((self.rows[key] for i in identifiers if (key := i.replace(" ", "")) in self.rows), None)
        if found is None and self.fault:
            raise BadObject(self.fault)
        return found or {}


def catalogue(paths: Sequence[Path], wanted: Wanted, keys: Sequence[str]) -> Catalogue:
    """The tables of one row an object, each read once as long as it doesn't change; rows of one object in several tables
    are put together, and in one table the first counts. Identifiers are the columns of `keys` (lower case); without any of
    them, the first column, which is then no cell of the row."""
    rows: dict[str, dict[str, str]] = {}
    faults = []
    for path in paths:
        try:
            table, fault = _catalogue(path, path.stat().st_mtime_ns, wanted, tuple(keys))
        except FAULTS as error:
            table, fault = {}, reason_of(error)
        for key, row in table.items():
            rows[key] = row | rows.get(key, {}) if key in rows else row
        if fault:
            faults.append(f"not found, and table {path.name} is damaged: {fault}")
    return Catalogue(rows, "; ".join(faults))


@functools.lru_cache(maxsize=8)
def _catalogue(path: Path, changed: int, wanted: Wanted, keys: tuple[str, ...]) -> tuple[dict[str, dict[str, str]], str]:
    rows: dict[str, dict[str, str]] = {}
    skipped: list[str] = []
    fault = ""
    try:
        with unpacked(path) as file:
            first = head(file, wanted, "a table of objects")
            lower = [name.lower() for name in first.columns]
            identifiers = [first.columns[lower.index(k)] for k in keys if k in lower] or list(first.columns[:1])
            no_cell = set(lower[:1]) if set(keys).isdisjoint(lower) else {"filename"}
            for batch in batches(file, first.columns, first.delimiter, skipped):
                for row in cast(list[dict[str, str]], batch.to_pylist()):
                    cells = {name: cell for name, cell in row.items() if name.lower() not in no_cell}
                    for name in identifiers:
                        rows.setdefault(code(row[name]).replace(" ", ""), cells)
    except FAULTS as error:
        fault = reason_of(error)
    return rows, fault or (f"{len(skipped)} rows of another number of fields" if skipped else "")
