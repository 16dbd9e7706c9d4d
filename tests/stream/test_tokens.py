from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hpcspec.stream.tokens import (
    CHANNELS,
    LIMIT,
    LOCAL_HALF,
    LOCAL_LIMIT,
    LOCAL_PASSES,
    LOG_ERROR,
    SIGMA,
    Tokens,
    apart,
    tokenize,
)
from hpcspec.surveys.observation import Arm, Observation, make_arm
from tests.making import GRIDS, batch, make, packed, spectrum
from tests.stream.cases import light_curve

Change = Callable[[np.ndarray, np.ndarray], np.ndarray]


def arm(flux: np.ndarray, ivar: np.ndarray | float = 4.0) -> Arm:
    """An arm on the SDSS grid."""
    flux = np.asarray(flux, np.float32)
    return Arm("a", GRIDS["log10"][0], 35800, flux, np.broadcast_to(np.float32(ivar), flux.shape))


def one_arm(flux: np.ndarray, ivar: np.ndarray | float = 4.0) -> Observation:
    return spectrum(arms=(arm(flux, ivar),))


def changed(one: Observation, change: Change) -> Observation:
    """The same with flux = change(flux, ivar) in every arm."""
    return replace(one, arms=tuple(replace(a, flux=change(a.flux, a.ivar).astype(np.float32)) for a in one.arms))


def tokens_of(one: Observation, patch: int) -> Tokens:
    return apart(batch([one], patch))[0]


def reference(one: Observation, patch: int) -> Tokens:
    """The tokens of an object by the definition, patch by patch."""
    scale = np.float32(one.amplitude) if np.float32(one.amplitude) > 0 else np.float32(1)
    rows: list[tuple[int, np.ndarray, np.ndarray, tuple[float, float]]] = []
    measured = [(a.wavelength, a.flux, a.ivar) for a in one.arms] + [(c.time, c.value, c.ivar) for c in one.curves]
    for x, flux, ivar in measured:
        good = ivar > 0
        f = (flux / scale).astype(np.float32)
        clipped = np.clip(f, -LIMIT, LIMIT)
        total, count = np.where(good, clipped, 0).astype(np.float64), good.astype(np.float64)
        for _ in range(LOCAL_PASSES):
            total, count = (np.array([v[max(0, i - LOCAL_HALF) : i + LOCAL_HALF + 1].sum() for i in range(len(v))])
                            for v in (total, count))  # fmt: skip
        level = np.where(count > 0, total / np.maximum(count, 1), 0)
        sigma = np.where(good, 1 / np.sqrt(np.where(good, ivar, 1).astype(np.float64)) / scale, np.inf)
        for a in range(0, len(x), patch):
            values, errors = np.tile([0.0, LOG_ERROR[1], 0.0], (patch, 1)), np.full(patch, np.inf)
            for k, i in enumerate(range(a, min(a + patch, len(x)))):
                values[k, 0], errors[k] = (clipped[i], sigma[i]) if good[i] else (level[i], np.inf)
                if good[i]:
                    values[k, 1] = np.clip(np.log10(sigma[i]), *LOG_ERROR)
                    values[k, 2] = np.clip((f[i] - level[i]) / max(abs(level[i]), 0.1), -LOCAL_LIMIT, LOCAL_LIMIT)
            last = min(a + patch, len(x)) - 1
            step = (x[last] - x[a]) / (last - a) if last > a else 1.0
            rows.append((int(np.isfinite(errors).sum()), values, errors, ((x[a] + x[last]) / 2, step)))
    kept = [r for r in rows if r[0] >= patch / 4] or [r for r in rows if r[0] > 0]
    return Tokens(
        np.array([v for _, v, _, _ in kept]).reshape(-1, patch, CHANNELS),
        np.array([np.where(np.isinf(e), e, np.clip(e, *SIGMA)) for _, _, e, _ in kept]).reshape(-1, patch),
        np.array([c for _, _, _, c in kept]).reshape(-1, 2), np.log10([scale, max(one.sn_median, 1e-3)]),
    )  # fmt: skip


