"""All rows of all parts in one order, (_healpix_29, object_id), within bounded memory: an external sort.

A first pass reads identifiers and HEALPix indices; a second deals the rows to buckets on disk, each a range of indices;
then one bucket at a time is sorted and handed on. The order depends on the rows alone, not on how parts hold them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pyarrow as pa

from hpcspec.catalog.parts import explained, open_part
from hpcspec.catalog.schema import NOWHERE
from hpcspec.errors import UserError

BUCKET_BYTES = 32 << 20  # the merge holds several copies of one
MAX_BUCKETS = 512  # all are open at once
BATCH_BYTES = 16 << 20


@dataclass(frozen=True)
class Index:
    """healpix: the order-29 indices of all rows (n,), int64, sorted; id_bytes: the length of the longest identifier."""

    healpix: np.ndarray
    id_bytes: int


def fingerprints(ids: Sequence[str]) -> np.ndarray:
    """A 64-bit hash of each identifier (n,), uint64."""
    return np.frombuffer(b"".join(blake2b(i.encode(), digest_size=8).digest() for i in ids), np.uint64)


def repeated(hashes: np.ndarray) -> np.ndarray:
    """The hashes that occur more than once; sorts `hashes` in place."""
    hashes.sort()
    return np.unique(hashes[1:][hashes[1:] == hashes[:-1]])


def batches(path: Path, names: Sequence[str] | None, row_bytes: int) -> Iterator[pa.RecordBatch]:
    """The rows of a part, about `BATCH_BYTES` at a time.

    Raises UserError if the part is missing or damaged.
    """
    with open_part(path) as file, explained(path):
        yield from file.iter_batches(max(1, BATCH_BYTES // row_bytes), columns=None if names is None else list(names))


def read_index(parts: Sequence[Path], rows: int) -> Index:
    """The first pass, over `rows` rows in all.

    Raises UserError for an identifier that occurs twice, is empty or not ASCII, or an index that is no HEALPix of order 29.
    """
    healpix, hashes, at, longest = np.empty(rows, np.int64), np.empty(rows, np.uint64), 0, 1
    for path in parts:
        for batch in batches(path, ["object_id", "_healpix_29"], 64):
            ids = batch["object_id"].to_pylist()
            bad = next((i for i in ids if not i or not i.isascii()), None)
            if bad is not None:
                raise UserError(f"{path}: object_id {bad!r} is empty or not ASCII, and can't stand in a FITS table")
            healpix[at : at + len(ids)] = batch["_healpix_29"].to_numpy()
            hashes[at : at + len(ids)] = fingerprints(ids)
            at, longest = at + len(ids), max(longest, *map(len, ids)) if ids else longest
    healpix.sort()
    if rows and not NOWHERE <= healpix[0] <= healpix[-1] < 12 * 4**29:
        raise UserError(f"_healpix_29 runs from {healpix[0]} to {healpix[-1]}, which is no nested HEALPix index of order 29")
    suspects = repeated(hashes)
    if len(suspects):
        _refuse_duplicates(parts, suspects)
    return Index(healpix, longest)


def _refuse_duplicates(parts: Sequence[Path], suspects: np.ndarray) -> None:
    """Raise UserError if one of the identifiers with these hashes really occurs twice."""
    where: dict[str, Counter[str]] = {}
    for path in parts:
        for batch in batches(path, ["object_id"], 64):
            ids = batch["object_id"].to_pylist()
            for i in np.flatnonzero(np.isin(fingerprints(ids), suspects)):
                where.setdefault(ids[i], Counter())[str(path)] += 1
    twice = {i: c for i, c in where.items() if c.total() > 1}
    if twice:
        example = min(twice)
        places = ", ".join(sorted(twice[example]))
        raise UserError(f"{len(twice)} object_id occur more than once, such as {example!r} in {places}: each may occur only once")


def in_order(parts: Sequence[Path], index: Index, schema: pa.Schema, scratch: Path, row_bytes: int) -> Iterator[pa.Table]:
    """The rows of all parts with the columns of `schema`, sorted, as tables of about `BUCKET_BYTES`.

    scratch: a folder with room for all rows. Raises UserError if a part is damaged.
    """
    rows = len(index.healpix)
    per_bucket = max(1, BUCKET_BYTES // row_bytes, -(-rows // MAX_BUCKETS))
    edges = np.unique(index.healpix[per_bucket::per_bucket])
    paths = [scratch / f"bucket-{i:03d}.arrow" for i in range(len(edges) + 1)]
    with ExitStack() as stack:
        writers = [stack.enter_context(pa.ipc.new_stream(stack.enter_context(pa.OSFile(str(p), "wb")), schema)) for p in paths]
        for part in parts:
            for batch in batches(part, schema.names, row_bytes):
                bucket = np.searchsorted(edges, batch["_healpix_29"].to_numpy(), side="right")
                order = np.argsort(bucket, kind="stable")
                dealt = batch.select(schema.names).take(pa.array(order))
                present, starts = np.unique(bucket[order], return_index=True)
                for b, start, stop in zip(present, starts, [*starts[1:], len(order)], strict=True):
                    piece = dealt.slice(start, stop - start)
                    writers[b].write_batch(pa.RecordBatch.from_arrays(piece.columns, schema=schema))
    for path in paths:
        with pa.OSFile(str(path), "rb") as source:
            table = pa.ipc.open_stream(source).read_all().combine_chunks()
        path.unlink()
        order = pa.compute.sort_indices(table, [("_healpix_29", "ascending"), ("object_id", "ascending")])
        table = table.take(order).combine_chunks()
        yield table
