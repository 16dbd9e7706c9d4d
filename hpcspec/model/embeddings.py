"""How measurements and questions become vectors: patches by wavelength, epochs by time and phase, scalars by name.

t tokens of one form, P pixels, E epochs, D width.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from hpcspec.stream.batch import CHANNELS, Epochs, Patches, Scalars
from hpcspec.stream.patches import LOG_ERROR

LONGEST, SHORTEST = 4e4, 4.0  # periods of the sinusoids in λ, Å
LOG_LONGEST, LOG_SHORTEST = 4.0, 2e-3  # and in ln λ
DAYS = (8000.0, 0.2)  # and in time
HARMONICS = 8  # of the phase, and of half of it: eclipses of two stars differ
LINES = 10.0  # weak lines are a few hundredths of their local level; the channels are brought to about the same size
MODULATION = 64  # width of the way from a wavelength to what it does with pixels
FARTHEST = 1e4  # standard deviations beyond which scalars are not told apart


class Sinusoids(nn.Module):
    """Sines and cosines of a coordinate at log-spaced frequencies: (…,) to (…, 2·count)."""

    def __init__(self, count: int, longest: float, shortest: float):
        super().__init__()
        # A plain attribute, not a buffer: a model cast to bfloat16 must keep these in float32.
        self.frequencies = torch.logspace(math.log10(2 * math.pi / longest), math.log10(2 * math.pi / shortest), count,
                                          dtype=torch.float64, device="cpu").float()  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.frequencies = self.frequencies.to(x.device)
        phase = x.float()[..., None] * self.frequencies
        return torch.cat([phase.sin(), phase.cos()], dim=-1)


class WavelengthEmbedding(nn.Module):
    """Where a patch is: its mean wavelength and its step per pixel, (t, 2) Å to (t, D)."""

    def __init__(self, width: int, frequencies: int):
        super().__init__()
        self.linear_scale = Sinusoids(frequencies, LONGEST, SHORTEST)
        self.log_scale = Sinusoids(frequencies, LOG_LONGEST, LOG_SHORTEST)
        self.project = nn.Linear(4 * frequencies + 1, width)

    def forward(self, coordinates_t2: torch.Tensor) -> torch.Tensor:
        wavelength, step = coordinates_t2.float().unbind(-1)
        features = torch.cat([self.linear_scale(wavelength), self.log_scale(wavelength.log()), step.log()[:, None]], dim=-1)
        return self.project(features.to(self.project.weight.dtype))


class PatchEmbedding(nn.Module):
    """Patches (t, P, 3) and where they are (t, D) to (t, D). What a pixel means depends on its wavelength: the hidden layer is
    scaled and shifted by it (Perez et al. 2018, arXiv 1709.07871)."""

    def __init__(self, width: int, patch: int):
        super().__init__()
        self.first, self.out = nn.Linear(CHANNELS * patch, 2 * width), nn.Linear(2 * width, width)
        self.modulation = nn.Sequential(nn.Linear(width, MODULATION), nn.GELU(), nn.Linear(MODULATION, 4 * width))

    def forward(self, of: Patches, where_tD: torch.Tensor) -> torch.Tensor:
        flux, log_error, local = of.values.unbind(-1)
        channels = torch.cat([flux - 1.0, log_error + 1.5, (LINES * local).asinh()], dim=-1)
        h = self.first(channels.to(where_tD.dtype))
        scale, shift = self.modulation(where_tD).chunk(2, dim=-1)
        return self.out(nn.functional.gelu(h * (1 + scale) + shift)) + where_tD


class TimeEmbedding(nn.Module):
    """When an epoch is: days since the object's first, phase (NaN where unknown) and band, (…,) each, to (…, D)."""

    def __init__(self, width: int, frequencies: int, bands: int):
        super().__init__()
        self.time = Sinusoids(frequencies, *DAYS)
        self.project = nn.Linear(2 * frequencies + 4 * HARMONICS, width)
        self.band = nn.Embedding(max(1, bands), width)

    def forward(self, times: torch.Tensor, phases: torch.Tensor, band: torch.Tensor) -> torch.Tensor:
        known = torch.isfinite(phases)
        orders = torch.arange(1, HARMONICS + 1, device=phases.device)
        angle = 2 * math.pi * torch.where(known, phases, 0.0)[..., None] * torch.cat([orders, orders - 0.5])
        folded = torch.cat([angle.sin(), angle.cos()], dim=-1) * known[..., None]
        features = torch.cat([self.time(times), folded], dim=-1)
        return self.project(features.to(self.project.weight.dtype)) + self.band(band)


