"""Spectra to patches: contiguous native pixels, nothing resampled, nothing removed.

Patches begin at multiples of their size on the survey's grid, wherever a spectrum begins: the same pixel of the same patch is the
same wavelength in all spectra of a grid, and a line that one of them has is found where it was in the others.

Each pixel has three values: the flux over the spectrum's amplitude, log10 of its error over the same, and the flux over its
local level (a running mean of the good pixels), which shows lines whatever the continuum. The amplitude goes in as a scalar.
"""

from __future__ import annotations

import math

import torch

from hpcspec.stream.batch import Patches
from hpcspec.stream.packing import LINEAR_AIR, LISTED, LOG10, Packed
from hpcspec.surveys.grids import air_to_vacuum

LOCAL_HALF, LOCAL_PASSES = 60, 3  # three running means of 121 pixels are nearly a Gaussian of σ = 60 pixels
FIXED = 2.0**24  # the unit of its sums is 1 / FIXED; a sum of all good samples of 2 million pixels fits
LIMIT, LOCAL_LIMIT, LOG_ERROR = 20.0, 5.0, (-4.0, 2.0)
SIGMA = (1e-12, 1e30)  # what an error over the amplitude is held within, for float32's sake


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


def cut(lengths: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pieces of at most `size` of segments of these lengths (S,): the segment of each, and where in it it begins."""
    pieces = (lengths + size - 1) // size
    segment = torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), pieces)
    return segment, size * (torch.arange(len(segment), device=lengths.device) - (pieces.cumsum(0) - pieces)[segment])


def patches(packed: Packed, patch: int, scale: torch.Tensor) -> tuple[Patches, torch.Tensor]:
    """The patches of all spectra whose band says that they are read, over their object's scale (N,), and the segment (t,) of
    each; a patch with fewer than a quarter of its pixels good is absent, unless all of its object are. Coordinates are those of
    the whole patch, also where the spectrum begins or ends within it."""
    (flux, ivar), lengths, device = packed.samples, packed.segments.diff(), packed.segments.device
    read = packed.band == -1
    good = (ivar > 0) & torch.repeat_interleave(read, lengths)
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

    before = packed.first % patch
    segment, first = cut(torch.where(read & (lengths > 0), lengths + before, 0), patch)
    first = first - before[segment]
    place = first[:, None] + torch.arange(patch, device=device)
    there = (place >= 0) & (place < lengths[segment][:, None])
    at = torch.where(there, packed.segments[:-1][segment][:, None] + place, 0)
    valid = (good[at] & there).sum(1)
    keep, owner = valid >= patch / 4, packed.owner[segment]
    of_object = torch.zeros(len(packed), dtype=torch.long, device=device).index_add_(0, owner, keep.long())
    keep |= (of_object == 0)[owner] & (valid > 0)
    segment, first, there, at = segment[keep], first[keep], there[keep], at[keep]
    listed, last = packed.kind[segment] == LISTED, first + patch - 1
    low = torch.where(listed, first.clamp(min=0), first)
    high = torch.where(listed, torch.minimum(last, lengths[segment] - 1), last)
    x_low, x_high = coordinates_at(packed, segment, low), coordinates_at(packed, segment, high)
    step = torch.where(high > low, (x_high - x_low) / (high - low).clamp(min=1), 1.0)
    middle = (x_low + x_high) / 2 + step * (first + last - low - high) / 2
    empty = torch.tensor([0.0, LOG_ERROR[1], 0.0], device=device)
    return Patches(torch.where(there[..., None], channels[at], empty), torch.where(there, sigma[at], torch.inf),
                   torch.stack([middle, step], dim=1).float()), segment  # fmt: skip
