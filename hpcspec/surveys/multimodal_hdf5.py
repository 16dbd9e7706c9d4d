"""Multimodal Universe as its builders write it: `**/healpix=<pixel>/001-of-001.hdf5`, one data set for each column at the
root, first axis the object; vectors are padded to the same length, or of variable length. `multimodal_universe` says what
the columns mean."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import h5py
import hdf5plugin  # noqa: F401  (registers its filters with HDF5)

from hpcspec.errors import UserError
from hpcspec.surveys.base import Quarantined, Source, reason_of, regular
from hpcspec.surveys.multimodal_universe import LAYOUTS, UNREADABLE, Row, lost, missing, observed
from hpcspec.surveys.observation import BadObject, Observation

TITLE = "Multimodal Universe (HDF5)"
SUFFIXES = (".hdf5", ".h5")
ROWS = 256  # read at once: 64 MiB of the longest spectra
CACHE = 1 << 26  # bytes of unpacked chunks kept, for chunks of more rows than that


def holds(path: Path) -> bool:
    """Whether a file of this name is one of these."""
    return path.suffix in SUFFIXES and path.parent.name.startswith("healpix=")


def files(folder: Path) -> list[Path]:
    """All of them below `folder`, sorted."""
    return regular(path for path in folder.rglob("healpix=*/*") if holds(path))


def found(folder: Path) -> bool:
    """Whether `folder` holds any."""
    return bool(files(folder))


def labels(survey: str, folder: Path) -> frozenset[str]:
    """The names in meta that can serve as labels, by the columns of the first file that can be read."""
    for path in files(folder):
        try:
            with h5py.File(path, "r", locking=False) as file:
                there = {name.upper() for name in file}
        except UNREADABLE:
            continue
        return LAYOUTS[survey].labels_of(there)
    return frozenset()


def read(survey: str, source: Source) -> Iterator[Observation | Quarantined]:
    """The objects of one file, in its order, read ROWS at a time. A file that can't be opened, or isn't of this survey, is one
    quarantined row; where a part of it can't be read, its objects are quarantined, and the others are read."""
    path = source.paths[0]
    with ExitStack() as stack:
        try:
            if path.stat().st_size == 0:
                raise BadObject("empty file")
            file = stack.enter_context(h5py.File(path, "r", locking=False, rdcc_nbytes=CACHE))
            columns, length = _columns(survey, file)
        except UNREADABLE as error:
            yield Quarantined(str(path), "", reason_of(error))
            return
        ids = {name: column for name, column in columns.items() if name in LAYOUTS[survey].identifiers}
        for start in range(0, length, ROWS):
            for number, row in _rows(columns, start, min(start + ROWS, length)):
                if isinstance(row, Exception):
                    known = next((r for _, r in _rows(ids, number, number + 1) if not isinstance(r, Exception)), {})
                    yield lost(survey, path, known, f"row {number}: {reason_of(row)}")
                else:
                    yield observed(survey, path, row)


def rows(survey: str, path: Path, numbers: Sequence[int]) -> list[Observation | Quarantined]:
    """The objects of these increasing rows of a file, those that it has.

    Raises UserError if the file can't be read.
    """
    try:
        with h5py.File(path, "r", locking=False, rdcc_nbytes=CACHE) as file:
            columns, length = _columns(survey, file)
            there = [number for number in numbers if number < length]
            return [observed(survey, path, {name: column[number] for name, column in columns.items()}) for number in there]
    except UNREADABLE as error:
        raise UserError(f"can't read {path}: {reason_of(error)}") from error


def _columns(survey: str, file: h5py.File) -> tuple[Mapping[str, h5py.Dataset], int]:
    """The data sets to read, by name in upper case, and how many rows they have.

    Raises BadObject if the file is another survey's, has no rows, its columns differ in length, or it doesn't hold all of them.
    """
    wanted = LAYOUTS[survey].columns
    # where two names differ in case alone, the lower one, which sorts last, is the Multimodal Universe's own
    names = {name.upper(): name for name in sorted(file) if name.upper() in wanted}
    links = sorted(name.lower() for name in names.values() if not isinstance(file.get(name, getlink=True), h5py.HardLink))
    if links:
        raise BadObject(f"columns are links to data elsewhere: {', '.join(links)}")
    columns = {upper: file[name] for upper, name in names.items()}
    columns = {name: column for name, column in columns.items() if isinstance(column, h5py.Dataset)}
    elsewhere = sorted(name.lower() for name, column in columns.items() if column.external or column.is_virtual)
    if elsewhere:
        raise BadObject(f"columns are kept in other files: {', '.join(elsewhere)}")
    reason = missing(survey, set(columns))
    if reason:
        raise BadObject(reason)
    lengths = {name: column.shape[0] if column.shape else 0 for name, column in columns.items()}
    length = max(lengths.values())
    short = sorted(name.lower() for name, rows in lengths.items() if rows != length)
    if short:
        raise BadObject(f"columns differ in length: {', '.join(short)} not {length} rows")
    if length == 0:
        raise BadObject("no rows")
    unwritten = sorted(name.lower() for name, column in columns.items() if not _written(column))
    if unwritten:
        raise BadObject(f"not all of the {length} rows were written: {', '.join(unwritten)}")
    return columns, length


def _written(column: h5py.Dataset) -> bool:
    """Whether there is storage for all values: HDF5 makes up those that there isn't."""
    if column.chunks is None:
        return column.id.get_storage_size() >= column.size * column.id.get_type().get_size()
    chunks = math.prod(-(-length // chunk) for length, chunk in zip(column.shape, column.chunks, strict=True))
    return column.id.get_num_chunks() >= chunks


def _rows(columns: Mapping[str, h5py.Dataset], start: int, stop: int) -> Iterator[tuple[int, Row | Exception]]:
    """Rows start … stop-1 with their numbers; where a part can't be read, halves of it, down to the rows it takes."""
    try:
        block = {name: column[start:stop] for name, column in columns.items()}
    except UNREADABLE as error:
        if stop - start == 1:
            yield start, error
        else:
            middle = (start + stop) // 2
            yield from _rows(columns, start, middle)
            yield from _rows(columns, middle, stop)
        return
    for i in range(stop - start):
        yield start + i, {name: column[i] for name, column in block.items()}
