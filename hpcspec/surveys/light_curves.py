"""Light curves of any origin: tables of one row an epoch, of one or many objects, as CSV (or other delimited text), ECSV,
FITS, Parquet or VOTable; text, FITS and VOTable also gzipped.

Columns are known by their names, in any case, blanks as underscores, a unit in brackets after them ("flux(mJy)"); of
several that fit, the first below:

    object   object_id objectid oid source_id sourceid star_id id; without one, the table is one object, named as its file
    time     [b|h|m]jd[_utc|_tdb|_tcb][-zero point], time, date
    value    mag magnitude psfmag mag_psf, flux psfflux flux_psf, value
    error    <value>_err <value>err <value>_error <value>error e_<value> err_<value> sigma_<value> d<value> with any name of
             that kind of value, error err sigma; magnitudes without an error leave the place to fluxes with one
    band     band filter filtername filter_name passband fid
    ra, dec  ra dec, ra_deg dec_deg, raj2000 dej2000 (degrees)

The unit of the values is their column's, or in its name, else mag for magnitudes and "unknown" for fluxes. The scale of the
times is in their column's name; "time" is a JD beyond 1 000 000 and a MJD below. A column of the unit day, hour, minute or
second is turned into days. Without a band column the band is the name of the value's column. Magnitudes and their errors of
90 and more say that there is none. Any other column that is constant within an object goes to its meta, and to its scalars
where it is a measurement with a known name (companions.SCALARS); one that varies within most objects does not, nor where an
object has one epoch only. The rows of an object may be anywhere in its file, but all in one.

A file is held in memory as a few numbers a row (about 60 bytes): ten million rows need some 1 to 2 GiB and no Python loop.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from astropy import units

from hpcspec.surveys.base import FAULTS, Quarantined, Source, guarded, reason_of
from hpcspec.surveys.companions import described, place
from hpcspec.surveys.observation import BadObject, Observation, make_curve
from hpcspec.surveys.row_batches import NAMES, WHAT, row_batches
from hpcspec.surveys.tables import files, numbers, runs, stem, texts

LABELS = frozenset({"class"})
OBJECTS = ("object_id", "objectid", "oid", "source_id", "sourceid", "star_id", "id")
VALUES = {("mag", "magnitude", "psfmag", "mag_psf"): "mag", ("flux", "psfflux", "flux_psf"): "unknown", ("value",): "unknown"}
ERRORS = ("{}_err", "{}err", "{}_error", "{}error", "e_{}", "err_{}", "sigma_{}", "d{}", "error", "err", "sigma")
BANDS = ("band", "filter", "filtername", "filter_name", "passband", "fid")
TIME = re.compile(r"([bhm]?jd)(?:_(utc|tdb|tcb))?(?:_?-_?(\d+(?:\.\d*)?))?|time|date")
BRACKETS = re.compile(r"_*[(\[](.+)[)\]]$")
NO_MAGNITUDE, NO_MJD = 90.0, 1e6


@dataclass(frozen=True)
class Roles:
    """Which column is what: names as in the file ("" for none), the band where no column has it, the unit of
    the values, the scale and the zero point of the times (days) and how many days their unit is."""

    time: str
    value: str
    error: str
    object: str
    band: str
    the_band: str
    unit: str
    scale: str
    zero: float
    days: float


@dataclass
class _Rows:
    """What is kept of the batches: numbers as arrays, names and other columns as dictionary-encoded chunks."""

    numbers: dict[str, list[np.ndarray]] = field(default_factory=dict)
    encoded: dict[str, list[pa.Array]] = field(default_factory=dict)

    def codes(self, name: str) -> tuple[np.ndarray, pa.Array]:
        """Codes (n,), -1 for none, and what they stand for."""
        one = pa.chunked_array(self.encoded.pop(name)).unify_dictionaries()
        indices = [chunk.indices.fill_null(-1).to_numpy(zero_copy_only=False) for chunk in one.chunks]
        return np.concatenate(indices), one.chunk(0).dictionary


def discover(folder: Path) -> list[Source]:
    """One source per table below `folder`. Raises UserError if there is none."""
    return [Source(str(p.relative_to(folder)), (p,)) for p in files(folder, NAMES, "tables of light curves")]


def roles(columns: Mapping[str, str]) -> Roles:
    """What each of the columns {name: unit} is. Raises BadObject if there is no time, value or error."""
    names: dict[str, str] = {}
    units_there: dict[str, str] = {}
    for original, unit in columns.items():
        plain = re.sub(r"\s+", "_", original.strip().lower())
        short = BRACKETS.sub("", plain)
        bracket = BRACKETS.search(original.strip())
        names.setdefault(short, original)
        units_there.setdefault(short, unit or (bracket[1] if bracket else ""))

    def first(candidates: Sequence[str]) -> str:
        return next((name for name in candidates if name in names), "")

    times = [name for name in names if TIME.fullmatch(name)]
    time = next((name for name in times if "jd" in name), times[0] if times else "")
    pairs = [(found, first([pattern.format(name) for name in (found, *family) for pattern in ERRORS]), unit)
             for family, unit in VALUES.items() if (found := first(family))]  # fmt: skip
    value, error, kind = next((pair for pair in pairs if pair[1]), pairs[0] if pairs else ("", "", ""))
    lost = [what for what, name in (("time", time), ("value", value), ("error", error)) if not name]
    if lost:
        raise BadObject(f"not {WHAT}: no column of {', '.join(lost)} among {', '.join(columns)[:200]}")
    frame, standard, zero = cast(re.Match[str], TIME.fullmatch(time)).groups()
    scale = "_".join(part for part in (frame, standard) if part)
    return Roles(names[time], names[value], names[error], names.get(first(OBJECTS), ""), names.get(first(BANDS), ""), value,
                 units_there[value] or kind, scale, float(zero or 0), _days(units_there[time]))  # fmt: skip


def _is_header(names: Sequence[str]) -> bool:
    try:
        roles(dict.fromkeys(names, ""))
    except BadObject:
        return False
    return True


def _days(unit: str) -> float:
    """How many days a unit of time is; 1 where it is no unit of time (as "MJD")."""
    try:
        return float(units.Unit(unit).to(units.day)) if unit else 1.0
    except (ValueError, TypeError):
        return 1.0


def read(source: Source) -> Iterator[Observation | Quarantined]:
    """The objects of a table in the order of their first rows, each with a light curve for each band. A damaged file is
    quarantined as a whole, since any of its light curves may be incomplete; damaged rows are told once."""
    path = source.paths[0]
    rows, skipped = _Rows(), list[str]()
    try:
        with row_batches(path, _is_header, skipped) as (columns, chunks):
            known = roles(columns)
            for batch in chunks:
                _keep(batch, known, rows)
        if "object" not in rows.encoded:
            raise BadObject("no epoch")
        yield from _objects(path, known, rows)
    except FAULTS as error:
        yield Quarantined(str(path), "", reason_of(error))
    if skipped:
        yield Quarantined(str(path), "", f"{len(skipped)} damaged rows of another number of fields, the first: {skipped[0][:80]}")


def _keep(batch: pa.RecordBatch | pa.Table, known: Roles, rows: _Rows) -> None:
    """Add a batch to the rows; other columns end being kept once they vary within most objects of a batch."""
    if batch.num_rows == 0:
        return
    fresh = not rows.encoded
    for role in ("time", "value", "error"):
        rows.numbers.setdefault(role, []).append(numbers(batch.column(getattr(known, role))))
    objects = texts(batch.column(known.object)) if known.object else pa.array([""] * batch.num_rows)
    bands = texts(batch.column(known.band)) if known.band else pa.array([known.the_band] * batch.num_rows)
    rows.encoded.setdefault("object", []).append(pc.dictionary_encode(objects))
    rows.encoded.setdefault("band", []).append(pc.dictionary_encode(bands.fill_null("unknown")))
    keys = rows.encoded["object"][-1].indices.fill_null(-1).to_numpy(zero_copy_only=False)
    order, bounds = runs(keys)
    used = {known.time, known.value, known.error, known.object, known.band}
    for name in batch.schema.names:
        kept = f"column {name}"
        if name in used or not (fresh or kept in rows.encoded):
            continue
        try:
            column = batch.column(name)
            encoded = pc.dictionary_encode(column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column)
        except pa.ArrowNotImplementedError:  # lists and the like are no metadata
            encoded = None
        if encoded is None or _varies(encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)[order], bounds):
            rows.encoded.pop(kept, None)
        else:
            rows.encoded.setdefault(kept, []).append(encoded)


def _constant(codes: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """Whether codes (n,) are the same all over each of k runs, bool (k,)."""
    return np.asarray(np.minimum.reduceat(codes, bounds[:-1]) == np.maximum.reduceat(codes, bounds[:-1]))


def _varies(codes: np.ndarray, bounds: np.ndarray) -> bool:
    """Whether codes (n,) differ within most of those runs that could show it."""
    several = np.diff(bounds) > 1
    return bool(several.any()) and float(np.mean(_constant(codes, bounds)[several])) < 0.5


def _objects(path: Path, known: Roles, rows: _Rows) -> Iterator[Observation | Quarantined]:
    time, value, error = (np.concatenate(rows.numbers.pop(role)) for role in ("time", "value", "error"))
    time = time * known.days + known.zero
    if known.unit == "mag":
        value = np.where(np.abs(value) < NO_MAGNITUDE, value, np.nan)
        error = np.where(error < NO_MAGNITUDE, error, np.nan)
    known_times = time[np.isfinite(time)]
    scale = known.scale or ("jd" if len(known_times) and np.median(known_times) > NO_MJD else "mjd")
    objects, names = rows.codes("object")
    bands, band_names = rows.codes("band")
    order, bounds = runs(objects)
    others = {}
    for kept in [name for name in rows.encoded if name.startswith("column ")]:
        codes, cells = rows.codes(kept)
        if not _varies(codes[order], bounds):
            others[kept.removeprefix("column ")] = codes[order[bounds[:-1]]], _constant(codes[order], bounds), cells

    for k in range(len(bounds) - 1):
        which = order[bounds[k] : bounds[k + 1]]
        object_id = (names[int(objects[which[0]])].as_py() or stem(path)) if objects[which[0]] >= 0 else ""
        if not object_id:
            yield Quarantined(str(path), "", f"{len(which)} rows without an object identifier")
            continue
        row = {n: cells[int(codes[k])].as_py() for n, (codes, same, cells) in others.items() if same[k] and codes[k] >= 0}

        def build(object_id: str = object_id, which: np.ndarray = which, row: Mapping[str, object] = row) -> Observation:
            own, at = runs(bands[which])
            curves = tuple(
                make_curve(band_names[int(bands[s[0]])].as_py(), time[s], value[s], error[s], unit=known.unit, scale=scale)
                for s in (which[own[a:b]] for a, b in zip(at[:-1], at[1:], strict=True))
            )
            scalars, meta = described(row)
            ra, dec = place(row)
            meta["position"] = "none" if np.isnan(ra) else "object"
            return Observation(object_id, "light_curves", ra, dec, meta=meta, curves=curves, scalars=scalars)

        yield from guarded(path, object_id, build)
