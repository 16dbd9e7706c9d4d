"""The catalogue in the HATS layout: Parquet by HEALPix pixel, of an order that adapts to the density of objects.

IVOA Note "HATS: hierarchical adaptive tiling scheme"; the rows must come sorted by `_healpix_29`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

MAX_ROWS = 1_000_000
HEALPIX_ORDER = 29


def partition_path(order: int, pixel: int) -> str:
    """Where the rows of a pixel stand, relative to `dataset/`."""
    return f"Norder={order}/Dir={pixel // 10_000 * 10_000}/Npix={pixel}.parquet"


def _range(order: int, pixel: int) -> tuple[int, int]:
    """The order-29 indices [first, last) of a pixel."""
    shift = 2 * (HEALPIX_ORDER - order)
    return pixel << shift, (pixel + 1) << shift


def partitions(healpix: np.ndarray, max_rows: int = MAX_ROWS) -> list[tuple[int, int, int]]:
    """The pixels (order, pixel, rows) that hold all of the sorted order-29 indices (n,) of a place, in their order on the curve.

    Each is the largest pixel with at most `max_rows` rows (but for rows of the very same index); empty ones are left out.
    """
    found, waiting = [], [(0, p) for p in reversed(range(12))]
    while waiting:
        order, pixel = waiting.pop()
        rows = int(np.diff(np.searchsorted(healpix, _range(order, pixel)))[0])
        if rows > max_rows and order < HEALPIX_ORDER:
            waiting += [(order + 1, 4 * pixel + i) for i in (3, 2, 1, 0)]
        elif rows:
            found.append((order, pixel, rows))
    return found


class HatsCatalog:
    """A HATS catalogue that is given piece by piece, in order: `add` for each, then `close`."""

    def __init__(self, folder: Path, schema: pa.Schema, pixels: list[tuple[int, int, int]]):
        self._folder, self._schema, self._pixels = folder, schema, pixels
        self._at, self._left = -1, 0
        self._writer: pq.ParquetWriter | None = None
        self._footers: list[pq.FileMetaData] = []

    def _next(self) -> None:
        """Finish the current partition and open the next one."""
        if self._writer is not None:
            self._writer.close()
            self._footers[-1].set_file_path(partition_path(*self._pixels[self._at][:2]))
        self._at += 1
        if self._at < len(self._pixels):
            path = self._folder / "dataset" / partition_path(*self._pixels[self._at][:2])
            path.parent.mkdir(parents=True, exist_ok=True)
            self._left = self._pixels[self._at][2]
            self._writer = pq.ParquetWriter(path, self._schema, compression="zstd", metadata_collector=self._footers,
                                            use_dictionary=["survey", "class"], write_page_checksum=True)  # fmt: skip

    def add(self, table: pa.Table) -> None:
        """Append rows, sorted by `_healpix_29` and beyond all rows before."""
        start = 0
        while start < table.num_rows:
            if not self._left:
                self._next()
            rows = min(self._left, table.num_rows - start)
            assert self._writer is not None
            self._writer.write_table(table.slice(start, rows).select(self._schema.names).cast(self._schema))
            start, self._left = start + rows, self._left - rows

    def close(self, name: str, properties: Mapping[str, str]) -> None:
        """Finish the last partition and write the files that describe the catalogue."""
        self._next()
        dataset = self._folder / "dataset"
        dataset.mkdir(parents=True, exist_ok=True)
        pq.write_metadata(self._schema, dataset / "_common_metadata")
        pq.write_metadata(self._schema, dataset / "_metadata", metadata_collector=self._footers)
        listed = sorted(self._pixels, key=lambda p: (p[0], p[1]))
        (self._folder / "partition_info.csv").write_text("Norder,Npix\n" + "".join(f"{o},{p}\n" for o, p, _ in listed))
        area = sum(1 / (12 * 4**order) for order, _, _ in self._pixels)
        lines = {
            "obs_collection": name,
            "dataproduct_type": "object",
            "hats_nrows": sum(rows for *_, rows in self._pixels),
            "hats_col_ra": "ra",
            "hats_col_dec": "dec",
            "hats_col_healpix": "_healpix_29",
            "hats_col_healpix_order": HEALPIX_ORDER,
            "hats_order": max((order for order, _, _ in self._pixels), default=0),
            "hats_max_rows": max((rows for *_, rows in self._pixels), default=0),
            "hats_npix_suffix": ".parquet",
            "hats_version": "v1.0",
            "moc_sky_fraction": f"{area:.5f}",
            **properties,
        }
        text = "#HATS catalog\n" + "".join(f"{key}={value}\n" for key, value in lines.items())
        for file in ("hats.properties", "properties"):
            (self._folder / file).write_text(text)
