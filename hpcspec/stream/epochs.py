"""Light curves to patches of epochs, each with its own time; the level and the amplitude of a band go in as scalars."""

from __future__ import annotations

import torch

from hpcspec.stream.batch import Epochs
from hpcspec.stream.packing import Packed
from hpcspec.stream.patches import LIMIT, SIGMA, coordinates_at, cut

SMALLEST = 0.1  # amplitude of a band in units of its median error: below it there is noise only


def medians(values: torch.Tensor, of: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """(s,) median of the values (v,) of each of s segments, of which there are `counts` (s,); `of` (v,) rises."""
    order = torch.argsort(values, stable=True)
    ordered = values[order[torch.argsort(of[order], stable=True)]]
    starts, last = counts.cumsum(0) - counts, (counts - 1).clamp(min=0)
    if not len(values):
        return torch.zeros(len(counts), dtype=values.dtype, device=values.device)
    limit = len(values) - 1
    return (ordered[(starts + last // 2).clamp(max=limit)] + ordered[(starts + (last + 1) // 2).clamp(max=limit)]) / 2


def epochs(packed: Packed, size: int, period: torch.Tensor) -> tuple[Epochs, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The good epochs of all light curves that are read, in patches of `size`, and the segment (t,) of each patch; the segments
    (b,) with good epochs, and their level and amplitude (b, 2). period (N,): log10 days, NaN where unknown."""
    device = packed.segments.device
    wanted = torch.nonzero(packed.band >= 0)[:, 0]
    lengths = packed.segments.diff()[wanted]
    of = torch.repeat_interleave(torch.arange(len(wanted), device=device), lengths)
    place = torch.arange(len(of), device=device) - (lengths.cumsum(0) - lengths)[of]
    at = packed.segments[wanted][of] + place
    good = packed.samples[1, at] > 0
    of, place, at = of[good], place[good], at[good]
    counts = torch.bincount(of, minlength=len(wanted))
    some = counts > 0
    wanted, counts, of = wanted[some], counts[some], (some.cumsum(0) - 1)[of]

    value, sigma = packed.samples[0, at].double(), packed.samples[1, at].double().rsqrt()
    level = medians(value, of, counts)
    spread = 1.4826 * medians((value - level[of]).abs(), of, counts)
    amplitude = torch.maximum(spread, SMALLEST * medians(sigma, of, counts)).clamp(min=1e-30)
    value = ((value - level[of]) / amplitude[of]).clamp(-LIMIT, LIMIT)
    sigma = (sigma / amplitude[of]).clamp(*SIGMA)
    time, owner = coordinates_at(packed, wanted[of], place), packed.owner[wanted]
    first = torch.full((len(packed),), torch.inf, dtype=torch.float64, device=device)
    first.scatter_reduce_(0, owner[of], time, "amin")
    time = time - first[owner[of]]
    phase = (time / 10.0 ** period.double()[owner[of]]) % 1.0
    # Neighbours in phase make a patch, or in time where there is no period.
    by_phase = torch.argsort(torch.where(torch.isfinite(phase), phase, 0.0), stable=True)
    order = by_phase[torch.argsort(of[by_phase], stable=True)]
    value, sigma, time, phase = value[order], sigma[order], time[order], phase[order]

    segment, start = cut(counts, size)
    inside = start[:, None] + torch.arange(size, device=device)
    there = inside < counts[segment][:, None]
    where = torch.where(there, (counts.cumsum(0) - counts)[segment][:, None] + inside, 0)

    def patched(values: torch.Tensor, absent: float) -> torch.Tensor:
        return (
            torch.where(there, values.float()[where], absent) if len(values) else values.new_zeros(0, size, dtype=torch.float32)
        )

    made = Epochs(patched(value, 0.0), patched(sigma, torch.inf), patched(time, 0.0), patched(phase, torch.nan),
                  packed.band[wanted[segment]])  # fmt: skip
    return made, wanted[segment], wanted, torch.stack([level, amplitude.log10()], dim=1).float()
