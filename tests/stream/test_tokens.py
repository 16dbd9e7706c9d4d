from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hpcspec.shards.format import Pixels
from hpcspec.stream.tokens import CHANNELS, LIMIT, LOCAL_LIMIT, LOG_ERROR, Tokens, tokenize
from tests.making import GRIDS, make, pixels_of, spectrum

Arm = tuple[np.ndarray, np.ndarray, np.ndarray]


def pixels(flux: np.ndarray, ivar: np.ndarray | float = 4.0) -> Pixels:
    """One arm on the SDSS grid."""
    flux = np.asarray(flux, np.float32)
    return Pixels(((GRIDS["log10"][0].wavelength(35800, len(flux)), flux, np.broadcast_to(np.float32(ivar), flux.shape)),))


def changed(objects: Pixels, change) -> Pixels:
    """The same with flux = change(flux, ivar) in every arm."""
    return Pixels(tuple((w, change(f, i).astype(np.float32), i) for w, f, i in objects.arms))


def assert_finite(tokens: Tokens) -> None:
    assert len(tokens.values) and tokens.values.shape[1:] == (tokens.sigma.shape[1], CHANNELS)
    assert np.isfinite(tokens.values).all() and np.isfinite(tokens.coordinates).all() and np.isfinite(tokens.scalars).all()
    assert (tokens.sigma > 0).all() and not np.isnan(tokens.sigma).any() and np.isfinite(tokens.sigma).any()
    assert np.abs(tokens.values[..., 0]).max() <= LIMIT and np.abs(tokens.values[..., 2]).max() <= LOCAL_LIMIT
    assert tokens.values.dtype == tokens.sigma.dtype == tokens.scalars.dtype == np.float32 and tokens.scale > 0


@settings(max_examples=60, deadline=None)
@given(grids=st.lists(st.sampled_from(list(GRIDS)), min_size=1, max_size=3), patches=st.integers(1, 12),
       patch=st.integers(8, 40), power=st.integers(-17, 17))  # fmt: skip
def test_flux_and_error_come_back_where_they_are_good(grids: list[str], patches: int, patch: int, power: int) -> None:
    one = spectrum(patches, grids, patches * patch)
    unit = np.float32(10.0**power)
    objects = Pixels(tuple((w, f * unit, i / unit**2) for w, f, i in pixels_of(one).arms))
    tokens = tokenize(objects, patch)
    assert_finite(tokens)
    good = np.isfinite(tokens.sigma)
    flux, ivar = (np.concatenate([a[k][a[2] > 0] for a in objects.arms]).astype(np.float64) for k in (1, 2))
    np.testing.assert_allclose(tokens.scale * tokens.values[..., 0][good].astype(np.float64), flux, rtol=3e-7)
    np.testing.assert_allclose(tokens.scale * tokens.sigma[good].astype(np.float64), ivar**-0.5, rtol=3e-7)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000), patch=st.integers(1, 40), count=st.integers(20, 500))
