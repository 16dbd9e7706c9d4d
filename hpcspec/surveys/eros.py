"""EROS light curves as published for machine learning: CSV tables, gzipped or not, of any name, one row an object.

- Light curves: the object's identifier in the first column (its name may be empty), and for each band x columns
  time_points_x, light_points_x, error_points_x whose cells are lists, "[290.3, 291.35, …]": days, magnitudes and their
  errors. The lists of the sky background and of the pollution by neighbours (bkg_points_x, polltn_points_x) are not used.
- Features: a table without lists, in the same folder or in the same table, with the same identifiers: position
  (asc_d, asc_m, asc_s in hours, dec_d, dec_m, dec_s in degrees), mean magnitudes, period, type and others. It may be absent,
  or be without `type`; where a folder has features only, its objects have scalars only. A row of features beside light
  curves that don't hold the object is no object.

The files don't say from when their days count, so the scale of the times is "relative". `type` is a code and stays one:
meta["class"] is "1", "2", "3" or "4". The search gives a multiple of the period and which one it is, div_period; the
scalar `period` is the period itself, period/div_period, and meta holds the survey's own values.
Source: EROS; Afonso et al. (2003), A&A 404, 145; the variable_stars data challenge of the Paris-Saclay CDS.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from hpcspec.surveys.base import FAULTS, Quarantined, Source, about, guarded, reason_of
from hpcspec.surveys.companions import Catalogue, catalogue, described
from hpcspec.surveys.observation import BadObject, Curve, Observation, make_curve
from hpcspec.surveys.tables import batches, files, head, is_headed, unpacked

LABELS = frozenset({"class"})
NAMES = re.compile(r"\.csv(\.gz)?$", re.IGNORECASE)
LISTS = re.compile(r"(time|light|error|bkg|polltn)_points_\w+")
FEATURES = frozenset({"magnitude_b", "magnitude_r", "asc_d", "star_id_b", "log_p_not_variable", "asym_b"})
SCALARS = {
    "period": "period", "magnitude_b": "mag_b", "magnitude_r": "mag_r", "asym_b": "asym_b", "asym_r": "asym_r",
    "sigma_flux_b": "sigma_flux_b", "sigma_flux_r": "sigma_flux_r", "log_p_not_variable": "log_p_not_variable",
    "div_period": "period_multiple",
}  # fmt: skip


def _curves(names: Sequence[str]) -> bool:
    return any(name.startswith("time_points_") for name in names)


def _features(names: Sequence[str]) -> bool:
    return not _curves(names) and bool(FEATURES & set(names))


def discover(folder: Path) -> list[Source]:
    """One source per table of light curves, with the features tables of its folder; a features table in a folder without
    light curves, and any other CSV file, is a source of its own. Raises UserError if there is no CSV file."""
    found = files(folder, NAMES, "EROS CSV files")
    features = {path for path in found if is_headed(path, _features)}
    curves = {path for path in found if path not in features and is_headed(path, _curves)}
    served = {path.parent for path in curves}
    return sorted(
        Source(str(path.relative_to(folder)), (path, *sorted(f for f in features if f.parent == path.parent and path in curves)))
        for path in found
        if path not in features or path.parent not in served
    )


def read(source: Source) -> Iterator[Observation | Quarantined]:
    """The objects of a table, in its order, each with a light curve for each band; a damaged table gives its objects up to
    the damage, and one row that says what it is."""
    path, *beside = source.paths
    skipped: list[str] = []
    seen: set[str] = set()
    try:
        rows = catalogue(beside, _features, ())
        with unpacked(path) as file:
            first = head(file, lambda names: _curves(names) or _features(names), "an EROS table")
            bands = _bands(first.columns)
            for batch in batches(file, first.columns, first.delimiter, skipped):
                for row in batch.to_pylist():
                    object_id = row.pop(first.columns[0]).strip()
                    yield from guarded(path, object_id, partial(_object, object_id, row, bands, rows, seen))
                    seen.add(object_id)
    except FAULTS as error:
        yield Quarantined(str(path), "", reason_of(error))
    for line in (line for text in skipped for line in text.splitlines()):  # a lost quote joins lines
        yield Quarantined(str(path), line.split(",", 1)[0], "damaged row: another number of fields than the header")


def _bands(columns: Sequence[str]) -> list[str]:
    bands = sorted(name.removeprefix("time_points_") for name in columns if name.startswith("time_points_"))
    lost = [f"{what}_points_{b}" for b in bands for what in ("light", "error") if f"{what}_points_{b}" not in columns]
    if lost:
        raise BadObject(f"not an EROS table: no column {', '.join(lost)}")
    return bands


def _object(object_id: str, row: Mapping[str, str], bands: Sequence[str], rows: Catalogue, seen: set[str]) -> Observation:
    if object_id in seen:
        raise BadObject("second row of this object", object_id)
    with about(object_id):
        curves = tuple(_curve(band, row) for band in bands)
        features = {k: v for k, v in {**rows.row(object_id), **row}.items() if not LISTS.fullmatch(k)}
        scalars, meta = described(features, SCALARS)
        if "period" in scalars and scalars.get("period_multiple", (1.0, 0.0))[0] > 0:
            scalars["period"] = scalars["period"][0] / scalars.get("period_multiple", (1.0, 0.0))[0], np.nan
        if {"mag_b", "mag_r"} <= scalars.keys():
            scalars["b_r"] = scalars["mag_b"][0] - scalars["mag_r"][0], np.nan
        ra, dec = _position(features)
    meta["position"] = "none" if np.isnan(ra) else "object"
    return Observation(object_id, "eros", ra, dec, meta=meta, curves=curves, scalars=scalars)


def _curve(band: str, row: Mapping[str, str]) -> Curve:
    time, light, error = (_numbers(row[f"{what}_points_{band}"]) for what in ("time", "light", "error"))
    return make_curve(band, time, light, error, scale="relative")


def _numbers(cell: str) -> np.ndarray:
    return np.array(cell.strip().strip("[]").replace(",", " ").split(), np.float64)


def _position(cells: Mapping[str, str]) -> tuple[float, float]:
    """Degrees from hours and degrees, minutes, seconds; NaN, NaN where one of them is missing."""
    try:
        h, hm, hs, d, dm, ds = (float(cells[f"{what}_{part}"]) for what in ("asc", "dec") for part in "dms")
    except (KeyError, ValueError):
        return np.nan, np.nan
    return 15 * (h + hm / 60 + hs / 3600), float(np.copysign(abs(d) + dm / 60 + ds / 3600, d))
