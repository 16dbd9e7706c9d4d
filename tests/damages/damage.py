"""What can happen to any file: damages are functions of its path and a generator of random numbers."""

from __future__ import annotations

import gzip
import os
import shutil
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

Harm = Callable[[Path, np.random.Generator], None]
LONG = "x" * 10_000


@dataclass(frozen=True)
class Damage:
    """One damage of a file. `loose`: what still comes out of the file may differ from what was in it, for without a checksum
    nobody can tell; otherwise it may be absent, but not different. `by_line`: of a table of text, one line is damaged. `by_row`:
    of a table of columns, one row is."""

    name: str
    harm: Harm = field(repr=False)
    loose: bool = False
    by_line: bool = False
    by_row: bool = False


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
    Damage("a gzip of a gzip", on_bytes(lambda data, rng: gzip.compress(gzip.compress(data, mtime=0), mtime=0))),
]  # fmt: skip


def moved(change: Callable[[Path], object]) -> Harm:
    """The file becomes something else: it goes to "kept" beside it, where no reader looks for it, and this takes its place."""

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


NAMES = [
    Damage("spaces", named("a b "), True),
    Damage("quotes", named("a'b\"c`$(x)"), True),
    Damage("newline", named("a\nb\t"), True),
    Damage("not UTF-8", named("\udcff\udce9"), True),
    Damage("long name", lambda path, rng: named("n" * (250 - len(path.name)))(path, rng), True),
    Damage("again", lambda path, rng: shutil.copy(path, path.with_name(f"zz-{path.name}")) and None, True),
    Damage("again by a link", lambda path, rng: path.with_name(f"zz-{path.name}").symlink_to(path.name), True),
]  # fmt: skip
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
    *NAMES,
]  # fmt: skip
