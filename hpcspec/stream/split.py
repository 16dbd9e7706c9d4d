"""Which side of a split an object is on: a pure function of its place on the sky, the same for all its repeats."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
from astropy_healpix import HEALPix

from hpcspec.shards.objects import text

ORDER = 10  # HEALPix pixels of 3.4 arcmin
MARGIN = 2.0  # arcsec: repeats of one object are never farther apart
SKEW = 1.5  # in a pixel's own coordinates the margin is at most this much wider: near the poles pixels are skewed
TOWARDS = ((-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1))  # x and y of the neighbours SW, W, NW, … S
COLUMNS = ("id", "healpix", "approximate")
_LEVELS = 29 - ORDER
_UNIT = 58.6 * 3600 / 2**29  # arcsec: side of a pixel of order 29
_EVEN = 0x5555555555555555
_COMPACT = ((1, 0x3333333333333333), (2, 0x0F0F0F0F0F0F0F0F), (4, 0x00FF00FF00FF00FF), (8, 0x0000FFFF0000FFFF), (16, 0xFFFFFFFF))


def sky_fraction(columns: Mapping[str, np.ndarray], seed: int) -> np.ndarray:
    """(n,) float64 in [0, 1): uniform and the same for all objects of one HEALPix pixel of order 10 (or, where the object's
    own position is not known, for all observations of one identifier).

    columns: healpix and approximate (n,), and id where any is approximate. `sky_fraction < share` is the held-out side.
    """
    return _fraction(_keys(columns), seed)


def lowest_fraction(columns: Mapping[str, np.ndarray], seed: int) -> np.ndarray:
    """(n,) float64: the lowest sky fraction within 2 arcsec of each object.

    `lowest_fraction >= share` is the training side: an object of it has no repeat observation on the held-out side, for
    positions of repeats differ by less. The few objects that are on neither side lie at the border of a held-out pixel.
    """
    keys = _keys(columns)
    lowest = _fraction(keys, seed)
    sides = _sides(columns["healpix"])
    near = np.flatnonzero(~_by_id(columns) & sides.any(0))
    if len(near):
        x, y = sides[:, near]
        with np.errstate(invalid="ignore"):  # where there is no neighbour
            around = HEALPix(nside=2**ORDER, order="nested").neighbours(keys[near].astype(np.int64))
        for (dx, dy), pixels in zip(TOWARDS, around, strict=True):
            reached = np.flatnonzero((pixels >= 0) & ((x == dx) | (dx == 0)) & ((y == dy) | (dy == 0)))
            lowest[near[reached]] = np.minimum(lowest[near[reached]], _fraction(pixels[reached], seed))
    return lowest


def joined(parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The columns that a split needs of several sets of objects, one after another; those without `id` need none."""
    with_id = [of if "id" in of else {**of, "id": np.zeros(len(of["healpix"]), "S1")} for of in parts]
    return {name: np.concatenate([of[name] for of in with_id]) for name in COLUMNS}


def _by_id(columns: Mapping[str, np.ndarray]) -> np.ndarray:
    return (columns["approximate"] != 0) | (columns["healpix"] < 0)


def _keys(columns: Mapping[str, np.ndarray]) -> np.ndarray:
    keys = (columns["healpix"] >> (2 * _LEVELS)).astype(np.uint64)
    for i in np.flatnonzero(_by_id(columns)).tolist():
        keys[i] = int.from_bytes(hashlib.blake2b(text(columns["id"][i]).encode(), digest_size=8).digest(), "big")
    return keys


def _fraction(keys: np.ndarray, seed: int) -> np.ndarray:
    return (mix(keys, seed) >> np.uint64(11)).astype(np.float64) / 2**53


def mix(keys: np.ndarray, seed: int) -> np.ndarray:
    """(n,) uint64: a hash of keys (n,) and a seed; the finaliser of SplitMix64 (Steele, Lea and Flood 2014), twice."""
    with np.errstate(over="ignore"):
        x = keys.astype(np.uint64)
        for salt in (np.uint64(seed & 0xFFFFFFFF), np.uint64((seed >> 32) + 1 & 0xFFFFFFFF)):
            x = x + np.uint64(0x9E3779B97F4A7C15) * (salt + np.uint64(1))
            x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            x ^= x >> np.uint64(31)
        return x


def _sides(healpix: np.ndarray) -> np.ndarray:
    """(2, n): for x and y in the pixel of a position, -1 or 1 if the border on that side may be within the margin, else 0."""
    margin, size = round(SKEW * MARGIN / _UNIT), 1 << _LEVELS
    inside = healpix.astype(np.uint64) & np.uint64((1 << 2 * _LEVELS) - 1)
    sides = np.zeros((2, len(healpix)), np.int8)
    for side, shift in zip(sides, (0, 1), strict=True):  # a nested index has the bits of x at even and of y at odd places
        x = (inside >> np.uint64(shift)) & np.uint64(_EVEN)
        for step, mask in _COMPACT:
            x = (x | (x >> np.uint64(step))) & np.uint64(mask)
        side[x < margin] = -1
        side[x >= size - margin] = 1
    return sides
