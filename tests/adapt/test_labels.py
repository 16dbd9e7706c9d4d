from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
from astropy.table import MaskedColumn, Table

from hpcspec.adapt.labels import LabelSet, check_labels, describe, label_names, load_labels, read_table
from hpcspec.config import Labels, Survey
from hpcspec.errors import UserError
from hpcspec.stream.index import DataIndex, open_index
from tests.making import shard, spectrum

BIG = 2**53  # from here on a float can't tell neighbouring integers apart
IDS = [BIG + i for i in range(6)]
Rows = dict[str, list[Any]]
ROWS: Rows = {
    "targetid": IDS[::-1],  # not in the order of the objects
    "kind": ["STAR", "QSO", " STAR ", "", "GALAXY", "STAR"],
    "teff": [5000.5, -9999.0, float("nan"), 4000.25, -999.0, 6100.0],
    "teff_e": [50.0, 60.0, -5.0, float("nan"), 80.0, 90.0],
    "tile": [1, 2, 3, 4, 5, 6],
    "remark": ["fine", "3", "4", "5", "6", "7"],
}
MAPPING = {"key": "targetid", "object_class": "kind", "parameters": {"teff": "teff", "teff_err": "teff_e", "tile": "tile"}}


def csv(path: Path, rows: Rows) -> None:
    pyarrow.csv.write_csv(pa.table(rows), path)


def csv_gz(path: Path, rows: Rows) -> None:
    with gzip.open(path, "wb") as file:
        pyarrow.csv.write_csv(pa.table(rows), file)


def parquet(path: Path, rows: Rows) -> None:
    pyarrow.parquet.write_table(pa.table(rows), path)


def parquet_gz(path: Path, rows: Rows) -> None:
    with gzip.open(path, "wb") as file:
        pyarrow.parquet.write_table(pa.table(rows), file)


def fits(path: Path, rows: Rows) -> None:
    Table({k: np.array(v) for k, v in rows.items()}).write(path, format="fits")


WRITERS: dict[str, Callable[[Path, Rows], None]] = {
    "l.csv": csv, "l.csv.gz": csv_gz, "l.parquet": parquet, "l.parquet.gz": parquet_gz, "l.fits": fits, "l.fits.gz": fits,
}  # fmt: skip
FORMATS = pytest.mark.parametrize("name", WRITERS)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> DataIndex:
    """Six DESI objects in two shards, and one of SDSS that has the identifier of the first."""
    folder = tmp_path_factory.mktemp("shards")
    desi = [spectrum(i, pixels=8, survey="desi", object_id=str(number)) for i, number in enumerate(IDS)]
    paths = [shard(folder / f"desi-{i:05d}.h5", some, survey="desi") for i, some in enumerate((desi[:4], desi[4:]))]
    return open_index([*paths, shard(folder / "sdss-00000.h5", [spectrum(9, pixels=8, object_id=str(IDS[0]))])])


def loaded(index: DataIndex, path: Path | None, **changed: Any) -> LabelSet:
    labels = Labels(path=None if path is None else str(path), **{**MAPPING, **changed})
    return load_labels(index, {"desi": Survey(labels=labels), "sdss": Survey()})


@FORMATS
def test_every_format_gives_the_same_labels(index: DataIndex, tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name, ROWS)
    labels = loaded(index, tmp_path / name)
    assert labels.object_class.tolist() == ["STAR", "GALAXY", "", "STAR", "QSO", "STAR", ""]
    np.testing.assert_array_equal(labels.values["teff"], [6100, np.nan, 4000.25, np.nan, np.nan, 5000.5, np.nan])
    np.testing.assert_array_equal(labels.errors["teff"], [90, 80, 0, 0, 60, 50, 0])
    np.testing.assert_array_equal(labels.values["tile"], [6, 5, 4, 3, 2, 1, np.nan])
    assert labels.errors["tile"].tolist() == [0] * 7
    assert labels.classes == ["GALAXY", "QSO", "STAR"]
    assert describe(labels) == {"classes": {"GALAXY": 1, "QSO": 1, "STAR": 3}, "parameters": {"teff": 3, "tile": 6}}


@FORMATS
def test_integer_keys_stay_exact(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name, ROWS)
    assert read_table(tmp_path / name, "targetid").column("targetid").to_pylist() == [str(i) for i in IDS[::-1]]


@pytest.mark.parametrize("name", [n for n in WRITERS if "csv" not in n])
def test_a_float_key_is_refused(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name, {**ROWS, "targetid": [float(i) for i in IDS]})
    with pytest.raises(UserError, match="the key column 'targetid' is a float, which can't hold an identifier exactly"):
        read_table(tmp_path / name, "targetid")


