from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcspec.stream.order import Blocks, epoch_blocks, survey_weights, window_order

COUNTS = st.lists(st.integers(0, 40), min_size=1, max_size=12)
SURVEYS = st.dictionaries(st.text("abcdef", min_size=1), st.integers(1, 10**7), min_size=1, max_size=6)


@given(counts=COUNTS, size=st.integers(1, 50))
def test_blocks_hold_each_object_once(counts: list[int], size: int) -> None:
    blocks = Blocks(counts, size)
    held = [(shard, i) for b in range(len(blocks)) for shard, start, stop in [blocks.place(b)] for i in range(start, stop)]
    assert held == [(shard, i) for shard, count in enumerate(counts) for i in range(count)]
    assert all(0 < stop - start <= size for _, start, stop in map(blocks.place, range(len(blocks))))


@given(counts=COUNTS, size=st.integers(1, 50), data=st.data())
def test_blocks_of_some_shards(counts: list[int], size: int, data: st.DataObject) -> None:
    blocks = Blocks(counts, size)
    some = sorted(data.draw(st.sets(st.integers(0, len(counts) - 1))))
    assert blocks.of(np.array(some, int)).tolist() == [b for b in range(len(blocks)) if blocks.place(b)[0] in some]


@given(objects=SURVEYS, temperature=st.floats(0.2, 100))
def test_an_epoch_keeps_its_length_and_surveys_get_their_shares(objects: dict[str, int], temperature: float) -> None:
    passes = survey_weights(objects, temperature, {})
    total = sum(objects.values())
    assert sum(passes[s] * n for s, n in objects.items()) == pytest.approx(total)
    for a in objects:
        for b in objects:
            wanted = (objects[a] / objects[b]) ** (1 / temperature)
            assert passes[a] * objects[a] == pytest.approx(wanted * passes[b] * objects[b], rel=1e-6)


@given(objects=SURVEYS)
def test_temperatures_1_and_high(objects: dict[str, int]) -> None:
    assert survey_weights(objects, 1.0, {}) == dict.fromkeys(objects, 1.0)
    passes = survey_weights(objects, 1e9, {})
    assert all(passes[s] * n == pytest.approx(sum(objects.values()) / len(objects), rel=1e-5) for s, n in objects.items())


@given(objects=SURVEYS, temperature=st.floats(0.5, 10), data=st.data())
def test_weights_multiply(objects: dict[str, int], temperature: float, data: st.DataObject) -> None:
    given_weights = data.draw(st.dictionaries(st.sampled_from(sorted(objects)), st.floats(0, 9)))
    plain, weighted = survey_weights(objects, temperature, {}), survey_weights(objects, temperature, given_weights)
    assert weighted == {s: pytest.approx(plain[s] * given_weights.get(s, 1.0)) for s in objects}


@given(sizes=st.lists(st.integers(0, 30), min_size=1, max_size=4), seed=st.integers(0, 2**63), epochs=st.integers(1, 12),
       weights=st.lists(st.floats(0, 4), min_size=4, max_size=4))  # fmt: skip
def test_no_block_is_a_pass_ahead_of_another(sizes: list[int], seed: int, epochs: int, weights: list[float]) -> None:
    edges = np.cumsum([0, *sizes]).tolist()
    groups = [np.arange(a, b) for a, b in zip(edges[:-1], edges[1:], strict=True)]
    weights = weights[: len(groups)]
    count = np.zeros(edges[-1], int)
    for epoch in range(epochs):
        count += np.bincount(epoch_blocks(groups, weights, seed, epoch), minlength=edges[-1])
        for group, weight in zip(groups, weights, strict=True):
            if len(group):
                due = weight * (epoch + 1)
                assert math.floor(due - 1e-9) <= count[group].min() <= count[group].max() <= math.ceil(due + 1e-9)
                assert abs(count[group].sum() - due * len(group)) <= 0.5 + 1e-9


@given(sizes=st.lists(st.integers(0, 30), min_size=1, max_size=4), seed=st.integers(0, 2**63), epoch=st.integers(0, 10**6))
def test_with_weight_1_an_epoch_is_every_block_once(sizes: list[int], seed: int, epoch: int) -> None:
    edges = np.cumsum([0, *sizes]).tolist()
    groups = [np.arange(a, b) for a, b in zip(edges[:-1], edges[1:], strict=True)]
    assert sorted(epoch_blocks(groups, [1.0] * len(groups), seed, epoch).tolist()) == list(range(edges[-1]))


def test_each_epoch_pass_and_seed_has_its_own_order() -> None:
    groups = [np.arange(100), np.arange(100, 200)]
    orders = [epoch_blocks(groups, [1.0, 1.0], seed, epoch).tolist() for seed in (1, 2) for epoch in (0, 1)]
    assert len({tuple(o) for o in orders}) == 4 and orders[0] == epoch_blocks(groups, [1.0, 1.0], 1, 0).tolist()
    halves = [set(epoch_blocks(groups, [0.5, 0.25], 1, epoch).tolist()) for epoch in range(4)]
    assert halves[0] | halves[1] >= set(range(100)) and halves[0] & set(range(100)) != halves[2] & set(range(100))
    assert set.union(*halves) == set(range(200))
    first, second = ([b % 100 for b in sorted(halves[0]) if b // 100 == k] for k in (0, 1))
    assert set(second) - set(first)  # surveys are not shuffled alike


@given(count=st.integers(0, 200), seed=st.integers(0, 2**63), key=st.tuples(*[st.integers(0, 10**6)] * 3))
def test_a_window_s_order_has_each_object_once(count: int, seed: int, key: tuple[int, int, int]) -> None:
    order = window_order(count, seed, *key)
    assert sorted(order.tolist()) == list(range(count)) and (order == window_order(count, seed, *key)).all()


def test_windows_have_orders_of_their_own() -> None:
    keys = [(1, 0, 0, 0), (2, 0, 0, 0), (1, 1, 0, 0), (1, 0, 1, 0), (1, 0, 0, 1)]
    assert len({tuple(window_order(20, *key).tolist()) for key in keys}) == 5
