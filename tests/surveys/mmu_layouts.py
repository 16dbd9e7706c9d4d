"""Tables as the builders of the Multimodal Universe make them, and files of them in its HDF5 and as HATS.

Each table is {column: array}, first axis the object, with every trap of the real ones: padding, masks, inf, big-endian
arrays, text of fixed width, wavelengths in single precision, GALAH's displaced by two pixels.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from astropy import units
from astropy_healpix import HEALPix

Table = dict[str, np.ndarray]

BAD = 7  # the pixel that is masked, of every first arm
GALAH_ARMS = {"B": (4713.5, 0.046, 300), "G": (5649.0, 0.0547, 310), "R": (6478.0, 0.0631, 305), "I": (7585.0, 0.0735, 290)}
APOGEE_CROP = np.r_[246:3274, 3585:6080, 6344:8335]


def _flux(rows: int, length: int) -> np.ndarray:
    return np.random.default_rng(length).normal(10, 1, (rows, length)).astype(np.float32)


def _place(rows: int) -> Table:
    ra, dec = np.linspace(10, 11, rows), np.linspace(-5, -4, rows)
    healpix = HEALPix(nside=16, order="nested").lonlat_to_healpix(ra * units.deg, dec * units.deg)
    return {"ra": ra, "dec": dec, "healpix": np.asarray(healpix, np.int64)}


def sdss(rows: int = 3) -> Table:
    """Spectra of 400 and, the last, 380 pixels; columns of specObj in upper case, arrays big-endian as FITS gave them."""
    length, first = 400, 35800
    wavelength = np.repeat(10 ** (1e-4 * (first + np.arange(length)))[None], rows, 0).astype(np.float32)
    flux, ivar = _flux(rows, length), np.full((rows, length), 4.0, np.float32)
    mask = np.zeros((rows, length), bool)
    mask[:, BAD], ivar[:, BAD + 1] = True, 0
    wavelength[-1, 380:], flux[-1, 380:], ivar[-1, 380:], mask[-1, 380:] = -1, flux[-1, 379], 0, True
    classes = np.array([b"GALAXY", b"STAR  ", b"QSO   "], "S6")
    return {
        "object_id": np.array([f"{299489676975171584 + i:>22}" for i in range(rows)], "S22"),
        "SPECOBJID": np.array([f"{299489676975171584 + i:>22}" for i in range(rows)], "S22"),
        **_place(rows),
        "PLUG_RA": np.zeros(rows, ">f8"), "PLUG_DEC": np.zeros(rows, ">f8"),
        "CLASS": classes[np.arange(rows) % 3], "SUBCLASS": np.array([b"STARFORMING"] * rows, "S21"),
        "Z": np.linspace(0.1, 0.3, rows).astype(">f4"), "ZWARNING": (np.arange(rows) * 4).astype(">i4"),
        "PLATE": np.full(rows, 266, ">i4"), "MJD": np.full(rows, 51602, ">i4"), "FIBERID": np.arange(1, rows + 1, dtype=">i4"),
        "SPECTROFLUX": np.ones((rows, 5), ">f4"),
        "spectrum_lambda": wavelength, "spectrum_flux": flux.astype(">f4"), "spectrum_ivar": ivar.astype(">f4"),
        "spectrum_mask": mask, "spectrum_lsf_sigma": np.ones((rows, length), ">f4"),
    }  # fmt: skip


def desi(rows: int = 3) -> Table:
    """All 7781 pixels; columns of zall-pix, the last redshift doubtful."""
    length = 7781
    wavelength = np.repeat((3600 + 0.8 * np.arange(length))[None], rows, 0).astype(np.float32)
    ivar, mask = np.full((rows, length), 4.0, np.float32), np.zeros((rows, length), bool)
    mask[:, BAD], ivar[:, BAD + 1] = True, np.inf
    ids = 39627652591521181 + 7 * np.arange(rows)
    return {
        "TARGETID": ids, "object_id": ids, **_place(rows), "HEALPIX": np.full(rows, 1234), "SURVEY": np.array([b"main"] * rows),
        "SPECTYPE": np.array([b"GALAXY", b"STAR", b"QSO"])[np.arange(rows) % 3], "Z": np.linspace(0.1, 2, rows),
        "ZERR": np.full(rows, 1e-5), "ZWARN": np.where(np.arange(rows) == rows - 1, 4, 0), "EBV": np.ones(rows, np.float32),
        "OBJTYPE": np.array([b"TGT"] * rows), "COADD_FIBERSTATUS": np.zeros(rows, np.int32),
        "spectrum_lambda": wavelength, "spectrum_flux": _flux(rows, length), "spectrum_ivar": ivar, "spectrum_mask": mask,
        "spectrum_lsf_sigma": np.ones((rows, length), np.float32), "spectrum_lsf": np.ones((rows, 11), np.float32),
    }  # fmt: skip


def apogee(rows: int = 3) -> Table:
    """7514 pixels, their log10 wavelengths rounded to single precision; columns of allStar in lower case, -9999 for none."""
    lam = (10.0 ** np.arange(4.179, 4.179 + 8575 * 6e-6, 6e-6).astype(np.float32))[:8575][APOGEE_CROP].astype(np.float32)
    length = len(lam)
    ivar, mask = np.full((rows, length), 4.0, np.float32), np.zeros((rows, length), bool)
    flux = _flux(rows, length)
    mask[:, BAD], ivar[:, BAD + 1], flux[:, BAD + 2], ivar[:, BAD + 3] = True, np.inf, 0, 1e-20
    ids = np.array([f"2M0003{i:04d}+3009256" for i in range(rows)], "S18")
    teff = np.linspace(4000, 5000, rows).astype(np.float32)
    teff[-1] = -9999
    return {
        "object_id": ids, "apogee_id": ids, **_place(rows), "snr": np.full(rows, 90.0, np.float32),
        "teff": teff, "teff_err": np.full(rows, 12.0, np.float32), "logg": np.full(rows, 2.5, np.float32),
        "fe_h": np.full(rows, -0.1, np.float32), "m_h": np.full(rows, -0.12, np.float32),
        "alpha_m": np.full(rows, 0.05, np.float32),
        "telescope": np.array([b"apo25m"] * rows), "vhelio_avg": np.full(rows, -12.0, np.float32),
        "gaiaedr3_source_id": 2874651391586452224 + np.arange(rows), "param": np.ones((rows, 9), np.float32),
        "radial_velocity": np.full(rows, -12.0, np.float32), "restframe": np.ones(rows, bool),
        "spectrum_lambda": np.repeat(lam[None], rows, 0), "spectrum_flux": flux, "spectrum_ivar": ivar, "spectrum_mask": mask,
        "spectrum_lsf_sigma": np.ones((rows, length), np.float32),
        "spectrum_pseudo_continuum_flux": np.ones((rows, length), np.float32),
        "spectrum_pseudo_continuum_ivar": np.ones((rows, length), np.float32),
    }  # fmt: skip


def galah_wavelength(start: float, step: float, length: int, crpix: float = 1.0) -> np.ndarray:
    """The builder's formula for CRVAL1, CDELT1, NAXIS1 and CRPIX1, as it stands."""
    return (np.arange(0, length) - -crpix + 1) * step + start


