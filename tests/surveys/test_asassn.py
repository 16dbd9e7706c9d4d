"""ASAS-SN: bands, limits, quality, identifiers, catalogues, and the real files of three layouts."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from hpcspec.errors import UserError
from hpcspec.surveys import asassn
from hpcspec.surveys.base import Quarantined
from hpcspec.surveys.observation import Observation
from tests.surveys.curve_layouts import PATROL_1, STARS, lines, patrol_1, patrol_2, pyasassn, variables


def objects(folder: Path) -> list[Observation | Quarantined]:
    return [found for source in asassn.discover(folder) for found in asassn.read(source)]


def one(folder: Path) -> Observation:
    (found,) = objects(folder)
    assert isinstance(found, Observation), found
    return found


def test_limits_and_empty_epochs_are_not_used(tmp_path: Path) -> None:
    patrol_1(tmp_path)
    v, g = one(tmp_path).curves
    assert np.all(v.ivar == np.float32(2500)) and (g.ivar > 0).tolist() == [False, True, False]
    assert g.value.tolist() == [0, 14.5, 0] and g.time.tolist() == [2457900.5, 2457901.5, 2457902.5]


def test_bad_quality_and_lacking_errors_are_not_used(tmp_path: Path) -> None:
    patrol_2(tmp_path)
    star = one(tmp_path)
    assert (star.curves[0].ivar > 0).tolist() == [True] * 12 + [False] * 2
    assert star.meta == {"refcat_id": "149462658684125462", "gaia_id": "4608321929460721408", "position": "none"}


def test_the_star_of_the_comment(tmp_path: Path) -> None:
    pyasassn(tmp_path)
    star = one(tmp_path)
    assert (star.ra, star.dec) == (85.5, -79.25) and star.scalars["mag_g"][0] == 13.135
    assert star.meta["gaia_id"] == "5211052415435948544" and star.meta["name"] == "VX Men"


def test_cameras_tell_the_band(tmp_path: Path) -> None:
    rows = [f"245700{i}.5,1,1,14,0.1,17,1.5,{camera},5" for i, camera in enumerate(["ba", "bA", "bh", "bH", "bi", "bt"])]
    lines(tmp_path / "x.csv", ["jd,flux,flux_err,mag,mag_err,limit,fwhm,cam,asas_sn_id", *rows])
    assert [(c.band, len(c.time)) for c in one(tmp_path).curves] == [("V", 2), ("g", 4)]


def test_a_table_of_several_stars(tmp_path: Path) -> None:
    rows = [f"{star},{2457000 + i}.5,1,1,14,0.1,17,1.5,bi,{q},g" for i, q in enumerate("GGB") for star in (9, 17179869184001)]
    lines(tmp_path / "x.csv", ["asas_sn_id,jd,flux,flux_err,mag,mag_err,limit,fwhm,camera,quality,phot_filter", *rows])
    found = objects(tmp_path)
    assert [o.object_id for o in found] == ["9", "17179869184001"]
    for star in found:
        assert isinstance(star, Observation) and (star.curves[0].ivar > 0).tolist() == [True, True, False]


def test_rows_without_an_identifier_are_told(tmp_path: Path) -> None:
    rows = ["2457000.5,1,1,14,0.1,17,1.5,bi,7", "2457001.5,1,1,14,0.1,17,1.5,bi,"]
    lines(tmp_path / "x.csv", ["jd,flux,flux_err,mag,mag_err,limit,fwhm,cam,asas_sn_id", *rows])
    without, star = objects(tmp_path)
    assert isinstance(without, Quarantined) and without.reason == "no object identifier"
    assert isinstance(star, Observation) and len(star.curves[0].time) == 1


def test_the_catalogue_gives_class_scalars_and_position(tmp_path: Path) -> None:
    variables(tmp_path)
    star, other = objects(tmp_path)
    assert isinstance(star, Observation) and isinstance(other, Observation)
    assert {name: v for name, (v, _) in star.scalars.items()} == {"period": 1.5, "amplitude": 0.35, "mag_v": 14.15}
    assert star.meta["class"] == "RRAB" and (star.ra, star.dec) == (274.22525, -20.35489)
    assert (other.ra, other.dec) == (285.0, 10.0) and not other.scalars and "class" not in other.meta


def test_the_name_tells_the_position_without_a_catalogue(tmp_path: Path) -> None:
    variables(tmp_path)
    (tmp_path / "variables.csv").unlink()
    star = objects(tmp_path)[0]
    assert isinstance(star, Observation)
    assert (star.ra, star.dec) == pytest.approx((274.22525, -20.35489), abs=1e-5)


def test_a_star_that_a_damaged_catalogue_may_have_lost_is_quarantined(tmp_path: Path) -> None:
    variables(tmp_path)
    with (tmp_path / "variables.csv").open("a") as file:
        file.write(f"{STARS[1]},285,10\n")
    star, other = objects(tmp_path)
    assert isinstance(star, Observation) and star.meta["class"] == "RRAB"
    assert isinstance(other, Quarantined) and other.object_id == STARS[1] and "variables.csv is damaged" in other.reason


def test_a_catalogue_that_changes_is_read_again(tmp_path: Path) -> None:
    variables(tmp_path)
    assert objects(tmp_path)[0].meta["class"] == "RRAB"  # type: ignore[union-attr]
    table = tmp_path / "variables.csv"
    table.write_text(table.read_text().replace("RRAB", "EW"))
    assert objects(tmp_path)[0].meta["class"] == "EW"  # type: ignore[union-attr]


@pytest.mark.parametrize("lost", ["HJD", "mag", "mag_err"])
def test_a_file_without_a_column_is_quarantined(lost: str, tmp_path: Path) -> None:
    patrol_1(tmp_path)
    path = next(tmp_path.iterdir())
    path.write_text(path.read_text().replace(PATROL_1, ",".join("x" if n == lost else n for n in PATROL_1.split(","))))
    (found,) = objects(tmp_path)
    assert isinstance(found, Quarantined) and found.reason.startswith("not an ASAS-SN light curve")


def test_files_of_a_header_only_or_of_damaged_rows(tmp_path: Path) -> None:
    lines(tmp_path / "a.csv", [PATROL_1])
    lines(tmp_path / "b.csv", [PATROL_1, "2457000.5,2014-12-09,be,1.5,16.8,14,0.02,9.1,0.1,V", "2457001.5,2014"])
    lines(tmp_path / "c.csv", [PATROL_1.replace("FWHM", "mag"), "2457000.5,2014-12-09,be,1.5,16.8,14,0.02,9.1,0.1,V"])
    empty, damaged, twice = objects(tmp_path)
    assert isinstance(empty, Quarantined) and (empty.object_id, empty.reason) == ("a", "no epoch")
    assert isinstance(damaged, Observation) and damaged.meta["rows_skipped"] == 1 and len(damaged.curves[0].time) == 1
    assert isinstance(twice, Quarantined) and "several columns called mag" in twice.reason


def test_a_folder_of_catalogues_alone_is_an_error_for_people(tmp_path: Path) -> None:
    variables(tmp_path)
    for path in tmp_path.glob("*.dat"):
        path.unlink()
    with pytest.raises(UserError, match="but no ASAS-SN light curves"):
        asassn.discover(tmp_path)


def test_real_files(real_data: Path) -> None:
    folder = real_data / "lc_asassn"
    if not folder.is_dir():
        pytest.skip(f"no lc_asassn in {real_data}")
    found = objects(folder)
    assert len(found) == 22 == len({o.object_id for o in found})
    stars = {o.object_id: o for o in found if isinstance(o, Observation)}
    assert len(stars) == 22
    for star in stars.values():
        assert {curve.band for curve in star.curves} <= {"V", "g"}
        for curve in star.curves:
            good = curve.ivar > 0
            assert 2455000 < curve.time[0] < curve.time[-1] < 2461500 and good.mean() > 0.75
            assert np.all((curve.value[good] > 9) & (curve.value[good] < 18)) and np.all(curve.ivar[good] > 1)
    assert stars["12702"].meta["name"] == "VX Men" and len(stars["12702"].curves[0].time) == 1065
    assert stars["223339338105"].meta["gaia_id"] == "4608321929460721408"
    assert sum(o.object_id.count("-") == 4 for o in found) == 3
    text = b"".join(gzip.decompress(path.read_bytes()) for path in folder.rglob("*.gz"))
    rows = sum(line[:1].isdigit() for line in text.splitlines())
    assert sum(len(curve.time) for star in stars.values() for curve in star.curves) == rows > 30000
