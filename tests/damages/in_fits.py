"""What can happen to a FITS file: its headers, its arrays, its tables."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.table import Table, vstack

from tests.damages.damage import LONG, Damage, Harm, on_bytes

WAVELENGTHS = re.compile("wave|lam", re.IGNORECASE)
IDENTIFIERS = re.compile("(target|source|object|sobject|apogee_|specobj)?_?o?id", re.IGNORECASE)
TEXTS = {"NUL": "ab\0cd", "newline": "ab\ncd", "long": LONG, "escape": "\x1b[31mred", "latin": "é", "empty": ""}


def card(name: str, value: str) -> Harm:
    """Another value of one of the header cards of this name (of a column that isn't there: of the first), in as many bytes."""

    def change(data: bytearray, rng: np.random.Generator) -> bytes:
        there = name if f"{name:8}=".encode() in data or name == "END" else f"{name[:-1]}1"
        found = list(re.finditer(rb"%-8s= .{20}" % there.encode() if name != "END" else rb"END {77}", bytes(data)))
        at = found[rng.integers(len(found))].start()
        new = (f"{there:8}= {value:>20}" if name != "END" else f"{value:80}").encode("latin-1")
        return data[:at] + new + data[at + len(new) :]

    return on_bytes(change)


CARDS = {
    "BITPIX": ("7", "-32.5"), "NAXIS": ("-1", "999", "'two'"), "XTENSION": ("'NONE    '",), "END": ("ENT",),
    "NAXIS1": ("0", "1", "10000000", "-5", "99999999999999999999"), "PCOUNT": ("-999999", "10000000"),
    "GCOUNT": ("-7", "10000000"),
}  # fmt: skip
TABLE_CARDS = {
    "NAXIS2": ("0", "10000000", "-1"), "TFIELDS": ("-1", "999", "0"), "TTYPE1": ("'GONE    '",), "TTYPE2": ("'\xe9\xff'",),
    "TFORM1": ("'-1E'", "'99999999E'", "'Q'", "'1PA(99999999)'"), "TFORM2": ("'PE(10)'",),
}  # fmt: skip


def headers(cards: Mapping[str, tuple[str, ...]]) -> list[Damage]:
    return [Damage(f"card {name} = {value}", card(name, value), True) for name, values in cards.items() for value in values]


def rewritten(change: Callable[[fits.HDUList, np.random.Generator], fits.HDUList | None]) -> Harm:
    """A FITS file with a change, without checksums."""

    def harm(path: Path, rng: np.random.Generator) -> None:
        with fits.open(path, memmap=False) as hdus:
            for hdu in hdus:
                _ = hdu.data
                hdu.header.pop("CHECKSUM", None), hdu.header.pop("DATASUM", None)
            hdus = change(hdus, rng) or hdus
            hdus.writeto(path, overwrite=True, output_verify="silentfix")

    return harm


def arrays(hdus: Iterable[fits.hdu.base.ExtensionHDU]) -> list[np.ndarray]:
    """All arrays of floating-point numbers: images and columns."""
    found = []
    for hdu in hdus:
        if isinstance(hdu, fits.BinTableHDU):
            found += [hdu.data[name] for name in hdu.columns.names if hdu.data[name].dtype.kind == "f"]
        elif hdu.data is not None and hdu.data.dtype.kind == "f":
            found.append(hdu.data)
    return found


def filled(value: float, all_of_them: bool = False) -> Harm:
    def change(hdus: fits.HDUList, rng: np.random.Generator) -> None:
        found = arrays(hdus)
        with np.errstate(over="ignore", invalid="ignore"):
            for array in found if all_of_them else [found[rng.integers(len(found))]]:
                array[...] = value

    return rewritten(change)


def sprinkled(hdus: fits.HDUList, rng: np.random.Generator) -> None:
    """NaN, inf, huge and tiny numbers all over every array."""
    for array in arrays(hdus):
        flat = array.reshape(-1)
        at = rng.random(flat.size) < 0.3
        flat[at] = rng.choice(np.array([np.nan, np.inf, -np.inf, 3e38, -3e38, 1e-45, -1.0, 0.0], flat.dtype), at.sum())
        array[...] = flat.reshape(array.shape)


def shuffled(hdus: fits.HDUList, rng: np.random.Generator) -> None:
    for array in arrays(hdus):
        array[...] = rng.permutation(array.reshape(-1)).reshape(array.shape)


def one_nan(hdus: fits.HDUList, rng: np.random.Generator) -> None:
    found = arrays(hdus)
    array = found[rng.integers(len(found))]
    array[np.unravel_index(rng.integers(array.size), array.shape)] = np.nan


def wavelengths(of: Callable[[np.ndarray], np.ndarray], start: float, step: float) -> Harm:
    """Other wavelengths in columns, images and headers, where the start and the step are multiplied by these."""

    def change(hdus: fits.HDUList, rng: np.random.Generator) -> None:
        for hdu in hdus:
            tables = hdu.columns.names if isinstance(hdu, fits.BinTableHDU) else []
            named = [hdu.data[name] for name in tables if WAVELENGTHS.search(name)]
            for array in [hdu.data] if WAVELENGTHS.search(hdu.name) and not tables else named:
                array[...] = of(array.reshape(-1)).reshape(array.shape)
            for card, factor in {"CRVAL1": start, "COEFF0": start, "CDELT1": step, "COEFF1": step}.items():
                if card in hdu.header:
                    hdu.header[card] *= factor

    return rewritten(change)


def of_tables(change: Callable[[Table, np.random.Generator], Table], one: bool = False) -> Harm:
    """A change to every table, or to one of them."""

    def harm(hdus: fits.HDUList, rng: np.random.Generator) -> fits.HDUList:
        numbers = [i for i, hdu in enumerate(hdus) if isinstance(hdu, fits.BinTableHDU)]
        for number in [rng.choice(numbers)] if one else numbers:
            table = change(Table(hdus[number].data), rng)
            hdus[number] = fits.BinTableHDU(table, name=hdus[number].name)
        return hdus

    return rewritten(harm)


def same_ids(table: Table, rng: np.random.Generator) -> Table:
    """The second row has the identifier of the first."""
    for name in table.colnames:
        if IDENTIFIERS.fullmatch(name) and len(table) > 1:
            table[name][1] = table[name][0]
    return table


def without_a_column(table: Table, rng: np.random.Generator) -> Table:
    table.remove_column(rng.choice(table.colnames))
    return table


def retyped(hdus: fits.HDUList, rng: np.random.Generator) -> fits.HDUList:
    """One column, or one image, of another type."""
    number = int(rng.choice([i for i, hdu in enumerate(hdus) if hdu.data is not None]))
    hdu = hdus[number]
    if isinstance(hdu, fits.BinTableHDU):
        names = hdu.columns.names
        name = names[rng.integers(len(names))]
        rows = len(hdu.data)
        values = {"8A": ["what"] * rows, "L": [True] * rows, "M": np.full(rows, 1j), "3J": np.ones((rows, 3), "i4")}
        other = [fits.Column(name, code, array=array) for code, array in values.items()]
        columns = [c if c.name != name else other[rng.integers(4)] for c in hdu.columns]
        hdus[number] = fits.BinTableHDU.from_columns(columns, name=hdu.name)
    else:
        hdu.data = [hdu.data.astype("i2"), hdu.data[None], hdu.data.reshape(-1)[:1], np.zeros(0, "f4")][rng.integers(4)]
    return hdus


def without(hdus: fits.HDUList, rng: np.random.Generator) -> None:
    if len(hdus) > 1:
        hdus.pop(int(rng.integers(1, len(hdus))))
    else:
        hdus[0].data = None


def texts_of_tables(text: str) -> Harm:
    """Every text of every table, and every text in the first header, is this one."""

    def change(hdus: fits.HDUList, rng: np.random.Generator) -> fits.HDUList:
        for number, hdu in enumerate(hdus):
            if isinstance(hdu, fits.BinTableHDU):
                rows, size = len(hdu.data), max(1, len(text.encode()))
                columns = [fits.Column(c.name, f"{size}A", array=np.full(rows, text.encode())) if "A" in c.format else c
                           for c in hdu.columns]  # fmt: skip
                hdus[number] = fits.BinTableHDU.from_columns(columns, name=hdu.name)
        plain = text.isprintable() and text.isascii()
        for name in [c.keyword for c in hdus[0].header.cards if plain and isinstance(c.value, str) and c.keyword != "EXTNAME"]:
            hdus[0].header[name] = text
        return hdus

    return rewritten(change)


def no_units(hdus: fits.HDUList, rng: np.random.Generator) -> None:
    for hdu in hdus:
        for name in [c.keyword for c in hdu.header.cards if re.match("TUNIT|BUNIT|CUNIT", c.keyword)]:
            del hdu.header[name]
        for column in hdu.columns if isinstance(hdu, fits.BinTableHDU) else ():
            column.unit = None


def no_values(hdus: fits.HDUList, rng: np.random.Generator) -> None:
    """Cards without a value."""
    for hdu in hdus:
        for name in [c.keyword for c in hdu.header.cards]:
            if name.strip() and not re.match("SIMPLE|XTENSION|BITPIX|NAXIS|[PG]COUNT|EXT|T[A-Z]+|COMMENT|HISTORY", name):
                hdu.header[name] = fits.card.Undefined()


ARRAYS = [
    *(Damage(f"one {value}", filled(value), True) for value in (np.nan, np.inf, -np.inf, 0.0, -1.0, 1e300)),
    *(Damage(f"all {value}", filled(value, True), True) for value in (np.nan, 3e38, 1e-45)),
    Damage("sprinkled 1", rewritten(sprinkled), True), Damage("sprinkled 2", rewritten(sprinkled), True),
    Damage("shuffled", rewritten(shuffled), True),
    *(Damage(f"retyped {i}", rewritten(retyped), True) for i in (1, 2, 3)),
    *(Damage(f"without an HDU {i}", rewritten(without), True) for i in (1, 2)),
    Damage("one NaN", rewritten(one_nan), True),
    Damage("unsorted wavelengths", wavelengths(lambda w: np.roll(w, 7), 1, -1), True),
    Damage("repeated wavelengths", wavelengths(lambda w: np.repeat(w[::2], 2)[: w.size], 1, 0), True),
    Damage("negative wavelengths", wavelengths(lambda w: -w, -1, 1), True),
    Damage("no values", rewritten(no_values), True), Damage("no units", rewritten(no_units), True),
]  # fmt: skip
TEXT_CELLS = [Damage(f"texts {name}", texts_of_tables(text), True) for name, text in TEXTS.items()]
IMAGES = [*(d for d in headers(CARDS) if not re.search("COUNT|XTENSION", d.name)), *ARRAYS]
ROWS = [
    Damage("same ids", of_tables(same_ids), True),
    Damage("rows twice", of_tables(lambda table, rng: vstack([table, table])), True),
    *(Damage(f"without a column {i}", of_tables(without_a_column, one=True), True) for i in (1, 2)),
]  # fmt: skip
TABLES = [*headers(CARDS), *headers(TABLE_CARDS), *ARRAYS, *TEXT_CELLS, *ROWS]
