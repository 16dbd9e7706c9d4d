"""LAMOST: header values, and the real files of three releases against their tables."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from hpcspec.surveys import lamost
from hpcspec.surveys.base import Quarantined
from hpcspec.surveys.grids import Grid
from hpcspec.surveys.observation import Observation
from tests.surveys.layouts import lamost_dr1, lamost_image, lamost_table
from tests.surveys.test_layouts import change


def spectra(folder: Path) -> list[Observation | Quarantined]:
    return [found for source in lamost.discover(folder) for found in lamost.read(source)]


@pytest.mark.parametrize("write", [lamost_image, lamost_dr1, lamost_table])
def test_header_values_have_one_name_in_all_releases(write, tmp_path: Path) -> None:
    write(tmp_path)
    (star,) = spectra(tmp_path)
    assert isinstance(star, Observation) and (star.ra, star.dec) == (158.25, 35.5)
    assert (star.arms[0].grid, star.arms[0].first) == (Grid("log10", 0.0, 1e-4), 35682)
    expected = {"class": "STAR", "subclass": "K5", "z": -2e-4, "lmjd": 58575, "planid": "HD1", "spid": 3, "snrg": 33.9}
    assert expected.items() <= star.meta.items()


def test_the_stored_wavelengths_count_where_the_header_disagrees(tmp_path: Path) -> None:
    lamost_image(tmp_path)
    change(next(tmp_path.iterdir()), lambda hdus: hdus[0].header.update(COEFF0=3.6))
    (star,) = spectra(tmp_path)
    assert isinstance(star, Observation) and star.arms[0].first == 35682


@pytest.mark.parametrize(
    ("folder", "count", "table"),
    [
        ("lamost_dr10_afg/native", 48, "lamost_dr10_afg/labels.csv"),
        ("lamost_dr1_grd349", 131, ""),
        ("lamost_plate_chenfa", 100, ""),
    ],
)
def test_real_files(folder: str, count: int, table: str, real_data: Path) -> None:
    if not (real_data / folder).is_dir():
        pytest.skip(f"no {folder} in {real_data}")
    found = spectra(real_data / folder)
    assert len(found) == count == len({o.object_id for o in found})
    for star in found:
        assert isinstance(star, Observation), star
        arm = star.arms[0]
        assert arm.grid.kind == "log10" and abs(arm.grid.start) < 2e-6 and arm.first == 35682
        assert 3699.9 < arm.wavelength[0] < 3700.1 and 8900 < arm.wavelength[-1] < 9101
        assert np.mean(arm.ivar > 0) > 0.5 and {"class", "z", "snrg", "lmjd"} <= star.meta.keys()
    if table:
        with (real_data / table).open(newline="") as f:
            rows = {row["obsid"]: row for row in csv.DictReader(f)}
        for star in found:
            row = rows[star.object_id]
            assert (star.ra, star.dec) == pytest.approx((float(row["ra"]), float(row["dec"])), abs=1e-5)
            assert star.meta["class"] == row["class"]
        # The table is of a later fit than the headers: most, not all, of the types are the same.
        assert np.mean([star.meta["subclass"] == rows[star.object_id]["subclass"] for star in found]) > 0.95
        assert np.median([abs(star.meta["z"] - float(rows[star.object_id]["z"])) for star in found]) < 5e-5
