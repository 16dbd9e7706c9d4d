"""What all readers share: finding files, opening FITS, and turning a fault into a quarantined row."""

from __future__ import annotations

import bz2
import csv
import gzip
import logging
import math
import os
import re
import shutil
import stat
import struct
import tempfile
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any
from xml.parsers.expat import ExpatError

import numpy as np
from astropy.io import fits
from astropy.utils.exceptions import AstropyWarning

from hpcspec.errors import UserError
from hpcspec.surveys.observation import BadObject, Observation, check

log = logging.getLogger(__name__)

FITS_NAMES = re.compile(r"\.fits?(\.(gz|fz|bz2))?$", re.IGNORECASE)
FAULTS = (OSError, EOFError, LookupError, ValueError, TypeError, AttributeError, ArithmeticError, MemoryError, RuntimeError,
          SyntaxError, ExpatError, struct.error, zlib.error, csv.Error, fits.VerifyError, AstropyWarning)  # fmt: skip
UNPACK: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open}  # by the file's first bytes
DAMAGE = r"(?s).*(truncated|corrupted)"
SPOOL = 1 << 28
REASON = 400  # characters

FLAM = "1e-17 erg / (s cm2 Angstrom)"


@dataclass(frozen=True, order=True)
class Source:
    """One piece of reading: a key that is unique in its folder, the files that belong together (the first holds the
    objects, others are companions), and whether each epoch is wanted as an observation of its own."""

    key: str
    paths: tuple[Path, ...]
    epochs: bool = False


@dataclass(frozen=True)
class Quarantined:
    """An object that could not be used: the file, the survey's identifier where it is known, and the reason, in one line.
    What of them can't be printed is escaped, so that a table of them is text whatever the files hold."""

    path: str
    object_id: str
    reason: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", self.path.encode("utf-8", "backslashreplace").decode())
        object.__setattr__(self, "object_id", _line(self.object_id))
        object.__setattr__(self, "reason", _line(self.reason))


def _line(text: str) -> str:
    """A text as one line of at most REASON printable characters."""
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(text[: 2 * REASON].split()))
    return shown if len(shown) <= REASON else f"{shown[: REASON - 1]}…"


_passed_over: ContextVar[dict[Path, str] | None] = ContextVar("_passed_over", default=None)


@contextmanager
def passed_over() -> Iterator[dict[Path, str]]:
    """What `files_below` passes over inside, filled as it does: path to reason."""
    lost: dict[Path, str] = {}
    token = _passed_over.set(lost)
    try:
        yield lost
    finally:
        _passed_over.reset(token)


def files_below(folder: Path, names: re.Pattern[str]) -> list[Path]:
    """All files below `folder` whose names match, sorted; links to files count, links to folders are not followed. Empty if
    there is no such folder.

    Whatever else has such a name, but for folders with files that are found, and folders that can't be looked into are
    warned of and told by `passed_over`; nothing is opened.
    """
    found, folders = list[Path](), list[Path]()
    lost: dict[Path, str] = {}

    def unreadable(error: OSError) -> None:
        lost[Path(error.filename)] = reason_of(error)

    for root, below, here in os.walk(folder, onerror=unreadable) if os.path.isdir(folder) else ():
        folders += [Path(root, name) for name in below if names.search(name)]
        for path in (Path(root, name) for name in here if names.search(name)):
            if reason := _no_file(path):
                lost[path] = reason
            else:
                found.append(path)
    inhabited = {parent for path in found for parent in path.parents} if folders else set()
    for path in folders:
        if path not in inhabited:
            lost.setdefault(path, "a link to a folder, which is not followed" if path.is_symlink() else "a folder, not a file")
    _tell(lost)
    return sorted(found)


def regular(paths: Iterable[Path]) -> list[Path]:
    """Those of these that are files, sorted; the others are warned of and told by `passed_over`, and not opened."""
    reasons = {path: _no_file(path) for path in paths}
    _tell({path: reason for path, reason in reasons.items() if reason})
    return sorted(path for path, reason in reasons.items() if not reason)


