"""The validator: a good release passes, and each of many planted faults is found, by the check meant for it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.io import fits

from hpcspec.atomic import file_hash
from hpcspec.catalog.merge import release_files
from hpcspec.catalog.row_checks import wrong_healpix
from hpcspec.catalog.schema import Flag
from hpcspec.catalog.validate import Check, report, validate
from hpcspec.shards.objects import healpix29

TABLE, EMBEDDINGS = "hpcspec-apogee.fits", "hpcspec-apogee-embeddings.parquet"
Plant = Callable[[Path], None]


def resign(folder: Path) -> None:
    """Checksums for the files as they now are, so that only the planted fault remains to be found."""
    lines = [f"{file_hash(folder / name)}  {name}\n" for name in release_files(folder, "apogee")]
    (folder / "SHA256SUMS").write_text("".join(lines))


def cell(column: str, value: Any, row: int = 0) -> Plant:
    """Set one value of the FITS table (or, for a callable, what it makes of the row)."""

    def plant(folder: Path) -> None:
        with fits.open(folder / TABLE, mode="update", checksum=True) as hdus:
            data = hdus["CATALOG"].data
            data[column][row] = value(data[row]) if callable(value) else value

    return plant


def card(name: str, value: Any) -> Plant:
    """Set one card of the FITS table's header."""

    def plant(folder: Path) -> None:
        with fits.open(folder / TABLE, mode="update", checksum=True) as hdus:
            hdus["CATALOG"].header[name] = value

    return plant


def embedding(change: Callable[[pa.Table], pa.Table]) -> Plant:
    """Change the table of embeddings."""
    return lambda folder: pq.write_table(change(pq.read_table(folder / EMBEDDINGS)), folder / EMBEDDINGS)


def edit(name: str, old: str, new: str) -> Plant:
    """Change a text file."""
    return lambda folder: (folder / name).write_text(re.sub(old, new, (folder / name).read_text()))  # type: ignore[return-value]


def _nan_vector(table: pa.Table) -> pa.Table:
    values = table["embedding"].combine_chunks().flatten().to_numpy().copy()
    values[17] = np.nan
    made = pa.FixedSizeListArray.from_arrays(pa.array(values), type=table.schema.field("embedding").type)
    return table.set_column(5, table.schema.field("embedding"), made)


def _flip_bit(folder: Path) -> None:
    with fits.open(folder / TABLE) as hdus:
        place = hdus["CATALOG"].fileinfo()["datLoc"] + hdus["CATALOG"].data.dtype.fields["anomaly"][1]
    data = bytearray((folder / TABLE).read_bytes())
    data[place + 3] ^= 1  # the last bit of a float32: a number that is still plausible
    (folder / TABLE).write_bytes(data)


def _truncate(folder: Path) -> None:
    (folder / TABLE).write_bytes((folder / TABLE).read_bytes()[:-5000])


def _drop_hats_partition(folder: Path) -> None:
    next((folder / "hats").rglob("Npix=*.parquet")).unlink()


def _swap_class(row: Any) -> str:
    return "QSO" if row["class"] != "QSO" else "STAR"


def _shift_probability(row: Any) -> float:
    return row["p_star"] + 0.05