@st.composite
def observations(draw: st.DrawFn) -> Observation:
    """Spectra on any grids, of good and bad stretches, with spikes, in any unit; light curves; or nothing of use."""
    number = draw(st.integers(0, 10**6))
    if draw(st.integers(0, 4)) == 0:
        return light_curve(number, draw(st.integers(1, 300)))
    rng = np.random.default_rng(number)
    arms = []
    for grid in draw(st.lists(st.sampled_from(sorted(GRIDS)), max_size=3)):
        one = make(grid, draw(st.integers(1, 400)), (number,))
        flux = one.flux * rng.choice([1, 1, 1, -1, 1e4], len(one.flux)) if draw(st.booleans()) else one.flux
        bad = np.sin(np.arange(len(flux)) / draw(st.integers(1, 100))) > draw(st.sampled_from([-2, -0.5, 0.3, 2]))
        arms.append(make_arm(one.name, one.grid, one.first, flux * 10.0 ** draw(st.integers(-17, 6)), one.ivar, bad))
    return spectrum(number, arms=tuple(arms))


@settings(max_examples=40, deadline=None)
@given(ones=st.lists(observations(), min_size=1, max_size=4), patch=st.integers(1, 40))
def test_tokens_are_those_of_the_definition(ones: list[Observation], patch: int) -> None:
    made = batch(ones, patch)
    assert list(made.lengths) == sorted(made.lengths) and sorted(made.objects.tolist()) == list(range(len(ones)))
    for number, tokens in apart(made).items():
        wanted = reference(ones[number], patch)
        np.testing.assert_allclose(tokens.coordinates, wanted.coordinates, rtol=2e-7)
        np.testing.assert_allclose(tokens.values, wanted.values, rtol=2e-6, atol=3e-6)
        np.testing.assert_allclose(tokens.sigma, wanted.sigma, rtol=1e-6)
        np.testing.assert_allclose(tokens.scalars, wanted.scalars, rtol=1e-6, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(ones=st.lists(observations(), min_size=2, max_size=6), patch=st.integers(1, 40), data=st.data())
def test_tokens_do_not_depend_on_what_is_packed_with_them(ones: list[Observation], patch: int, data: st.DataObject) -> None:
    """…to the last bit."""
    order = data.draw(st.permutations(range(len(ones))))
    together = apart(batch([ones[i] for i in order], patch))
    for place, i in enumerate(order):
        assert_same(together[place], tokens_of(ones[i], patch))


@pytest.mark.parametrize("pixels", [1, 2, 5, 300])
def test_tokens_of_an_object_behind_many_bright_pixels_are_the_same_to_the_last_bit(pixels: int) -> None:
    bright = one_arm(np.where(np.arange(50_000) < 24_000, 100.0, 1.0))
    one = one_arm(np.random.default_rng(1).normal(1, 0.3, pixels))
    assert_same(apart(batch([*[bright] * 6, one], 8))[6], tokens_of(one, 8))


def assert_same(one: Tokens, other: Tokens) -> None:
    for name in ("values", "sigma", "coordinates", "scalars"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def assert_finite(tokens: Tokens) -> None:
    assert len(tokens.values) and tokens.values.shape[1:] == (tokens.sigma.shape[1], CHANNELS)
    assert np.isfinite(tokens.values).all() and np.isfinite(tokens.coordinates).all() and np.isfinite(tokens.scalars).all()
    assert (tokens.sigma > 0).all() and not np.isnan(tokens.sigma).any() and np.isfinite(tokens.sigma).any()
    assert np.abs(tokens.values[..., 0]).max() <= LIMIT and np.abs(tokens.values[..., 2]).max() <= LOCAL_LIMIT
    assert {getattr(tokens, f).dtype for f in ("values", "sigma", "coordinates", "scalars")} == {np.dtype(np.float32)}


@settings(max_examples=60, deadline=None)
@given(grids=st.lists(st.sampled_from(list(GRIDS)), min_size=1, max_size=3), patches=st.integers(1, 12),
       patch=st.integers(8, 40), power=st.integers(-17, 17))  # fmt: skip
def test_flux_and_error_come_back_where_they_are_good(grids: list[str], patches: int, patch: int, power: int) -> None:
    unit = np.float32(10.0**power)
    one = spectrum(patches, grids, patches * patch)
    one = replace(one, arms=tuple(replace(a, flux=a.flux * unit, ivar=a.ivar / unit**2) for a in one.arms))
    tokens = tokens_of(one, patch)
    assert_finite(tokens)
    good = np.isfinite(tokens.sigma)
    flux, ivar = (np.concatenate([getattr(a, f)[a.ivar > 0] for a in one.arms]).astype(np.float64) for f in ("flux", "ivar"))
    scale = float(np.float32(one.amplitude))
    np.testing.assert_allclose(scale * tokens.values[..., 0][good].astype(np.float64), flux, rtol=3e-7)
    np.testing.assert_allclose(scale * tokens.sigma[good].astype(np.float64), ivar**-0.5, rtol=3e-7)
    assert tokens.scalars[0] == pytest.approx(np.log10(scale), rel=1e-6, abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000), patch=st.integers(1, 40), count=st.integers(20, 500))
def test_bad_pixels_change_nothing(seed: int, patch: int, count: int) -> None:
    one = spectrum(seed, ("log10", "table"), count)
    rng = np.random.default_rng(seed)
    other = changed(one, lambda f, i: np.where(i > 0, f, rng.normal(0, 10.0 ** rng.uniform(-3, 30), len(f))))
    assert_same(tokens_of(one, patch), tokens_of(other, patch))


@pytest.mark.parametrize("spike", [1e3, 1e10, 1e25])
def test_a_cosmic_ray_that_isn_t_masked_changes_nothing_far_away(spike: float) -> None:
    one = spectrum(3, ("log10",), 3000)
    hit = changed(one, lambda f, i: np.where(np.arange(len(f)) == 700, f * np.float32(spike), f))
    clean, struck = tokens_of(one, 10), tokens_of(hit, 10)
    far = np.abs(clean.coordinates[:, 0] - one.arms[0].wavelength[700]) > 300
    assert far.sum() > 150
    ratio = hit.amplitude / one.amplitude
    np.testing.assert_allclose(struck.values[far] * [ratio, 1, 1], clean.values[far], atol=1e-3)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("patch", [8, 32])
def test_tokens_are_in_order_of_the_arms_and_know_where_they_are(grid: str, patch: int) -> None:
    one = spectrum(5, (grid, "linear"), 200)
    wanted = []
    for a in one.arms:
        w = a.wavelength
        for start in range(0, len(w), patch):
            last = min(start + patch, len(w)) - 1
            if (a.ivar[start : last + 1] > 0).sum() >= patch / 4:
                wanted.append(((w[start] + w[last]) / 2, np.diff(w[start : last + 1]).mean()))
    tokens = tokens_of(one, patch)
    np.testing.assert_allclose(tokens.coordinates[:, 0], [x for x, _ in wanted], rtol=1e-7)
    np.testing.assert_allclose(tokens.coordinates[:, 1], [s for _, s in wanted], rtol=1e-6)
    for half in np.split(tokens.coordinates[:, 0], 2):
        assert (np.diff(half) > 0).all()
    assert (tokens.coordinates[:, 1] > 0).all()


def test_the_channels_are_flux_error_and_local_flux() -> None:
    tokens = tokens_of(one_arm(np.full(64, 5.0), 25.0), 16)
    np.testing.assert_allclose(tokens.values[..., 0], 1, rtol=1e-6)
    np.testing.assert_allclose(tokens.values[..., 1], np.log10(0.2 / 5), rtol=1e-6)
    np.testing.assert_allclose(tokens.values[..., 2], 0, atol=1e-6)
    np.testing.assert_allclose(tokens.sigma, 0.2 / 5, rtol=1e-6)
    np.testing.assert_allclose(tokens.scalars, [np.log10(5), np.log10(25)], rtol=1e-6)


def test_a_line_shows_in_the_local_flux_whatever_the_continuum() -> None:
    x = np.arange(2000)
    line = np.where(np.abs(x - 1200) < 3, 0.5, 1.0)
    for continuum in (np.ones(2000), 1 + x / 500, 1 + 0.5 * np.sin(x / 700)):
        local = tokens_of(one_arm(10 * continuum * line, 100.0), 50).values[..., 2].ravel()
        assert local[1200] == pytest.approx(-0.5, abs=0.05) and np.abs(local[300:1000]).max() < 0.1


def noise(count: int) -> np.ndarray:
    return np.random.default_rng(count).normal(0, 1, count)


EDGES = {
    "a single pixel": one_arm(np.array([3.0])),
    "a single pixel of value 0": one_arm(np.array([0.0])),
    "one patch": one_arm(10 + noise(32)),
    "constant": one_arm(np.full(500, 7.0)),
    "negative": one_arm(-10 + noise(500)),
    "noise about 0": one_arm(noise(500), 1e-4),
    "50,000 pixels": one_arm(10 + noise(50_000)),
    "all but one pixel bad": one_arm(10 + noise(500), np.eye(1, 500, 250)[0]),
    "all but the last pixel bad": one_arm(10 + noise(500), np.eye(1, 500, 499)[0]),
    "mostly 0": one_arm(np.where(np.arange(500) % 100, 0.0, 5.0)),
    "tiny": one_arm(1e-30 * (10 + noise(500)), 1e38),
    "huge": one_arm(1e18 * (10 + noise(500)), 1e-37),
    "largest float": one_arm(np.full(500, 3e38), 1e-45),
    "perfect": one_arm(10 + noise(500), np.float32(3e38)),
    "unlike errors": one_arm(10 + noise(500), np.where(np.arange(500) % 2, 1e-38, 1e30)),
    "an arm without pixels": spectrum(arms=(arm(np.zeros(0)), arm(10 + noise(100)))),
    "an arm of bad pixels": spectrum(arms=(arm(noise(100), 0.0), arm(10 + noise(100)))),
    "a light curve of one epoch": light_curve(0, 1),
}


@pytest.mark.parametrize("name", EDGES)
@pytest.mark.parametrize("patch", [1, 32])
def test_whatever_comes_the_tokens_are_finite(name: str, patch: int) -> None:
    one = EDGES[name]
    tokens = tokens_of(one, patch)
    assert_finite(tokens)
    lengths = [len(a.flux) for a in one.arms] + [len(c.time) for c in one.curves]
    assert len(tokens.values) <= sum(-(-n // patch) for n in lengths)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), count=st.integers(1, 60), patch=st.integers(1, 40))
def test_whatever_the_numbers_the_tokens_are_finite(data: st.DataObject, count: int, patch: int) -> None:
    numbers = st.floats(allow_nan=False, allow_infinity=False, width=32)
    flux, ivar = data.draw(arrays(np.float32, count, elements=numbers)), data.draw(arrays(np.float32, count, elements=numbers))
    ivar = np.where(ivar > 0, ivar, 0)
    ivar[data.draw(st.integers(0, count - 1))] = 1.0
    with np.errstate(over="ignore"):  # in the signal to noise
        assert_finite(tokens_of(one_arm(flux, ivar), patch))


@pytest.mark.parametrize("one", [spectrum(arms=()), one_arm(np.ones(50), 0.0)])
def test_an_object_without_a_good_sample_has_no_token_and_disturbs_none(one: Observation) -> None:
    other = spectrum(4, pixels=50)
    made = batch([other, one], 8, 0.5)
    assert made.lengths[0] == 0 and made.objects.tolist() == [1, 0] and torch.isfinite(made.scalars).all()
    assert_same(apart(made)[0], tokens_of(other, 8))
    alone = tokenize(packed([one]), 8, 0.5)
    assert alone.lengths == (0,) and alone.values.shape == (0, 8, CHANNELS) and alone.hidden.shape == (0,)


def test_a_patch_with_few_good_pixels_is_absent_and_bad_pixels_say_so() -> None:
    good = np.ones(96)
    good[32:60] = 0  # the second patch keeps four of 32, fewer than a quarter
    tokens = tokens_of(one_arm(10 + noise(96), good), 32)
    assert len(tokens.values) == 2
    good[0:20] = 0  # the first keeps twelve
    tokens = tokens_of(one_arm(10 + noise(96), good), 32)
    assert np.isinf(tokens.sigma[0, :20]).all() and np.isfinite(tokens.sigma[0, 20:]).all()
    assert (tokens.values[0, :20, 1] == LOG_ERROR[1]).all() and (tokens.values[0, :20, 2] == 0).all()


def test_the_same_object_in_other_units_has_the_same_tokens_but_for_the_scale() -> None:
    plain = make("log10", 300)
    one = tokens_of(spectrum(arms=(plain,)), 16)
    other = tokens_of(spectrum(arms=(replace(plain, flux=plain.flux * 1024, ivar=plain.ivar / 1024**2),)), 16)
    np.testing.assert_allclose(one.values, other.values, rtol=1e-6, atol=1e-6)
    assert other.scalars[0] - one.scalars[0] == pytest.approx(np.log10(1024), abs=1e-5)
