"""Gaia archive tables, row by row: CSV and ECSV, FITS, VOTable and Parquet, the first three gzipped or bzip2ed too.

Column names are made lower case, cells stay as the file has them (text in CSV, so that no identifier passes through a
float). CSV and Parquet are streamed: a file of many GB is never held in memory. A compressed file is read through once
beforehand, which checks its checksum. An archive CSV has one row a line, so damage to one line costs that row alone.
"""

from __future__ import annotations

import csv
import io
import re
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import IO, Any
from xml.parsers.expat import ExpatError

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from astropy.io import fits, votable
from astropy.utils.exceptions import AstropyWarning

from hpcspec.surveys.base import FAULTS, UNPACK, check_votable, data_of, opened, reason_of
from hpcspec.surveys.observation import BadObject
from hpcspec.surveys.xp import NULLS, number

TABLES = re.compile(r"\.(?:(csv|ecsv|fits?|xml|vot|votable)(?:\.(?:gz|bz2|fz))?|(parquet))$", re.IGNORECASE)
LINE = 1 << 22  # characters; an archive row has about 50 000
PARQUET_ROWS = 256
ONE_SPECTRUM = ("wavelength", "flux", "flux_error")  # a file that is one sampled spectrum, a row a sample
ITS_OBJECT = re.compile(r"(\d{5,19})\D*$")

Row = dict[str, Any]


def rows(path: Path) -> Iterator[Row | BadObject]:
    """The rows of a table, lower-case column name to cell; a BadObject in the place of a row that can't be read, and as
    the last item if the file can't be read any further. A file of the archive's "individual" structure, which is one
    sampled spectrum, is one row of vectors, its source_id from the file's name."""
    raw = _guarded(path)
    first = next(raw, BadObject("no rows"))
    if isinstance(first, BadObject) or "source_id" in first or not set(ONE_SPECTRUM) <= first.keys():
        yield first
        yield from raw
        return
    name = ITS_OBJECT.search(TABLES.sub("", path.name))
    object_id = name[1] if name else ""
    try:
        samples = [_sound(sample) for sample in chain([first], raw)]
        yield {"source_id": object_id, **{n: np.array([number(s[n], n) for s in samples]) for n in ONE_SPECTRUM}}
    except BadObject as error:
        yield BadObject(error.reason, object_id)


def columns(path: Path, wanted: Collection[str]) -> dict[str, np.ndarray]:
    """source_id (n,), int64, and those of the `wanted` columns that the table has (n,), float64, NaN where missing.

    Raises BadObject if the file has no source_id, any of FAULTS if it can't be read.
    """
    if _kind(path) == "csv":
        with _unpacked(path) as file:
            names, delimiter, skip = _header(file)
        keep = [n for n in names if n.lower() in wanted or n.lower() == "source_id"]
        types = {n: pa.int64() if n.lower() == "source_id" else pa.float64() for n in keep}
        options = pa_csv.ConvertOptions(include_columns=keep, column_types=types, null_values=sorted(NULLS | {"NaN"}))
        if "source_id" not in map(str.lower, keep):
            raise BadObject("not a Gaia table: no column source_id")
        with _unpacked(path) as file:
            table = pa_csv.read_csv(file, pa_csv.ReadOptions(skip_rows=skip, block_size=1 << 24),
                                    pa_csv.ParseOptions(delimiter=delimiter), options)  # fmt: skip
        table = table.filter(table[next(n for n in keep if n.lower() == "source_id")].is_valid())  # with one missing, all
        return {n.lower(): table[n].to_numpy() for n in keep}  # would pass through a float
    found: dict[str, list[Any]] = {"source_id": []}
    for row in map(_sound, rows(path)):
        if "source_id" not in row:
            raise BadObject("not a Gaia table: no column source_id")
        for name in ("source_id", *(n for n in wanted if n in row)):
            found.setdefault(name, []).append(row[name])
    ids = found.pop("source_id")
    if any(isinstance(i, float | np.floating) for i in ids):
        raise BadObject("source_id is a floating-point number, which rounds it")
    return {"source_id": np.array(ids, np.int64), **{n: np.array([number(c, n) for c in cells]) for n, cells in found.items()}}


def _sound(row: Row | BadObject) -> Row:
    if isinstance(row, BadObject):
        raise row
    return row


