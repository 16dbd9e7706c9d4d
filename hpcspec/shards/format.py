"""The shard: an HDF5 file of many objects, flat values and offsets, wavelength grids stored once.

Layout, schema version 2 (n objects, s segments, v samples, t times; a segment is an arm of a spectrum or a band of a light
curve):

    attributes     format, schema_version, survey, inputs (fingerprint of what it was made from)
    object/        id (n) text, ra, dec (n) f8 deg, healpix (n) i8 (order 29 nested, -1 without a position), approximate (n)
                   i1 (the position is not the object's own), sn_median, amplitude (n) f4, source, row (n) i4 (place in
                   source/path, position in that file), segments (n+1) i8
    segment/       pixels (s+1) i8 offsets into sample/, grid (s) i4 (-1: light curve), first (s) i8 (place on the grid, or
                   in sample/time), channel (s) i2
    sample/        value, ivar (v) f4, time (t) f8
    scalar/        data (n, k, 2) f4 (value, error), name (k)
    grid/          kind (g) i1 (place in `KINDS`), start, step (g) f8, offsets (g+1) i8, values f8: the wavelength grids
    channel/       kind, name, unit, frame
    source/path, meta/<name> (n); "/" and "%" of a name are written %2F and %25
    attributes `crc32` of every data set: zlib's, over the uncompressed little-endian bytes
    text is UTF-8 of fixed length, padded with NUL; a source's path has the bytes of the file's name, whatever they are

Where the samples stay in the survey's own files (attribute `in_place`), sample/value and sample/ivar are empty, and
source/size (bytes) tells whether a file is still the same.

Objects are in the order of healpix, then id. Without compression all data sets are contiguous, so that a reader which
knows their places reads them with plain reads of the file; with it, value and ivar are in chunks of 1 MiB.
"""

from __future__ import annotations

import os
import re
import zlib
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np

from hpcspec.atomic import LateErrors, read_json, replacing
from hpcspec.shards.objects import COLUMNS, Channel, Objects

FORMAT, SCHEMA_VERSION = "hpcspec-shard", 2
INDEX = "index.json"  # of a folder of shards: which of them count
CHUNK = (1 << 20) // 4
LIBVER = ("v110", "v110")  # from here on HDF5 has checksums of its own structures too
CONTENT = ("object/id", "object/healpix", "object/segments", "segment/pixels", "segment/grid", "segment/first",
           "segment/channel", "object/amplitude", "object/sn_median", "sample/value", "sample/ivar", "sample/time",
           "scalar/data", "scalar/name", "grid/kind", "grid/start", "grid/step", "grid/values", "channel/name",
           "channel/kind")  # fmt: skip
FILTERS: dict[str, dict[str, Any]] = {
    "none": {},
    "blosc": dict(hdf5plugin.Blosc2(cname="zstd", clevel=3, filters=hdf5plugin.Blosc2.BITSHUFFLE)),
    "zstd": dict(hdf5plugin.Zstd(clevel=3), shuffle=True),
}


def write_shard(path: Path, objects: Objects, survey: str, inputs: str, compression: str = "none") -> None:
    """Write objects as one shard, atomically; the bytes depend on the arguments and the version of HDF5 alone.

    Raises UserError if the file can't be written.
    """
    with replacing(path) as temporary, LateErrors(temporary) as disk, h5py.File(disk, "w", libver=LIBVER) as file:
        file.attrs["schema_version"] = SCHEMA_VERSION
        file.attrs["in_place"] = in_place = objects.samples.shape[1] < objects.pixels[-1]
        for name, value in (("format", FORMAT), ("survey", survey), ("inputs", inputs)):
            file.attrs[name] = np.bytes_(value.encode())

        def put(name: str, values: Any, **kw: Any) -> None:
            if isinstance(values, list):
                values = np.array([v.encode("utf-8", "surrogateescape") for v in values], np.bytes_)
            if values.dtype.kind == "S":
                values = values.astype(h5py.string_dtype("utf-8", max(1, values.dtype.itemsize)))
            data = file.create_dataset(name, data=values, track_times=False, **kw)
            data.attrs["crc32"] = checksum(values)

        for name in COLUMNS:
            put(f"object/{name}", objects.columns[name])
        put("object/segments", objects.segments)
        for name in ("pixels", "grid", "first", "channel"):
            put(f"segment/{name}", getattr(objects, name))
        put("scalar/name", list(objects.scalar_names))
        put("scalar/data", objects.scalars)
        listed = [objects.listed.get(i, np.zeros(0)) for i in range(len(objects.axes))]
        for i, (name, kind) in enumerate((("kind", np.int8), ("start", np.float64), ("step", np.float64))):
            put(f"grid/{name}", objects.axes[:, i].astype(kind))
        put("grid/offsets", np.cumsum([0] + [len(values) for values in listed], dtype=np.int64))
        for i, name in enumerate(Channel._fields):
            put(f"channel/{name}", [c[i] for c in objects.channels])
        put("source/path", list(objects.sources))
        if in_place:
            put("source/size", np.array([os.path.getsize(p) for p in objects.sources], np.int64))
        for name, column in sorted((objects.meta or {}).items()):
            put(f"meta/{_escaped(name)}", column)
        put("grid/values", np.concatenate([np.zeros(0), *listed]))
        put("sample/time", objects.time)
        for name, values in zip(("value", "ivar"), objects.samples, strict=True):
            filters = FILTERS[compression] if len(values) else {}
            put(f"sample/{name}", values, **({"chunks": (min(CHUNK, len(values)),), **filters} if filters else {}))


def _escaped(name: str) -> str:
    """A column's name as one that HDF5 takes for no path: "B/V" as "B%2FV"."""
    return re.sub(r"[%/]|^\.$", lambda found: f"%{ord(found[0]):02X}", name)


def shard_paths(folder: Path) -> list[Path]:
    """The shards of a folder, sorted: those that its `index.json` names, or, without one, all that are there."""
    index = read_json(folder / INDEX)
    return [folder / name for name in index["shards"]] if index else sorted(folder.glob("*.h5"))


def checksum(values: np.ndarray) -> int:
    """zlib's CRC-32 of a data set's values."""
    return zlib.crc32(np.ascontiguousarray(values).view(np.uint8).ravel().data)
