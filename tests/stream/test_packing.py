from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcspec.stream import packing
from hpcspec.stream.batches import PACKS_AHEAD, packs, prefetch
from hpcspec.stream.index import DataIndex, open_index
from hpcspec.stream.packing import Memory, Packed, layout
from hpcspec.stream.patches import coordinates_at
from hpcspec.stream.vocabulary import IGNORED, Vocabulary
from hpcspec.surveys.observation import Arm, Curve, Observation
from tests.making import GRIDS, WORDS, objects_of, packed, shard, spectrum
from tests.stream.cases import Case, cases, contents, light_curve, through_json

# Pixels of the arms of one spectrum, as the surveys deliver them.
LENGTHS = {"sdss": [3850], "desi": [2751, 2326, 2881], "apogee": [2920, 2400, 1894], "galah": [4096] * 4}


def measured(one: Observation) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(coordinates f8, value f4, ivar f4) of each arm, then of each light curve."""
    return [(a.wavelength, a.flux, a.ivar) for a in one.arms] + [(c.time, c.value, c.ivar) for c in one.curves]


def unpacked(pack: Packed) -> list[list[tuple[np.ndarray, np.ndarray, np.ndarray]]]:
    """The same for each object of a pack."""
    found: list[list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = [[] for _ in range(len(pack))]
    edges = pack.segments.tolist()
    for s, owner in enumerate(pack.owner.tolist()):
        place = torch.arange(edges[s + 1] - edges[s])
        coordinates = coordinates_at(pack, torch.full_like(place, s), place)
        found[owner].append((coordinates.numpy(), *pack.samples[:, edges[s] : edges[s + 1]].numpy()))
    assert edges[-1] == pack.samples.shape[1]
    return found


def assert_holds(pack: Packed, wanted: Sequence[Observation]) -> None:
    """It has the samples of these objects to the last bit, and their coordinates."""
    assert len(pack) == len(wanted) == len(pack.amplitude) == len(pack.sn_median)
    for i, (found, one) in enumerate(zip(unpacked(pack), wanted, strict=True)):
        for (x, value, ivar), (wanted_x, wanted_value, wanted_ivar) in zip(found, measured(one), strict=True):
            assert value.tobytes() == wanted_value.tobytes() and ivar.tobytes() == wanted_ivar.tobytes()
            np.testing.assert_allclose(x, wanted_x, rtol=1e-14)
        assert pack.amplitude[i] == np.float32(one.amplitude) and pack.sn_median[i] == np.float32(one.sn_median)
        known = [one.scalars.get(name, (np.nan, np.nan)) for name in WORDS.measured]
        np.testing.assert_array_equal(pack.scalars[i].numpy(), np.array(known, np.float32))


@st.composite
def observations(draw: st.DrawFn) -> list[Observation]:
    """Spectra of any arms, light curves, both, or scalars alone."""
    ones = []
    for number in range(draw(st.integers(1, 8))):
        grids = draw(st.lists(st.sampled_from(sorted(GRIDS)), max_size=4))
        curves: tuple[Curve, ...] = tuple(c for i in range(draw(st.integers(0, 2)))
                                          for c in light_curve(10 * number + i, draw(st.integers(1, 30))).curves)  # fmt: skip
        ones.append(spectrum(number, grids, draw(st.integers(1, 70)), curves=curves, scalars={"teff": (5000.0, 10.0)}))
    return ones


@settings(max_examples=60, deadline=None)
@given(ones=observations())
def test_a_pack_holds_the_samples_of_its_objects(ones: list[Observation]) -> None:
    pack = packed(ones, epoch=3)
    assert_holds(pack, ones)
    assert pack.numbers.tolist() == list(range(len(ones))) and pack.epochs.tolist() == [3] * len(ones)
    assert pack.owner.tolist() == [i for i, one in enumerate(ones) for _ in measured(one)]
    bands = [b for one in ones for b in [-1] * len(one.arms) + [WORDS.bands.index(f"{c.band} mag") for c in one.curves]]
    assert pack.band.tolist() == bands
    unread = packed(ones, of=Vocabulary(8, 4, ("scalars",), (), ("teff",)))
    assert unread.band.tolist() == [IGNORED] * len(bands) and unread.scalars.shape == (len(ones), 1, 2)


def test_samples_past_the_middle_of_a_grid_know_where_they_are() -> None:
    for grid, first in GRIDS.values():
        flux = np.ones(50, np.float32)
        one = spectrum(0, arms=(Arm("a", grid, first + 1000, flux, flux),))
        assert_holds(packed([one]), [one])


@settings(max_examples=40, deadline=None)
@given(ones=observations(), data=st.data())
def test_any_parts_of_a_layout_in_any_order_lie_as_their_objects_do(ones: list[Observation], data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(1, len(ones)), max_size=2)))
    sets = [some for a, b in pairwise([0, *cuts, len(ones)]) if (some := ones[a:b])]
    order = data.draw(st.permutations(range(len(ones))).map(lambda of: of[: max(1, len(of) - 2)]))
    cut = data.draw(st.integers(0, len(order)))
    of = layout([objects_of(some) for some in sets], np.arange(len(ones)), WORDS).take(np.array(order))
    parts = [of.part(a, b) for a, b in ((0, cut), (cut, len(order))) if a < b]
    wanted = [ones[i] for i in order]
    alone = [objects_of([one]) for one in wanted]
    samples = np.concatenate([one.samples for one in alone], axis=1)
    assert_holds(packing.pack(parts, [0] * len(parts), torch.from_numpy(samples)), wanted)
    assert of.counts[:, 0].tolist() == order and of.samples[-1] == samples.shape[1]
    assert np.diff(of.tokens).tolist() == [layout([one], np.zeros(1, int), WORDS).tokens[1] for one in alone]
    room = data.draw(st.integers(0, of.tokens[-1] + 3))
    stop = of.fitting(cut, len(of), room)
    assert of.tokens[stop] - of.tokens[cut] <= room and (stop == len(of) or of.tokens[stop + 1] - of.tokens[cut] > room)


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_packs_hold_what_the_shards_do_and_keep_the_budget(pool: DataIndex, data: st.DataObject) -> None:
    """…also after a restart, and although all of them are still held when they are looked at."""
    case, budget = data.draw(cases(pool)), data.draw(st.integers(1, 120))
    lanes = case.order["lanes"]
    size = data.draw(st.integers(1, lanes))
    rank = data.draw(st.integers(0, size - 1))
    with case.rank(rank, size) as stream:
        held = list(islice(prefetch(packs(stream, budget), 3), 6))
        state = held[-1].state
    with case.rank(rank, size, {**state, "positions": everywhere(lanes) | state["positions"]}) as stream:
        held += list(islice(packs(stream, budget), 12))
    tokens = case.index.tokens(WORDS)
    for pack in held:
        assert len(pack) == 1 or tokens[pack.numbers].sum() <= budget
        assert_holds(pack, [case.thing(n) for n in pack.numbers.tolist()])


def everywhere(lanes: int) -> dict[str, list[int]]:
    return {str(lane): [0, 0, 0] for lane in range(lanes)}


def test_an_object_larger_than_the_budget_comes_alone(tmp_path: Path) -> None:
    ones = [spectrum(n, pixels=400 if n % 3 else 30) for n in range(12)]
    case = Case(open_index([shard(tmp_path / "sdss-0.h5", ones)]), {"seed": 1, "lanes": 2, "block": 3, "shuffle_blocks": 1})
    with case.rank() as stream:
        found = list(islice(packs(stream, 20), 30))
    assert all(len(p) == 1 for p in found if (p.numbers % 3 > 0).any()) and any(len(p) > 1 for p in found)
    for pack in found:
        assert_holds(pack, [ones[n] for n in pack.numbers])


@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_resumed_packs_are_the_same_to_the_last_bit(pool: DataIndex, data: st.DataObject) -> None:
    case, budget = data.draw(cases(pool)), data.draw(st.integers(1, 200))
    size = data.draw(st.integers(1, min(3, case.order["lanes"])))
    cut = data.draw(st.integers(0, 15))
    whole, states = [], []
    for rank in range(size):
        with case.rank(rank, size) as stream:
            whole.append(list(islice(packs(stream, budget), cut + 6)))
            states.append(whole[-1][cut].state)
    for rank in range(size):
        with case.rank(rank, size, through_json(states)) as stream:
            for new, old in zip(packs(stream, budget), whole[rank][cut + 1 :], strict=False):
                assert contents(new) == contents(old) and new.state == old.state
                for name in (
                    "samples",
                    "segments",
                    "kind",
                    "axis",
                    "listed",
                    "band",
                    "owner",
                    "amplitude",
                    "sn_median",
                    "scalars",
                ):
                    assert torch.equal(getattr(new, name).nan_to_num(-1), getattr(old, name).nan_to_num(-1))


def mix(folder: Path, each: int) -> DataIndex:
    """As many objects of each survey, with lengths like theirs (all samples alike: only lengths matter)."""
    paths = []
    for survey, lengths in LENGTHS.items():
        arms = tuple(Arm(f"{i}", *GRIDS["log10"], *np.ones((2, n), np.float32)) for i, n in enumerate(lengths))
        ones = [spectrum(n, arms=arms, survey=survey, object_id=f"{survey}-{n}") for n in range(each)]
        paths.append(shard(folder / f"{survey}.h5", ones, survey=survey))
    return open_index(paths)


def test_few_token_slots_are_left_empty(tmp_path: Path) -> None:
    index = mix(tmp_path, 130)
    of = Vocabulary(32)
    tokens = index.tokens(of)
    case = Case(index, {"seed": 1, "lanes": 8, "block": 8, "shuffle_blocks": 2})
    with case.rank() as stream:
        stream.vocabulary = of
        used = [tokens[pack.numbers].sum() for pack in islice(packs(stream, 8192), 25)]
    assert max(used) <= 8192 and np.mean(used) / 8192 >= 0.97


def test_memory_comes_again_only_when_nobody_holds_it() -> None:
    memory = Memory(100)
    first, second = memory.new(100), memory.new(60)
    first[:], second[:] = 1, 2
    part = first[1, 5:9]  # holds all of it
    places = {first.data_ptr(), second.data_ptr()}
    del first
    third = memory.new(40)
    third[:] = 3
    assert third.data_ptr() not in places and (part == 1).all() and (second == 2).all()
    array = second.numpy()
    del second
    fourth = memory.new(50)
    fourth[:] = 4
    assert (array == 2).all()
    del array, part
    assert {memory.new(7).data_ptr(), memory.new(9).data_ptr()} <= places | {fourth.data_ptr()}
    held = [memory.new(90) for _ in range(4)]
    assert len({m.data_ptr() for m in held}) == 4
    larger = memory.new(500)
    assert larger.shape == (2, 500) and larger.is_contiguous() and held[0].is_contiguous()


@pytest.mark.parametrize("holding", [0, 1, 7])
def test_packs_use_little_memory_and_overwrite_none_that_is_held(
    pool: DataIndex, holding: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Memory] = []

    class Watched(Memory):
        def __init__(self, *arguments: object):
            super().__init__(*arguments)
            made.append(self)

    monkeypatch.setattr("hpcspec.stream.batches.Memory", Watched)
    case = Case(pool, {"seed": 3, "lanes": 8, "block": 4, "shuffle_blocks": 2})
    held: list[tuple[Packed, bytes]] = []

    def watched(found: Iterator[Packed]) -> None:
        for pack in found:
            held.append((pack, pack.samples.numpy().tobytes()))
            if len(held) > holding:
                held.pop(0)
            assert all(p.samples.numpy().tobytes() == content for p, content in held)

    with case.rank() as stream:
        watched(islice(prefetch(packs(stream, 100), 2), 120))
    held.clear()
    gc.collect()
    assert len(made) == 1 and 0 < len(made[0]._free) < 40 + PACKS_AHEAD + holding
