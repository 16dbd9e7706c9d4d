"""Simulated variable stars: the physics that was put in comes out, options do what they say, no kind of measurement is enough."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier

from hpcspec.simulate import light_curves, variables
from hpcspec.simulate.field import FieldStar
from hpcspec.simulate.lines import Atmosphere
from hpcspec.simulate.variables import CLASSES, FOREIGN, KINDS, Variables, drawn, observation
from hpcspec.surveys.observation import Observation, check
from tests.making import unlike


def stars(count: int, first: int = 0, **options: Any) -> list[Observation]:
    recipe = Variables.model_validate({"population": "variables", "objects": count, "seed": 2, **options})
    return [check(observation(recipe, first + i)) for i in range(count)]


@pytest.fixture(scope="module")
def sample() -> list[Observation]:
    return stars(300)


def test_a_star_has_all_three_kinds_of_measurement_and_a_class(sample: list[Observation]) -> None:
    assert {s.meta["class"] for s in sample} == set(CLASSES)
    for s in sample:
        (arm,) = s.arms
        assert len(arm.flux) == 1288 and arm.wavelength[0] == pytest.approx(3700, abs=2) and (arm.ivar > 0).mean() > 0.95
        assert 30 <= sum(len(c.time) for c in s.curves) <= 200 and [c.band for c in s.curves] in (["v"], ["v", "g"])
        assert {"phot_g_mean_mag", "bp_rp", "j_h", "j_k", "parallax"} <= s.scalars.keys()
        assert all(error > 0 for _, error in s.scalars.values())
        assert s.meta["class"] == s.meta["true_class"] and not s.meta["anomaly"] and not s.meta["mislabelled"]


def test_a_star_follows_from_seed_and_number_alone(sample: list[Observation]) -> None:
    (alone,) = stars(1, first=7)
    assert not unlike(alone, sample[7])
    assert unlike(alone, stars(1, first=7, seed=3)[0])


@pytest.mark.parametrize("kind", [k for k in KINDS if k.mag], ids=lambda k: f"{k.name}-{k.subclass}")
def test_period_luminosity_and_colour_relations(kind: Any) -> None:
    rng = np.random.default_rng(4)
    made = [drawn(rng, (kind,)) for _ in range(400)]
    x = np.array([s.log_period for s in made]) - kind.log_period[0]
    for values, (zero, slope, scatter) in (([s.abs_mag for s in made], kind.mag), ([s.teff for s in made], kind.teff)):
        (fitted, level), covariance = np.polyfit(x, values, 1, cov=True)
        assert abs(fitted - slope) < 4 * np.sqrt(covariance[0, 0]) and abs(level - zero) < 4 * np.sqrt(covariance[1, 1])
        assert np.std(values - fitted * x - level) == pytest.approx(scatter, rel=0.2)


def test_distance_makes_the_magnitude_and_the_parallax(sample: list[Observation]) -> None:
    clear = [s for s in sample if float(s.meta["ebv"]) < 0.1 and float(s.meta["teff"]) > 4500]
    modulus = [5 * np.log10(float(s.meta["distance"]) / 10) for s in clear]
    off = [s.scalars["phot_g_mean_mag"][0] - m - float(s.meta["abs_mag"]) for s, m in zip(clear, modulus, strict=True)]
    assert len(clear) > 30 and abs(np.median(off) - 0.15) < 0.15  # some dust, the band is not the one wavelength
    pulls = [(s.scalars["parallax"][0] - 1e3 / float(s.meta["distance"])) / s.scalars["parallax"][1] for s in sample]
    assert abs(np.mean(pulls)) < 0.2 and np.std(pulls) == pytest.approx(1, abs=0.15)


def test_cooler_and_dustier_stars_are_redder() -> None:
    def colours(teff: float, ebv: float) -> np.ndarray:
        m = FieldStar.at(0, 0, Atmosphere(teff, 4.0, 0.0), 1.0, 100.0, ebv, 0.0, 5.0).magnitudes
        return np.array([m["BP"] - m["RP"], m["J"] - m["K"]])

    by_teff = np.array([colours(t, 0.0) for t in (3500, 4200, 5000, 6000, 7000, 8000)])
    assert (np.diff(by_teff, axis=0) < 0).all()
    assert colours(5777, 0)[0] == pytest.approx(0.82, abs=0.01), "the Sun's"
    excess = (colours(5777, 0.2) - colours(5777, 0)) / 0.2
    assert excess[0] == pytest.approx(1.35, abs=0.15) and excess[1] == pytest.approx(0.52, abs=0.05)  # in units of E(B-V)


@pytest.mark.parametrize("kind", [*KINDS, *FOREIGN], ids=lambda k: f"{k.name}-{k.subclass}")
def test_light_curves_repeat_with_the_period_and_have_the_amplitude(kind: Any) -> None:
    period = 10 ** kind.log_period[0]
    time = np.linspace(0, 300 * period, 30000)
    shape = kind.shape(np.random.default_rng(1), time, period)
    assert shape.shape == time.shape and np.isfinite(shape).all() and 0.25 < np.ptp(shape) < 4
    once, again = (kind.shape(np.random.default_rng(1), t, period) for t in (time, time + period))
    if kind.name in ("RRC", "EA", "EB", "EW") or kind.subclass in ("steady", "high amplitude", "fundamental", "overtone"):
        assert np.abs(once - again).max() < 1e-6


def test_faint_stars_are_noisy() -> None:
    rng = np.random.default_rng(0)
    bright, faint = (light_curves.noise(rng, np.full(500, mag)) for mag in (11.5, 16.0))
    assert np.median(bright) < 0.015 and 0.07 < np.median(faint) < 0.15


def test_errors_are_honest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of stars that don't vary: light curves scatter about the magnitude by their errors, scalars about the truth."""
    steady = replace(KINDS[2], shape=lambda rng, time, period: np.zeros(len(time)), amplitude=(1e-9, 0.0))
    monkeypatch.setattr(variables, "KINDS", (steady,))
    pulls = []
    for number, s in enumerate(stars(60)):
        one = drawn(np.random.default_rng([2, variables.CODE, number, 0]), (steady,))
        pulls += [(c.value - one.magnitudes[c.band]) * np.sqrt(c.ivar) for c in s.curves]
        pulls.append(np.array([(s.scalars["phot_g_mean_mag"][0] - one.magnitudes["G"]) / s.scalars["phot_g_mean_mag"][1]]))
    assert np.std(np.concatenate(pulls)) == pytest.approx(1, abs=0.05) and abs(np.mean(np.concatenate(pulls))) < 0.05


