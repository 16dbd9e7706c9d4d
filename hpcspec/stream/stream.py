"""An endless stream of objects from shards, dealt to virtual lanes so that it can go on with any number of ranks."""

from __future__ import annotations

import logging
import socket
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np

from hpcspec.errors import UserError
from hpcspec.shards.objects import Objects
from hpcspec.shards.shard import Shard
from hpcspec.stream import split
from hpcspec.stream.index import DataIndex, tokens_of
from hpcspec.stream.order import Blocks, epoch_blocks, survey_weights, window_order
from hpcspec.stream.packing import Packable, packables
from hpcspec.stream.split import lowest_fraction

OPEN_SHARDS = 128
OPEN_WINDOWS, AHEAD = 4, 2  # windows that objects are drawn from, and that are read ahead of them
READERS = 4  # threads
PASSED = attrgetter("passed")
log = logging.getLogger(__name__)


class BlockReader:
    """Blocks of objects from shards, the most recently used shards kept open; several threads may read at once."""

    def __init__(self, index: DataIndex, comm: Any = None, columns: tuple[str, ...] = ("amplitude", "sn_median")):
        self.index, self.comm, self.columns = index, comm, columns
        self._shards: OrderedDict[int, Shard] = OrderedDict()
        self._lock = threading.Lock()
        self._said = comm is None

    def read(self, shard: int, start: int, stop: int, samples: bool = True) -> Objects:
        """Objects start … stop-1 of one shard; identifiers are read only where a position is approximate."""
        opened = self._opened(shard)
        return opened.read(start, stop, tuple(c for c in self.columns if c != "id" or opened.info.approximate), samples)

    def fill(self, shard: int, start: int, stop: int, values: list[memoryview], ivars: list[memoryview]) -> None:
        """Read samples start … stop-1 of one shard into memory, see `Shard.fill`."""
        self._opened(shard).fill(start, stop, values, ivars)

    def _opened(self, shard: int) -> Shard:
        with self._lock:
            if shard not in self._shards:
                self._shards[shard] = Shard(self.index.shards[shard], self.comm)
                self._shards[shard].keep_table()
                self._say_how(self._shards[shard])
                if len(self._shards) > OPEN_SHARDS:
                    self._shards.popitem(last=False)  # closed when the last thread is done with it
            self._shards.move_to_end(shard)
            return self._shards[shard]

    def _say_how(self, shard: Shard) -> None:
        """Leave a line in the log of how each rank reads, once."""
        if not self._said:
            self._said = True
            how = "MPI-IO" if shard.mpio else "a plain handle: this h5py has no MPI"
            log.info("rank %d of %d on %s reads shards through %s", self.comm.rank, self.comm.size, socket.gethostname(), how)

    def close(self) -> None:
        """Close all shards; no read may be under way."""
        while self._shards:
            self._shards.popitem()[1].close()


class Item(NamedTuple):
    """One object of the stream, without its samples: its number in the index, its tokens, and its place in a block."""

    number: int
    tokens: int
    packable: Packable
    block: Block
    place: int


class Block:
    """Objects that are read at once, as soon as it is known of each where its samples go."""

    def __init__(self, stream: Stream, shard: int, edges: np.ndarray):
        self._stream, self._shard, self._edges = stream, shard, edges  # (n+1,) of the objects' samples in the shard
        self._places: dict[int, tuple[memoryview, memoryview, int]] = {}
        self._reading: Future[None] | None = None
        self.kept = 0  # objects that the stream delivers

    @property
    def reading(self) -> bool:
        """Whether its samples are there or on their way."""
        return self._reading is not None

    def assign(self, place: int, values: memoryview, ivars: memoryview, at: int) -> None:
        """Say where an object's samples go: from byte `at` on in memory for values and for ivar."""
        self._places[place] = values, ivars, at
        if len(self._places) == self.kept:
            self._reading = self._stream.threads.submit(self._read)

    def wait(self) -> None:
        """Return when its samples are there. Raises UserError if they can't be read."""
        assert self._reading is not None
        self._reading.result()

    def _read(self) -> None:
        """Runs of kept objects; the samples of one or two that are left out between them are read too, and dropped."""
        places, edges = self._places, self._edges.tolist()
        kept = sorted(places)
        starts = [kept[0], *(b for a, b in pairwise(kept) if b - a > 3)]
        stops = [*(a + 1 for a, b in pairwise(kept) if b - a > 3), kept[-1] + 1]
        for start, stop in zip(starts, stops, strict=True):
            values, ivars = [], []
            for i in range(start, stop):
                length = 4 * (edges[i + 1] - edges[i])
                if i in places:
                    value, ivar, at = places[i]
                    values.append(value[at : at + length])
                    ivars.append(ivar[at : at + length])
                else:
                    dropped = memoryview(bytearray(length))
                    values.append(dropped)
                    ivars.append(dropped)
            self._stream.reader.fill(self._shard, edges[start], edges[stop], values, ivars)
        self._places = {}


