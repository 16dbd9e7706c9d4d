"""Copies of survey files, each with identifiers and measurements of its own, to be damaged beside sound ones."""

from __future__ import annotations

import bz2
import functools
import gzip
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from astropy import units as u
from astropy.io import fits
from astropy.table import Table

from tests.surveys import curve_layouts, gaia_layouts, layouts, mmu_layouts

Write = Callable[[Path, int], Path]


@dataclass(frozen=True)
class Kind:
    """One layout: its survey; `write(folder, k)` puts copy k there and returns the file that may be damaged; what the file is
    ("fits", "images", "text", "hdf5", "parquet", "votable", "packed", "tar"); whether it has checksums; whether a line of it
    belongs to one object alone; whether every epoch is asked for; whether the file only tells more of objects in another;
    whether the samples stay in it."""

    survey: str
    write: Write
    form: str
    checked: bool = False
    by_line: bool = False
    epochs: bool = False
    companion: bool = False
    in_place: bool = False


def more(k: int, row: int = 0) -> float:
    """What makes the measurements of each row of copy k unlike all others."""
    return 0.01 * k + 0.001 * row


@functools.cache
def _made(write: Callable[..., None], k: int) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), more(k))
        return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(Path(folder).rglob("*")) if p.is_file()}


def relabelled(write: Callable[..., None], name: str, *labels: tuple[str, str]) -> Write:
    """The one file of a layout under the name `name` with {k}, and each label replaced by one of the same length with {k}."""

    def copy(folder: Path, k: int) -> Path:
        (content,) = _made(write, k).values()
        for old, new in labels:
            assert old.encode() in content and len(old) == len(new.format(k=k)), (old, new)
            content = content.replace(old.encode(), new.format(k=k).encode())
        path = folder / name.format(k=k)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    return copy


def packed(write: Write, suffix: str = ".gz") -> Write:
    pack = {".gz": lambda data: gzip.compress(data, mtime=0), ".bz2": bz2.compress}[suffix]

    def copy(folder: Path, k: int) -> Path:
        path = write(folder, k)
        target = path.with_name(path.name + suffix)
        target.write_bytes(pack(path.read_bytes()))
        path.unlink()
        return target

    return copy


def galah(write: Callable[..., None]) -> Write:
    """Four files an object, of which one in turn is to be damaged."""

    def copy(folder: Path, k: int) -> Path:
        paths = []
        for ccd, content in zip("1234", _made(write, k).values(), strict=True):
            paths.append(folder / f"1610130054013{k:02d}{ccd}.fits")
            paths[-1].write_bytes(content)
        return paths[k % 4]

    return copy


def desi(kind: str, companion: bool = False) -> Write:
    """Three objects, and for a coadd its redshifts, which are to be damaged if `companion`."""

    def copy(folder: Path, k: int) -> Path:
        ids = [1000 * k + 1, 1000 * k + 2, 1000 * k + 3]
        shares = np.array([more(k, row) for row in range(3 if kind == "coadd" else 4)])
        path = folder / f"{kind}-0-{k}-thru2.fits"
        with tempfile.TemporaryDirectory() as made:
            if kind == "coadd":
                layouts.desi(Path(made), kind, ids, shares, OBJTYPE=np.array(["TGT", "TGT", "SKY"]))
            else:
                exposures = {"EXPID": np.array([101, 101, 102, 101], "i4"), "NIGHT": np.full(4, 20210419, "i4"),
                             "MJD": np.array([59000.25, 59000.25, 59001.5, 59000.25])}  # fmt: skip
                layouts.desi(Path(made), kind, [ids[0], ids[1], ids[0], ids[2]], shares, **exposures)
            next(Path(made).iterdir()).rename(path)
        if kind != "coadd":
            return path
        redshifts = {"TARGETID": np.array(ids[:2], "i8"), "Z": 0.5 + more(k) + np.arange(2), "ZERR": np.array([1e-4, 2e-4]),
                     "ZWARN": np.array([0, 4], "i8"), "SPECTYPE": np.array(["STAR", "QSO"])}  # fmt: skip
        beside = folder / f"redrock-0-{k}-thru2.fits"
        fits.HDUList([fits.PrimaryHDU(), layouts.table(redshifts, "REDSHIFTS")]).writeto(beside, checksum=True)
        return beside if companion else path

    return copy


