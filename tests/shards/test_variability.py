from __future__ import annotations

import time
import warnings
from collections.abc import Callable

import numpy as np
import pytest
from astropy.timeseries import LombScargle

from hpcspec.shards.periods import Band, periodogram
from hpcspec.shards.variability import variability
from hpcspec.surveys.observation import Curve, make_curve

Shape = Callable[[np.ndarray], np.ndarray]


def sine(phase: np.ndarray) -> np.ndarray:
    return np.sin(2 * np.pi * phase)


def sawtooth(phase: np.ndarray) -> np.ndarray:
    """A pulsating star's: a fast rise to maximum light, a slow decline."""
    return np.where(phase < 0.85, phase / 0.85, (1 - phase) / 0.15)


def eclipses(phase: np.ndarray) -> np.ndarray:
    """A detached binary's: two unlike eclipses half a period apart, each a tenth of it wide."""
    near = np.abs(phase[:, None] - [0.0, 0.5, 1.0])
    return (np.clip(1 - near / 0.06, 0, None) * [1.0, 0.5, 1.0]).sum(1)


def nights(epochs: int, seed: int, span: float = 900.0) -> np.ndarray:
    """Times of one site: at most one epoch a night, around its middle."""
    rng = np.random.default_rng(seed)
    return np.sort(rng.choice(int(span), epochs, replace=False) + rng.normal(0, 0.08, epochs))


def star(shape: Shape, period: float, seed: int = 0, epochs: int = 120, amplitude: float = 0.5, noise: float = 0.03,
         zero: float = 0.0, **how: str) -> tuple[Curve, Curve]:  # fmt: skip
    """A star of two bands, the second of 0.7 of the first's amplitude."""
    rng = np.random.default_rng(seed + 100)
    out = []
    for band, scale, level in (("b", 1.0, 17.0), ("r", 0.7, 16.2)):
        t = nights(epochs, seed)
        y = level + scale * amplitude * shape((t / period) % 1) + rng.normal(0, noise, epochs)
        y = 10 ** (-0.4 * (y - 23)) if how.get("unit", "mag") != "mag" else y
        error = np.full(epochs, noise) if how.get("unit", "mag") == "mag" else noise * y / 1.0857
        out.append(make_curve(band, t + zero, y, error, **how))
    return out[0], out[1]


@pytest.mark.parametrize("shape, period, epochs", [
    (sine, 0.317, 120), (sine, 5.43, 120), (sine, 61.0, 60), (sine, 213.0, 120),
    (sawtooth, 0.5713, 120), (sawtooth, 7.91, 120), (eclipses, 2.7183, 200), (eclipses, 0.8231, 300),
])  # fmt: skip
@pytest.mark.parametrize("how", [{}, {"unit": "mJy", "scale": "mjd"}])
def test_a_period_is_recovered(shape: Shape, period: float, epochs: int, how: dict[str, str]) -> None:
    found = variability(star(shape, period, epochs=epochs, zero=2_450_000.0, **how))
    assert 10 ** found["lc_log_period"][0] == pytest.approx(period, rel=0.01)
    assert 0 < found["lc_log_period"][1] < 0.005
    assert found["lc_significance"][0] > 1.5


def test_a_trend_does_not_become_a_period_of_a_day() -> None:
    t = nights(120, 3)
    y = 15 + 2e-3 * t + np.random.default_rng(4).normal(0, 0.03, 120)
    found = variability([make_curve("b", t, y, np.full(120, 0.03))])
    assert found["lc_log_period"][0] > 2
    assert found["lc_trend_b"][0] == pytest.approx(np.sqrt(12), rel=0.1)


def test_the_shape_is_told() -> None:
    pure, saw = (variability(star(s, 0.5713, epochs=200, noise=0.01)) for s in (sine, sawtooth))
    assert pure["lc_r21"][0] < 0.05
    times, phase = np.arange(4096) / 4096, 2 * np.pi * np.arange(4096) / 4096
    a, b = (2 * np.mean(sawtooth(times) * np.exp(1j * k * phase)) for k in (1, 2))
    assert saw["lc_r21"][0] == pytest.approx(abs(b) / abs(a), abs=0.05)
    assert saw["lc_cos_phi21"][0] == pytest.approx(np.cos(np.angle(b) - 2 * np.angle(a)), abs=0.1)
    assert saw["lc_sin_phi21"][0] == pytest.approx(np.sin(np.angle(b) - 2 * np.angle(a)), abs=0.1)
    assert saw["lc_rise"][0] == pytest.approx(0.15, abs=0.08)
    assert pure["lc_ratio_b_r"][0] == pytest.approx(-np.log10(0.7), abs=0.01)
    assert pure["lc_lag_b_r"][0] == pytest.approx(0, abs=0.01)
    assert pure["lc_colour_b_r"][0] == pytest.approx(0.8, abs=0.03)
    assert pure["lc_fourier_b"][0] == pytest.approx(0.5, abs=0.02)


