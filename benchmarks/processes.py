"""Measurements in processes of their own, so that memory, time and imports are their own; and the page cache.

A measuring process says "ready" when everything is imported and waits for a line, so that several begin together and imports
are in no figure. Needs the standard library alone: the peers run it in an environment of theirs. Linux only.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PAGE = mmap.PAGESIZE
MIB = 1 << 20
DROP = Path("/proc/sys/vm/drop_caches")


def memory_mib(what: str) -> float:
    """MiB of this process: "VmRSS" resident now, "VmHWM" at its highest (of this program, unlike getrusage's, which counts
    the parent's before the start too)."""
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(what)) / 1024


def serve(measure: Callable[[], dict[str, Any]]) -> None:
    """In a measuring process: wait for the word, measure, and hand the figures to the parent with `imports_mib` (resident
    before) and `peak_mib`."""
    answer = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer
    print("ready", file=answer)
    if not sys.stdin.readline():
        return  # the parent is gone
    before = memory_mib("VmRSS")
    figures = measure()
    print(json.dumps({**figures, "imports_mib": before, "peak_mib": memory_mib("VmHWM")}), file=answer)


class Measuring:
    """A measuring process: one of the programs in this folder with arguments, started at once.

    Raises RuntimeError with the end of what it said if it fails.
    """

    def __init__(self, program: str, *arguments: object, python: str = sys.executable):
        self._said = tempfile.TemporaryFile("w+")
        self._name = f"{program} {' '.join(map(str, arguments))}"
        self._process = subprocess.Popen([python, str(HERE / program), *map(str, arguments)], stdin=subprocess.PIPE,
                                         stdout=subprocess.PIPE, stderr=self._said, text=True, bufsize=1)  # fmt: skip

    def ready(self) -> Measuring:
        """Wait until everything is imported."""
        self._line()
        return self

    def go(self) -> Measuring:
        """Let it measure."""
        assert self._process.stdin
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        return self

    def figures(self) -> dict[str, Any]:
        """What it measured."""
        found = json.loads(self._line())
        self.close()
        return found

    def close(self) -> None:
        """End it if it has not ended."""
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe
            pipe.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._said.close()

    def _line(self) -> str:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            self._said.seek(0)
            said = self._said.read()[-2000:]
            self.close()
            raise RuntimeError(f"{self._name} ended with exit code {code}:\n{said}")
        return line


def measured(*arguments: object, python: str = sys.executable) -> dict[str, Any]:
    """The figures of one process that runs alone."""
    return Measuring(*map(str, arguments), python=python).ready().go().figures()


def drop_cache(paths: Sequence[Path], all_of_it: bool) -> str:
    """Take the files out of the page cache; says how: `all_of_it` is dropped where this is root, otherwise the kernel is
    asked to let these files go."""
    os.sync()
    if all_of_it and os.access(DROP, os.W_OK):
        DROP.write_text("3")
        return "drop_caches"
    for path in paths:
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return "posix_fadvise DONTNEED"


def cached(paths: Sequence[Path]) -> float:
    """Share of the files' pages that are in the page cache (mincore)."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    there = pages = 0
    for path in paths:
        size = path.stat().st_size
        if size == 0:
            continue
        with open(path, "rb") as file:
            at = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, file.fileno(), 0)
        if at == ctypes.c_void_p(-1).value:
            raise OSError(ctypes.get_errno(), f"mmap of {path}")
        vector = ctypes.create_string_buffer(-(-size // PAGE))  # a byte per page
        failed = libc.mincore(at, size, vector)
        libc.munmap(at, size)
        if failed:
            raise OSError(ctypes.get_errno(), f"mincore of {path}")
        there += vector.raw.count(1)
        pages += -(-size // PAGE)
    return there / max(pages, 1)


def available_mib() -> float:
    """Memory that can be had, the page cache's included, MiB."""
    with open("/proc/meminfo", encoding="ascii") as info:
        return next(int(line.split()[1]) for line in info if line.startswith("MemAvailable")) / 1024
