"""Another view of an object, as another night would give it: the agreement of halves is not to be found in what is of the
observation and not of the object."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from hpcspec.stream.batch import Batch, Patches
from hpcspec.stream.patches import LOG_ERROR

NOISE, LEAST_SIGNAL = 1.0, 5.0  # what is added: at most so much, in σ, or what leaves a spectrum this signal to noise a pixel
CALIBRATION, WAVES = 0.15, 3  # what fluxes may be off by, ln, in each of so many waves over a factor of e² in wavelength
CROP = 0.3  # of a spectrum's range, what is left out at each end at most


def another_view(batch: Batch) -> Batch:
    """Objects without the ends of their spectra, and these calibrated otherwise and noisier."""
    return noisier(calibrated_otherwise(cropped(batch)))


def cropped(batch: Batch) -> Batch:
    """Without the patches at both ends of spectra, up to CROP of their range in ln λ at each: none is known by where its
    spectrum begins or ends."""
    where, owner, device = batch.spectra.coordinates[:, 0].log(), batch.owners[1], batch.order.device
    nothing = torch.full((len(batch),), torch.inf, device=device)
    low = nothing.scatter_reduce(0, owner, where, "amin")
    high = (-nothing).scatter_reduce(0, owner, where, "amax")
    place = (where - low[owner]) / (high - low)[owner].clamp(min=1e-9)
    first, last = (CROP * torch.rand(2, len(batch), device=device))[:, owner]
    keep = (place >= first) & (place <= 1 - last)
    left = torch.zeros_like(nothing).index_add(0, owner, keep.float())
    keep |= left[owner] == 0
    others = (torch.ones(len(group[0]), dtype=torch.bool, device=device) for group in (batch.scalars, batch.curves))
    of_scalars, of_curves = others
    return batch.take(torch.cat([of_scalars, keep, of_curves])[batch.order])


def calibrated_otherwise(batch: Batch) -> Batch:
    """The spectra with fluxes off by factors that change smoothly with wavelength, by up to about CALIBRATION; lines stay as
    they are."""
    spectra, owner, device = batch.spectra, batch.owners[1], batch.order.device
    waves = torch.arange(1, WAVES + 1, device=device)
    size, phase = torch.rand(2, len(batch), WAVES, device=device)
    size = CALIBRATION * torch.rand(len(batch), 1, device=device) * (2 * size - 1)
    angle = math.pi * waves * spectra.coordinates[:, :1].log() + 2 * math.pi * phase[owner]
    off = (size[owner] * angle.sin()).sum(1, keepdim=True)
    flux, log_error, local = spectra.values.unbind(-1)
    log_error = log_error + torch.where(torch.isfinite(spectra.sigma), off / math.log(10), 0)
    values = torch.stack([flux * off.exp(), log_error, local], dim=-1)
    return replace(batch, spectra=spectra._replace(values=values, sigma=spectra.sigma * off.exp()))


def noisier(batch: Batch) -> Batch:
    """The spectra with noise added, as much for all pixels of an object, which leaves them a signal to noise of at least
    LEAST_SIGNAL or is less than NOISE σ: none is known by its noise, nor by how much there is."""
    spectra, owner, device = batch.spectra, batch.owners[1], batch.order.device
    good = torch.isfinite(spectra.sigma)
    more = (_signal(spectra, owner, len(batch)) / LEAST_SIGNAL).clamp(min=1) ** torch.rand(len(batch), device=device)
    size = torch.maximum((more**2 - 1).sqrt(), NOISE * torch.rand(len(batch), device=device))[owner][:, None]
    added = size * torch.where(good, spectra.sigma, 0).clamp(max=10 ** LOG_ERROR[1]) * torch.randn_like(spectra.sigma)
    flux, log_error, local = spectra.values.unbind(-1)
    local = local + added / flux.abs().clamp(min=0.1)  # the flux is near its local level
    log_error = log_error + torch.where(good, 0.5 * torch.log10(1 + size**2), 0)
    return replace(batch, spectra=spectra._replace(values=torch.stack([flux + added, log_error, local], dim=-1)))


def _signal(spectra: Patches, owner: torch.Tensor, count: int) -> torch.Tensor:
    """(count,) mean signal to noise of the good pixels of each object."""
    good = torch.isfinite(spectra.sigma)
    signal = torch.where(good, spectra.values[..., 0].abs() / spectra.sigma, 0).sum(1)
    total, pixels = (torch.zeros(count, device=owner.device).index_add(0, owner, x.float()) for x in (signal, good.sum(1)))
    return total / pixels.clamp(min=1)
