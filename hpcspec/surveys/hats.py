"""Multimodal Universe as HATS (https://www.ivoa.net/documents/Notes/HATS/): `dataset/Norder=…/Dir=…/Npix=….parquet` below a
`hats.properties` or `properties`; and the same tables in Parquet files without a catalogue around them.
`multimodal_universe` says what the columns mean.

A spectrum is a column `spectrum`, a struct of lists or a list of structs; or columns `spectrum.flux`, or `spectrum_flux`.
Scalars may be grouped in structs (`photometry.phot_g_mean_mag`). Margins and indices of a catalogue hold nothing new and
are left out. A table written by Hugging Face's `datasets` has been through the loaders of the Multimodal Universe, which
invert ZWARN and ZWARNING; its schema says so, and they are turned back.
"""

from __future__ import annotations

import functools
import logging
import os
import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hpcspec.errors import UserError
from hpcspec.surveys import multimodal_universe
from hpcspec.surveys.base import Quarantined, Source, files_below, reason_of
from hpcspec.surveys.multimodal_universe import CCDS, LAYOUTS, Row, lost, missing, observed
from hpcspec.surveys.observation import BadObject, Observation

log = logging.getLogger(__name__)

TITLE = "Multimodal Universe (HATS/Parquet)"
NAMES = re.compile(r"\.parquet$")
PROPERTIES = ("hats.properties", "properties")
TABLES = ("object", "source")  # dataproduct_type of a catalogue that holds objects
ROWS = 256
BUFFER = 1 << 20
UNREADABLE = (*multimodal_universe.UNREADABLE, pa.ArrowException)
WRAPPERS = {"list", "element", "item", "array"}  # levels of a Parquet path that name no field
RENAMED = {f"{ccd}_START": column for ccd, column in CCDS.items()}  # of the loader's group filter_indices
INVERTED = ("ZWARN", "ZWARNING")


class Group(NamedTuple):
    """A row group: its number, the place of its first item among those that `read` yields, the rows it declares, and whether
    its columns have as many: if not, it is one item."""

    number: int
    first: int
    length: int
    sound: bool

    @property
    def stop(self) -> int:
        """The place behind its last item."""
        return self.first + (self.length if self.sound else 1)


def holds(path: Path) -> bool:
    """Whether a file of this name is one of these."""
    return path.suffix == ".parquet" and path.name[0] not in "._"


def files(folder: Path) -> list[Path]:
    """All of them below `folder`, sorted, without those that repeat objects."""
    return [p for p in files_below(folder, NAMES) if holds(p) and _is_table(folder, p)]


def found(folder: Path) -> bool:
    """Whether `folder` holds any: a catalogue, or a file with columns of spectra or coefficients."""
    return any(_properties(folder, path.parent) or _spectral(path) for path in files(folder))


def labels(survey: str, folder: Path) -> frozenset[str]:
    """The names in meta that can serve as labels, by the columns of the first file that can be read."""
    there = next(filter(None, map(_names, files(folder))), set())
    return LAYOUTS[survey].labels_of(there)


def read(survey: str, source: Source) -> Iterator[Observation | Quarantined]:
    """The objects of one file, in its order, read ROWS at a time. A file that can't be opened, or isn't of this survey, is one
    quarantined row; of a row group that can't be read to its end, the objects not reached are quarantined."""
    path = source.paths[0]
    with ExitStack() as stack:
        try:
            file = stack.enter_context(_opened(path))
            leaves = _leaves(file)
            reason = missing(survey, set(leaves.values()))
            if reason or file.metadata.num_rows == 0:
                raise BadObject(reason or "no rows")
        except UNREADABLE as error:
            yield Quarantined(str(path), "", reason_of(error))
            return
        wanted = [leaf for leaf, name in leaves.items() if name in LAYOUTS[survey].columns]
        ids = [leaf for leaf in wanted if leaves[leaf] in LAYOUTS[survey].identifiers]
        inverted = INVERTED if b"huggingface" in (file.schema_arrow.metadata or {}) else ()
        for group, first, length, sound in _groups(file):
            if not sound:
                yield Quarantined(str(path), "", f"damaged file: row group {group} declares {length} rows, its columns others")
                continue
            done = 0
            try:
                for row in _rows(file, group, wanted):
                    turned = {name: not row[name] for name in inverted if np.ndim(row.get(name, ())) == 0}
                    yield observed(survey, path, row | turned)
                    done += 1
                if done < length:
                    raise BadObject(f"row group {group} ends after {done} of {length} rows")
            except UNREADABLE as error:
                known = _known(file, group, ids, length)
                for i in range(done, length):
                    yield lost(survey, path, known[i], f"row {first + i}: {reason_of(error)}")


def rows(survey: str, path: Path, numbers: Sequence[int]) -> list[Observation | Quarantined]:
    """The objects of these increasing rows of a file, one at least, those that it has; every row group that holds one is read
    up to it. A row is the place of an item in what `read` yields.

    Raises UserError if the file can't be read.
    """
    out: list[Observation | Quarantined] = []
    try:
        with _opened(path) as file:
            wanted = [leaf for leaf, name in _leaves(file).items() if name in LAYOUTS[survey].columns]
            for group in _groups(file):
                inside = numbers[bisect_left(numbers, group.first) : bisect_left(numbers, group.stop)]
                if inside and group.sound:
                    asked, up_to = set(inside), islice(_rows(file, group.number, wanted), inside[-1] + 1 - group.first)
                    out += [observed(survey, path, row) for n, row in enumerate(up_to, group.first) if n in asked]
                if group.stop > numbers[-1]:
                    break
    except UNREADABLE as error:
        raise UserError(f"can't read {path}: {reason_of(error)}") from error
    return out


