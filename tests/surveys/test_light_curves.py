"""Readers of light curves on every layout they know, sound and damaged; the generic tables of any origin."""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.table import Table

from hpcspec.errors import UserError
from hpcspec.surveys import light_curves, reader
from hpcspec.surveys.base import Quarantined
from hpcspec.surveys.light_curves import roles
from hpcspec.surveys.observation import BadObject, Observation
from tests.surveys.curve_layouts import LAYOUTS, N, columns, day, generic_csv, generic_ecsv, generic_parquet, lines, mag

TEXT = [name for name in LAYOUTS if name not in ("asas_archive", "generic_fits", "generic_votable", "generic_parquet")]
PACKABLE = [name for name in LAYOUTS if name not in ("asas_archive", "generic_parquet")]


def read_all(survey: str, folder: Path) -> list[Observation | Quarantined]:
    module = reader(survey)
    return [found for source in module.discover(folder) for found in module.read(source)]


def table(folder: Path, *rows: str) -> list[Observation | Quarantined]:
    lines(folder / "table.csv", rows)
    return read_all("light_curves", folder)


@pytest.mark.parametrize("name", LAYOUTS)
def test_sound_files_give_their_objects(name: str, tmp_path: Path) -> None:
    layout = LAYOUTS[name]
    layout.write(tmp_path)
    found = read_all(layout.survey, tmp_path)
    assert tuple(o.object_id for o in found) == layout.object_ids
    first = found[0]
    assert isinstance(first, Observation) and first.survey == layout.survey
    assert tuple(curve.band for curve in first.curves) == layout.bands
    curve = first.curves[0]
    good = curve.ivar > 0
    assert curve.time[good] == pytest.approx([layout.start + day(i) for i in range(N)], abs=1e-6)
    assert curve.scale == layout.scale
    if curve.unit == "mag":
        assert curve.value[good] == pytest.approx([mag(i) for i in range(N)], abs=1e-4)
    else:
        assert curve.unit == "mJy" and curve.value[good] == pytest.approx([100 + i for i in range(N)])
    for curve in first.curves:
        assert curve.value.dtype == curve.ivar.dtype == np.float32 and np.all(np.isfinite(curve.value))
        assert np.all(np.diff(curve.time) >= 0) and (curve.ivar > 0).any()
    assert first.meta.get("class", "") == layout.label and np.isfinite(first.ra) == layout.placed
    assert first.meta["position"] == ("object" if layout.placed else "none")


def pack(path: Path) -> None:
    path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()


@pytest.mark.parametrize("name", PACKABLE)
def test_gzipped_files_are_read_the_same(name: str, tmp_path: Path) -> None:
    layout = LAYOUTS[name]
    layout.write(tmp_path)
    plain = read_all(layout.survey, tmp_path)
    for path in [p for p in tmp_path.rglob("*") if p.is_file()]:
        pack(path)
    packed = read_all(layout.survey, tmp_path)
    for a, b in zip(plain, packed, strict=True):
        assert isinstance(a, Observation) and isinstance(b, Observation)
        assert (a.object_id, a.meta, repr(a.scalars)) == (b.object_id, b.meta, repr(b.scalars))
        for x, y in zip(a.curves, b.curves, strict=True):
            assert np.array_equal(x.time, y.time) and np.array_equal(x.value, y.value) and np.array_equal(x.ivar, y.ivar)


SURVEYS = ("asassn", "asas", "eros")


@pytest.mark.parametrize(("name", "survey"), [(n, s) for n in LAYOUTS for s in SURVEYS if s != LAYOUTS[n].survey])
def test_another_surveys_files_are_never_read_as_its_own(name: str, survey: str, tmp_path: Path) -> None:
    LAYOUTS[name].write(tmp_path)
    try:
        found = read_all(survey, tmp_path)
    except UserError as error:
        assert "holds" in str(error)
        return
    assert found and all(isinstance(o, Quarantined) and o.reason.startswith("not a") for o in found), found


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def cut_gzip(path: Path) -> None:
    pack(path)
    cut(path.with_name(path.name + ".gz"))


def flip_gzip(path: Path) -> None:
    packed = bytearray(gzip.compress(path.read_bytes()))
    packed[-8] ^= 16  # the checksum
    path.write_bytes(bytes(packed))


WHOLE: dict[str, Callable[[Path], None]] = {
    "truncated gzip": cut_gzip,
    "flipped bit in gzip": flip_gzip,
    "empty": lambda path: path.write_bytes(b""),
    "prose": lambda path: path.write_text("this is no light curve\n" * 300),
    "zeros": lambda path: path.write_bytes(bytes(28800)),
    "noise": lambda path: path.write_bytes(np.random.default_rng(1).bytes(20000)),
}


