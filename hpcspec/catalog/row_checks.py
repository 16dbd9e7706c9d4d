"""What must hold in every row of a catalogue, checked in one pass over pieces of it."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

import astropy.units as u
import numpy as np
from astropy.coordinates import angular_separation
from astropy_healpix import HEALPix

from hpcspec.catalog.ordering import fingerprints, repeated
from hpcspec.catalog.schema import MAY_LEAVE_RANGE, NOWHERE, Column, Flag, class_column, labels
from hpcspec.shards.objects import healpix29

SUM_TOLERANCE = 1e-3  # of probabilities stored as float32
_MAS = np.radians(1e-3 / 3600)
Rows = Mapping[str, np.ndarray]


class Faults(Exception):
    """What a check found wrong."""

    @classmethod
    def unless(cls, ok: bool, detail: str) -> None:
        """Raise, with what was seen, if it is not ok."""
        if not ok:
            raise cls(detail)


class IdDigest:
    """A digest of identifiers in their order, however they are cut into pieces."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def add(self, ids: Sequence[str]) -> None:
        """The next ones."""
        self._digest.update("".join(f"{i}\n" for i in ids).encode())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, IdDigest) and self._digest.digest() == other._digest.digest()

    __hash__ = None  # type: ignore[assignment]


def wrong_healpix(ra: np.ndarray, dec: np.ndarray, healpix: np.ndarray) -> np.ndarray:
    """Where (n,) the index is not that of the position (degrees), up to rounding at a pixel's edge (1 mas); nor NOWHERE, where
    there is none."""
    valid = np.isfinite(ra) & (np.abs(dec) <= 90) & (healpix >= 0) & (healpix < 12 * 4**29)
    wrong = ~valid & ~(np.isnan(ra) & np.isnan(dec) & (healpix == NOWHERE))
    wrong[valid] = healpix29(ra[valid], dec[valid]) != healpix[valid]
    near = np.flatnonzero(wrong & valid)
    if len(near):
        lon, lat = HEALPix(nside=2**29, order="nested").healpix_to_lonlat(healpix[near])
        distance = angular_separation(np.radians(ra[near]) * u.rad, np.radians(dec[near]) * u.rad, lon, lat)
        wrong[near] = distance.to_value(u.rad) > _MAS
    return wrong


def _faults(rows: Rows, columns: Sequence[Column]) -> Iterator[tuple[str, str, np.ndarray]]:
    """For every rule (check, what is wrong) the rows (n,) that break it."""
    classes, parameters = labels(columns)
    excused = (rows["flags"] & MAY_LEAVE_RANGE) != 0
    for c in columns:
        value = rows[c.name]
        if c.dtype == "U":
            if c.name != "class" or classes:
                yield "not empty", f"{c.name} is empty", value == ""
            continue
        if not c.nullable:
            yield "not empty", f"{c.name} is NaN", np.isnan(value)
        yield "ranges", f"{c.name} is infinite", np.isinf(value)
        if c.range:
            outside = (value < c.range[0]) | (value > c.range[1])
            what = f"{c.name} is outside {c.range[0]:g} … {c.range[1]:g}"
            yield "ranges", what, outside & ~excused if c.name in parameters else outside
    for name in parameters:
        yield "errors", f"{name}_err is not positive", rows[f"{name}_err"] <= 0
        yield "errors", f"{name}_err95 is smaller than {name}_err", rows[f"{name}_err95"] < rows[f"{name}_err"]
        for error in (f"{name}_err", f"{name}_err95"):
            alone = np.isnan(rows[name]) != np.isnan(rows[error])
            yield "errors", f"{name} and {error} are not both there or both NaN", alone
    if classes:
        p = np.stack([rows[class_column(label)] for label in classes], axis=1).astype(np.float64)
        chosen = rows["class"][:, None] == np.array(classes)
        picked = np.where(chosen, p, -1).max(axis=1)
        yield "classes", "class is not one of those in provenance.json", ~chosen.any(axis=1)
        yield "classes", "the probabilities don't sum to 1", ~(np.abs(p.sum(axis=1) - 1) <= SUM_TOLERANCE)
        yield "classes", "class is not the most probable one", ~(picked >= p.max(axis=1) - 1e-6)
        yield "classes", "class_prob is not the probability of the class", ~(np.abs(picked - rows["class_prob"]) <= 1e-5)
    else:
        yield "classes", "there is a class, though none were adapted", (rows["class"] != "") | ~np.isnan(rows["class_prob"])
    unsaid = (rows["_healpix_29"] == NOWHERE) != ((rows["flags"] & Flag.NO_POSITION) != 0)
    yield "healpix", "flags don't say whether there is a position", unsaid
    yield "healpix", "_healpix_29 is not the pixel of ra and dec", wrong_healpix(rows["ra"], rows["dec"], rows["_healpix_29"])


def check_rows(pieces: Iterable[Rows], columns: Sequence[Column]) -> Iterator[tuple[str, bool, str]]:
    """Each check (name, whether it holds, detail) on the rows that `pieces` give together.

    A piece maps every column's name to an array (n,).
    """
    names = ("not empty", "ranges", "errors", "classes", "healpix")
    broken: dict[str, dict[str, int]] = {name: defaultdict(int) for name in names}
    example: dict[str, str] = {}
    total, hashes, ordered, last = 0, [], True, NOWHERE
    for rows in pieces:
        ids = rows["object_id"].tolist()
        for name, what, where in _faults(rows, columns):
            if where.any():
                broken[name][what] += int(where.sum())
                example.setdefault(what, ids[int(np.argmax(where))])
        healpix = rows["_healpix_29"]
        ordered &= bool(last <= healpix[0] and np.all(np.diff(healpix) >= 0))
        last = int(healpix[-1])
        hashes.append(fingerprints(ids))
        total += len(ids)
    twice = len(repeated(np.concatenate(hashes))) if hashes else 0
    yield "unique", twice == 0, f"{twice} object_id occur more than once" if twice else f"{total} different object_id"
    yield "order", ordered, "sorted by _healpix_29" if ordered else "rows are not sorted by _healpix_29"
    for name, faults in broken.items():
        told = [f"{what} in {n} rows, such as {example[what]}" for what, n in faults.items()]
        yield name, not faults, "; ".join(told[:5]) or f"hold in {total} rows"