def gaia(write: Callable[..., Path], name: str) -> Write:
    """Three sources a file; the correlations, most of it, are left out of all but the first two."""

    def copy(folder: Path, k: int) -> Path:
        rows = gaia_sources(k)
        if k > 1:
            rows = [{n: c for n, c in row.items() if "correlations" not in n} for row in rows]
        return write(rows, folder / name.format(k=k))

    return copy


def gaia_sources(k: int) -> list[dict[str, Any]]:
    rows = [{**row, "source_id": row["source_id"] + 4096 * (k + 1)} for row in gaia_layouts.sources()]
    for row, name in ((row, f"{band}_coefficients") for row in rows for band in ("bp", "rp")):
        row[name] = None if row[name] is None else row[name] * np.float32(1 + more(k))
    return rows


def gaia_sampled(folder: Path, k: int) -> Path:
    rows = [gaia_layouts.sampled(gaia_layouts.BOTH + 4096 * k + i, more(k, i)) for i in range(2)]
    return gaia_layouts.to_csv(rows, folder / f"XP_SAMPLED_{k}.csv")


def variables(folder: Path, more: float) -> None:
    """A file of the variables' catalogue without the catalogue."""
    with tempfile.TemporaryDirectory() as made:
        curve_layouts.variables(Path(made), more)
        (Path(made) / f"{curve_layouts.STARS[0]}.dat").rename(folder / "x.dat")


def asas(folder: Path, more: float) -> None:
    curve_layouts.lines(folder / "x.dat", curve_layouts.asas_rows(more))


def asas_archive(folder: Path, k: int) -> Path:
    path = folder / f"set-{k}.tar.gz"
    curve_layouts.archive(path, {f"set/{100 * k + i}.dat": curve_layouts.asas_rows(more(k, i)) for i in range(3)})
    return path


def asas_tar(folder: Path, k: int) -> Path:
    path = asas_archive(folder, k)
    target = path.with_suffix("")
    target.write_bytes(gzip.decompress(path.read_bytes()))
    path.unlink()
    return target


def eros(folder: Path, k: int) -> Path:
    path = folder / f"lists-{k}.csv"
    curve_layouts.lines(path, [curve_layouts.EROS, *(curve_layouts.eros_row(f"{k}_{i}", more=more(k, i)) for i in range(3))])
    return path


def many(suffix: str) -> Write:
    """A table of two light curves, whatever the format."""

    def copy(folder: Path, k: int) -> Path:
        columns = curve_layouts.columns()
        columns["magnitude"] = [round(m + more(k, o % 10), 3) for m, o in zip(columns["magnitude"], columns["oid"], strict=True)]
        columns["oid"] = [10**15 * (k + 1) + o % 10 for o in columns["oid"]]
        path = folder / f"many-{k}.{suffix}"
        table = Table(columns)
        table["magnitude"].unit = "mag"
        if suffix == "parquet":
            pq.write_table(pa.table(columns), path, row_group_size=7)
        else:
            table.write(path, format={"csv": "ascii.csv", "ecsv": "ascii.ecsv", "vot": "votable"}.get(suffix, suffix))
        return path

    return copy


def generic_table(suffix: str) -> Write:
    def copy(folder: Path, k: int) -> Path:
        path = folder / f"star-{k}.{suffix}"
        wavelength = np.linspace(500, 600, 60) * u.nm
        flux, error = layouts.flux(60, more(k)), np.full(60, 0.5)
        Table({"wavelength": wavelength, "flux": flux * u.mJy, "uncertainty": error * u.mJy}).write(path)
        return path

    return copy


