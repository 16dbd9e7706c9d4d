"""Label tables: any of CSV, FITS and Parquet, joined to the objects by the survey's own identifier."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet
from astropy.table import Column, Table

from hpcspec.config import Labels, Survey
from hpcspec.errors import UserError
from hpcspec.shards.objects import texts
from hpcspec.shards.shard import Shard
from hpcspec.stream.index import DataIndex
from hpcspec.surveys import labels as own_labels
from hpcspec.surveys.base import FAULTS, reason_of

WARNINGS = {"zwarning", "zwarn"}
NO_CLASS = {"", "unknown", "nan", "none", "null", "--"}


@dataclass(frozen=True)
class LabelSet:
    """Labels of n objects: object_class (n,) text, "" where unknown; values and errors {parameter: (n,)}, NaN where unknown
    (an unknown error is 0)."""

    object_class: np.ndarray
    values: dict[str, np.ndarray]
    errors: dict[str, np.ndarray]

    @property
    def classes(self) -> list[str]:
        """The classes that occur, sorted."""
        return sorted(set(self.object_class.tolist()) - {""})


def read_table(path: Path, key: str) -> pa.Table:
    """A label table with its key column as text.

    Raises UserError if it can't be read, isn't one of the known formats, or its key column is missing or a float.
    """
    name = re.sub(r"\.gz$", "", path.name.lower())
    try:
        if name.endswith((".csv", ".txt")):
            options = pyarrow.csv.ConvertOptions(column_types={key: pa.string()})
            table = pyarrow.csv.read_csv(path, convert_options=options)
        elif name.endswith((".fits", ".fit")):
            table = _from_fits(path)
        elif name.endswith((".parquet", ".pq")):
            with pa.input_stream(str(path)) as file:  # unpacks .gz, as read_csv does
                table = pyarrow.parquet.read_table(pa.BufferReader(file.read()))
        else:
            raise UserError(f"label table {path}: the name must end in .csv, .fits or .parquet (or one of them and .gz)")
    except (pa.ArrowException, *FAULTS) as error:
        raise UserError(f"can't read label table {path}: {reason_of(error)}") from error
    if key not in table.column_names:
        raise UserError(f"label table {path} has no column {key!r} (labels.key): it has {', '.join(table.column_names[:20])}")
    column = table.column(key)
    if pa.types.is_floating(column.type):
        raise UserError(f"label table {path}: the key column {key!r} is a float, which can't hold an identifier exactly: "
                        "write it as an integer or as text")  # fmt: skip
    text = pc.utf8_trim_whitespace(column.cast(pa.string()))
    return table.set_column(table.column_names.index(key), key, text)


def _from_fits(path: Path) -> pa.Table:
    source = Table.read(path, format="fits", character_as_bytes=False)
    return pa.table({name: _from_column(source[name]) for name in source.colnames if source[name].ndim == 1})


def _from_column(column: Column) -> pa.Array:
    """A column of a FITS table in native byte order, null where it is masked."""
    values = np.asarray(column)
    native = values.astype(values.dtype.newbyteorder("=")) if values.dtype.kind in "iuf" else values.astype(str)
    return pa.array(native, mask=np.ma.getmaskarray(column))


def _numbers(table: pa.Table, column: str, where: str, missing: tuple[float, ...]) -> np.ndarray:
    if column not in table.column_names:
        raise UserError(f"{where} has no column {column!r}: it has {', '.join(table.column_names[:20])}")
    values = table.column(column)
    try:
        if not (pa.types.is_integer(values.type) or pa.types.is_floating(values.type)):
            trimmed = pc.utf8_trim_whitespace(values.cast(pa.string()))
            values = pc.if_else(pc.is_in(trimmed, pa.array(["", "nan", "NaN", "null", "--"])), None, trimmed)
        numbers = values.cast(pa.float64()).to_numpy(zero_copy_only=False).astype(np.float64)
    except pa.ArrowException as error:
        raise UserError(f"{where}, column {column!r}: {error}") from error
    return np.where(np.isin(numbers, missing) | ~np.isfinite(numbers), np.nan, numbers)


def _own_columns(index: DataIndex, survey: str) -> pa.Table:
    """The labels that the survey's files carry themselves, from the shards."""
    tables = []
    for shard in index.shards:
        if shard.survey == survey:
            with Shard(shard) as opened:
                columns = {"object_id": opened.column("id"), **opened.meta()}
            tables.append(pa.table({k: pa.array((texts(v) if v.dtype.kind == "S" else v).tolist()) for k, v in columns.items()}))
    text = {f.name for t in tables for f in t.schema if pa.types.is_string(f.type)}  # in some shards, then in all
    alike = [t.cast(pa.schema([(f.name, pa.string() if f.name in text else f.type) for f in t.schema])) for t in tables]
    table = pa.concat_tables(alike, promote_options="permissive")
    for warning in sorted(WARNINGS & set(table.column_names)):  # the survey doubts its own class and redshift
        sure = pc.fill_null(pc.equal(table.column(warning), 0), True)
        for name in {"class", "subclass", "z"} & set(table.column_names):
            place = table.column_names.index(name)
            table = table.set_column(place, name, pc.if_else(sure, table.column(name), None))
    return table