@pytest.mark.parametrize("damage", WHOLE)
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_damaged_file_is_quarantined_with_a_reason(name: str, damage: str, tmp_path: Path) -> None:
    layout = LAYOUTS[name]
    layout.write(tmp_path)
    module = reader(layout.survey)
    path = module.discover(tmp_path)[0].paths[0]
    if path.suffix in (".gz", ".parquet") and "gzip" in damage:
        cut(path)
    else:
        WHOLE[damage](path)
    found = [o for source in module.discover(tmp_path) for o in module.read(source)]
    bad = [o for o in found if isinstance(o, Quarantined)]
    assert len(bad) == 1 and bad[0].reason and "\n" not in bad[0].reason and Path(bad[0].path).is_relative_to(tmp_path), found
    good = [o.object_id for o in found if isinstance(o, Observation)]
    # EROS tables and archives lose what is behind the damage only.
    assert len(good) == len(set(good)) and set(good) <= set(layout.object_ids)
    if layout.survey == "light_curves":
        assert not good


@pytest.mark.parametrize("junk", ["nan", "inf", "-inf", "abc", "1e999", ">14.1"])
@pytest.mark.parametrize("name", TEXT)
def test_numbers_that_are_none_are_not_used(name: str, junk: str, tmp_path: Path) -> None:
    layout = LAYOUTS[name]
    layout.write(tmp_path)
    good = used(read_all(layout.survey, tmp_path))
    path = reader(layout.survey).discover(tmp_path)[0].paths[0]
    text, count = re.subn(r"(?<![-\d])14\.10*\b|\b101\b", junk, path.read_text())
    path.write_text(text)
    after = read_all(layout.survey, tmp_path)
    if layout.survey == "eros" and junk in ("abc", ">14.1"):  # what is no number at all is no list of numbers
        assert all(isinstance(o, Quarantined) and "could not convert" in o.reason for o in after)
    else:
        assert count and used(after) == good - count


def used(found: list[Observation | Quarantined]) -> int:
    """How many epochs can be used; every value must be finite."""
    curves = [curve for one in found if isinstance(one, Observation) for curve in one.curves]
    assert curves and all(np.all(np.isfinite(curve.value)) for curve in curves)
    return sum(np.count_nonzero(curve.ivar) for curve in curves)


def test_rows_of_another_length_are_told(tmp_path: Path) -> None:
    found = table(tmp_path, "id,mjd,mag,mag_err", "a,58000,14,0.1", "a,58001,14", "b,58000,14,0.1,9,9", "b,58001,15,0.1")
    a, b, told = found
    assert isinstance(a, Observation) and isinstance(b, Observation) and isinstance(told, Quarantined)
    assert len(a.curves[0].time) == len(b.curves[0].time) == 1 and told.reason.startswith("2 damaged rows")


def test_comments_before_the_first_row_are_none_and_later_ones_are_told(tmp_path: Path) -> None:
    head = ("# of,this,table", "id,mjd,mag,mag_err", "# these,are,no,star", "# nor this")
    *stars, told = table(tmp_path, *head, "a,58000,14,0.1", "#b,58000,14", "a,58001,14,0.1")
    (a,) = stars
    assert isinstance(a, Observation) and len(a.curves[0].time) == 2
    assert isinstance(told, Quarantined) and told.reason.startswith("1 damaged rows") and "#b,58000,14" in told.reason


@pytest.mark.parametrize("name", [" .csv", "Käfer.csv", "a .csv"])
def test_identifiers_that_a_catalogue_can_t_hold_are_quarantined(name: str, tmp_path: Path) -> None:
    lines(tmp_path / name, ["mjd,mag,mag_err", "58000,14,0.1"])
    (star,) = read_all("light_curves", tmp_path)
    assert isinstance(star, Quarantined) and "not ASCII, or begins or ends with blanks" in star.reason


def test_rows_without_an_object_and_objects_without_a_measurement(tmp_path: Path) -> None:
    rows = ("a,58000,14,0.1", ",58001,14,0.1", "b,58000,nan,0.1", "c,nan,14,0.1", "d,58000,99.9,0.1")
    found = table(tmp_path, "id,mjd,mag,mag_err", *rows)
    by = {o.object_id: o for o in found}
    assert isinstance(by.pop("a"), Observation) and len(by) == 4 == len(found) - 1
    assert all(isinstance(o, Quarantined) for o in by.values())
    assert "without an object identifier" in by[""].reason and "no valid" in by["b"].reason


def test_one_impossible_time_costs_one_epoch(tmp_path: Path) -> None:
    rows = [f"{o},{58000 + i},14,0.1" for o in "ab" for i in range(3)]
    a, b = table(tmp_path, "id,time,mag,mag_err", *rows, "b,1e30,14,0.1")
    assert isinstance(a, Observation) and isinstance(b, Observation)
    assert [len(o.curves[0].time) for o in (a, b)] == [3, 3] and {o.curves[0].scale for o in (a, b)} == {"mjd"}


