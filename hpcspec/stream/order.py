"""The order in which objects are delivered: pure functions of (data, seed, epoch), whatever the number of ranks.

Two levels: the blocks of an epoch are shuffled and dealt to a fixed number of virtual lanes; within a lane the objects of a
few consecutive blocks, a window, are shuffled together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from hpcspec.errors import UserError


class Blocks:
    """All blocks of at most `size` objects of shards that hold `counts` objects each, numbered through."""

    def __init__(self, counts: Sequence[int], size: int):
        self.counts, self.size = np.asarray(counts, np.int64), size
        self.first = np.concatenate([[0], np.cumsum(-(-self.counts // size))])

    def __len__(self) -> int:
        return int(self.first[-1])

    def place(self, block: int) -> tuple[int, int, int]:
        """(shard, first, last+1 object in it) of a block."""
        shard = int(np.searchsorted(self.first, block, side="right")) - 1
        start = (block - int(self.first[shard])) * self.size
        return shard, start, min(start + self.size, int(self.counts[shard]))

    def of(self, shards: np.ndarray) -> np.ndarray:
        """Numbers of the blocks of these shards."""
        if not len(shards):
            return np.zeros(0, np.int64)
        return np.concatenate([np.arange(self.first[s], self.first[s + 1], dtype=np.int64) for s in shards])


def survey_weights(objects: Mapping[str, int], temperature: float, given: Mapping[str, float]) -> dict[str, float]:
    """How often an epoch passes over each survey's objects.

    With `temperature` T a survey of n objects gets a share of the epoch as n**(1/T): 1 leaves all as they are, a high one
    gives every survey the same; the epoch keeps its length. `given` weights multiply.

    Raises UserError for a weight that is negative or of no survey.
    """
    unknown = sorted(set(given) - set(objects))
    if unknown or any(weight < 0 for weight in given.values()):
        raise UserError(f"training.weights: {unknown[0]!r} is none of {', '.join(objects)}" if unknown
                        else f"training.weights: a weight is negative: {dict(given)}")  # fmt: skip
    total = sum(objects.values())
    shares = {s: (n / total) ** (1 / temperature) for s, n in objects.items() if n}
    norm = sum(shares.values())
    passes = {s: 1.0 if temperature == 1 else share / norm * total / objects[s] for s, share in shares.items()}
    return {s: given.get(s, 1.0) * passes[s] for s in shares}


def epoch_blocks(groups: Sequence[np.ndarray], weights: Sequence[float], seed: int, epoch: int) -> np.ndarray:
    """(m,) int64: the blocks of one epoch in their order.

    Each group (a survey's blocks) is an endless sequence of passes, shuffled anew each time; the epoch takes the next
    weight·n of it. With weight 1 that is every block once; with any, none comes again before the group is through.
    """
    out = []
    for g, (blocks, weight) in enumerate(zip(groups, weights, strict=True)):
        n = len(blocks)
        begin, end = round(epoch * weight * n), round((epoch + 1) * weight * n)
        for number in range(begin // max(n, 1), -(-end // max(n, 1))):
            a, b = max(begin - number * n, 0), min(end - number * n, n)
            whole = (a, b) == (0, n)
            out.append(blocks if whole else blocks[np.random.default_rng([seed, 2, g, number]).permutation(n)[a:b]])
    taken = np.concatenate(out) if out else np.zeros(0, np.int64)
    return np.random.default_rng([seed, 1, epoch]).permutation(taken)


def window_order(count: int, seed: int, epoch: int, lane: int, window: int) -> np.ndarray:
    """(count,) int64: the order of the objects of one window."""
    return np.random.default_rng([seed, 3, epoch, lane, window]).permutation(count)
