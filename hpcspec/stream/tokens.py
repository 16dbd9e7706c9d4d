"""Objects to tokens: patches of spectra, patches of epochs, and scalars, for a whole pack at once on the device where it is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from hpcspec.stream.batch import Batch, Scalars, arranged
from hpcspec.stream.epochs import epochs
from hpcspec.stream.packing import Packed
from hpcspec.stream.patches import patches
from hpcspec.stream.split import mix
from hpcspec.stream.vocabulary import OF_CURVE, OF_SPECTRUM, PERIOD, SCALARS, Vocabulary

SN = 1e-3  # least signal to noise that a token tells apart
ALL_SCALARS, NO_PART, FIRST_SERIES = -1, -2, -3  # parts of an object; series of scalars count downwards


@dataclass(frozen=True)
class Hiding:
    """What a training step hides: of each object a share of its tokens between `least` and `most`, or, of `whole` of the
    objects, as large a share of whole parts: spectra, bands and all scalars, or the series of those that are scalars alone."""

    least: float
    most: float
    whole: float = 0.0
    seed: int = 0


def tokenize(packed: Packed, vocabulary: Vocabulary, hiding: Hiding | None = None) -> Batch:
    """The tokens of a pack."""
    count, device = len(packed), packed.segments.device
    scale = torch.where(packed.amplitude > 0, packed.amplitude, 1.0)
    period = packed.scalars[:, vocabulary.period, 0] if vocabulary.period is not None else torch.full_like(scale, torch.nan)
    spectra, of_patch = patches(packed, vocabulary.patch, scale)
    curves, of_epochs, bands, levels = epochs(packed, vocabulary.epochs, period)
    arms = torch.zeros(count, dtype=torch.bool, device=device)
    arms[packed.owner[of_patch]] = True
    scalars, of_scalar = _scalars(packed, scale, torch.nonzero(arms)[:, 0], bands, levels, vocabulary)

    owners = [of_scalar, packed.owner[of_patch], packed.owner[of_epochs]]
    lengths = torch.bincount(torch.cat(owners), minlength=count)
    by_length = torch.argsort(lengths, stable=True)
    place = torch.empty_like(by_length).scatter_(0, by_length, torch.arange(count, device=device))
    kinds = torch.from_numpy(vocabulary.kinds).to(device)
    order, kind = arranged([place[owner] for owner in owners], scalars.name, kinds)
    counts, which = lengths[by_length].tolist(), by_length.cpu().numpy()
    hidden = torch.zeros(len(order), dtype=torch.bool, device=device)
    if hiding is not None and hiding.most + hiding.whole > 0:
        segments = torch.bincount(packed.owner, minlength=count)
        before = (segments.cumsum(0) - segments)[packed.owner]
        alone = torch.bincount(packed.owner[of_patch], minlength=count) + torch.bincount(packed.owner[of_epochs], minlength=count)
        series = torch.from_numpy(FIRST_SERIES - vocabulary.series).to(device)[scalars.name]
        measured = torch.where(kinds[scalars.name] != SCALARS, NO_PART, torch.where(alone[of_scalar] == 0, series, ALL_SCALARS))
        part = torch.cat([measured, *(of - before[of] for of in (of_patch, of_epochs))])[order]
        own = torch.cat([_never_hidden(scalars.name, vocabulary), *(torch.zeros_like(of, dtype=torch.bool)
                                                                    for of in (of_patch, of_epochs))])[order]  # fmt: skip
        chosen = hide(np.array(counts), own.cpu().numpy(), part.cpu().numpy(), hiding, packed.epochs[which],
                      packed.numbers[which])  # fmt: skip
        hidden = torch.from_numpy(chosen).to(device)
    return Batch(scalars, spectra, curves, order, kind, hidden, tuple(counts), packed.numbers[which], packed.state)


def _never_hidden(names: torch.Tensor, vocabulary: Vocabulary) -> torch.Tensor:
    """Objects' own tokens, and the periods that phases are made of."""
    own = names == 0
    return own | (names == vocabulary.names.index(PERIOD)) if vocabulary.period is not None else own


