"""Tables of rows in five formats as Arrow batches, with the unit of each column."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from astropy.io import fits
from astropy.table import Table

from hpcspec.surveys.base import check_votable, data_of, opened, plain
from hpcspec.surveys.observation import BadObject
from hpcspec.surveys.tables import Wanted, batches, head, unpacked

NAMES = re.compile(r"\.((csv|tsv|txt|dat|ecsv|fits?|vot|votable|xml)(\.(gz|bz2))?|parquet|pq)$", re.IGNORECASE)
WHAT = "a table of light curves"
Batches = tuple[dict[str, str], Iterator[pa.RecordBatch | pa.Table]]


@contextmanager
def row_batches(path: Path, wanted: Wanted, skipped: list[str]) -> Iterator[Batches]:
    """The columns of a table with their units ("" for none) and its rows in batches, text tables as text columns. The
    header of a text table is the first line that is `wanted`; its rows with another number of fields go to `skipped`.

    Raises BadObject if it is no table; any of FAULTS for damage, from the batches too.
    """
    format_ = NAMES.search(path.name)
    kind = format_[1].lower().split(".")[0] if format_ else ""
    if path.stat().st_size == 0:
        raise BadObject("empty file")
    if kind in ("parquet", "pq"):
        with pq.ParquetFile(path) as file:
            told = {f.name: (f.metadata or {}).get(b"unit", b"").decode("utf-8", "replace") for f in file.schema_arrow}
            yield told, file.iter_batches(1 << 20)
    elif kind.startswith("fit"):
        with opened(path) as hdus:
            table = next((hdu for hdu in hdus if isinstance(hdu, fits.BinTableHDU | fits.TableHDU)), None)
            if table is None:
                raise BadObject(f"not {WHAT}: no table HDU")
            told = {column.name: column.unit or "" for column in table.columns}
            yield told, iter([pa.table({name: _arrow(data_of(table)[name]) for name in told})])
    elif kind in ("vot", "votable", "xml"):
        with unpacked(path) as raw, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = raw.read()
            check_votable(data)
            votable = Table.read(io.BytesIO(data), format="votable")
        told = {name: str(votable[name].unit or "") for name in votable.colnames}
        yield told, iter([pa.table({name: _arrow(votable[name]) for name in told})])
    else:
        with unpacked(path) as raw:
            first = head(raw, wanted, f"{WHAT}, with columns of time, value and error")
            ecsv = bool(first.comments) and first.comments[0].startswith("%ECSV")
            told = _ecsv_units(first.comments, first.columns) if ecsv else dict.fromkeys(first.columns, "")
            yield told, batches(raw, first.columns, first.delimiter or (" " if ecsv else ""), skipped)


def _ecsv_units(comments: tuple[str, ...], columns: tuple[str, ...]) -> dict[str, str]:
    """The units that an ECSV header gives."""
    delimiter = "," if any(re.match(r"delimiter: ['\"]?,", line) for line in comments) else " "
    text = "\n".join([*(f"# {line}" for line in comments), delimiter.join(columns)])
    empty = Table.read(text, format="ascii.ecsv")
    return {name: str(empty[name].unit or "") for name in empty.colnames}


def _arrow(column: Any) -> pa.Array:
    """A FITS or VOTable column as Arrow, in this machine's byte order; masked cells are null, vectors lists."""
    mask = np.ma.getmaskarray(column) if np.ma.isMaskedArray(column) else None
    values = np.ma.getdata(column) if mask is not None else np.asarray(column)
    if values.ndim > 1:
        return pa.nulls(len(values))
    if values.dtype.kind == "S":
        values = np.char.decode(values, "utf-8", "replace")
    if values.dtype.kind == "O":
        return pa.array([str(plain(x)) for x in values], pa.string(), mask=mask)
    if values.dtype.kind == "U":
        return pa.array(values.tolist(), pa.string(), mask=mask)
    return pa.array(values.astype(values.dtype.newbyteorder("="), copy=False), mask=mask)
