"""GALAH: the files of an object's CCDs belong together, air becomes vacuum, relative errors become ivar."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hpcspec.surveys import galah
from hpcspec.surveys.base import Quarantined
from hpcspec.surveys.observation import Observation
from tests.surveys.layouts import galah_dr3, galah_six

OBJECT = "161013005401394"


@pytest.mark.parametrize(("write", "position", "ra"), [(galah_dr3, "field centre", 110.0), (galah_six, "object", 110.5)])
def test_four_files_are_one_object(write, position: str, ra: float, tmp_path: Path) -> None:
    write(tmp_path)
    (source,) = galah.discover(tmp_path)
    assert source.key == OBJECT and [p.name[15] for p in source.paths] == list("1234")
    (star,) = galah.read(source)
    assert isinstance(star, Observation) and "".join(arm.name for arm in star.arms) == star.meta["arms"] == "BGRI"
    assert (star.ra, star.meta["position"]) == (ra, position)


def test_a_missing_arm_is_absent(tmp_path: Path) -> None:
    galah_dr3(tmp_path)
    (tmp_path / f"{OBJECT}1.fits").unlink()
    (star,) = galah.read(galah.discover(tmp_path)[0])
    assert isinstance(star, Observation) and star.meta["arms"] == "GRI"


def test_a_damaged_arm_quarantines_the_object_and_is_named(tmp_path: Path) -> None:
    galah_dr3(tmp_path)
    (tmp_path / f"{OBJECT}3.fits").write_bytes(b"")
    (found,) = galah.read(galah.discover(tmp_path)[0])
    assert isinstance(found, Quarantined) and found.object_id == OBJECT and found.path.endswith(f"{OBJECT}3.fits")


def test_folders_and_second_files_stay_apart(tmp_path: Path) -> None:
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        galah_dr3(folder)
    (tmp_path / "b" / f"{OBJECT}1.fits.gz").write_bytes((tmp_path / "b" / f"{OBJECT}1.fits").read_bytes())
    sources = galah.discover(tmp_path)
    assert sorted(len(source.paths) for source in sources) == [1, 4, 4]
    assert len({source.key for source in sources}) == 3


@pytest.mark.parametrize(("folder", "count"), [("galah_dr3/native", 8), ("galah_dr6reduction", 1)])
def test_real_files(folder: str, count: int, real_data: Path) -> None:
    if not (real_data / folder).is_dir():
        pytest.skip(f"no {folder} in {real_data}")
    sources = galah.discover(real_data / folder)
    assert len(sources) == count
    for source in sources:
        (star,) = galah.read(source)
        assert isinstance(star, Observation), star
        assert star.object_id == source.paths[0].name[:15] and star.meta["arms"] == "BGRI"
        for arm, low, high in zip(star.arms, (4713, 5648, 6477, 7584), (4905, 5876, 6741, 7891), strict=True):
            assert low < arm.wavelength[0] < arm.wavelength[-1] < high and len(arm.flux) in (4096, 4097)
            # The errors mean what they say: neighbouring pixels scatter by about one of them.
            good = arm.ivar > 0
            noise = np.diff(arm.flux[good]) / np.sqrt(1 / arm.ivar[good][1:] + 1 / arm.ivar[good][:-1])
            assert 0.2 < 1.4826 * np.median(np.abs(noise)) < 3


def test_wavelengths_of_a_real_star_are_vacuum(real_data: Path) -> None:
    """The core of H alpha lies where the survey's own radial velocity puts it; in air it would be 82 km/s off."""
    folder = real_data / "galah_dr6reduction"
    if not folder.is_dir():
        pytest.skip(f"no galah_dr6reduction in {real_data}")
    (star,) = galah.read(galah.discover(folder)[0])
    assert isinstance(star, Observation) and star.meta["position"] == "object"
    assert (star.ra, star.dec) == (87.74803230671, 7.98963034608)
    red = next(arm for arm in star.arms if arm.name == "R")
    near = np.abs(red.wavelength - 6564.61) < 15
    wavelength, flux = red.wavelength[near], red.flux[near]
    depth = np.clip(np.percentile(flux, 80) - flux, 0, None) ** 2 * (np.abs(wavelength - 6564.61) < 4)
    velocity = 299792.458 * (np.average(wavelength, weights=depth) / 6564.61 - 1)
    assert velocity == pytest.approx(star.meta["rvcom"], abs=5)
