"""What can happen to text: delimited tables, VOTables; and to archives of it."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.damages.damage import LONG, Damage, Harm, on_bytes

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
    Damage("rows twice", lined(lambda lines, rng: [*lines, *(line for line in lines if line[:1].isdigit())]), True),
    Damage("no units", lined(lambda lines, rng: [re.sub(r"unit: ?[^,}]*,?", "", line) for line in lines]), True),
    Damage("UTF-16", on_bytes(lambda data, rng: bytes(data).decode("latin-1").encode("utf-16"))),
    Damage("CRLF", on_bytes(lambda data, rng: bytes(data).replace(b"\n", b"\r\n")), True),
    Damage("CR", on_bytes(lambda data, rng: bytes(data).replace(b"\n", b"\r")), True),
    Damage("no newlines", on_bytes(lambda data, rng: bytes(data).replace(b"\n", b" ")), True),
    Damage("long line", on_bytes(lambda data, rng: bytes(data) + b"7" * 5_000_000), True),
    Damage("NULs", on_bytes(lambda data, rng: bytes(data) + bytes(5000)), True),
    Damage("comments", on_bytes(lambda data, rng: b"# x\n" * 500 + bytes(data)), True),
    Damage("a quote", on_bytes(lambda data, rng: data[: len(data) // 2] + b'"' + data[len(data) // 2 :]), True),
]  # fmt: skip


def marked_up(pattern: bytes, new: bytes) -> Harm:
    return on_bytes(lambda data, rng: re.sub(pattern, new, bytes(data), count=int(rng.integers(1, 4))))


TAGS = {
    "type": (rb'datatype="\w+"', b'datatype="short"'), "no type": (rb'datatype="\w+"', b""),
    "size": (rb'arraysize="[^"]*"', b'arraysize="9999999"'), "rows": (rb"<TABLE", b'<TABLE nrows="2000000000"'),
    "name": (rb'name="\w+"', b'name="x"'), "no units": (rb' unit="[^"]*"', b""), "no end": (rb"</TABLE>", b""),
    "entity": (rb"<RESOURCE", b"&x;<RESOURCE"), "nested": (rb"<RESOURCE", b"<RESOURCE>" * 2000 + b"<RESOURCE"),
    "NUL": (rb"<FIELD", b"\0<FIELD"), "cells": (rb"<TD>[^<]*</TD>|[A-Za-z0-9+/]{20}\n", b"<TD>what</TD>"),
}  # fmt: skip
NO_TABLE = b"<?xml version='1.0'?><html><body>404 Not Found</body></html>"
VOTABLE = [Damage(name, marked_up(*change), True) for name, change in TAGS.items()]
VOTABLE += [Damage("other XML", on_bytes(lambda data, rng: NO_TABLE))]


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
    Damage("huge size", tar_header(124, b"77777777777\0")), Damage("enormous", tar_header(124, b"\x80" + b"\x7f" * 11)),
    *(Damage(f"size {n}", tar_header(124, b"\xff" * 4 + struct.pack(">q", n)), True) for n in (-512, -1024, -(2**40))),
    *(Damage(f"type {kind!r}", tar_header(156, kind), True) for kind in (b"2", b"6", b"x", b"S", b"?")),
    *(Damage(f"name {name!r}", tar_header(0, name + b"\0"), True) for name in (b"a\nb\xff.dat", b"../../../x.dat")),
]  # fmt: skip
