"""Gaia archive tables written as fixtures: the same sources in every format in which the archive or its tools deliver them."""

from __future__ import annotations

import csv
import gzip
import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from astropy.io import fits, votable
from astropy.table import Column, MaskedColumn, Table

BOTH, RP_ONLY, FAINT = 5853498713190525696, 5405570973190252288, 2450
VECTORS = ("coefficients", "coefficient_errors", "coefficient_correlations")
Row = dict[str, Any]


def sources() -> list[Row]:
    """Three sources: one with BP and RP, one without BP, one whose identifier is short; vectors are float32 arrays or None."""
    rng = np.random.default_rng(5)
    rows = []
    for source_id in (BOTH, RP_ONLY, FAINT):
        row: Row = {"source_id": source_id, "solution_id": 4545469030156206080}
        for band in ("bp", "rp"):
            missing = source_id == RP_ONLY and band == "bp"
            root = rng.normal(size=(55, 55)) + 4 * np.eye(55)
            covariance = root @ root.T
            sigma = np.sqrt(np.diag(covariance))
            vectors = (
                rng.normal(size=55) * 1e4 / np.arange(1, 56) ** 1.5,
                sigma,
                (covariance / np.outer(sigma, sigma))[np.tril_indices(55, -1)],
            )
            row |= {f"{band}_n_parameters": None if missing else 55}
            row |= {f"{band}_{n}": None if missing else v.astype(np.float32) for n, v in zip(VECTORS, vectors, strict=True)}
            row |= {f"{band}_n_relevant_bases": None if missing else 20, f"{band}_standard_deviation": None if missing else 1.25}
        rows.append(row)
    return rows


def photometry(rows: list[Row]) -> list[Row]:
    """What gaia_source has on these sources, in another order."""
    found = [{
        "designation": f"Gaia DR3 {r['source_id']}", "source_id": r["source_id"], "ra": 10.0 + i, "dec": -5.0, "parallax": 2.5,
        "parallax_error": 0.05, "phot_g_mean_mag": 14.0 + i, "phot_g_mean_flux": 1000.0, "phot_g_mean_flux_over_error": 500.0,
        "phot_bp_mean_mag": 14.5, "phot_bp_mean_flux": 300.0, "phot_bp_mean_flux_error": 3.0, "bp_rp": 1.1, "ruwe": None,
        "has_xp_continuous": "True", "teff_gspphot": 5000.0, "teff_gspphot_lower": 4950.0, "teff_gspphot_upper": 5010.0,
        "j_m": 12.0, "j_msigcom": 0.02, "w1mpro": 11.0, "w1sigmpro": 0.03,
    } for i, r in enumerate(rows)]  # fmt: skip
    return found[::-1]


def _text(cell: Any, brackets: str, null: str) -> str:
    if cell is None:
        return null
    return brackets[0] + ",".join(map(str, cell.tolist())) + brackets[1] if isinstance(cell, np.ndarray) else str(cell)


def to_csv(rows: list[Row], path: Path, brackets: str = "()", null: str = "", header: str = "", delimiter: str = ",") -> Path:
    """CSV as DataLink writes it; gzipped if the path says so."""
    file = io.StringIO()
    file.write(header)
    writer = csv.writer(file, delimiter=delimiter, lineterminator="\n")
    writer.writerow(rows[0])
    writer.writerows([_text(cell, brackets, null) for cell in row.values()] for row in rows)
    data = file.getvalue().encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def to_bulk(rows: list[Row], path: Path) -> Path:
    """The bulk download: an ECSV header, "null", and vectors in square brackets."""
    header = "# %ECSV 1.0\n# ---\n# delimiter: ','\n# datatype:\n# - {name: source_id, datatype: int64}\n"
    return to_csv(rows, path, "[]", "null", header)


def to_spaced_ecsv(rows: list[Row], path: Path) -> Path:
    """ECSV with its default delimiter, a space."""
    return to_csv(rows, path, "[]", '', "# %ECSV 1.0\n# ---\n", " ")


def to_fits(rows: list[Row], path: Path) -> Path:
    """FITS with vectors of variable length, empty where a band is missing."""
    made = []
    for name in rows[0]:
        cells = [row[name] for row in rows]
        if any(isinstance(c, np.ndarray) for c in cells):
            array = np.empty(len(cells), object)
            array[:] = [np.empty(0, np.float32) if c is None else c for c in cells]
            made.append(fits.Column(name, f"PE({max(map(len, array))})", array=array))
        elif all(isinstance(c, str) for c in cells):
            made.append(fits.Column(name, "40A", array=cells))
        else:
            code, null = ("K", -32768) if all(isinstance(c, int | None) for c in cells) else ("D", None)
            filled = [(np.nan if null is None else null) if c is None else c for c in cells]
            made.append(fits.Column(name, code, null=null, array=np.array(filled)))
    fits.HDUList([fits.PrimaryHDU(), fits.BinTableHDU.from_columns(made)]).writeto(path)
    return path


def to_columns(rows: list[Row], path: Path) -> Path:
    """FITS with a column a coefficient, without correlations."""
    kinds = [(e, b, v) for e, v in (("", VECTORS[0]), ("e_", VECTORS[1])) for b in ("bp", "rp")]
    names = [(f"{e}{b}_coeff_{i}", f"{b}_{v}", i) for e, b, v in kinds for i in range(55)]
    flat = [{"source_id": r["source_id"]} | {n: np.nan if r[v] is None else float(r[v][i]) for n, v, i in names} for r in rows]
    return to_fits(flat, path)


def to_votable(rows: list[Row], path: Path) -> Path:
    """VOTable, BINARY2, with vectors of variable length."""
    table = Table()
    for name in rows[0]:
        cells = [row[name] for row in rows]
        if any(isinstance(c, np.ndarray) for c in cells):
            array = np.empty(len(cells), object)
            array[:] = [np.ma.array(c, np.float32, mask=np.isnan(c)) for c in (np.empty(0) if c is None else c for c in cells)]
            table[name] = Column(array)
        else:
            table[name] = MaskedColumn([0 if c is None else c for c in cells], mask=[c is None for c in cells])
    votable.writeto(votable.from_table(table), str(path), tabledata_format="binary2")
    return path


def to_parquet(rows: list[Row], path: Path) -> Path:
    """Parquet with list columns."""
    plain = [{n: c.tolist() if isinstance(c, np.ndarray) else c for n, c in row.items()} for row in rows]
    pq.write_table(pa.Table.from_pylist(plain), path)
    return path


LAYOUTS = {
    "XP_CONTINUOUS_RAW.csv": to_csv,
    "XpContinuousMeanSpectrum_000000-003111.csv.gz": to_bulk,
    "XP_CONTINUOUS_RAW.ecsv": to_spaced_ecsv,
    "XP_CONTINUOUS_RAW.fits": to_fits,
    "XP_CONTINUOUS_RAW.xml": to_votable,
    "xp.parquet": to_parquet,
    "xp_coefficients.fits": to_columns,
}


def sampled(source_id: int = BOTH, more: float = 0.0) -> Row:
    """A row of XP_SAMPLED, W / (m2 nm), with one bad sample; its flux is larger by the share `more`."""
    flux = 1e-16 * (1 + more) * (1 + 0.5 * np.sin(np.arange(343) / 30))
    error = np.full(343, 4e-18)
    error[100] = np.nan
    return {"source_id": source_id, "solution_id": 1, "ra": 217.4, "dec": -62.7, "flux": flux, "flux_error": error}
