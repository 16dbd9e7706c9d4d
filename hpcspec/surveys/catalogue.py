"""A survey's own catalogue, joined to its spectra by identifier: labels, quality flags, positions.

A catalogue lies anywhere in the input folder and is known by its file name. Readers put it at the end of every source's paths,
so that a changed catalogue is noticed; `split` takes the paths apart again. A table is opened once per process and stays on
disk: in memory are its sorted identifiers (with a 64-bit integer 12 bytes a row), and an object costs the reading of its row.
"""

from __future__ import annotations

import logging
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits

from hpcspec.errors import UserError
from hpcspec.surveys.base import DAMAGE, FAULTS, UNPACK, Source, check_sizes, fits_files, plain, quiet, reason_of

log = logging.getLogger(__name__)

NO_VALUE = -9990  # surveys write -9999 where they have no number


@dataclass(frozen=True)
class Join:
    """How a survey's catalogue is known and used.

    names: the pattern of its file names. key: the column of identifiers. columns: our name to theirs, upper case, of which
    the first that a file has counts. prefer: columns whose largest value chooses between rows of the same object.
    """

    names: re.Pattern[str]
    key: str
    columns: Mapping[str, tuple[str, ...]]
    prefer: tuple[str, ...] = ()


class Table:
    """The first table of a FITS file that has the column `key`, whose rows are found by it. Raises any of FAULTS."""

    def __init__(self, path: Path, key: str):
        with path.open("rb") as file:
            unpack = next((reader for magic, reader in UNPACK.items() if file.peek().startswith(magic)), None)
            if unpack:  # a file of its own, in $TMPDIR, gone with this object
                self._unpacked = tempfile.NamedTemporaryFile()
                shutil.copyfileobj(unpack(file), self._unpacked, 1 << 20)
                self._unpacked.flush()
        with quiet(DAMAGE), fits.open(self._unpacked.name if unpack else path, memmap=True) as hdus:
            check_sizes(hdus)
            tables = (hdu for hdu in hdus if isinstance(hdu, fits.BinTableHDU))
            hdu = next((hdu for hdu in tables if key in map(str.upper, hdu.columns.names)), None)
            if hdu is None:
                raise KeyError(f"no table with a column {key}")
            rows = hdu.data.view(np.ndarray)
        # Of columns that differ in case only the first counts.
        self._columns = {column.name.upper(): (column, rows[column.name]) for column in reversed(list(hdu.columns))}
        column, ids = self._columns[key]
        if ids.ndim != 1 or ids.dtype.kind not in "iuS" or column.bzero or column.bscale:
            raise ValueError(f"column {key} is not one of identifiers: its format is {column.format}")
        ids = np.char.strip(ids) if ids.dtype.kind == "S" else ids.astype(np.int64)
        self._order = np.argsort(ids, kind="stable").astype(np.uint32)
        self._ids = ids[self._order]

    def find(self, object_id: str) -> list[int]:
        """The numbers of the rows of an object; none if the identifier is not there, or can't be one of this column."""
        try:
            wanted = np.bytes_(object_id, "ascii") if self._ids.dtype.kind == "S" else np.int64(int(object_id))
        except (ValueError, OverflowError):
            return []
        return self._order[slice(*(int(np.searchsorted(self._ids, wanted, side)) for side in ("left", "right")))].tolist()

    def cell(self, row: int, name: str) -> Any:
        """A value of a row by the column's name in upper case: str, int, float or array; None if there is no such column."""
        if name not in self._columns:
            return None
        column, values = self._columns[name]
        value = values[row]
        if np.ndim(value):
            return np.array(value)
        if str(column.format).endswith("L"):
            return int(value == ord("T"))
        return plain(value) if not column.bzero else int(value) + int(column.bzero)


def parted(folder: Path, join: Join) -> tuple[list[Path], tuple[Path, ...]]:
    """The FITS files below `folder`, sorted: those of spectra, and the survey's catalogues.

    Raises UserError if there are none of spectra.
    """
    paths = fits_files(folder)
    spectra = [path for path in paths if not join.names.search(path.name)]
    if not spectra:
        raise UserError(f"input folder {folder} holds catalogues but no spectra: give the folder of both with --input")
    return spectra, tuple(path for path in paths if join.names.search(path.name))


def split(source: Source, join: Join) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """The paths of a source's spectra, and those of its catalogues."""
    first = next((i for i, path in enumerate(source.paths) if i and join.names.search(path.name)), len(source.paths))
    return source.paths[:first], source.paths[first:]


def look_up(
    paths: Iterable[Path],
    join: Join,
    object_id: str,
    alike: Mapping[str, str | int | float] | None = None,
    arrays: Iterable[str] = (),
) -> dict[str, Any]:
    """What the catalogues say of an object under our names, without values that are absent; {} for an unknown object.

    Of several rows the one counts that agrees with most of `alike` (their column to value), then the one with the largest
    `join.prefer`. Columns named in `arrays` are added as arrays under their own names. A catalogue that can't be read costs
    its values only, with one warning.
    """
    best: tuple[Any, ...] = ()
    for table in filter(None, (_table(path, join.key) for path in paths)):
        for row in table.find(object_id):
            agree = sum(table.cell(row, name) == value for name, value in (alike or {}).items())
            rank = (agree, *(_number(table.cell(row, name)) for name in join.prefer))
            if not best or rank > best[0]:
                best = rank, table, row
    if not best:
        return {}
    _, table, row = best
    cells = {ours: next((v for v in (table.cell(row, name) for name in names) if v is not None), None)
             for ours, names in join.columns.items()}  # fmt: skip
    found = {ours: value for ours, value in cells.items() if _says_something(ours, value)}
    return found | {name: value for name in arrays if isinstance(value := table.cell(row, name), np.ndarray)}


def _table(path: Path, key: str) -> Table | None:
    try:
        state = path.stat()
        return _cached(path, key, state.st_size, state.st_mtime_ns)
    except OSError as error:
        log.warning("nothing joined from %s: %s", path, reason_of(error))
        return None


@lru_cache(maxsize=64)
def _cached(path: Path, key: str, size: int, mtime: int) -> Table | None:
    try:
        return Table(path, key)
    except FAULTS as error:
        log.warning("nothing joined from %s: %s", path, reason_of(error))
        return None


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and np.isfinite(value) else -np.inf


def _says_something(name: str, value: Any) -> bool:
    if value is None or isinstance(value, np.ndarray) or value == "":
        return False
    if name.endswith("_id"):
        return isinstance(value, str) or (isinstance(value, int) and value > 0)
    if not isinstance(value, float):
        return True
    return bool(np.isfinite(value)) and value > (0 if name.endswith("_err") else NO_VALUE)
