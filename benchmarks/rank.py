"""What one rank does, measured in a process of its own: a program for `processes.Measuring`, nothing to type.

    rank.py plain FOLDER                reads the shards from end to end: what the disk or the page cache gives
    rank.py stream FOLDER [RANK SIZE]   one epoch of the stream into packs, with the configuration's defaults
    rank.py plan FOLDER                 all that comes before the first read of a set of 10⁸ objects
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from processes import MIB, memory_mib, serve

Measure = Callable[[], dict[str, Any]]
PLAN_SHARDS, PLAN_OBJECTS = 10_000, 10_000


def plain(folder: str) -> Measure:
    """Bytes and seconds of a sequential read of every shard into one buffer of 1 MiB."""
    paths = sorted(Path(folder).glob("*.h5"))

    def measure() -> dict[str, Any]:
        buffer, done, began = memoryview(bytearray(MIB)), 0, time.monotonic()
        for path in paths:
            with open(path, "rb", buffering=0) as file:
                while got := file.readinto(buffer):
                    done += got
        return {"bytes": done, "seconds": time.monotonic() - began}

    return measure


def stream(folder: str, rank: str = "0", size: str = "1") -> Measure:
    """Spectra, bytes of samples and seconds of one epoch of one rank, from opening the index to the last pack; `first_s`: to
    the first pack; `useful`: tokens over the budget, mean over all packs; `filled`: samples over the samples
    that those tokens have room for; `began` and `ended` on the clock that all processes share."""
    from hpcspec.config import Model, Training
    from hpcspec.shards.format import shard_paths
    from hpcspec.stream.batches import packs
    from hpcspec.stream.index import open_index
    from hpcspec.stream.stream import Stream
    from hpcspec.stream.vocabulary import Vocabulary

    training, patch = Training(), Model().patch
    words = Vocabulary(patch)
    budget, lanes = training.tokens_per_batch, len(range(int(rank), training.lanes, int(size)))

    def measure() -> dict[str, Any]:
        began = time.monotonic()
        index = open_index(shard_paths(Path(folder)))
        of = Stream(index, 1, training.lanes, training.block, training.shuffle_blocks, vocabulary=words, rank=int(rank),
                    size=int(size))  # fmt: skip
        wanted = len(index) * lanes // training.lanes
        spectra = samples = 0
        first, segments = 0.0, []
        for pack in packs(of, budget):
            first = first or time.monotonic() - began
            spectra, samples = spectra + len(pack), samples + pack.samples.shape[1]
            segments.append(pack.segments)
            if spectra >= wanted:
                break
        ended = time.monotonic()
        of.close()
        patches, number = sum(int((-(-edges.diff() // patch)).sum()) for edges in segments), len(segments)
        tokens = patches + 3 * spectra  # each object's own token and the two scalars of its spectra
        return {"spectra": spectra, "bytes": 8 * samples, "seconds": ended - began, "began": began, "ended": ended,
                "first_s": first, "packs": number, "useful": tokens / number / budget, "filled": samples / patches / patch,
                "shards": len(index.shards)}  # fmt: skip

    return measure


def plan(folder: str) -> Measure:
    """Seconds from an index of 10,000 shards of 10,000 objects each to the first read that the stream asks for, one epoch
    planned; `index_mib` and `plan_mib`: what the index holds and all of it needs at most, beside the imports.

    The shards are those of `folder` many times over under other names.
    """
    from hpcspec.config import Model, Training
    from hpcspec.shards.format import shard_paths
    from hpcspec.shards.shard import describe
    from hpcspec.stream.index import DataIndex
    from hpcspec.stream.stream import Stream
    from hpcspec.stream.vocabulary import Vocabulary

    training, patch = Training(), Model().patch
    words = Vocabulary(patch)
    like = [describe(path) for path in shard_paths(Path(folder))]

    class FirstReadError(Exception):
        """The stream asks for its first block."""

    def read(*_: object, **__: object) -> None:
        raise FirstReadError

    def measure() -> dict[str, Any]:
        before = memory_mib("VmRSS")
        shards = []
        for i in range(PLAN_SHARDS):
            info = like[i % len(like)]
            places = tuple(place + 8 * i for place in info.offsets)
            shards.append(replace(info, path=f"/data/{i:05d}.h5", objects=PLAN_OBJECTS, crc32=i, offsets=places))
        index = DataIndex(tuple(shards))
        held = memory_mib("VmRSS")
        began = time.monotonic()
        of = Stream(index, 1, training.lanes, training.block, training.shuffle_blocks, vocabulary=words)
        of.reader.read = read  # type: ignore[method-assign, assignment]
        try:
            of.next()
        except FirstReadError:
            took = time.monotonic() - began
            return {"seconds": took, "objects": len(index), "index_mib": held - before,
                    "plan_mib": memory_mib("VmHWM") - before}  # fmt: skip
        raise RuntimeError("the stream gave an object without reading one")

    return measure


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    mode, *arguments = sys.argv[1:]
    serve({"plain": plain, "stream": stream, "plan": plan}[mode](*arguments))