def _tell(lost: Mapping[Path, str]) -> None:
    for path, reason in lost.items():
        log.warning("%s is left out: %s", path, reason)
    if (told := _passed_over.get()) is not None:
        told |= lost


def _no_file(path: Path) -> str:
    """Why this is no file that can be opened and read to an end, "" if it is one."""
    try:
        return "" if stat.S_ISREG(path.stat().st_mode) else "a pipe, socket or device, not a file"
    except FileNotFoundError:
        return "a link to a file that doesn't exist" if path.is_symlink() else "gone while the folder was looked at"
    except OSError as error:
        return reason_of(error)


def fits_files(folder: Path, skip: str = r"$^") -> list[Path]:
    """All FITS files below `folder`, sorted, gzipped ones too, without names that match the pattern `skip`.

    Raises UserError if the folder is missing or holds none that can be looked at.
    """
    if not os.path.isdir(folder):
        raise UserError(f"input folder {folder} does not exist: give the folder that holds the survey's FITS files with --input")
    found = [p for p in files_below(folder, FITS_NAMES) if not re.search(skip, p.name)]
    if not found:
        raise UserError(f"input folder {folder} holds no FITS files: give the folder that holds the survey's files with --input")
    return found


def single_file_sources(folder: Path, skip: str = r"$^") -> list[Source]:
    """One source per FITS file below `folder`, keyed by its path relative to it."""
    return [Source(str(p.relative_to(folder)), (p,)) for p in fits_files(folder, skip)]


@contextmanager
def quiet(damage: str) -> Iterator[None]:
    """Inside, astropy's warnings are silenced, and those that match the pattern `damage` are errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AstropyWarning)
        warnings.filterwarnings("error", damage, AstropyWarning)
        yield


@contextmanager
def opened(path: Path) -> Iterator[fits.HDUList]:
    """An open FITS file whose HDUs are read when asked for, and in which damage that astropy only warns of is an error.

    A compressed file is unpacked first, which checks its checksum; one of more than SPOOL bytes goes through $TMPDIR.
    Raises BadObject for an empty file, any of FAULTS for a truncated or damaged one.
    """
    if path.stat().st_size == 0:
        raise BadObject("empty file")
    with quiet(DAMAGE), tempfile.SpooledTemporaryFile(SPOOL) as unpacked:
        with path.open("rb") as file:
            unpack = next((reader for magic, reader in UNPACK.items() if file.peek().startswith(magic)), None)
            if unpack:
                shutil.copyfileobj(unpack(file), unpacked, 1 << 20)
                unpacked.seek(0)
            with fits.open(unpacked if unpack else file, memmap=False) as hdus:
                check_sizes(hdus)
                yield hdus


def check_sizes(hdus: fits.HDUList) -> None:
    """Raises BadObject for a HDU of a negative size, behind which astropy would read the same HDUs again for ever."""
    for number in count():
        try:
            span = hdus[number].fileinfo()["datSpan"]
        except IndexError:
            return
        if span < 0:
            raise BadObject(f"damaged file: HDU {number} declares a size of {span} bytes")


def data_of(hdu: Any) -> Any:
    """The data of an HDU. Raises BadObject if it is of no known kind, or has a DATASUM and they don't agree."""
    if not hasattr(type(hdu), "data"):
        raise BadObject(f"damaged file: HDU {hdu.name} is neither an image nor a table")
    if hdu.verify_datasum() == 0:
        raise BadObject(f"damaged file: HDU {hdu.name} doesn't agree with its DATASUM")
    return hdu.data


def check_votable(data: bytes) -> None:
    """Raises BadObject for a VOTable that declares more values than it has bits: astropy would make room for them."""
    for found in re.finditer(rb"""(arraysize|nrows)\s*=\s*["']([\dx ]+)["']""", data):
        length = math.prod(map(int, re.findall(rb"\d{1,30}", found[2])))
        if length > 8 * len(data):
            raise BadObject(f"damaged file: {found[1].decode()} {length} in {len(data)} bytes")


