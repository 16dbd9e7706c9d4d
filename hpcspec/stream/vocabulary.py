"""What a model reads: the kinds of measurement, the bands and the names it knows, and how many samples make a token."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

import numpy as np

from hpcspec.shards.objects import SPECTRUM, Channel
from hpcspec.shards.shard import ShardInfo

# Kinds of tokens; every object has one token of its own, which says nothing, so that an object without any other has one too.
OBJECT, SPECTRA, CURVES, SCALARS = range(4)
KINDS = ("object", "spectra", "curves", "scalars")
OF_SPECTRUM = ("log10_flux_scale", "log10_sn")  # what normalisation takes from a spectrum, as scalars
OF_CURVE = ("level", "log10_amplitude")  # and from each band of a light curve
DERIVED = "lc_"  # scalars that are found in the light curves themselves
PERIOD = "lc_log_period"  # log10 of the period of an object's light curves, days: epochs are given their phases by it
IGNORED = -2  # the band of a segment that isn't read


@dataclass(frozen=True)
class Vocabulary:
    """patch, epochs: samples of a spectrum and of a light curve in a token; inputs: the kinds that are read; bands, measured:
    the names of bands and of the surveys' scalars."""

    patch: int = 32
    epochs: int = 8
    inputs: tuple[str, ...] = KINDS[1:]
    bands: tuple[str, ...] = ()
    measured: tuple[str, ...] = ()
    _bands: dict[tuple[Channel, ...], np.ndarray] = field(default_factory=dict, init=False, compare=False, repr=False)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """All scalars that can be tokens, and can be asked for: the object's own token, those of spectra and bands, those of
        the surveys."""
        of_bands = [f"{what} {band}" for band in self.bands for what in OF_CURVE]
        return ("object", *OF_SPECTRUM, *of_bands, *self.measured)

    @cached_property
    def kinds(self) -> np.ndarray:
        """(names,) int64: the kind of measurement that each of `names` belongs to."""
        derived = [CURVES if name.startswith(DERIVED) else SCALARS for name in self.measured]
        counts = (1, len(OF_SPECTRUM), len(OF_CURVE) * len(self.bands))
        return np.concatenate([np.repeat([OBJECT, SPECTRA, CURVES], counts), np.array(derived, np.int64)])

    @cached_property
    def series(self) -> np.ndarray:
        """(names,) int64: the series that each of `names` belongs to, numbered names of one stem (bp_0, bp_1, …) or itself."""
        stems = [name.rstrip("0123456789") for name in self.names]
        return np.unique(stems, return_inverse=True)[1].astype(np.int64)

    @property
    def period(self) -> int | None:
        """Place of `PERIOD` in `measured`."""
        return self.measured.index(PERIOD) if PERIOD in self.measured else None

    def band(self, channels: tuple[Channel, ...]) -> np.ndarray:
        """(channels,) int64: place in `bands` of a light curve, -1 for a spectrum, IGNORED for what isn't read."""
        if channels not in self._bands:
            place = {name: i for i, name in enumerate(self.bands)} if "curves" in self.inputs else {}
            spectrum = -1 if "spectra" in self.inputs else IGNORED
            found = [spectrum if c.kind == SPECTRUM else place.get(band_name(c.name, c.unit), IGNORED) for c in channels]
            self._bands[channels] = np.array(found, np.int64)
        return self._bands[channels]

    def scalars(self, values: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
        """(n, measured, 2) of values and errors (n, names, 2), NaN where absent."""
        if names == self.measured:
            return values
        out = np.full((len(values), len(self.measured), 2), np.nan, np.float32)
        place = {name: i for i, name in enumerate(self.measured)}
        for k, name in enumerate(names):
            if name in place:
                out[:, place[name]] = values[:, k]
        return out

    def as_json(self) -> dict[str, Any]:
        """Plain JSON."""
        known = {f.name: getattr(self, f.name) for f in fields(self) if not f.name.startswith("_")}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in known.items()}

    @staticmethod
    def from_json(content: dict[str, Any]) -> Vocabulary:
        """From what `as_json` gave."""
        inputs, bands, measured = (tuple(content[name]) for name in ("inputs", "bands", "measured"))
        return Vocabulary(content["patch"], content["epochs"], inputs, bands, measured)


def band_name(name: str, unit: str) -> str:
    """A band with the unit of its values, which a model must not mistake for another."""
    return f"{name} {unit}"


def vocabulary(shards: Iterable[ShardInfo], patch: int, epochs: int, inputs: tuple[str, ...],
               ignore: tuple[str, ...] = ()) -> Vocabulary:  # fmt: skip
    """That of a model trained on these shards, which reads these kinds, without the scalars to `ignore`."""
    shards = list(shards)
    if not any(c.kind == SPECTRUM for s in shards for c in s.channels):  # or its layers would answer without having learned
        inputs = tuple(kind for kind in inputs if kind != "spectra")
    bands = {band_name(c.name, c.unit) for s in shards for c in s.channels if c.kind != SPECTRUM} if "curves" in inputs else set()
    names = {n for s in shards for n in s.scalar_names if ("curves" if n.startswith(DERIVED) else "scalars") in inputs}
    return Vocabulary(patch, epochs, inputs, tuple(sorted(bands)), tuple(sorted(names - set(ignore))))


def tokens_of(segments: np.ndarray, lengths: np.ndarray, first: np.ndarray, bands: np.ndarray, scalars: np.ndarray,
              of: Vocabulary) -> np.ndarray:  # fmt: skip
    """(n,) int64 at most this many tokens in each object: from offsets into its segments (n+1,), their lengths, where on their
    grids they begin, and their bands (s,), and its scalars (n, measured, 2)."""
    spectrum, curve = bands == -1, bands >= 0
    sizes = np.where(spectrum, of.patch, of.epochs)
    lengths = lengths + np.where(spectrum & (lengths > 0), first % of.patch, 0)
    before = np.zeros((len(lengths) + 1, 2), np.int64)
    counts = np.where(spectrum | curve, (lengths + sizes - 1) // sizes, 0) + len(OF_CURVE) * curve
    np.cumsum(np.stack([counts, spectrum], axis=1), axis=0, out=before[1:])
    patches, arms = (before[segments[1:]] - before[segments[:-1]]).T
    return 1 + patches + len(OF_SPECTRUM) * (arms > 0) + np.isfinite(scalars[..., 0]).sum(1)