def galah(rows: int = 3) -> Table:
    """Four short CCDs one after another, of the last object the fourth shorter still; no mask; ends inclusive."""
    arms = list(GALAH_ARMS.values())
    lengths = np.array([[n for *_, n in arms]] * rows)
    lengths[-1, 3] -= 11
    longest = lengths.sum(axis=1).max()
    flux, ivar = _flux(rows, longest), np.full((rows, longest), 4.0, np.float32)
    wavelength = np.full((rows, longest), -1, np.float32)
    index: Table = {}
    ends = lengths.cumsum(axis=1)
    for i, ccd in enumerate(GALAH_ARMS):
        index[f"spectrum_{ccd}_ind_start"], index[f"spectrum_{ccd}_ind_end"] = ends[:, i] - lengths[:, i], ends[:, i] - 1
    for row in range(rows):
        filled = [galah_wavelength(start, step, n) for (start, step, _), n in zip(arms, lengths[row], strict=True)]
        wavelength[row, : ends[row, -1]] = np.concatenate(filled)
        flux[row, ends[row, -1] :] = ivar[row, ends[row, -1] :] = 0
    ivar[:, BAD] = np.inf
    return {
        "object_id": 140310002101001 + np.arange(rows), "timestamp": np.full(rows, 56726.4, np.float32), **index,
        **{f"spectrum_{k}": v for k, v in {"lambda": wavelength, "flux": flux, "ivar": ivar, "lsf": np.ones_like(flux),
           "lsf_sigma": np.ones_like(flux), "norm_lambda": wavelength, "norm_flux": flux, "norm_ivar": ivar}.items()},
        **_place(rows), "teff": np.linspace(5000, 6000, rows, dtype=np.float32), "e_teff": np.full(rows, 90.0, np.float32),
        "logg": np.full(rows, 4.4, np.float32), "fe_h": np.array([-0.2] * (rows - 1) + [np.nan], np.float32),
        "alpha_fe": np.full(rows, 0.1, np.float32), "Mg_fe": np.full(rows, 0.1, np.float32), "flag_sp": np.zeros(rows, np.int32),
        "rv": np.full(rows, 21.0, np.float32), "snr_c3_iraf": np.full(rows, 55.0, np.float32),
    }  # fmt: skip


