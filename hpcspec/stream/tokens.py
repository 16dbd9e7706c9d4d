"""Samples to tokens: contiguous native pixels, nothing resampled, nothing removed.

Each pixel has three values: the flux over the spectrum's amplitude, log10 of its error over the same, and the flux over its
local level (a running mean of the good pixels), which shows lines whatever the continuum. The amplitude goes in as a scalar.
All of it is done for a whole pack at once, on the device where the pack is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch

from hpcspec.stream.packing import LINEAR_AIR, LISTED, LOG10, Packed
from hpcspec.stream.split import mix
from hpcspec.surveys.grids import air_to_vacuum

CHANNELS = 3
SCALARS = ("log10_flux_scale", "log10_sn")
LOCAL_HALF, LOCAL_PASSES = 60, 3  # three running means of 121 pixels are nearly a Gaussian of σ = 60 pixels
FIXED = 2.0**24  # the unit of its sums is 1 / FIXED; a sum of all good samples of 2 million pixels fits
LIMIT, LOCAL_LIMIT, LOG_ERROR = 20.0, 5.0, (-4.0, 2.0)
SIGMA = (1e-12, 1e30)  # what an error over the amplitude is held within, for float32's sake


@dataclass(frozen=True)
class Batch:
    """N objects, their T tokens one after another without padding, objects of equal length next to each other.

    values (T, P, 3) f4, sigma (T, P) f4 of values[..., 0] (inf where bad), coordinates (T, 2) f4 (mean wavelength and step
    per pixel, Å), scalars (N, 2) f4 in the order of `SCALARS`, lengths: tokens of each object, objects (N,): their numbers
    in the index, hidden (T,) bool: tokens asked for.
    """

    values: torch.Tensor
    sigma: torch.Tensor
    coordinates: torch.Tensor
    scalars: torch.Tensor
    lengths: tuple[int, ...]
    objects: np.ndarray
    hidden: torch.Tensor
    state: dict[str, Any] | None = None

    def __len__(self) -> int:
        return len(self.lengths)

    def to(self, device: torch.device) -> Batch:
        """The batch with its tensors on a device."""
        moved = {f.name: getattr(self, f.name).to(device, non_blocking=True)
                 for f in fields(self) if isinstance(getattr(self, f.name), torch.Tensor)}  # fmt: skip
        return replace(self, **moved)


def local_level(flux: torch.Tensor, good: torch.Tensor, segments: torch.Tensor) -> torch.Tensor:
    """Running mean (V,) f8 of the good samples of flux (V,) within their segments (S+1,), Gaussian-like with σ of 60 samples;
    0 where there are none. It is the same to the last bit whatever other segments there are: the sums are of integers."""
    lengths = segments.diff()
    at = torch.arange(len(flux), device=flux.device)
    low = torch.maximum(at - LOCAL_HALF, torch.repeat_interleave(segments[:-1], lengths))
    high = torch.minimum(at + LOCAL_HALF + 1, torch.repeat_interleave(segments[1:], lengths))
    sums = torch.stack([torch.where(good, flux, 0.0).mul(FIXED).round().long(), good.long()], dim=1)
    running = torch.zeros(len(flux) + 1, 2, dtype=torch.long, device=flux.device)
    for _ in range(LOCAL_PASSES):
        torch.cumsum(sums, 0, out=running[1:])
        sums = running[high] - running[low]
    return sums[:, 0] / (FIXED * sums[:, 1].clamp(min=1).double())


def coordinates_at(packed: Packed, segment: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
    """(n,) f8 coordinate (vacuum wavelength, Å, or time, days) of the sample at `place` (n,) in `segment` (n,)."""
    kind, x = packed.kind[segment], packed.axis[segment, 0] + packed.axis[segment, 1] * place
    x = torch.where(kind == LOG10, torch.exp(math.log(10) * torch.where(kind == LOG10, x, 0.0)), x)
    x = torch.where(kind == LINEAR_AIR, air_to_vacuum(x), x)
    if not len(packed.listed):
        return x
    lengths = torch.where(packed.kind == LISTED, packed.segments.diff(), 0)
    at = (lengths.cumsum(0) - lengths)[segment] + place
    return torch.where(kind == LISTED, packed.listed[torch.where(kind == LISTED, at, 0)], x)


def tokenize(packed: Packed, patch: int, mask: float = 0.0, seed: int = 0) -> Batch:
    """The tokens of a pack, a share `mask` of each object's hidden; a patch with fewer than a quarter of its pixels good is
    absent, unless all of its object are."""
    (flux, ivar), lengths, count = packed.samples, packed.segments.diff(), len(packed)
    device = flux.device
    good = ivar > 0
    scale = torch.where(packed.amplitude > 0, packed.amplitude, 1.0)
    per_sample = torch.repeat_interleave(scale[packed.owner], lengths)
    f = flux / per_sample
    clipped = f.clamp(-LIMIT, LIMIT)
    s = (torch.where(good, ivar, 1.0).rsqrt() / per_sample).clamp(*SIGMA)
    level = local_level(clipped, good, packed.segments).float()
    local = ((f - level) / level.abs().clamp(min=0.1)).clamp(-LOCAL_LIMIT, LOCAL_LIMIT)
    channels = torch.stack([torch.where(good, clipped, level),
                            torch.where(good, s.log10().clamp(*LOG_ERROR), LOG_ERROR[1]),
                            torch.where(good, local, 0.0)], dim=1)  # fmt: skip
    sigma = torch.where(good, s, torch.inf)

    patches = (lengths + patch - 1) // patch
    segment = torch.repeat_interleave(torch.arange(len(patches), device=device), patches)
    first = patch * (torch.arange(len(segment), device=device) - (patches.cumsum(0) - patches)[segment])
    size = (lengths[segment] - first).clamp(max=patch)
    inside = torch.arange(patch, device=device)
    there = inside < size[:, None]
    at = torch.where(there, (packed.segments[:-1][segment] + first)[:, None] + inside, 0)
    owner = packed.owner[segment]

    def per_object(chosen: torch.Tensor) -> torch.Tensor:
        return torch.zeros(count, dtype=torch.long, device=device).index_add_(0, owner, chosen.long())

    valid = (good[at] & there).sum(1)
    keep = valid >= patch / 4
    keep |= (per_object(keep) == 0)[owner] & (valid > 0)
    kept = per_object(keep)
    order = torch.argsort(kept, stable=True)
    place = torch.empty_like(order).scatter_(0, order, torch.arange(count, device=device))
    chosen = torch.nonzero(keep)[:, 0]
    chosen = chosen[torch.argsort(place[owner[chosen]], stable=True)]

    segment, first, size, there, at = segment[chosen], first[chosen], size[chosen], there[chosen], at[chosen]
    low, high = coordinates_at(packed, segment, first), coordinates_at(packed, segment, first + size - 1)
    step = torch.where(size > 1, (high - low) / (size - 1).clamp(min=1), 1.0)
    scalars = torch.stack([scale.log10(), packed.sn_median.clamp(min=1e-3).log10()], dim=1)
    counts, which = kept[order].tolist(), order.cpu().numpy()
    hidden = np.zeros(len(chosen), bool)
    if mask:
        hidden = hide(np.array(counts), mask, seed, packed.epochs[which], packed.numbers[which])
    empty = torch.tensor([0.0, LOG_ERROR[1], 0.0], device=device)
    return Batch(
        torch.where(there[..., None], channels[at], empty), torch.where(there, sigma[at], torch.inf),
        torch.stack([(low + high) / 2, step], dim=1).float(), scalars[order], tuple(counts), packed.numbers[which],
        torch.from_numpy(hidden).to(device), packed.state,
    )  # fmt: skip


def hide(lengths: np.ndarray, share: float, seed: int, epochs: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """(T,) bool: of each object's tokens round(length·share) hidden at random, at least one hidden and one seen where there
    are two; what is hidden is a function of seed, epoch, number and length alone."""
    owner = np.repeat(np.arange(len(lengths)), lengths)
    within = np.arange(len(owner)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    of_object = mix(mix(numbers.astype(np.uint64), seed) + epochs.astype(np.uint64), 1)
    score = mix(of_object[owner] + within.astype(np.uint64), 2)
    order = np.lexsort((score, owner))
    number = np.minimum(np.maximum(np.rint(lengths * share).astype(np.int64), 1), lengths - 1)
    hidden = np.zeros(len(owner), bool)
    hidden[order] = within < number[owner]
    return hidden


@dataclass(frozen=True)
class Tokens:
    """One object's patches as arrays: values (t, p, 3), sigma (t, p), coordinates (t, 2), scalars (2,), as in `Batch`."""

    values: np.ndarray
    sigma: np.ndarray
    coordinates: np.ndarray
    scalars: np.ndarray


