"""What can happen to tables of columns: HDF5 and Parquet."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.damages.damage import LONG, Damage, Harm
from tests.damages.in_fits import IDENTIFIERS

MEASURED = re.compile("spectrum|coeff")


def within(change: Callable[[h5py.File, str, np.random.Generator], object]) -> Harm:
    """A change to one data set of an HDF5 file."""

    def harm(path: Path, rng: np.random.Generator) -> None:
        with h5py.File(path, "a") as file:
            names = [n for n in sorted(file) if not re.search("lsf|norm|pseudo|healpix", n, re.IGNORECASE)]
            change(file, names[rng.integers(len(names))], rng)

    return harm


def replaced(make: Callable[[np.ndarray, np.random.Generator], object], **options: object) -> Harm:
    def change(file: h5py.File, name: str, rng: np.random.Generator) -> None:
        values = file[name][()]
        del file[name]
        file.create_dataset(name, data=make(values, rng), **options)

    return within(change)


def everywhere(value: float) -> Harm:
    def harm(path: Path, rng: np.random.Generator) -> None:
        with h5py.File(path, "a") as file:
            for name in file:
                if file[name].dtype.kind == "f":
                    file[name][...] = value

    return harm


def of_columns(pattern: re.Pattern[str], change: Callable[[np.ndarray], None]) -> Harm:
    """A change to every column whose name matches."""

    def harm(path: Path, rng: np.random.Generator) -> None:
        with h5py.File(path, "a") as file:
            for name in filter(pattern.fullmatch, sorted(file)):
                values = file[name][()]
                change(values)
                file[name][...] = values

    return harm


def first_row(of: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], None]:
    def change(values: np.ndarray) -> None:
        values[0] = of(values[0])

    return change


def same_ids(values: np.ndarray) -> None:
    """The second row has the identifier of the first."""
    values[1] = values[0]


def one_nan(values: np.ndarray) -> None:
    values[0, values.shape[1] // 2] = np.nan


def declared(path: Path, rng: np.random.Generator) -> None:
    """Ten million rows that were never written."""
    with h5py.File(path, "a") as file:
        for name in sorted(file):
            kind, shape = file[name].dtype, file[name].shape
            del file[name]
            file.create_dataset(name, (10_000_000, *shape[1:]), kind, chunks=(256, *shape[1:]))


def linked(link: Callable[[str, Path], object]) -> Harm:
    def harm(path: Path, rng: np.random.Generator) -> None:
        def change(file: h5py.File, name: str, rng: np.random.Generator) -> None:
            del file[name]
            file[name] = link(name, path)

        within(change)(path, rng)

    return harm


WAVELENGTHS, FLUXES = re.compile("spectrum_lambda"), re.compile("spectrum_flux|coeff")
HDF5 = [
    Damage("same ids", of_columns(IDENTIFIERS, same_ids), by_row=True),
    Damage("one NaN", of_columns(FLUXES, one_nan), True, by_row=True),
    Damage("unsorted wavelengths", of_columns(WAVELENGTHS, first_row(lambda w: np.roll(w, 7))), True, by_row=True),
    Damage("repeated wavelengths", of_columns(WAVELENGTHS, first_row(lambda w: np.repeat(w[::2], 2)[: w.size])), True,
           by_row=True),
    Damage("negative wavelengths", of_columns(WAVELENGTHS, first_row(np.negative)), True, by_row=True),
    *(Damage(f"lost {i}", within(lambda file, name, rng: file.__delitem__(name)), True) for i in (1, 2, 3)),
    *(Damage(f"text {i}", replaced(lambda v, rng: np.full(v.shape, b"what")), True) for i in (1, 2)),
    *(Damage(f"integers {i}", replaced(lambda v, rng: np.arange(v.size).reshape(v.shape).astype("i2")), True) for i in (1, 2)),
    Damage("complex", replaced(lambda v, rng: np.full(v.shape, 1j)), True),
    Damage("record", replaced(lambda v, rng: np.zeros(v.shape, [("a", "f4"), ("b", "i4")])), True),
    Damage("floats", replaced(lambda v, rng: np.full(v.shape, 1.5)), True),
    Damage("scalar", replaced(lambda v, rng: 1.0), True),
    Damage("no rows", replaced(lambda v, rng: v[:0]), True),
    Damage("one row", replaced(lambda v, rng: v[:1]), True),
    Damage("more axes", replaced(lambda v, rng: np.stack([v, v], -1)), True),
    Damage("long text", replaced(lambda v, rng: np.full(v.shape[:1], LONG.encode())), True),
    Damage("NUL text", replaced(lambda v, rng: np.full(v.shape[:1], b"a\0b\n")), True),
    Damage("variable text", replaced(lambda v, rng: np.full(v.shape[:1], "a\nb", object), dtype=h5py.string_dtype()), True),
    Damage("group", within(lambda file, name, rng: (file.__delitem__(name), file.create_group(name))), True),
    Damage("dangling", linked(lambda name, path: h5py.SoftLink("/nowhere")), True),
    Damage("to itself", linked(lambda name, path: h5py.SoftLink(f"/{name}")), True),
    Damage("outside", linked(lambda name, path: h5py.ExternalLink("/dev/zero", "/x")), True),
    Damage("NaN", everywhere(np.nan), True), Damage("inf", everywhere(np.inf), True), Damage("huge", everywhere(3e38), True),
    Damage("negative", everywhere(-1.0), True), Damage("zero", everywhere(0.0), True), Damage("declared", declared),
]  # fmt: skip


def spectra(path: Path) -> dict[str, pa.ChunkedArray | np.ndarray]:
    """What a file of columns, of either kind, has of spectra."""
    if path.suffix == ".parquet":
        table = pq.read_table(path, partitioning=None)
        return {name: table[name] for name in table.column_names if MEASURED.match(name)}
    with h5py.File(path) as file:
        return {name: file[name][()] for name in file if MEASURED.match(name)}


def same_spectra(path: Path, other: Path) -> bool:
    """Whether these files have the same spectra; False if they have none, or one can't be read."""
    try:
        a, b = spectra(path), spectra(other)
        same = (v.equals(b[n]) if isinstance(v, pa.ChunkedArray) else np.array_equal(v, b[n]) for n, v in a.items())
        return bool(a) and a.keys() == b.keys() and all(same)
    except (OSError, LookupError, ValueError, TypeError, AttributeError):
        return False


