"""APOGEE: three products, three chips."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from hpcspec.surveys import apogee
from hpcspec.surveys.base import Quarantined
from hpcspec.surveys.observation import Observation
from tests.surveys.layouts import CHIP, apstar, apvisit, aspcapstar


@pytest.mark.parametrize(
    ("write", "product", "frame", "unit"),
    [
        (apstar, "apStar", "rest", "1e-17 erg / (s cm2 Angstrom)"),
        (aspcapstar, "aspcapStar", "rest", "relative"),
        (apvisit, "apVisit", "observed", "1e-17 erg / (s cm2 Angstrom)"),
    ],
)
def test_the_product_is_told_by_its_content(write, product: str, frame: str, unit: str, tmp_path: Path) -> None:
    write(tmp_path)
    for path in tmp_path.iterdir():
        path.rename(tmp_path / "anything.fits")
    (source,) = apogee.discover(tmp_path)
    (star,) = apogee.read(source)
    assert isinstance(star, Observation)
    assert (star.object_id, star.meta["product"], star.frame, star.flux_unit) == ("2M00452143+1634446", product, frame, unit)
    assert (star.ra, star.dec, star.meta["snr"]) == (11.25, 16.5, 79.0)
    assert [arm.name for arm in star.arms] == ["blue", "green", "red"]


def test_chips_are_cut_at_the_gaps_and_trimmed(tmp_path: Path) -> None:
    apstar(tmp_path)
    (star,) = apogee.read(apogee.discover(tmp_path)[0])
    assert [(arm.first, arm.first + len(arm.flux)) for arm in star.arms] == [(CHIP, 3300), (3550, 6120), (6300, 8370)]
    assert all(arm.ivar[0] > 0 and arm.ivar[-1] > 0 for arm in star.arms)


def epochs(folder: Path) -> list[Observation | Quarantined]:
    return [o for source in apogee.discover(folder) for o in apogee.read(replace(source, epochs=True))]


def test_each_visit_is_an_epoch(tmp_path: Path) -> None:
    apstar(tmp_path)
    first, second = epochs(tmp_path)
    name = "2M00452143+1634446"
    assert [o.object_id for o in (first, second)] == [f"{name}@56587-6561-031", f"{name}@56607-6561-125"]
    assert isinstance(first, Observation) and isinstance(second, Observation)
    (combined,) = apogee.read(apogee.discover(tmp_path)[0])
    for visit, factor in ((first, 2), (second, 3)):  # as the file was written
        assert visit.arms[1].flux[100] == factor * combined.arms[1].flux[100] and visit.frame == "rest"
        assert visit.arms[1].ivar[100] == pytest.approx(combined.arms[1].ivar[100] / factor**2)
    expected = {"target_id": name, "mjd": 56587.25, "vhelio": 7.25, "snr": 40.0, "fiberid": 31, "plate": "6561"}
    assert expected.items() <= first.meta.items() and combined.meta["snr"] == 79.0


@pytest.mark.parametrize(("write", "name"), [(aspcapstar, "2M00452143+1634446"), (apvisit, "2M00452143+1634446@55844-5095-128")])
def test_files_of_one_spectrum(write, name: str, tmp_path: Path) -> None:
    write(tmp_path)
    (found,) = epochs(tmp_path)
    assert isinstance(found, Observation) and found.object_id == name


def test_a_star_of_a_single_visit_has_one_row(tmp_path: Path) -> None:
    apstar(tmp_path)
    path = next(tmp_path.iterdir())
    with fits.open(path, memmap=False) as hdus:
        for hdu in hdus[1:4]:
            hdu.data = hdu.data[0]
        hdus.writeto(path, overwrite=True)
    (visit,) = epochs(tmp_path)
    assert isinstance(visit, Observation) and visit.object_id.endswith("@56587-6561-031") and visit.meta["mjd"] == 56587.25


def test_visits_of_real_files_meet_their_own_files(real_data: Path) -> None:
    folder = real_data / "apogee"
    if not (folder / "labels.csv").exists():
        pytest.skip(f"no APOGEE files in {real_data}")
    found = epochs(folder)
    assert all(isinstance(o, Observation) for o in found)
    visits = {o.object_id: o for o in found if o.meta["product"] == "apStar"}
    assert len(visits) == 24
    for visit in visits.values():
        assert visit.sn_median == pytest.approx(visit.meta["snr"], rel=0.45)
        assert int(visit.meta["mjd"]) == int(visit.object_id.partition("@")[2][:5])
    # A star's apVisit file is named by the same visit, and is the same light on other pixels.
    own = {o.object_id: o for o in found if o.meta["product"] == "apVisit"}
    both = own.keys() & visits.keys()
    assert len(both) == 5
    for name in both:
        for a, b in zip(visits[name].arms, own[name].arms, strict=True):
            assert np.median(a.flux[a.ivar > 0]) == pytest.approx(np.median(b.flux[b.ivar > 0]), rel=0.05)


def test_real_files(real_data: Path) -> None:
    folder = real_data / "apogee"
    if not (folder / "labels.csv").exists():
        pytest.skip(f"no APOGEE files in {real_data}")
    with (folder / "labels.csv").open(newline="") as f:
        known = {row["apogee_id"] for row in csv.DictReader(f)}
    stars: dict[str, dict[str, Observation]] = {"apStar": {}, "aspcapStar": {}, "apVisit": {}}
    for source in apogee.discover(folder):
        (star,) = apogee.read(source)
        assert isinstance(star, Observation), star
        product = str(star.meta["product"])
        assert source.paths[0].name.startswith(product)
        stars[product][star.object_id] = star
        for arm, low, high in zip(star.arms, (15130, 15850, 16460), (15830, 16450, 16980), strict=True):
            assert low < arm.wavelength[0] < arm.wavelength[-1] < high
            assert np.mean(arm.ivar > 0) > 0.8 and np.all(np.diff(arm.wavelength) > 0)
    assert set(stars["apStar"]) <= known and set(stars["aspcapStar"]) == known
    for name, star in stars["apStar"].items():
        # Both are of the same visits: the signal to noise per pixel of the survey is ours too, to its own systematics floor.
        assert star.sn_median == pytest.approx(star.meta["snr"], rel=0.35)
        assert star.ra == pytest.approx(stars["aspcapStar"][name].ra, abs=1e-5)
    visit = stars["apVisit"]["2M01183798+8403419"]
    assert all(len(arm.flux) > 4000 for arm in visit.arms) and visit.frame == "observed"