def test_fluxes_tell_the_same_as_magnitudes() -> None:
    mag, flux = variability(star(sawtooth, 0.5713)), variability(star(sawtooth, 0.5713, unit="mJy"))
    assert set(mag) - set(flux) == {"lc_mean_b", "lc_mean_r", "lc_colour_b_r"}
    for name in flux:
        assert flux[name][0] == pytest.approx(mag[name][0], abs=2e-2), name


def test_neither_the_order_of_bands_nor_the_zero_point_of_time_matters() -> None:
    one = star(sawtooth, 0.5713)
    assert variability(one) == variability(one[::-1]) == variability(one)
    late = variability(star(sawtooth, 0.5713, zero=65536.0))
    assert late["lc_log_period"] == pytest.approx(variability(one)["lc_log_period"], rel=1e-6)


def curves_of(case: str) -> list[Curve]:
    rng = np.random.default_rng(5)
    t = np.sort(rng.uniform(0, 1000, 100))
    y, e = 15 + rng.normal(0, 0.2, 100), np.full(100, 0.1)
    many = rng.uniform(0, 4000, 50_000)
    return {
        "none": [],
        "one epoch": [make_curve("b", t[:1], y[:1], e[:1])],
        "two epochs": [make_curve("b", t[:2], y[:2], e[:2])],
        "eight epochs": [make_curve("b", t[:8], y[:8], e[:8])],
        "constant": [make_curve("b", t, np.full(100, 15.0), e)],
        "zero": [make_curve("b", t, np.zeros(100), e, unit="mJy")],
        "one time": [make_curve("b", np.full(100, 3.0), y, e), make_curve("r", np.full(100, 3.0), y, e)],
        "repeated times": [make_curve("b", np.repeat(t[:10], 10), y, e)],
        "very close times": [make_curve("b", 2_450_000 + t * 1e-9, y, e)],
        "whole days": [make_curve("b", np.arange(100.0), y, e)],
        "very long": [make_curve("b", t * 1e6, y, e)],
        "huge errors": [make_curve("b", t, y, np.full(100, 1e18))],
        "tiny errors": [make_curve("b", t, y, np.full(100, 1e-18))],
        "huge values": [make_curve("b", t, y * 1e35, e), make_curve("r", t, y * 1e36, e, unit="mJy")],
        "one outlier": [make_curve("b", t, np.where(t == t[7], 1e30, y), e)],
        "all bad": [make_curve("b", t, y, e, np.ones(100, bool))],
        "one band bad": [make_curve("b", t, y, e, np.ones(100, bool)), make_curve("r", t, y, e)],
        "negative fluxes": [make_curve("b", t, y - 16, e, unit="mJy"), make_curve("r", t, y, e, unit="mJy")],
        "two units": [make_curve("b", t, y, e, unit="mJy"), make_curve("b", t[:50], y[:50], e[:50])],
        "forty bands": [make_curve(f"b{i}", t, y + i, e) for i in range(40)],
        "50,000 epochs": [make_curve("b", many, 15 + np.sin(many), np.full(50_000, 0.1))],
    }[case]  # fmt: skip


CASES = ("none", "one epoch", "two epochs", "eight epochs", "constant", "zero", "one time", "repeated times", "very close times",
         "whole days", "very long", "huge errors", "tiny errors", "huge values", "one outlier", "all bad", "one band bad",
         "negative fluxes", "two units", "forty bands", "50,000 epochs")  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_any_curve_gives_finite_scalars_in_bounded_time(case: str) -> None:
    curves = curves_of(case)
    begin = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = variability(curves)
    assert time.process_time() - begin < 3
    values = np.array([v for v, _ in found.values()])
    errors = np.array([e for _, e in found.values()])
    assert np.all(np.isfinite(values.astype(np.float32)))
    assert not np.any(np.isinf(errors.astype(np.float32))) and not np.any(errors < 0)
    assert str(found) == str(variability(curves))
    if case in ("none", "all bad"):
        assert found == {}
    if case in ("one epoch", "two epochs", "constant", "zero", "one time", "all bad"):
        assert "lc_log_period" not in found
    if case == "one epoch":
        assert found.keys() == {"lc_mean_b"}
    if case == "one band bad":
        assert "lc_mean_r" in found and not any(name.endswith("_b") for name in found)


def test_the_periodogram_is_that_of_astropy() -> None:
    curve = star(sawtooth, 0.5713)[0]
    weight = np.full(120, 1 / 120)
    band = Band(curve.time - curve.time[0], curve.value - curve.value.mean(dtype=np.float64), weight, 0.03)
    span = float(band.time[-1])
    frequencies, power = periodogram(band, span)
    exact = LombScargle(band.time, band.value).power(frequencies, method="slow")
    below = (frequencies < 11) & (np.abs(frequencies - np.round(frequencies * 2) / 2) > 0.02) & (frequencies > 2 / span)
    assert np.abs(power - exact)[below].max() < 1e-3
    assert np.argmax(power) == np.argmax(exact)
