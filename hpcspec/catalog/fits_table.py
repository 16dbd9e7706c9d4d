"""The catalogue as one FITS binary table, written as the rows come, with checksums and without a date.

FITS Standard 4.0, section 7.3; TUCDn and TCOMMn are the usual cards for a column's UCD and description.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from astropy.io import fits

from hpcspec.catalog.schema import Column

_TFORM = {"f4": "E", "f8": "D", "i4": "J", "i8": "K"}
_BLOCK = 2880
_NO_DATE = "of this HDU"


def table_header(columns: Sequence[Column], widths: Mapping[str, int], rows: int, cards: Mapping[str, str]) -> fits.Header:
    """The header of the table; `widths` are the bytes of the text columns, `cards` what the provenance says of the file."""
    forms = [f"{widths[c.name]}A" if c.dtype == "U" else _TFORM[c.dtype] for c in columns]
    made = [fits.Column(c.name, form, unit=c.unit or None) for c, form in zip(columns, forms, strict=True)]
    header = fits.BinTableHDU.from_columns(made, nrows=0, name="CATALOG").header
    header["NAXIS2"] = rows
    header["RADESYS"] = ("ICRS", "ra and dec")
    for i, c in reversed(list(enumerate(columns, 1))):
        header.insert(f"TTYPE{i}", (f"TCOMM{i}", c.description), after=True)
        header.insert(f"TTYPE{i}", (f"TUCD{i}", c.ucd), after=True)
    for i, (name, value) in enumerate(sorted(cards.items()), 1):
        header[f"PROV{i}"] = f"{name}: {value}".encode("ascii", "backslashreplace").decode().replace("\n", " ")
    header["CHECKSUM"], header["DATASUM"] = ("0" * 16, _NO_DATE), ("0" * 10, _NO_DATE)  # room, so the data needn't move
    return header


class FitsTable:
    """A table of a known number of rows that is given piece by piece: `add` for each, then `close`."""

    def __init__(self, path: Path, columns: Sequence[Column], widths: Mapping[str, int], rows: int, cards: Mapping[str, str]):
        self._path, self._columns = path, columns
        self._dtype = np.dtype([(c.name, f"S{widths[c.name]}" if c.dtype == "U" else ">" + c.dtype) for c in columns])
        self._file = open(path, "wb")
        primary = fits.PrimaryHDU().header
        primary["CHECKSUM"], primary["DATASUM"] = ("0" * 16, _NO_DATE), ("0" * 10, _NO_DATE)
        self._file.write((primary.tostring() + table_header(columns, widths, rows, cards).tostring()).encode("ascii"))

    def add(self, table: pa.Table) -> None:
        """Append the rows of an Arrow table that has the columns."""
        block = np.empty(table.num_rows, self._dtype)
        for c in self._columns:
            block[c.name] = table[c.name].to_numpy().astype(self._dtype[c.name])
        self._file.write(block.tobytes())

    def close(self) -> None:
        """Fill the last block and set the checksums of both HDUs."""
        self._file.write(b"\0" * (-self._file.tell() % _BLOCK))
        self._file.close()
        with fits.open(self._path, memmap=True) as hdus:
            for hdu in hdus:
                hdu.add_checksum(when=_NO_DATE)
            headers = [(hdu.fileinfo()["hdrLoc"], hdu.header.tostring().encode("ascii")) for hdu in hdus]
        with open(self._path, "r+b") as file:  # astropy's own update mode would put the date beside the sums
            for place, header in headers:
                file.seek(place)
                file.write(header)
