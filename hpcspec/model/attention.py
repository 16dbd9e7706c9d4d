"""Attention within objects over packed sequences: nothing is padded, no object sees another.

Names of tensors carry their shape: T tokens of all objects, Q queries, K keys, N objects, H heads, E values per head, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import accumulate, groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


@cache
def _varlen() -> Callable[..., Any] | None:
    """Torch's attention over variable lengths (2.10 on); importing it takes seconds, which only those who use it wait."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn


@dataclass(frozen=True)
class Packing:
    """How many tokens of a packed sequence belong to each object, in order."""

    lengths: tuple[int, ...]

    @property
    def total(self) -> int:
        """Tokens of all objects."""
        return sum(self.lengths)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """(N+1,) where each object starts."""
        return tuple(accumulate(self.lengths, initial=0))

    def cumulative(self, device: torch.device) -> torch.Tensor:
        """(N+1,) int32 offsets on a device, as varlen attention wants them."""
        return torch.tensor(self.offsets, dtype=torch.int32, device=device)


def runs(queries: Packing, keys: Packing) -> list[tuple[int, int, int]]:
    """(objects, query length, key length) of runs of neighbours with equal lengths."""
    pairs = zip(queries.lengths, keys.lengths, strict=True)
    return [(len(list(group)), *lengths) for lengths, group in groupby(pairs)]


def attend(q_QHE: torch.Tensor, k_KHE: torch.Tensor, v_KHE: torch.Tensor, queries: Packing, keys: Packing) -> torch.Tensor:
    """Softmax attention (Q, H, E) of each object's queries over the same object's keys.

    On a GPU in half precision: FlashAttention over variable lengths. Elsewhere: one exact dense attention per run of
    objects with equal lengths.
    """
    if not queries.total:  # the weights behind the keys take part on this rank too
        return q_QHE + 0.0 * (k_KHE.sum() + v_KHE.sum())
    if q_QHE.is_cuda and q_QHE.dtype in (torch.bfloat16, torch.float16) and (varlen_attn := _varlen()) is not None:
        return varlen_attn(q_QHE, k_KHE, v_KHE, queries.cumulative(q_QHE.device), keys.cumulative(q_QHE.device),
                           max(queries.lengths), max(keys.lengths))  # fmt: skip
    # Split, not sliced: the gradient of a slice is as large as the whole sequence.
    together = runs(queries, keys)
    q_runs = q_QHE.split([n * lq for n, lq, _ in together])
    k_runs, v_runs = (x.split([n * lk for n, _, lk in together]) for x in (k_KHE, v_KHE))
    out = []
    for (n, lq, lk), q, k, v in zip(together, q_runs, k_runs, v_runs, strict=True):
        if lq:
            q, k, v = (x.unflatten(0, (n, length)).transpose(1, 2) for x, length in ((q, lq), (k, lk), (v, lk)))
            out.append(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(0, 1))
    return torch.cat(out)


class Attention(nn.Module):
    """Multi-head attention, of a packed sequence over itself or over another one."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x_QD: torch.Tensor, y_KD: torch.Tensor, queries: Packing, keys: Packing) -> torch.Tensor:
        q = self.query(x_QD).unflatten(-1, (self.heads, -1))
        k, v = self.key_value(y_KD).unflatten(-1, (2 * self.heads, -1)).chunk(2, dim=1)
        return self.out(attend(q, k, v, queries, keys).flatten(-2))


class Block(nn.Module):
    """Pre-norm transformer block; with `context` its attention looks there instead of at itself."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.norm_attention, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x_TD: torch.Tensor, packing: Packing, context_KD: torch.Tensor | None = None, keys: Packing | None = None
    ) -> torch.Tensor:
        h = self.norm_attention(x_TD)
        y = h if context_KD is None else context_KD
        x_TD = x_TD + self.dropout(self.attention(h, y, packing, keys or packing))
        return x_TD + self.dropout(self.mlp(self.norm_mlp(x_TD)))


class AttentionPool(nn.Module):
    """One vector per object: one of a few learned queries attends over its tokens (Lee et al. 2019, arXiv 1810.00825)."""

    def __init__(self, width: int, heads: int, queries: int = 1):
        super().__init__()
        self.query = nn.Parameter(torch.randn(queries, width) * 0.02)
        self.norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm_out = nn.LayerNorm(width)

    def forward(self, x_TD: torch.Tensor, packing: Packing, which: torch.Tensor | None = None) -> torch.Tensor:
        """(N, D); which (N,) of the queries to use, the first if it is not given."""
        n, query = len(packing.lengths), self.query.to(x_TD.dtype)
        q_ND = query[:1].expand(n, -1) if which is None else query[which]
        return self.norm_out(self.attention(q_ND, self.norm(x_TD), Packing((1,) * n), packing))


def segments(lengths: Sequence[int], device: torch.device) -> torch.Tensor:
    """(T,) int64: the object each token belongs to."""
    counts = torch.tensor(lengths, device=device)
    return torch.repeat_interleave(torch.arange(len(lengths), device=device), counts)