@FORMATS
def test_a_key_of_text_may_be_padded(index: DataIndex, tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name, {**ROWS, "targetid": [f" {i}  " for i in IDS[::-1]]})
    assert np.isfinite(loaded(index, tmp_path / name).values["tile"]).sum() == 6


@FORMATS
def test_a_word_in_a_column_of_numbers_names_the_column(index: DataIndex, tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name, ROWS)
    with pytest.raises(UserError, match=f"{name}, column 'remark': .*fine"):
        loaded(index, tmp_path / name, parameters={"teff": "remark"})


@FORMATS
@pytest.mark.parametrize(("changed", "column"), [({"key": "specobjid"}, "specobjid"), ({"object_class": "class"}, "class"),
                                                 ({"parameters": {"teff": "T_EFF"}}, "T_EFF")])  # fmt: skip
def test_a_missing_column_says_what_there_is(index: DataIndex, tmp_path: Path, name: str, changed: dict, column: str) -> None:
    WRITERS[name](tmp_path / name, ROWS)
    with pytest.raises(UserError, match=f"has no column '{column}'.*it has targetid, kind, teff"):
        loaded(index, tmp_path / name, **changed)
    with pytest.raises(UserError, match=f"no column '?{column}"):
        check_labels("desi", Labels(path=str(tmp_path / name), **{**MAPPING, **changed}), frozenset())


def test_an_optional_column_may_be_missing(index: DataIndex, tmp_path: Path) -> None:
    csv(tmp_path / "l.csv", ROWS)
    more = {**MAPPING["parameters"], "feh": "fe_h"}
    with pytest.raises(UserError, match="no column 'fe_h'"):
        loaded(index, tmp_path / "l.csv", parameters=more)
    found = loaded(index, tmp_path / "l.csv", parameters=more, optional=("feh", "tile"))
    assert np.isnan(found.values["feh"]).all() and np.isfinite(found.values["tile"]).any()
    given = Labels.model_validate(MAPPING | {"path": str(tmp_path / "l.csv"), "parameters": more})
    with pytest.raises(UserError, match="no column fe_h"):
        check_labels("sdss", given, frozenset())
    check_labels("sdss", given.model_copy(update={"optional": ("feh",)}), frozenset())


def test_numbers_as_text_and_its_ways_to_say_nothing(index: DataIndex, tmp_path: Path) -> None:
    words = ["1.5", " 2.5 ", "", "nan", "--", "-9999"]
    for number, kind in enumerate([pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())]):
        path = tmp_path / f"{number}.parquet"
        pyarrow.parquet.write_table(pa.table({"targetid": IDS, "teff": pa.array(words).cast(kind)}), path)
        values = loaded(index, path, object_class=None, parameters={"teff": "teff"}).values["teff"]
        np.testing.assert_array_equal(values, [1.5, 2.5] + [np.nan] * 5)


def test_masked_cells_of_a_fits_table_are_missing(index: DataIndex, tmp_path: Path) -> None:
    table = Table({"targetid": IDS})
    table["tile"] = MaskedColumn([1, 2, 3, 4, 5, 6], mask=[0, 1, 0, 0, 1, 0], fill_value=99)
    table["teff"] = MaskedColumn([1.0, 2, 3, 4, 5, 6], mask=[1, 0, 0, 0, 0, 0])
    table.write(tmp_path / "l.fits")
    values = loaded(index, tmp_path / "l.fits", object_class=None, parameters={"tile": "tile", "teff": "teff"}).values
    np.testing.assert_array_equal(values["tile"][:6], [1, np.nan, 3, 4, np.nan, 6])
    np.testing.assert_array_equal(values["teff"][:6], [np.nan, 2, 3, 4, 5, 6])


def test_the_first_of_repeated_rows_counts(index: DataIndex, tmp_path: Path) -> None:
    csv(tmp_path / "l.csv", {"targetid": [IDS[0], IDS[0], IDS[1]], "teff": [1.0, 2.0, 3.0]})
    values = loaded(index, tmp_path / "l.csv", object_class=None, parameters={"teff": "teff"}).values["teff"]
    np.testing.assert_array_equal(values[:2], [1, 3])


@FORMATS
def test_no_object_in_common_is_a_user_error(index: DataIndex, tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name, {**ROWS, "targetid": list(range(6))})
    with pytest.raises(UserError, match=f"no object has a label: no identifier in label table .*{name} is among the 7 ingested"):
        loaded(index, tmp_path / name)