def test_unsorted_times_are_sorted_and_identifiers_stay_as_they_are(tmp_path: Path) -> None:
    a, b = table(tmp_path, "id,mjd,mag,mag_err", "007,58002,16,0.1", "7,58001,15,0.2", "007,58000,14,0.1", "007,58000,13,0.1")
    assert isinstance(a, Observation) and isinstance(b, Observation) and (a.object_id, b.object_id) == ("007", "7")
    assert a.curves[0].time.tolist() == [58000, 58000, 58002] and a.curves[0].value.tolist() == [14, 13, 16]
    assert b.curves[0].ivar == pytest.approx([25])


def test_what_is_constant_within_an_object_goes_to_meta(tmp_path: Path) -> None:
    head = "id,mjd,mag,mag_err,survey,n,gaia_id,label,fwhm,half"
    found = table(
        tmp_path, head, "a,1,14,0.1,X,12,4608321929460721408,RR,1.1,p", "b,1,14,0.1,Y,2.5,,EB,1.2,q",
        "a,2,14,0.1,X,12,4608321929460721408,RR,1.3,p", "c,1,14,0.1,Z,,17,,1.4,r", "b,2,14,0.1,Y,2.5,,EB,1.5,s",
    )  # fmt: skip
    none = {"position": "none"}
    assert [o.meta for o in found if isinstance(o, Observation)] == [
        {"survey": "X", "n": 12, "gaia_id": "4608321929460721408", "class": "RR", "half": "p"} | none,
        {"survey": "Y", "n": 2.5, "class": "EB"} | none,
        {"survey": "Z", "gaia_id": "17", "half": "r"} | none,
    ]


def test_a_damaged_cell_in_one_object_leaves_the_metadata_of_others(tmp_path: Path) -> None:
    rows = [f"{o},{t},14,0.1,{'?' if (o, t) == ('a', 2) else 'RR'}" for t in (1, 2, 3) for o in "abc"]
    a, *others = table(tmp_path, "id,mjd,mag,mag_err,class", *rows)
    assert isinstance(a, Observation) and "class" not in a.meta
    assert all(isinstance(o, Observation) and o.meta["class"] == "RR" for o in others)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("Object_ID", "BJD_TDB", "PSFMag", "e_psfmag", "Filter"), ("BJD_TDB", "PSFMag", "e_psfmag", "bjd_tdb", 0, 1, "mag")),
        (("oid", "HJD-2450000", "magnitude", "magerr", "fid"), ("HJD-2450000", "magnitude", "magerr", "hjd", 2450000, 1, "mag")),
        (("id", "time [s]", "flux (mJy)", "flux_err", "band"), ("time [s]", "flux (mJy)", "flux_err", "", 0, 1 / 86400, "mJy")),
        (("id", "mjd", "mag", "flux", "fluxerr", "band"), ("mjd", "flux", "fluxerr", "mjd", 0, 1, "unknown")),
        (("id", "jd", "time", "value", "error", "passband"), ("jd", "value", "error", "jd", 0, 1, "unknown")),
        (("id", "mjd", "mag", "mag_err", "flux", "flux_err", "band"), ("mjd", "mag", "mag_err", "mjd", 0, 1, "mag")),
    ],
)
def test_columns_are_known_by_their_names(names: tuple[str, ...], expected: tuple) -> None:
    found = roles(dict.fromkeys(names, ""))
    assert (found.time, found.value, found.error, found.scale, found.zero, found.days, found.unit) == expected
    assert (found.object, found.band) == (names[0], names[-1])


def test_what_is_lacking_is_named() -> None:
    with pytest.raises(BadObject, match="no column of time, error among id, mag"):
        roles({"id": "", "mag": ""})


def test_units_of_columns_count(tmp_path: Path) -> None:
    one = Table({"time": [60.0, 0.0], "flux": [2.0, 1.0], "flux_err": [0.5, 0.5]}, units={"time": "min", "flux": "uJy"})
    one.write(tmp_path / "a.ecsv", format="ascii.ecsv")
    one.write(tmp_path / "b.fits")
    one.write(tmp_path / "c.vot", format="votable")
    field = pa.field("flux", pa.float32(), metadata={"unit": "uJy"})
    schema = pa.schema([pa.field("time", pa.float64(), metadata={"unit": "min"}), field, pa.field("flux_err", pa.float32())])
    pq.write_table(pa.table([[60.0, 0.0], [2.0, 1.0], [0.5, 0.5]], schema=schema), tmp_path / "d.parquet")
    for found, name in zip(read_all("light_curves", tmp_path), "abcd", strict=True):
        assert isinstance(found, Observation) and found.object_id == name
        curve = found.curves[0]
        assert (curve.unit, curve.scale, curve.band) == ("uJy", "mjd", "flux")
        assert curve.time == pytest.approx([0, 60 / 1440]) and curve.value.tolist() == [1, 2]


