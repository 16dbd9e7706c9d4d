"""Batches of tokens, prepared in the background."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from typing import Any, TypeVar

import numpy as np
import torch

from hpcspec.shards.objects import Objects
from hpcspec.stream.batch import Batch
from hpcspec.stream.index import DataIndex
from hpcspec.stream.packing import Layout, Memory, Packed, layout, pack
from hpcspec.stream.stream import BlockReader, Run, Stream, Window
from hpcspec.stream.tokens import Hiding, tokenize
from hpcspec.stream.vocabulary import Vocabulary

T = TypeVar("T")
# How much is being read while a pack is used, in samples (64 MiB, about what the open windows hold) and in packs.
AHEAD, PACKS_AHEAD = 1 << 23, 32


def packs(stream: Stream, budget: int, pin: bool = False) -> Iterator[Packed]:
    """Endless packs of at most `budget` tokens (or one object), each with the state of the stream behind it.

    What goes into which pack follows from the tables of the shards alone and is planned ahead of the reading, so that the
    samples of its blocks are read by a few threads, many at a time, straight to where they belong in this and later packs.
    """
    memory = Memory(budget * stream.vocabulary.patch, pin)
    planned: deque[tuple[Packed, list[Window]]] = deque()

    def plan() -> None:
        runs: list[Run] = []
        room = budget
        while (run := stream.next(room, 0 if runs else 1)) is not None:
            runs.append(run)
            room -= run.tokens
        samples = memory.new(sum(run.samples for run in runs))
        values, ivars = (memoryview(row).cast("B") for row in samples.numpy())
        parts, epochs = [run.layout for run in runs], [run.epoch for run in runs]
        planned.append((pack(parts, epochs, samples, stream.state()), list(dict.fromkeys(run.window for run in runs))))
        at = 0
        for run in runs:
            run.window.assign(run.stop - run.start, values, ivars, at)
            at += run.samples

    coming = samples = 0  # how many of the next packs, and of samples in them, are being read
    while True:
        while coming <= 1 or (samples < AHEAD and coming < PACKS_AHEAD):
            if coming < len(planned) and all(window.reading for window in planned[coming][1]):
                samples += planned[coming][0].samples.shape[1]
                coming += 1
            else:
                plan()
        ready, windows = planned.popleft()
        coming, samples = coming - 1, samples - ready.samples.shape[1]
        for window in windows:
            window.wait()
        yield ready


def training_batches(
    stream: Stream, budget: int, hiding: Hiding, depth: int, device: torch.device
) -> Generator[Batch, None, None]:
    """Endless batches of at most `budget` tokens (or one object), each with the state of the stream behind it.

    A thread reads and packs `depth` batches ahead, into pinned memory where there is a GPU, and on a CPU makes the tokens too;
    on a GPU they are made there. Closed, it returns once nothing is read any more.
    """
    gpu = device.type == "cuda"

    def tokens(packed: Packed) -> Batch:
        return tokenize(packed.to(device), stream.vocabulary, hiding)

    ahead: Generator[Any, None, None] = prefetch(packs(stream, budget, gpu) if gpu else map(tokens, packs(stream, budget)), depth)
    try:
        yield from map(tokens, ahead) if gpu else ahead
    finally:
        ahead.close()
        stream.close()


def in_order(index: DataIndex, numbers: np.ndarray, block: int = 64) -> Iterator[tuple[np.ndarray, Objects]]:
    """The objects with these increasing numbers, read block by block: the numbers of some (n,), and the objects."""
    reader = BlockReader(index)
    for shard in range(len(index.shards)):
        first, last = int(index.offsets[shard]), int(index.offsets[shard + 1])
        inside = numbers[(numbers >= first) & (numbers < last)]
        for i in range(0, len(inside), block):
            some = inside[i : i + block]
            objects = reader.read(shard, int(some[0]) - first, int(some[-1]) + 1 - first)
            yield some, objects if len(objects) == len(some) else objects.take(some - some[0])
    reader.close()


def ordered_batches(index: DataIndex, numbers: np.ndarray, vocabulary: Vocabulary, budget: int) -> Iterator[Batch]:
    """The objects with these increasing numbers once, in batches of at most `budget` tokens (or one object), nothing hidden."""
    parts: list[tuple[Layout, np.ndarray]] = []
    room = budget

    def batch() -> Batch:
        samples = torch.from_numpy(np.concatenate([values for _, values in parts], axis=1))
        return tokenize(pack([of for of, _ in parts], [0] * len(parts), samples), vocabulary)

    for some, objects in in_order(index, numbers):
        of = layout([objects], some, vocabulary)
        start = 0
        while start < len(of):
            stop = max(of.fitting(start, len(of), room), start + (not parts))
            parts.append((of.part(start, stop), objects.samples[:, of.samples[start] : of.samples[stop]]))
            room -= of.tokens[stop] - of.tokens[start]
            if stop < len(of):
                yield batch()
                parts, room = [], budget
            start = stop
    if parts:
        yield batch()


def prefetch(items: Iterable[T], depth: int) -> Generator[T, None, None]:
    """The same items, prepared ahead by a background thread, at most `depth` at a time; its errors are raised here.

    Closed, it returns once the thread has let go of `items`.
    """
    ready: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(depth)
    stop = threading.Event()

    def put(entry: tuple[T | None, BaseException | None]) -> bool:
        while not stop.is_set():
            try:
                ready.put(entry, timeout=0.2)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                if not put((item, None)):
                    return
            put((None, StopIteration()))
        except BaseException as error:
            put((None, error))

    thread = threading.Thread(target=work, daemon=True, name="prefetch")
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item  # type: ignore[misc]
    finally:
        stop.set()
        thread.join()