@pytest.mark.parametrize(("name", "share"), [(n, s) for n in WRITERS for s in (0.0, 0.6) if (n, s) != ("l.csv", 0.6)])
def test_a_damaged_table_is_a_user_error(index: DataIndex, tmp_path: Path, name: str, share: float) -> None:
    WRITERS[name](tmp_path / name, {k: v * 2000 for k, v in ROWS.items()})
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: int(len(content) * share)])
    with pytest.raises(UserError, match=f"{name}"):
        loaded(index, tmp_path / name)


@pytest.mark.parametrize("name", ["none.csv", "none.fits", "none.parquet", "table.xlsx"])
def test_a_missing_table_or_unknown_format_is_a_user_error(index: DataIndex, tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=name):
        loaded(index, tmp_path / name)


def own(folder: Path, *metas: list[dict[str, Any]]) -> DataIndex:
    """A shard for each list, its objects with these values from their own files."""
    return open_index([shard(folder / f"sdss-{i:05d}.h5", [spectrum(10 * i + j, pixels=8, meta=m) for j, m in enumerate(some)])
                       for i, some in enumerate(metas)])  # fmt: skip


def from_files(index: DataIndex, **parameters: str) -> LabelSet:
    return load_labels(index, {"sdss": Survey(labels=Labels(object_class="class", parameters=parameters))})


def test_without_a_table_the_files_own_values_are_the_labels(tmp_path: Path) -> None:
    index = own(tmp_path, [{"class": "STAR", "z": 0.1}, {"class": "QSO"}], [{"class": "STAR", "z": 3}, {"z": 1.5}])
    labels = from_files(index, z="z")
    assert labels.object_class.tolist() == ["STAR", "QSO", "STAR", ""]
    np.testing.assert_array_equal(labels.values["z"], [0.1, np.nan, 3, 1.5])


def test_the_files_own_values_may_be_text_in_one_shard_only(tmp_path: Path) -> None:
    index = own(tmp_path, [{"class": "STAR", "z": 0.1}, {"class": "QSO"}], [{"class": "STAR", "z": "0.25"}, {"z": 2}])
    np.testing.assert_array_equal(from_files(index, z="z").values["z"], [0.1, np.nan, 0.25, 2])


def test_values_that_no_file_has_are_a_user_error(tmp_path: Path) -> None:
    index = own(tmp_path, [{"class": "STAR"}])
    with pytest.raises(UserError, match=r"the sdss files \(no label table was given with --labels\) has no column 'teff'"):
        from_files(index, teff="teff")
    with pytest.raises(UserError, match="no labels for sdss: its files don't carry teff"):
        check_labels("sdss", Labels(parameters={"teff": "teff"}), frozenset({"z"}))
    check_labels("sdss", Labels(parameters={"z": "z"}), frozenset({"z"}))


def test_where_no_column_is_mapped_nothing_is_read(index: DataIndex) -> None:
    labels = load_labels(index, {"desi": Survey(labels=Labels(path="no such file.csv")), "sdss": Survey()})
    assert labels.classes == [] and labels.values == {} and len(labels.object_class) == len(index)


def test_epochs_have_the_labels_of_their_object(tmp_path: Path) -> None:
    epochs = [spectrum(i, pixels=8, object_id=f"star-{i // 2}@{i}") for i in range(6)]
    index = open_index([shard(tmp_path / "sdss-00000.h5", epochs)])
    table = tmp_path / "labels.csv"
    table.write_text("object_id,teff\nstar-0,5000\nstar-2,6000\nstar-2@5,6100\n")
    labels = load_labels(index, {"sdss": Survey(labels=Labels(path=str(table), parameters={"teff": "teff"}))})
    np.testing.assert_array_equal(labels.values["teff"], [5000, 5000, np.nan, np.nan, 6000, 6100])


def test_what_a_survey_found_together_with_its_labels_is_withheld_too() -> None:
    """Gaia's radii come out of the same fit as its temperatures; a table of one's own says nothing of them."""
    own, given = (Survey(labels=Labels(path=path, parameters={"teff": "teff_gspphot"})) for path in (None, "labels.csv"))
    assert label_names({"gaia": own}) >= {"teff", "teff_gspphot", "radius_gspphot", "logg_gspphot"}
    assert label_names({"gaia": given}) == {"teff", "teff_gspphot"} and label_names({"gaia": Survey()}) == set()


def test_a_redshift_of_minus_one_is_none(tmp_path: Path) -> None:
    index = open_index([shard(tmp_path / "sdss-00000.h5", [spectrum(n) for n in range(3)])])
    (tmp_path / "z.csv").write_text("object_id,z\nobject-0000,-1\nobject-0001,0.5\nobject-0002,-9\n")
    labels = load_labels(index, {"sdss": Survey(labels=Labels(path=str(tmp_path / "z.csv"), parameters={"z": "z"}))})
    assert np.isnan(labels.values["z"]).tolist() == [True, False, True]
