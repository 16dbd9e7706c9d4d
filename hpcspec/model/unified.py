"""The model: an encoder of any set of measurements of an object, and a decoder that answers any question about it.

An object is patches of spectra on their native grids, patches of epochs of light curves, and scalars; what is absent is no
token. With nothing hidden it is the autoencoder of spectra of Shen et al. 2025 (arXiv 2510.17959); with scalars alone the star
model of Leung & Bovy 2023 (arXiv 2308.10944); with the contrastive term alone AstroM3 (Rizhko & Bloom 2024, arXiv 2411.08842).
T tokens, N objects, P pixels of a patch, D width; A questions asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from hpcspec.config import Model
from hpcspec.model.attention import AttentionPool, Block, Packing, segments
from hpcspec.model.embeddings import EpochEmbedding, PatchEmbedding, ScalarEmbedding, TimeEmbedding, WavelengthEmbedding
from hpcspec.model.first_guess import first_guess
from hpcspec.model.views import another_view, over, unit_of
from hpcspec.stream.batch import Batch
from hpcspec.stream.vocabulary import KINDS, OBJECT, Vocabulary

LOG_VARIANCE = (-12.0, 6.0)
LARGEST = 10.0  # standard deviations of a scalar that is asked for
HALVES_TEMPERATURE = 0.1  # of the agreement of halves
FIRST_ANSWERS = 5e-3  # spread of an untrained model's answers about their middle
FIRST_VARIANCE = -4.6  # ln of what is expected of the pixels' squared distances from their first guess: a tenth of the level


@dataclass(frozen=True)
class Encoded:
    """Tokens (T, D) of the encoder and how they are packed; log_wavelength (T,) f4: ln of the mean wavelength in Å, NaN of what
    is no patch of a spectrum."""

    tokens: torch.Tensor
    packing: Packing
    log_wavelength: torch.Tensor | None = None

    def to(self, device: torch.device) -> Encoded:
        """The same on a device."""
        where = self.log_wavelength
        return Encoded(self.tokens.to(device), self.packing, None if where is None else where.to(device))


class Questions(NamedTuple):
    """What is asked of N objects: names (a,) i8, coordinates (b, 2) of patches, and times, phases, band (c,) of epochs; owners:
    the object of each, three in this order."""

    names: torch.Tensor
    coordinates: torch.Tensor
    times: torch.Tensor
    phases: torch.Tensor
    band: torch.Tensor
    owners: tuple[torch.Tensor, torch.Tensor, torch.Tensor]

    def to(self, device: torch.device) -> Questions:
        """The same on a device."""
        scalars, spectra, curves = (x.to(device) for x in self.owners)
        return Questions(self.names.to(device), self.coordinates.to(device), self.times.to(device), self.phases.to(device),
                         self.band.to(device), (scalars, spectra, curves))  # fmt: skip


class Answers(NamedTuple):
    """Mean and log variance: of names (a, 1), of the pixels of patches (b, P), of epochs (c, 1), as the tokens have them."""

    scalars: tuple[torch.Tensor, torch.Tensor]
    spectra: tuple[torch.Tensor, torch.Tensor]
    curves: tuple[torch.Tensor, torch.Tensor]


class Unified(nn.Module):
    """Encoder, query decoder, and attention-pooled summaries: one of all that is known, and one of each kind of measurement."""

    def __init__(self, config: Model, vocabulary: Vocabulary, activation_checkpointing: bool = False):
        super().__init__()
        self.config, self.vocabulary, self.activation_checkpointing = config, vocabulary, activation_checkpointing
        d = config.width
        self.embed_patch = PatchEmbedding(d, vocabulary.patch)
        self.embed_wavelength = WavelengthEmbedding(d, config.frequencies)
        self.embed_epoch = EpochEmbedding(d)
        self.embed_time = TimeEmbedding(d, config.frequencies, len(vocabulary.bands))
        self.embed_scalar = ScalarEmbedding(len(vocabulary.names), d)
        self.encoder = nn.ModuleList(Block(d, config.heads, config.dropout) for _ in range(config.layers))
        self.norm = nn.LayerNorm(d)
        self.pool = AttentionPool(d, config.heads, len(KINDS))
        self.project = nn.Linear(d, d)
        self.project_half = nn.Linear(d, d)
        pairs = len(list(combinations(KINDS[1:], 2)))
        self.log_temperature = nn.Parameter(torch.full((pairs,), -2.65))  # 0.07
        self.query = nn.ModuleList(nn.Linear(d, d) for _ in KINDS[1:])
        self.decoder = nn.ModuleList(Block(d, config.heads, config.dropout) for _ in range(config.decoder_layers))
        self.norm_decoder = nn.LayerNorm(d)
        self.answer_patch, self.answer_epoch, self.answer_scalar = (nn.Linear(d, 2 * n) for n in (vocabulary.patch, 1, 1))
        for answer in self.answers_by:  # little noise of its own to unlearn
            nn.init.normal_(answer.weight, std=FIRST_ANSWERS / d**0.5)
            nn.init.zeros_(answer.bias)

    @property
    def answers_by(self) -> tuple[nn.Linear, ...]:
        """Its last layers."""
        return self.answer_patch, self.answer_epoch, self.answer_scalar

    def _run(self, block: nn.Module, *args: object) -> torch.Tensor:
        if self.activation_checkpointing and self.training:
            return checkpoint(block, *args, use_reentrant=False)
        return block(*args)

    def embed(self, batch: Batch) -> torch.Tensor:
        """(T, D) of the tokens before the encoder. Every part runs, on nothing where there is nothing: all ranks do the same."""
        curves = batch.curves
        when = self.embed_time(curves.times, curves.phases, curves.band[:, None].expand(curves.times.shape))
        spectra = self.embed_patch(batch.spectra, self.embed_wavelength(batch.spectra.coordinates))
        of_groups = [self.embed_scalar(batch.scalars), spectra, self.embed_epoch(curves, when)]
        return torch.cat(of_groups)[batch.order]

    def _transform(self, tokens: torch.Tensor, packing: Packing) -> Encoded:
        for block in self.encoder:
            tokens = self._run(block, tokens, packing)
        return Encoded(self.norm(tokens), packing)

    def encode(self, batch: Batch) -> Encoded:
        """The tokens of each object after the encoder."""
        wavelength = batch.spectra.coordinates[:, 0]
        nan = [wavelength.new_full((len(group[0]),), torch.nan) for group in (batch.scalars, batch.curves)]
        encoded = self._transform(self.embed(batch), Packing(batch.lengths))
        return replace(encoded, log_wavelength=torch.cat([nan[0], wavelength.log(), nan[1]])[batch.order])

    def summary(self, encoded: Encoded) -> torch.Tensor:
        """(N, D): one vector per object of all that is known of it."""
        return self.pool(encoded.tokens, encoded.packing)

    def summary_of(self, batch: Batch, kind: int) -> torch.Tensor:
        """(N, D) of unit length: each object by one kind of measurement alone, in the space that all kinds share; NaN for an
        object without any."""
        part = batch.take(batch.kind == kind)
        there = torch.tensor(part.lengths, device=batch.order.device) > 0
        out = torch.full((len(batch), self.config.width), torch.nan, device=batch.order.device)
        packing = Packing(tuple(n for n in part.lengths if n))
        if packing.lengths:
            kinds = torch.full((len(packing.lengths),), kind)
            out[there] = self._shared(self._transform(self.embed(part), packing), kinds).float()
        return out

    def _shared(self, encoded: Encoded, kinds: torch.Tensor) -> torch.Tensor:
        pooled = self.pool(encoded.tokens, encoded.packing, kinds.to(encoded.tokens.device))
        return F.normalize(self.project(pooled), dim=-1)

    def answer(self, asked: Questions, context_KD: torch.Tensor, keys: Packing, given: Batch | None = None) -> Answers:
        """What the decoder says to questions about objects, of which it is given the tokens `context_KD`; and, if these are of
        measurements `given`, the level of their spectra, relative to which those of patches are."""
        of_scalars, of_patches, of_epochs = self.query
        x = torch.cat([of_scalars(self.embed_scalar.ask(asked.names)), of_patches(self.embed_wavelength(asked.coordinates)),
                       of_epochs(self.embed_time(asked.times, asked.phases, asked.band))])  # fmt: skip
        owner = torch.cat(asked.owners)
        order = torch.argsort(owner, stable=True)
        queries = Packing(tuple(torch.bincount(owner, minlength=len(keys.lengths)).tolist()))
        x = x[order]
        for block in self.decoder:
            x = self._run(block, x, queries, context_KD, keys)
        x = torch.empty_like(x).index_copy(0, order, self.norm_decoder(x))
        parts = x.split([len(o) for o in asked.owners])
        found = [head(of).float().chunk(2, dim=-1)
                 for head, of in zip((self.answer_scalar, self.answer_patch, self.answer_epoch), parts, strict=True)]  # fmt: skip
        guess = first_guess(given, asked.coordinates, asked.owners[1], self.vocabulary.patch)
        mean, log_variance = found[1]
        size = guess.abs().clamp(min=0.1)
        found[1] = guess + size * mean, FIRST_VARIANCE + log_variance + 2 * size.log()
        return Answers(*((mean, log_variance.clamp(*LOG_VARIANCE)) for mean, log_variance in found))

    def forward(self, batch: Batch, summary_share: float = 0.0, contrastive: float = 0.0, reconstruction: float = 1.0,
                halves: float = 0.0) -> dict[str, torch.Tensor]:  # fmt: skip
        """The losses: of what is hidden (of everything, where nothing is), answered from what is seen and, a share of it, from
        the summary alone; of the agreement of kinds of measurement of the same object; and of that of what is seen of it and what
        is hidden."""
        hides = bool(batch.hidden.any())
        seen = batch.take(~batch.hidden) if hides else batch
        asked = hidden = batch.take(batch.hidden if hides else batch.kind != OBJECT)
        if hides:  # a spectrum that is to be predicted from another doesn't set its unit
            unit = unit_of(seen)
            seen, asked = over(seen, unit), over(asked, unit)
        tokens = self.embed(seen)
        encoded = self._transform(tokens, Packing(seen.lengths))
        losses = {}
        if reconstruction > 0:
            losses = self._likelihood(asked, encoded.tokens, encoded.packing, reconstruction, seen)
        summary = self.summary(encoded) if reconstruction * summary_share > 0 or halves > 0 else encoded.tokens[:0]
        if reconstruction * summary_share > 0:
            part = asked.take(torch.rand(len(asked.order), device=asked.order.device) < summary_share)
            from_summary = self._likelihood(part, summary, Packing((1,) * len(batch)), reconstruction)
            losses["loss_summary"] = torch.stack(list(from_summary.values())).sum()
        if halves > 0:
            losses["loss_halves"] = halves * self._halves(summary, hidden)
        if contrastive > 0:
            losses["loss_contrastive"] = contrastive * self._agreement(seen, tokens)
        losses["loss"] = torch.stack(list(losses.values())).sum()
        return losses

    def _likelihood(self, asked: Batch, context_KD: torch.Tensor, keys: Packing, weight: float,
                    given: Batch | None = None) -> dict[str, torch.Tensor]:  # fmt: skip
        curves, owners = asked.curves, asked.owners
        there = torch.isfinite(curves.sigma)
        if self.training:  # one epoch of each patch, at random: its neighbours in phase would say the same
            drawn = torch.where(there, torch.rand_like(curves.sigma), -1.0)
            there = there & (drawn == drawn.amax(1, keepdim=True))
        rows, epochs = torch.nonzero(there, as_tuple=True)
        found = self.answer(
            Questions(asked.scalars.name, asked.spectra.coordinates, curves.times[rows, epochs], curves.phases[rows, epochs],
                      curves.band[rows], (owners[0], owners[1], owners[2][rows])),
            context_KD, keys, given)  # fmt: skip
        value, error = self.embed_scalar.standard(asked.scalars)
        value = value.clamp(-LARGEST, LARGEST)
        losses = {
            "spectra": likelihood(*found.spectra, asked.spectra.values[..., 0], asked.spectra.sigma),
            "curves": likelihood(*found.curves, curves.values[there][:, None], curves.sigma[there][:, None]),
            "scalars": likelihood(*found.scalars, value[:, None], error[:, None]),
        }
        return {f"loss_{kind}": weight * loss for kind, loss in losses.items()}

    def _halves(self, summary_ND: torch.Tensor, hidden: Batch) -> torch.Tensor:
        """Symmetric cross-entropy of which summaries of what is seen and of what is hidden belong to the same object: the two
        have nothing in common but the object, neither noise nor pixels."""
        other = another_view(hidden.take(hidden.kind != OBJECT))
        there = torch.tensor(other.lengths, device=summary_ND.device) > 0
        encoded = self._transform(self.embed(other), Packing(tuple(n for n in other.lengths if n)))
        pair = (standardised(x.float()) for x in (summary_ND[there], self.summary(encoded)))
        a, b = (F.normalize(self.project_half(x.to(summary_ND.dtype)).float(), dim=-1) for x in pair)
        return _same(a, b, HALVES_TEMPERATURE)

    def _agreement(self, batch: Batch, tokens_TD: torch.Tensor) -> torch.Tensor:
        """Symmetric cross-entropy of which summaries belong to the same object (Radford et al. 2021, arXiv 2103.00020), summed
        over the pairs of kinds that objects of the batch have."""
        device = batch.order.device
        owner = segments(batch.lengths, device)
        has = torch.zeros(len(batch), len(KINDS), dtype=torch.bool, device=device)
        has[owner, batch.kind] = True
        several = has[:, 1:].sum(1) > 1
        rows = torch.nonzero(several[owner] & (batch.kind != OBJECT))[:, 0]
        view, counts = torch.unique(batch.kind[rows] * len(batch) + owner[rows], return_counts=True)
        of_view = torch.searchsorted(view, batch.kind[rows] * len(batch) + owner[rows])
        by_length = torch.argsort(counts, stable=True)
        place = torch.empty_like(by_length).scatter_(0, by_length, torch.arange(len(view), device=device))
        tokens = tokens_TD[rows[torch.argsort(place[of_view], stable=True)]]
        kinds, objects = view[by_length] // len(batch), view[by_length] % len(batch)
        summary = self._shared(self._transform(tokens, Packing(tuple(counts[by_length].tolist()))), kinds).float()
        total = 0.0 * summary.sum() + 0.0 * self.log_temperature.sum()
        for pair, (a, b) in enumerate(combinations(range(1, len(KINDS)), 2)):
            both = torch.nonzero(has[:, a] & has[:, b])[:, 0]
            if len(both) > 1:
                x, y = (_rows_of(summary[kinds == k], objects[kinds == k], both, len(batch)) for k in (a, b))
                total = total + _same(x, y, self.log_temperature[pair].float().exp().clamp(min=0.01))
        return total


def _same(x: torch.Tensor, y: torch.Tensor, temperature: torch.Tensor | float) -> torch.Tensor:
    """Symmetric cross-entropy of which rows (n, D) of unit length of x and y belong together."""
    logits, same = x @ y.T / temperature, torch.arange(len(x), device=x.device)
    return 0.5 * (F.cross_entropy(logits, same) + F.cross_entropy(logits.T, same)) if len(x) > 1 else 0.0 * logits.sum()


def standardised(vectors: torch.Tensor) -> torch.Tensor:
    """(n, D) with mean 0 and variance 1 over the n: what all objects have in common would hide what they haven't."""
    middle = vectors.mean(0, keepdim=True)
    return (vectors - middle) / ((vectors - middle).square().mean(0, keepdim=True) + 1e-6).sqrt()


