"""An endless stream of objects from shards, dealt to virtual lanes so that it can go on with any number of ranks."""

from __future__ import annotations

import hashlib
import logging
import socket
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from hpcspec.errors import UserError
from hpcspec.shards.format import Pixels, Shard
from hpcspec.stream.index import DataIndex
from hpcspec.stream.order import cut_blocks, lane_order

OPEN_SHARDS = 16
log = logging.getLogger(__name__)


class BlockReader:
    """Blocks of objects from shards, the most recently used shards kept open and the blocks still needed kept in memory."""

    def __init__(self, index: DataIndex, comm: Any = None):
        self.index, self.comm = index, comm
        self._shards: OrderedDict[int, Shard] = OrderedDict()
        self._said = comm is None

    def read(self, shard: int, start: int, stop: int) -> list[Pixels]:
        """Objects start … stop-1 (numbers over all shards) of one shard."""
        if shard not in self._shards:
            if len(self._shards) >= OPEN_SHARDS:
                self._shards.popitem(last=False)[1].close()
            self._shards[shard] = Shard(self.index.shards[shard].path, self.comm)
            self._say_how(self._shards[shard])
        self._shards.move_to_end(shard)
        first = int(self.index.offsets[shard])
        return self._shards[shard].read(self.index.shards[shard], start - first, stop - first)

    def _say_how(self, shard: Shard) -> None:
        """Leave a line in the log of how each rank reads, once."""
        if not self._said:
            self._said = True
            how = "MPI-IO" if shard.file.driver == "mpio" else "a plain handle: this h5py has no MPI"
            log.info("rank %d of %d on %s reads shards through %s", self.comm.rank, self.comm.size, socket.gethostname(), how)

    def close(self) -> None:
        """Close all shards."""
        while self._shards:
            self._shards.popitem()[1].close()


class Lane:
    """One virtual lane: its place in its epoch, and the blocks read but not used up."""

    def __init__(self, stream: Stream, lane: int, epoch: int = 0, consumed: int = 0):
        self.stream, self.lane = stream, lane
        self._start(epoch)
        self.consumed = consumed
        if consumed:
            left: dict[int, int] = {}
            for block, _ in self.order[consumed:].tolist():
                left[block] = left.get(block, 0) + 1
            self.left = left

    def _start(self, epoch: int) -> None:
        s = self.stream
        self.epoch, self.consumed = epoch, 0
        self.order = lane_order(s.blocks, s.selected, s.seed, epoch, self.lane, s.lanes, s.shuffle_blocks)
        blocks, counts = np.unique(self.order[:, 0], return_counts=True)
        self.left = dict(zip(blocks.tolist(), counts.tolist(), strict=True))
        self.held: dict[int, list[Pixels]] = {}

    def turn(self) -> tuple[int, int, int]:
        """(epoch, place in it, lane) of the lane's next object: the smallest is served first, so epochs don't mix."""
        done = self.consumed == len(self.order)
        return self.epoch + done, 0 if done else self.consumed, self.lane

    def next(self) -> tuple[int, int, Pixels]:
        """(epoch, object number, pixels) of the lane's next object."""
        if self.consumed == len(self.order):
            self._start(self.epoch + 1)
        block, number = self.order[self.consumed].tolist()
        shard, start, stop = self.stream.blocks[block].tolist()
        if block not in self.held:
            self.held[block] = self.stream.reader.read(shard, start, stop)
        pixels = self.held[block][number - start]
        self.left[block] -= 1
        if not self.left[block]:
            del self.held[block]
        self.consumed += 1
        return self.epoch, number, pixels


class Stream:
    """An endless, shuffled stream of the selected objects: each lane delivers each of its objects once per epoch.

    selected (n,) bool says which objects take part. `state()` and `restore()` make it go on where it was, also on
    another number of ranks: the lanes are what counts.
    """

    def __init__(self, index: DataIndex, selected: np.ndarray, seed: int, lanes: int, block: int, shuffle_blocks: int,
                 rank: int = 0, size: int = 1, comm: Any = None):  # fmt: skip
        if not selected.any():
            raise UserError("no object is left to train on: lower adapt.held_out or ingest more")
        if size > lanes:
            raise UserError(f"training.lanes is {lanes}, fewer than the {size} ranks: raise it")
        self.index, self.selected, self.seed, self.lanes, self.shuffle_blocks = index, selected, seed, lanes, shuffle_blocks
        self.blocks = cut_blocks(index, selected, block)
        if len(self.blocks) < lanes:
            raise UserError(f"{len(self.blocks)} blocks of data for {lanes} lanes: lower training.block or training.lanes")
        self.reader = BlockReader(index, comm)
        chosen = hashlib.sha256(np.packbits(selected).tobytes()).hexdigest()[:16]
        self.order_of = {"fingerprint": index.fingerprint, "selected": chosen, "seed": seed, "lanes": lanes,
                         "block": block, "shuffle_blocks": shuffle_blocks}  # fmt: skip
        self.served = {lane: Lane(self, lane) for lane in range(rank, lanes, size)}

    def __iter__(self) -> Iterator[tuple[int, int, Pixels]]:
        while True:
            # Lanes are taken by how far they are, so that the turn is a function of the state alone.
            yield min(self.served.values(), key=Lane.turn).next()

    def state(self) -> dict[str, Any]:
        """What the order depends on, and counters of the lanes this rank serves, as plain JSON."""
        return {**self.order_of,
                "positions": {str(k): [x.epoch, x.consumed] for k, x in self.served.items()}}  # fmt: skip

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a state (of all lanes, see `joined_state`).

        Raises UserError if the data, their selection, the seed, the lanes or the blocks have changed.
        """
        for name, now in self.order_of.items():
            if state.get(name) != now:
                raise UserError(f"the checkpoint's data stream has {name} {state.get(name)}, this run {now}: "
                                "the data or the configuration changed; start a new run folder")  # fmt: skip
        self.served = {lane: Lane(self, lane, *state["positions"][str(lane)]) for lane in self.served}


def joined_state(states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The state of the whole stream from those of its ranks."""
    return {**states[0], "positions": {k: v for s in states for k, v in s["positions"].items()}}
