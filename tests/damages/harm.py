"""What can happen to a survey file: functions that damage the file at a path, driven by a generator of random numbers."""

from __future__ import annotations

import gzip
import os
import re
import socket
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from astropy.io import fits

from tests.damages.copies import Kind

Harm = Callable[[Path, np.random.Generator], None]
LONG = "x" * 10_000
TEXTS = {"NUL": "ab\0cd", "newline": "ab\ncd", "long": LONG, "escape": "\x1b[31mred", "latin": "é", "empty": ""}


@dataclass(frozen=True)
class Damage:
    """One damage of a file. `loose`: what still comes out of the file may differ from what was in it, for without a checksum
    nobody can tell; otherwise it may be absent, but not different. `by_line`: of a table of text, one line is damaged."""

    name: str
    harm: Harm = field(repr=False)
    loose: bool = False
    by_line: bool = False


def on_bytes(change: Callable[[bytearray, np.random.Generator], bytes | bytearray]) -> Harm:
    return lambda path, rng: path.write_bytes(bytes(change(bytearray(path.read_bytes()), rng))) and None


def truncate(data: bytearray, rng: np.random.Generator) -> bytearray:
    return data[: rng.integers(1, len(data) - 1)]


def flip(low: float, high: float) -> Harm:
    """Another byte at one place between these shares of the file."""

    def change(data: bytearray, rng: np.random.Generator) -> bytearray:
        data[int(len(data) * rng.uniform(low, high))] ^= int(rng.integers(1, 256))
        return data

    return on_bytes(change)


