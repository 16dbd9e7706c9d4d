"""Another view of an object, as another night would give it: the agreement of halves is not to be found in what is of the
observation and not of the object."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from hpcspec.stream.batch import Batch
from hpcspec.stream.patches import LIMIT, LOCAL_LIMIT, LOG_ERROR
from hpcspec.stream.vocabulary import OF_SPECTRUM

NOISE, LEAST_SIGNAL = 1.0, 5.0  # what is added: at most so much, in σ, or what leaves a spectrum this signal to noise a pixel
CALIBRATION, WAVES = 0.15, 3  # what fluxes may be off by, ln, by each of so many waves over a factor of e² in wavelength
LEAST_SCALE = 0.1  # of what is seen of a spectrum, by which it is normalised again
CROP = 0.3  # of a spectrum's patches, what is left out at each end at most


def another_view(batch: Batch) -> Batch:
    """Objects without the ends of their spectra, and these calibrated otherwise, normalised by what is left, and noisier; and
    without the scalars that normalisation took from them, which would say what they were before."""
    return noisier(rescaled(calibrated_otherwise(cropped(batch))))


def cropped(batch: Batch) -> Batch:
    """Without the patches at both ends of spectra, up to CROP of them at each: none is known by where its spectrum begins or
    ends. Nor are there the OF_SPECTRUM scalars."""
    owner, device = batch.owners[1], batch.order.device
    by_wavelength = torch.argsort(batch.spectra.coordinates[:, 0], stable=True)
    order = by_wavelength[torch.argsort(owner[by_wavelength], stable=True)]
    count = torch.bincount(owner, minlength=len(batch))
    within = torch.arange(len(owner), device=device) - (count.cumsum(0) - count)[owner[order]]
    place = torch.empty(len(owner), device=device).index_copy_(0, order, within + 0.5) / count[owner]
    first, last = (CROP * torch.rand(2, len(batch), device=device))[:, owner]
    keep = (place >= first) & (place <= 1 - last)
    of_spectrum = (batch.scalars.name >= 1) & (batch.scalars.name <= len(OF_SPECTRUM))
    epochs = torch.ones(len(batch.curves.band), dtype=torch.bool, device=device)
    return batch.take(torch.cat([~of_spectrum, keep, epochs])[batch.order])


def calibrated_otherwise(batch: Batch) -> Batch:
    """The spectra with fluxes off by factors that change smoothly with wavelength, WAVES waves of up to CALIBRATION each; lines
    stay as they are."""
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


def rescaled(batch: Batch) -> Batch:
    """The spectra over the medians of what there is of them: what lies in the range of an instrument sets its unit."""
    spectra, owner, count = batch.spectra, batch.owners[1], torch.bincount(batch.owners[1], minlength=len(batch))
    flux, log_error, local = spectra.values.unbind(-1)
    of_patch = torch.where(torch.isfinite(spectra.sigma), flux.abs(), torch.nan).nanmedian(1).values
    by_flux = torch.argsort(of_patch, stable=True)
    middle = (count.cumsum(0) - count + count // 2).clamp(max=max(len(flux) - 1, 0))
    scale = of_patch[by_flux[torch.argsort(owner[by_flux], stable=True)]][middle] if len(flux) else flux.sum().expand(len(batch))
    scale = torch.where(scale > LEAST_SCALE, scale, 1.0)[owner][:, None]
    log_error = log_error - torch.where(torch.isfinite(spectra.sigma), scale.log10(), 0)
    values = torch.stack([flux / scale, log_error, local], dim=-1)
    return replace(batch, spectra=spectra._replace(values=values, sigma=spectra.sigma / scale))


def noisier(batch: Batch) -> Batch:
    """The spectra with noise added, as much for all pixels of an object, which leaves them a signal to noise of at least
    LEAST_SIGNAL or is less than NOISE σ: none is known by its noise, nor by how much there is."""
    spectra, owner, device = batch.spectra, batch.owners[1], batch.order.device
    good = torch.isfinite(spectra.sigma)
    flux, log_error, local = spectra.values.unbind(-1)
    level = flux.median(1, keepdim=True).values.abs().clamp(min=0.1) if len(flux) else flux[:, :1]
    # of a patch the median: a few pixels of absurd errors say nothing of the others
    signal = torch.where(good, flux.abs() / spectra.sigma, torch.nan).nanmedian(1).values if len(flux) else flux.sum(1)
    of_object = torch.zeros(len(batch), device=device).index_add(0, owner, signal.float())
    of_object = of_object / torch.bincount(owner, minlength=len(batch)).clamp(min=1)
    more = (of_object / LEAST_SIGNAL).clamp(min=1) ** torch.rand(len(batch), device=device)
    size = torch.maximum((more**2 - 1).sqrt(), NOISE * torch.rand(len(batch), device=device))[owner][:, None]
    added = size * torch.where(good, spectra.sigma, 0).clamp(max=10 ** LOG_ERROR[1]) * torch.randn_like(spectra.sigma)
    log_error = log_error + torch.where(good, 0.5 * torch.log10(1 + size**2), 0)
    values = torch.stack([(flux + added).clamp(-LIMIT, LIMIT), log_error.clamp(*LOG_ERROR),
                          (local + added / level).clamp(-LOCAL_LIMIT, LOCAL_LIMIT)], dim=-1)  # fmt: skip
    return replace(batch, spectra=spectra._replace(values=values, sigma=spectra.sigma * (1 + size**2).sqrt()))
