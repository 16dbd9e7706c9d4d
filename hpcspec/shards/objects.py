"""Many objects in flat arrays: what shards hold, and what is read from them a block at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import astropy.units as u
import numpy as np
from astropy_healpix import HEALPix

from hpcspec.surveys.grids import KINDS, Grid
from hpcspec.surveys.observation import Arm, Curve, Observation

SPECTRUM, LIGHT_CURVE = "spectrum", "light curve"
# The columns every object has, and their types; texts are of any fixed length.
COLUMNS = {"id": "S", "ra": "<f8", "dec": "<f8", "healpix": "<i8", "approximate": "|i1", "sn_median": "<f4",
           "amplitude": "<f4", "source": "<i4", "row": "<i4"}  # fmt: skip


class Channel(NamedTuple):
    """What a segment is: an arm of a spectrum or a band of a light curve, its name, the unit of its values, and its frame
    (of the wavelengths, or the scale of the times)."""

    kind: str
    name: str
    unit: str
    frame: str


def healpix29(ra: np.ndarray, dec: np.ndarray) -> np.ndarray:
    """Nested HEALPix index of order 29 (n,), int64, of ICRS positions in degrees; -1 where there is none (NaN)."""
    ra, dec = np.asarray(ra, np.float64), np.asarray(dec, np.float64)
    known = np.isfinite(ra) & np.isfinite(dec)
    out = np.full(len(ra), -1, np.int64)
    if known.any():
        sky = HEALPix(nside=2**29, order="nested")
        out[known] = sky.lonlat_to_healpix(ra[known] * u.deg, dec[known] * u.deg)
    return out


@dataclass(frozen=True)
class Objects:
    """n objects, their s segments (an arm of a spectrum, a band of a light curve) and v samples, one after another.

    columns: those of `COLUMNS` that were asked for, (n,) each; segments (n+1,) int64 offsets into the segments; pixels
    (s+1,) int64 offsets into the samples; grid (s,) int32, -1 for a light curve; first (s,) int64, the first sample's place
    on the grid or in `time`; channel (s,) int16; samples (2, v) float32, value and ivar, or (2, 0) where they are not read;
    time (t,) float64, days; scalars (n, k, 2) float32, value and error, NaN where absent; axes (g, 3) float64 kind (its place
    in `KINDS`), start and step of each grid, and listed the wavelengths of those of kind "table"; meta (n,) each.
    """

    columns: Mapping[str, np.ndarray]
    segments: np.ndarray
    pixels: np.ndarray
    grid: np.ndarray
    first: np.ndarray
    channel: np.ndarray
    samples: np.ndarray
    time: np.ndarray
    scalars: np.ndarray
    axes: np.ndarray
    listed: Mapping[int, np.ndarray]
    channels: tuple[Channel, ...] = ()
    scalar_names: tuple[str, ...] = ()
    meta: Mapping[str, np.ndarray] | None = None
    sources: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.segments) - 1

    @property
    def value(self) -> np.ndarray:
        """(v,) float32: flux, or magnitude."""
        return self.samples[0]

    @property
    def ivar(self) -> np.ndarray:
        """(v,) float32."""
        return self.samples[1]

    def grid_of(self, grid: int) -> Grid:
        """One of the grids."""
        kind, start, step = self.axes[grid].tolist()
        return Grid(KINDS[int(kind)], start, step, tuple(self.listed[grid].tolist()) if grid in self.listed else ())

    def wavelength(self, segment: int) -> np.ndarray:
        """Vacuum wavelengths, Å, or times, days, of a segment's samples, float64."""
        length, first = int(self.pixels[segment + 1] - self.pixels[segment]), int(self.first[segment])
        grid = int(self.grid[segment])
        if grid < 0 or grid in self.listed:
            return (self.time if grid < 0 else self.listed[grid])[first : first + length]
        return self.grid_of(grid).wavelength(first, length)

    def arms(self, i: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """(wavelength f8, flux f4, ivar f4) of each arm of object i."""
        arms = [s for s in range(self.segments[i], self.segments[i + 1]) if self.grid[s] >= 0]
        return [(self.wavelength(s), *self.samples[:, self.pixels[s] : self.pixels[s + 1]]) for s in arms]

    def __iter__(self) -> Iterator[Observation]:
        """Every object as it was given to `collect`; needs the columns id, ra, dec and the meta."""
        names = self.scalar_names
        for i in range(len(self)):
            arms: list[Arm] = []
            curves: list[Curve] = []
            unit, frame = "", "observed"
            for s in range(self.segments[i], self.segments[i + 1]):
                channel, (a, b) = self.channels[self.channel[s]], self.pixels[s : s + 2]
                if channel.kind == SPECTRUM:
                    grid = self.grid_of(int(self.grid[s]))
                    arms.append(Arm(channel.name, grid, int(self.first[s]), self.value[a:b], self.ivar[a:b]))
                    unit, frame = channel.unit, channel.frame
                else:
                    curves.append(Curve(channel.name, self.wavelength(s), self.value[a:b], self.ivar[a:b], *channel[2:]))
            scalars = {names[k]: (float(v), float(e)) for k, (v, e) in enumerate(self.scalars[i]) if v == v}
            meta = {k: _plain(v[i]) for k, v in (self.meta or {}).items() if _present(v[i])}
            c = self.columns
            yield Observation(text(c["id"][i]), "", float(c["ra"][i]), float(c["dec"][i]), tuple(arms), unit, frame, meta,
                              tuple(curves), scalars)  # fmt: skip

    def take(self, order: np.ndarray) -> Objects:
        """These objects, in this order."""
        order = np.asarray(order, np.int64)
        segments, segment_offsets = ranges(self.segments[:-1][order], self.segments[1:][order])
        samples, pixels = ranges(self.pixels[:-1][segments], self.pixels[1:][segments])
        curve = self.grid[segments] < 0
        lengths = np.diff(pixels)
        times, time_offsets = ranges(self.first[segments][curve], self.first[segments][curve] + lengths[curve])
        first = self.first[segments]
        first[curve] = time_offsets[:-1]
        return replace(
            self, columns={k: v[order] for k, v in self.columns.items()}, segments=segment_offsets, pixels=pixels,
            grid=self.grid[segments], first=first, channel=self.channel[segments],
            samples=self.samples[:, samples] if self.samples.shape[1] else self.samples,
            time=self.time[times], scalars=self.scalars[order],
            meta=None if self.meta is None else {k: v[order] for k, v in self.meta.items()},
        )  # fmt: skip


def ranges(starts: np.ndarray, stops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The integers start … stop-1 of each pair one after another (v,), and the offsets (n+1,) of the pairs in them."""
    offsets = np.concatenate([[0], np.cumsum(stops - starts, dtype=np.int64)])
    return np.arange(offsets[-1], dtype=np.int64) + np.repeat(starts - offsets[:-1], np.diff(offsets)), offsets


def collect(observations: Sequence[tuple[Observation, int, int]], sources: Sequence[str]) -> Objects:
    """Observations, each with its place in `sources` and its row there, as flat arrays."""
    ones = [o for o, _, _ in observations]
    grids = list(dict.fromkeys(arm.grid for o in ones for arm in o.arms))
    place = {grid: i for i, grid in enumerate(grids)}
    channels: dict[Channel, int] = {}
    names = sorted({name for o in ones for name in o.scalars})
    counts, lengths, grid, first, channel, value, ivar, time = [], [], [], [], [], [], [], []
    times = 0
    for o in ones:
        counts.append(len(o.arms) + len(o.curves))
        for arm in o.arms:
            lengths.append(len(arm.flux))
            grid.append(place[arm.grid])
            first.append(arm.first)
            channel.append(channels.setdefault(Channel(SPECTRUM, arm.name, o.flux_unit, o.frame), len(channels)))
            value.append(arm.flux)
            ivar.append(arm.ivar)
        for curve in o.curves:
            lengths.append(len(curve.time))
            grid.append(-1)
            first.append(times)
            channel.append(channels.setdefault(Channel(LIGHT_CURVE, curve.band, curve.unit, curve.scale), len(channels)))
            value.append(curve.value)
            ivar.append(curve.ivar)
            time.append(curve.time)
            times += len(curve.time)
    ra, dec = np.array([o.ra for o in ones], np.float64), np.array([o.dec for o in ones], np.float64)
    columns = {
        "id": encoded([o.object_id for o in ones]), "ra": ra, "dec": dec, "healpix": healpix29(ra, dec),
        "approximate": np.array([o.meta.get("position", "object") != "object" for o in ones], np.int8),
        "sn_median": np.array([o.sn_median for o in ones], np.float32),
        "amplitude": np.array([o.amplitude for o in ones], np.float32),
        "source": np.array([i for _, i, _ in observations], np.int32),
        "row": np.array([row for _, _, row in observations], np.int32),
    }  # fmt: skip
    missing = (np.nan, np.nan)
    scalars = np.array([[o.scalars.get(n, missing) for n in names] for o in ones], np.float32)
    return Objects(
        columns, np.cumsum([0, *counts], dtype=np.int64), np.cumsum([0, *lengths], dtype=np.int64), np.array(grid, np.int32),
        np.array(first, np.int64), np.array(channel, np.int16), np.stack([_flat(value, np.float32), _flat(ivar, np.float32)]),
        _flat(time, np.float64), scalars.reshape(len(ones), len(names), 2),
        *_axes(grids), tuple(channels), tuple(names), columns_of([o.meta for o in ones]), tuple(sources),
    )  # fmt: skip


def joined(parts: Sequence[Objects]) -> Objects:
    """Several sets of objects as one; their grids, channels, scalars and sources are united, their meta is left out."""
    of_parts = [[p.grid_of(i) for i in range(len(p.axes))] for p in parts]
    grids = list(dict.fromkeys(g for known in of_parts for g in known))
    channels = list(dict.fromkeys(c for p in parts for c in p.channels))
    names = sorted({n for p in parts for n in p.scalar_names})
    sources = list(dict.fromkeys(s for p in parts for s in p.sources))

    def mapped(name: str, known: list[Any], all_known: list[Any]) -> np.ndarray:
        place = {x: i for i, x in enumerate(all_known)}
        tables = [np.array([*(place[x] for x in of_part), -1]) for of_part in known]
        values = [p.columns[name] if name in p.columns else getattr(p, name) for p in parts]
        return np.concatenate([table[v].astype(v.dtype) for table, v in zip(tables, values, strict=True)])

    def shifted(name: str) -> np.ndarray:
        offset = np.cumsum([0] + [int(getattr(p, name)[-1]) for p in parts])
        tails = [getattr(p, name)[1:] + o for p, o in zip(parts, offset[:-1], strict=True)]
        return np.concatenate([[0], *tails]).astype(np.int64)

    times = np.cumsum([0] + [len(p.time) for p in parts])
    scalars = np.full((sum(map(len, parts)), len(names), 2), np.nan, np.float32)
    row = 0
    for p in parts:
        scalars[row : row + len(p), [names.index(n) for n in p.scalar_names]] = p.scalars
        row += len(p)
    columns = {k: np.concatenate([p.columns[k] for p in parts]) for k in parts[0].columns if k != "source"}
    columns["source"] = mapped("source", [p.sources for p in parts], sources)
    return Objects(
        columns, shifted("segments"), shifted("pixels"), mapped("grid", of_parts, grids),
        np.concatenate([np.where(p.grid < 0, p.first + t, p.first) for p, t in zip(parts, times[:-1], strict=True)]),
        mapped("channel", [p.channels for p in parts], channels), np.concatenate([p.samples for p in parts], axis=1),
        _flat([p.time for p in parts], np.float64), scalars,
        *_axes(grids), tuple(channels), tuple(names), None, tuple(sources),
    )  # fmt: skip


def _axes(grids: Sequence[Grid]) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    axes = np.array([(KINDS.index(g.kind), g.start, g.step) for g in grids], np.float64).reshape(-1, 3)
    return axes, {i: g.wavelength(0, len(g.values)) for i, g in enumerate(grids) if g.kind == KINDS[0]}


def canonical(objects: Objects) -> Objects:
    """The same objects with only the grids, channels, scalars and sources that they use, numbered as they come, and
    identifiers no wider than they are."""

    def renumbered(values: np.ndarray, known: Sequence[Any]) -> tuple[np.ndarray, tuple[Any, ...]]:
        used, first = np.unique(values[values >= 0], return_index=True)
        used = used[np.argsort(first)]
        table = np.full(len(known) + 1, -1)
        table[used] = np.arange(len(used))
        return table[values].astype(values.dtype), tuple(known[i] for i in used.tolist())

    grid, used = renumbered(objects.grid, range(len(objects.axes)))
    listed = {i: objects.listed[g] for i, g in enumerate(used) if g in objects.listed}
    channel, channels = renumbered(objects.channel, objects.channels)
    source, sources = renumbered(objects.columns["source"], objects.sources)
    there = np.isfinite(objects.scalars[..., 0]).any(0)
    names = tuple(n for n, t in zip(objects.scalar_names, there, strict=True) if t)
    ids = objects.columns["id"]
    ids = ids.astype(f"S{max(1, int(np.char.str_len(ids).max(initial=0)))}")
    columns = {**objects.columns, "id": ids, "source": source}
    return replace(objects, columns=columns, grid=grid, axes=objects.axes[list(used)], listed=listed, channel=channel,
                   channels=channels, scalars=objects.scalars[:, there], scalar_names=names, sources=sources)  # fmt: skip


def columns_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """The survey's own values as columns of one type each, (n,): integers where all are, numbers where all are (missing is
    NaN), else text (missing is empty)."""
    return {key: _column([row.get(key) for row in rows]) for key in sorted({k for row in rows for k in row})}


def _column(values: list[Any]) -> np.ndarray:
    present = [v for v in values if v is not None]
    if len(present) == len(values) and all(isinstance(v, int) for v in present):
        if all(-(2**63) <= v < 2**63 for v in present):
            return np.array(values, np.int64)
    elif not any(isinstance(v, str) for v in present) and all(abs(v) < 2**53 for v in present if isinstance(v, int)):
        return np.array([np.nan if v is None else v for v in values], np.float64)
    return encoded(["" if v is None else str(v) for v in values])


def encoded(texts: Sequence[str]) -> np.ndarray:
    """Texts as UTF-8 of fixed length, (n,) bytes; what is not Unicode in them is escaped."""
    out = np.array([t.encode("utf-8", "backslashreplace") for t in texts], np.bytes_)
    return out if out.dtype.itemsize else out.astype("S1")


def text(value: Any) -> str:
    """A text of a column as str."""
    return value.decode() if isinstance(value, bytes) else str(value)


def texts(values: np.ndarray) -> np.ndarray:
    """A column of texts (n,), as stored, as numpy str."""
    return np.char.decode(values, "utf-8") if len(values) else np.zeros(0, "U1")


def _flat(arrays: Sequence[np.ndarray], dtype: Any) -> np.ndarray:
    return np.concatenate([np.asarray(a, dtype) for a in arrays]) if arrays else np.zeros(0, dtype)


def _plain(value: Any) -> str | int | float:
    return value.decode() if isinstance(value, bytes) else value.item()


def _present(value: Any) -> bool:
    return value != b"" if isinstance(value, bytes) else bool(value == value)
