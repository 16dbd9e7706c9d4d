"""Files that are there whole or not at all."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hpcspec.errors import UserError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path in the same folder, flushed and renamed to `path` on success, removed otherwise.

    Raises UserError if the folder can't be written or the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{os.uname().nodename}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"can't write {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):  # what went wrong is already told
            temporary.unlink()


class LateErrors(io.FileIO):
    """A new file for a library that doesn't survive a full disk: what could not be written is an OSError when it is closed."""

    def __init__(self, path: Path):
        super().__init__(path, "w+")
        self._error: OSError | None = None

    def write(self, data: Any) -> int:
        """Write all of `data`, or nothing any more."""
        view = memoryview(data).cast("B")
        try:
            while len(view) and self._error is None:
                view = view[super().write(view) :]
        except OSError as error:
            self._error = error
        return memoryview(data).nbytes

    def truncate(self, size: int | None = None) -> int:
        """Make the file this long."""
        try:
            return super().truncate(size)
        except OSError as error:
            self._error = error
            return self.tell() if size is None else size

    def close(self) -> None:
        """Close the file. Raises OSError if anything could not be written."""
        super().close()
        if self._error:
            error, self._error = self._error, None
            raise error


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text)


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file atomically."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def read_json(path: Path) -> Any | None:
    """The content of a JSON file, or None if it isn't there or isn't whole."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


def file_hash(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
