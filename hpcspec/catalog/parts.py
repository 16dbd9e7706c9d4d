"""A part: what one array task writes, a Parquet file with all columns of the catalogue and the embedding.

The bytes depend on nothing but the rows and the provenance, so a task that is killed and rerun writes the same file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hpcspec.atomic import replacing
from hpcspec.catalog.schema import columns
from hpcspec.errors import UserError

PART_VERSION = "1"
ROW_GROUP_BYTES = 16 << 20  # what a reader must hold at once
_MARK = "hpcspec_part"
_COMMON = {c.name: c for c in columns((), ())}
_AGAIN = "remove it and run its array task again"


def _array(name: str, values: np.ndarray) -> pa.Array:
    """One numpy column (n,), or the embedding (n, d), as an Arrow array of the catalogue's type."""
    values = np.asarray(values)
    if name == "embedding":
        if values.ndim != 2 or values.shape[1] == 0 or values.dtype.kind != "f":
            raise UserError(f"column 'embedding' must be (n, d) and floating point, not {values.shape} of {values.dtype}")
        flat = pa.array(np.ascontiguousarray(values, np.float32).ravel())
        return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
    dtype = _COMMON[name].dtype if name in _COMMON else "f4"
    if values.ndim != 1:
        raise UserError(f"column {name!r} must have one dimension, not shape {values.shape}")
    if dtype == "U":
        if values.dtype.kind not in "UO" or not all(isinstance(v, str) for v in values.tolist()):
            raise UserError(f"column {name!r} must be text, not {values.dtype}: an identifier never passes through a number")
        return pa.array(values.tolist(), pa.string())
    if not np.can_cast(values.dtype, dtype, "same_kind"):
        raise UserError(f"column {name!r} must be {np.dtype(dtype)}, not {values.dtype}")
    return pa.array(values.astype(dtype))


def _numpy(name: str, column: pa.ChunkedArray) -> np.ndarray:
    """An Arrow column as a numpy array (n,), or (n, d) for lists of fixed size."""
    if column.null_count:
        raise UserError(f"column {name!r} holds nulls: write NaN for a value that doesn't exist")
    if pa.types.is_fixed_size_list(column.type):
        return column.combine_chunks().flatten().to_numpy().reshape(len(column), -1)
    return column.to_numpy()


def _table(table: pa.Table | Mapping[str, np.ndarray]) -> pa.Table:
    """The rows as an Arrow table of the catalogue's types, with all common columns and the embedding."""
    if isinstance(table, pa.Table):
        table = {n: _numpy(n, table[n]) for n in table.column_names}
    missing = [n for n in (*_COMMON, "embedding") if n not in table]
    if missing:
        raise UserError(f"a catalogue part needs the columns {', '.join(missing)}, which are missing")
    arrays = {n: _array(n, v) for n, v in table.items()}
    if len({len(a) for a in arrays.values()}) > 1:
        raise UserError(f"the columns of a catalogue part differ in length: { {n: len(a) for n, a in arrays.items()} }")
    return pa.table(arrays)


def write_part(path: Path, table: pa.Table | Mapping[str, np.ndarray], provenance: Mapping[str, str]) -> None:
    """Write the rows of one array task as Parquet: to a temporary name, flushed, then renamed.

    table: an Arrow table, or arrays (n,) by column name with `embedding` (n, d). provenance: text by name; `model_hash`
    must be in it, and nothing that differs between two runs of the same task (times, hosts).
    Raises UserError for a missing column, a wrong type or length, a null, or a path that can't be written.
    """
    if "model_hash" not in provenance:
        raise UserError("the provenance of a catalogue part needs 'model_hash'")
    metadata = {_MARK: PART_VERSION, **{k: provenance[k] for k in sorted(provenance)}}
    rows = _table(table).replace_schema_metadata(metadata)
    with replacing(path) as temporary:
        pq.write_table(rows, temporary, row_group_size=max(1, ROW_GROUP_BYTES * rows.num_rows // max(rows.nbytes, 1)),
                       compression="zstd", use_dictionary=["survey", "class"], write_page_checksum=True)  # fmt: skip


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn what Arrow raises for a damaged part into a UserError that names it."""
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"catalogue part {path} does not exist: run its array task again") from error
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"catalogue part {path} is truncated or damaged ({str(error).splitlines()[0]}): {_AGAIN}") from error


def open_part(path: Path) -> pq.ParquetFile:
    """An open part, its page checksums verified as it is read; the caller closes it.

    Raises UserError if the part is missing, truncated, or no catalogue part of this version.
    """
    with explained(path):
        file = pq.ParquetFile(path, page_checksum_verification=True, pre_buffer=False)
    version = _metadata(file).get(_MARK)
    if version != PART_VERSION:
        file.close()
        what = "is not a catalogue part" if version is None else f"is a catalogue part of version {version}, not {PART_VERSION}"
        raise UserError(f"{path} {what}: {_AGAIN}, or move it out of the folder of parts")
    return file


def _metadata(file: pq.ParquetFile) -> dict[str, str]:
    return {k.decode(): v.decode() for k, v in (file.schema_arrow.metadata or {}).items()}


def provenance_of(file: pq.ParquetFile) -> dict[str, str]:
    """The provenance that `write_part` was given."""
    return {k: v for k, v in _metadata(file).items() if k != _MARK}


def read_part(path: Path) -> pa.Table:
    """All rows of a part; its provenance is in the schema's metadata.

    Raises UserError if the part is missing, truncated, damaged or foreign.
    """
    with open_part(path) as file, explained(path):
        return file.read()
