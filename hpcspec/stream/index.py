"""What all shards of a run hold together: read by one rank, broadcast to the others."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from hpcspec.comm import on_root
from hpcspec.errors import UserError
from hpcspec.shards.objects import texts
from hpcspec.shards.shard import Shard, ShardInfo, describe
from hpcspec.stream import split
from hpcspec.stream.vocabulary import Vocabulary, tokens_of


@dataclass(frozen=True)
class DataIndex:
    """The objects of several shards, numbered 0 … n-1 in the order of the shards.

    It holds a few hundred bytes per shard and nothing per object; columns of the objects are read when asked for.
    """

    shards: tuple[ShardInfo, ...]
    _columns: dict[str, np.ndarray] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def offsets(self) -> np.ndarray:
        """(shards+1,) int64: number of the first object of each shard."""
        return np.cumsum([0] + [len(s) for s in self.shards], dtype=np.int64)

    def __len__(self) -> int:
        return int(self.offsets[-1])

    def column(self, name: str) -> np.ndarray:
        """A per-object column (id, ra, dec, healpix, approximate, sn_median, amplitude, source, row) over all shards, (n,)."""
        if name not in self._columns:
            parts = []
            for info in self.shards:
                with Shard(info) as shard:
                    parts.append(shard.column(name))
            self._columns[name] = texts(np.concatenate(parts)) if name == "id" else np.concatenate(parts)
        return self._columns[name]

    @cached_property
    def survey(self) -> np.ndarray:
        """(n,) name of the survey of each object."""
        return np.concatenate([np.full(len(s), s.survey) for s in self.shards])

    def tokens(self, of: Vocabulary) -> np.ndarray:
        """(n,) int64 at most this many tokens in each object."""
        counts = []
        for info in self.shards:
            with Shard(info) as shard:
                objects = shard.read(0, len(info), (), samples=False)
                scalars = of.scalars(objects.scalars, info.scalar_names)
                bands = of.band(info.channels)[objects.channel]
                counts.append(tokens_of(objects.segments, np.diff(objects.pixels), objects.first, bands, scalars, of))
        return np.concatenate(counts)

    def sky_fraction(self, seed: int) -> np.ndarray:
        """(n,) of `split.sky_fraction`."""
        return split.sky_fraction({name: self.column(name) for name in split.COLUMNS}, seed)

    def lowest_fraction(self, seed: int) -> np.ndarray:
        """(n,) of `split.lowest_fraction`."""
        return split.lowest_fraction({name: self.column(name) for name in split.COLUMNS}, seed)

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
    return DataIndex(tuple(describe(path) for path in paths))