FAULTS: dict[str, tuple[Plant, set[str], str]] = {
    "file missing": (lambda f: (f / "datamodel.html").unlink(), {"files"}, "datamodel.html"),
    "changed without new checksums": (edit("qa/index.html", "Sky", "sky"), set(), ""),
    "bit flip": (_flip_bit, {"fits structure"}, "CHECKSUM or DATASUM"),
    "truncated": (_truncate, {"fits structure", "rows", "same objects"}, ""),
    "unit": (card("TUNIT3", "rad"), {"fits columns"}, "unit of ra is 'rad', not 'deg'"),
    "ucd": (card("TUCD6", "stat.max"), {"fits columns"}, "UCD of sn_median"),
    "description": (card("TCOMM4", "?"), {"fits columns"}, "description of dec"),
    "renamed column": (card("TTYPE12", "temp"), {"fits columns", "rows"}, "temp"),
    "repeated id": (cell("object_id", "2M00001", 9), {"unique", "same objects"}, "1 object_id occur"),
    "empty id": (cell("object_id", ""), {"not empty", "same objects"}, "object_id is empty"),
    "declination": (cell("dec", 95.0), {"ranges", "healpix"}, "dec is outside"),
    "temperature": (lambda f: cell("teff", 9e8, _star(f))(f), {"ranges"}, "teff is outside 500 … 300000"),
    "infinite": (cell("anomaly", np.inf), {"ranges"}, "anomaly is infinite"),
    "nan": (cell("sn_median", np.nan), {"not empty"}, "sn_median is NaN"),
    "probabilities": (cell("p_star", _shift_probability), {"classes"}, "don't sum to 1"),
    "class": (cell("class", _swap_class), {"classes"}, "not the most probable"),
    "unknown class": (cell("class", "BLOB"), {"classes"}, "class is not one of those"),
    "class_prob": (cell("class_prob", 0.01), {"classes"}, "class_prob is not"),
    "error": (cell("z_err", 0.0), {"errors"}, "z_err is not positive"),
    "narrow interval": (cell("z_err95", 1e-3), {"errors"}, "z_err95 is smaller than z_err"),
    "error without value": (cell("z", np.nan), {"errors"}, "not both there"),
    "unknown flag": (cell("flags", 1 << 20), {"ranges"}, "flags is outside"),
    "healpix": (cell("_healpix_29", lambda row: row["_healpix_29"] + (1 << 20)), {"healpix"}, "not the pixel"),
    "half a position": (cell("dec", np.nan), {"healpix"}, "not the pixel"),
    "position said to be unknown": (cell("flags", int(Flag.NO_POSITION)), {"healpix"}, "whether there is a position"),
    "unknown positions": (edit("provenance.json", '"without_position": 0', '"without_position": 2'), {"hats"}, "598 rows"),
    "order": (cell("_healpix_29", 12 * 4**29 - 1), {"healpix", "order"}, "not sorted"),
    "embedding nan": (embedding(_nan_vector), {"embeddings"}, "1 embeddings are not finite"),
    "embedding rows": (embedding(lambda t: t.slice(1)), {"embeddings", "same objects"}, "599 rows, and 600"),
    "embedding order": (embedding(lambda t: pa.concat_tables([t.slice(1), t.slice(0, 1)])), {"same objects"}, "hold other"),
    "embedding column": (embedding(lambda t: t.drop_columns(["dec"])), {"embeddings"}, "columns are"),
    "hats partition": (_drop_hats_partition, {"hats", "same objects"}, "Npix="),
    "hats rows": (edit("hats/hats.properties", "(hats_nrows=).*", r"\g<1>5"), {"hats"}, "differ"),
    "hats partition unlisted": (edit("hats/partition_info.csv", r"0,3\n", ""), {"hats", "same objects"}, "Npix=3"),
    "quarantine": (edit("quarantine.csv", "a.fits.*\n", ""), {"quarantine"}, "2 rows, and 3"),
    "provenance rows": (edit("provenance.json", '"rows": 600', '"rows": 601'),
                        {"provenance", "fits structure", "embeddings", "hats"}, "601"),
    "provenance books": (edit("provenance.json", '"rows_in": 603', '"rows_in": 604'), {"provenance"}, "604 rows in, but 600"),
    "provenance model": (edit("provenance.json", '"model_hash": "5f2a",', ""), {"provenance"}, "lacks model_hash"),
    "provenance gone": (lambda f: (f / "provenance.json").unlink(), {"provenance"}, "can't be read"),
}


def _star(folder: Path) -> int:
    return int(np.flatnonzero(fits.getdata(folder / TABLE)["class"] == "STAR")[0])


@pytest.fixture()
def folder(release: Path, tmp_path: Path) -> Path:
    shutil.copytree(release, tmp_path / "copy", ignore=shutil.ignore_patterns("parts"))
    return tmp_path / "copy"


def failed(checks: list[Check]) -> dict[str, str]:
    return {c.name: c.detail for c in checks if not c.ok}


def test_a_good_release_passes(release: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checks = validate(release)
    assert report(checks) and len(checks) >= 15
    assert capsys.readouterr().out.splitlines()[-1] == f"{len(checks)} checks passed, 0 failed"


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_fault_is_found(folder: Path, fault: str, capsys: pytest.CaptureFixture[str]) -> None:
    plant, checks, said = FAULTS[fault]
    plant(folder)
    if fault != "provenance gone":
        assert "checksums" in failed(validate(folder))
        resign(folder)
    found = validate(folder)
    assert set(failed(found)) == checks and said in " ".join(failed(found).values())
    assert report(found) == (not checks)
    assert capsys.readouterr().out.count("FAIL") == len(checks)


def test_extrapolated_parameters_may_leave_their_range(folder: Path) -> None:
    star = _star(folder)
    cell("teff", 100.0, star)(folder)
    cell("flags", int(Flag.EXTRAPOLATED_LABEL), star)(folder)
    resign(folder)
    assert not failed(validate(folder))


def test_every_byte_of_garbage_is_a_failed_check(folder: Path) -> None:
    for name in release_files(folder, "apogee"):
        if name != "provenance.json":
            (folder / name).write_bytes(b"\xff\x00garbage")
    assert {"checksums", "fits structure", "fits columns", "embeddings", "hats", "same objects", "quarantine", "rows"} <= set(
        failed(validate(folder))
    )
    (folder / "provenance.json").write_text(json.dumps([1]))
    assert set(failed(validate(folder))) == {"provenance"}


def test_survey_may_be_given(release: Path) -> None:
    assert not failed(validate(release, "apogee"))
    assert {"provenance", "files"} <= set(failed(validate(release, "desi")))


def test_wrong_healpix_forgives_rounding_only() -> None:
    ra, dec = np.array([10.0, 10.0, 10.0, np.nan]), np.array([20.0, 20.0, 20.0, 20.0])
    right = healpix29(ra[:1], dec[:1])[0]
    beside = healpix29(ra[:1] + 1.5e-7, dec[:1])[0]
    far = healpix29(ra[:1] + 2e-6, dec[:1])[0]
    assert wrong_healpix(ra, dec, np.array([right, beside, far, right])).tolist() == [False, False, True, True]
    assert right != beside