def gaia(rows: int = 3) -> Table:
    """XP coefficients with gaia_source, which has source_id and no object_id; the last star has no parallax."""
    parallax = np.full(rows, 2.5)
    parallax[-1] = np.nan
    columns = {name: np.full(rows, 15.0 - i, np.float32) for i, name in enumerate(
        ("phot_g_mean_mag", "phot_bp_mean_mag", "phot_rp_mean_mag", "bp_rp", "ruwe", "pmra", "pmra_error"))}  # fmt: skip
    return {
        "source_id": 4295806720 + 5764607523034234880 * (np.arange(rows) % 2) + np.arange(rows), **_place(rows),
        "coeff": np.random.default_rng(5).normal(0, 100, (rows, 110)).astype(np.float32),
        "coeff_error": np.full((rows, 110), 0.5, np.float32), **columns,
        "phot_g_mean_flux": np.full(rows, 1000.0), "phot_g_mean_flux_error": np.full(rows, 10.0, np.float32),
        "parallax": parallax, "parallax_error": np.full(rows, 0.02, np.float32),
        "teff_gspphot": np.full(rows, 5700.0, np.float32), "teff_gspphot_lower": np.full(rows, 5690.0, np.float32),
        "teff_gspphot_upper": np.full(rows, 5710.0, np.float32), "solution_id": np.full(rows, 1636148068921376768),
    }  # fmt: skip


TABLES: dict[str, Callable[..., Table]] = {"sdss": sdss, "desi": desi, "apogee": apogee, "galah": galah, "gaia": gaia}


def write_hdf5(folder: Path, table: Table, subset: str = "main", **options: Any) -> Path:
    """<subset>/healpix=<pixel>/001-of-001.hdf5, all rows in one file; the options are those of h5py's data sets."""
    path = folder / subset / f"healpix={int(table['healpix'][0])}" / "001-of-001.hdf5"
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, values in table.items():
            file.create_dataset(name, data=values, **options)
    return path


def write_variable_length(folder: Path, table: Table) -> Path:
    """The same with spectra of variable length and without padding."""
    path = write_hdf5(folder, {n: v for n, v in table.items() if not n.startswith("spectrum_") or v.ndim == 1})
    there = table["spectrum_lambda"] > 0
    with h5py.File(path, "a") as file:
        for name in ("spectrum_lambda", "spectrum_flux", "spectrum_ivar", "spectrum_mask"):
            if name in table:
                kind = np.dtype("u1" if table[name].dtype == bool else "f4")
                column = file.create_dataset(name, (len(there),), h5py.vlen_dtype(kind))
                for i, use in enumerate(there):
                    column[i] = table[name][i][use].astype(kind)
    return path


