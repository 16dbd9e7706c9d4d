"""Reading shards: what has to be known of one, and the reads themselves."""

from __future__ import annotations

import math
import os
import threading
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import h5py
import hdf5plugin  # noqa: F401  (registers its filters with HDF5)
import numpy as np

from hpcspec.atomic import read_json
from hpcspec.errors import UserError
from hpcspec.shards.format import CONTENT, FORMAT, INDEX, SCHEMA_VERSION, checksum
from hpcspec.shards.in_place import deal, fill_in_place
from hpcspec.shards.objects import COLUMNS, Channel, Objects
from hpcspec.surveys.grids import KINDS

IOV_MAX = 1024  # pieces of memory that one read can fill
# What the stream reads, and the types; the order is that of `ShardInfo.offsets`.
STREAMED = {
    "object/segments": "<i8", "segment/pixels": "<i8", "segment/grid": "<i4", "segment/first": "<i8", "segment/channel": "<i2",
    "sample/value": "<f4", "sample/ivar": "<f4", "sample/time": "<f8", "scalar/data": "<f4",
    "grid/kind": "|i1", "grid/start": "<f8", "grid/step": "<f8", "grid/offsets": "<i8", "grid/values": "<f8",
    **{f"object/{name}": kind for name, kind in COLUMNS.items()},
}  # fmt: skip
LARGE = ("sample/value", "sample/ivar", "sample/time", "grid/values")
PLACE = {name: i for i, name in enumerate(STREAMED)}
BLOCK_COLUMNS = ("ra", "dec", "healpix", "approximate", "sn_median", "amplitude")


@dataclass(frozen=True)
class ShardInfo:
    """What one has to know of a shard to read from it: small, so that it is read once and broadcast.

    objects, segments, samples, times, grids: how many; offsets: byte of the file where each of `STREAMED` starts, -1 where
    only HDF5 can read it; id_width: bytes of an identifier; crc32: of the content; size: of the file, bytes.
    """

    path: str
    survey: str
    objects: int
    segments: int
    samples: int
    times: int
    size: int
    crc32: int
    id_width: int
    approximate: bool
    in_place: bool
    grids: int
    offsets: tuple[int, ...]
    channels: tuple[Channel, ...]
    scalar_names: tuple[str, ...]

    def __len__(self) -> int:
        return self.objects


def describe(path: str | Path, trust: bool = True) -> ShardInfo:
    """The facts of a shard, from the index of its folder if that has them (and `trust`), else from the file.

    Raises UserError if it is missing, damaged or of another version.
    """
    path = Path(path)
    index = path.parent / INDEX
    known = _indexed(index, index.stat().st_mtime_ns).get(path.name) if trust and index.is_file() else None
    if known and not path.is_file():
        raise UserError(f"shard {path} is gone: ingest again")
    if known:
        return replace(known, path=str(path))
    with Shard.open(path) as shard:
        return shard.info


@lru_cache(maxsize=16)
def _indexed(index: Path, _: int) -> dict[str, ShardInfo]:
    content = read_json(index) or {}
    if content.get("schema_version") != SCHEMA_VERSION:
        return {}
    return {name: _restored(facts) for name, facts in content.get("facts", {}).items()}


def index_of(infos: Mapping[str, ShardInfo]) -> dict[str, Any]:
    """What the index of a folder says of its shards, by name, for `shard_paths` and `describe`."""
    facts = {name: {k: v for k, v in vars(info).items() if k != "path"} for name, info in infos.items()}
    return {"schema_version": SCHEMA_VERSION, "shards": list(infos), "facts": facts}


def _restored(facts: dict[str, Any]) -> ShardInfo:
    """A ShardInfo from its JSON, which has all but the path."""
    channels, names = tuple(Channel(*c) for c in facts["channels"]), tuple(facts["scalar_names"])
    plain = {"path": "", "offsets": tuple(facts["offsets"]), "channels": _same(channels), "scalar_names": _same(names)}
    return ShardInfo(**(facts | plain))


@lru_cache(maxsize=256)
def _same(value: Any) -> Any:
    """Equal channels of many shards are kept once."""
    return value