def test_mislabelled_stars_have_another_class_and_nothing_else() -> None:
    right, wrong = stars(120), stars(120, mislabelled=0.3)
    marked = [s for s in wrong if s.meta["mislabelled"]]
    assert 20 < len(marked) < 55 and all(s.meta["class"] != s.meta["true_class"] for s in marked)
    for a, b in zip(right, wrong, strict=True):
        assert a.meta["true_class"] == b.meta["true_class"] and unlike(a, b) in ([], ["meta"])
        assert b.meta["mislabelled"] or b.meta["class"] == b.meta["true_class"]


def test_anomalies_are_of_two_kinds() -> None:
    plain, odd = stars(150), stars(150, anomalies=0.4)
    kinds = Counter(s.meta["anomaly_kind"] for s in odd)
    assert 15 < kinds["class"] < 50 and 15 < kinds["spectrum"] < 50
    for before, s in zip(plain, odd, strict=True):
        if s.meta["anomaly_kind"] == "class":
            assert s.meta["true_class"] in {k.name for k in FOREIGN} and "class" not in s.meta and s.meta["anomaly"] == 1
        elif s.meta["anomaly_kind"] == "spectrum":
            assert unlike(s, before) and s.meta["class"] == before.meta["class"] and s.scalars == before.scalars
            assert np.array_equal(s.curves[0].value, before.curves[0].value)
            assert not np.array_equal(s.arms[0].flux, before.arms[0].flux)
        else:
            assert not unlike(s, before)


def test_missing_measurements() -> None:
    chance = {"light_curve": 0.5, "spectrum": 0.3, "scalars": 0.1}
    found = stars(200, missing=chance)
    shares = [np.mean([not part(s) for s in found]) for part in (lambda s: s.curves, lambda s: s.arms, lambda s: s.scalars)]
    assert shares == pytest.approx(list(chance.values()), abs=0.1)
    none = stars(20, missing=dict.fromkeys(chance, 1.0))
    assert all(bool(s.curves) + bool(s.arms) + bool(s.scalars) == 1 for s in none)
    whole = stars(200)
    assert all(a.curves == () or np.array_equal(a.curves[0].value, b.curves[0].value) for a, b in zip(found, whole, strict=True))


def features(s: Observation) -> tuple[list[float], np.ndarray, list[float]]:
    """Simple features of the light curve, the spectrum and the scalars."""
    value = s.curves[0].value.astype(np.float64)
    d = value - np.median(value)
    curve = [*np.percentile(d, [2, 10, 25, 75, 90, 98]), d.std(), (d**3).mean() / d.std() ** 3, np.median(value),
             (np.diff(d) ** 2).mean() / d.var()]  # fmt: skip
    names = ("phot_g_mean_mag", "bp_rp", "j_h", "j_k", "parallax", "period")
    scalars = [s.scalars.get(n, (-99.0, 0.0))[0] for n in names]
    arm = s.arms[0]
    return curve, arm.flux / s.amplitude * (arm.ivar > 0), [*scalars, scalars[0] + 5 * np.log10(max(scalars[4], 0.01))]


@pytest.mark.slow
def test_classes_are_told_apart_together_and_not_by_one_measurement(sample: list[Observation]) -> None:
    found = [*sample, *stars(700, first=300)]
    classes = np.array([str(s.meta["class"]) for s in found])
    curve, spectrum, scalars = (np.array(x) for x in zip(*map(features, found), strict=True))
    spectrum = PCA(30, random_state=0).fit(spectrum[:700]).transform(spectrum)
    accuracy = {}
    for name, x in {"c": curve, "s": spectrum, "n": scalars, "all": np.c_[curve, spectrum, scalars]}.items():
        forest = RandomForestClassifier(200, random_state=0).fit(x[:700], classes[:700])
        accuracy[name] = forest.score(x[700:], classes[700:])
    alone = [accuracy[k] for k in "csn"]
    assert all(0.3 < a < 0.85 for a in alone) and accuracy["all"] > max(alone) + 0.03, accuracy
