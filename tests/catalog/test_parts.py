"""Parts: written whole or not at all, the same bytes again, and clear words for one that can't be used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hpcspec.catalog.parts import open_part, provenance_of, read_part, write_part
from hpcspec.errors import UserError

MODEL = {"model_hash": "5f2a", "task": "3"}


def test_round_trip(rows, tmp_path: Path) -> None:
    path = tmp_path / "deep/er/part.parquet"
    write_part(path, rows, MODEL)
    table = read_part(path)
    assert set(table.column_names) == set(rows)
    for name, value in rows.items():
        read = table[name].combine_chunks()
        got = read.flatten().to_numpy().reshape(value.shape) if name == "embedding" else read.to_numpy(zero_copy_only=False)
        np.testing.assert_array_equal(got, value)
    with open_part(path) as file:
        assert provenance_of(file) == MODEL
    assert [p.name for p in path.parent.iterdir()] == ["part.parquet"]


def test_same_bytes_again_and_from_a_table(rows, tmp_path: Path) -> None:
    write_part(tmp_path / "a", rows, MODEL)
    write_part(tmp_path / "b", rows, dict(reversed(MODEL.items())))
    write_part(tmp_path / "c", read_part(tmp_path / "a"), MODEL)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == (tmp_path / "c").read_bytes()


@pytest.mark.parametrize(("name", "value", "said"), [
    ("object_id", np.arange(600), "must be text"), ("flags", np.ones(600), "must be int32"),
    ("ra", np.ones(9), "differ in length"), ("embedding", np.ones(600), r"must be \(n, d\)"),
    ("teff", np.ones((600, 2)), "one dimension"),
    ("class", np.array([None] * 600), "must be text"), ("anomaly", None, "needs the columns anomaly"),
])  # fmt: skip
def test_wrong_columns_are_refused(rows, tmp_path: Path, name: str, value: np.ndarray | None, said: str) -> None:
    given = {k: v for k, v in {**rows, name: value}.items() if v is not None}
    with pytest.raises(UserError, match=said):
        write_part(tmp_path / "part", given, MODEL)
    assert not list(tmp_path.iterdir())


def test_nulls_and_missing_model_are_refused(rows, tmp_path: Path) -> None:
    write_part(tmp_path / "part", rows, MODEL)
    table = read_part(tmp_path / "part")
    holed = table.set_column(table.column_names.index("teff"), "teff", pa.array([None] * table.num_rows, pa.float32()))
    with pytest.raises(UserError, match="'teff' holds nulls"):
        write_part(tmp_path / "other", holed, MODEL)
    with pytest.raises(UserError, match="model_hash"):
        write_part(tmp_path / "other", rows, {})


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


def _foreign(path: Path) -> None:
    pq.write_table(pa.table({"x": [1]}), path)


def _newer(path: Path) -> None:
    pq.write_table(pa.table({"x": [1]}).replace_schema_metadata({"hpcspec_part": "99"}), path)


@pytest.mark.parametrize(("harm", "said"), [
    (_truncate, "truncated or damaged"), (_flip, "truncated or damaged"), (lambda p: p.write_bytes(b""), "truncated or damaged"),
    (_foreign, "not a catalogue part"), (_newer, "version 99, not 1"), (Path.unlink, "does not exist"),
])  # fmt: skip
def test_unusable_parts_are_named(rows, tmp_path: Path, harm, said: str) -> None:
    path = tmp_path / "part-7.parquet"
    write_part(path, rows, MODEL)
    harm(path)
    with pytest.raises(UserError, match=said) as error:
        read_part(path)
    assert "part-7.parquet" in str(error.value) and "array task" in str(error.value)