class EpochEmbedding(nn.Module):
    """Patches of epochs, (t, E) to (t, D): each epoch by itself, then their mean, whose order doesn't matter."""

    def __init__(self, width: int):
        super().__init__()
        self.value = nn.Linear(2, width)
        self.mlp = nn.Sequential(nn.GELU(), nn.Linear(width, width), nn.GELU())
        self.out = nn.Linear(width, width)

    def forward(self, of: Epochs, when_tED: torch.Tensor) -> torch.Tensor:
        there = torch.isfinite(of.sigma)
        log_error = torch.where(there, of.sigma, 1.0).log10().clamp(*LOG_ERROR)
        values = torch.stack([of.values, log_error], dim=-1).to(when_tED.dtype)
        h = self.mlp(self.value(values) + when_tED) * there[..., None]
        return self.out(h.sum(1) / there.sum(1).clamp(min=1)[:, None])


class ScalarEmbedding(nn.Module):
    """(name, value, error) to (t, D), GELU(W_name·x + b_name) of the standardised value (Leung & Bovy 2023, arXiv 2308.10944),
    its error beside it. A question is W_name alone.

    center, spread, logarithmic (names,): how values are standardised, see `standards`; saved with the weights.
    """

    center: torch.Tensor
    spread: torch.Tensor
    logarithmic: torch.Tensor

    def __init__(self, names: int, width: int):
        super().__init__()
        self.scale, self.shift = nn.Embedding(names, width), nn.Embedding(names, width)
        self.error = nn.Linear(1, width)
        self.out = nn.Linear(width, width)
        self.register_buffer("center", torch.zeros(names))
        self.register_buffer("spread", torch.ones(names))
        self.register_buffer("logarithmic", torch.zeros(names))

    def standard(self, of: Scalars) -> tuple[torch.Tensor, torch.Tensor]:
        """Value and error (t,) in standard deviations."""
        logarithmic, spread = self.logarithmic[of.name] > 0, self.spread[of.name].float()
        positive = of.value.clamp(min=1e-30)
        value = torch.where(logarithmic, positive.log10(), of.value)
        error = torch.where(logarithmic, of.error / (positive * math.log(10)), of.error)
        x = (value - self.center[of.name].float()) / spread
        return x.clamp(-FARTHEST, FARTHEST), (error / spread).clamp(0, 1e3)

    def measured(self, name: torch.Tensor, x: torch.Tensor, error: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Value and error in the unit of the measurement, from standard deviations: what undoes `standard`."""
        logarithmic, spread = self.logarithmic[name] > 0, self.spread[name].float()
        value = x * spread + self.center[name].float()
        power = 10.0 ** value.clamp(-37, 37)
        error = error * spread
        return torch.where(logarithmic, power, value), torch.where(logarithmic, error * power * math.log(10), error)

    def ask(self, name: torch.Tensor) -> torch.Tensor:
        """(t, D) of names (t,)."""
        return self.scale(name)

    def forward(self, of: Scalars) -> torch.Tensor:
        x, error = (v.to(self.out.weight.dtype)[:, None] for v in self.standard(of))
        log_error = torch.where(error > 0, error.clamp(min=1e-4), 1e-4).log10()
        x = x.asinh()  # tails are heavy
        h = self.scale(of.name) * x + self.shift(of.name) + self.error(log_error)
        return self.out(nn.functional.gelu(h))
