"""Objects packed one after another as they were read: samples, and where and on what grid each segment lies."""

from __future__ import annotations

import weakref
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from hpcspec.shards.objects import Objects, ranges
from hpcspec.stream.vocabulary import Vocabulary, tokens_of
from hpcspec.surveys.grids import KINDS

# How the coordinate x of the k-th sample of a segment follows from (kind, origin, step): listed, or 10**(origin + step·k), or
# origin + step·k, or the vacuum wavelength of that.
LISTED, LOG10, LINEAR, LINEAR_AIR = (KINDS.index(kind) for kind in ("table", "log10", "linear", "linear_air"))


@dataclass(frozen=True)
class Packed:
    """N objects of S segments and V samples, without padding.

    samples (2, V) f4 flux and ivar; segments (S+1,) i8 offsets into them; kind (S,) i8 (`LISTED` or one of the others) and
    axis (S, 2) f8 (origin and step) say what the samples' coordinates are, first (S,) i8 where on its grid a spectrum begins;
    listed (E,) f8 the coordinates of the segments that list theirs, one after another; band (S,) i8, see `Vocabulary.band`;
    owner (S,) i8 object of each segment; amplitude, sn_median (N,) f4; scalars (N, measured, 2) f4 as in the vocabulary; numbers,
    epochs (N,); state: of the stream behind it.
    """

    samples: torch.Tensor
    segments: torch.Tensor
    kind: torch.Tensor
    axis: torch.Tensor
    first: torch.Tensor
    listed: torch.Tensor
    band: torch.Tensor
    owner: torch.Tensor
    amplitude: torch.Tensor
    sn_median: torch.Tensor
    scalars: torch.Tensor
    numbers: np.ndarray
    epochs: np.ndarray
    state: dict[str, Any] | None = None

    def __len__(self) -> int:
        return len(self.numbers)

    def to(self, device: torch.device) -> Packed:
        """The same on a device; a copy from pinned memory doesn't block."""
        if device.type == "cpu":
            return self
        moved = {f.name: getattr(self, f.name).to(device, non_blocking=True)
                 for f in fields(self) if isinstance(getattr(self, f.name), torch.Tensor)}  # fmt: skip
        return replace(self, **moved)


@dataclass(frozen=True)
class Layout:
    """n objects of s segments without their samples: all that it takes to put them one after another.

    counts (n, 4) i8: number in the index, and how many tokens, samples and segments; levels (n, 2) f4: amplitude and sn_median;
    table (s, 6) f8: length, kind, origin and step, band and first of each segment, see `Packed`; scalars (n, measured, 2) f4;
    listed (s,) objects: the coordinates (…,) f8 of each segment, empty but for those that list theirs, or (0,) if none does.
    """

    counts: np.ndarray
    levels: np.ndarray
    table: np.ndarray
    scalars: np.ndarray
    listed: np.ndarray

    def __len__(self) -> int:
        return len(self.counts)

    @cached_property
    def _ends(self) -> np.ndarray:
        ends = np.zeros((len(self) + 1, 4), np.int64)
        np.cumsum(self.counts, 0, out=ends[1:])
        return ends

    @cached_property
    def tokens(self) -> list[int]:
        """n+1: how many there are before each object."""
        return self._ends[:, 1].tolist()

    @cached_property
    def samples(self) -> list[int]:
        """n+1: how many there are before each object."""
        return self._ends[:, 2].tolist()

    @cached_property
    def _segments(self) -> list[int]:
        return self._ends[:, 3].tolist()

    def fitting(self, start: int, stop: int, room: int) -> int:
        """The last+1 of objects start … stop-1 that have at most `room` tokens together, one after another from the first."""
        return bisect_right(self.tokens, self.tokens[start] + room, start, stop + 1) - 1

    def take(self, order: np.ndarray) -> Layout:
        """These objects, in this order."""
        ends = self._ends[:, 3]
        segments, _ = ranges(ends[order], ends[order + 1])
        listed = self.listed[segments] if len(self.listed) else self.listed
        return Layout(self.counts.take(order, 0), self.levels.take(order, 0), self.table.take(segments, 0),
                      self.scalars.take(order, 0), listed)  # fmt: skip

    def part(self, start: int, stop: int) -> Layout:
        """Objects start … stop-1."""
        segments = slice(self._segments[start], self._segments[stop])
        objects = slice(start, stop)
        return Layout(
            self.counts[objects], self.levels[objects], self.table[segments], self.scalars[objects], self.listed[segments]
        )