def _info(file: h5py.File, path: str) -> ShardInfo:
    if file.attrs.get("format") != FORMAT.encode():
        raise UserError(f"{path} is not a shard of hpcspec")
    if file.attrs["schema_version"] != SCHEMA_VERSION:
        version = file.attrs["schema_version"]
        raise UserError(f"{path} has schema version {version}, this program reads {SCHEMA_VERSION}: ingest again")
    named = [file[f"channel/{name}"].asstr()[()].tolist() for name in Channel._fields]
    where = [file[name].id.get_offset() if file[name].chunks is None else None for name in STREAMED]
    crc = zlib.crc32(repr([int(file[n].attrs["crc32"]) for n in CONTENT]).encode())
    offsets = tuple(-1 if w is None else w for w in where)
    return ShardInfo(
        path, str(file.attrs["survey"], "utf-8"), len(file["object/id"]), len(file["segment/grid"]),
        int(file["segment/pixels"][-1]), len(file["sample/time"]), os.path.getsize(path), crc,
        file["object/id"].dtype.itemsize, bool(((file["object/approximate"][()] != 0) | (file["object/healpix"][()] < 0)).any()),
        bool(file.attrs["in_place"]), len(file["grid/kind"]), offsets,
        _same(tuple(map(Channel, *named)) if named[0] else ()),
        _same(tuple(file["scalar/name"].asstr()[()].tolist())),
    )  # fmt: skip