def _scalars(packed: Packed, scale: torch.Tensor, arms: torch.Tensor, bands: torch.Tensor, levels: torch.Tensor,
             vocabulary: Vocabulary) -> tuple[Scalars, torch.Tensor]:  # fmt: skip
    """The scalar tokens of a pack and the object of each: one for every object, two for those with spectra (a,), two for each
    band, whose segments (b,) and level and amplitude (b, 2) are given, and those the surveys measured."""
    device = scale.device
    everyone, first = torch.arange(len(packed), device=device), 1 + len(OF_SPECTRUM)
    of_measured, measured = torch.nonzero(torch.isfinite(packed.scalars[..., 0]), as_tuple=True)
    value, error = packed.scalars[of_measured, measured].unbind(-1)
    of_spectra = torch.stack([scale.log10(), packed.sn_median.clamp(min=SN).log10()], dim=1)[arms]
    name_of_band = first + len(OF_CURVE) * packed.band[bands]
    names = torch.cat([
        torch.zeros_like(everyone), *(torch.full_like(arms, 1 + i) for i in range(len(OF_SPECTRUM))),
        *(name_of_band + i for i in range(len(OF_CURVE))), first + len(OF_CURVE) * len(vocabulary.bands) + measured,
    ])  # fmt: skip
    derived = torch.cat([torch.zeros_like(scale), of_spectra.T.flatten(), levels.T.flatten()])
    owner = torch.cat([everyone, arms, arms, packed.owner[bands], packed.owner[bands], of_measured])
    errors = torch.cat([torch.zeros_like(derived), torch.nan_to_num(error, 0.0)])
    return Scalars(names, torch.cat([derived, value]), errors), owner


def hide(
    lengths: np.ndarray, own: np.ndarray, part: np.ndarray, how: Hiding, epochs: np.ndarray, numbers: np.ndarray
) -> np.ndarray:
    """(T,) bool: the tokens hidden of objects of these lengths (N,), never their `own` (T,), at least one hidden and one seen
    where there are two others; `part` (T,) says what belongs together, NO_PART is what a spectrum or a light curve says of itself
    as a scalar. Of whole parts at least one is hidden and one seen. It is a function of seed, epoch, number and tokens."""
    owner, edges = np.repeat(np.arange(len(lengths)), lengths), np.cumsum(lengths) - lengths
    within = np.arange(len(owner)) - edges[owner]
    of_object = mix(mix(numbers.astype(np.uint64), how.seed) + epochs.astype(np.uint64), 1)
    score = mix(of_object[owner] + within.astype(np.uint64), 2)
    order = np.lexsort((score, own, owner))
    others = lengths - np.add.reduceat(own.astype(np.int64), edges)
    share = how.least + (how.most - how.least) * uniform(mix(of_object, 3))
    number = np.maximum(np.minimum(np.maximum(np.rint(others * share).astype(np.int64), how.most > 0), others - 1), 0)
    hidden = np.zeros(len(owner), bool)
    hidden[order] = within < number[owner]
    if how.whole:
        parts = np.flatnonzero(~own & (part != NO_PART))
        rank = mix(of_object[owner[parts]] + part[parts].astype(np.uint64), 4)
        ordered = np.lexsort((rank, owner[parts]))
        of, ranks = owner[parts][ordered], rank[ordered]
        begins = np.append(True, (of[1:] != of[:-1]) | (ranks[1:] != ranks[:-1]))[: len(of)]  # of each part of each object
        there = np.bincount(of[begins], minlength=len(lengths))
        place = np.cumsum(begins) - 1 - (there.cumsum() - there)[of]
        wanted = np.clip((share * there).astype(np.int64), 1, there - 1)
        chosen = np.zeros(len(owner), bool)
        chosen[parts[ordered]] = place < wanted[of]
        hidden = np.where(((there > 1) & (uniform(mix(of_object, 5)) < how.whole))[owner], chosen, hidden)
    return hidden


def uniform(bits: np.ndarray) -> np.ndarray:
    """float64 in [0, 1) of random 64 bits."""
    return (bits >> np.uint64(11)) / 2.0**53
