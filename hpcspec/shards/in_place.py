"""Samples that stay in the survey's files: a shard then has everything of its objects but these, and they are read again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hpcspec.errors import UserError
from hpcspec.shards.objects import encoded
from hpcspec.surveys import read_rows
from hpcspec.surveys.base import Quarantined

if TYPE_CHECKING:
    from hpcspec.shards.shard import Shard


def fill_in_place(shard: Shard, start: int, stop: int, values: Sequence[Any], ivars: Sequence[Any]) -> None:
    """Samples start … stop-1 of a shard, of whole objects, from the files where they are; see `Shard.fill`.

    Raises UserError if a file is not what it was: gone, of another size, or with other identifiers or lengths in these rows.
    """
    segments, pixels = shard.lengths()
    edges = pixels[segments]
    first, last = (int(i) for i in np.searchsorted(edges, (start, stop)))
    assert edges[first] == start and edges[last] == stop, "samples of whole objects"
    sources, rows, ids = (shard.column(name, first, last) for name in ("source", "row", "id"))
    paths, sizes = shard.sources(), shard.file["source/size"][()]
    samples = np.empty((2, stop - start), np.float32)
    for source in np.unique(sources).tolist():
        path = Path(paths[source])
        if not path.is_file() or path.stat().st_size != sizes[source]:
            raise UserError(f"{path}, which {shard.path} reads in place, is gone or changed: ingest again")
        here = np.flatnonzero(sources == source)
        here = here[np.argsort(rows[here])]
        found = read_rows(shard.info.survey, path, rows[here].tolist())
        arms = [() if isinstance(one, Quarantined) else one.arms for one in found]
        lengths = [sum(len(arm.flux) for arm in of_one) for of_one in arms]
        same = np.array_equal(encoded([one.object_id for one in found]), ids[here])
        if not same or not np.array_equal(lengths, edges[first + here + 1] - edges[first + here]):
            raise UserError(f"{path}, which {shard.path} reads in place, was changed: ingest again")
        for at, of_one in zip((edges[first + here] - start).tolist(), arms, strict=True):
            for arm in of_one:
                samples[:, at : at + len(arm.flux)] = arm.flux, arm.ivar
                at += len(arm.flux)
    deal(samples[0], values)
    deal(samples[1], ivars)


def deal(samples: np.ndarray, places: Sequence[Any]) -> None:
    """Copy samples (v,) float32 into places that follow on one another: float32 arrays, or their bytes as memoryviews."""
    at = 0
    for place in places:
        into = np.frombuffer(place, np.float32)
        into[:] = samples[at : at + len(into)]
        at += len(into)