def wanted(labels: Labels) -> bool:
    """Whether the configuration maps any label column."""
    return bool(labels.object_class or labels.parameters)


def label_names(surveys: Mapping[str, Survey]) -> set[str]:
    """The names of all labels: ours, those of the columns they come from, and where they are the survey's own, all that it
    found together with them."""
    names = {name for s in surveys.values() for pair in s.labels.parameters.items() for name in pair}
    for survey, settings in surveys.items():
        if settings.labels.parameters and not settings.labels.path:
            names |= own_labels(survey)
    return names


def load_labels(index: DataIndex, surveys: Mapping[str, Survey]) -> LabelSet:
    """The labels of every object of the index, from each survey's table (or, without one, from its files' own headers).

    Raises UserError for an unreadable table, a missing column, a word where a number should be, or if no object has a label.
    """
    n, ids, survey_of = len(index), index.column("id"), index.survey
    classes = np.full(n, "", object)
    names = list(dict.fromkeys(p for s in surveys.values() for p in s.labels.parameters if not p.endswith("_err")))
    values = {p: np.full(n, np.nan) for p in names}
    errors = {p: np.zeros(n) for p in names}
    sources: list[str] = []
    for survey, settings in surveys.items():
        labels = settings.labels
        members = np.flatnonzero(survey_of == survey)
        if not wanted(labels) or not len(members):
            continue
        own = _own_columns(index, survey)
        given = "" if labels.path else " (no label table was given with --labels)"
        tables = [(own, "object_id", f"the {survey} files{given}")]
        if labels.path:
            tables.insert(0, (read_table(Path(labels.path), labels.key), labels.key, f"label table {labels.path}"))
        sources.append(tables[0][2])
        joined = [_Joined(table, key, where, ids, members) for table, key, where in tables]
        if labels.object_class:
            found = _holding(joined, labels.object_class)
            classes[found.known] = [c if c.lower() not in NO_CLASS else "" for c in found.words(labels.object_class)]
        for parameter, column_name in labels.parameters.items():
            is_error = parameter.endswith("_err")
            if (is_error or parameter in labels.optional) and not any(column_name in j.table.column_names for j in joined):
                continue  # errors count as 0 then
            found = _holding(joined, column_name)
            numbers = _numbers(found.table, column_name, found.where, labels.missing)[found.rows]
            if is_error:
                errors[parameter.removesuffix("_err")][found.known] = np.nan_to_num(np.maximum(numbers, 0))
            else:
                values[parameter][found.known] = numbers
    if "z" in values:  # no redshift, but a survey's word for none
        values["z"] = np.where(values["z"] > -1, values["z"], np.nan)
    out = LabelSet(classes.astype(str), values, errors)
    if sources and not out.classes and not any(np.isfinite(v).any() for v in values.values()):
        raise UserError(f"no object has a label: no identifier in {' or '.join(sources)} is among the {n} ingested objects "
                        "(or every value is missing): check labels.key")  # fmt: skip
    return out


class _Joined:
    """A label table against the objects: `known` (k,) numbers of the members it has, `rows` (k,) theirs in the table. An epoch
    that has no row of its own has its object's."""

    def __init__(self, table: pa.Table, key: str, where: str, ids: np.ndarray, members: np.ndarray):
        self.table, self.where = table, where
        row = {k: i for i, k in reversed(list(enumerate(table.column(key).to_pylist())))}
        at = np.array([row.get(i, row.get(i.partition("@")[0], -1)) for i in ids[members].tolist()])
        self.known, self.rows = members[at >= 0], at[at >= 0]

    def words(self, column: str) -> list[str]:
        """A column as text, for the known members."""
        values = self.table.column(column).cast(pa.string()).to_pylist()
        return [(values[r] or "").strip() for r in self.rows]


def _holding(tables: list[_Joined], column: str) -> _Joined:
    """The first of the tables that has a column: the label table, else the survey's own files."""
    for table in tables:
        if column in table.table.column_names:
            return table
    raise UserError(f"{tables[0].where} has no column {column!r}: it has {', '.join(tables[0].table.column_names[:20])}")


def check_labels(survey: str, labels: Labels, own: frozenset[str]) -> None:
    """Refuse a label table, or the lack of one, that can't serve; `own` are the labels the survey's files carry themselves.

    Raises UserError for an unreadable table or a missing column, or if there is neither a table nor labels in the files.
    """
    named = {c for p, c in labels.parameters.items() if not p.endswith("_err") and p not in labels.optional}
    asked = {*([labels.object_class] if labels.object_class else []), *named} - own
    if labels.path:
        missing = sorted(asked - set(read_table(Path(labels.path), labels.key).column_names))
        if missing:
            raise UserError(f"label table {labels.path} has no column {', '.join(missing)}: see surveys.{survey}.labels")
    elif asked:
        raise UserError(f"no labels for {survey}: its files don't carry {', '.join(sorted(asked))}; give a table with "
                        f"--labels (or --set surveys.{survey}.labels={{}} for a catalogue of embeddings only)")  # fmt: skip


def describe(labels: LabelSet) -> dict[str, Any]:
    """How many objects have each label."""
    counted = {c: int((labels.object_class == c).sum()) for c in labels.classes}
    return {"classes": counted, "parameters": {p: int(np.isfinite(v).sum()) for p, v in labels.values.items()}}