def zeroed(data: bytearray, rng: np.random.Generator) -> bytearray:
    """A lost block of the disk."""
    at, length = int(rng.integers(0, len(data))), max(512, len(data) // 8)
    data[at : at + length] = bytes(len(data[at : at + length]))
    return data


TRUNCATE = on_bytes(truncate)
BYTES = [
    *(Damage(f"truncated {i}", TRUNCATE) for i in (1, 2)),
    Damage("cut by a byte", on_bytes(lambda data, rng: data[:-1])),
    Damage("flip head", flip(0, 0.1), True),
    Damage("flip middle", flip(0.3, 0.9), True, True),
    Damage("flip end", flip(0.9, 1), True, True),
    Damage("flip anywhere", flip(0, 1), True),
    Damage("zeroed", on_bytes(zeroed), True),
    Damage("empty", on_bytes(lambda data, rng: b"")),
    Damage("one byte", on_bytes(lambda data, rng: data[:1])),
    Damage("noise", on_bytes(lambda data, rng: rng.bytes(len(data)))),
    Damage("zeros", on_bytes(lambda data, rng: bytes(len(data)))),
    Damage("noise after", on_bytes(lambda data, rng: data + rng.bytes(3000)), True),
    Damage("twice", on_bytes(lambda data, rng: data + data), True),
]  # fmt: skip


def moved(change: Callable[[Path], object]) -> Harm:
    """The file becomes something else."""

    def harm(path: Path, rng: np.random.Generator) -> None:
        path.rename(path.with_name("kept"))
        change(path)
        if path.with_name("kept").exists() and not path.is_symlink():
            path.with_name("kept").unlink()

    return harm


def bound(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        here = os.open(path.parent, os.O_RDONLY)
        one.bind(f"/proc/self/fd/{here}/{path.name}")  # the path itself may be too long for a socket
        os.close(here)


def named(prefix: str) -> Harm:
    return lambda path, rng: path.rename(path.with_name(prefix + path.name)) and None


PATHS = [
    Damage("directory", moved(lambda path: path.mkdir())),
    Damage("directory with it", moved(lambda path: (path.mkdir(), path.with_name("kept").rename(path / path.name)))),
    Damage("pipe", moved(os.mkfifo)),
    Damage("socket", moved(bound)),
    Damage("dangling link", moved(lambda path: path.symlink_to(path.with_name("nowhere")))),
    Damage("link to itself", moved(lambda path: path.symlink_to(path.name))),
    Damage("link to the folder", moved(lambda path: path.symlink_to(path.parent, True))),
    Damage("link to the root", moved(lambda path: path.symlink_to("/dev", True))),
    Damage("link to a device", moved(lambda path: path.symlink_to("/dev/zero"))),
    Damage("not readable", lambda path, rng: path.chmod(0)),
    Damage("spaces", named("a b "), True),
    Damage("quotes", named("a'b\"c`$(x)"), True),
    Damage("newline", named("a\nb\t"), True),
    Damage("not UTF-8", lambda path, rng: os.rename(path, os.path.join(os.fsencode(path.parent), b"\xff\xe9" + os.fsencode(path.name)))),
    Damage("long name", lambda path, rng: path.rename(path.with_name("n" * (250 - len(path.name)) + path.name)) and None),
]  # fmt: skip


def card(name: str, value: str) -> Harm:
    """Another value of one of the header cards of this name (of a column that isn't there: of the first), in as many bytes."""

    def change(data: bytearray, rng: np.random.Generator) -> bytes:
        there = name if f"{name:8}=".encode() in data or name == "END" else f"{name[:-1]}1"
        found = list(re.finditer(rb"%-8s= .{20}" % there.encode() if name != "END" else rb"END {77}", bytes(data)))
        at = found[rng.integers(len(found))].start()
        new = (f"{there:8}= {value:>20}" if name != "END" else f"{value:80}").encode("latin-1")
        return data[:at] + new + data[at + len(new) :]

    return on_bytes(change)


CARDS = [("BITPIX", "7"), ("BITPIX", "-32.5"), ("NAXIS", "-1"), ("NAXIS", "999"), ("NAXIS", "'two'"), ("NAXIS1", "0"),
         ("NAXIS1", "1"), ("NAXIS1", "10000000"), ("NAXIS1", "-5"), ("NAXIS1", "99999999999999999999"), ("XTENSION", "'NONE    '"),
         ("PCOUNT", "-999999"), ("PCOUNT", "10000000"), ("GCOUNT", "-7"), ("GCOUNT", "10000000"), ("END", "ENT")]  # fmt: skip
TABLE_CARDS = [("NAXIS2", "0"), ("NAXIS2", "10000000"), ("NAXIS2", "-1"), ("TFIELDS", "-1"), ("TFIELDS", "999"), ("TFIELDS", "0"),
               ("TFORM1", "'-1E'"), ("TFORM1", "'99999999E'"), ("TFORM1", "'Q'"), ("TFORM2", "'PE(10)'"), ("TTYPE1", "'GONE    '"),
               ("TTYPE2", "'\xe9\xff'"), ("TFORM1", "'1PA(99999999)'")]  # fmt: skip
HEADERS = {f"{name} = {value}": Damage(f"card {name} = {value}", card(name, value), True) for name, value in CARDS + TABLE_CARDS}


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
        with np.errstate(over="ignore"):
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


def retyped(hdus: fits.HDUList, rng: np.random.Generator) -> fits.HDUList:
    """One column, or one image, of another type."""
    number = int(rng.choice([i for i, hdu in enumerate(hdus) if hdu.data is not None]))
    hdu = hdus[number]
    if isinstance(hdu, fits.BinTableHDU):
        names = hdu.columns.names
        name = names[rng.integers(len(names))]
        rows = len(hdu.data)
        other = [fits.Column(name, "8A", array=["what"] * rows), fits.Column(name, "L", array=[True] * rows),
                 fits.Column(name, "M", array=np.full(rows, 1j)), fits.Column(name, "3J", array=np.ones((rows, 3), "i4"))]  # fmt: skip
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


def no_values(hdus: fits.HDUList, rng: np.random.Generator) -> None:
    """Cards without a value."""
    for hdu in hdus:
        for name in [c.keyword for c in hdu.header.cards]:
            if name.strip() and not re.match("SIMPLE|XTENSION|BITPIX|NAXIS|[PG]COUNT|EXTEND|EXTNAME|T[A-Z]+|COMMENT|HISTORY", name):
                hdu.header[name] = fits.card.Undefined()


ARRAYS = [
    Damage("all NaN", filled(np.nan, True), True), Damage("one NaN", filled(np.nan), True), Damage("one inf", filled(np.inf), True),
    Damage("one -inf", filled(-np.inf), True), Damage("one zero", filled(0.0), True), Damage("one negative", filled(-1.0), True),
    Damage("all huge", filled(3e38, True), True), Damage("one beyond", filled(1e300), True), Damage("all tiny", filled(1e-45, True), True),
    Damage("sprinkled 1", rewritten(sprinkled), True), Damage("sprinkled 2", rewritten(sprinkled), True),
    Damage("shuffled", rewritten(shuffled), True),
    *(Damage(f"retyped {i}", rewritten(retyped), True) for i in (1, 2, 3)),
    *(Damage(f"without an HDU {i}", rewritten(without), True) for i in (1, 2)),
    Damage("no values", rewritten(no_values), True),
]  # fmt: skip
TEXTS_OF_TABLES = [Damage(f"texts {name}", texts_of_tables(text), True) for name, text in TEXTS.items()]


def gzip_of_gzip(path: Path, rng: np.random.Generator) -> None:
    path.write_bytes(gzip.compress(path.read_bytes(), mtime=0))


CELLS = ["nan", "inf", "-inf", "1e999", "", "abc", "-1", "0", "\0", "9" * 400, LONG, '"', "[", "\udcff", "1e308", "1;2"]


def lined(change: Callable[[list[str], np.random.Generator], list[str]]) -> Harm:
    def harm(path: Path, rng: np.random.Generator) -> None:
        lines = path.read_text("utf-8", "surrogateescape").splitlines()
        path.write_text("\n".join(change(lines, rng)) + "\n", "utf-8", "surrogateescape")

    return harm


def cell(value: str, header: bool = False) -> Harm:
    """One cell of one row, or of the header, is this one."""

    def change(lines: list[str], rng: np.random.Generator) -> list[str]:
        heads = [i for i, line in enumerate(lines) if line.strip() and not line.startswith("#")]
        row = heads[0] if header else int(rng.choice(heads[1:]))
        parts = re.split(r'("[^"]*"|[^,\s]+)', lines[row])
        parts[2 * int(rng.integers(len(parts) // 2)) + 1] = value
        return [*lines[:row], "".join(parts), *lines[row + 1 :]]

    return lined(change)


def scrambled(lines: list[str], rng: np.random.Generator) -> list[str]:
    """Rows in another order."""
    start = next(i for i, line in enumerate(lines) if line.strip() and not line.startswith("#")) + 1
    return [*lines[:start], *rng.permutation(np.array(lines[start:], object)).tolist()]


LINES = [
    *(Damage(f"cell {value[:5]!r}", cell(value), True, "\0" not in value and '"' not in value) for value in CELLS),
    *(Damage(f"header {value[:5]!r}", cell(value, True), True) for value in ("", "abc", "\0", LONG, '"')),
    Damage("scrambled", lined(scrambled), True),
    Damage("rows twice", lined(lambda lines, rng: [line for line in lines for _ in (0, 1 if line[:1].isdigit() else 0)][: 2 * len(lines)]), True),
    Damage("UTF-16", on_bytes(lambda data, rng: bytes(data).decode("latin-1").encode("utf-16"))),
    Damage("CRLF", on_bytes(lambda data, rng: bytes(data).replace(b"\n", b"\r\n")), True),
    Damage("CR", on_bytes(lambda data, rng: bytes(data).replace(b"\n", b"\r")), True),
    Damage("no newlines", on_bytes(lambda data, rng: bytes(data).replace(b"\n", b" ")), True),
    Damage("long line", on_bytes(lambda data, rng: bytes(data) + b"7" * 5_000_000), True),
    Damage("NULs", on_bytes(lambda data, rng: bytes(data) + bytes(5000)), True),
    Damage("comments", on_bytes(lambda data, rng: b"# x\n" * 500 + bytes(data)), True),
    Damage("a quote", on_bytes(lambda data, rng: data[: len(data) // 2] + b'"' + data[len(data) // 2 :]), True),
]  # fmt: skip


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


HDF5 = [
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
        for k, field in enumerate(table.schema):
            if pa.types.is_floating(field.type):
                table = table.set_column(k, field, [pa.array(np.full(table.num_rows, value), field.type)])
        return table

    return columnar(change)


PARQUET = [
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


def marked_up(pattern: bytes, new: bytes) -> Harm:
    return on_bytes(lambda data, rng: re.sub(pattern, new, bytes(data), count=int(rng.integers(1, 4))))


VOTABLE = [
    Damage("type", marked_up(rb'datatype="\w+"', b'datatype="short"'), True), Damage("no type", marked_up(rb'datatype="\w+"', b""), True),
    Damage("size", marked_up(rb'arraysize="[^"]*"', b'arraysize="9999999"'), True), Damage("name", marked_up(rb'name="\w+"', b'name="x"'), True),
    Damage("rows", marked_up(rb"<TABLE", b'<TABLE nrows="2000000000"'), True),
    Damage("no end", marked_up(rb"</TABLE>", b""), True), Damage("entity", marked_up(rb"<RESOURCE", b"&x;<RESOURCE"), True),
    Damage("nested", marked_up(rb"<RESOURCE", b"<RESOURCE>" * 2000 + b"<RESOURCE"), True), Damage("NUL", marked_up(rb"<FIELD", b"\0<FIELD"), True),
    Damage("other XML", on_bytes(lambda data, rng: b"<?xml version='1.0'?><html><body>404 Not Found</body></html>")),
    Damage("cells", marked_up(rb"<TD>[^<]*</TD>|[A-Za-z0-9+/]{20}\n", b"<TD>what</TD>"), True),
]  # fmt: skip


def tar_header(at: int, value: bytes) -> Harm:
    """Another field in the header of the second member, with a right checksum."""

    def change(data: bytearray, rng: np.random.Generator) -> bytearray:
        head = data[1024:1536]
        head[at : at + len(value)] = value
        head[148:156] = b" " * 8
        head[148:156] = b"%06o\0 " % sum(head)
        data[1024:1536] = head
        return data

    return on_bytes(change)


TAR = [
    Damage("negative size", tar_header(124, b"\xff" * 4 + struct.pack(">q", -512)), True),
    Damage("very negative", tar_header(124, b"\xff" * 4 + struct.pack(">q", -(2**40))), True),
    Damage("huge size", tar_header(124, b"77777777777\0")), Damage("enormous", tar_header(124, b"\x80" + b"\x7f" * 11)),
    Damage("link", tar_header(156, b"2"), True), Damage("pipe", tar_header(156, b"6"), True), Damage("extended", tar_header(156, b"x"), True),
    Damage("sparse", tar_header(156, b"S"), True), Damage("name", tar_header(0, b"a\nb\xff.dat\0"), True),
    Damage("no type", tar_header(156, b"?"), True), Damage("above", tar_header(0, b"../../../x.dat\0"), True),
]  # fmt: skip

PACKED = [Damage("packed again", gzip_of_gzip)]
HDUS = [HEADERS[f"{name} = {value}"] for name, value in CARDS] + ARRAYS
OWN = {"images": [d for d in HDUS if not re.search("PCOUNT|GCOUNT|XTENSION", d.name)], "text": LINES, "hdf5": HDF5,
       "fits": HDUS + [HEADERS[f"{name} = {value}"] for name, value in TABLE_CARDS] + TEXTS_OF_TABLES,
       "parquet": PARQUET, "votable": VOTABLE, "tar": TAR, "packed": PACKED}  # fmt: skip
# Layouts whose files become something else too, one for each reader.
MOVED = {"sdss_lite", "desi_coadd", "apStar", "galah_dr3", "lamost_image", "gaia_csv", "patrol_1", "asas", "eros", "many_csv",
         "generic_table", "hdf5_sdss", "hats_sdss"}  # fmt: skip


def damages(name: str, kind: Kind) -> list[Damage]:
    """Everything that is done to files of one layout."""
    own = [] if kind.form == "tar" and kind.checked else OWN[kind.form]
    paths = PATHS if kind.survey != "galah" else [replace(d, loose=True) for d in PATHS]  # with one of its four files gone
    every = [*BYTES, *own, *(paths if name in MOVED else ())]
    if kind.checked:
        return [replace(d, loose=d.name in ("noise after", "twice")) for d in every]
    return [replace(d, loose=d.loose or (kind.form == "text" and d.harm is TRUNCATE)) for d in every]
