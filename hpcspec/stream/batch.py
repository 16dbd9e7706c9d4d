"""Batches of tokens, and the tokens of one object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch

CHANNELS = 3  # of a pixel: flux, log error and flux over its local level

# The tokens of one form: tensors in a batch, arrays in the tokens of one object.


class Patches(NamedTuple):
    """t patches of P pixels: values (t, P, 3) f4, sigma (t, P) f4 of values[..., 0] (inf where bad), coordinates (t, 2) f4
    (mean wavelength and step per pixel, Å)."""

    values: Any
    sigma: Any
    coordinates: Any


class Epochs(NamedTuple):
    """t patches of E epochs in one band: values (t, E) f4 over the band's amplitude, its level removed; sigma (t, E) f4, inf
    where there is no epoch; times (t, E) f4 days since the object's first; phases (t, E) f4 at the object's period, NaN where
    that is unknown; band (t,) i8."""

    values: Any
    sigma: Any
    times: Any
    phases: Any
    band: Any


class Scalars(NamedTuple):
    """t scalars: name (t,) i8, its place in the vocabulary's names; value, error (t,) f4, an unknown error is 0."""

    name: Any
    value: Any
    error: Any


GROUPS: tuple[type[Any], ...] = (Scalars, Patches, Epochs)


@dataclass(frozen=True)
class Batch:
    """N objects, their T tokens one after another without padding, objects of equal length next to each other.

    scalars, spectra, curves: the tokens by their form; order (T,) i8: the packed sequence is these three one after another,
    in this order; kind (T,) i8: what each is a measurement of (`vocabulary.KINDS`), hidden (T,) bool: tokens the encoder
    doesn't get and the decoder is asked for, both in the packed order; lengths: tokens of each object; objects (N,): their
    numbers in the index.
    """

    scalars: Scalars
    spectra: Patches
    curves: Epochs
    order: torch.Tensor
    kind: torch.Tensor
    hidden: torch.Tensor
    lengths: tuple[int, ...]
    objects: np.ndarray
    state: dict[str, Any] | None = None

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def groups(self) -> tuple[Any, Any, Any]:
        """scalars, spectra, curves."""
        return self.scalars, self.spectra, self.curves

    @property
    def owners(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The object (t,) i8 of each token of scalars, spectra, curves."""
        owner = torch.empty_like(self.order)
        owner[self.order] = torch.repeat_interleave(torch.tensor(self.lengths, device=owner.device))
        scalars, spectra, curves = owner.split([len(group[0]) for group in self.groups])
        return scalars, spectra, curves

    def take(self, keep: torch.Tensor) -> Batch:
        """The same objects with those tokens alone for which `keep` (T,) is True."""
        order = self.order[keep]
        rows = torch.zeros_like(self.order, dtype=torch.bool)
        rows[order] = True
        sizes = [len(group[0]) for group in self.groups]
        groups = [form(*(x[part] for x in of)) for form, of, part in zip(GROUPS, self.groups, rows.split(sizes), strict=True)]
        counts = torch.zeros(len(self), dtype=torch.long, device=keep.device)
        counts.index_add_(0, torch.repeat_interleave(torch.tensor(self.lengths, device=keep.device)), keep.long())
        return replace(self, scalars=groups[0], spectra=groups[1], curves=groups[2], order=(rows.cumsum(0) - 1)[order],
                       kind=self.kind[keep], hidden=self.hidden[keep], lengths=tuple(counts.tolist()))  # fmt: skip

    def to(self, device: torch.device) -> Batch:
        """The batch with its tensors on a device."""
        groups = [form(*(x.to(device) for x in of)) for form, of in zip(GROUPS, self.groups, strict=True)]
        return replace(self, scalars=groups[0], spectra=groups[1], curves=groups[2],
                       **{name: getattr(self, name).to(device) for name in ("order", "kind", "hidden")})  # fmt: skip


@dataclass(frozen=True)
class Tokens:
    """One object's tokens as arrays, as in `Batch`."""

    scalars: Scalars
    spectra: Patches
    curves: Epochs

    def __len__(self) -> int:
        return sum(len(group[0]) for group in self.groups)

    @property
    def groups(self) -> tuple[Any, Any, Any]:
        """scalars, spectra, curves."""
        return self.scalars, self.spectra, self.curves


def apart(batch: Batch) -> Mapping[int, Tokens]:
    """The tokens of each object of a batch, by its number."""
    sizes = [len(group[0]) for group in batch.groups]
    group = np.repeat(np.arange(len(GROUPS)), sizes)[batch.order.numpy()]
    owner = np.repeat(np.arange(len(batch)), batch.lengths)
    found = []
    for g, of in enumerate(batch.groups):
        rows = batch.order[torch.from_numpy(group == g)] - sum(sizes[:g])
        edges = np.cumsum(np.bincount(owner[group == g], minlength=len(batch)))
        found.append([np.split(x[rows].numpy(), edges[:-1]) for x in of])
    return {number: Tokens(*(form(*(x[i] for x in of)) for form, of in zip(GROUPS, found, strict=True)))
            for i, number in enumerate(batch.objects.tolist())}  # fmt: skip


def collate(objects: Sequence[int], tokens: Sequence[Tokens], kinds: np.ndarray) -> Batch:
    """One batch of these objects, nothing hidden; kinds: of each of the vocabulary's names."""
    by_length = sorted(range(len(tokens)), key=lambda i: len(tokens[i]))
    chosen = [tokens[i] for i in by_length]
    groups = [form(*(torch.from_numpy(np.concatenate(x)) for x in zip(*(one.groups[g] for one in chosen), strict=True)))
              for g, form in enumerate(GROUPS)]  # fmt: skip
    owners = [np.repeat(np.arange(len(chosen)), [len(one.groups[g][0]) for one in chosen]) for g in range(3)]
    order, kind = arranged([torch.from_numpy(o) for o in owners], groups[0].name, torch.from_numpy(kinds))
    lengths = tuple(len(one) for one in chosen)
    return Batch(groups[0], groups[1], groups[2], order, kind, torch.zeros(len(order), dtype=torch.bool), lengths,
                 np.array([objects[i] for i in by_length]))  # fmt: skip


def arranged(owners: Sequence[torch.Tensor], names: torch.Tensor, kinds: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`order` and `kind` of a batch from the object that each token of the three groups belongs to."""
    order = torch.argsort(torch.cat(list(owners)), stable=True)
    of_groups = torch.cat([kinds[names], torch.full_like(owners[1], 1), torch.full_like(owners[2], 2)])
    return order, of_groups[order]
