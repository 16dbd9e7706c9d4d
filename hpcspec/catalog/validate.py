"""Hold a published folder against the schema and against itself, check by check; nothing is written."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from astropy.io import fits

from hpcspec.atomic import file_hash
from hpcspec.catalog.hats_layout import HEALPIX_ORDER, partition_path
from hpcspec.catalog.merge import QUARANTINE_FIELDS, SUMS, published_names, release_files
from hpcspec.catalog.row_checks import Faults, IdDigest, check_rows
from hpcspec.catalog.schema import NOWHERE, Column, arrow_schema, columns, embedding_columns
from hpcspec.errors import UserError

CHUNK = 100_000
_FORMATS = {"E": "f4", "D": "f8", "J": "i4", "K": "i8"}
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, IndexError, pa.ArrowException, fits.VerifyError, UserError, csv.Error)


@dataclass(frozen=True)
class Check:
    """One line of the report: what was checked, whether it holds, and what was seen."""

    name: str
    ok: bool
    detail: str


def _unreadable(name: str, error: BaseException) -> Check:
    return Check(name, False, f"can't be read ({type(error).__name__}: {str(error).partition(chr(10))[0]})")


def report(checks: Sequence[Check]) -> bool:
    """Print one line per check, and the sum; True if all of them hold."""
    for check in checks:
        print(f"{'pass' if check.ok else 'FAIL'}  {check.name}: {check.detail}")
    failed = sum(not check.ok for check in checks)
    print(f"{len(checks) - failed} checks passed, {failed} failed")
    return failed == 0


def validate(folder: Path, survey: str | None = None) -> list[Check]:
    """All checks of the release in `folder`; of the survey that its provenance.json names, unless one is given.

    A file that can't be read is a failed check, never an exception.
    """
    checks: list[Check] = []

    def run(name: str, check: Callable[[], str]) -> None:
        try:
            checks.append(Check(name, True, check()))
        except Faults as faults:
            checks.append(Check(name, False, str(faults)))
        except _UNREADABLE as error:
            checks.append(_unreadable(name, error))

    try:
        facts = json.loads((folder / "provenance.json").read_text("utf-8"))
        release = _Release(folder, survey or facts["survey"], facts, columns(facts["classes"], facts["parameters"]))
    except _UNREADABLE as error:
        return [_unreadable("provenance", error)]
    run("provenance", release.provenance)
    run("files", release.files)
    run("checksums", release.checksums)
    run("fits structure", release.fits_structure)
    run("fits columns", release.fits_columns)
    run("embeddings", release.embeddings)
    run("hats", release.hats)
    run("same objects", release.same_objects)
    run("quarantine", release.quarantine)
    try:
        checks += [Check(*found) for found in check_rows(release.fits_rows(), release.columns)]
    except _UNREADABLE as error:
        checks.append(_unreadable("rows", error))
    return checks


@dataclass(frozen=True)
class _Release:
    """The files of one release; each method is one check, which says what it saw or raises `Faults`."""

    folder: Path
    survey: str
    facts: dict[str, Any]
    columns: tuple[Column, ...]

    @property
    def fits_path(self) -> Path:
        return self.folder / f"hpcspec-{self.survey}.fits"

    @property
    def embeddings_path(self) -> Path:
        return self.folder / f"hpcspec-{self.survey}-embeddings.parquet"

    def provenance(self) -> str:
        wanted = ("rows", "quarantined", "without_position", "embedding_dimension", "model_hash")
        missing = [k for k in wanted if k not in self.facts]
        Faults.unless(not missing, f"provenance.json lacks {', '.join(missing)}")
        Faults.unless(self.facts["survey"] == self.survey, f"is of survey {self.facts['survey']!r}, not {self.survey!r}")
        rows_in, rows, gone = self.facts.get("rows_in"), self.facts["rows"], self.facts["quarantined"]
        Faults.unless(rows_in in (None, rows + gone), f"{rows_in} rows in, but {rows} rows out and {gone} quarantined")
        return f"{self.facts['rows']} rows of {self.survey}, model {self.facts['model_hash']}"

    def files(self) -> str:
        missing = [n for n in published_names(self.survey) if not (self.folder / n).exists()]
        Faults.unless(not missing, f"missing: {', '.join(missing)}")
        return f"all {len(published_names(self.survey))} there"

    def checksums(self) -> str:
        listed: dict[str, str] = {}
        for line in (self.folder / SUMS).read_text("utf-8").splitlines():
            digest, name = line.split("  ", 1)
            listed[name] = digest
        found = release_files(self.folder, self.survey)
        faults = [f"{n} is not listed" for n in found if n not in listed] + [f"{n} is missing" for n in listed if n not in found]
        faults += [f"{n} has changed" for n in found if n in listed and file_hash(self.folder / n) != listed[n]]
        Faults.unless(not faults, "; ".join(faults[:5]))
        return f"{len(listed)} files as in {SUMS}"

    def fits_structure(self) -> str:
        with fits.open(self.fits_path, memmap=True) as hdus:
            hdus.verify("exception")
            bad = [i for i, hdu in enumerate(hdus) if hdu.verify_datasum() != 1 or hdu.verify_checksum() != 1]
            Faults.unless(not bad, f"CHECKSUM or DATASUM of HDU {bad} is wrong or missing")
            rows = hdus["CATALOG"].header["NAXIS2"]
        Faults.unless(rows == self.facts["rows"], f"{rows} rows, and {self.facts['rows']} in provenance.json")
        return f"{rows} rows, CHECKSUM and DATASUM right"

    def fits_columns(self) -> str:
        header = fits.getheader(self.fits_path, "CATALOG")
        names = [header[f"TTYPE{i}"] for i in range(1, header["TFIELDS"] + 1)]
        wanted = [c.name for c in self.columns]
        Faults.unless(names == wanted, f"columns are {', '.join(names)}; the schema has {', '.join(wanted)}")
        faults = []
        for i, c in enumerate(self.columns, 1):
            form = str(header[f"TFORM{i}"])
            seen = ("U" if form.endswith("A") else _FORMATS.get(form), header.get(f"TUNIT{i}", ""), header.get(f"TUCD{i}"),
                    header.get(f"TCOMM{i}"))  # fmt: skip
            for what, got, want in zip(("type", "unit", "UCD", "description"), seen,
                                       (c.dtype, c.unit, c.ucd, c.description), strict=True):  # fmt: skip
                if got != want:
                    faults.append(f"{what} of {c.name} is {got!r}, not {want!r}")
        Faults.unless(not faults, "; ".join(faults[:5]))
        return f"{len(names)} columns as in the schema"

    def embeddings(self) -> str:
        wanted = arrow_schema(embedding_columns(), self.facts["embedding_dimension"]).remove_metadata()
        with pq.ParquetFile(self.embeddings_path, page_checksum_verification=True, pre_buffer=False) as file:
            seen = file.schema_arrow.remove_metadata()
            Faults.unless(seen.equals(wanted), f"columns are {_one_line(seen)}; the schema has {_one_line(wanted)}")
            rows = file.metadata.num_rows
            Faults.unless(rows == self.facts["rows"], f"{rows} rows, and {self.facts['rows']} in provenance.json")
            for batch in file.iter_batches(max(1, (4 << 20) // (4 * self.facts["embedding_dimension"])), columns=["embedding"]):
                finite = np.isfinite(batch["embedding"].flatten().to_numpy()).reshape(len(batch), -1).all(axis=1)
                Faults.unless(bool(finite.all()), f"{int((~finite).sum())} embeddings are not finite")
        return f"{rows} finite vectors of {self.facts['embedding_dimension']}"

    def hats(self) -> str:
        root = self.folder / "hats"
        lines = (root / "hats.properties").read_text("utf-8").splitlines()
        told = dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))
        Faults.unless((root / "properties").read_text("utf-8").splitlines() == lines, "properties and hats.properties differ")
        wanted, rows, listed = arrow_schema(self.columns), 0, self.pixels()
        for order, pixel in listed:
            name = partition_path(order, pixel)
            with pq.ParquetFile(root / "dataset" / name, page_checksum_verification=True, pre_buffer=False) as file:
                seen = file.schema_arrow.remove_metadata()
                Faults.unless(seen.equals(wanted.remove_metadata()), f"columns of {name} are not the schema's")
                index = file.read(["_healpix_29"])["_healpix_29"].to_numpy()
            Faults.unless(bool(np.all(index >> 2 * (HEALPIX_ORDER - order) == pixel)), f"{name} holds other pixels too")
            rows += len(index)
        there = {p.relative_to(root).as_posix() for p in root.rglob("*.parquet")}
        stray = there - {f"dataset/{partition_path(*p)}" for p in listed}
        Faults.unless(not stray, f"partitions that partition_info.csv doesn't list: {', '.join(sorted(stray)[:5])}")
        merged = pq.read_metadata(root / "dataset/_metadata").num_rows
        seen_rows = {"the partitions": rows, "hats.properties": int(told["hats_nrows"]), "_metadata": merged}
        nowhere = self.facts["without_position"]
        known = self.facts["rows"] - nowhere
        wrong = [f"{n} in {where}" for where, n in seen_rows.items() if n != known]
        Faults.unless(not wrong, f"{', '.join(wrong)}, and {known} rows with a position in provenance.json")
        return f"{rows} rows in {len(listed)} partitions" + f", {nowhere} without a position" * bool(nowhere)

    def pixels(self) -> list[tuple[int, int]]:
        """The HATS partitions (order, pixel), in their order on the curve."""
        with open(self.folder / "hats/partition_info.csv", newline="", encoding="utf-8") as file:
            listed = [(int(row["Norder"]), int(row["Npix"])) for row in csv.DictReader(file)]
        return sorted(listed, key=lambda p: p[1] << 2 * (HEALPIX_ORDER - p[0]))

    def same_objects(self) -> str:
        partitions = [self.folder / "hats/dataset" / partition_path(*p) for p in self.pixels()]
        every, placed = IdDigest(), IdDigest()
        for rows in self.fits_rows():
            every.add(rows["object_id"].tolist())
            placed.add(rows["object_id"][rows["_healpix_29"] != NOWHERE].tolist())
        found = {"embeddings": _digest_of([self.embeddings_path]) == every, "hats": _digest_of(partitions) == placed}
        other = [name for name, same in found.items() if not same]
        Faults.unless(not other, f"{' and '.join(other)} hold other objects, or another order, than fits")
        return "fits, embeddings and hats hold the same objects in the same order"

    def quarantine(self) -> str:
        with open(self.folder / "quarantine.csv", newline="", encoding="utf-8") as file:
            reader = csv.reader(file, strict=True)
            head, rows = next(reader, []), list(reader)
        Faults.unless(head == list(QUARANTINE_FIELDS) and all(len(r) == 3 for r in rows), f"columns are not {QUARANTINE_FIELDS}")
        told = self.facts["quarantined"]
        Faults.unless(len(rows) == told, f"{len(rows)} rows, and {told} in provenance.json")
        return f"{len(rows)} rows"

    def fits_rows(self) -> Iterator[dict[str, np.ndarray]]:
        """The rows of the FITS table, some at a time, as native arrays by column name (text as str)."""
        with fits.open(self.fits_path, memmap=True) as hdus:
            data = hdus["CATALOG"].data
            for start in range(0, len(data), CHUNK):
                rows = data[start : start + CHUNK]
                yield {name: (a := np.asarray(rows[name])).astype(a.dtype.newbyteorder("=")) for name in data.names}


def _one_line(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} {field.type}" for field in schema)


def _digest_of(paths: Sequence[Path]) -> IdDigest:
    digest = IdDigest()
    for path in paths:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            for batch in file.iter_batches(CHUNK, columns=["object_id"]):
                digest.add(batch["object_id"].to_pylist())
    return digest