def generic_plain(folder: Path, k: int) -> Path:
    hdu = fits.PrimaryHDU((1 + more(k)) * 1e-16 * (20 + np.random.default_rng(3).normal(0, 0.5, 60)))
    hdu.header.update(CRVAL1=5000.0, CDELT1=2.0, CRPIX1=1.0, CTYPE1="WAVE", CUNIT1="Angstrom", OBJECT=f"HD {k}", RA=10.0 + k,
                      DEC=-5.0, BUNIT="erg / (s cm2 Angstrom)")  # fmt: skip
    path = folder / f"plain-{k}.fits"
    hdu.writeto(path)
    return path


def multimodal(survey: str) -> dict[str, np.ndarray]:
    table = mmu_layouts.TABLES[survey]()
    if survey == "desi":  # 7781 pixels where 200 do
        table = {n: v[:, :200] if n.startswith("spectrum") and v.ndim == 2 else v for n, v in table.items()}
    return table


def own(table: dict[str, np.ndarray], k: int) -> dict[str, np.ndarray]:
    """The table with identifiers and measurements that no other copy has."""
    out = {n: (v * (1 + more(k))).astype(v.dtype) if n in ("spectrum_flux", "coeff") else v for n, v in table.items()}
    for name in ("object_id", "SPECOBJID", "TARGETID", "apogee_id", "source_id"):
        if name in out:
            ids = out[name]
            numbered = [v + 100 * k if isinstance(v, int) else b"%22d" % (int(v) + 100 * k) if v.strip().isdigit()
                        else v.replace(b"+3009", b"+%04d" % k) for v in ids.tolist()]  # fmt: skip
            out[name] = np.array(numbered, ids.dtype)
    return out


def hdf5(survey: str, **options: object) -> Write:
    def copy(folder: Path, k: int) -> Path:
        return mmu_layouts.write_hdf5(folder, own(multimodal(survey), k), f"set{k:02d}", **options)

    return copy


def hats(survey: str, style: str = "struct", **options: object) -> Write:
    def copy(folder: Path, k: int) -> Path:
        table = mmu_layouts.arrow(own(multimodal(survey), k), style)
        return mmu_layouts.write_hats(folder / f"set{k:02d}", table, **options)

    return copy


def parquet(survey: str) -> Write:
    def copy(folder: Path, k: int) -> Path:
        path = folder / f"part-{k:02d}.parquet"
        pq.write_table(mmu_layouts.arrow(own(multimodal(survey), k), "flat"), path)
        return path

    return copy


def beside(write: Write, name: str, table: Callable[[Path, int], object]) -> Write:
    """A copy with a table about it beside, in a folder of its own; the table is what may be damaged."""

    def copy(folder: Path, k: int) -> Path:
        own = folder / f"set{k:02d}"
        own.mkdir()
        write(own, k)
        path = own / name.format(k=k)
        table(path, k)
        return path

    return copy


def fits_table(**columns: Callable[[int], list]) -> Callable[[Path, int], object]:
    """A writer of a FITS table whose columns are functions of the copy's number."""

    def write(path: Path, k: int) -> None:
        made = {name: np.array(values(k)) for name, values in columns.items()}
        table = layouts.table({name: v.astype("S") if v.dtype.kind == "U" else v for name, v in made.items()})
        fits.HDUList([fits.PrimaryHDU(), table]).writeto(path)

    return write


def lines(*rows: str) -> Callable[[Path, int], object]:
    return lambda path, k: curve_layouts.lines(path, [row.format(k=k) for row in rows])


def photometry(write: Callable[..., Path]) -> Callable[[Path, int], object]:
    def table(path: Path, k: int) -> None:
        write(gaia_layouts.photometry(gaia_sources(k)), path)

    return table
