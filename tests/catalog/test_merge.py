"""Merging: what is published, the same bytes however the rows come, and refusals that publish nothing."""

from __future__ import annotations

import csv
import json
import os
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from astropy.table import Table

from hpcspec.catalog import hats_layout, merge, ordering
from hpcspec.catalog.parts import write_part
from hpcspec.catalog.schema import EMBEDDING, Flag, columns
from hpcspec.catalog.validate import validate
from hpcspec.errors import UserError
from hpcspec.shards.objects import healpix29

from .conftest import COLUMNS, PARAMETERS, PROVENANCE, ROWS, publish

pytestmark = pytest.mark.filterwarnings("ignore:.*did not parse as fits unit")


def content(folder: Path) -> dict[str, bytes]:
    """Bytes of every published file."""
    listed = [line.split("  ", 1)[1] for line in (folder / "SHA256SUMS").read_text().splitlines()]
    return {name: (folder / name).read_bytes() for name in [*listed, "SHA256SUMS"]}


@pytest.fixture()
def small_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many buckets, batches and HATS partitions, as a large catalogue has."""
    monkeypatch.setattr(ordering, "BUCKET_BYTES", 4000)
    monkeypatch.setattr(ordering, "BATCH_BYTES", 3000)
    monkeypatch.setattr(merge, "MAX_ROWS", 50)


@pytest.fixture()
def expected(rows) -> dict[str, np.ndarray]:
    order = np.lexsort((rows["object_id"], rows["_healpix_29"]))
    return {name: value[order] for name, value in rows.items()}


def test_fits_is_the_input_sorted(release: Path, expected) -> None:
    table = Table.read(release / "hpcspec-apogee.fits", character_as_bytes=False)
    assert table.colnames == [c.name for c in COLUMNS]
    for c in COLUMNS:
        np.testing.assert_array_equal(np.asarray(table[c.name]), expected[c.name], err_msg=c.name)
        assert str(table[c.name].unit or "") == c.unit
    header = table.meta
    assert "model_hash: 5f2a" in header.values() and 'inputs: {"seed": 7, "shards": 3}' in header.values()


def test_embeddings_are_the_input_sorted(release: Path, expected) -> None:
    table = pq.read_table(release / "hpcspec-apogee-embeddings.parquet")
    assert table["object_id"].to_pylist() == expected["object_id"].tolist()
    vectors = table["embedding"].combine_chunks().flatten().to_numpy().reshape(-1, 8)
    np.testing.assert_array_equal(vectors, expected["embedding"])
    assert table.schema.metadata[b"model_hash"] == b"5f2a"
    assert table.schema.field("ra").metadata[b"unit"] == b"deg"


def test_other_files(release: Path) -> None:
    with open(release / "quarantine.csv", newline="") as file:
        assert list(csv.reader(file)) == [["file", "object_id", "reason"], ["a.fits", "", "empty file"],
                                          *2 * [["b.fits", "x9", 'every flux is "NaN", or 0']]]  # fmt: skip
    facts = json.loads((release / "provenance.json").read_text())
    assert facts == {**PROVENANCE, "survey": "apogee", "rows_in": ROWS + 3, "rows": ROWS, "quarantined": 3, "without_position": 0,
                     "classes": ["STAR", "GALAXY", "QSO"], "parameters": list(PARAMETERS), "embedding_dimension": 8}  # fmt: skip
    page = (release / "qa/index.html").read_text()
    assert page.count('src="data:image/png;base64,') == 3 and not re.findall(r'(?:src|href)="(?!data:)', page)
    assert "<td>encode</td><td>12.5</td>" in page and f"<td>rows</td><td>{ROWS}</td>" in page
    assert (release / "parts/part-0000.parquet").exists() and not (release / merge.STAGE).exists()
    assert os.system(f"cd '{release}' && sha256sum --quiet --strict -c SHA256SUMS") == 0


def test_same_bytes_however_the_rows_are_cut(cut, tmp_path: Path, small_buffers: None) -> None:
    rng = np.random.default_rng(4)
    publish(cut(tmp_path / "a/parts", 3), tmp_path / "a")
    publish(cut(tmp_path / "b/parts", 11, rng.permutation(ROWS))[::-1], tmp_path / "b")
    first = content(tmp_path / "a")
    assert content(tmp_path / "b") == first
    publish(sorted((tmp_path / "a/parts").iterdir()), tmp_path / "a")
    assert content(tmp_path / "a") == first
    assert sum(name.endswith(".parquet") for name in first) > 15 and all(c.ok for c in validate(tmp_path / "a"))


def test_buffers_do_not_change_the_rows(cut, tmp_path: Path, small_buffers: None, release: Path) -> None:
    books = {**PROVENANCE, "rows_in": ROWS + 3}
    publish(cut(tmp_path / "parts"), tmp_path, quarantine=release.with_suffix(".jsonl"), provenance=books)
    name = "hpcspec-apogee.fits"
    assert (tmp_path / name).read_bytes() == (release / name).read_bytes()
    small, large = (pq.read_table(f / "hpcspec-apogee-embeddings.parquet") for f in (tmp_path, release))
    assert small.equals(large)


def test_an_older_release_is_replaced_and_the_rest_stays(cut, tmp_path: Path) -> None:
    (tmp_path / "hats/dataset/Norder=3").mkdir(parents=True)
    (tmp_path / "hats/dataset/Norder=3/old.parquet").write_text("old")
    (tmp_path / "hpcspec-apogee.fits").write_text("old")
    (tmp_path / "notes.txt").write_text("mine")
    publish(cut(tmp_path / "parts"), tmp_path)
    assert all(c.ok for c in validate(tmp_path)) and (tmp_path / "notes.txt").read_text() == "mine"
    assert len(list((tmp_path / "parts").iterdir())) == 3


def test_no_classes_no_parameters(rows, tmp_path: Path) -> None:
    bare = columns((), ())
    given = {c.name: rows[c.name] for c in (*bare, EMBEDDING)}
    given |= {"class": np.full(ROWS, ""), "class_prob": np.full(ROWS, np.nan)}
    write_part(tmp_path / "part", given, {"model_hash": "5f2a"})
    publish([tmp_path / "part"], tmp_path, columns=bare)
    assert [c.name for c in validate(tmp_path) if not c.ok] == []
    pages = (tmp_path / "qa/index.html").read_text()
    assert pages.count("data:image/png") == 2 and "Kiel" not in pages


def _two_models(cut, folder: Path) -> list[Path]:
    return [*cut(folder / "1", order=np.arange(300)), *cut(folder / "2", order=np.arange(300, ROWS), model="other")]


def _repeated(cut, folder: Path) -> list[Path]:
    return [*cut(folder / "1", order=np.arange(ROWS - 1)), *cut(folder / "2", 1, order=np.array([5]))]


def _far_twin(cut, folder: Path) -> list[Path]:
    return cut(folder, object_id=np.array([f"o{max(i, 1)}" for i in range(ROWS)]))


def _gone(cut, folder: Path) -> list[Path]:
    parts = cut(folder)
    parts[1].unlink()
    return parts


def _damaged(cut, folder: Path) -> list[Path]:
    parts = cut(folder)
    parts[2].write_bytes(parts[2].read_bytes()[:500])
    return parts


BAD_PARTS = {
    "different models": _two_models,
    r"such as '2M\d+(\+long)?' in .*part-0000.parquet": _repeated,
    "such as 'o1'": _far_twin,
    "does not exist": _gone,
    "truncated or damaged": _damaged,
    "hold 599 rows, not 600": lambda cut, folder: cut(folder, order=np.arange(599)),
    "nothing to merge": lambda cut, folder: [],
    "survey is 'desi'": lambda cut, folder: cut(folder, survey=np.full(ROWS, "desi")),
    "class is 'star'": lambda cut, folder: cut(folder, **{"class": np.full(ROWS, "star")}),
    "extra is unknown": lambda cut, folder: cut(folder, extra=np.zeros(ROWS)),
    "'2Mé' is empty or not ASCII": lambda cut, folder: cut(folder, object_id=np.full(ROWS, "2Mé")),
    "no nested HEALPix index": lambda cut, folder: cut(folder, _healpix_29=np.full(ROWS, -2)),
}


@pytest.mark.parametrize("said", BAD_PARTS)
def test_bad_parts_publish_nothing(cut, tmp_path: Path, said: str) -> None:
    parts = BAD_PARTS[said](cut, tmp_path / "parts")
    with pytest.raises(UserError, match=said):
        publish(parts, tmp_path / "out")
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_other_refusals(cut, tmp_path: Path) -> None:
    parts = cut(tmp_path / "parts")
    with pytest.raises(UserError, match="different models"):
        publish(parts, tmp_path, provenance={"model_hash": "not this one"})
    with pytest.raises(UserError, match="teff is unknown"):
        publish(parts, tmp_path, columns=columns(("STAR", "GALAXY", "QSO"), ("logg", "z", "oddity")))
    (tmp_path / "q.jsonl").write_text('{"path": "a", "object_id": "b", "reason": "c"}\n{"path": "a"')
    with pytest.raises(UserError, match="q.jsonl, line 2"):
        publish(parts, tmp_path, quarantine=tmp_path / "q.jsonl")
    with pytest.raises(UserError, match="can't read the quarantine file"):
        publish(parts, tmp_path, quarantine=tmp_path / "none.jsonl")
    with pytest.raises(UserError, match=f"don't balance: {ROWS + 1} rows in, {ROWS} rows out, 0 quarantined"):
        publish(parts, tmp_path, provenance={**PROVENANCE, "rows_in": ROWS + 1})
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="can't write the catalogue"):
        publish(parts, tmp_path / "file")


def test_an_interrupted_publication_shows_and_heals(cut, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = cut(tmp_path / "parts")
    publish(parts, tmp_path)
    before, replace, count = content(tmp_path), os.replace, 0

    def fail_late(source: Path, target: Path) -> None:
        nonlocal count
        count += 1
        if count == 5:
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(merge.os, "replace", fail_late)
    with pytest.raises(UserError, match="No space left"):
        publish(parts, tmp_path)
    monkeypatch.undo()
    assert not (tmp_path / "SHA256SUMS").exists() and not validate(tmp_path)[1].ok
    publish(parts, tmp_path)
    assert content(tmp_path) == before


def test_partitions_are_the_largest_that_fit() -> None:
    rng = np.random.default_rng(3)
    ra = np.r_[rng.uniform(0, 360, 2000), rng.normal(50, 0.1, 3000)]
    dec = np.r_[rng.uniform(-90, 90, 2000), rng.normal(20, 0.1, 3000)]
    healpix = np.sort(healpix29(ra, dec))
    found = hats_layout.partitions(healpix, 100)
    covered = [healpix[(healpix >> 2 * (29 - order)) == pixel] for order, pixel, _ in found]
    np.testing.assert_array_equal(np.concatenate(covered), healpix)
    assert [len(c) for c in covered] == [rows for *_, rows in found] and max(map(len, covered)) <= 100
    for order, pixel, _ in found:
        assert order == 0 or np.sum(healpix >> 2 * (30 - order) == pixel >> 2) > 100
    assert hats_layout.partitions(np.full(7, 12345), 5) == [(29, 12345, 7)]


def test_hats_reads_and_validates_it(cut, tmp_path: Path, small_buffers: None, expected) -> None:
    hats = pytest.importorskip("hats", reason="the hats package is not installed")
    from hats.io.validation import is_valid_catalog

    publish(cut(tmp_path / "parts"), tmp_path)
    assert is_valid_catalog(tmp_path / "hats", strict=True)
    catalog = hats.read_hats(tmp_path / "hats")
    assert catalog.catalog_info.total_rows == ROWS and catalog.schema.names == [c.name for c in COLUMNS]
    assert len(catalog.get_healpix_pixels()) == len(list((tmp_path / "hats").rglob("*.parquet"))) > 12


@pytest.mark.parametrize("share", [0.4, 1.0])
def test_objects_without_a_position_are_in_the_table_but_not_in_hats(cut, rows, tmp_path: Path, small_buffers: None,
                                                                     share: float) -> None:  # fmt: skip
    lost = np.random.default_rng(1).random(ROWS) < share
    changed = {name: np.where(lost, value, rows[name]) for name, value in
               (("ra", np.nan), ("dec", np.nan), ("_healpix_29", np.int64(-1)))}  # fmt: skip
    flags = np.where(lost, rows["flags"] | Flag.NO_POSITION, rows["flags"]).astype(np.int32)
    publish(cut(tmp_path / "parts", **changed, flags=flags), tmp_path)
    assert [c for c in validate(tmp_path) if not c.ok] == []
    table = Table.read(tmp_path / "hpcspec-apogee.fits", character_as_bytes=False)
    assert table["object_id"].tolist()[: lost.sum()] == sorted(rows["object_id"][lost].tolist()) and len(table) == ROWS
    ra = np.ma.filled(table["ra"], np.nan)
    assert np.isnan(ra[: lost.sum()]).all() and (table["_healpix_29"][: lost.sum()] == -1).all()
    embeddings = pq.read_table(tmp_path / "hpcspec-apogee-embeddings.parquet")
    assert embeddings["object_id"].to_pylist() == table["object_id"].tolist()
    if share < 1:
        hats = pytest.importorskip("hats", reason="the hats package is not installed")
        assert hats.read_hats(tmp_path / "hats").catalog_info.total_rows == ROWS - lost.sum()
    else:
        assert not list((tmp_path / "hats").rglob("Npix*"))
        assert "hats_nrows=0" in (tmp_path / "hats/hats.properties").read_text().splitlines()


def test_pandas_reads_it(release: Path, expected) -> None:
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    frame = pandas.read_parquet(release / "hats/dataset")
    assert sorted(frame["object_id"]) == sorted(expected["object_id"])
    vectors = pandas.read_parquet(release / "hpcspec-apogee-embeddings.parquet")["embedding"]
    np.testing.assert_array_equal(np.stack(list(vectors)), expected["embedding"])


def test_fitsio_reads_it(release: Path, expected) -> None:
    fitsio = pytest.importorskip("fitsio", reason="fitsio is not installed")
    with fitsio.FITS(str(release / "hpcspec-apogee.fits")) as file:
        rows, header = file["CATALOG"].read(), file["CATALOG"].read_header()
    for c in COLUMNS:
        np.testing.assert_array_equal(rows[c.name], expected[c.name], err_msg=c.name)
    assert header["TUCD3"] == "pos.eq.ra;meta.main"