def arrow(table: Table, style: str = "struct") -> pa.Table:
    """The table in Arrow with `spectrum` as a "struct" of lists (as the HATS edition has it), a list of structs ("structs"), or
    columns "spectrum.flux" ("dotted") or "spectrum_flux" ("flat"). ZWARN and ZWARNING become booleans, text stays text."""
    native = {n: v.astype(v.dtype.newbyteorder("=")) for n, v in table.items()}
    columns: dict[str, pa.Array] = {}
    spectrum: dict[str, pa.Array] = {}
    for name, values in native.items():
        if name.startswith("ZWARN"):
            columns[name] = pa.array(values != 0)
        elif values.dtype.kind == "S":
            columns[name] = pa.array([value.decode() for value in values])
        elif values.ndim == 1:
            columns[name] = pa.array(values)
        elif not name.startswith("spectrum_"):
            columns[name] = _lists(values)
        elif values.shape == native["spectrum_flux"].shape:
            spectrum[name.removeprefix("spectrum_")] = _lists(values)
    if spectrum and style == "struct":
        columns["spectrum"] = pa.StructArray.from_arrays(list(spectrum.values()), list(spectrum))
    elif spectrum and style == "structs":
        flat = pa.StructArray.from_arrays([part.values for part in spectrum.values()], list(spectrum))
        columns["spectrum"] = pa.ListArray.from_arrays(next(iter(spectrum.values())).offsets, flat)
    else:
        columns |= {f"spectrum{'.' if style == 'dotted' else '_'}{name}": part for name, part in spectrum.items()}
    return pa.table(columns)


def write_hats(folder: Path, table: pa.Table, kind: str = "object", pixel: int = 4, **options: Any) -> Path:
    """A catalogue `folder` of one partition, with what lies around it; returns the partition's file."""
    path = folder / "dataset" / "Norder=0" / "Dir=0" / f"Npix={pixel}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, **options)
    pq.write_metadata(table.schema, folder / "dataset" / "_common_metadata")
    pq.write_table(table.slice(0, 1), folder / "dataset" / "data_thumbnail.parquet")
    properties = {"obs_collection": folder.name, "dataproduct_type": kind, "hats_nrows": str(table.num_rows),
                  "hats_col_ra": "ra", "hats_col_dec": "dec", "hats_version": "v1.0", "hats_max_rows": "8192"}  # fmt: skip
    (folder / "hats.properties").write_text("#HATS catalog\n" + "".join(f"{k}={v}\n" for k, v in properties.items()))
    (folder / "partition_info.csv").write_text(f"Norder,Npix\n0,{pixel}\n")
    return path


def misdeclare(path: Path, group: int, rows: int) -> None:
    """Let a row group of a Parquet file declare other rows, of which it has less than 64, than its columns have."""
    whole, was = path.read_bytes(), _declared(path)
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    wanted = [*was[:group], rows, *was[group + 1 :]]
    for found in re.finditer(re.escape(bytes([0x16, 2 * was[group]])), whole[footer:]):  # a number, as Thrift writes it
        at = footer + found.start() + 1
        path.write_bytes(whole[:at] + bytes([2 * rows]) + whole[at + 1 :])
        if _declared(path) == wanted:
            return
    raise AssertionError(f"row group {group} is not found")


def _declared(path: Path) -> list[int]:
    about = pq.read_metadata(path)
    return [about.row_group(i).num_rows for i in range(about.num_row_groups)]


def _lists(values: np.ndarray) -> pa.ListArray:
    offsets = np.arange(0, values.size + 1, values.shape[1], dtype=np.int32)
    return pa.ListArray.from_arrays(offsets, pa.array(values.reshape(-1)))
