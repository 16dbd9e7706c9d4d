"""Random data sets of several surveys, the streams over them, and what they must deliver."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from hpcspec.stream.batches import packs
from hpcspec.stream.index import DataIndex, open_index
from hpcspec.stream.packing import Packed
from hpcspec.stream.stream import Stream, joined_state
from hpcspec.surveys.observation import Observation
from tests.making import GRIDS, WORDS, curve, shard, spectrum, star

SHARDS = (("sdss", 1), ("sdss", 2), ("sdss", 5), ("sdss", 33), ("desi", 1), ("desi", 17), ("desi", 3), ("apogee", 200),
          ("apogee", 7), ("apogee", 1))  # fmt: skip


def light_curve(number: int, count: int) -> Observation:
    """A star seen in one band, with a scalar and no spectrum."""
    return spectrum(number, (), curves=(curve(number, count),), scalars={"teff": (5000.0 + number, 50.0)})


def thing(number: int) -> Observation:
    """Object `number` of the pool: 2 to 49 tokens, on any of the grids, at times a light curve, scalars, or all of them."""
    if number % 11 == 5:
        return light_curve(number, 1 + number % 40)
    if number % 23 == 7:
        return star(number, 8 * (number % 9))
    if number % 37 == 9:
        return spectrum(number, (), scalars={"parallax": (1.0 + number, 0.1)})
    grids = list(GRIDS)[number % 5 :][: 1 + number % 2]
    return spectrum(number, grids, pixels=4 + 37 * number % 180)


def make_pool(folder: Path) -> DataIndex:
    """Shards of three surveys with 1 to 200 objects."""
    first = np.cumsum([0] + [count for _, count in SHARDS]).tolist()
    paths = [shard(folder / f"{survey}-{i:05d}.h5", [thing(n) for n in range(first[i], first[i + 1])],
                   "blosc" if i == 3 else "none", survey) for i, (survey, _) in enumerate(SHARDS)]  # fmt: skip
    return open_index(paths)


@dataclass
class Case:
    """A data set and how it is dealt."""

    index: DataIndex
    order: dict[str, int]
    options: dict[str, Any] = field(default_factory=dict)

    def changed(self, **order: int) -> Case:
        return replace(self, order={**self.order, **order})

    @contextmanager
    def rank(self, rank: int = 0, size: int = 1, state: dict[str, Any] | None = None) -> Iterator[Stream]:
        """The stream of one rank, going on from a state of all."""
        stream = Stream(self.index, **self.order, **self.options, vocabulary=WORDS, rank=rank, size=size)
        try:
            if state is not None:
                stream.restore(state)
            yield stream
        finally:
            stream.close()

    @property
    def selected(self) -> np.ndarray:
        """(n,) bool: the objects on the training side."""
        return self.index.lowest_fraction(self.order["seed"]) >= self.options.get("share", 0.0)

    def everything(self, epochs: int) -> Counter[tuple[int, int]]:
        """Each (epoch, number) once."""
        return Counter((epoch, n) for epoch in range(epochs) for n in np.flatnonzero(self.selected).tolist())

    def thing(self, number: int) -> Observation:
        """The observation that has this number."""
        return thing(int(self.index.column("id")[number].removeprefix("object-")))


@st.composite
def cases(draw: st.DrawFn, pool: DataIndex, share: bool = True) -> Case:
    """Some of the shards, one perhaps twice, dealt to 1 to 64 lanes."""
    index = DataIndex(tuple(pool.shards[i] for i in draw(st.lists(st.integers(0, len(SHARDS) - 1), min_size=1, max_size=6))))
    block = draw(st.integers(1, 9))
    blocks = sum(-(-len(s) // block) for s in index.shards)
    order = {"seed": draw(st.integers(0, 2**32)), "lanes": draw(st.integers(1, min(64, blocks))), "block": block,
             "shuffle_blocks": draw(st.integers(1, 6))}  # fmt: skip
    case = Case(index, order, {"share": draw(st.sampled_from([0.0, 0.2, 0.5])) if share else 0.0})
    return case if case.selected.mean() > 0.3 else replace(case, options={"share": 0.0})


def world_sizes(case: Case) -> st.SearchStrategy[int]:
    """Numbers of ranks: few as a rule, at times as many as there are lanes."""
    lanes = case.order["lanes"]
    return st.integers(1, min(4, lanes)) | st.integers(1, min(9, lanes)) | st.sampled_from([lanes, (lanes + 1) // 2])


def passed(stream: Stream, epochs: int) -> bool:
    """Whether every lane of a rank has done so many epochs."""
    return min(epoch for epoch, _, _ in stream.positions.values()) >= epochs


def one(stream: Stream) -> tuple[int, int]:
    """Epoch and number of the next object, drawn alone."""
    run = stream.next(0, 1)
    assert run is not None and run.stop == run.start + 1
    return run.epoch, int(run.layout.counts[0, 0])


def until(stream: Stream, epochs: int) -> Iterator[tuple[int, int]]:
    """(epoch, number) of the objects of the first `epochs` epochs that are still to come."""
    while not passed(stream, epochs):
        epoch, number = one(stream)
        if epoch < epochs:
            yield epoch, number


def packs_until(stream: Stream, epochs: int, budget: int) -> Iterator[tuple[int, int]]:
    """The same through packs: those whose samples came."""
    if passed(stream, epochs):
        return
    for pack in packs(stream, budget):
        yield from ((e, n) for e, n in contents(pack) if e < epochs)
        if min(epoch for epoch, _, _ in pack.state["positions"].values()) >= epochs:
            return


def contents(pack: Packed) -> list[tuple[int, int]]:
    """(epoch, number) of its objects."""
    return list(zip(pack.epochs.tolist(), pack.numbers.tolist(), strict=True))


def epochs_begun(state: dict[str, Any]) -> int:
    """How many epochs a state's lanes have begun."""
    return 1 + max(epoch for epoch, _, _ in state["positions"].values())


def through_json(states: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The state of all ranks as a checkpoint gives it back."""
    return json.loads(json.dumps(joined_state(states)))
