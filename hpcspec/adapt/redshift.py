"""Redshift as a distribution over bins of ln(1+z), found by votes: wherever a feature is seen, it says where zero is.

In ln λ a redshift is a shift. Each token casts votes for ln(1+z) = ln λ − ln λ₀ over the rest wavelengths λ₀ that its features
may have; votes are kernels in Fourier space, so that moving a spectrum moves the distribution, whatever the redshifts of the
training objects. N objects, T tokens, D width, M channels, J frequencies, C classes, B bins.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from hpcspec.model.attention import runs
from hpcspec.model.unified import Encoded

LOWEST, HIGHEST, STEP = -0.02, 2.08, 0.002  # ln(1+z): up to z = 7
PERIOD = 4.0  # in ln λ: more than the bins and the wavelengths of a spectrum span together
MIDDLE = 8.6  # ln λ from which phases count, so that single precision is enough for them
FREQUENCIES, CHANNELS = 1280, 64
TOGETHER = 256  # objects whose votes are counted at once: they take 2/3 MB each
BLUR = 0.0012  # σ in ln λ of the sharpest vote
NEAR = 4  # bins around the most probable one, of which mean and variance are taken
EXTRAGALACTIC = 0.003  # redshift beyond which an object may be anywhere; below it stars move by STARS at most
FARTHEST, STARS = 0.3, 5e-4  # shifts of training spectra in ln λ
STAY = 0.5  # share of the extragalactic ones that is moved as little as stars are


class Redshift(nn.Module):
    """Logits (N, C, B) of class and bin of ln(1+z) together, from the tokens and from what the head made of their summary
    (N, H): what is seen speaks for a class and its redshift at once."""

    def __init__(self, width: int, hidden: int, classes: int):
        super().__init__()
        self.bins = nn.Linear(hidden, round((HIGHEST - LOWEST) / STEP) + 1)
        self.channels = nn.Linear(width, CHANNELS)
        shape = (FREQUENCIES, CHANNELS, max(1, classes))
        self.real, self.imaginary = (nn.Parameter(torch.randn(shape) / math.sqrt(CHANNELS)) for _ in range(2))

    def forward(self, encoded: Encoded, hidden_NH: torch.Tensor) -> torch.Tensor:
        assert encoded.log_wavelength is not None
        device = hidden_NH.device
        x = encoded.log_wavelength.float()
        seen = torch.isfinite(x)
        features_TM = torch.where(seen[:, None], self.channels(encoded.tokens), 0.0).float()
        frequency = 2 * math.pi * torch.arange(1, FREQUENCIES + 1, device=device) / PERIOD
        phase = torch.where(seen, x - MIDDLE, 0.0)[:, None] * frequency
        waves_TJ2 = torch.stack([phase.cos(), phase.sin()], dim=-1)
        sharpness = torch.exp(-0.5 * (frequency * BLUR) ** 2)
        sharpness = (0.3 * sharpness / sharpness.norm())[:, None, None]
        angle = frequency[:, None] * bins(device)
        back = torch.cat([angle.cos(), angle.sin()])
        found: list[torch.Tensor] = []
        sums: list[torch.Tensor] = []
        start = 0
        for n, length, _ in runs(encoded.packing, encoded.packing):
            for some in [TOGETHER] * (n // TOGETHER) + [n % TOGETHER] * (n % TOGETHER > 0):
                rows = slice(start, start + some * length)
                start += some * length
                waves_NTJ = waves_TJ2[rows].flatten(1).unflatten(0, (some, length))
                sums.append(features_TM[rows].unflatten(0, (some, length)).mT @ waves_NTJ)
                if sum(map(len, sums)) >= TOGETHER:
                    found.append(self._votes(torch.cat(sums), sharpness) @ back)
                    sums = []
        if sums:
            found.append(self._votes(torch.cat(sums), sharpness) @ back)
        votes = torch.cat(found)
        return votes + 0.1 * self.bins(hidden_NH).float()[:, None]

    def _votes(self, sums: torch.Tensor, sharpness: torch.Tensor) -> torch.Tensor:
        """(n, C, 2J) real and imaginary parts of the votes of n objects, from sums (n, M, 2J) of features times waves."""
        cos_JNM, sin_JNM = sums.unflatten(-1, (FREQUENCIES, 2)).permute(3, 2, 0, 1)
        real = sharpness * (cos_JNM @ self.real - sin_JNM @ self.imaginary)
        imaginary = sharpness * (sin_JNM @ self.real + cos_JNM @ self.imaginary)
        return torch.cat([real, imaginary]).permute(1, 2, 0)


def bins(device: torch.device) -> torch.Tensor:
    """(B,) ln(1+z)."""
    return LOWEST + STEP * torch.arange(round((HIGHEST - LOWEST) / STEP) + 1, device=device)


def redshift_loss(logits_NCB: torch.Tensor, z_N: torch.Tensor, class_N: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy with the redshifts (N,), each spread over its neighbouring bins, of objects of a class, or of any where
    it is unknown (-1)."""
    grid = bins(z_N.device)
    wanted = torch.softmax(-0.5 * ((grid - torch.log1p(z_N)[:, None]) / STEP) ** 2, dim=-1)
    rows = torch.arange(len(z_N), device=z_N.device)
    of_class = logits_NCB[rows, class_N.clamp(min=0, max=logits_NCB.shape[1] - 1)]
    logits = torch.where((class_N < 0)[:, None], logits_NCB.logsumexp(1), of_class)
    return -(wanted * F.log_softmax(logits, dim=-1)).sum(-1).mean()


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
    """How far in ln λ a training spectrum of redshift z is moved, for a random number in [0, 1): an extragalactic one half of the
    time to a redshift it could have, else and the others hardly; not at all where z is unknown (NaN).

    Where its pixels are tells of a spectrum that was moved far that it is extragalactic: such ones teach redshifts, not classes.
    """
    if z != z:
        return 0.0
    far, uniform = uniform >= STAY, (uniform - STAY) / (1 - STAY) if uniform >= STAY else uniform / STAY
    if z < EXTRAGALACTIC or not far:
        return STARS * (2 * uniform - 1)
    now = math.log1p(z)
    low, high = max(-FARTHEST, -now), min(FARTHEST, HIGHEST - 0.1 - now)
    return low + uniform * (max(high, low) - low)
