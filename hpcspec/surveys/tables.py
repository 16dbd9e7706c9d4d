"""Text tables of light curves: found, unpacked, split into a head and columns, and turned into numbers a column at a time."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pv

from hpcspec.errors import UserError
from hpcspec.surveys.base import FAULTS, UNPACK, files_below, plain
from hpcspec.surveys.observation import BadObject

Column: TypeAlias = "pa.Array | pa.ChunkedArray"
Wanted = Callable[[Sequence[str]], bool]

NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
FIRST = re.compile(rf"{NUMBER}|[+-]?(?:nan|inf)", re.IGNORECASE)
INTEGER = re.compile(r"-?(?:0|[1-9]\d{0,17})")
EXACT = {16: 2.0**11, 32: 2.0**24, 64: 2.0**53}  # from here on floats of so many bits have lost digits
ROUNDED = r"^-?\d\.\d+[eE]\+?(1[6-9]|[2-9]\d)$"  # and such a float as text
LOST_DIGITS = "identifiers are stored as floats and have lost digits"
HEAD_LINES = 200
BLOCK = 1 << 24  # bytes of a text table read at once; a row must fit in


@dataclass(frozen=True)
class Head:
    """What stands before the rows: the lines above the header without their "#", the column names, and the delimiter
    ("" for any white space)."""

    comments: tuple[str, ...]
    columns: tuple[str, ...]
    delimiter: str


def files(folder: Path, names: re.Pattern[str], what: str) -> list[Path]:
    """All files below `folder` whose names match, sorted.

    Raises UserError if the folder is missing or holds none.
    """
    if not os.path.isdir(folder):
        raise UserError(f"input folder {folder} does not exist: give the folder that holds {what} with --input")
    found = files_below(folder, names)
    if not found:
        raise UserError(f"input folder {folder} holds no {what}: give the folder that holds them with --input")
    return found


def stem(path: Path | str) -> str:
    """The file's name without folder, compression and format."""
    return re.sub(r"(?i)(\.(csv|tsv|txt|dat|ecsv|fits?|parquet|pq|vot|votable|xml))?(\.(gz|bz2))?$", "", Path(path).name)


@contextmanager
def unpacked(path: Path) -> Iterator[BinaryIO]:
    """The bytes of a file, decompressed as they are read. Raises BadObject if it is empty."""
    if path.stat().st_size == 0:
        raise BadObject("empty file")
    with path.open("rb") as file:
        unpack = next((reader for magic, reader in UNPACK.items() if file.peek().startswith(magic)), None)
        if unpack is None:
            yield file
        else:
            with unpack(file) as inner:
                yield inner


def head(file: BinaryIO, wanted: Wanted, what: str, headless: Sequence[str] = ()) -> Head:
    """Read up to the first line, commented or not, whose lower-case names are `wanted`; the file then stands at the first
    row. With `headless`, a first line that begins with a number is a row, with columns of these names.

    Raises BadObject "not `what`" if there is no such line.
    """
    comments: list[str] = []
    start = file.tell()
    for _ in range(HEAD_LINES):
        line = file.readline(BLOCK)
        if not line:
            break
        text = line.decode("utf-8", "replace").removeprefix("\ufeff").strip()
        bare = text.lstrip("#").strip()
        delimiter = next((d for d in ",\t;|" if d in bare), "")
        names = _fields(bare, delimiter)
        if bare and wanted([n.lower() for n in names]):
            twice = {n for n in names if names.count(n) > 1}
            if twice:
                raise BadObject(f"not {what}: several columns called {', '.join(sorted(twice))}")
            return Head(tuple(comments), names, delimiter)
        if headless and FIRST.match(bare) and not text.startswith("#"):
            if len(names) < len(headless):
                raise BadObject(f"not {what}: rows of {len(names)} fields, not of {len(headless)}")
            file.seek(start)
            extra = tuple(f"column {i + 1}" for i in range(len(headless), len(names)))
            return Head(tuple(comments), tuple(headless) + extra, delimiter)
        if bare and not text.startswith("#"):
            headless = ()  # a header of something else
        comments.append(text.removeprefix("#").removeprefix(" "))
        start = file.tell()
    raise BadObject(f"not {what}: no line has the names of its columns")


def _fields(line: str, delimiter: str) -> tuple[str, ...]:
    """The fields of a line, quotes taken off; none where it can't be split (binary data, a field beyond csv's limit)."""
    if not delimiter:
        return tuple(line.split())
    try:
        return tuple(field.strip() for field in next(csv.reader([line], delimiter=delimiter), ()))
    except csv.Error:
        return ()


class _UpToDamage(io.RawIOBase):
    """The whole lines of a file, as UTF-8, up to its end or to the first fault in reading it, which is then kept."""

    fault: Exception | None = None

    def __init__(self, file: BinaryIO):
        self._file, self._lines, self._rest, self._ended = file, memoryview(b""), b"", False

    def readable(self) -> bool:
        return True

    def readinto(self, out: Any) -> int:
        while not self._lines and not self._ended:
            self._fill()
        count = min(len(out), len(self._lines))
        out[:count] = self._lines[:count]
        self._lines = self._lines[count:]
        return count

    def _fill(self) -> None:
        try:
            block = self._file.read1(1 << 20)  # type: ignore[attr-defined]
        except FAULTS as error:
            self.fault, self._ended = error, True
            return
        self._ended = not block
        lines, newline, rest = (self._rest + block).rpartition(b"\n") if block else (self._rest, b"", b"")
        self._lines, self._rest = memoryview(_utf8(lines + newline)), rest


