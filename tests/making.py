"""Small spectra, shards and batches with known content, for the tests of everything behind the readers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from hpcspec.shards.format import write_shard
from hpcspec.shards.objects import Objects, collect
from hpcspec.shards.shard import Shard
from hpcspec.stream.batch import Batch, Tokens, apart
from hpcspec.stream.index import DataIndex, open_index
from hpcspec.stream.packing import Packed, layout, pack
from hpcspec.stream.tokens import Hiding, tokenize
from hpcspec.stream.vocabulary import PERIOD, Vocabulary
from hpcspec.surveys.base import FLAM
from hpcspec.surveys.grids import Grid, table_grid
from hpcspec.surveys.observation import Arm, Curve, Observation, make_arm, make_curve

# Every kind of wavelength grid, with a first pixel in the optical.
GRIDS: dict[str, tuple[Grid, int]] = {
    "log10": (Grid("log10", 0.0, 1e-4), 35800),
    "log10 with a phase": (Grid("log10", 3.7e-5, 1e-4), 36200),
    "linear": (Grid("linear", 3600.0, 0.8), 100),
    "linear_air": (Grid("linear_air", 4713.0, 0.046), 0),
    "table": (table_grid(4000 * 1.0002 ** np.arange(3000) + 0.1 * np.sin(np.arange(3000))), 7),
}
INPUTS = "0123456789abcdef"
WORDS = Vocabulary(8, 4, bands=("R mag", "V mag"), measured=(PERIOD, "parallax", "teff"))


def make(grid: str, pixels: int, seed: Sequence[int] = (0,), name: str = "") -> Arm:
    """An arm of absorption lines on a slope with noise; one pixel in twenty is bad."""
    rng = np.random.default_rng(list(seed))
    x = np.arange(pixels)
    flux = 10 + x / 100 - 4 * np.exp(-(((x % 50) - rng.integers(10, 40)) ** 2) / 8) + rng.normal(0, 0.3, pixels)
    return make_arm(name or grid, *GRIDS[grid], flux, rng.uniform(5, 15, pixels), rng.random(pixels) < 0.05)


def spectrum(number: int = 0, grids: Sequence[str] = ("log10",), pixels: int = 120, **changed: object) -> Observation:
    """An object with one arm for each of `grids`; `number` makes it unlike the others, `changed` replaces its fields."""
    rng = np.random.default_rng([number, 1])
    arms = tuple(make(grid, pixels, (number, i), f"{grid}-{i}") for i, grid in enumerate(grids))
    given = {"object_id": f"object-{number:04d}", "survey": "sdss", "ra": rng.uniform(0, 360), "dec": rng.uniform(-80, 80),
             "arms": arms, "flux_unit": FLAM, "frame": "observed", "meta": {"plate": 4000 + number}}  # fmt: skip
    return Observation(**{**given, **changed})  # type: ignore[arg-type]


def objects_of(ones: Sequence[Observation]) -> Objects:
    """What a shard would give for these objects."""
    return collect([(one, 0, row) for row, one in enumerate(ones)], ["a.fits"])


def curve(number: int = 0, count: int = 20, band: str = "V") -> Curve:
    """A light curve with noise of its own; one epoch in ten is bad."""
    rng = np.random.default_rng([number, 2, ord(band)])
    times = 2_450_000 + np.sort(rng.uniform(0, 2000, count))
    return make_curve(band, times, rng.normal(14, 0.2, count), rng.uniform(0.01, 0.1, count), rng.random(count) < 0.1)


def star(number: int = 0, pixels: int = 60, count: int = 14) -> Observation:
    """An object with all that `WORDS` names: a spectrum, light curves in two bands, and scalars, a period among them."""
    known = {"teff": (5000.0 + 10 * number, 50.0), "parallax": (1.0 + number, 0.1), PERIOD: (0.1 * number - 0.3, np.nan)}
    return spectrum(number, pixels=pixels, curves=(curve(number, count), curve(number, count // 2, "R")), scalars=known)


def words(patch: int, epochs: int = 4) -> Vocabulary:
    """`WORDS` with tokens of these sizes."""
    return Vocabulary(patch, epochs, WORDS.inputs, WORDS.bands, WORDS.measured)


def packed(ones: Sequence[Observation], epoch: int = 0, of: Vocabulary = WORDS) -> Packed:
    """All these objects in one pack, numbered in the given order."""
    objects = objects_of(ones)
    return pack([layout([objects], np.arange(len(ones)), of)], [epoch], torch.from_numpy(objects.samples))


def batch(ones: Sequence[Observation], of: Vocabulary = WORDS, mask: float = 0.0) -> Batch:
    """All these objects in one batch, numbered in the given order, a share `mask` of their tokens hidden."""
    return tokenize(packed(ones, of=of), of, Hiding(mask, mask))


def tokens_of(one: Observation, of: Vocabulary = WORDS) -> Tokens:
    """The tokens of an object, made alone."""
    return apart(batch([one], of))[0]


def tensors(of: Batch) -> dict[str, torch.Tensor]:
    """All tensors of a batch by name: "spectra.values" and so on, and order, kind and hidden."""
    groups = {f"{group}.{name}": x for group in ("scalars", "spectra", "curves")
              for name, x in getattr(of, group)._asdict().items()}  # fmt: skip
    return groups | {name: getattr(of, name) for name in ("order", "kind", "hidden")}


def assert_same(one: Tokens, other: Tokens) -> None:
    """To the last bit, and of the same types."""
    for a, b in zip(one.groups, other.groups, strict=True):
        for name in a._fields:
            x, y = getattr(a, name), getattr(b, name)
            assert x.dtype == y.dtype and x.shape == y.shape, name
            np.testing.assert_array_equal(x, y, err_msg=name)


def shard(path: Path, spectra: Iterable[Observation], compression: str = "none", survey: str = "sdss") -> Path:
    """A shard of these objects in the given order; they come from two files in turn."""
    rows = [(s, i % 2, i // 2) for i, s in enumerate(spectra)]
    write_shard(path, collect(rows, ["a.fits", "b.fits"]), survey, INPUTS, compression)
    return path


def brighter(one: Observation, factor: float) -> Observation:
    """Its spectra with so many times the flux, as well measured."""
    arms = (replace(arm, flux=arm.flux * np.float32(factor), ivar=arm.ivar / np.float32(factor**2)) for arm in one.arms)
    return replace(one, arms=tuple(arms))


def dataset(folder: Path, counts: Sequence[int], pixels: int = 40, spread: float = 0.0, **changed: object) -> DataIndex:
    """Shards of so many objects each, numbered through, all different, fainter and brighter by `spread` dex."""
    first = np.cumsum([0, *counts])
    numbers = [range(a, b) for a, b in zip(first[:-1].tolist(), first[1:].tolist(), strict=True)]
    paths = []
    for i, some in enumerate(numbers):
        ones = [brighter(spectrum(n, pixels=pixels, **changed), 10 ** (spread * math.sin(n))) for n in some]
        paths.append(shard(folder / f"sdss-{i:05d}.h5", ones))
    return open_index(paths)


def stored(path: Path) -> list[tuple[Observation, int, int]]:
    """Everything in a shard."""
    with Shard.open(path) as opened:
        found = opened.objects()
        rows = zip(found, found.columns["source"].tolist(), found.columns["row"].tolist(), strict=True)
        return [(replace(one, survey=opened.info.survey), source, row) for one, source, row in rows]


def unlike(a: Observation, b: Observation) -> list[str]:
    """The fields in which two observations differ, to the last bit."""
    fields = ("object_id", "survey", "flux_unit", "frame", "meta", "scalars")
    names = [f for f in fields if repr(getattr(a, f)) != repr(getattr(b, f))]
    names += [f for f in ("ra", "dec") if getattr(a, f) != getattr(b, f) and getattr(a, f) == getattr(a, f)]
    if (len(a.arms), len(a.curves)) != (len(b.arms), len(b.curves)):
        return [*names, "arms or curves"]
    for x, y in zip(a.arms, b.arms, strict=True):
        names += [f"{x.name}.{f}" for f in ("name", "grid", "first") if getattr(x, f) != getattr(y, f)]
        names += [f"{x.name}.{f}" for f in ("flux", "ivar", "wavelength") if _bytes(x, f) != _bytes(y, f)]
    for u, v in zip(a.curves, b.curves, strict=True):
        names += [f"{u.band}.{f}" for f in ("band", "unit", "scale") if getattr(u, f) != getattr(v, f)]
        names += [f"{u.band}.{f}" for f in ("time", "value", "ivar") if _bytes(u, f) != _bytes(v, f)]
    return names


def _bytes(measured: object, name: str) -> tuple[str, bytes]:
    values: np.ndarray = getattr(measured, name)
    return values.dtype.str, values.tobytes()
