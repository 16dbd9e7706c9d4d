"""An endless stream of objects from shards, dealt to virtual lanes so that it can go on with any number of ranks."""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np

from hpcspec.errors import UserError
from hpcspec.shards.objects import Objects
from hpcspec.shards.shard import Shard
from hpcspec.stream import split
from hpcspec.stream.index import DataIndex
from hpcspec.stream.order import Blocks, epoch_blocks, survey_weights, window_order
from hpcspec.stream.packing import Layout, layout
from hpcspec.stream.split import lowest_fraction
from hpcspec.stream.vocabulary import Vocabulary

OPEN_SHARDS = 128
TABLE_BYTES = 4 << 20  # the tables of open shards are kept if they are no larger, or an eighth of it if others take their places
OPEN_WINDOWS, TABLES_AHEAD = 4, 2  # windows that objects are drawn from, and whose tables are read ahead of them
RUN = 8  # objects that are drawn from a window at once
PASSED = attrgetter("passed")
READERS = max(2, min(4, len(os.sched_getaffinity(0))))  # threads; more than there are cores get in each other's way
TASK = 1 << 22  # samples (32 MiB) that a thread reads at least before it is asked for more: each waking costs the planning
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
            if shard in self._shards:
                self._shards.move_to_end(shard)
                return self._shards[shard]
        opened = Shard(self.index.shards[shard], self.comm)
        opened.keep_table(TABLE_BYTES if len(self.index.shards) <= OPEN_SHARDS else TABLE_BYTES // 8)
        with self._lock:
            self._say_how(opened)
            opened = self._shards.setdefault(shard, opened)
            if len(self._shards) > OPEN_SHARDS:
                self._shards.popitem(last=False)  # closed when the last thread is done with it
            return opened

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


class Window:
    """The objects of a few blocks of one lane, in their shuffled order, `done` of them delivered.

    blocks: of each its shard and its first object's number, and its objects without their samples.
    """

    def __init__(self, stream: Stream, key: tuple[int, int, int], blocks: Sequence[tuple[int, int, Objects]], done: int):
        self.key, self.done, self._stream = key, done, stream
        epoch, number, lane = key
        parts = [objects for _, _, objects in blocks]
        numbers = np.concatenate([np.arange(first, first + len(objects)) for _, first, objects in blocks])
        order = np.arange(len(numbers))
        if stream.share:
            order = order[lowest_fraction(split.joined([of.columns for of in parts]), stream.seed) >= stream.share]
        order = order[window_order(len(order), stream.seed, epoch, lane, number)]
        self.layout = layout(parts, numbers, stream.vocabulary).take(order)
        self._blocks = [(shard, of.pixels[of.segments]) for shard, _, of in blocks]  # and where in it the samples lie
        self.count = len(order)
        self._order = order[done:]  # the others were delivered before a restart
        self._places: list[tuple[memoryview, memoryview, int, int]] = []  # runs: where they go, and how many objects
        self._unplaced = len(self._order)
        self._reading: list[Future[None]] = []
        lanes = len(stream.turns)
        self._began = (number * lanes + stream.turns[lane]) / min(lanes, OPEN_WINDOWS)
        self.take(done)

    def take(self, done: int) -> None:
        """Note that so many of its objects are delivered."""
        epoch, _, lane = self.key
        self.done = done
        # How far it is, in whole runs. Windows that are open together are spaced: one after another ends, and is read while the
        # others go on.
        self.passed = epoch, self._began + done // RUN * RUN / max(self.count, 1), lane

    def run(self, room: int | None, least: int) -> int:
        """The last+1 of its objects that come next: up to the end of a run, or so many as fit into `room` tokens."""
        stop = min((self.done // RUN + 1) * RUN, self.count)
        return stop if room is None else max(self.layout.fitting(self.done, stop, room), self.done + least)

    def assign(self, count: int, values: memoryview, ivars: memoryview, at: int) -> None:
        """Say where the samples of its next objects go: from sample `at` on in memory for values and for ivar. When all places
        are known the blocks are read, some at a time by each of a few threads."""
        self._places.append((values, ivars, at, count))
        self._unplaced -= count
        if not self._unplaced:
            self._read()

    @property
    def reading(self) -> bool:
        """Whether all its samples are there or on their way."""
        return not self._unplaced

    def wait(self) -> None:
        """Return when its samples are there. Raises UserError if they can't be read."""
        for reading in self._reading:
            reading.result()

    def _read(self) -> None:
        places, counts = self._places, np.array([count for *_, count in self._places])
        lengths, by_place = self.layout.counts[-len(self._order) :, 2], np.argsort(self._order)
        stops = lengths.cumsum()
        runs = np.repeat(np.arange(len(places)), counts)
        starts = stops - lengths + np.repeat([at for _, _, at, _ in places] - (stops - lengths)[counts.cumsum() - counts], counts)
        to = np.stack([runs, 4 * starts, 4 * (starts + lengths)], axis=1)[by_place]
        ordered, first = self._order[by_place], 0
        task: list[tuple[int, np.ndarray, np.ndarray, np.ndarray]] = []
        samples = 0
        for n, (shard, edges) in enumerate(self._blocks, 1):
            a, b = np.searchsorted(ordered, (first, first + len(edges) - 1)).tolist()
            if a < b:
                task.append((shard, edges, ordered[a:b] - first, to[a:b]))
            first, samples = first + len(edges) - 1, samples + int(edges[-1] - edges[0])
            if task and (samples >= TASK or n == len(self._blocks)):
                self._reading.append(self._stream.threads.submit(self._fill_all, task, places))
                task, samples = [], 0
        self._places, self._blocks = [], []

    def _fill_all(self, task: Sequence[tuple[int, np.ndarray, np.ndarray, np.ndarray]], places: Sequence[Any]) -> None:
        """Read blocks one after another: of each the shard, the edges of its objects, those wanted, and where they go."""
        for shard, edges, wanted, to in task:
            self._fill(shard, edges, wanted, [(places[k][0][i:j], places[k][1][i:j]) for k, i, j in to.tolist()])

    def _fill(self, shard: int, edges: np.ndarray, wanted: np.ndarray, places: Sequence[tuple[memoryview, memoryview]]) -> None:
        """Read runs of a block's objects; the samples of one or two that are left out between them are read too, and dropped."""
        lengths, a = np.diff(edges).tolist(), 0
        for b in [*(np.flatnonzero(np.diff(wanted) > 3) + 1).tolist(), len(wanted)]:
            start, stop, to = int(wanted[a]), int(wanted[b - 1]) + 1, places[a:b]
            if stop - start > b - a:
                there = dict(zip(wanted[a:b].tolist(), to, strict=True))
                to = [there.get(i) or (memoryview(bytearray(4 * lengths[i])),) * 2 for i in range(start, stop)]
            self._stream.reader.fill(shard, int(edges[start]), int(edges[stop]), [v for v, _ in to], [i for _, i in to])
            a = b


class Run(NamedTuple):
    """Objects of the stream that follow on one another: objects start … stop-1 of a window."""

    epoch: int
    window: Window
    start: int
    stop: int

    @property
    def layout(self) -> Layout:
        """All that is known of them before their samples are read."""
        return self.window.layout.part(self.start, self.stop)

    @property
    def tokens(self) -> int:
        """How many they have."""
        return self.window.layout.tokens[self.stop] - self.window.layout.tokens[self.start]

    @property
    def samples(self) -> int:
        """How many they have."""
        return self.window.layout.samples[self.stop] - self.window.layout.samples[self.start]


class Stream:
    """An endless, shuffled stream of the objects on the training side of a split: with equal weights each once per epoch.

    share: of the sky that is held out; vocabulary: what becomes tokens; temperature, weights: see `survey_weights`. Objects are
    drawn from a few open windows of this rank's lanes, from the one that is furthest behind first, so that no lane runs ahead.
    What comes next is a function of the lanes' positions alone, so that `state()` and `restore()` make it go on where it was,
    and on another number of ranks without loss or repetition.
    """

    def __init__(self, index: DataIndex, seed: int, lanes: int, block: int, shuffle_blocks: int, *,
                 vocabulary: Vocabulary | None = None, share: float = 0.0, temperature: float = 1.0,
                 weights: Mapping[str, float] | None = None, rank: int = 0, size: int = 1, comm: Any = None):  # fmt: skip
        if size > lanes:
            raise UserError(f"training.lanes is {lanes}, fewer than the {size} ranks: raise it")
        self.index, self.seed, self.lanes, self.shuffle_blocks = index, seed, lanes, shuffle_blocks
        self.vocabulary, self.share = vocabulary or Vocabulary(), share
        surveys = sorted({s.survey for s in index.shards})
        shards = {name: np.flatnonzero([s.survey == name for s in index.shards]) for name in surveys}
        counts = {name: sum(len(index.shards[i]) for i in of.tolist()) for name, of in shards.items()}
        mixing = survey_weights(counts, temperature, weights or {})
        self.weights = list(mixing.values())
        shortest, objects = 0, 2 * block
        while shortest < lanes and (objects := objects // 2):  # of little data the blocks are smaller, so that every lane has one
            self.blocks = Blocks([len(s) for s in index.shards], objects)
            self.groups = [self.blocks.of(shards[s]) for s in mixing]
            shortest = sum(int(w * len(g)) for w, g in zip(self.weights, self.groups, strict=True))
        if shortest < lanes:
            raise UserError(f"{shortest} objects an epoch for {lanes} lanes: lower training.lanes or raise training.weights")
        self.reader = BlockReader(index, comm, ("amplitude", "sn_median", *(split.COLUMNS if share else ())))
        self.order_of = {"fingerprint": index.fingerprint, "share": share, "seed": seed, "lanes": lanes, "block": block,
                         "shuffle_blocks": shuffle_blocks, "mixing": mixing}  # fmt: skip
        self.threads = ThreadPoolExecutor(READERS, "reader")
        self._epochs: OrderedDict[int, np.ndarray] = OrderedDict()
        self.turns = {lane: turn for turn, lane in enumerate(range(rank, lanes, size))}
        self._start(dict.fromkeys(self.turns, (0, 0, 0)))

    def _start(self, positions: dict[int, tuple[int, int, int]]) -> None:
        self.positions = positions  # of each lane: epoch, window, objects of it delivered
        self._coming: dict[tuple[int, int, int], Future[Window]] = {}
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
        if key not in self._coming:
            done = self.positions[lane][2] if self.positions[lane][:2] == (epoch, window) else 0
            numbers = self._lane(epoch, lane)[window * self.shuffle_blocks : (window + 1) * self.shuffle_blocks]
            places = [self.blocks.place(b) for b in numbers.tolist()]
            self._coming[key] = self.threads.submit(self._window, key, places, done)

    def _window(self, key: tuple[int, int, int], places: Sequence[tuple[int, int, int]], done: int) -> Window:
        blocks = [(shard, int(self.index.offsets[shard]) + start, self.reader.read(shard, start, stop, samples=False))
                  for shard, start, stop in places]  # fmt: skip
        return Window(self, key, blocks, done)

    def _refill(self) -> None:
        """Open the windows whose turn it is, and begin to read those that follow."""
        empty = 0
        while True:
            keys = sorted((epoch, window, lane) for lane, (epoch, window, _) in self.positions.items())
            now, held = keys[:OPEN_WINDOWS], {window.key for window in self._open}
            later = sorted(keys[OPEN_WINDOWS:] + [self._after(k) for k in keys[: OPEN_WINDOWS + TABLES_AHEAD]])[:TABLES_AHEAD]
            for key in [k for k in now if k not in held] + later:
                self._load(key)
            for key in now:
                if key not in held:
                    self._open.append(self._coming.pop(key).result())
            hollow = [window for window in self._open if not window.count]
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

    def next(self, room: int | None = None, least: int = 0) -> Run | None:
        """The objects that come next, at most `RUN`, and those of them that have at most `room` tokens together, or the first
        `least`; None if there are none."""
        if len(self._open) < min(OPEN_WINDOWS, len(self.positions)):
            self._refill()
        for window in sorted(self._open, key=PASSED):
            start, stop = window.done, window.run(room, least)
            if stop > start:
                epoch, number, lane = window.key
                self.positions[lane] = (epoch, number, stop)
                window.take(stop)
                if stop == window.count:
                    self._close(window)
                return Run(epoch, window, start, stop)
        return None

    def state(self) -> dict[str, Any]:
        """What the order depends on, and counters of the lanes this rank serves, as plain JSON."""
        return {**self.order_of, "positions": {str(lane): list(position) for lane, position in self.positions.items()}}

    def restore(self, state: Mapping[str, Any], changed_data: bool = False) -> None:
        """Go on from a state (of all lanes, see `joined_state`), before packs are made; with `changed_data` other data begin a
        new epoch.

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
        for window in self._coming.values():
            window.cancel() or window.exception()
        self._coming = {}

    def close(self) -> None:
        """Stop reading and close the shards."""
        self._wait()
        self.threads.shutdown(cancel_futures=True)
        self._open = []
        self.reader.close()


def joined_state(states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The state of the whole stream from those of its ranks."""
    return {**states[0], "positions": {k: v for s in states for k, v in s["positions"].items()}}
