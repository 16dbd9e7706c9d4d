"""The order in which objects are delivered: pure functions of (data, seed, epoch), whatever the number of ranks.

Two levels: the blocks of an epoch are shuffled and dealt to a fixed number of virtual lanes; within a lane the objects of
a few consecutive blocks are shuffled together. A rank serves some of the lanes, one object from each in turn.
"""

from __future__ import annotations

import numpy as np

from hpcspec.stream.index import DataIndex


def cut_blocks(index: DataIndex, selected: np.ndarray, block: int) -> np.ndarray:
    """(blocks, 3) int64: shard, first and last+1 object (numbers over all shards) of runs of at most `block` objects,
    of those that hold an object `selected` (n,)."""
    out = []
    for shard in range(len(index.shards)):
        start, stop = int(index.offsets[shard]), int(index.offsets[shard + 1])
        out += [(shard, a, min(a + block, stop)) for a in range(start, stop, block) if selected[a : min(a + block, stop)].any()]
    return np.array(out, np.int64).reshape(-1, 3)


def lane_order(
    blocks: np.ndarray, selected: np.ndarray, seed: int, epoch: int, lane: int, lanes: int, shuffle_blocks: int
) -> np.ndarray:
    """(m, 2) int64: block and object number of what one lane delivers in one epoch, in order."""
    mine = np.random.default_rng([seed, epoch]).permutation(len(blocks))[lane::lanes]
    rng = np.random.default_rng([seed, epoch, lane, 1])
    out = []
    for i in range(0, len(mine), shuffle_blocks):
        window = [(b, o) for b in mine[i : i + shuffle_blocks] for o in range(blocks[b, 1], blocks[b, 2]) if selected[o]]
        out += [window[j] for j in rng.permutation(len(window))]
    return np.array(out, np.int64).reshape(-1, 2)
