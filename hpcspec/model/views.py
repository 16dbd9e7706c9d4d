"""Views of an object: as another night would give it, so that the agreement of halves is not to be found in what is of the
observation and not of the object, and so that what observations differ by is known; and in units of what is seen of it."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from hpcspec.stream.batch import Batch
from hpcspec.stream.patches import LIMIT, LOCAL_LIMIT, LOG_ERROR
from hpcspec.stream.vocabulary import OF_SPECTRUM

FLUX_SCALE, SN = (1 + i for i in range(len(OF_SPECTRUM)))  # the places of their names

NOISE, LEAST_SIGNAL = 1.0, 5.0  # what is added: at most so much, in σ, or what leaves a spectrum this signal to noise a pixel
CALIBRATION, WAVES = 0.15, 3  # what fluxes may be off by, ln, by each of so many waves over a factor of e² in wavelength
LEAST_UNIT = 0.1  # of what is seen of a spectrum: with less it stays as it is normalised
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
    middle = torch.empty(len(owner), dtype=torch.long, device=device).index_copy_(0, order, within) == count[owner] // 2
    keep = (place >= first) & (place <= 1 - last) | middle
    of_spectrum = (batch.scalars.name == FLUX_SCALE) | (batch.scalars.name == SN)
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
    """The spectra over the medians of what there is of them, which scalars of flux scales say: what lies in the range of an
    instrument sets its unit."""
    return over(batch, unit_of(batch))


def unit_of(batch: Batch) -> torch.Tensor:
    """(N,) medians over the patches of each object of the medians of their absolute flux; 1 without patches, and where a median
    is next to nothing."""
    spectra, owner = batch.spectra, batch.owners[1]
    count = torch.bincount(owner, minlength=len(batch))
    of_patch = torch.where(torch.isfinite(spectra.sigma), spectra.values[..., 0].abs(), torch.nan).nanmedian(1).values
    by_flux = torch.argsort(of_patch, stable=True)
    ordered = of_patch[by_flux[torch.argsort(owner[by_flux], stable=True)]]
    having = count > 0
    unit = torch.ones(len(batch), device=owner.device)
    unit[having] = ordered[(count.cumsum(0) - count + count // 2)[having]]
    return torch.where(unit > LEAST_UNIT, unit, 1.0)


def over(batch: Batch, unit_N: torch.Tensor) -> Batch:
    """Spectra over these units, which their scalars of flux scales say."""
    spectra, unit = batch.spectra, unit_N[batch.owners[1]][:, None]
    said = torch.where(batch.scalars.name == FLUX_SCALE, unit_N[batch.owners[0]].log10(), 0)
    flux, log_error, local = spectra.values.unbind(-1)
    log_error = log_error - torch.where(torch.isfinite(spectra.sigma), unit.log10(), 0)
    values = torch.stack([(flux / unit).clamp(-LIMIT, LIMIT), log_error.clamp(*LOG_ERROR), local], dim=-1)
    return replace(batch, scalars=batch.scalars._replace(value=batch.scalars.value + said),
                   spectra=spectra._replace(values=values, sigma=spectra.sigma / unit))  # fmt: skip


def noisier(batch: Batch) -> Batch:
    """The spectra with noise added, as much for all pixels of an object, which leaves them a signal to noise of at least
    LEAST_SIGNAL or is less than NOISE σ: none is known by its noise, nor by how much there is."""
    spectra, owner, device = batch.spectra, batch.owners[1], batch.order.device
    # of a patch the median: a few pixels of absurd errors say nothing of the others
    signal = torch.where(torch.isfinite(spectra.sigma), spectra.values[..., 0].abs() / spectra.sigma, torch.nan)
    of_object = torch.zeros(len(batch), device=device).index_add(0, owner, signal.nanmedian(1).values)
    of_object = of_object / torch.bincount(owner, minlength=len(batch)).clamp(min=1)
    more = (of_object / LEAST_SIGNAL).clamp(min=1) ** torch.rand(len(batch), device=device)
    return with_noise(batch, torch.maximum((more**2 - 1).sqrt(), NOISE * torch.rand(len(batch), device=device)))


def with_noise(batch: Batch, size_N: torch.Tensor) -> Batch:
    """The spectra with noise of so many of their σ."""
    spectra, size = batch.spectra, size_N[batch.owners[1]][:, None]
    good = torch.isfinite(spectra.sigma)
    flux, log_error, local = spectra.values.unbind(-1)
    level = flux.median(1, keepdim=True).values.abs().clamp(min=0.1)
    added = size * torch.where(good, spectra.sigma, 0).clamp(max=10 ** LOG_ERROR[1]) * torch.randn_like(spectra.sigma)
    log_error = log_error + torch.where(good, 0.5 * torch.log10(1 + size**2), 0)
    values = torch.stack([(flux + added).clamp(-LIMIT, LIMIT), log_error.clamp(*LOG_ERROR),
                          (local + added / level).clamp(-LOCAL_LIMIT, LOCAL_LIMIT)], dim=-1)  # fmt: skip
    return replace(batch, spectra=spectra._replace(values=values, sigma=spectra.sigma * (1 + size**2).sqrt()))


def observed_again(batch: Batch) -> Batch:
    """As another observation by the same instrument would have it: the noise of its errors once more, and spectra that begin and
    end where those of another object do."""
    batch = rescaled(with_noise(covered_as_another(batch), torch.ones(len(batch), device=batch.order.device)))
    scalars, curves = batch.scalars, batch.curves
    noisy = scalars.value + scalars.error * torch.randn_like(scalars.value)
    noisy = torch.where((scalars.value > 0) & (noisy <= 0), scalars.value, noisy)  # there may be a logarithm to be taken
    value = noisy - torch.where(scalars.name == SN, 0.5 * math.log10(2), 0)
    values = curves.values + torch.where(torch.isfinite(curves.sigma), curves.sigma, 0) * torch.randn_like(curves.sigma)
    return replace(batch, scalars=scalars._replace(value=value, error=scalars.error * 2**0.5),
                   curves=curves._replace(values=values.clamp(-LIMIT, LIMIT), sigma=curves.sigma * 2**0.5))  # fmt: skip


def covered_as_another(batch: Batch) -> Batch:
    """Without the patches of spectra that lie where another object of the batch, drawn at random, has none; as they are if more
    than half would be lost."""
    where, owner, device = batch.spectra.coordinates[:, 0], batch.owners[1], batch.order.device
    count = torch.bincount(owner, minlength=len(batch))
    nothing = torch.full((len(batch),), torch.inf, device=device)
    low = nothing.scatter_reduce(0, owner, where, "amin")
    high = (-nothing).scatter_reduce(0, owner, where, "amax")
    having = torch.nonzero(count)[:, 0]
    other = torch.arange(len(batch), device=device)
    other[having] = having[torch.randperm(len(having), device=device)]
    keep = (where >= low[other][owner]) & (where <= high[other][owner])
    left = torch.zeros(len(batch), device=device).index_add(0, owner, keep.float())
    keep |= (left < count / 2)[owner]
    others = (torch.ones(len(group[0]), dtype=torch.bool, device=device) for group in (batch.scalars, batch.curves))
    of_scalars, of_curves = others
    return batch.take(torch.cat([of_scalars, keep, of_curves])[batch.order])
