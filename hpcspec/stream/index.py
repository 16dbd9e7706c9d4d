"""What all shards of a run hold together: read by one rank, broadcast to the others."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from hpcspec.comm import on_root
from hpcspec.errors import UserError
from hpcspec.shards.format import Shard, ShardIndex

SPLIT_ORDER = 12  # HEALPix pixels of 0.9 arcmin: an object and its repeat observations fall on the same side of a split


@dataclass(frozen=True)
class DataIndex:
    """The objects of several shards, numbered 0 … n-1 in the order of the shards."""

    shards: tuple[ShardIndex, ...]

    @cached_property
    def offsets(self) -> np.ndarray:
        """(shards+1,) int64: number of the first object of each shard."""
        return np.cumsum([0] + [len(s) for s in self.shards], dtype=np.int64)

    def __len__(self) -> int:
        return int(self.offsets[-1])

    def joined(self, name: str) -> np.ndarray:
        """A per-object field (ids, ra, dec, healpix, sn_median) over all shards, (n,)."""
        return np.concatenate([getattr(s, name) for s in self.shards])

    @cached_property
    def survey(self) -> np.ndarray:
        """(n,) name of the survey of each object."""
        return np.concatenate([np.full(len(s), s.survey) for s in self.shards])

    def tokens(self, patch: int) -> np.ndarray:
        """(n,) int64 at most this many patches of `patch` pixels in each object, one for its scalars included."""
        counts = []
        for s in self.shards:
            per_segment = np.concatenate([[0], np.cumsum(-(-np.diff(s.pixels) // patch))])
            counts.append(per_segment[s.segments[1:]] - per_segment[s.segments[:-1]] + 1)
        return np.concatenate(counts)

    def sky_fraction(self, seed: int) -> np.ndarray:
        """(n,) float64 in [0, 1): uniform and the same for all objects of one HEALPix pixel of order 12 (or, where only the
        centre of the field is known, for all spectra of one identifier).

        A split such as `sky_fraction(seed) < 0.2` never has one object, or its repeats, on both sides.
        """
        pixel = (self.joined("healpix") >> (2 * (29 - SPLIT_ORDER))).astype(str)
        place = np.where(self.joined("approximate"), self.joined("ids"), pixel)
        unique, inverse = np.unique(place, return_inverse=True)
        hashes = [hashlib.blake2b(f"{seed}:{p}".encode(), digest_size=8).digest() for p in unique.tolist()]
        return (np.array([int.from_bytes(h, "big") >> 11 for h in hashes], np.float64) / 2**53)[inverse]

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the names, sizes and checksums of the shards: it changes if the data do."""
        content = [(Path(s.path).name, len(s), s.crc32) for s in self.shards]
        return hashlib.sha256(repr(content).encode()).hexdigest()[:16]


def open_index(paths: Sequence[Path], comm: Any = None) -> DataIndex:
    """The index of these shards; rank 0 reads it, the others get it over MPI.

    Raises UserError if there are none, or one can't be read.
    """
    return on_root(comm, lambda: _read(paths))


def _read(paths: Sequence[Path]) -> DataIndex:
    if not paths:
        raise UserError("there are no shards: ingest the survey's files first")
    indices = []
    for path in paths:
        with Shard(path) as shard:
            indices.append(shard.index())
    return DataIndex(tuple(indices))
