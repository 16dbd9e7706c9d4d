"""Objects packed one after another as they were read: samples, and where and on what grid each segment lies."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import numpy as np
import torch

from hpcspec.shards.objects import Objects
from hpcspec.surveys.grids import KINDS

# How the coordinate x of the k-th sample of a segment follows from (kind, origin, step): listed, or 10**(origin + step·k), or
# origin + step·k, or the vacuum wavelength of that.
LISTED, LOG10, LINEAR, LINEAR_AIR = (KINDS.index(kind) for kind in ("table", "log10", "linear", "linear_air"))


@dataclass(frozen=True)
class Packed:
    """N objects of S segments and V samples, without padding.

    samples (2, V) f4 flux and ivar; segments (S+1,) i8 offsets into them; kind (S,) i8 (`LISTED` or one of the others) and
    axis (S, 2) f8 (origin and step) say what the samples' coordinates are; listed (E,) f8 the coordinates of the segments that
    list theirs, one after another; owner (S,) i8 object of each segment; amplitude, sn_median (N,) f4; numbers, epochs (N,);
    state: of the stream behind it.
    """

    samples: torch.Tensor
    segments: torch.Tensor
    kind: torch.Tensor
    axis: torch.Tensor
    listed: torch.Tensor
    owner: torch.Tensor
    amplitude: torch.Tensor
    sn_median: torch.Tensor
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


class Packable(NamedTuple):
    """One object as a pack wants it: first and last+1 of its samples where they are, its segments as a table (s, 4) of
    length, kind, origin and step, and the coordinates of those that list theirs."""

    start: int
    stop: int
    table: np.ndarray
    listed: tuple[np.ndarray, ...]
    amplitude: float
    sn_median: float


def packables(objects: Objects) -> list[Packable]:
    """Every object of a block, which needs the columns amplitude and sn_median."""
    facts = np.concatenate([objects.axes, [(LISTED, 0.0, 0.0)]])[objects.grid]
    facts[:, 1] += facts[:, 2] * objects.first
    table = np.column_stack([np.diff(objects.pixels), facts])
    lists = (facts[:, 0] == LISTED).any()
    segments, ends = objects.segments.tolist(), objects.pixels[objects.segments].tolist()
    amplitude, sn_median = objects.columns["amplitude"].tolist(), objects.columns["sn_median"].tolist()
    out = []
    for i in range(len(objects)):
        a, b = segments[i], segments[i + 1]
        listed = tuple(objects.wavelength(s) for s in range(a, b) if table[s, 1] == LISTED) if lists else ()
        out.append(Packable(ends[i], ends[i + 1], table[a:b], listed, amplitude[i], sn_median[i]))
    return out


class Packer:
    """Puts objects one after another; `finish` says where everything lies and begins anew."""

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self.samples = self.tokens = 0
        self._ones: list[Packable] = []
        self._numbers: list[int] = []
        self._epochs: list[int] = []

    def __len__(self) -> int:
        return len(self._ones)

    def add(self, one: Packable, number: int, epoch: int = 0, tokens: int = 0) -> int:
        """Take an object of so many tokens; returns the place of its first sample in the pack."""
        at = self.samples
        self.samples += one.stop - one.start
        self.tokens += tokens
        self._ones.append(one)
        self._numbers.append(number)
        self._epochs.append(epoch)
        return at

    def finish(self, samples: torch.Tensor, state: dict[str, Any] | None = None) -> Packed:
        """The pack of what was taken, with its samples (2, V), which may be filled in later."""
        ones, pin = self._ones, samples.is_pinned()
        table = np.concatenate([one.table for one in ones])
        listed = [x for one in ones for x in one.listed]

        def put(values: np.ndarray) -> torch.Tensor:
            tensor = torch.from_numpy(np.ascontiguousarray(values))
            return tensor.pin_memory() if pin else tensor

        packed = Packed(
            samples, put(np.cumsum(np.append(0, table[:, 0])).astype(np.int64)), put(table[:, 1].astype(np.int64)),
            put(table[:, 2:]), put(np.concatenate(listed) if listed else np.zeros(0)),
            put(np.repeat(np.arange(len(ones)), [len(one.table) for one in ones])),
            put(np.array([one.amplitude for one in ones], np.float32)),
            put(np.array([one.sn_median for one in ones], np.float32)),
            np.array(self._numbers, np.int64), np.array(self._epochs, np.int64), state,
        )  # fmt: skip
        self._begin()
        return packed




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


def packed(objects: Objects, numbers: np.ndarray, epoch: int = 0) -> Packed:
    """These objects, in memory already, as one pack, with these numbers (n,)."""
    packer = Packer()
    for number, one in zip(numbers.tolist(), packables(objects), strict=True):
        packer.add(one, number, epoch)
    return packer.finish(torch.from_numpy(objects.samples))