def apart(batch: Batch) -> Mapping[int, Tokens]:
    """The tokens of each object of a batch, by its number."""
    edges = np.concatenate([[0], np.cumsum(batch.lengths)])
    values, sigma, coordinates, scalars = (getattr(batch, f).numpy() for f in ("values", "sigma", "coordinates", "scalars"))
    return {n: Tokens(values[a:b], sigma[a:b], coordinates[a:b], scalars[i])
            for i, (n, a, b) in enumerate(zip(batch.objects.tolist(), edges[:-1], edges[1:], strict=True))}  # fmt: skip


def collate(objects: Sequence[int], tokens: Sequence[Tokens]) -> Batch:
    """One batch of these objects, nothing hidden."""
    order = sorted(range(len(tokens)), key=lambda i: len(tokens[i].values))

    def stack(name: str) -> torch.Tensor:
        return torch.from_numpy(np.concatenate([getattr(tokens[i], name) for i in order]))

    lengths = tuple(len(tokens[i].values) for i in order)
    return Batch(
        stack("values"), stack("sigma"), stack("coordinates"), torch.from_numpy(np.stack([tokens[i].scalars for i in order])),
        lengths, np.array([objects[i] for i in order]), torch.zeros(sum(lengths), dtype=torch.bool),
    )  # fmt: skip
