from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcspec.errors import UserError
from hpcspec.stream.index import DataIndex, open_index
from hpcspec.stream.order import cut_blocks, lane_order
from hpcspec.stream.stream import Stream, joined_state
from tests.making import dataset, shard, spectrum

Delivered = list[tuple[int, int]]


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> DataIndex:
    """Shards of 1 to 9 objects, of which random data sets are put together."""
    return dataset(tmp_path_factory.mktemp("pool"), range(1, 10), pixels=12)


@dataclass
class Case:
    """Some shards of the pool, some of their objects selected, and how they are dealt."""

    index: DataIndex
    selected: np.ndarray
    order: dict[str, int]

    def rank(self, rank: int = 0, size: int = 1, **changed: int) -> Stream:
        return Stream(self.index, self.selected, **{**self.order, **changed}, rank=rank, size=size)

    def ranks(self, size: int) -> list[Stream]:
        return [self.rank(rank, size) for rank in range(size)]

    def everything(self, epochs: int) -> Counter:
        return Counter((epoch, number) for epoch in range(epochs) for number in np.flatnonzero(self.selected).tolist())


@st.composite
def random_case(draw: st.DrawFn, pool: DataIndex) -> Case:
    shards = draw(st.lists(st.integers(0, len(pool.shards) - 1), min_size=1, max_size=5))
    index = DataIndex(tuple(pool.shards[i] for i in shards))
    selected = np.array(draw(st.lists(st.booleans(), min_size=len(index), max_size=len(index))))
    selected[draw(st.integers(0, len(index) - 1))] = True
    block = draw(st.integers(1, 6))
    lanes = draw(st.integers(1, min(6, len(cut_blocks(index, selected, block)))))
    return Case(index, selected, {"seed": draw(st.integers(0, 99)), "lanes": lanes, "block": block,
                                  "shuffle_blocks": draw(st.integers(1, 4))})  # fmt: skip


def until(stream: Stream, epochs: int) -> Delivered:
    """(epoch, number) of what a stream delivers before its first object of epoch `epochs`."""
    return [(epoch, number) for epoch, number, _ in takewhile(lambda x: x[0] < epochs, stream)]


def some(stream: Stream, count: int) -> Iterator[tuple[int, int, bytes]]:
    return ((e, n, b"".join(f.tobytes() for _, f, _ in pixels.arms)) for e, n, pixels in islice(stream, count))


def through_json(states: list[dict[str, Any]]) -> dict[str, Any]:
    return json.loads(json.dumps(joined_state(states)))


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_every_selected_object_once_an_epoch_whatever_the_world_size(pool: DataIndex, data: st.DataObject) -> None:
    case = data.draw(random_case(pool))
    for size in range(1, case.order["lanes"] + 1):
        delivered = [until(stream, 2) for stream in case.ranks(size)]
        assert Counter(x for each in delivered for x in each) == case.everything(2)
        assert all([e for e, _ in each] == sorted(e for e, _ in each) for each in delivered)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_each_lane_has_the_same_order_whatever_the_world_size(pool: DataIndex, data: st.DataObject) -> None:
    case = data.draw(random_case(pool))
    lanes = case.order["lanes"]
    alone = case.rank()
    seed, window = case.order["seed"], case.order["shuffle_blocks"]
    of = {(epoch, number): lane for epoch in range(2) for lane in range(lanes)
          for _, number in lane_order(alone.blocks, case.selected, seed, epoch, lane, lanes, window).tolist()}  # fmt: skip
    wanted: dict[int, Delivered] = {lane: [] for lane in range(lanes)}
    for x in until(alone, 2):
        wanted[of[x]].append(x)
    for size in range(2, lanes + 1):
        found: dict[int, Delivered] = {lane: [] for lane in range(lanes)}
        for rank, stream in enumerate(case.ranks(size)):
            for x in until(stream, 2):
                assert of[x] % size == rank
                found[of[x]].append(x)
        assert found == wanted


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_restored_stream_goes_on_bit_for_bit(pool: DataIndex, data: st.DataObject) -> None:
    case = data.draw(random_case(pool))
    size = data.draw(st.integers(1, case.order["lanes"]))
    streams = case.ranks(size)
    for stream in streams:
        list(some(stream, data.draw(st.integers(0, 3 * len(case.index)))))
    state = through_json([s.state() for s in streams])
    for old, new in zip(streams, case.ranks(size), strict=True):
        new.restore(state)
        assert list(some(new, 25)) == list(some(old, 25))


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_on_another_number_of_ranks_nothing_is_lost_or_repeated(pool: DataIndex, data: st.DataObject) -> None:
    case = data.draw(random_case(pool))
    before, after = (data.draw(st.integers(1, case.order["lanes"])) for _ in range(2))
    delivered: Delivered = []
    streams = case.ranks(before)
    for stream in streams:
        delivered += [(e, n) for e, n, _ in some(stream, data.draw(st.integers(0, 2 * len(case.index))))]
    end = max([0, *(e for e, _ in delivered)]) + 1
    state = through_json([s.state() for s in streams])
    for stream in case.ranks(after):
        stream.restore(state)
        delivered += until(stream, end)
    assert Counter(delivered) == case.everything(end)


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_pixels_are_those_of_the_number(pool: DataIndex, data: st.DataObject) -> None:
    case = data.draw(random_case(pool))
    ids = case.index.joined("ids")
    for _, number, pixels in takewhile(lambda x: x[0] < 1, case.rank()):
        wanted = spectrum(int(ids[number].removeprefix("object-")), pixels=12).arms[0]
        (wavelength, flux, ivar), = pixels.arms
        assert (wavelength.tobytes(), flux.tobytes(), ivar.tobytes()) == (
            wanted.wavelength.tobytes(), wanted.flux.tobytes(), wanted.ivar.tobytes())  # fmt: skip


