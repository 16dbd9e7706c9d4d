"""ASAS-3 light curves of variable stars: text files `<identifier>.dat`, one object a file, or a tar archive of them.

A file has no header: days, V magnitude and its error, with commas or blanks between. Days below 100 000 are
HJD − 2 450 000 and get the rest back. Tables with a column `filename` (or another identifier) and one of the class, known by
their header whatever their name, belong to the files and archives of their own folder, or of the one above a folder of
files. Their other columns, which the published table calls meta1, meta2 and meta3 without saying what they are, go to meta;
those whose names are known (period, amplitude, …) are scalars too. The files hold no positions.
Source: Richards et al. (2012), ApJS 203, 32; Pojmański (2002), Acta Astron. 52, 397.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, cast

import numpy as np

from hpcspec.surveys.base import FAULTS, Quarantined, Source, about, guarded, reason_of
from hpcspec.surveys.companions import CLASS_NAMES, IDENTIFIERS, Catalogue, catalogue, described, place, sources
from hpcspec.surveys.observation import BadObject, Observation, make_curve
from hpcspec.surveys.tables import is_headed, numbers, stem, unpacked, whole

LABELS = frozenset({"class"})
NAMES = re.compile(r"\.(dat|csv)(\.gz)?$|\.(tar(\.(gz|bz2|xz))?|tgz)$", re.IGNORECASE)
ARCHIVES = re.compile(r"\.(tar(\.\w+)?|tgz)$", re.IGNORECASE)
WHAT = "an ASAS light curve"
COLUMNS = ("time", "mag", "mag_err")
TIME_ZERO, SHORT = 2450000.0, 1e5
FAULTS_HERE = (*FAULTS, tarfile.TarError)


def _classes(names: Sequence[str]) -> bool:
    return not set(IDENTIFIERS).isdisjoint(names) and not set(CLASS_NAMES).isdisjoint(names)


def _no_header(names: Sequence[str]) -> bool:
    return False


def discover(folder: Path) -> list[Source]:
    """One source per light curve or archive, with the class tables that belong to it. Raises UserError if there is none."""

    def is_table(path: Path) -> bool:
        return not ARCHIVES.search(path.name) and is_headed(path, _classes)

    return sources(folder, NAMES, "ASAS light curves (*.dat or an archive of them)", is_table)


def read(source: Source) -> Iterator[Observation | Quarantined]:
    """The objects of a file or archive, each with one light curve, band V. A damaged archive gives its objects up to the
    damage, and one row that says what it is."""
    path, *tables = source.paths
    try:
        rows = catalogue(tables, _classes, IDENTIFIERS)
        if not ARCHIVES.search(path.name):
            with unpacked(path) as file:
                data = file.read()
            yield from guarded(path, stem(path), partial(_object, stem(path), data, rows))
            return
        yield from _archive(path, rows)
    except FAULTS_HERE as error:
        yield Quarantined(str(path), "" if ARCHIVES.search(path.name) else stem(path), reason_of(error))


class _Member(tarfile.TarInfo):
    """A member of an archive whose damaged header is an error; to tarfile it is the archive's end."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Member:
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # zeros: the end
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"damaged archive: the objects from here on are lost: {error}") from error


def _archive(path: Path, rows: Catalogue) -> Iterator[Observation | Quarantined]:
    seen: set[str] = set()
    try:
        opened = tarfile.open(path, tarinfo=_Member)
    except tarfile.ReadError as error:
        raise BadObject("not an archive, or damaged at its beginning") from error
    with opened as archive:
        _check(cast(IO[bytes], archive.fileobj))
    with tarfile.open(path, tarinfo=_Member) as archive:
        for member in archive:
            if member.size < 0:  # tarfile would read the same members again for ever
                raise BadObject(f"damaged archive: {member.name[:100]} has a size of {member.size} bytes")
            if not member.isfile() or not member.name.lower().endswith((".dat", ".dat.gz")):
                continue
            object_id = stem(PurePosixPath(member.name).name)
            if object_id in seen:
                yield Quarantined(str(path), object_id, f"second file of this object in the archive: {member.name}")
                continue
            seen.add(object_id)
            data = cast(IO[bytes], archive.extractfile(member)).read()
            yield from guarded(path, object_id, partial(_object, object_id, data, rows))
    if not seen:
        yield Quarantined(str(path), "", "not an archive of ASAS light curves: it holds no .dat file")


def _check(file: IO[bytes]) -> None:
    """Read a packed file to its end, where its checksum is. Of one that is cut short all that there is, is as it was written."""
    with suppress(EOFError):
        while file.read(1 << 20):
            pass


def _object(object_id: str, data: bytes, rows: Catalogue) -> Observation:
    if not data.strip():
        raise BadObject("empty file")
    with about(object_id):
        _, table, skipped = whole(io.BytesIO(data), _no_header, WHAT, COLUMNS)
        if len(table.column_names) != len(COLUMNS):
            raise BadObject(f"not {WHAT}: rows of {len(table.column_names)} fields, not of {len(COLUMNS)}")
        time, mag, error = (numbers(table[name]) for name in COLUMNS)
        time = np.where(time < SHORT, time + TIME_ZERO, time)
        row = rows.row(object_id)
        scalars, meta = described(row)
        ra, dec = place(row)
        curve = make_curve("V", time, mag, error)
    meta["position"] = "none" if np.isnan(ra) else "object"
    if skipped:
        meta["rows_skipped"] = len(skipped)
    return Observation(object_id, "asas", ra, dec, meta=meta, curves=(curve,), scalars=scalars)
