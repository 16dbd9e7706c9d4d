"""The model: an encoder of any set of spectral patches on their native grids, and a decoder that answers wavelength queries.

With nothing hidden it is the autoencoder of Shen et al. 2025 (arXiv 2510.17959); hidden patches make it a masked one.
T tokens, N objects, P pixels of a patch, D width; V and A: tokens visible, asked for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from hpcspec.config import Model
from hpcspec.model.attention import AttentionPool, Block, Packing, segments
from hpcspec.stream.tokens import CHANNELS, SCALARS, Batch

LONGEST, SHORTEST = 4e4, 4.0  # periods of the sinusoids in λ, Å
LOG_LONGEST, LOG_SHORTEST = 4.0, 2e-3  # and in ln λ
LOG_VARIANCE = (-12.0, 6.0)


class Sinusoids(nn.Module):
    """Sines and cosines of a coordinate at log-spaced frequencies: (T,) to (T, 2·count)."""

    def __init__(self, count: int, longest: float, shortest: float):
        super().__init__()
        # A plain attribute, not a buffer: a model cast to bfloat16 must keep these in float32.
        self.frequencies = torch.logspace(math.log10(2 * math.pi / longest), math.log10(2 * math.pi / shortest), count,
                                          dtype=torch.float64, device="cpu").float()  # fmt: skip

    def forward(self, x_T: torch.Tensor) -> torch.Tensor:
        self.frequencies = self.frequencies.to(x_T.device)
        phase = x_T.float()[:, None] * self.frequencies
        return torch.cat([phase.sin(), phase.cos()], dim=-1)


class WavelengthEmbedding(nn.Module):
    """Where a patch is: its mean wavelength and its step per pixel, (T, 2) Å to (T, D)."""

    def __init__(self, width: int, frequencies: int):
        super().__init__()
        self.linear_scale = Sinusoids(frequencies, LONGEST, SHORTEST)
        self.log_scale = Sinusoids(frequencies, LOG_LONGEST, LOG_SHORTEST)
        self.project = nn.Linear(4 * frequencies + 1, width)

    def forward(self, coordinates_T2: torch.Tensor) -> torch.Tensor:
        wavelength, step = coordinates_T2.float().unbind(-1)
        features = torch.cat([self.linear_scale(wavelength), self.log_scale(wavelength.log()), step.log()[:, None]], dim=-1)
        return self.project(features.to(self.project.weight.dtype))


@dataclass(frozen=True)
class Encoded:
    """Tokens (T+N, D) of the encoder, one scalar token first for each object, and how they are packed."""

    tokens: torch.Tensor
    packing: Packing


class SpectralModel(nn.Module):
    """Encoder, query decoder and attention-pooled summary."""

    def __init__(self, config: Model, activation_checkpointing: bool = False):
        super().__init__()
        self.config, self.activation_checkpointing = config, activation_checkpointing
        d = config.width
        self.embed_patch = nn.Sequential(nn.Linear(CHANNELS * config.patch, 2 * d), nn.GELU(), nn.Linear(2 * d, d))
        self.embed_scalars = nn.Sequential(nn.Linear(len(SCALARS), d), nn.GELU(), nn.Linear(d, d))
        self.embed_wavelength = WavelengthEmbedding(d, config.frequencies)
        self.encoder = nn.ModuleList(Block(d, config.heads, config.dropout) for _ in range(config.layers))
        self.norm = nn.LayerNorm(d)
        self.pool = AttentionPool(d, config.heads)
        self.query = nn.Linear(d, d)
        self.decoder = nn.ModuleList(Block(d, config.heads, config.dropout) for _ in range(config.decoder_layers))
        self.norm_decoder = nn.LayerNorm(d)
        self.answer = nn.Linear(d, 2 * config.patch)

    def _run(self, block: nn.Module, *args: object) -> torch.Tensor:
        if self.activation_checkpointing and self.training:
            return checkpoint(block, *args, use_reentrant=False)
        return block(*args)

    def encode(self, batch: Batch, seen: torch.Tensor | None = None) -> Encoded:
        """The tokens of each object that are `seen` (T,) bool (all if None), after the encoder."""
        values, coordinates, lengths = batch.values, batch.coordinates, batch.lengths
        if seen is not None:
            owner = segments(lengths, values.device)
            counts = torch.zeros(len(lengths), dtype=torch.int64, device=values.device).index_add_(0, owner, seen.long())
            values, coordinates, lengths = values[seen], coordinates[seen], tuple(counts.tolist())
        dtype = self.norm.weight.dtype
        x_TD = self.embed_patch(values.flatten(1).to(dtype)) + self.embed_wavelength(coordinates)
        scalars_ND = self.embed_scalars(batch.scalars.to(dtype))
        packing = Packing(tuple(n + 1 for n in lengths))
        first = torch.tensor(packing.offsets[:-1], device=x_TD.device)
        is_patch = torch.ones(packing.total, dtype=torch.bool, device=x_TD.device).index_fill_(0, first, False)
        tokens = x_TD.new_empty(packing.total, x_TD.shape[-1]).index_copy(0, first, scalars_ND)
        tokens = tokens.index_copy(0, is_patch.nonzero()[:, 0], x_TD)
        for block in self.encoder:
            tokens = self._run(block, tokens, packing)
        return Encoded(self.norm(tokens), packing)

    def summary(self, encoded: Encoded) -> torch.Tensor:
        """(N, D): one vector per object, its embedding in the catalogue."""
        return self.pool(encoded.tokens, encoded.packing)

    def decode(self, coordinates_A2: torch.Tensor, queries: Packing, context_KD: torch.Tensor,
               keys: Packing) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
        """Mean and log variance (A, P) of the flux over its scale in the patches asked for."""
        x_AD = self.query(self.embed_wavelength(coordinates_A2))
        for block in self.decoder:
            x_AD = self._run(block, x_AD, queries, context_KD, keys)
        mean, log_variance = self.answer(self.norm_decoder(x_AD)).float().chunk(2, dim=-1)
        return mean, log_variance.clamp(*LOG_VARIANCE)

    def forward(self, batch: Batch, summary_share: float = 0.0) -> dict[str, torch.Tensor]:
        """The losses of hidden tokens, answered from the visible tokens and, a share of them, from the summary alone."""
        hidden = batch.hidden
        encoded = self.encode(batch, ~hidden)
        owner = segments(batch.lengths, hidden.device)
        counts = torch.zeros(len(batch), dtype=torch.int64, device=hidden.device).index_add_(0, owner, hidden.long())
        queries = Packing(tuple(counts.tolist()))
        target, sigma = batch.values[hidden][..., 0].float(), batch.sigma[hidden]
        mean, log_variance = self.decode(batch.coordinates[hidden], queries, encoded.tokens, encoded.packing)
        losses = {"loss_hidden": likelihood(mean, log_variance, target, sigma)}
        if summary_share > 0:
            # The last tokens asked for of each object: contiguous, and evenly spaced picks would cost an index per object.
            picked = [max(1, round(n * summary_share)) if n else 0 for n in queries.lengths]
            rows = torch.cat([torch.arange(o + n - k, o + n) for o, n, k in
                              zip(queries.offsets, queries.lengths, picked, strict=False)])  # fmt: skip
            rows = rows.to(hidden.device)
            summary = self.summary(encoded)
            mean, log_variance = self.decode(batch.coordinates[hidden][rows], Packing(tuple(picked)), summary,
                                             Packing((1,) * len(batch)))  # fmt: skip
            losses["loss_summary"] = likelihood(mean, log_variance, target[rows], sigma[rows])
        losses["loss"] = torch.stack(list(losses.values())).sum()
        return losses


def likelihood(mean: torch.Tensor, log_variance: torch.Tensor, target: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Mean Gaussian −ln L per good pixel, ½[(y−ŷ)²/V + ln V] with V = e^s + σ² (Leung & Bovy 2023, arXiv 2308.10944).

    All (A, P); a pixel with infinite sigma doesn't count. Squared residuals beyond 10 standard deviations grow linearly.
    """
    good = torch.isfinite(sigma)
    variance = log_variance.exp() + torch.where(good, sigma, 1.0) ** 2
    z = (target - mean) / variance.sqrt()
    loss = F.huber_loss(z, torch.zeros_like(z), reduction="none", delta=10.0) + 0.5 * variance.log()
    return (loss * good).sum() / good.sum().clamp(min=1)