class Shard:
    """A shard open for reading.

    With `comm` and an h5py built with MPI it is read by HDF5 through the MPI-IO driver; otherwise by plain reads where its
    data are contiguous, and by HDF5 where they are compressed. The bytes are the same, and the reads of a process are its
    own. Raises UserError if the file is missing, damaged, of another version, or not the one that `info` describes.
    """

    def __init__(self, info: ShardInfo, comm: Any = None, file: h5py.File | None = None):
        self.info, self.path, self._file = info, info.path, file
        self.mpio = comm is not None and h5py.get_config().mpi
        self._kept: dict[str, np.ndarray] = {}
        self._axes: np.ndarray | None = None
        self._opening = threading.Lock()
        try:
            self._fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            size = os.fstat(self._fd).st_size
        except OSError as error:
            raise UserError(f"can't read shard {self.path}: {error.strerror}") from error
        if size != info.size:
            self.close()
            raise UserError(f"shard {self.path} has {size} bytes, it had {info.size}: it was changed; start again")

    @classmethod
    def open(cls, path: str | Path) -> Shard:
        """The shard at `path`."""
        try:
            file = h5py.File(path, "r", locking=False)
            return cls(_info(file, str(path)), None, file)
        except (OSError, KeyError, RuntimeError, ValueError, TypeError) as error:  # h5py raises any of these for damage
            raise UserError(f"can't read shard {path}: {error}") from error

    @property
    def file(self) -> h5py.File:
        """The HDF5 file."""
        with self._opening:  # a file that two threads open is closed once only, and not before MPI ends
            if self._file is None:
                try:
                    if self.mpio:
                        from mpi4py import MPI

                        self._file = h5py.File(self.path, "r", driver="mpio", comm=MPI.COMM_SELF)
                    else:
                        self._file = h5py.File(self.path, "r", locking=False)
                except OSError as error:
                    raise UserError(f"can't read shard {self.path}: {error}") from error
            return self._file

    def close(self) -> None:
        """Close the file; safe to call again."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        if self._file is not None:
            self._file.close()
            self._file = None

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            self.close()

    def __enter__(self) -> Shard:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def inputs(self) -> str:
        """Fingerprint of what this shard was made from."""
        return str(self.file.attrs["inputs"], "utf-8")

    def _rows(self, name: str, start: int, stop: int, out: np.ndarray | None = None) -> np.ndarray:
        """Rows start … stop-1 of one of `STREAMED`, in `out` (of at least that size) if it is given."""
        if out is None and name in self._kept:
            return self._kept[name][start:stop]
        info, count = self.info, max(0, stop - start)
        shape = (count, len(info.scalar_names), 2) if name == "scalar/data" else (count,)
        values = np.empty(shape, self._kind(name)) if out is None else out[:count]
        if values.size == 0:
            return values
        offset = info.offsets[PLACE[name]]
        if self.mpio or offset < 0:
            if STREAMED[name] == "S":  # HDF5 doesn't convert UTF-8 to numpy's bytes
                values[:] = self.file[name][start:stop]
            else:
                self.file[name].read_direct(values, np.s_[start:stop])
            if os.fstat(self._fd).st_size < info.size:  # HDF5 gives zeros for what is behind the end of a file
                raise UserError(f"shard {self.path} is cut short in {name}: ingest again")
            return values
        self._scatter([memoryview(values.data).cast("B")], offset + start * (values.nbytes // count), name)
        return values

    def keep_table(self, most: int) -> None:
        """Read all columns at once and keep them, if they are at most so many bytes: then a block costs no reads but those of its
        samples. Raises UserError if the file can't be read."""
        info = self.info
        small = [n for n in STREAMED if n not in LARGE]
        there = sorted((info.offsets[PLACE[n]], n) for n in small if math.prod(self._shape(n)))
        begin, (last, name) = there[0][0], there[-1]
        length = last - begin + math.prod(self._shape(name)) * self._kind(name).itemsize
        if self.mpio or begin < 0 or length > most:
            return
        try:
            table = os.pread(self._fd, length, begin)
        except OSError as error:
            raise UserError(f"can't read shard {self.path}: {error.strerror}") from error
        if len(table) == length:
            self._kept = {n: np.empty(self._shape(n), self._kind(n)) for n in small}
            for at, n in there:
                shape = self._shape(n)
                self._kept[n] = np.frombuffer(table, self._kind(n), math.prod(shape), at - begin).reshape(shape)
            self._axes = self._axes_of(0, info.grids)

    def _kind(self, name: str) -> np.dtype:
        return np.dtype(f"S{self.info.id_width}" if STREAMED[name] == "S" else STREAMED[name])

    def _shape(self, name: str) -> tuple[int, ...]:
        """That of one of `STREAMED` that is not one of `LARGE`."""
        info = self.info
        group = {"object": info.objects, "scalar": info.objects, "segment": info.segments, "grid": info.grids}
        rows = group[name.partition("/")[0]] + (name in ("object/segments", "segment/pixels", "grid/offsets"))
        return (rows, len(info.scalar_names), 2) if name == "scalar/data" else (rows,)

    def read(self, start: int, stop: int, columns: tuple[str, ...] = BLOCK_COLUMNS, samples: bool = True) -> Objects:
        """Objects start … stop-1 with these columns, each array in one read. Without `samples` they have none, and `pixels`
        are offsets into all samples of the shard, see `fill`.

        Raises UserError if the file can't be read.
        """
        info = self.info
        try:
            segments = self._rows("object/segments", start, stop + 1)
            s0, s1 = int(segments[0]), int(segments[-1])
            self._check(0 <= s0 <= s1 <= info.segments)
            pixels = self._rows("segment/pixels", s0, s1 + 1)
            grid, first, channel = (self._rows(f"segment/{n}", s0, s1) for n in ("grid", "first", "channel"))
            v0, v1 = int(pixels[0]), int(pixels[-1])
            lengths = pixels[1:] - pixels[:-1]
            self._check(0 <= v0 <= v1 <= info.samples and not (lengths < 0).any() and not (segments[1:] < segments[:-1]).any())
            curves = np.flatnonzero(grid < 0)
            t0 = int(first[curves[0]]) if len(curves) else 0
            t1 = int(first[curves[-1]]) + int(pixels[curves[-1] + 1]) - int(pixels[curves[-1]]) if len(curves) else 0
            self._check(0 <= t0 <= t1 <= info.times)
            if len(curves):
                first = np.where(grid < 0, first - t0, first)
            grid, axes, listed = self._grids(grid)
            if listed or len(curves):
                sizes = np.full(len(axes) + 1, np.iinfo(np.int64).max)
                sizes[list(listed)], sizes[-1] = list(map(len, listed.values())), t1 - t0
                self._check(not ((first < 0) | (lengths > sizes[grid] - first)).any())
            values = np.empty((2, v1 - v0 if samples else 0), np.float32)
            if samples:
                self.fill(v0, v1, [values[0]], [values[1]])
            return Objects(
                {n: self._rows(f"object/{n}", start, stop) for n in columns}, segments - s0,
                pixels - v0 if samples else pixels, grid, first, channel,
                values, self._rows("sample/time", t0, t1), self._rows("scalar/data", start, stop),
                axes, listed, info.channels, info.scalar_names,
            )  # fmt: skip
        except (OSError, KeyError, RuntimeError, IndexError, ValueError) as error:
            raise UserError(f"can't read shard {self.path}: {error}") from error

    def _check(self, within: bool) -> None:
        if not within:
            raise UserError(f"shard {self.path} is damaged: its offsets are out of bounds; ingest again")

    def fill(self, start: int, stop: int, values: Sequence[Any], ivars: Sequence[Any]) -> None:
        """Read samples start … stop-1 into places that follow on one another: float32 arrays, or their bytes as memoryviews.

        Raises UserError if the file can't be read.
        """
        if self.info.in_place:
            return fill_in_place(self, start, stop, values, ivars)
        try:
            self._fill("sample/value", start, stop, values)
            self._fill("sample/ivar", start, stop, ivars)
        except (OSError, KeyError, RuntimeError) as error:
            raise UserError(f"can't read shard {self.path}: {error}") from error

    def _fill(self, name: str, start: int, stop: int, places: Sequence[Any]) -> None:
        offset = self.info.offsets[PLACE[name]]
        if self.mpio or offset < 0:
            deal(self._rows(name, start, stop, np.empty(stop - start, np.float32)), places)
            return
        at = offset + 4 * start
        for i in range(0, len(places), IOV_MAX):
            some = [p if isinstance(p, memoryview) else memoryview(p).cast("B") for p in places[i : i + IOV_MAX] if len(p)]
            at = self._scatter(some, at, name)

    def _scatter(self, views: list[memoryview], at: int, name: str) -> int:
        """Fill the views from byte `at` of the file on; the byte behind them."""
        wanted = sum(map(len, views))
        while views:
            got = os.preadv(self._fd, views, at)
            if got == wanted:
                return at + got
            if got == 0:
                raise UserError(f"shard {self.path} is cut short in {name}: ingest again")
            at, wanted = at + got, wanted - got
            while views and got >= len(views[0]):
                got -= len(views.pop(0))
            if got:
                views[0] = views[0][got:]
        return at

    def _grids(self, grid: np.ndarray) -> tuple[np.ndarray, np.ndarray, dict[int, np.ndarray]]:
        """The grids that segments (s,) use: their numbers (s,) in what was read, `axes` and `listed` of `Objects`."""
        used = grid[grid >= 0]
        low, high = (int(used.min()), int(used.max()) + 1) if len(used) else (0, 0)
        self._check(high <= self.info.grids and not (grid < -1).any())
        axes = self._axes_of(low, high) if self._axes is None else self._axes[low:high]
        listed = {}
        if not axes[:, 0].all():
            for g in np.intersect1d(np.flatnonzero(axes[:, 0] == 0), used - low).tolist():
                begin, end = self._rows("grid/offsets", low + g, low + g + 2).tolist()
                listed[g] = self._rows("grid/values", begin, end)
        return np.where(grid >= 0, grid - low, -1).astype(grid.dtype) if low else grid, axes, listed

    def _axes_of(self, low: int, high: int) -> np.ndarray:
        axes = np.stack([self._rows(f"grid/{name}", low, high).astype(np.float64) for name in ("kind", "start", "step")], axis=1)
        self._check(bool(np.all(axes[:, 0] < len(KINDS)) and np.all(axes[:, 0] >= 0)))
        return axes

    def column(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """One of `COLUMNS` of objects start … stop-1, (n,)."""
        return self._rows(f"object/{name}", start, len(self.info) if stop is None else stop)

    def lengths(self) -> tuple[np.ndarray, np.ndarray]:
        """object/segments (n+1,) and segment/pixels (s+1,) of all objects."""
        return self._rows("object/segments", 0, len(self.info) + 1), self._rows("segment/pixels", 0, self.info.segments + 1)

    def meta(self, start: int = 0, stop: int | None = None) -> dict[str, np.ndarray]:
        """The survey's own columns of objects start … stop-1, (n,) each; text as bytes."""
        columns = self.file.get("meta", {}).items()
        kinds = {k: f"S{d.dtype.itemsize}" if h5py.check_string_dtype(d.dtype) else d.dtype for k, d in columns}
        return {unquote(k): d[start:stop].astype(kinds[k]) for k, d in columns}

    def sources(self) -> tuple[str, ...]:
        """Paths of the source files."""
        return tuple(self.file["source/path"].asstr(errors="surrogateescape")[()].tolist())

    def objects(self, start: int = 0, stop: int | None = None, samples: bool = True) -> Objects:
        """Objects start … stop-1 with everything there is of them, or everything but their samples."""
        stop = len(self.info) if stop is None else stop
        meta = self.meta(start, stop)
        return replace(self.read(start, stop, tuple(COLUMNS), samples), meta=meta, sources=self.sources())

    def damaged(self) -> list[str]:
        """Names of the data sets whose values don't have the checksum that was written with them."""
        names: list[str] = []
        self.file.visit(names.append)
        data = [n for n in names if isinstance(self.file[n], h5py.Dataset)]
        return [n for n in data if checksum(self.file[n][()]) != self.file[n].attrs["crc32"]]
