"""The shard: an HDF5 file of many objects, flat values and offsets, wavelength grids stored once.

Layout, schema version 1 (n objects, s segments, v pixels; a segment is one arm of one object):

    attributes     format, schema_version, survey, inputs (fingerprint of the source files)
    object/        id (n) text, ra, dec (n) f8 deg, healpix (n) i8 (order 29 nested), sn_median (n) f4,
                   source, row (n) i4 (place in source/path, position in that file), segments (n+1) i8,
                   product (n) i1 (place in product/)
    segment/       pixels (s+1) i8 offsets into value/, grid, first (s) i4, arm (s) i1
    value/         flux, ivar (v) f4, chunks of 1 MiB, optional compression
    grid/          kind, start, step, offsets (g+1), values: the wavelength grids
    product/       flux_unit, frame: what kinds of spectra there are
    arm/name, source/path, meta/<name> (n)
    attributes `crc32` of every data set: zlib's, over the uncompressed little-endian bytes
    text is UTF-8 of fixed length, padded with NUL
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import astropy.units as u
import h5py
import hdf5plugin
import numpy as np
from astropy_healpix import HEALPix

from hpcspec.atomic import replacing
from hpcspec.errors import UserError
from hpcspec.surveys.grids import Grid
from hpcspec.surveys.observation import Arm, Observation

FORMAT, SCHEMA_VERSION = "hpcspec-shard", 1
CHUNK = (1 << 20) // 4
FIELD_CENTRE = "field centre"  # what readers put into meta["position"] where the survey gives no position of the object
LIBVER = ("v110", "v110")  # from here on HDF5 has checksums of its own structures too
CONTENT = ("object/id", "object/healpix", "object/segments", "segment/pixels", "segment/grid", "segment/first", "grid/kind",
           "grid/start", "grid/step", "grid/values", "value/flux", "value/ivar")  # fmt: skip
FILTERS: dict[str, dict[str, Any]] = {
    "none": {},
    "blosc": dict(hdf5plugin.Blosc2(cname="zstd", clevel=3, filters=hdf5plugin.Blosc2.BITSHUFFLE)),
    "zstd": dict(hdf5plugin.Zstd(clevel=3), shuffle=True),
}


def healpix29(ra: np.ndarray, dec: np.ndarray) -> np.ndarray:
    """Nested HEALPix index of order 29 (n,), int64, of ICRS positions in degrees."""
    pixels = HEALPix(nside=2**29, order="nested").lonlat_to_healpix(np.asarray(ra) * u.deg, np.asarray(dec) * u.deg)
    return np.asarray(pixels, np.int64)


def write_shard(
    path: Path,
    spectra: Sequence[tuple[Observation, int, int]],
    sources: Sequence[str],
    survey: str,
    inputs: str,
    compression: str = "none",
) -> None:
    """Write `spectra`, each with its place in `sources` and its row there, as one shard, atomically.

    Raises UserError if the file can't be written.
    """
    with replacing(path) as temporary, h5py.File(temporary, "w", libver=LIBVER) as file:
        file.attrs["schema_version"] = SCHEMA_VERSION
        for name, text in (("format", FORMAT), ("survey", survey), ("inputs", inputs)):
            file.attrs[name] = np.bytes_(text.encode())
        products = sorted({(s.flux_unit, s.frame) for s, _, _ in spectra})
        arms = [arm for s, _, _ in spectra for arm in s.arms]
        names = sorted({arm.name for arm in arms})
        grids = list(dict.fromkeys(arm.grid for arm in arms))
        place = {grid: i for i, grid in enumerate(grids)}
        ra = np.array([s.ra for s, _, _ in spectra], np.float64)
        dec = np.array([s.dec for s, _, _ in spectra], np.float64)

        def put(name: str, values: np.ndarray | Sequence[str], **kw: Any) -> None:
            if not isinstance(values, np.ndarray):
                encoded = np.array([text.encode() for text in values], bytes)
                values = encoded.astype(h5py.string_dtype("utf-8", max(1, encoded.itemsize)))
            data = file.create_dataset(name, data=values, track_times=False, **kw)
            data.attrs["crc32"] = checksum(data)

        put("object/id", [s.object_id for s, _, _ in spectra])
        put("object/ra", ra)
        put("object/dec", dec)
        put("object/healpix", healpix29(ra, dec))
        put("object/sn_median", np.array([s.sn_median for s, _, _ in spectra], np.float32))
        put("object/source", np.array([i for _, i, _ in spectra], np.int32))
        put("object/row", np.array([row for _, _, row in spectra], np.int32))
        put("object/product", np.array([products.index((s.flux_unit, s.frame)) for s, _, _ in spectra], np.int8))
        put("product/flux_unit", [unit for unit, _ in products])
        put("product/frame", [frame for _, frame in products])
        put("object/segments", np.cumsum([0] + [len(s.arms) for s, _, _ in spectra], dtype=np.int64))
        put("segment/pixels", np.cumsum([0] + [len(a.flux) for a in arms], dtype=np.int64))
        put("segment/grid", np.array([place[a.grid] for a in arms], np.int32))
        put("segment/first", np.array([a.first for a in arms], np.int32))
        put("segment/arm", np.array([names.index(a.name) for a in arms], np.int8))
        for name in ("flux", "ivar"):
            values = np.concatenate([getattr(a, name) for a in arms] or [np.zeros(0, np.float32)]).astype("<f4")
            chunks = {"chunks": (min(CHUNK, len(values)),), **FILTERS[compression]} if len(values) else {}
            put(f"value/{name}", values, **chunks)
        put("grid/kind", [g.kind for g in grids])
        put("grid/start", np.array([g.start for g in grids], np.float64))
        put("grid/step", np.array([g.step for g in grids], np.float64))
        put("grid/offsets", np.cumsum([0] + [len(g.values) for g in grids], dtype=np.int64))
        put("grid/values", np.array([v for g in grids for v in g.values], np.float64))
        put("arm/name", names)
        put("source/path", sources)
        for key in sorted({k for s, _, _ in spectra for k in s.meta}):
            put(f"meta/{key}", _column([s.meta.get(key) for s, _, _ in spectra]))


def _column(values: list[Any]) -> np.ndarray | list[str]:
    """A column of one type: int where all are, float where all are numbers, else text; missing is NaN or empty."""
    present = [v for v in values if v is not None]
    if len(present) == len(values) and all(isinstance(v, int) for v in present):
        if all(-(2**63) <= v < 2**63 for v in present):
            return np.array(values, np.int64)
    elif not any(isinstance(v, str) for v in present) and all(abs(v) < 2**53 for v in present if isinstance(v, int)):
        return np.array([np.nan if v is None else v for v in values], np.float64)
    return ["" if v is None else str(v) for v in values]


def shard_paths(folder: Path) -> list[Path]:
    """The shards in a folder, sorted."""
    return sorted(folder.glob("*.h5"))


def checksum(data: h5py.Dataset) -> int:
    """zlib's CRC-32 of a data set's values."""
    return zlib.crc32(np.ascontiguousarray(data[()]).view(np.uint8).ravel().data)


@dataclass(frozen=True)
class ShardIndex:
    """What a shard holds, without its pixels: small enough to be read once and broadcast.

    ids (n,) text, healpix (n,) int64, segments (n+1,) int64, pixels (s+1,) int64, grid, first (s,) int32;
    approximate (n,) bool: the position is the centre of the field.
    """

    path: str
    survey: str
    ids: np.ndarray
    ra: np.ndarray
    dec: np.ndarray
    healpix: np.ndarray
    sn_median: np.ndarray
    approximate: np.ndarray
    segments: np.ndarray
    pixels: np.ndarray
    grid: np.ndarray
    first: np.ndarray
    grids: tuple[Grid, ...]
    crc32: int

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Pixels:
    """The pixels of one object: one (wavelength f8, flux f4, ivar f4) triple per arm."""

    arms: tuple[tuple[np.ndarray, np.ndarray, np.ndarray], ...]


class Shard:
    """A shard open for reading.

    With `comm` and an h5py built with MPI the file is opened by the MPI-IO driver, otherwise by a plain handle; either
    way the reads of this process are its own. Raises UserError if the file is missing, damaged or of another version.
    """

    def __init__(self, path: str | Path, comm: Any = None):
        self.path = str(path)
        try:
            self.file = h5py.File(self.path, "r", **_driver(comm))
            if self.file.attrs.get("format") != FORMAT.encode():
                raise UserError(f"{path} is not a shard of hpcspec")
            if self.file.attrs["schema_version"] != SCHEMA_VERSION:
                version = self.file.attrs["schema_version"]
                raise UserError(f"{path} has schema version {version}, this program reads {SCHEMA_VERSION}: ingest again")
        except (OSError, KeyError, RuntimeError) as error:  # h5py raises any of these for a damaged file
            raise UserError(f"can't read shard {path}: {error}") from error

    def close(self) -> None:
        """Close the file."""
        self.file.close()

    def __enter__(self) -> Shard:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def inputs(self) -> str:
        """Fingerprint of the source files this shard was made from."""
        return str(self.file.attrs["inputs"], "utf-8")

    def index(self) -> ShardIndex:
        """Everything but the pixels."""
        f = self.file
        kinds, starts, steps = f["grid/kind"].asstr()[()], f["grid/start"][()], f["grid/step"][()]
        offsets, values = f["grid/offsets"][()], f["grid/values"][()]
        grids = tuple(
            Grid(str(kinds[i]), float(starts[i]), float(steps[i]), tuple(values[offsets[i] : offsets[i + 1]].tolist()))
            for i in range(len(kinds))
        )
        crc = zlib.crc32(repr([(n, int(f[n].attrs["crc32"])) for n in CONTENT]).encode())
        where = f["meta/position"].asstr()[()] if "meta/position" in f else np.full(len(f["object/ra"]), "object")
        approximate = np.asarray(where == FIELD_CENTRE, bool)
        return ShardIndex(
            self.path, str(f.attrs["survey"], "utf-8"), f["object/id"].asstr()[()].astype(str), f["object/ra"][()],
            f["object/dec"][()], f["object/healpix"][()], f["object/sn_median"][()], approximate, f["object/segments"][()],
            f["segment/pixels"][()], f["segment/grid"][()], f["segment/first"][()], grids, crc,
        )  # fmt: skip

    def read(self, index: ShardIndex, start: int, stop: int) -> list[Pixels]:
        """The pixels of objects start … stop-1, in one read of flux and one of ivar."""
        s0, s1 = int(index.segments[start]), int(index.segments[stop])
        v0, v1 = int(index.pixels[s0]), int(index.pixels[s1])
        flux, ivar = self.file["value/flux"][v0:v1], self.file["value/ivar"][v0:v1]
        out = []
        for i in range(start, stop):
            arms = []
            for s in range(index.segments[i], index.segments[i + 1]):
                a, b = index.pixels[s] - v0, index.pixels[s + 1] - v0
                wavelength = index.grids[index.grid[s]].wavelength(int(index.first[s]), int(b - a))
                arms.append((wavelength, flux[a:b], ivar[a:b]))
            out.append(Pixels(tuple(arms)))
        return out

    def meta(self) -> dict[str, np.ndarray]:
        """The survey's own columns, (n,) each."""
        group = self.file.get("meta", {})
        return {k: (d.asstr()[()] if h5py.check_string_dtype(d.dtype) else d[()]) for k, d in group.items()}

    def sources(self) -> tuple[list[str], np.ndarray, np.ndarray]:
        """Source paths, and for every object its place among them (n,) and its row there (n,)."""
        f = self.file
        return list(f["source/path"].asstr()[()]), f["object/source"][()], f["object/row"][()]

    def spectra(self) -> Iterator[tuple[Observation, int, int]]:
        """Every object as it was given to `write_shard`."""
        index, meta, f = self.index(), self.meta(), self.file
        names = list(f["arm/name"].asstr()[()])
        arm, (_, source, row) = f["segment/arm"][()], self.sources()
        product, units, frames = f["object/product"][()], f["product/flux_unit"].asstr()[()], f["product/frame"].asstr()[()]
        for i, pixels in enumerate(self.read(index, 0, len(index))):
            segments = range(index.segments[i], index.segments[i + 1])
            arms = tuple(
                Arm(names[arm[s]], index.grids[index.grid[s]], int(index.first[s]), flux, ivar)
                for s, (_, flux, ivar) in zip(segments, pixels.arms, strict=True)
            )
            values: Mapping[str, Any] = {k: _value(v[i]) for k, v in meta.items() if _present(v[i])}
            spectrum = Observation(str(index.ids[i]), index.survey, float(index.ra[i]), float(index.dec[i]), arms,
                                units[product[i]], frames[product[i]], values)  # fmt: skip
            yield spectrum, int(source[i]), int(row[i])

    def damaged(self) -> list[str]:
        """Names of the data sets whose values don't have the checksum that was written with them."""
        names: list[str] = []
        self.file.visit(names.append)
        data = [n for n in names if isinstance(self.file[n], h5py.Dataset)]
        return [n for n in data if checksum(self.file[n]) != self.file[n].attrs["crc32"]]


def _value(value: Any) -> str | int | float:
    return value if isinstance(value, str) else value.item()


def _present(value: Any) -> bool:
    return value != "" if isinstance(value, str) else bool(value == value)


def _driver(comm: Any) -> dict[str, Any]:
    if comm is not None and h5py.get_config().mpi:
        from mpi4py import MPI

        return {"driver": "mpio", "comm": MPI.COMM_SELF}
    return {"locking": False}
