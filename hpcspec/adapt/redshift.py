"""Redshift as a distribution over bins of ln(1+z), found by votes: wherever a feature is seen, it says where zero is.

In ln λ a redshift is a shift. Each token casts votes for ln(1+z) = ln λ − ln λ₀ over the rest wavelengths λ₀ that its features
may have; votes are kernels in Fourier space, so that moving a spectrum moves the distribution, whatever the redshifts of the
training objects. N objects, T tokens, D width, B bins, J frequencies.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from hpcspec.model.attention import segments
from hpcspec.model.unified import Encoded

LOWEST, HIGHEST, STEP = -0.02, 2.08, 0.002  # ln(1+z): up to z = 7
PERIOD = 4.0  # in ln λ: more than the bins and the wavelengths of a spectrum span together
MIDDLE = 8.6  # ln λ from which phases count, so that single precision is enough for them
FREQUENCIES, CHANNELS = 1280, 64
BLUR = 0.0012  # σ in ln λ of the sharpest vote
NEAR = 4  # bins around the most probable one, of which mean and variance are taken
EXTRAGALACTIC = 0.003  # redshift beyond which an object may be anywhere; below it stars move by STARS at most
FARTHEST, STARS = 0.3, 5e-4  # shifts of training spectra in ln λ


class Redshift(nn.Module):
    """Logits (N, B) of the bins of ln(1+z), from the tokens and from what the head made of their summary (N, H)."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.bins = nn.Linear(hidden, round((HIGHEST - LOWEST) / STEP) + 1)
        self.channels = nn.Linear(width, CHANNELS)
        self.votes = nn.Parameter(torch.randn(CHANNELS, 2 * FREQUENCIES) / math.sqrt(CHANNELS))

    def forward(self, encoded: Encoded, hidden_NH: torch.Tensor) -> torch.Tensor:
        assert encoded.log_wavelength is not None
        seen = torch.isfinite(encoded.log_wavelength)
        x, owner = encoded.log_wavelength[seen].float() - MIDDLE, segments(encoded.packing.lengths, seen.device)[seen]
        frequency = 2 * math.pi * torch.arange(1, FREQUENCIES + 1, device=x.device) / PERIOD
        sharpness = torch.exp(-0.5 * (frequency * BLUR) ** 2)
        sharpness = 0.3 * sharpness / sharpness.norm()
        real, imaginary = (self.channels(encoded.tokens[seen]) @ self.votes).float().chunk(2, dim=-1)
        phase = x[:, None] * frequency
        cos, sin = phase.cos(), phase.sin()
        sums = torch.zeros(len(hidden_NH), 2 * FREQUENCIES, device=x.device)
        sums = sums.index_add(0, owner, torch.cat([real * cos - imaginary * sin, real * sin + imaginary * cos], dim=1))
        angle = frequency[:, None] * bins(x.device)
        back = torch.cat([sharpness[:, None] * angle.cos(), sharpness[:, None] * angle.sin()])
        return 0.1 * self.bins(hidden_NH).float() + sums @ back


def bins(device: torch.device) -> torch.Tensor:
    """(B,) ln(1+z)."""
    return LOWEST + STEP * torch.arange(round((HIGHEST - LOWEST) / STEP) + 1, device=device)


def redshift_loss(logits_NB: torch.Tensor, z_N: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy with the redshifts (N,), each spread over its neighbouring bins."""
    grid = bins(z_N.device)
    wanted = torch.softmax(-0.5 * ((grid - torch.log1p(z_N)[:, None]) / STEP) ** 2, dim=-1)
    return -(wanted * F.log_softmax(logits_NB, dim=-1)).sum(-1).mean()


def estimate(logits_NB: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Redshift and its error (N,): mean and standard deviation of ln(1+z) near its most probable value."""
    grid, p = bins(logits_NB.device), torch.softmax(logits_NB, dim=-1)
    near = (torch.arange(len(grid), device=p.device) - p.argmax(1, keepdim=True)).abs() <= NEAR
    p = torch.where(near, p, 0.0)
    p = p / p.sum(1, keepdim=True)
    mean = (p * grid).sum(1)
    variance = (p * (grid - mean[:, None]) ** 2).sum(1)
    return torch.expm1(mean), mean.exp() * variance.clamp(min=1e-12).sqrt()


def shift(z: float, uniform: float) -> float:
    """How far in ln λ a training spectrum of redshift z is moved, for a random number in [0, 1): an extragalactic one to a
    redshift it could have, the others hardly; not at all where z is unknown (NaN)."""
    if z != z:
        return 0.0
    if z < EXTRAGALACTIC:
        return STARS * (2 * uniform - 1)
    now = math.log1p(z)
    low, high = max(-FARTHEST, -now), min(FARTHEST, HIGHEST - 0.1 - now)
    return low + uniform * (max(high, low) - low)
