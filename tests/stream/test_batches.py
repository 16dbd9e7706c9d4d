from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from itertools import islice, takewhile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcspec.stream.batches import Batch, collate, hide, in_order, ordered_batches, prefetch, training_batches
from hpcspec.stream.index import DataIndex, open_index
from hpcspec.stream.stream import Stream, joined_state
from hpcspec.stream.tokens import tokenize
from tests.making import pixels_of, shard, spectrum

PATCH, LANES = 8, 4


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> DataIndex:
    """36 objects of 2 to 25 tokens in three shards."""
    folder = tmp_path_factory.mktemp("shards")
    spectra = [spectrum(i, pixels=9 + 37 * i % 180) for i in range(36)]
    return open_index([shard(folder / f"sdss-{i:05d}.h5", spectra[12 * i : 12 * i + 12]) for i in range(3)])


def stream(index: DataIndex, rank: int = 0, size: int = 1) -> Stream:
    return Stream(index, np.arange(len(index)) % 5 > 0, seed=2, lanes=LANES, block=4, shuffle_blocks=2, rank=rank, size=size)


def content(batch: Batch) -> tuple[bytes, ...]:
    tensors = (batch.values, batch.sigma, batch.coordinates, batch.scalars, batch.hidden)
    return (batch.objects.tobytes(), str(batch.lengths).encode(), *(t.numpy().tobytes() for t in tensors))


@pytest.mark.parametrize("budget", [1, 40, 100, 600])
def test_batches_keep_to_the_budget(index: DataIndex, budget: int) -> None:
    for batch in islice(training_batches(stream(index), PATCH, budget, 0.5), 12):
        assert len(batch) == 1 or sum(batch.lengths) + len(batch) <= budget
        assert list(batch.lengths) == sorted(batch.lengths) and len(batch.values) == sum(batch.lengths)
    sizes = [len(b) for b in islice(training_batches(stream(index), PATCH, budget, 0.5), 12)]
    assert max(sizes) == 1 if budget == 1 else max(sizes) > budget // 60


def test_a_batch_holds_the_tokens_of_its_objects(index: DataIndex) -> None:
    for batch in islice(training_batches(stream(index), PATCH, 60, 0.4), 8):
        start = 0
        for number, length, scalars in zip(batch.objects.tolist(), batch.lengths, batch.scalars, strict=True):
            tokens = tokenize(pixels_of(spectrum(number, pixels=9 + 37 * number % 180)), PATCH)
            for name in ("values", "sigma", "coordinates"):
                wanted = torch.from_numpy(getattr(tokens, name).astype(np.float32))
                assert torch.equal(getattr(batch, name)[start : start + length], wanted)
            assert torch.equal(scalars, torch.from_numpy(tokens.scalars))
            hidden = batch.hidden[start : start + length]
            assert hidden.sum() == min(max(round(0.4 * length), 1), length - 1)
            start += length


def test_resumed_at_any_batch_it_goes_on_bit_for_bit(index: DataIndex) -> None:
    batches = list(islice(training_batches(stream(index), PATCH, 60, 0.5), 40))
    assert sum(len(b) for b in batches) > 2 * len(index)  # over more than two epochs
    for cut in range(len(batches) - 5):
        again = stream(index)
        again.restore(json.loads(json.dumps(batches[cut].state)))
        for new, old in zip(training_batches(again, PATCH, 60, 0.5), batches[cut + 1 : cut + 5], strict=False):
            assert content(new) == content(old) and new.state == old.state


