"""What is expected of a spectrum before anything is learned: the level of what is seen of it."""

from __future__ import annotations

import torch

from hpcspec.stream.batch import Batch

SPAN = 32.0  # more than any ln λ in Å: the keys of one object end before those of the next begin


def first_guess(given: Batch | None, coordinates: torch.Tensor, owner: torch.Tensor, patch: int) -> torch.Tensor:
    """(t, P) f4 flux over the amplitude at the pixels of patches with these coordinates (t, 2), of these objects (t,): between
    the medians of the object's given patches linearly in ln λ, outside of them the outermost; 1, the median of a spectrum,
    where nothing is given."""
    pixel = torch.arange(patch, device=owner.device) - (patch - 1) / 2
    middle, step = coordinates.double()[..., None].unbind(1)
    asked = _key(owner[:, None], middle + step * pixel)
    if given is None:
        return torch.ones_like(asked, dtype=torch.float32)
    good = torch.isfinite(given.spectra.sigma)
    flux = torch.where(good, given.spectra.values[..., 0], torch.inf).sort(1).values
    level = flux.gather(1, (good.sum(1, keepdim=True) - 1).clamp(min=0) // 2)[:, 0]
    use = good.any(1)
    of = given.owners[1][use]
    key, order = _key(of, given.spectra.coordinates[use, 0].double()).sort()
    # The last one is of no object: there is always one above.
    key, of, level = (torch.cat([x, x.new_full((1,), end)]) for x, end in
                      ((key, torch.inf), (of[order], -1), (level[use][order], 1.0)))  # fmt: skip
    above = torch.searchsorted(key, asked)
    below = (above - 1).clamp(min=0)
    has_below, has_above = of[below] == owner[:, None], of[above] == owner[:, None]
    below, above = torch.where(has_below, below, above), torch.where(has_above, above, below)
    share = ((asked - key[below]) / (key[above] - key[below]).clamp(min=1e-9)).clamp(0, 1).float()
    return torch.where(has_below | has_above, torch.lerp(level[below], level[above], share), 1.0)


def _key(owner: torch.Tensor, wavelength: torch.Tensor) -> torch.Tensor:
    """One ascending number for all wavelengths of all objects."""
    return SPAN * owner + wavelength.clamp(min=1.0).log()