UNKNOWN = np.array([(LISTED, 0.0, 0.0)])  # the axis of a light curve
NOTHING, NO_LISTS = np.zeros(0), np.empty(0, object)


def layout(parts: Sequence[Objects], numbers: np.ndarray, vocabulary: Vocabulary) -> Layout:
    """That of several sets of objects, which have the columns amplitude and sn_median, with these numbers (n,)."""
    lengths = np.concatenate([of.pixels[1:] - of.pixels[:-1] for of in parts])
    segments = np.concatenate([of.segments[1:] - of.segments[:-1] for of in parts])
    edges, ends = np.concatenate([[0], lengths.cumsum()]), np.concatenate([[0], segments.cumsum()])
    samples = edges[ends[1:]] - edges[ends[:-1]]
    scalars = np.concatenate([vocabulary.scalars(of.scalars, of.scalar_names) for of in parts])
    levels = np.stack([np.concatenate([of.columns[name] for of in parts]) for name in ("amplitude", "sn_median")], axis=1)
    table = np.empty((len(lengths), 6))
    table[:, 0] = lengths
    axes = [of.axes for of in parts]
    known = np.cumsum([1, *(len(of) + 1 for of in axes)]).tolist()
    grids = np.concatenate([of.grid + k for of, k in zip(parts, known[:-1], strict=True)])
    table[:, 1:4] = np.concatenate([rows for of in axes for rows in (UNKNOWN, of)])[grids]
    table[:, 5] = np.concatenate([of.first for of in parts])
    table[:, 2] += table[:, 3] * table[:, 5]
    table[:, 4] = np.concatenate([vocabulary.band(of.channels)[of.channel] for of in parts])
    tokens = tokens_of(ends, lengths, table[:, 5].astype(np.int64), table[:, 4], scalars, vocabulary)
    counts = np.stack([numbers, tokens, samples, segments], axis=1)
    listed = NO_LISTS
    if (table[:, 1] == LISTED).any():
        listed = np.empty(len(table), object)
        every = ((of, s, grid) for of in parts for s, grid in enumerate(of.grid.tolist()))
        for place, (of, s, grid) in enumerate(every):
            listed[place] = of.wavelength(s) if grid < 0 or grid in of.listed else NOTHING
    return Layout(counts, levels, table, scalars, listed)


def pack(layouts: Sequence[Layout], epochs: Sequence[int], samples: torch.Tensor, state: dict[str, Any] | None = None) -> Packed:
    """The pack of the objects of several layouts, each of an epoch, with their samples (2, V), which may be filled in later."""
    counts, levels, table, scalars, listed = (
        np.concatenate([getattr(one, name) for one in layouts]) for name in ("counts", "levels", "table", "scalars", "listed")
    )
    edges, pin = np.zeros(len(table) + 1, np.int64), samples.is_pinned()
    edges[1:] = table[:, 0].cumsum()

    def put(values: np.ndarray) -> torch.Tensor:
        tensor = torch.from_numpy(values)
        return tensor.pin_memory() if pin else tensor

    owner = np.repeat(np.arange(len(counts)), counts[:, 3])
    return Packed(
        samples, put(edges), put(table[:, 1].astype(np.int64)), put(table[:, 2:4].copy()), put(table[:, 5].astype(np.int64)),
        put(np.concatenate([NOTHING, *listed])), put(table[:, 4].astype(np.int64)), put(owner), put(levels[:, 0].copy()),
        put(levels[:, 1].copy()), put(scalars), counts[:, 0].copy(), np.repeat(epochs, [len(one) for one in layouts]), state,
    )  # fmt: skip


class Memory:
    """Memory for the samples of packs, which is given out again when nothing refers to it any more."""

    def __init__(self, capacity: int, pin: bool = False):
        self.capacity, self.pin = capacity, pin
        self._free: list[np.ndarray] = []

    def new(self, samples: int) -> torch.Tensor:
        """(2, samples) float32, pinned if it is to go to a GPU."""
        need = max(samples, self.capacity)
        if self.pin:
            return torch.empty(2 * need, pin_memory=True)[: 2 * samples].view(2, samples)  # torch reuses pinned memory itself
        if need > self.capacity:
            return torch.empty(2, samples)
        memory = self._free.pop() if self._free else np.empty(2 * need, np.float32)
        given = memory[: 2 * samples].reshape(2, samples)
        weakref.finalize(given, self._free.append, memory).atexit = False
        return torch.from_numpy(given)
