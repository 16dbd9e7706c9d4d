"""How scalars are standardised: measured on a sample of the objects."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from hpcspec.comm import on_root
from hpcspec.stream.batches import ordered_batches
from hpcspec.stream.index import DataIndex
from hpcspec.stream.vocabulary import Vocabulary

SAMPLE, RUN = 4096, 32  # objects of each survey, and how many of them follow on one another
BUDGET = 8192  # tokens
DECADES = 30.0  # a positive quantity whose 98 % span more than this factor is standardised by its logarithm


class Standards(NamedTuple):
    """(names,) f4 each: median and 1.4826·MAD of every name of a vocabulary, of its log10 where `logarithmic` is 1."""

    center: np.ndarray
    spread: np.ndarray
    logarithmic: np.ndarray


def standards(index: DataIndex, vocabulary: Vocabulary, comm: Any = None) -> Standards:
    """Those of the scalars of some objects of each survey; rank 0 reads them."""
    return on_root(comm, lambda: _measured(index, vocabulary))


def _measured(index: DataIndex, vocabulary: Vocabulary) -> Standards:
    names: list[np.ndarray] = []
    values: list[np.ndarray] = []
    for batch in ordered_batches(index, _sample(index), vocabulary, BUDGET):
        names.append(batch.scalars.name.numpy())
        values.append(batch.scalars.value.numpy())
    name, value = np.concatenate(names), np.concatenate(values)
    count = len(vocabulary.names)
    out = Standards(np.zeros(count, np.float32), np.ones(count, np.float32), np.zeros(count, np.float32))
    for k in range(1, count):
        known = value[name == k].astype(np.float64)
        if not len(known):
            continue
        low, high = np.quantile(known, (0.01, 0.99))
        if known.min() > 0 and high > DECADES * low:
            known, out.logarithmic[k] = np.log10(known), 1
        center = np.median(known)
        spread = 1.4826 * np.median(np.abs(known - center)) or known.std()
        out.center[k], out.spread[k] = center, spread if spread > 1e-6 * abs(center) else max(abs(center), 1.0)
    return out


def _sample(index: DataIndex) -> np.ndarray:
    """Numbers of at most SAMPLE objects of each survey, in runs all over its shards."""
    surveys = np.array([s.survey for s in index.shards])
    chosen = []
    for survey in np.unique(surveys):
        shards = np.flatnonzero(surveys == survey)
        before = np.cumsum([0] + [len(index.shards[s]) for s in shards])  # nothing is held per object: there may be 10⁸
        runs = -(-int(before[-1]) // RUN)
        few = np.unique(np.linspace(0, runs - 1, min(runs, SAMPLE // RUN)).astype(int))
        places = (few[:, None] * RUN + np.arange(RUN)).ravel()
        places = places[places < before[-1]]
        of = np.searchsorted(before, places, side="right") - 1
        chosen.append(index.offsets[shards[of]] + places - before[of])
    return np.sort(np.concatenate(chosen))