def _utf8(data: bytes) -> bytes:
    """The data, with a mark in the place of what is not UTF-8."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return data.decode("utf-8", "replace").encode()
    return data


def batches(file: BinaryIO, columns: Sequence[str], delimiter: str, skipped: list[str]) -> Iterator[pa.RecordBatch]:
    """The rows as batches of text columns, without comments before the first; a row with another number of fields is left out
    and put into `skipped`.

    Raises any of FAULTS for damage, after the sound batches before it.
    """
    start = file.tell()
    while file.readline(BLOCK).lstrip().startswith(b"#"):
        start = file.tell()
    file.seek(start)
    sound = _UpToDamage(file)
    rows: BinaryIO = io.BufferedReader(sound, 1 << 20)
    if not delimiter:
        rows, delimiter = io.BytesIO(re.sub(rb"[ \t]+", b",", re.sub(rb"(?m)^[ \t]+|[ \t\r]+$", b"", rows.read()))), ","

    def skip(row: pv.InvalidRow) -> str:
        skipped.append(row.text)
        return "skip"

    try:
        with pv.open_csv(
            rows, pv.ReadOptions(use_threads=False, block_size=BLOCK, column_names=list(columns)),
            pv.ParseOptions(delimiter=delimiter, invalid_row_handler=skip),
            pv.ConvertOptions(column_types=dict.fromkeys(columns, pa.string())),
        ) as reader:  # fmt: skip
            yield from reader
    except pa.ArrowInvalid as error:
        if "Empty CSV" not in str(error):
            raise
    if sound.fault:
        raise sound.fault


def whole(file: BinaryIO, wanted: Wanted, what: str, headless: Sequence[str] = ()) -> tuple[Head, pa.Table, list[str]]:
    """A small table: its head, its columns as text, and the rows with another number of fields."""
    first, skipped = head(file, wanted, what, headless), list[str]()
    schema = pa.schema([(name, pa.string()) for name in first.columns])
    return first, pa.Table.from_batches(list(batches(file, first.columns, first.delimiter, skipped)), schema), skipped


def numbers(column: Column) -> np.ndarray:
    """A column of text or numbers as float64 (n,), NaN where there is no number. Raises BadObject for another type."""
    try:
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            text = pc.utf8_trim_whitespace(column)
            try:
                column = pc.cast(text, pa.float64())
            except pa.ArrowInvalid:
                number = pc.match_substring_regex(text, f"^{NUMBER}$")
                column = pc.cast(pc.replace_substring_regex(pc.if_else(number, text, None), r"^\+", ""), pa.float64())
        return np.asarray(pc.cast(column, pa.float64(), safe=False), np.float64)
    except pa.ArrowNotImplementedError as error:
        raise BadObject(f"a column of {column.type} where numbers belong") from error


def texts(column: Column) -> pa.Array:
    """A column as trimmed text; integers in full, whole floats as integers, bytes decoded, null where there is nothing.

    Raises BadObject for a type that has no text, and for floats so large that not every integer is among them.
    """
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    try:
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        if pa.types.is_floating(column.type):
            column = pc.if_else(pc.is_nan(column), None, column)
            if pc.any(pc.greater_equal(pc.abs(column), EXACT[column.type.bit_width])).as_py():
                raise BadObject(LOST_DIGITS)
            whole_numbers = pc.all(pc.equal(column, pc.floor(column)), min_count=0).as_py()
            column = pc.cast(column, pa.int64()) if whole_numbers else column
        column = pc.utf8_trim_whitespace(pc.cast(column, pa.string()))
        if pc.any(pc.match_substring_regex(column, ROUNDED)).as_py():
            raise BadObject(LOST_DIGITS)
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid) as error:
        raise BadObject(f"a column of {column.type} where names belong: {error}") from error
    return pc.if_else(pc.equal(column, ""), None, column)


def runs(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How rows (n,) are put together by key: the rows in the order of their keys, else as they stand, and the bounds
    (k + 1,) of the k runs of one key in that order."""
    order = np.argsort(keys, kind="stable")
    return order, np.concatenate([[0], np.flatnonzero(np.diff(keys[order])) + 1, [len(keys)]]) if len(keys) else np.zeros(1, int)


def value(cell: Any) -> str | int | float:
    """A cell as the int or float it writes, else as text."""
    text = plain(cell)
    if not isinstance(text, str):
        return text
    if INTEGER.fullmatch(text):
        return int(text)
    return float(text) if re.fullmatch(NUMBER, text) and not text.lstrip("+-").isdigit() else text


def code(cell: Any) -> str:
    """A class or an identifier as text; a code that was written as a whole float without its ".0"."""
    return re.sub(r"^(\d+)\.0+$", r"\1", str(plain(cell)))


def is_headed(path: Path, wanted: Wanted) -> bool:
    """Whether a file has a header that is `wanted`; a file that can't be read has none."""
    try:
        with unpacked(path) as file:
            head(file, wanted, "")
    except FAULTS:
        return False
    return True
