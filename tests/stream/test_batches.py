from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcspec.stream.batch import Batch, apart
from hpcspec.stream.batches import in_order, ordered_batches, packs, prefetch, training_batches
from hpcspec.stream.index import DataIndex
from hpcspec.stream.tokens import Hiding
from tests.making import WORDS, assert_same, tensors, tokens_of
from tests.stream.cases import (
    Case,
    cases,
    epochs_begun,
    packs_until,
    thing,
    through_json,
    world_sizes,
)

CPU = torch.device("cpu")


@pytest.fixture
def case(pool: DataIndex) -> Case:
    """77 objects of three surveys, of up to 49 tokens."""
    index = DataIndex(tuple(pool.shards[i] for i in (3, 5, 6, 8, 5)))
    return Case(index, {"seed": 2, "lanes": 4, "block": 4, "shuffle_blocks": 2}, {"share": 0.2})


def some(case: Case, count: int, budget: int, mask: float = 0.5, depth: int = 3) -> list[Batch]:
    """The first batches of the only rank, and nothing left running."""
    with case.rank() as stream:
        return list(islice(training_batches(stream, budget, Hiding(mask, mask, 0.2), depth, CPU), count))


def content(batch: Batch) -> tuple[bytes, ...]:
    return (batch.objects.tobytes(), str(batch.lengths).encode(), *(t.numpy().tobytes() for t in tensors(batch).values()))


@pytest.mark.parametrize("budget", [1, 60, 100, 600])
def test_batches_keep_to_the_budget(case: Case, budget: int) -> None:
    batches = some(case, 12, budget)
    for batch in batches:
        assert len(batch) == 1 or sum(batch.lengths) <= budget
        assert list(batch.lengths) == sorted(batch.lengths) and len(batch.order) == sum(batch.lengths)
    sizes = [len(b) for b in batches]
    assert max(sizes) == 1 if budget == 1 else max(sizes) > budget // 60


def test_a_batch_holds_the_tokens_of_its_objects(case: Case) -> None:
    for batch in some(case, 8, 90):
        assert batch.hidden.any()
        for number, tokens in apart(batch).items():
            assert_same(tokens, tokens_of(case.thing(number)))


def test_resumed_at_any_batch_it_goes_on_bit_for_bit(case: Case) -> None:
    batches = some(case, 50, 80)
    assert sum(len(b) for b in batches) > 2 * case.selected.sum()  # over more than two epochs
    for cut in range(0, len(batches) - 4, 3):
        with case.rank(state=through_json([batches[cut].state])) as stream:
            for new, old in zip(
                training_batches(stream, 80, Hiding(0.5, 0.5, 0.2), 4, CPU), batches[cut + 1 : cut + 4], strict=False
            ):
                assert content(new) == content(old) and new.state == old.state


@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_each_object_comes_once_over_two_kills(pool: DataIndex, data: st.DataObject) -> None:
    """Ranks that are at unlike places, with batches ready that were never used, go on twice as other numbers of ranks."""
    case = data.draw(cases(pool))
    budget = data.draw(st.integers(20, 150))
    delivered: Counter[int] = Counter()
    state = None
    for _ in range(2):
        size, states = data.draw(world_sizes(case)), []
        for rank in range(size):
            with case.rank(rank, size, state) as stream:
                states.append(stream.state())
                for batch in islice(training_batches(stream, budget, Hiding(0.5, 0.5), 4, CPU), data.draw(st.integers(0, 3))):
                    delivered.update(batch.objects.tolist())
                    states[-1] = batch.state
        state = through_json(states)
    epochs, size = epochs_begun(state), data.draw(world_sizes(case))
    for rank in range(size):
        with case.rank(rank, size, state) as stream:
            delivered.update(number for _, number in packs_until(stream, epochs, budget))
    assert delivered == {n: epochs for n in np.flatnonzero(case.selected).tolist()}