def open_fits(path: Path) -> fits.HDUList:
    """A FITS file with all its data read (so nothing is left to fail later); warnings about headers are silenced.

    Raises BadObject with a readable reason for an empty, truncated or damaged file.
    """
    try:
        with opened(path) as hdus:
            for hdu in hdus:
                data_of(hdu)
            return hdus
    except BadObject:
        raise
    except FAULTS as error:
        raise BadObject(f"unreadable FITS file: {reason_of(error)}") from error


def guarded(path: Path, object_id: str, build: Callable[[], Observation]) -> Iterator[Observation | Quarantined]:
    """One object: the checked spectrum that `build` returns, or a quarantined row with the reason."""
    try:
        yield check(build())
    except BadObject as bad:
        yield Quarantined(str(path), bad.object_id or object_id, bad.reason)
    except FAULTS as error:
        yield Quarantined(str(path), object_id, reason_of(error))


def each_guarded(
    path: Path, object_id: str, parts: Callable[[], Iterable[tuple[str, Callable[[], Observation]]]]
) -> Iterator[Observation | Quarantined]:
    """All objects of a file that `parts` lists, (identifier, build) each; one quarantined row if it can't list them."""
    try:
        listed = list(parts())
    except FAULTS as error:
        yield Quarantined(str(path), getattr(error, "object_id", "") or object_id, reason_of(error))
        return
    for part_id, build in listed:
        yield from guarded(path, part_id, build)


def epoch_of(one: Observation, epoch: str | int, **meta: str | int | float) -> Observation:
    """The observation as one epoch of its object: "@" and the survey's name of the epoch follow the object's identifier,
    which stays in meta as "target_id"."""
    return replace(one, object_id=f"{one.object_id}@{epoch}", meta={**one.meta, "target_id": one.object_id, **meta})


@contextmanager
def about(object_id: str) -> Iterator[None]:
    """Any of FAULTS inside becomes a BadObject of this object."""
    try:
        yield
    except FAULTS as error:
        raise BadObject(reason_of(error), object_id) from error


def reason_of(error: Exception) -> str:
    """What the quarantine table says about a fault."""
    if isinstance(error, BadObject):
        return error.reason
    if isinstance(error, AstropyWarning):
        return f"damaged file: {error}"
    if isinstance(error, KeyError) and error.args:
        return f"missing: {error.args[0]}"
    if isinstance(error, MemoryError):
        return f"damaged file, or more than fits into memory: {error}"
    if isinstance(error, OSError) and error.strerror:
        return f"can't be read: {error.strerror}"
    text = re.sub(r"\b[A-Z]\w*(Error|Exception|Warning): | \(<class .*", "", str(error)) or type(error).__name__
    return f"damaged, or of another layout: {text}" if isinstance(error, IndexError | TypeError | AttributeError) else text


def plain(value: Any) -> str | int | float:
    """A header card or table cell as str, int or float (bytes decoded, numpy scalars unwrapped, a card without a value "")."""
    if isinstance(value, bytes | np.bytes_):
        return value.decode("utf-8", "replace").strip()
    if isinstance(value, bool | np.bool_ | int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        return float(value)
    return "" if isinstance(value, fits.card.Undefined) else str(value).strip()


def pick(header: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, str | int | float]:
    """Those of header cards or row columns that exist and have a value, renamed: {our name: their name}."""
    there = {ours: header[theirs] for ours, theirs in names.items() if theirs in header}
    return {ours: plain(value) for ours, value in there.items() if not isinstance(value, fits.card.Undefined)}


def table_row(table: fits.FITS_rec, row: int, names: Iterable[str]) -> dict[str, Any]:
    """The cells of one row under those of `names` (upper case) that are columns, whatever their case in the file."""
    there = {name.upper() for name in table.names}
    return {name: table[name][row] for name in names if name in there}


def position(values: Mapping[str, Any], *names: tuple[str, str]) -> tuple[float, float]:
    """Right ascension and declination, degrees, from the first pair of `names` whose values are finite numbers.

    Raises BadObject if there is none.
    """
    for ra, dec in names:
        try:
            found = float(values[ra]), float(values[dec])
        except (KeyError, TypeError, ValueError):
            continue
        if np.all(np.isfinite(found)):
            return found
    raise BadObject("no position: looked for " + ", ".join("/".join(pair) for pair in names))