@settings(max_examples=30, deadline=None)
@given(before=st.integers(1, LANES), after=st.integers(1, LANES), budget=st.integers(1, 80), data=st.data())
def test_each_object_comes_once_over_a_resume(index: DataIndex, before: int, after: int, budget: int, data: st.DataObject):
    """Ranks that are at unlike places, at a batch boundary each, go on as another number of ranks."""
    delivered: Counter[int] = Counter()
    states = []
    for rank in range(before):
        first = [stream(index, rank, before).state()]
        for batch in islice(training_batches(stream(index, rank, before), PATCH, budget, 0.5), data.draw(st.integers(0, 3))):
            delivered.update(batch.objects.tolist())
            first.append(batch.state)
        states.append(first[-1])
    state = joined_state(states)
    epochs = 1 + max(epoch for epoch, _ in state["positions"].values())
    for rank in range(after):
        rest = stream(index, rank, after)
        rest.restore(state)
        delivered.update(number for _, number, _ in takewhile(lambda x: x[0] < epochs, rest))
    assert delivered == {n: epochs for n in range(len(index)) if n % 5 > 0}


@given(count=st.integers(0, 300), share=st.floats(0.01, 0.99), seed=st.integers(0, 2**32))
def test_the_share_hidden_is_as_asked(count: int, share: float, seed: int) -> None:
    hidden = hide(count, share, (seed, 1))
    assert hidden.shape == (count,) and (hidden == hide(count, share, (seed, 1))).all()
    if count > 1:
        assert hidden.sum() == min(max(round(count * share), 1), count - 1)
    else:
        assert not hidden.any()


def test_what_is_hidden_changes_with_the_epoch(index: DataIndex) -> None:
    seen: dict[int, set[bytes]] = {}
    for batch in islice(training_batches(stream(index), PATCH, 1, 0.5), 4 * len(index)):
        seen.setdefault(int(batch.objects[0]), set()).add(batch.hidden.numpy().tobytes())
    assert sum(len(patterns) > 1 for patterns in seen.values()) > len(seen) / 2


@given(data=st.data())
def test_in_order_each_object_once_with_its_own_pixels(index: DataIndex, data: st.DataObject) -> None:
    numbers = np.array(sorted(data.draw(st.sets(st.integers(0, len(index) - 1)))), np.int64)
    found = list(in_order(index, numbers, block=data.draw(st.integers(1, 40))))
    assert [n for n, _ in found] == numbers.tolist()
    for number, pixels in found:
        wanted = pixels_of(spectrum(number, pixels=9 + 37 * number % 180))
        assert pixels.arms[0][1].tobytes() == wanted.arms[0][1].tobytes()


@pytest.mark.parametrize("budget", [1, 30, 100, 10_000])
def test_ordered_batches_deliver_each_object_once(index: DataIndex, budget: int) -> None:
    numbers = np.arange(1, len(index), 3)
    batches = list(ordered_batches(index, numbers, PATCH, budget))
    assert sorted(np.concatenate([b.objects for b in batches]).tolist()) == numbers.tolist()
    assert all(len(b) == 1 or sum(b.lengths) + len(b) <= budget for b in batches)
    assert not any(b.hidden.any() for b in batches) and (len(batches) == 1) == (budget == 10_000)
    assert list(ordered_batches(index, numbers[:0], PATCH, budget)) == []


def test_collate_puts_equal_lengths_together() -> None:
    tokens = [tokenize(pixels_of(spectrum(i, pixels=n)), PATCH) for i, n in enumerate((80, 8, 40, 8))]
    batch = collate([10, 11, 12, 13], tokens)
    assert batch.lengths == (1, 1, 5, 10) and batch.objects.tolist() == [11, 13, 12, 10]
    assert batch.to(torch.device("cpu")) is batch


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


def test_a_vanished_shard_is_an_error_where_the_batches_are_used(tmp_path: Path) -> None:
    index = open_index([shard(tmp_path / "sdss-00000.h5", [spectrum(i, pixels=30) for i in range(20)])])
    (tmp_path / "sdss-00000.h5").unlink()
    with pytest.raises(Exception, match="can't read shard .*sdss-00000.h5"):
        next(prefetch(training_batches(stream(index), PATCH, 50, 0.5), 2))
    assert gone()