def test_bad_pixels_change_nothing(seed: int, patch: int, count: int) -> None:
    objects = pixels_of(spectrum(seed, ("log10", "table"), count))
    rng = np.random.default_rng(seed)
    one, other = tokenize(objects, patch), tokenize(
        changed(objects, lambda f, i: np.where(i > 0, f, rng.normal(0, 10.0 ** rng.uniform(-3, 30), len(f)))), patch)  # fmt: skip
    for name in ("values", "sigma", "coordinates", "scalars", "scale"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


@pytest.mark.parametrize("spike", [1e3, 1e10, 1e25])
def test_a_cosmic_ray_that_isn_t_masked_changes_nothing_far_away(spike: float) -> None:
    objects = pixels_of(spectrum(3, ("log10",), 3000))
    flux = objects.arms[0][1].copy()
    flux[700] *= spike
    hit = tokenize(Pixels(((objects.arms[0][0], flux, objects.arms[0][2]),)), 10)
    clean = tokenize(objects, 10)
    far = np.abs(clean.coordinates[:, 0] - objects.arms[0][0][700]) > 300
    assert far.sum() > 150
    np.testing.assert_allclose(hit.values[far] * [hit.scale / clean.scale, 1, 1], clean.values[far], atol=1e-3)


def tokens_and_pixels(one, patch: int) -> tuple[Tokens, list[tuple[float, float]]]:
    """The tokens, and for each patch the middle of its first and last wavelength (Å) and the step there."""
    wanted = []
    for w, _, i in pixels_of(one).arms:
        for a in range(0, len(w), patch):
            b = min(a + patch, len(w))
            if (i[a:b] > 0).sum() >= patch / 4:
                wanted.append(((w[a] + w[b - 1]) / 2, np.gradient(w)[(a + b - 1) // 2]))
    return tokenize(pixels_of(one), patch), wanted


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("patch", [8, 32])
def test_tokens_are_in_order_of_the_arms_and_know_where_they_are(grid: str, patch: int) -> None:
    tokens, wanted = tokens_and_pixels(spectrum(5, (grid, "linear"), 200), patch)
    np.testing.assert_allclose(tokens.coordinates, wanted, rtol=1e-12)
    for arm in (tokens.coordinates[:, 0][: len(wanted) // 2], tokens.coordinates[:, 0][len(wanted) // 2 :]):
        assert (np.diff(arm) > 0).all()
    assert (tokens.coordinates[:, 1] > 0).all()


def test_the_channels_are_flux_error_and_local_flux() -> None:
    tokens = tokenize(pixels(np.full(64, 5.0), 25.0), 16)
    np.testing.assert_allclose(tokens.values[..., 0], 1, rtol=1e-6)
    np.testing.assert_allclose(tokens.values[..., 1], np.log10(0.2 / 5), rtol=1e-6)
    np.testing.assert_allclose(tokens.values[..., 2], 0, atol=1e-6)
    np.testing.assert_allclose(tokens.sigma, 0.2 / 5, rtol=1e-6)
    np.testing.assert_allclose(tokens.scalars, [np.log10(5), np.log10(25)], rtol=1e-6)
    assert tokens.scale == pytest.approx(5)


def test_a_line_shows_in_the_local_flux_whatever_the_continuum() -> None:
    x = np.arange(2000)
    line = np.where(np.abs(x - 1200) < 3, 0.5, 1.0)
    for continuum in (np.ones(2000), 1 + x / 500, 1 + 0.5 * np.sin(x / 700)):
        local = tokenize(pixels(10 * continuum * line, 100.0), 50).values[..., 2].ravel()
        assert local[1200] == pytest.approx(-0.5, abs=0.05) and np.abs(local[300:1000]).max() < 0.1


def noise(count: int) -> np.ndarray:
    return np.random.default_rng(count).normal(0, 1, count)


EDGES = {
    "a single pixel": pixels(np.array([3.0])),
    "a single pixel of value 0": pixels(np.array([0.0])),
    "one patch": pixels(10 + noise(32)),
    "constant": pixels(np.full(500, 7.0)),
    "negative": pixels(-10 + noise(500)),
    "noise about 0": pixels(noise(500), 1e-4),
    "50,000 pixels": pixels(10 + noise(50_000)),
    "all but one pixel bad": pixels(10 + noise(500), np.eye(1, 500, 250)[0]),
    "all but the last pixel bad": pixels(10 + noise(500), np.eye(1, 500, 499)[0]),
    "mostly 0": pixels(np.where(np.arange(500) % 100, 0.0, 5.0)),
    "tiny": pixels(1e-30 * (10 + noise(500)), 1e38),
    "huge": pixels(1e18 * (10 + noise(500)), 1e-37),
    "largest float": pixels(np.full(500, 3e38), 1e-45),
    "perfect": pixels(10 + noise(500), np.float32(3e38)),
    "unlike errors": pixels(10 + noise(500), np.where(np.arange(500) % 2, 1e-38, 1e30)),
    "an arm without pixels": Pixels((pixels(np.zeros(0)).arms[0], pixels(10 + noise(100)).arms[0])),
    "an arm of bad pixels": Pixels((pixels(noise(100), 0.0).arms[0], pixels(10 + noise(100)).arms[0])),
}


@pytest.mark.parametrize("name", EDGES)
@pytest.mark.parametrize("patch", [1, 32])
def test_whatever_comes_the_tokens_are_finite(name: str, patch: int) -> None:
    with np.errstate(all="raise", under="ignore"):
        tokens = tokenize(EDGES[name], patch)
    assert_finite(tokens)
    assert len(tokens.values) <= sum(-(-len(f) // patch) for _, f, _ in EDGES[name].arms)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), count=st.integers(1, 60), patch=st.integers(1, 40))
def test_whatever_the_numbers_the_tokens_are_finite(data: st.DataObject, count: int, patch: int) -> None:
    numbers = st.floats(allow_nan=False, allow_infinity=False, width=32)
    flux, ivar = data.draw(arrays(np.float32, count, elements=numbers)), data.draw(arrays(np.float32, count, elements=numbers))
    ivar = np.where(ivar > 0, ivar, 0)
    ivar[data.draw(st.integers(0, count - 1))] = 1.0
    assert_finite(tokenize(pixels(flux, ivar), patch))


def test_a_patch_with_few_good_pixels_is_absent_and_bad_pixels_say_so() -> None:
    good = np.ones(96)
    good[32:60] = 0  # the second patch keeps four of 32, fewer than a quarter
    tokens = tokenize(pixels(10 + noise(96), good), 32)
    assert len(tokens.values) == 2
    good[0:20] = 0  # the first keeps twelve
    tokens = tokenize(pixels(10 + noise(96), good), 32)
    assert np.isinf(tokens.sigma[0, :20]).all() and np.isfinite(tokens.sigma[0, 20:]).all()
    assert (tokens.values[0, :20, 1] == LOG_ERROR[1]).all() and (tokens.values[0, :20, 2] == 0).all()


def test_the_same_object_in_other_units_has_the_same_tokens_but_for_the_scale() -> None:
    arm = make("log10", 300)
    one = tokenize(pixels_of(spectrum(arms=(arm,))), 16)
    other = tokenize(pixels_of(spectrum(arms=(replace(arm, flux=arm.flux * 1024, ivar=arm.ivar / 1024**2),))), 16)
    np.testing.assert_allclose(one.values, other.values, rtol=1e-6, atol=1e-6)
    assert other.scalars[0] - one.scalars[0] == pytest.approx(np.log10(1024), abs=1e-5)