def _rows_of(values: torch.Tensor, objects: torch.Tensor, wanted: torch.Tensor, count: int) -> torch.Tensor:
    place = torch.zeros(count, dtype=torch.long, device=objects.device)
    place[objects] = torch.arange(len(objects), device=objects.device)
    return values[place[wanted]]


def likelihood(mean: torch.Tensor, log_variance: torch.Tensor, target: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Mean Gaussian −ln L per good sample, ½[(y−ŷ)²/V + ln V] with V = e^s + σ² (Leung & Bovy 2023, arXiv 2308.10944).

    All (A, P); a sample with infinite sigma doesn't count. Squared residuals beyond 10 standard deviations grow linearly.
    """
    good = torch.isfinite(sigma)
    variance = log_variance.exp() + torch.where(good, sigma, 1.0) ** 2
    z = (target - mean) / variance.sqrt()
    loss = F.huber_loss(z, torch.zeros_like(z), reduction="none", delta=10.0) + 0.5 * variance.log()
    return (loss * good).sum() / good.sum().clamp(min=1)


def hidden_matrices(module: nn.Module, outputs: Sequence[nn.Module]) -> list[nn.Parameter]:
    """The weights of all linear layers of a module but those of its outputs."""
    layers = (m for m in module.modules() if isinstance(m, nn.Linear) and m not in outputs)
    return [m.weight for m in layers if isinstance(m.weight, nn.Parameter)]


def set_standards(model: Unified, standards: Sequence[Any]) -> None:
    """Give the model the center, spread and logarithmic (names,) of its scalars."""
    of = model.embed_scalar
    for buffer, values in zip((of.center, of.spread, of.logarithmic), standards, strict=True):
        buffer.copy_(torch.as_tensor(values))
