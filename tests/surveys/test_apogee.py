"""APOGEE: three products, three chips."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from hpcspec.surveys import apogee
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
