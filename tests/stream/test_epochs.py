"""Tokens of light curves; `definition.py` has them epoch by epoch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hpcspec.stream.epochs import medians
from hpcspec.stream.vocabulary import PERIOD, Vocabulary
from hpcspec.surveys.observation import Curve, Observation, make_curve
from tests.making import WORDS, assert_same, curve, spectrum, star, tokens_of, words

ONE_BAND = Vocabulary(8, 4, bands=("V mag",), measured=(PERIOD,))


def seen(*curves: Curve, **scalars: tuple[float, float]) -> Observation:
    return spectrum(0, (), curves=curves, scalars=scalars)


def scalar(one: Observation, name: str, of: Vocabulary = WORDS) -> list[float]:
    found = tokens_of(one, of).scalars
    return found.value[found.name == of.names.index(name)].tolist()


@given(lists=st.lists(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=9), min_size=1, max_size=9))
def test_medians_are_those_of_numpy(lists: list[list[float]]) -> None:
    counts = torch.tensor([len(some) for some in lists])
    values = torch.tensor([v for some in lists for v in some], dtype=torch.float64)
    found = medians(values, torch.repeat_interleave(torch.arange(len(lists)), counts), counts)
    np.testing.assert_allclose(found, [np.median(some) for some in lists], rtol=1e-12)
    assert medians(values[:0], counts[:0], counts[:0]).shape == (0,)


def test_the_level_is_the_median_and_the_amplitude_the_spread_about_it() -> None:
    values = np.array([14.0, 14.4, 13.8, 14.1, 14.2, 99.0])
    one = seen(make_curve("V", np.arange(6.0), values, np.full(6, 0.02), bad=values > 90))
    assert scalar(one, "level V mag") == pytest.approx([14.1])
    spread = 1.4826 * 0.1  # median of 0.1 0.3 0.3 0 0.1
    assert scalar(one, "log10_amplitude V mag") == pytest.approx([np.log10(spread)], abs=1e-4)
    tokens = tokens_of(one).curves
    np.testing.assert_allclose(tokens.values.ravel()[:5], (values[:5] - 14.1) / spread, atol=1e-4)
    np.testing.assert_allclose(tokens.sigma.ravel()[:5], 0.02 / spread, rtol=1e-4)
    assert np.isinf(tokens.sigma.ravel()[5:]).all() and (tokens.values.ravel()[5:] == 0).all()  # the bad one is no epoch


def test_what_is_constant_has_the_amplitude_of_a_tenth_of_its_errors() -> None:
    one = seen(make_curve("V", np.arange(5.0), np.full(5, 14.0), np.array([0.1, 0.2, 0.3, 0.2, 9])))
    assert scalar(one, "log10_amplitude V mag") == pytest.approx([np.log10(0.02)])
    tokens = tokens_of(one).curves
    assert (tokens.values == 0).all() and tokens.sigma[0, 1] == pytest.approx(10)


def test_times_count_from_the_first_good_epoch_of_all_bands() -> None:
    v = make_curve("V", 2_450_000 + np.array([10.0, 11.5, 14.0]), np.array([1.0, 2, 3]), np.ones(3))
    r = make_curve(
        "R", 2_450_000 + np.array([3.0, 7.0, 12.0]), np.array([1.0, 2, 3]), np.ones(3), bad=np.array([True, False, False])
    )
    tokens = tokens_of(seen(v, r)).curves
    assert tokens.band.tolist() == [1, 0]  # V, then R: as they come; places in the vocabulary
    assert tokens.times.tolist() == [[3.0, 4.5, 7.0, 0.0], [0.0, 5.0, 0.0, 0.0]]
    alone = tokens_of(seen(v, r), ONE_BAND).curves  # R isn't read and its epochs don't count
    assert alone.times.tolist() == [[0.0, 1.5, 4.0, 0.0]] and alone.band.tolist() == [0]


@pytest.mark.parametrize("log_period", [-1.0, 0.0, 0.5, 2.0])
def test_phases_are_of_the_period_that_the_scalar_tells(log_period: float) -> None:
    one = seen(curve(1, 30), curve(1, 9, "R"), **{PERIOD: (log_period, np.nan)})
    tokens = tokens_of(one).curves
    there = np.isfinite(tokens.sigma)
    assert np.isnan(tokens.phases[~there]).all()
    turns = tokens.times[there].astype(np.float64) / 10**log_period - tokens.phases[there]
    np.testing.assert_allclose(turns, np.rint(turns), atol=1e-6 * 2000 / 10**log_period + 1e-6)
    without = replace(WORDS, measured=("teff",))
    for unknown in (
        tokens_of(one, without),
        tokens_of(seen(curve(1, 30))),
        tokens_of(seen(curve(1, 3), **{PERIOD: (np.nan, 1.0)})),
    ):
        assert len(unknown.curves.phases) and np.isnan(unknown.curves.phases).all()


@pytest.mark.parametrize("size", [1, 3, 4, 7])
def test_epochs_are_cut_in_patches_of_one_band_and_the_last_is_filled_up(size: int) -> None:
    one = seen(curve(3, 23), curve(3, 10, "R"))
    tokens, counts = tokens_of(one, words(8, size)).curves, [int((c.ivar > 0).sum()) for c in one.curves]
    pieces = [-(-n // size) for n in counts]
    assert tokens.band.tolist() == [1] * pieces[0] + [0] * pieces[1]
    for band, n in ((1, counts[0]), (0, counts[1])):
        there = np.isfinite(tokens.sigma[tokens.band == band]).ravel()
        assert there[:n].all() and not there[n:].any()
        of = next(c for c in one.curves if c.band == "RV"[band])
        level, amplitude = (scalar(one, f"{what} {of.band} mag")[0] for what in ("level", "log10_amplitude"))
        values = tokens.values[tokens.band == band].ravel()[:n] * 10**amplitude + level
        np.testing.assert_allclose(values, of.value[of.ivar > 0], rtol=1e-5)


def test_bad_epochs_change_nothing() -> None:
    one = star(3)
    spoilt = [replace(c, value=np.where(c.ivar > 0, c.value, np.float32(1e30)), time=np.where(c.ivar > 0, c.time, c.time + 0.25))
              for c in one.curves]  # fmt: skip
    assert any((c.ivar == 0).any() for c in one.curves)
    assert_same(tokens_of(one), tokens_of(replace(one, curves=tuple(spoilt))))


def test_a_band_in_another_unit_or_of_another_name_is_not_read() -> None:
    flux = make_curve("V", np.arange(9.0), np.arange(9.0), np.ones(9), unit="mJy")
    other = replace(flux, band="B", unit="mag")
    tokens = tokens_of(seen(flux, other, teff=(5000.0, 1.0)))
    assert len(tokens.curves.values) == 0 and tokens.scalars.name.tolist() == [0, WORDS.names.index("teff")]


def test_two_light_curves_in_one_band_each_have_their_level() -> None:
    bright = replace(curve(1, 12), value=curve(1, 12).value - np.float32(3))
    one = seen(curve(1, 12), bright)
    first, second = scalar(one, "level V mag")
    assert first - second == pytest.approx(3, abs=1e-4)
    half = np.split(tokens_of(one).curves.values, 2)
    np.testing.assert_allclose(half[0], half[1], atol=1e-4)


def test_scalars_come_with_their_errors_and_those_that_are_unknown_not_at_all() -> None:
    one = seen(teff=(5100.0, 40.0), parallax=(-0.5, np.nan), age=(3.0, 1.0))
    found = tokens_of(one).scalars
    assert [WORDS.names[n] for n in found.name] == ["object", "parallax", "teff"]
    assert found.value.tolist() == [0.0, -0.5, 5100.0] and found.error.tolist() == [0.0, 0.0, 40.0]
    missing = tokens_of(seen(teff=(np.nan, 1.0), parallax=(0.0, 0.1))).scalars
    assert [WORDS.names[n] for n in missing.name] == ["object", "parallax"]  # 0 is a value
