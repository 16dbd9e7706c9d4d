"""Merge the parts of all array tasks into the published files.

The rows stream through, sorted, so memory does not grow with the embeddings; the bytes depend on the rows and the
provenance alone. Everything is written to a hidden folder inside `out` and renamed into place at the end, the checksums
last: a release without SHA256SUMS is one whose publication was interrupted, and merging again completes it.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from hpcspec.atomic import file_hash, read_json
from hpcspec.catalog.datamodel import datamodel_page
from hpcspec.catalog.fits_table import FitsTable
from hpcspec.catalog.hats_layout import MAX_ROWS, HatsCatalog, partitions
from hpcspec.catalog.ordering import Index, in_order, read_index
from hpcspec.catalog.parts import open_part, provenance_of
from hpcspec.catalog.qa import Quality
from hpcspec.catalog.schema import EMBEDDING, NOWHERE, Column, arrow_schema, embedding_columns, labels
from hpcspec.errors import UserError

STAGE = ".merge.tmp"
SUMS = "SHA256SUMS"
QUARANTINE_FIELDS = ("file", "object_id", "reason")


@dataclass(frozen=True)
class MergeReport:
    """What was published: rows, quarantined rows, HATS partitions, and the files relative to the folder."""

    rows: int
    quarantined: int
    partitions: int
    files: tuple[str, ...]


def published_names(survey: str) -> tuple[str, ...]:
    """The files and folders of a release, in the order in which they are put in place; the checksums come last."""
    return (f"hpcspec-{survey}.fits", f"hpcspec-{survey}-embeddings.parquet", "hats", "datamodel.html", "quarantine.csv",
            "provenance.json", "qa", SUMS)  # fmt: skip


def check_folder(out: Path, survey: str) -> None:
    """Raise UserError if `out` holds the catalogue of another survey, whose files would be replaced."""
    held = (read_json(out / "provenance.json") or {}).get("survey", survey)
    if held != survey:
        raise UserError(f"{out} holds the catalogue of {held}: give another folder for that of {survey}")


def release_files(folder: Path, survey: str) -> list[str]:
    """All files of a release that are there, but the checksums, as sorted paths relative to `folder`."""
    found = []
    for name in published_names(survey)[:-1]:
        path = folder / name
        inside = (p for p in path.rglob("*") if p.is_file()) if path.is_dir() else ([path] if path.is_file() else [])
        found += [p.relative_to(folder).as_posix() for p in inside]
    return sorted(found)


def merge(parts: Sequence[Path], out: Path, survey: str, columns: Sequence[Column], provenance: Mapping[str, Any],
          expected_rows: int, quarantine: Path | None = None) -> MergeReport:  # fmt: skip
    """Publish the catalogue of `survey` in `out`, from parts that hold the `columns` and the embedding.

    provenance: JSON values by name, the same on every run (its `timing`, seconds by stage, is shown on the quality page; its
    `rows_in`, if there, must be the rows and the quarantined together);
    expected_rows: rows that all parts must hold together; quarantine: a JSON lines file {"path", "object_id", "reason"}, or
    a folder of such. Files of an older release are replaced one by one; anything else in `out` stays.
    Raises UserError for parts that are missing, damaged, incomplete, of another model, survey or schema, or that repeat
    an object, for books that don't balance, for a damaged quarantine file, and for a folder that can't be written.
    """
    check_folder(out, survey)
    dimension = _inspect(parts, survey, columns, provenance, expected_rows)
    quarantined = _read_quarantine(quarantine)
    rows_in = provenance.get("rows_in")
    if rows_in not in (None, expected_rows + len(quarantined)):
        raise UserError(f"the books of {survey} don't balance: {rows_in} rows in, {expected_rows} rows out, {len(quarantined)} "
                        "quarantined: ingest again")  # fmt: skip
    index = read_index(parts, expected_rows)
    classes, parameters = labels(columns)
    facts = {**provenance, "survey": survey, "rows": expected_rows, "quarantined": len(quarantined),
             "without_position": int(np.sum(index.healpix == NOWHERE)), "classes": classes, "parameters": parameters,
             "embedding_dimension": dimension}  # fmt: skip
    stage = out / STAGE
    try:
        shutil.rmtree(stage, ignore_errors=True)
        (stage / "qa").mkdir(parents=True)
        quality = Quality(columns)
        pixels = _write_tables(parts, stage, survey, columns, dimension, index, facts, quality)
        shown: dict[str, Any] = {k: facts[k] for k in ("survey", "rows", "quarantined", "model_hash") if k in facts}
        (stage / "qa/index.html").write_text(quality.html(survey, shown, provenance.get("timing", {})), "utf-8")
        (stage / "datamodel.html").write_text(datamodel_page(survey, columns, dimension), "utf-8")
        (stage / "provenance.json").write_text(json.dumps(facts, indent=1, sort_keys=True, default=str) + "\n", "utf-8")
        with open(stage / "quarantine.csv", "w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows([QUARANTINE_FIELDS, *quarantined])
        files = release_files(stage, survey)
        (stage / SUMS).write_text("".join(f"{file_hash(stage / name)}  {name}\n" for name in files))
        _publish(stage, out, survey)
    except OSError as error:
        raise UserError(f"can't write the catalogue in {out}: {error.strerror or error}; mend that and merge again") from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    return MergeReport(expected_rows, len(quarantined), pixels, (*files, SUMS))


def _inspect(parts: Sequence[Path], survey: str, columns: Sequence[Column], provenance: Mapping[str, Any], expected: int) -> int:
    """The dimension of the embedding, if the parts fit together; only their footers are read."""
    if not parts or expected <= 0:
        raise UserError(f"nothing to merge: {len(parts)} parts, {expected} rows expected; run the catalogue's array tasks first")
    rows, found, models = 0, 0, {str(provenance["model_hash"]): "the run"} if "model_hash" in provenance else {}
    for path in sorted(parts):
        with open_part(path) as file:
            schema, model = file.schema_arrow, provenance_of(file)["model_hash"]
            rows += file.metadata.num_rows
        models.setdefault(model, str(path))
        if len(models) > 1:
            told = ", ".join(f"{model} in {where}" for model, where in models.items())
            raise UserError(f"parts come from different models ({told}): run the array tasks again with one model")
        dimension = getattr(schema.field("embedding").type, "list_size", 0)
        found = found or dimension
        want = arrow_schema((*columns, EMBEDDING), found)
        wrong = [f"{n} is missing" for n in want.names if n not in schema.names]
        wrong += [f"{n} is unknown" for n in schema.names if n not in want.names]
        wrong = wrong or [f"{n} is {schema.field(n).type} and not {want.field(n).type}" for n in want.names
                 if schema.field(n).type != want.field(n).type]  # fmt: skip
        if wrong:
            raise UserError(f"{path} doesn't fit the catalogue's schema: {', '.join(wrong)}")
    if rows != expected:
        raise UserError(f"the {len(parts)} parts hold {rows} rows, not {expected}: an array task is missing or ran twice")
    return found


def _write_tables(parts: Sequence[Path], stage: Path, survey: str, columns: Sequence[Column], dimension: int, index: Index,
                  facts: Mapping[str, Any], quality: Quality) -> int:  # fmt: skip
    """Write the FITS table, the embeddings and the HATS catalogue in one pass; the number of HATS partitions."""
    cards = {k: v if isinstance(v, str) else json.dumps(v, sort_keys=True, default=str) for k, v in facts.items()}
    cards.pop("timing", None)
    widths = {"object_id": index.id_bytes, "survey": len(survey), "class": max([1, *map(len, facts["classes"])])}
    pixels = partitions(index.healpix, MAX_ROWS)
    schema = arrow_schema((*columns, EMBEDDING), dimension)
    embeddings = arrow_schema(embedding_columns(), dimension).with_metadata(cards)
    table = FitsTable(stage / f"hpcspec-{survey}.fits", columns, widths, len(index.healpix), cards)
    hats = HatsCatalog(stage / "hats", arrow_schema(columns).with_metadata(cards), pixels)
    row_bytes = 4 * dimension + 8 * len(columns) + 2 * index.id_bytes
    allowed = {*facts["classes"]} or {""}
    with pq.ParquetWriter(stage / f"hpcspec-{survey}-embeddings.parquet", embeddings, compression="zstd",
                          use_dictionary=["survey"], write_page_checksum=True) as writer:  # fmt: skip
        for rows in in_order(parts, index, schema, stage, row_bytes):
            for name, known in (("survey", {survey}), ("class", allowed)):
                strange = sorted(set(rows[name].unique().to_pylist()) - known)
                if strange:
                    raise UserError(f"parts hold rows whose {name} is {strange[0]!r}, and not one of {sorted(known)}")
            table.add(rows)
            hats.add(rows.slice(int(np.sum(rows["_healpix_29"].to_numpy() == NOWHERE))))  # which come first
            writer.write_table(rows.select(embeddings.names).cast(embeddings))
            quality.add(rows)
    table.close()
    hats.close(f"hpcspec-{survey}", {"obs_title": f"hpcspec value-added catalogue of {survey}", "hats_builder": "hpcspec"})
    return len(pixels)


def _read_quarantine(path: Path | None) -> list[tuple[str, str, str]]:
    """The quarantined rows (file, object_id, reason), every one of them, sorted."""
    if path is None:
        return []
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    found = []
    for file in files:
        try:
            lines = file.read_text("utf-8").splitlines()
        except OSError as error:
            raise UserError(f"can't read the quarantine file {file}: {error.strerror}") from error
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                found.append((str(row["path"]), str(row["object_id"]), str(row["reason"])))
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise UserError(f"{file}, line {number}: not a quarantined row with path, object_id and reason") from error
    return sorted(found)


def _publish(stage: Path, out: Path, survey: str) -> None:
    """Flush all files, then rename them into place; the old checksums go first and the new ones come last."""
    for path in stage.rglob("*"):
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
    (out / SUMS).unlink(missing_ok=True)
    for name in published_names(survey):
        if (out / name).is_dir():  # a folder can't be replaced by a rename
            os.rename(out / name, stage / f"old-{name}")
        os.replace(stage / name, out / name)