def test_types_that_are_no_numbers_are_quarantined(tmp_path: Path) -> None:
    made = columns()
    pq.write_table(pa.table(made | {"magnitude": [[1.0]] * len(made["oid"])}), tmp_path / "a.parquet")
    pq.write_table(pa.table(made | {"oid": [{"a": 1}] * len(made["oid"])}), tmp_path / "b.parquet")
    pq.write_table(pa.table({k: v for k, v in made.items() if k != "magerr"}), tmp_path / "c.parquet")
    pq.write_table(pa.table({k: pa.array(v)[:0] for k, v in made.items()}), tmp_path / "d.parquet")
    found = read_all("light_curves", tmp_path)
    says = ("numbers belong", "names belong", "no column of error", "no epoch")
    assert all(isinstance(o, Quarantined) and s in o.reason for o, s in zip(found, says, strict=True)), found


def test_masked_and_float_identifiers(tmp_path: Path) -> None:
    made = Table(columns(), masked=True)
    made["oid"] = [float(i % 2) for i in range(len(made))]
    made["magnitude"].mask = [i == 0 for i in range(len(made))]
    made.write(tmp_path / "a.vot", format="votable")
    zero, one = read_all("light_curves", tmp_path)
    assert isinstance(zero, Observation) and isinstance(one, Observation) and (zero.object_id, one.object_id) == ("0", "1")
    assert np.count_nonzero(zero.curves[0].ivar == 0) == 1 and np.all(one.curves[0].ivar > 0)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_identifiers_that_floats_have_rounded_are_no_identifiers(kind: type, tmp_path: Path) -> None:
    """Of the two files one has the largest integers that a float holds, the other those behind, which are one for two stars."""
    made = columns()
    largest = 2 ** (np.finfo(kind).nmant + 1) - 1
    for name, start in (("exact", largest - 1), ("rounded", largest + 1)):
        ids = np.array([float(start + i % 2) for i in range(len(made["oid"]))], kind)
        pq.write_table(pa.table(made | {"oid": ids}), tmp_path / f"{name}.parquet")
    first, second, lost = read_all("light_curves", tmp_path)
    assert {first.object_id, second.object_id} == {str(largest - 1), str(largest)}
    assert isinstance(lost, Quarantined) and lost.reason == "identifiers are stored as floats and have lost digits"


def test_rounded_identifiers_in_text_and_missing_ones(tmp_path: Path) -> None:
    (lost,) = table(tmp_path, "id,mjd,mag,mag_err", "6.123456789012346e+18,58000,14,0.1", "6.123456789012347e+18,58000,14,0.1")
    assert isinstance(lost, Quarantined) and "lost digits" in lost.reason
    (tmp_path / "table.csv").unlink()
    made = columns()
    pq.write_table(pa.table(made | {"oid": [np.nan, *[7.0] * (len(made["oid"]) - 1)]}), tmp_path / "a.parquet")
    found = read_all("light_curves", tmp_path)
    assert {(o.object_id, type(o)) for o in found} == {("7", Observation), ("", Quarantined)}


def test_formats_agree(tmp_path: Path) -> None:
    found = []
    for write in (generic_csv, generic_ecsv, generic_parquet):
        folder = tmp_path / write.__name__
        folder.mkdir()
        write(folder)
        objects = [o for o in read_all("light_curves", folder) if isinstance(o, Observation)]
        found.append([(o.object_id, o.meta, repr(o.scalars), o.curves[0].value.tolist()) for o in objects])
    assert found[0] == found[1] == found[2]
    assert found[0][0][2] == "{'period': (0.5, nan)}"


def test_a_table_of_several_batches_is_put_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpcspec.surveys.tables.BLOCK", 1 << 12)
    rng = np.random.default_rng(3)
    of, time = rng.integers(0, 40, 3000), rng.uniform(58000, 59000, 3000)
    rows = [f"star {o},{t!r},14.5,0.1,{'gr'[o % 2]},{o / 8},{t:.2f}" for o, t in zip(of.tolist(), time.tolist(), strict=True)]
    found = table(tmp_path, "id,mjd,mag,err,band,ra,airmass", *rows)
    assert len(found) == 40
    for star in found:
        assert isinstance(star, Observation) and "airmass" not in star.meta
        o = int(star.object_id.split()[1])
        assert np.isnan(star.ra) and star.meta["ra"] == o / 8 and star.curves[0].band == "gr"[o % 2]
        assert np.array_equal(star.curves[0].time, np.sort(time[of == o]))


def test_a_folder_without_tables_is_an_error_for_people(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        light_curves.discover(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds no tables of light curves"):
        light_curves.discover(tmp_path)
