"""Tokens of any objects, and those of spectra."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hpcspec.stream.batch import CHANNELS, Patches, Tokens, apart
from hpcspec.stream.patches import LIMIT, LOCAL_LIMIT, LOG_ERROR
from hpcspec.stream.vocabulary import PERIOD, Vocabulary
from hpcspec.surveys.observation import Arm, Curve, Observation
from tests.making import GRIDS, WORDS, assert_same, batch, make, spectrum, star, tensors, tokens_of, words
from tests.stream.cases import light_curve
from tests.stream.definition import assert_close, observations, reference

Change = Callable[[np.ndarray, np.ndarray], np.ndarray]


def arm(flux: np.ndarray, ivar: np.ndarray | float = 4.0) -> Arm:
    """An arm on the SDSS grid that begins with a patch, if they have 8, 16, 32 or 50 pixels."""
    flux = np.asarray(flux, np.float32)
    return Arm("a", GRIDS["log10"][0], 35200, flux, np.broadcast_to(np.float32(ivar), flux.shape))


def one_arm(flux: np.ndarray, ivar: np.ndarray | float = 4.0) -> Observation:
    return spectrum(arms=(arm(flux, ivar),))


def one_curve(value: np.ndarray, ivar: np.ndarray | float = 100.0, **more: object) -> Observation:
    value = np.asarray(value, np.float32)
    of = Curve("V", np.arange(len(value)) * 1.5, value, np.broadcast_to(np.float32(ivar), value.shape))
    return spectrum(0, (), curves=(of,), **more)


def changed(one: Observation, change: Change) -> Observation:
    """The same with flux = change(flux, ivar) in every arm."""
    return replace(one, arms=tuple(replace(a, flux=change(a.flux, a.ivar).astype(np.float32)) for a in one.arms))


def patches_of(one: Observation, patch: int) -> Patches:
    return tokens_of(one, words(patch)).spectra


def scalars_of(one: Observation, of: Vocabulary = WORDS) -> dict[str, float]:
    found = tokens_of(one, of).scalars
    return {of.names[name]: value for name, value in zip(found.name.tolist(), found.value.tolist(), strict=True)}


SIZES = st.builds(words, st.integers(1, 40), st.integers(1, 12))
KINDS = st.sampled_from([("spectra", "curves", "scalars"), ("spectra",), ("curves", "scalars"), ("curves",), ("scalars",)])


@st.composite
def vocabularies(draw: st.DrawFn) -> Vocabulary:
    """As `vocabulary` makes them: without bands or names where those kinds are not read."""
    inputs, bands, measured = draw(KINDS), *(draw(st.sets(st.sampled_from(known))) for known in (WORDS.bands, WORDS.measured))
    return Vocabulary(draw(st.integers(1, 40)), draw(st.integers(1, 12)), inputs,
                      tuple(sorted(bands)) if "curves" in inputs else (),
                      tuple(sorted(measured)) if "scalars" in inputs else ())  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(ones=st.lists(observations(), min_size=1, max_size=4), of=SIZES | vocabularies())
def test_tokens_are_those_of_the_definition(ones: list[Observation], of: Vocabulary) -> None:
    made = batch(ones, of)
    assert list(made.lengths) == sorted(made.lengths) and sorted(made.objects.tolist()) == list(range(len(ones)))
    for number, tokens in apart(made).items():
        assert_close(tokens, reference(ones[number], of))


@settings(max_examples=30, deadline=None)
@given(ones=st.lists(observations(), min_size=2, max_size=6), of=SIZES, data=st.data())
def test_tokens_do_not_depend_on_what_is_packed_with_them(ones: list[Observation], of: Vocabulary, data: st.DataObject) -> None:
    """…to the last bit."""
    order = data.draw(st.permutations(range(len(ones))))
    together = apart(batch([ones[i] for i in order], of))
    for place, i in enumerate(order):
        assert_same(together[place], tokens_of(ones[i], of))


@pytest.mark.parametrize("pixels", [1, 2, 5, 300])
def test_tokens_of_an_object_behind_many_bright_pixels_are_the_same_to_the_last_bit(pixels: int) -> None:
    bright = one_arm(np.where(np.arange(50_000) < 24_000, 100.0, 1.0))
    one = one_arm(np.random.default_rng(1).normal(1, 0.3, pixels))
    assert_same(apart(batch([*[bright] * 6, one]))[6], tokens_of(one))


@settings(max_examples=20, deadline=None)
@given(ones=st.lists(observations(), min_size=1, max_size=4), of=SIZES | vocabularies())
def test_a_batch_says_what_each_token_is_and_whose(ones: list[Observation], of: Vocabulary) -> None:
    made = batch(ones, of)
    names = of.kinds[made.scalars.name.numpy()]
    kind = np.concatenate([names, np.full(len(made.spectra.values), 1), np.full(len(made.curves.values), 2)])[made.order.numpy()]
    assert made.kind.tolist() == kind.tolist() and sorted(made.order.tolist()) == list(range(sum(made.lengths)))
    first = np.cumsum([0, *made.lengths[:-1]])
    assert (made.order.numpy()[first] < len(names)).all() and made.scalars.name[made.order[first]].tolist() == [0] * len(ones)
    assert np.count_nonzero(made.kind.numpy() == 0) == len(ones)  # the object's own, first of its tokens
    owner = np.repeat(np.arange(len(ones)), made.lengths)
    in_order = torch.cat(made.owners)[made.order].numpy()
    assert (in_order == owner).all()


def assert_finite(tokens: Tokens) -> None:
    spectra, curves, scalars = tokens.spectra, tokens.curves, tokens.scalars
    assert scalars.name[0] == 0 and len(tokens) > 1 and spectra.values.shape[1:] == (spectra.sigma.shape[1], CHANNELS)
    for x in (spectra.values, spectra.coordinates, curves.values, curves.times, scalars.value, scalars.error):
        assert np.isfinite(x).all() and x.dtype == np.float32
    for group in (spectra, curves):
        assert (group.sigma > 0).all() and not np.isnan(group.sigma).any() and np.isfinite(group.sigma).any(-1).all()
        assert group.sigma.dtype == np.float32
    for x, limit in ((spectra.values[..., 0], LIMIT), (spectra.values[..., 2], LOCAL_LIMIT), (curves.values, LIMIT)):
        assert np.abs(x).max(initial=0) <= limit
    known = np.isfinite(curves.phases)
    assert (curves.phases[known] >= 0).all() and (curves.phases[known] <= 1).all() and not np.isinf(curves.phases).any()
    assert (curves.times >= 0).all() and (scalars.error >= 0).all()


@settings(max_examples=60, deadline=None)
@given(grids=st.lists(st.sampled_from(list(GRIDS)), min_size=1, max_size=3), patches=st.integers(1, 12),
       patch=st.integers(8, 40), power=st.integers(-17, 17))  # fmt: skip
def test_flux_and_error_come_back_where_they_are_good(grids: list[str], patches: int, patch: int, power: int) -> None:
    unit = np.float32(10.0**power)
    one = spectrum(patches, grids, patches * patch)
    one = replace(one, arms=tuple(replace(a, first=a.first // patch * patch, flux=a.flux * unit, ivar=a.ivar / unit**2)
                                  for a in one.arms))  # fmt: skip
    tokens = tokens_of(one, words(patch))
    assert_finite(tokens)
    good = np.isfinite(tokens.spectra.sigma)
    flux, ivar = (np.concatenate([getattr(a, f)[a.ivar > 0] for a in one.arms]).astype(np.float64) for f in ("flux", "ivar"))
    scale = float(np.float32(one.amplitude))
    np.testing.assert_allclose(scale * tokens.spectra.values[..., 0][good].astype(np.float64), flux, rtol=3e-7)
    np.testing.assert_allclose(scale * tokens.spectra.sigma[good].astype(np.float64), ivar**-0.5, rtol=3e-7)
    assert scalars_of(one)["log10_flux_scale"] == pytest.approx(np.log10(scale), rel=1e-6, abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000), patch=st.integers(1, 40), count=st.integers(20, 500))
def test_bad_pixels_change_nothing(seed: int, patch: int, count: int) -> None:
    one = spectrum(seed, ("log10", "table"), count)
    rng = np.random.default_rng(seed)
    other = changed(one, lambda f, i: np.where(i > 0, f, rng.normal(0, 10.0 ** rng.uniform(-3, 30), len(f))))
    assert_same(tokens_of(one, words(patch)), tokens_of(other, words(patch)))


@pytest.mark.parametrize("spike", [1e3, 1e10, 1e25])
def test_a_cosmic_ray_that_isn_t_masked_changes_nothing_far_away(spike: float) -> None:
    one = spectrum(3, ("log10",), 3000)
    hit = changed(one, lambda f, i: np.where(np.arange(len(f)) == 700, f * np.float32(spike), f))
    clean, struck = patches_of(one, 10), patches_of(hit, 10)
    far = np.abs(clean.coordinates[:, 0] - one.arms[0].wavelength[700]) > 300
    assert far.sum() > 150
    ratio = hit.amplitude / one.amplitude
    np.testing.assert_allclose(struck.values[far] * [ratio, 1, 1], clean.values[far], atol=1e-3)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("patch", [8, 32])
def test_tokens_are_in_order_of_the_arms_and_know_where_they_are(grid: str, patch: int) -> None:
    one = spectrum(5, (grid, "linear"), 200)
    wanted, count = [], 0
    for a in one.arms:
        w, count = a.wavelength, len(wanted)
        for start in range(-(a.first % patch), len(w), patch):
            x = np.arange(max(start, 0), min(start + patch, len(w)))
            if (a.ivar[x] > 0).sum() >= patch / 4:
                if a.grid.kind != "table":  # which alone doesn't say what is beyond its ends
                    x = np.array([start, start + patch - 1])
                low, high = a.grid.at(a.first + x[[0, -1]])
                step = (high - low) / (x[-1] - x[0])
                wanted.append((low + step * (start + (patch - 1) / 2 - x[0]), step))
    tokens = patches_of(one, patch)
    np.testing.assert_allclose(tokens.coordinates[:, 0], [x for x, _ in wanted], rtol=1e-7)
    np.testing.assert_allclose(tokens.coordinates[:, 1], [s for _, s in wanted], rtol=1e-6)
    assert (tokens.coordinates[:, 1] > 0).all()
    for arm in np.split(tokens.coordinates[:, 0], [count]):
        assert len(arm) > 5 and (np.diff(arm) > 0).all()


@pytest.mark.parametrize("grid", GRIDS)
def test_spectra_of_one_grid_have_the_same_patches_wherever_they_begin(grid: str) -> None:
    whole = make(grid, 200, name="a")
    patches = {start: patches_of(spectrum(arms=(replace(whole, first=whole.first + start, flux=whole.flux[start:stop],
                                                        ivar=whole.ivar[start:stop]),)), 16)
               for start, stop in ((0, 200), (9, 200), (27, 155))}  # fmt: skip
    rows = {start: {int(round(x * 1e3)): i for i, x in enumerate(of.coordinates[:, 0].tolist())} for start, of in patches.items()}
    for start, of in patches.items():
        same = set(rows[start]) & set(rows[0])
        assert len(same) >= len(of.sigma) - 2 * (grid == "table")  # which says nothing of what is beyond a spectrum's ends
        for key in same:
            a, b = patches[0], of
            i, j = rows[0][key], rows[start][key]
            np.testing.assert_allclose(a.coordinates[i], b.coordinates[j], rtol=1e-6)
            both = np.isfinite(a.sigma[i]) & np.isfinite(b.sigma[j])
            assert both.sum() >= 4
            ratio = a.values[i, both, 0] / b.values[j, both, 0]
            np.testing.assert_allclose(ratio, np.median(ratio), rtol=1e-5)


def test_the_channels_are_flux_error_and_local_flux() -> None:
    one = one_arm(np.full(64, 5.0), 25.0)
    tokens = patches_of(one, 16)
    np.testing.assert_allclose(tokens.values[..., 0], 1, rtol=1e-6)
    np.testing.assert_allclose(tokens.values[..., 1], np.log10(0.2 / 5), rtol=1e-6)
    np.testing.assert_allclose(tokens.values[..., 2], 0, atol=1e-6)
    np.testing.assert_allclose(tokens.sigma, 0.2 / 5, rtol=1e-6)
    assert scalars_of(one) == pytest.approx({"object": 0, "log10_flux_scale": np.log10(5), "log10_sn": np.log10(25)})


def test_a_line_shows_in_the_local_flux_whatever_the_continuum() -> None:
    x = np.arange(2000)
    line = np.where(np.abs(x - 1200) < 3, 0.5, 1.0)
    for continuum in (np.ones(2000), 1 + x / 500, 1 + 0.5 * np.sin(x / 700)):
        local = patches_of(one_arm(10 * continuum * line, 100.0), 50).values[..., 2].ravel()
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
    "everything": star(3),
    "one epoch": light_curve(0, 1),
    "constant magnitude": one_curve(np.full(30, 14.0)),
    "constant magnitude without errors": one_curve(np.full(30, 14.0), 3e38),
    "two epochs at once": spectrum(0, (), curves=(Curve("V", np.zeros(2), np.ones(2, np.float32), np.ones(2, np.float32)),)),
    "50,000 epochs": one_curve(14 + noise(50_000)),
    "all but one epoch bad": one_curve(14 + noise(50), np.eye(1, 50, 20)[0]),
    "epochs of tiny fluxes": one_curve(1e-30 * noise(50), 1e38),
    "epochs of huge fluxes": one_curve(1e18 * noise(50), 1e-37),
    "epochs of the largest floats": one_curve(np.where(np.arange(50) % 2, 3e38, -3e38), 1e-45),
    "an outlier of the largest float": one_curve(np.where(np.arange(50) == 7, 3e38, 14 + noise(50))),
    "perfect epochs": one_curve(14 + noise(50), np.float32(3e38)),
    "the shortest period": one_curve(14 + noise(50), scalars={PERIOD: (-300.0, 0.1)}),
    "the longest period": one_curve(14 + noise(50), scalars={PERIOD: (3e38, np.nan)}),
    "extreme scalars": spectrum(0, (), scalars={"teff": (3e38, 3e38), "parallax": (-3e38, 1e-45)}),
}


@pytest.mark.parametrize("name", EDGES)
@pytest.mark.parametrize("size", [1, 32])
def test_whatever_comes_the_tokens_are_finite(name: str, size: int) -> None:
    one = EDGES[name]
    tokens = tokens_of(one, words(size, size))
    assert_finite(tokens)
    assert len(tokens.spectra.values) <= sum(-(-(len(a.flux) + a.first % size) // size) for a in one.arms)
    assert len(tokens.curves.values) == sum(-(-np.count_nonzero(c.ivar > 0) // size) for c in one.curves)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), count=st.integers(1, 60), size=st.integers(1, 40), what=st.sampled_from([one_arm, one_curve]))
def test_whatever_the_numbers_the_tokens_are_finite(
    data: st.DataObject, count: int, size: int, what: Callable[..., Observation]
) -> None:
    numbers = st.floats(allow_nan=False, allow_infinity=False, width=32)
    flux, ivar = data.draw(arrays(np.float32, count, elements=numbers)), data.draw(arrays(np.float32, count, elements=numbers))
    ivar = np.where(ivar > 0, ivar, 0)
    ivar[data.draw(st.integers(0, count - 1))] = 1.0
    with np.errstate(over="ignore"):  # in the signal to noise
        assert_finite(tokens_of(what(flux, ivar), words(size, size)))


@pytest.mark.parametrize("one", [spectrum(arms=()), one_arm(np.ones(50), 0.0), one_curve(np.ones(9), 0.0)])
def test_an_object_without_a_good_sample_has_its_own_token_alone_and_disturbs_none(one: Observation) -> None:
    other = star(4)
    made = batch([other, one], mask=0.5)
    assert made.lengths[0] == 1 and made.objects.tolist() == [1, 0] and made.kind[0] == 0 and not made.hidden[0]
    assert all(torch.isfinite(x).all() for x in made.scalars)
    assert_same(apart(made)[0], tokens_of(other))
    alone = batch([one], mask=0.5)
    assert alone.lengths == (1,) and alone.spectra.values.shape == (0, 8, CHANNELS) and alone.curves.values.shape == (0, 4)
    assert alone.hidden.tolist() == [False]


def test_a_patch_with_few_good_pixels_is_absent_and_bad_pixels_say_so() -> None:
    good = np.ones(96)
    good[32:60] = 0  # the second patch keeps four of 32, fewer than a quarter
    assert len(patches_of(one_arm(10 + noise(96), good), 32).values) == 2
    good[0:20] = 0  # the first keeps twelve
    tokens = patches_of(one_arm(10 + noise(96), good), 32)
    assert np.isinf(tokens.sigma[0, :20]).all() and np.isfinite(tokens.sigma[0, 20:]).all()
    assert (tokens.values[0, :20, 1] == LOG_ERROR[1]).all() and (tokens.values[0, :20, 2] == 0).all()


def test_the_same_object_in_other_units_has_the_same_tokens_but_for_the_scale() -> None:
    plain = make("log10", 300)
    louder = replace(plain, flux=plain.flux * 1024, ivar=plain.ivar / 1024**2)
    one, other = (spectrum(arms=(a,)) for a in (plain, louder))
    np.testing.assert_allclose(patches_of(one, 16).values, patches_of(other, 16).values, rtol=1e-6, atol=1e-6)
    shift = {name: scalars_of(other)[name] - scalars_of(one)[name] for name in scalars_of(one)}
    assert shift == pytest.approx({"object": 0, "log10_flux_scale": np.log10(1024), "log10_sn": 0}, abs=1e-5)


def test_what_the_vocabulary_lacks_leaves_the_other_tokens_as_they_are() -> None:
    whole = tensors(batch([star(2)]))
    for inputs, left in ((("spectra",), "spectra"), (("curves", "scalars"), "curves")):
        of = Vocabulary(8, 4, inputs, WORDS.bands if "curves" in inputs else (), WORDS.measured if "scalars" in inputs else ())
        part = tensors(batch([star(2)], of))
        for name in (n for n in whole if "." in n):
            if name.startswith(left):
                np.testing.assert_array_equal(part[name], whole[name])
            elif not name.startswith("scalars"):
                assert len(part[name]) == 0