class Window:
    """The objects of a few blocks of one lane, in their shuffled order."""

    def __init__(self, stream: Stream, key: tuple[int, int, int], blocks: Sequence[tuple[int, int, Objects]], skip: int):
        self.key = key
        epoch, number, lane = key
        self._share = 1 / stream.windows(epoch, lane)
        items: list[Item] = []
        for shard, first, objects in blocks:
            tokens = tokens_of(objects.segments, objects.pixels, stream.patch).tolist()
            kept = lowest_fraction(objects.columns, stream.seed) >= stream.share if stream.share else None
            block = Block(stream, shard, objects.pixels[objects.segments])
            items += [Item(first + i, tokens[i], one, block, i) for i, one in enumerate(packables(objects))
                      if kept is None or kept[i]]  # fmt: skip
        self.items = [items[i] for i in window_order(len(items), stream.seed, epoch, lane, number).tolist()]
        for item in self.items[skip:]:  # the others were delivered before a restart
            item.block.kept += 1
        self.take(skip)

    def take(self, done: int) -> None:
        """Note that so many of its objects are delivered."""
        epoch, number, lane = self.key
        self.done = done
        self.passed = epoch, (number + done / max(len(self.items), 1)) * self._share, lane  # how far its lane is


class Stream:
    """An endless, shuffled stream of the objects on the training side of a split: with equal weights each once per epoch.

    share: of the sky that is held out; patch: samples in a token; temperature, weights: see `survey_weights`. Objects are
    drawn from a few open windows of this rank's lanes, from the one that is furthest behind first, so that no lane runs ahead.
    What comes next is a function of the lanes' positions alone, so that `state()` and `restore()` make it go on where it was,
    and on another number of ranks without loss or repetition.
    """

    def __init__(self, index: DataIndex, seed: int, lanes: int, block: int, shuffle_blocks: int, *, patch: int = 32,
                 share: float = 0.0, temperature: float = 1.0, weights: Mapping[str, float] | None = None,
                 rank: int = 0, size: int = 1, comm: Any = None):  # fmt: skip
        if size > lanes:
            raise UserError(f"training.lanes is {lanes}, fewer than the {size} ranks: raise it")
        self.index, self.seed, self.lanes, self.shuffle_blocks = index, seed, lanes, shuffle_blocks
        self.patch, self.share = patch, share
        self.blocks = Blocks([len(s) for s in index.shards], block)
        surveys = sorted({s.survey for s in index.shards})
        shards = {name: np.flatnonzero([s.survey == name for s in index.shards]) for name in surveys}
        counts = {name: int(self.blocks.counts[of].sum()) for name, of in shards.items()}
        mixing = survey_weights(counts, temperature, weights or {})
        self.groups, self.weights = [self.blocks.of(shards[s]) for s in mixing], list(mixing.values())
        shortest = sum(int(w * len(g)) for w, g in zip(self.weights, self.groups, strict=True))
        if shortest < lanes:
            raise UserError(f"{shortest} blocks of data for {lanes} lanes: lower training.block or training.lanes")
        self.reader = BlockReader(index, comm, ("amplitude", "sn_median", *(split.COLUMNS if share else ())))
        self.order_of = {"fingerprint": index.fingerprint, "share": share, "seed": seed, "lanes": lanes, "block": block,
                         "shuffle_blocks": shuffle_blocks, "mixing": mixing}  # fmt: skip
        self.threads = ThreadPoolExecutor(READERS, "reader")
        self._epochs: OrderedDict[int, np.ndarray] = OrderedDict()
        self._start({lane: (0, 0, 0) for lane in range(rank, lanes, size)})

    def _start(self, positions: dict[int, tuple[int, int, int]]) -> None:
        self.positions = positions  # of each lane: epoch, window, objects of it delivered
        self._coming: dict[tuple[int, int, int], list[tuple[int, int, Future[Objects]]]] = {}
        self._open: list[Window] = []

    def _lane(self, epoch: int, lane: int) -> np.ndarray:
        """The blocks of one lane in one epoch."""
        if epoch not in self._epochs:
            self._epochs[epoch] = epoch_blocks(self.groups, self.weights, self.seed, epoch)
            if len(self._epochs) > 2:
                self._epochs.popitem(last=False)
        return self._epochs[epoch][lane :: self.lanes]

    def windows(self, epoch: int, lane: int) -> int:
        """How many windows a lane has in an epoch."""
        return -(-len(self._lane(epoch, lane)) // self.shuffle_blocks)

    def _after(self, key: tuple[int, int, int]) -> tuple[int, int, int]:
        epoch, window, lane = key
        return (epoch, window + 1, lane) if window + 1 < self.windows(epoch, lane) else (epoch + 1, 0, lane)

    def _load(self, key: tuple[int, int, int]) -> None:
        """Begin to read the tables of a window."""
        epoch, window, lane = key
        if key in self._coming:
            return
        reading = []
        for b in self._lane(epoch, lane)[window * self.shuffle_blocks : (window + 1) * self.shuffle_blocks].tolist():
            shard, start, stop = self.blocks.place(b)
            table = self.threads.submit(self.reader.read, shard, start, stop, samples=False)
            reading.append((shard, int(self.index.offsets[shard]) + start, table))
        self._coming[key] = reading

    def _refill(self) -> None:
        """Open the windows whose turn it is, and begin to read those that follow."""
        empty = 0
        while True:
            keys = sorted((epoch, window, lane) for lane, (epoch, window, _) in self.positions.items())
            now, held = keys[:OPEN_WINDOWS], {window.key for window in self._open}
            later = sorted(keys[OPEN_WINDOWS:] + [self._after(k) for k in keys[: OPEN_WINDOWS + AHEAD]])[:AHEAD]
            for key in [k for k in now if k not in held] + later:
                self._load(key)
            for key in now:
                if key not in held:
                    blocks = [(shard, first, table.result()) for shard, first, table in self._coming.pop(key)]
                    self._open.append(Window(self, key, blocks, self.positions[key[2]][2]))
            hollow = [window for window in self._open if not window.items]
            if not hollow:
                return
            empty += len(hollow)
            if empty > 64 + sum(self.windows(hollow[0].key[0], lane) for lane in self.positions):
                raise UserError("no object is left to train on: lower adapt.held_out or ingest more")
            for window in hollow:
                self._close(window)

    def _close(self, window: Window) -> None:
        lane = window.key[2]
        self._open.remove(window)
        epoch, number, _ = self._after(window.key)
        self.positions[lane] = (epoch, number, 0)

    def next(self, room: int | None = None) -> tuple[int, Item] | None:
        """The epoch of the next object and the object, or None if none of those in turn has at most `room` tokens."""
        if len(self._open) < min(OPEN_WINDOWS, len(self.positions)):
            self._refill()
        behind = min(self._open, key=PASSED)
        if room is None or behind.items[behind.done].tokens <= room:
            return self._taken(behind)
        for window in sorted(self._open, key=PASSED)[1:]:
            if window.items[window.done].tokens <= room:
                return self._taken(window)
        return None

    def _taken(self, window: Window) -> tuple[int, Item]:
        done = window.done
        epoch, number, lane = window.key
        self.positions[lane] = (epoch, number, done + 1)
        window.take(done + 1)
        if done + 1 == len(window.items):
            self._close(window)
        return epoch, window.items[done]

    def __iter__(self) -> Iterator[tuple[int, Item]]:
        while True:
            found = self.next()
            assert found is not None
            yield found

    def state(self) -> dict[str, Any]:
        """What the order depends on, and counters of the lanes this rank serves, as plain JSON."""
        return {**self.order_of, "positions": {str(lane): list(position) for lane, position in self.positions.items()}}

    def restore(self, state: Mapping[str, Any], changed_data: bool = False) -> None:
        """Go on from a state (of all lanes, see `joined_state`); with `changed_data` other data begin a new epoch.

        Raises UserError if the data, their split, the seed, the lanes or the blocks have changed.
        """
        other = {name: (state.get(name), now) for name, now in self.order_of.items() if state.get(name) != now}
        if set(other) - {"fingerprint", "mixing"} or (other and not changed_data):
            name, (then, now) = next(iter(other.items()))
            hint = "set training.changed_data: new_epoch to begin a new epoch on the data as they are now, or " if (
                set(other) <= {"fingerprint", "mixing"}) else ""  # fmt: skip
            raise UserError(f"the checkpoint's data stream has {name} {then}, this run {now}: the data or the configuration "
                            f"changed; {hint}start a new run folder")  # fmt: skip
        positions = {lane: tuple(state["positions"][str(lane)]) for lane in self.positions}
        if other:
            epoch = 1 + max(position[0] for position in state["positions"].values())
            positions = dict.fromkeys(positions, (epoch, 0, 0))
        self._wait()
        self._start(positions)

    def _wait(self) -> None:
        for reading in self._coming.values():
            for _, _, table in reading:
                table.cancel() or table.exception()
        self._coming = {}

    def close(self) -> None:
        """Stop reading and close the shards."""
        self._wait()
        self.threads.shutdown(cancel_futures=True)
        self.reader.close()


def joined_state(states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The state of the whole stream from those of its ranks."""
    return {**states[0], "positions": {k: v for s in states for k, v in s["positions"].items()}}
