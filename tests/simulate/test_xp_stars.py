"""Simulated stars as sets of scalars: coefficients like real ones, dust by the curve put in, labels, other instruments."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from hpcspec.simulate import bp_rp
from hpcspec.simulate.extinction import R_V, ccm89
from hpcspec.simulate.field import OPTICAL
from hpcspec.simulate.xp_stars import LABEL_ERRORS, NAMES, XpStars, drawn, observation
from hpcspec.surveys.observation import Observation, check
from tests.making import unlike


def stars(count: int, first: int = 0, **options: Any) -> list[Observation]:
    recipe = XpStars.model_validate({"population": "stars_xp", "objects": count, "seed": 2, **options})
    return [check(observation(recipe, first + i)) for i in range(count)]


@pytest.fixture(scope="module")
def sample() -> list[Observation]:
    return stars(400)


def test_the_curve_of_the_paper() -> None:
    """Table 3 of Cardelli, Clayton & Mathis (1989), R_V = 3.1: U V R I J H K; B is where E(B-V) is what it says."""
    x = np.array([2.78, 1.82, 1.43, 1.11, 0.80, 0.63, 0.46])
    assert ccm89(1e4 / x) == pytest.approx([1.569, 1.000, 0.751, 0.479, 0.282, 0.190, 0.114], abs=2.5e-3)
    assert R_V * (ccm89(np.array([1e4 / 2.27])) - 1) == pytest.approx(1, abs=2e-3)
    with pytest.raises(ValueError, match="3030"):
        ccm89(np.array([2500.0]))


@pytest.mark.parametrize("band", bp_rp.SPECTROGRAPHS)
def test_bases_are_orthonormal_and_dust_is_read_off_the_coefficients(band: str) -> None:
    spectrograph = bp_rp.SPECTROGRAPHS[band]
    assert spectrograph.rotation @ spectrograph.rotation.T == pytest.approx(np.eye(bp_rp.BASES), abs=1e-9)
    one = drawn(np.random.default_rng(3))
    clear, dusty = (spectrograph.design.T @ (replace(one, ebv=ebv).sed[: len(OPTICAL)] * OPTICAL) for ebv in (0.0, 0.3))
    low, high = spectrograph.limits
    wavelength = np.linspace(low + 400, high - 400, 12)
    ratio = spectrograph.sampled(dusty, wavelength) / spectrograph.sampled(clear, wavelength)
    assert -2.5 * np.log10(ratio) / 0.3 == pytest.approx(R_V * ccm89(wavelength), rel=0.03)


def test_coefficients_are_like_real_ones(sample: list[Observation]) -> None:
    """Real sources whose first BP coefficient is about 400 e-/s have S/N 360, 45, 9, …, and noise from the tenth on."""
    pairs = np.array([[s.scalars[n] for n in NAMES] for s in sample])
    for first in (0, bp_rp.BASES):
        values, errors = pairs[:, first : first + bp_rp.BASES, 0], pairs[:, first : first + bp_rp.BASES, 1]
        assert (values[:, 0] > 0).all()
        share = np.median(np.abs(values / values[:, :1]), 0)
        assert 0.03 < share[1] < 0.3 and 0.005 < share[2] < 0.06 and share[20] < 0.005
        noise = np.median(np.abs(values / errors), 0)
        assert noise[0] > 300 and noise[20:] == pytest.approx(0.6745, abs=0.2), "the median of a normal's absolute"
    g = np.array([s.scalars["phot_g_mean_mag"][0] for s in sample])
    counted = pairs[:, 0, 0] * 10 ** (0.4 * (bp_rp.G_ZERO - g))
    near = (counted > 250) & (counted < 600)
    assert near.sum() > 5 and 250 < np.median((pairs[:, 0, 0] / pairs[:, 0, 1])[near]) < 500


def test_what_scalars_say_is_the_truth_within_errors(sample: list[Observation]) -> None:
    for name in LABEL_ERRORS:
        pulls = [(s.scalars[name][0] - float(s.meta[name])) / s.scalars[name][1] for s in sample]
        assert abs(np.mean(pulls)) < 0.2 and np.std(pulls) == pytest.approx(1, abs=0.12)
    for s in sample:
        parallax, g = s.scalars["parallax"][0], s.scalars["phot_g_mean_mag"][0]
        assert s.scalars["g_fakemag"][0] == pytest.approx(parallax * 10 ** (g / 5), rel=0.02)
        assert s.meta["logebv"] == pytest.approx(np.log10(float(s.meta["ebv"])))
    giant = [s.meta["class"] == "giant" for s in sample]
    assert 0.3 < np.mean(giant) < 0.6 and not any(s.arms for s in sample)


def test_labels_as_scalars_for_some() -> None:
    share = np.mean(["teff" in s.scalars for s in stars(300, labels=0.4)])
    assert share == pytest.approx(0.4, abs=0.1)
    without, given = stars(3, labels=0.0), stars(3)
    for a, b in zip(without, given, strict=True):
        assert not LABEL_ERRORS.keys() & a.scalars.keys() and {n: a.scalars[n] for n in a.scalars} == {
            n: b.scalars[n] for n in a.scalars
        }


def test_a_star_follows_from_seed_and_number_alone(sample: list[Observation]) -> None:
    (alone,) = stars(1, first=7)
    assert not unlike(alone, sample[7])
    assert unlike(alone, stars(1, first=7, seed=3)[0])


def test_other_instruments_see_the_same_star(sample: list[Observation]) -> None:
    for plain, s in zip(sample, stars(4, spectra=["sdss", "desi", "apogee"]), strict=False):
        assert [a.name for a in s.arms] == ["SDSS", "B", "R", "Z", "a", "b", "c"] and s.frame == "observed"
        assert s.scalars == plain.scalars and [a.grid.kind for a in s.arms] == ["log10", *["linear"] * 3, *["log10"] * 3]
        sdss, _, red, *_ = s.arms
        good = [(a, (a.ivar > 0) & (a.wavelength > 6000) & (a.wavelength < 7000)) for a in (sdss, red)]
        levels = [np.median(a.flux[use]) for a, use in good]
        assert levels[0] == pytest.approx(levels[1], rel=0.05)
        magnitude = -2.5 * np.log10(levels[0] / 2.2e8)  # of 2.2e-9 erg/s/cm²/Å
        assert magnitude == pytest.approx(s.scalars["phot_g_mean_mag"][0], abs=0.8)
