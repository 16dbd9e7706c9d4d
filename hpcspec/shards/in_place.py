"""Samples that stay in the survey's files: a shard then has everything of its objects but these, and they are read again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hpcspec.errors import UserError
from hpcspec.surveys import read_rows
from hpcspec.surveys.base import Quarantined

if TYPE_CHECKING:
    from hpcspec.shards.shard import Shard


def fill_in_place(shard: Shard, start: int, stop: int, values: Sequence[Any], ivars: Sequence[Any]) -> None:
    """Samples start … stop-1 of a shard, of whole objects, from the files where they are; see `Shard.fill`.

    Raises UserError if a file is not what it was.
    """
    segments, pixels = shard.lengths()
    edges = pixels[segments]
    first, last = (int(i) for i in np.searchsorted(edges, (start, stop)))
    assert edges[first] == start and edges[last] == stop, "samples of whole objects"
    sources, rows = shard.column("source")[first:last], shard.column("row")[first:last]
    paths, sizes = shard.sources(), shard.file["source/size"][()]
    samples = np.empty((2, stop - start), np.float32)
    for source in np.unique(sources).tolist():
        path = Path(paths[source])
        if not path.is_file() or path.stat().st_size != sizes[source]:
            raise UserError(f"{path}, which {shard.path} reads in place, is gone or changed: ingest again")
        here = np.flatnonzero(sources == source)
        here = here[np.argsort(rows[here])]
        for i, one in zip(here.tolist(), read_rows(shard.info.survey, path, rows[here].tolist()), strict=True):
            a, b = edges[first + i] - start, edges[first + i + 1] - start
            arms = () if isinstance(one, Quarantined) else one.arms
            if sum(len(arm.flux) for arm in arms) != b - a:
                raise UserError(f"{path}, which {shard.path} reads in place, was changed: ingest again")
            samples[0, a:b] = np.concatenate([arm.flux for arm in arms])
            samples[1, a:b] = np.concatenate([arm.ivar for arm in arms])
    deal(samples[0], values)
    deal(samples[1], ivars)


def deal(samples: np.ndarray, places: Sequence[Any]) -> None:
    """Copy samples (v,) float32 into places that follow on one another: float32 arrays, or their bytes as memoryviews."""
    at = 0
    for place in places:
        into = np.frombuffer(place, np.float32)
        into[:] = samples[at : at + len(into)]
        at += len(into)