@pytest.fixture
def case(pool: DataIndex) -> Case:
    return Case(pool, np.arange(len(pool)) % 4 > 0, {"seed": 1, "lanes": 4, "block": 3, "shuffle_blocks": 2})


def test_epochs_and_seeds_have_orders_of_their_own(case: Case) -> None:
    first, second = ([n for e, n in until(case.rank(), 2) if e == epoch] for epoch in range(2))
    other = [n for _, n in until(case.rank(seed=2), 1)]
    assert sorted(first) == sorted(second) == sorted(other)
    assert first != sorted(first) and first != second and first != other
    assert first == [n for _, n in until(case.rank(), 1)]


@pytest.mark.parametrize(("name", "value"), [("seed", 2), ("lanes", 3), ("block", 4), ("shuffle_blocks", 3)])
def test_a_state_of_another_order_is_refused(case: Case, name: str, value: int) -> None:
    state = case.rank().state()
    with pytest.raises(UserError, match=f"data stream has {name} {case.order[name]}, this run {value}"):
        case.rank(**{name: value}).restore(state)


def test_a_state_of_another_selection_is_refused(case: Case) -> None:
    state = case.rank().state()
    with pytest.raises(UserError, match="data stream has selected"):
        replace(case, selected=~case.selected).rank().restore(state)


def test_a_state_of_other_data_is_refused(case: Case, tmp_path: Path) -> None:
    state = case.rank().state()
    fewer = DataIndex(case.index.shards[1:])
    with pytest.raises(UserError, match="data stream has fingerprint .* the data or the configuration changed"):
        Case(fewer, np.ones(len(fewer), bool), case.order).rank().restore(state)


def test_a_data_set_can_t_be_dealt_to_too_many(case: Case) -> None:
    for size, changed, reason in ((5, {}, "training.lanes is 4, fewer than the 5 ranks"),
                                  (1, {"block": 100, "lanes": 10}, "8 blocks of data for 10 lanes")):  # fmt: skip
        with pytest.raises(UserError, match=reason):
            case.rank(size=size, **changed)
    with pytest.raises(UserError, match="no object is left"):
        replace(case, selected=np.zeros(len(case.index), bool)).rank()


@pytest.mark.parametrize("changed", [{"pixels": 13}, {"grids": ("linear",)}, {"ra": 10.0}, {"object_id": "new"}, {"number": 9}])
def test_the_fingerprint_changes_with_the_data(tmp_path: Path, changed: dict[str, Any]) -> None:
    def fingerprint(folder: str, number: int = 0, **changed: Any) -> str:
        one = spectrum(number, **{"pixels": 12, **changed})
        return open_index([shard(tmp_path / folder / "sdss-00000.h5", [one])]).fingerprint

    assert fingerprint("a") == fingerprint("b") != fingerprint("c", **changed)
