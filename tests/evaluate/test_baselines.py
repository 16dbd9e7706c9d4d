"""Each baseline recovers a known function better than the mean of the labels does."""

from __future__ import annotations

import numpy as np
import pytest

from hpcspec.evaluate import baselines, curves
from hpcspec.evaluate.baselines import Effort
from hpcspec.evaluate.inputs import Pixels, Sample, subset
from hpcspec.evaluate.predict import Inputs
from hpcspec.surveys.observation import Observation, make_curve

EFFORT = Effort(trees=60, epochs=4, threads=1)
GRID = np.linspace(5000.0, 5600.0, 300)


def spectra(n: int, seed: int) -> tuple[Pixels, dict[str, np.ndarray]]:
    """Spectra of three lines whose depths follow from two labels, with noise; some pixels are missing."""
    rng = np.random.default_rng(seed)
    teff, fe_h = rng.uniform(4500, 6500, n), rng.normal(0, 0.3, n)
    a, b = (teff - 5500) / 1000, fe_h
    flux = np.ones((n, len(GRID)))
    for center, depth in ((5100, 0.3 - 0.2 * a), (5300, 0.3 + 0.3 * b), (5450, 0.3 + 0.1 * a * b)):
        flux -= depth[:, None] * np.exp(-0.5 * ((GRID - center) / 6) ** 2)
    flux += 0.02 * rng.normal(size=flux.shape)
    ivar = np.full(flux.shape, 2500.0)
    flux[:, 200:204], ivar[:, 200:204] = np.nan, 0
    return Pixels(GRID, flux, ivar), {"teff": teff, "fe_h": fe_h, "class": np.where(teff > 5500, "F", "K")}


@pytest.mark.parametrize("kind", [*baselines.SPECTRA, "cannon"])
def test_spectra(kind: str) -> None:
    train, labels = spectra(200, 1)
    test, truth = spectra(60, 2)
    labels["teff"][:5] = np.nan
    found = baselines.fit_predict(kind, train, labels, test, 1, EFFORT)
    for name in ("teff", "fe_h"):
        assert np.std(found[name] - truth[name]) < 0.6 * np.std(truth[name])
    if kind != "cannon":
        assert (found["class"] == truth["class"]).mean() > 0.75


def test_cannon_reaches_the_noise() -> None:
    """The spectra are quadratic in the labels, so only the noise is left."""
    (train, labels), (test, truth) = spectra(300, 1), spectra(60, 2)
    found = baselines.cannon(train, {k: labels[k] for k in ("teff", "fe_h")}, test)
    assert np.std(found["teff"] - truth["teff"]) < 50 and np.std(found["fe_h"] - truth["fe_h"]) < 0.05


def test_scalars_with_missing_values() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(400, 4))
    y = x[:, 0] + 0.5 * x[:, 1] ** 2
    x[rng.random(x.shape) < 0.1] = np.nan
    found = baselines.scalar_table(x[:300], y[:300], x[300:], 1, EFFORT)
    assert np.std(found - y[300:]) < 0.7 * np.std(y[300:])


def test_templates_fill_what_is_hidden() -> None:
    train, _ = spectra(200, 1)
    test, _ = spectra(5, 2)
    made = baselines.Templates(train, 8, 1)
    for flux, ivar in zip(test.flux, test.ivar, strict=True):
        seen = np.where((GRID > 5290) & (GRID < 5300), 0, ivar)  # half of a line
        model = made.at([(GRID, np.nan_to_num(flux), seen)], GRID)
        hidden = (seen == 0) & (ivar > 0)
        assert np.std(flux[hidden] - model[hidden]) < 0.05 and hidden.sum() > 3
    assert np.isnan(made.at([(GRID, GRID, np.zeros(300))], GRID)).all()


def variables(n: int, seed: int) -> Sample:
    """Light curves: sines of a day, saw-teeth of five, and noise."""
    rng = np.random.default_rng(seed)
    objects, classes = [], []
    for i in range(n):
        kind = ["sine", "saw", "none"][i % 3]
        time = np.sort(rng.uniform(0, 200, 80))
        phase = time / (1.1 if kind == "sine" else 5.3) % 1
        value = {"sine": 0.4 * np.sin(2 * np.pi * phase), "saw": 0.6 * phase, "none": 0 * phase}[kind]
        curve = make_curve("V", time, 12 + value + 0.05 * rng.normal(size=80), np.full(80, 0.05))
        objects.append(Observation(f"{seed}-{i}", "asas", np.nan, np.nan, curves=(curve,), scalars={"mag": (12.0, np.nan)}))
        classes.append(kind)
    return Sample(tuple(objects), {}, np.array(classes), ({},) * n)


def test_light_curves() -> None:
    train, test = variables(90, 1), variables(45, 2)
    inputs = Inputs(False)
    features = [inputs.features(s) for s in (train, test)]
    np.testing.assert_array_equal(inputs.features(test), features[1])  # kept
    assert inputs.scalars(train)[0].shape == (90, 0) and Inputs(True).scalars(train, test)[1].shape == (45, 1)
    assert np.median(features[1][test.classes == "saw"][:, 0]) == pytest.approx(5.3, rel=0.01)
    found = baselines.forest(features[0], train.classes, features[1], 1, EFFORT)
    assert (found == test.classes).mean() > 0.9
    found = curves.gru(train, test, 1, EFFORT, True)
    assert (found == test.classes).mean() > 0.55


def test_subsets_are_nested_and_keep_every_class() -> None:
    sample = variables(90, 1)
    few, more = subset(sample, 0.2, 1), subset(sample, 45, 1)
    assert set(few.ids) < set(more.ids) and len(more) == 45 and set(few.classes) == {"sine", "saw", "none"}
    assert subset(sample, 1, 1) is sample and subset(sample, 1000, 1) is sample
    assert subset(sample, 0.2, 1).ids == few.ids != subset(sample, 0.2, 2).ids