def _opened(path: Path) -> pq.ParquetFile:
    if path.stat().st_size == 0:
        raise BadObject("empty file")
    return pq.ParquetFile(path, pre_buffer=False, buffer_size=BUFFER, page_checksum_verification=True)


def _groups(file: pq.ParquetFile) -> Iterator[Group]:
    """The row groups; those columns count that have no lists, whose values are the rows."""
    flat = [i for i in range(len(file.schema)) if file.schema.column(i).max_repetition_level == 0]
    first = 0
    for number in range(file.num_row_groups):
        about = file.metadata.row_group(number)
        whole = about.num_columns == len(file.schema)
        group = Group(number, first, about.num_rows, whole and all(about.column(i).num_values == about.num_rows for i in flat))
        yield group
        first = group.stop


def _properties(folder: Path, below: Path) -> dict[str, str]:
    """The properties of the catalogue that `below` is in, no higher than `folder`; {} if there is none."""
    for root in (below, *below.parents):
        for name in PROPERTIES:
            if os.path.isfile(root / name):
                return _parsed(root / name)
        if root == folder:
            break
    return {}


@functools.lru_cache(maxsize=64)
def _parsed(path: Path) -> dict[str, str]:
    try:
        text = path.read_text(errors="replace")
    except OSError as error:
        log.warning("%s is left out: %s", path, error.strerror)
        return {}
    lines = (line.partition("=") for line in text.splitlines() if not line.startswith("#"))
    return {key.strip(): value.strip() for key, equals, value in lines if equals}


def _is_table(folder: Path, path: Path) -> bool:
    """False for what a catalogue keeps besides its objects: margins, indices, thumbnails."""
    properties = _properties(folder, path.parent)
    kind = properties.get("dataproduct_type", properties.get("catalog_type", "object"))
    inside = any(part.startswith("Npix=") for part in path.relative_to(folder).parts)
    return not properties or (kind in TABLES and inside)


def _names(path: Path) -> set[str]:
    """A file's columns in upper case; none if it can't be read."""
    try:
        with _opened(path) as file:
            return set(_leaves(file).values())
    except UNREADABLE:
        return set()


def _spectral(path: Path) -> bool:
    return bool(_names(path) & {"SPECTRUM_FLUX", "COEFF"})


def _leaves(file: pq.ParquetFile) -> dict[str, str]:
    """{path of a leaf in the file: its name among the Multimodal Universe's columns, upper case}."""
    paths = [file.schema.column(i).path for i in range(len(file.schema))]
    return {path: _name([part for part in path.split(".") if part not in WRAPPERS]) for path in sorted(paths)}


def _name(parts: list[str]) -> str:
    joined = "_".join(parts) if parts and parts[0].lower() == "spectrum" else parts[-1] if parts else ""
    return RENAMED.get(joined.upper(), joined.upper())


def _rows(file: pq.ParquetFile, group: int, leaves: list[str]) -> Iterator[dict[str, Any]]:
    for batch in file.iter_batches(ROWS, row_groups=[group], columns=leaves):
        columns = [cell for name in batch.schema.names for cell in _cells(name.split("."), batch.column(name))]
        for i in range(batch.num_rows):
            row = ((name, cell(i)) for name, cell in columns)
            yield {name: value for name, value in row if value is not None}


def _known(file: pq.ParquetFile, group: int, leaves: list[str], length: int) -> list[Row]:
    """The identifiers of a row group's rows, as far as they can be read."""
    rows: list[Row] = []
    try:
        rows.extend(_rows(file, group, leaves))
    except UNREADABLE:
        pass
    return rows + [{}] * (length - len(rows))


def _cells(parts: list[str], column: pa.Array) -> list[tuple[str, Callable[[int], Any]]]:
    """The columns in a column, structs taken apart, each with a function that gives the cell of a row (None for null)."""
    column = column.storage if isinstance(column, pa.ExtensionArray) else column
    if pa.types.is_struct(column.type):
        fields = [column.type.field(i).name for i in range(column.type.num_fields)]
        return [cell for name, child in zip(fields, column.flatten(), strict=True) for cell in _cells([*parts, name], child)]
    if _is_list(column.type) and pa.types.is_struct(column.type.value_type):
        fields = [column.type.value_type.field(i).name for i in range(column.type.value_type.num_fields)]
        return [(_name([*parts, name]), functools.partial(_field, column, name)) for name in fields]
    return [(_name(parts), functools.partial(_cell, column))]


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _cell(column: pa.Array, row: int) -> Any:
    if not _is_list(column.type):
        return column[row].as_py()
    values = column[row].values
    return None if values is None else _array(values)


def _field(column: pa.Array, name: str, row: int) -> np.ndarray | None:
    values = column[row].values
    return None if values is None else _array(values.field(name))


def _array(values: pa.Array) -> np.ndarray:
    return values.to_numpy(zero_copy_only=False)