def columnar(change: Callable[[pa.Table, int, np.random.Generator], pa.Table]) -> Harm:
    """A change to one column of a Parquet file."""

    def harm(path: Path, rng: np.random.Generator) -> None:
        table = pq.read_table(path, partitioning=None)
        numbers = [i for i, n in enumerate(table.column_names) if not re.search("lsf|norm|pseudo|healpix", n, re.IGNORECASE)]
        pq.write_table(change(table, int(rng.choice(numbers)), rng), path)

    return harm


def column(make: Callable[[int], object]) -> Harm:
    return columnar(lambda t, i, rng: t.set_column(i, t.column_names[i], [make(t.num_rows)]))


def numbers_replaced(value: float) -> Harm:
    def change(table: pa.Table, i: int, rng: np.random.Generator) -> pa.Table:
        for k, one in enumerate(table.schema):
            if pa.types.is_floating(one.type):
                table = table.set_column(k, one, [pa.array(np.full(table.num_rows, value), one.type)])
        return table

    return columnar(change)


def varint(number: int) -> bytes:
    """As Thrift writes a number that is not negative."""
    out = b""
    number *= 2
    while number > 127:
        out, number = out + bytes([number & 127 | 128]), number >> 7
    return out + bytes([number])


def overstated(path: Path, rng: np.random.Generator) -> None:
    """A row group that declares ten million rows."""
    whole, rows = path.read_bytes(), pq.read_metadata(path).row_group(0).num_rows
    length = struct.unpack("<I", whole[-8:-4])[0]
    body, footer = whole[: -8 - length], whole[-8 - length : -8]
    for found in re.finditer(re.escape(b"\x16" + varint(rows)), footer):
        new = footer[: found.start() + 1] + varint(10_000_000) + footer[found.end() :]
        path.write_bytes(body + new + struct.pack("<I", len(new)) + b"PAR1")
        try:
            if pq.read_metadata(path).row_group(0).num_rows == 10_000_000:
                return
        except OSError:
            continue


def ids_repeated(table: pa.Table, i: int, rng: np.random.Generator) -> pa.Table:
    rows = [0, 0, *range(2, table.num_rows)]
    for k, name in enumerate(table.column_names):
        if IDENTIFIERS.fullmatch(name):
            table = table.set_column(k, name, table.column(k).take(rows))
    return table


PARQUET = [
    Damage("same ids", columnar(ids_repeated), True),
    Damage("overstated", overstated),
    *(Damage(f"lost {i}", columnar(lambda t, i, rng: t.remove_column(i)), True) for i in (1, 2)),
    *(Damage(f"nulls {i}", column(lambda n: pa.nulls(n)), True) for i in (1, 2)),
    *(Damage(f"text {i}", column(lambda n: pa.array(["what"] * n)), True) for i in (1, 2)),
    Damage("long text", column(lambda n: pa.array([LONG] * n)), True),
    Damage("NUL text", column(lambda n: pa.array(["a\0b\n"] * n)), True),
    Damage("bytes", column(lambda n: pa.array([b"\xff\xfe"] * n)), True),
    Damage("lists of lists", column(lambda n: pa.array([[[1.0]]] * n)), True),
    Damage("empty lists", column(lambda n: pa.array([[]] * n, pa.list_(pa.float32()))), True),
    Damage("structs", column(lambda n: pa.array([{"flux": 1}] * n)), True),
    Damage("booleans", column(lambda n: pa.array([True] * n)), True),
    Damage("no rows", columnar(lambda t, i, rng: t.slice(0, 0))),
    Damage("rows twice", columnar(lambda t, i, rng: pa.concat_tables([t, t])), True),
    Damage("NaN", numbers_replaced(np.nan), True), Damage("inf", numbers_replaced(np.inf), True),
    Damage("huge", numbers_replaced(3e38), True), Damage("negative", numbers_replaced(-1.0), True),
]  # fmt: skip