def _kind(path: Path) -> str:
    suffix = TABLES.search(path.name)
    kind = (suffix[1] or suffix[2]).lower() if suffix else "csv"
    return {"ecsv": "csv", "fit": "fits", "vot": "xml", "votable": "xml"}.get(kind, kind)


def _guarded(path: Path) -> Iterator[Row | BadObject]:
    try:
        if path.stat().st_size == 0:
            raise BadObject("empty file")
        yield from {"csv": _csv, "fits": _fits, "xml": _votable, "parquet": _parquet}[_kind(path)](path)
    except FAULTS as error:
        yield error if isinstance(error, BadObject) else BadObject(f"unreadable file: {reason_of(error)}")


@contextmanager
def _unpacked(path: Path) -> Iterator[IO[bytes]]:
    with path.open("rb") as file:
        unpack = next((reader for magic, reader in UNPACK.items() if file.peek().startswith(magic)), None)
        if not unpack:
            yield file
            return
        with unpack(file) as whole:
            while whole.read(1 << 20):
                pass
        file.seek(0)
        with unpack(file) as packed:
            yield packed


def _header(file: IO[bytes]) -> tuple[list[str], str, int]:
    """Column names, delimiter and number of comment lines of a CSV or ECSV file, which is left at its first row."""
    comments: list[str] = []
    while (line := file.readline(LINE).decode("utf-8-sig" if not comments else "utf-8", "replace")).startswith("#"):
        comments.append(line)
    spaces = any("%ECSV" in c for c in comments) and not any(re.match(r"#\s*delimiter:\s*'?,", c) for c in comments)
    delimiter = " " if spaces else ","
    return next(csv.reader([line], delimiter=delimiter), []), delimiter, len(comments)


def _csv(path: Path) -> Iterator[Row | BadObject]:
    with _unpacked(path) as file:
        names, delimiter, number = _header(file)
        names = [name.strip().lower() for name in names]
        text = io.TextIOWrapper(file, "utf-8", "replace")
        number += 1
        while line := text.readline(LINE):
            number += 1
            if len(line) == LINE:
                raise BadObject(f"line {number} has more than {LINE} characters: not a table of the archive")
            if not line.strip():
                continue
            try:
                cells = next(csv.reader([line], delimiter=delimiter, strict=True))
            except csv.Error as error:
                yield BadObject(f"line {number}: {error}", _first_id(names, line.split(delimiter)))
                continue
            if len(cells) == len(names):
                yield dict(zip(names, cells, strict=True))
            else:
                yield BadObject(f"line {number}: {len(cells)} values for {len(names)} columns", _first_id(names, cells))


def _first_id(names: list[str], cells: list[str]) -> str:
    """The identifier of a row that is damaged further on, where it can be told."""
    cell = cells[0].strip() if names[:1] == ["source_id"] and len(cells) > 1 else ""
    return cell if cell.isdigit() else ""


def _fits(path: Path) -> Iterator[Row]:
    with opened(path) as hdus:
        tables = [hdu for hdu in hdus if isinstance(hdu, fits.BinTableHDU)]
        if not tables:
            raise BadObject("not a Gaia table: no binary table in the file")
        for hdu in tables:
            data = data_of(hdu)
            cells = {c.name.strip().lower(): (data[c.name], c.null) for c in hdu.columns}
            for i in range(len(data)):
                yield {name: None if null is not None and np.ndim(column[i]) == 0 and column[i] == null else column[i]
                       for name, (column, null) in cells.items()}  # fmt: skip


def _votable(path: Path) -> Iterator[Row]:
    with _unpacked(path) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore", AstropyWarning)
        data = file.read()
        check_votable(data)
        try:
            parsed = votable.parse(io.BytesIO(data), verify="ignore")
        except (SyntaxError, ExpatError) as error:
            raise BadObject(f"unreadable VOTable: {' '.join(str(error).split())}") from error
        for table in parsed.iter_tables():
            names = [field.name.strip() for field in table.fields]
            for row in table.to_table(use_names_over_ids=True).iterrows():
                yield {n.lower(): None if c is np.ma.masked else c for n, c in zip(names, row, strict=True)}


def _parquet(path: Path) -> Iterator[Row]:
    for batch in pq.ParquetFile(path).iter_batches(PARQUET_ROWS):
        for row in batch.to_pylist():
            yield {name.strip().lower(): cell for name, cell in row.items()}
