from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcspec.model.attention import AttentionPool, Packing, attend, runs, segments

LENGTHS = st.lists(st.tuples(st.integers(0, 5), st.integers(1, 6)), min_size=1, max_size=7)


def naive(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, queries: Packing, keys: Packing) -> torch.Tensor:
    """softmax(q·k/√E)·v, object by object and head by head."""
    out = torch.zeros_like(q)
    for i in range(len(queries.lengths)):
        here = slice(queries.offsets[i], queries.offsets[i + 1])
        there = slice(keys.offsets[i], keys.offsets[i + 1])
        for h in range(q.shape[1]):
            weights = torch.softmax(q[here, h] @ k[there, h].T / q.shape[2] ** 0.5, dim=-1)
            out[here, h] = weights @ v[there, h]
    return out


@settings(max_examples=60, deadline=None)
@given(lengths=LENGTHS, heads=st.integers(1, 3), seed=st.integers(0, 999))
def test_attention_is_the_plain_one_of_each_object_alone(lengths: list[tuple[int, int]], heads: int, seed: int) -> None:
    queries, keys = Packing(tuple(q for q, _ in lengths)), Packing(tuple(k for _, k in lengths))
    rng = torch.Generator().manual_seed(seed)
    q, k, v, g = (torch.randn(n, heads, 4, dtype=torch.float64, generator=rng)
                  for n in (queries.total, keys.total, keys.total, queries.total))  # fmt: skip
    results = []
    for attention in (attend, naive):
        inputs = [x.clone().requires_grad_() for x in (q, k, v)]
        out = attention(*inputs, queries, keys)
        out.backward(g)
        results.append([out.detach(), *(x.grad for x in inputs)])
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-10, atol=1e-12)


@given(lengths=LENGTHS)
def test_runs_cover_all_objects_in_order(lengths: list[tuple[int, int]]) -> None:
    found = runs(Packing(tuple(q for q, _ in lengths)), Packing(tuple(k for _, k in lengths)))
    assert [(q, k) for n, q, k in found for _ in range(n)] == lengths
    assert all(a[1:] != b[1:] for a, b in zip(found, found[1:], strict=False))  # neighbours with equal lengths go together


def test_where_each_object_is() -> None:
    packing = Packing((2, 0, 3))
    assert packing.offsets == (0, 2, 2, 5) and packing.total == 5
    assert segments(packing.lengths, torch.device("cpu")).tolist() == [0, 0, 2, 2, 2]
    cumulative = packing.cumulative(torch.device("cpu"))
    assert cumulative.tolist() == [0, 2, 2, 5] and cumulative.dtype == torch.int32


def test_the_pool_sees_its_own_object_only_and_not_the_order_of_its_tokens() -> None:
    torch.manual_seed(0)
    pool = AttentionPool(16, 4).double()
    x = torch.randn(9, 16, dtype=torch.float64)
    together = pool(x, Packing((4, 2, 3)))
    assert together.shape == (3, 16)
    torch.testing.assert_close(together[1:2], pool(x[4:6], Packing((2,))))
    torch.testing.assert_close(together[2:3], pool(x[[8, 6, 7]], Packing((3,))))


def test_a_pool_of_several_queries_uses_the_one_asked_for() -> None:
    torch.manual_seed(0)
    pool, x = AttentionPool(16, 4, 3).double(), torch.randn(9, 16, dtype=torch.float64)
    packing, which = Packing((4, 2, 3)), torch.tensor([2, 0, 1])
    found = pool(x, packing, which)
    every = [pool(x, packing, torch.full((3,), q)) for q in range(3)]
    for i, q in enumerate(which.tolist()):
        torch.testing.assert_close(found[i], every[q][i])
    assert torch.equal(pool(x, packing), every[0]) and (every[0] - every[1]).abs().max() > 1e-4


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: FlashAttention over variable lengths runs on one only")
def test_on_a_gpu_in_half_precision_it_is_the_same() -> None:
    queries, keys = Packing((3, 1, 7, 5)), Packing((4, 9, 2, 5))
    torch.manual_seed(0)
    q, k, v = (torch.randn(n, 4, 16, device="cuda", dtype=torch.bfloat16) for n in (queries.total, keys.total, keys.total))
    plain = naive(q.double(), k.double(), v.double(), queries, keys)
    torch.testing.assert_close(attend(q, k, v, queries, keys).double(), plain, rtol=2e-2, atol=2e-2)