def test_what_the_prefetch_has_read_is_not_in_the_state(case: Case) -> None:
    with case.rank() as stream:
        batches = training_batches(stream, 60, Hiding(0.5, 0.5), 8, CPU)
        first = next(batches)
        time.sleep(0.2)
        assert sum(done for _, _, done in first.state["positions"].values()) == len(first)
        assert stream.state() != first.state  # it is ahead
        batches.close()


def test_what_is_hidden_changes_from_epoch_to_epoch(case: Case) -> None:
    seen: dict[int, set[bytes]] = {}
    for batch in some(case, 4 * len(case.index), 1):
        if batch.lengths[0] > 4:
            seen.setdefault(int(batch.objects[0]), set()).add(batch.hidden.numpy().tobytes())
    assert len(seen) > 30 and sum(len(patterns) > 1 for patterns in seen.values()) > 0.9 * len(seen)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_in_order_each_object_once_with_its_own_samples(pool: DataIndex, data: st.DataObject) -> None:
    wanted = np.array(sorted(data.draw(st.sets(st.integers(0, len(pool) - 1), max_size=60))), np.int64)
    numbers = []
    for some_numbers, objects in in_order(pool, wanted, data.draw(st.integers(1, 40))):
        assert len(objects) == len(some_numbers)
        for i, number in enumerate(some_numbers.tolist()):
            values = [m.flux for m in thing(number).arms] + [m.value for m in thing(number).curves]
            a, b = objects.pixels[objects.segments[i : i + 2]]
            assert objects.value[a:b].tobytes() == b"".join(v.tobytes() for v in values)
            numbers.append(number)
    assert numbers == wanted.tolist()


@pytest.mark.parametrize("budget", [1, *range(50, 58), 200, 100_000])
def test_ordered_batches_deliver_each_object_once(pool: DataIndex, budget: int) -> None:
    numbers = np.arange(1, len(pool), 3)
    batches = list(ordered_batches(pool, numbers, WORDS, budget))
    assert sorted(np.concatenate([b.objects for b in batches]).tolist()) == numbers.tolist()
    tokens = pool.tokens(WORDS)
    assert all(len(b) == 1 or tokens[b.objects].sum() <= budget for b in batches)
    assert max(len(b) for b in batches) > min(budget // 60, 10)
    assert not any(b.hidden.any() for b in batches)
    for batch in batches[:20]:
        for number, tokens in apart(batch).items():
            assert_same(tokens, tokens_of(thing(number)))
    assert list(ordered_batches(pool, numbers[:0], WORDS, budget)) == []


def test_packs_and_batches_hold_the_same_objects(case: Case) -> None:
    with case.rank() as stream:
        wanted = [(sorted(p.numbers.tolist()), p.state) for p in islice(packs(stream, 100), 20)]
    assert [(sorted(b.objects.tolist()), b.state) for b in some(case, 20, 100)] == wanted


def alive() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == "prefetch"]


def gone() -> bool:
    deadline = time.monotonic() + 3
    while alive() and time.monotonic() < deadline:
        time.sleep(0.01)
    return not alive()


@pytest.mark.parametrize("depth", [1, 3, 100])
def test_prefetch_gives_the_same_items_and_ends(depth: int) -> None:
    assert list(prefetch(range(50), depth)) == list(range(50)) and gone()


def test_prefetch_stays_within_its_depth() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for i in range(100):
            made.append(i)
            yield i

    ahead = prefetch(items(), 3)
    assert next(ahead) == 0
    time.sleep(0.3)
    assert len(made) <= 5  # the one taken, three waiting, one in hand
    ahead.close()  # type: ignore[attr-defined]
    assert gone() and len(made) <= 6


@pytest.mark.parametrize("error", [ValueError("bad shard"), KeyboardInterrupt(), MemoryError("full")])
def test_prefetch_passes_errors_on(error: BaseException) -> None:
    def items() -> Iterator[int]:
        yield 1
        raise error

    ahead = prefetch(items(), 4)
    assert next(ahead) == 1
    with pytest.raises(type(error)) as caught:
        next(ahead)
    assert caught.value is error and gone()
