"""What training changes of an object at random."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcspec.adapt.augment import augmented
from hpcspec.config import Adapt
from hpcspec.stream.batch import Tokens
from hpcspec.surveys.observation import Observation
from tests.making import WORDS, assert_same, curve, spectrum, star, tokens_of
from tests.stream.definition import observations

KINDS = WORDS.kinds
QUIET = {"noise": 0.0, "drop_tokens": 0.0, "drop_kinds": 0.0}


def changed(tokens: Tokens, seed: int = 0, **settings_: float) -> Tokens:
    return augmented(tokens, KINDS, np.random.default_rng(seed), Adapt.model_validate({**QUIET, **settings_}))


def kinds_of(tokens: Tokens) -> set[int]:
    """Kinds of measurement that an object has tokens of."""
    of = {*KINDS[tokens.scalars.name].tolist()} - {0}
    return of | ({1} if len(tokens.spectra.values) else set()) | ({2} if len(tokens.curves.values) else set())


def test_without_noise_and_loss_only_the_phases_begin_elsewhere() -> None:
    tokens = tokens_of(star(2))
    found = changed(tokens, 3)
    turn = (found.curves.phases - tokens.curves.phases) % 1
    known = np.isfinite(turn)
    assert known.any() and np.ptp((turn[known] + 0.5 - turn[known][0]) % 1) < 1e-5
    np.testing.assert_array_equal(np.isfinite(found.curves.phases), np.isfinite(tokens.curves.phases))
    assert_same(Tokens(found.scalars, found.spectra, found.curves._replace(phases=tokens.curves.phases)), tokens)
    assert len({float(changed(tokens, seed).curves.phases[0, 0]) for seed in range(5)}) == 5


@settings(max_examples=60, deadline=None)
@given(one=observations(), seed=st.integers(0, 999), noise=st.floats(0, 2), drop=st.floats(0, 0.95), kinds=st.floats(0, 0.95))
def test_whatever_comes_it_stays_sound_and_the_original_as_it_is(
    one: Observation, seed: int, noise: float, drop: float, kinds: float
) -> None:
    tokens = tokens_of(one)
    found = changed(tokens, seed, noise=noise, drop_tokens=drop, drop_kinds=kinds)
    assert_same(tokens, tokens_of(one))
    assert found.scalars.name[0] == 0 and len(found) >= min(2, len(tokens))
    assert kinds_of(found) <= kinds_of(tokens) and (kinds_of(found) or not kinds_of(tokens))
    for group, original in zip(found.groups, tokens.groups, strict=True):
        for name in group._fields:
            x, before = getattr(group, name), getattr(original, name)
            assert x.dtype == before.dtype and len(x) <= len(before) and len(x) == len(group[0])
            assert not np.isnan(x).any() or name == "phases"
    assert np.isfinite(found.spectra.values).all() and np.isfinite(found.curves.values).all()
    assert np.isfinite(found.scalars.value).all() and np.isfinite(found.scalars.error).all()


def test_the_same_seed_gives_the_same_and_another_another() -> None:
    tokens = tokens_of(star(2))
    full = {"noise": 1.0, "drop_tokens": 0.3, "drop_kinds": 0.3}
    assert_same(changed(tokens, 1, **full), changed(tokens, 1, **full))
    assert len({changed(tokens, seed, **full).scalars.value.tobytes() for seed in range(20)}) > 10


def test_of_each_form_about_the_share_asked_is_left_out_and_never_all() -> None:
    tokens = tokens_of(star(2, 400, 60))
    found = [changed(tokens, seed, drop_tokens=0.3) for seed in range(400)]
    for group in range(3):
        count = len(tokens.groups[group][0]) - (group == 0)
        left = np.mean([len(one.groups[group][0]) - (group == 0) for one in found])
        assert left / count == pytest.approx(0.7, abs=0.05)
    least, most = (np.array([len(changed(tokens, seed, drop_tokens=share)) for seed in range(400)]) / len(tokens)
                   for share in (0.5, (0.1, 0.9)))  # fmt: skip
    assert least.std() < 0.1 and most.std() > 0.2 and most.mean() == pytest.approx(0.5, abs=0.05)
    nearly = [changed(tokens, seed, drop_tokens=0.99) for seed in range(50)]
    assert all(len(one) >= 2 and one.scalars.name[0] == 0 for one in nearly)
    rows = {row.tobytes() for row in tokens.spectra.values}
    assert all(row.tobytes() in rows for one in found[:20] for row in one.spectra.values)


def test_all_kinds_but_one_are_left_out_as_often_as_asked() -> None:
    tokens, count = tokens_of(star(2)), 1200
    found = [kinds_of(changed(tokens, seed, drop_kinds=0.4)) for seed in range(count)]
    single = [one for one in found if len(one) == 1]
    assert all(len(one) in (1, 3) for one in found) and len(single) / count == pytest.approx(0.4, abs=0.05)
    np.testing.assert_allclose([single.count({k}) / len(single) for k in (1, 2, 3)], 1 / 3, atol=0.08)
    both = tokens_of(spectrum(1, curves=(curve(1),)))
    assert {frozenset(kinds_of(changed(both, seed, drop_kinds=0.9))) for seed in range(60)} == {
        frozenset({1}), frozenset({2}), frozenset({1, 2})}  # fmt: skip
    alone = tokens_of(spectrum(1))
    assert_same(changed(alone, 5, drop_kinds=0.99), alone)


def test_a_kind_goes_with_the_scalars_that_its_measurements_were_divided_by() -> None:
    tokens = tokens_of(star(2))
    for seed in range(40):
        found = changed(tokens, seed, drop_kinds=0.99)
        for kind in kinds_of(found) if len(kinds_of(found)) == 1 else ():
            np.testing.assert_array_equal(found.scalars.name, tokens.scalars.name[np.isin(KINDS[tokens.scalars.name], [0, kind])])


def test_noise_is_of_up_to_the_size_asked_in_units_of_the_errors() -> None:
    one = spectrum(2, pixels=800, curves=(curve(2, 400),), scalars={"teff": (5000.0, 400.0), "parallax": (1.0, np.nan)})
    tokens = tokens_of(one)
    sizes = []
    for seed in range(200):
        found = changed(tokens, seed, noise=0.8)
        good, there = np.isfinite(tokens.spectra.sigma), np.isfinite(tokens.curves.sigma)
        of_spectra = ((found.spectra.values[..., 0] - tokens.spectra.values[..., 0]) / tokens.spectra.sigma)[good]
        of_curves = ((found.curves.values - tokens.curves.values) / tokens.curves.sigma)[there]
        sizes.append(of_spectra.std())
        assert of_curves.std() == pytest.approx(of_spectra.std(), rel=0.25, abs=0.01)
        for before, after in ((tokens.spectra.values[~good], found.spectra.values[~good]),
                              (tokens.curves.values[~there], found.curves.values[~there])):  # fmt: skip
            np.testing.assert_array_equal(before, after)
        size = sizes[-1]
        np.testing.assert_allclose(found.curves.sigma[there], tokens.curves.sigma[there] * np.hypot(1, size), rtol=0.05)
        logs = tokens.spectra.values[good][:, 1] + 0.5 * np.log10(1 + size**2)
        np.testing.assert_allclose(found.spectra.values[good][:, 1], logs, atol=0.03)
        unknown = tokens.scalars.error == 0
        np.testing.assert_array_equal(found.scalars.value[unknown], tokens.scalars.value[unknown])
        np.testing.assert_array_equal(found.scalars.error[unknown], 0)
    assert 0 <= min(sizes) < 0.05 and 0.7 < max(sizes) < 0.85 and np.mean(sizes) == pytest.approx(0.4, abs=0.06)
    at = tokens.scalars.name.tolist().index(WORDS.names.index("teff"))
    teff = np.array([changed(tokens, seed, noise=0.8).scalars.value[at] for seed in range(400)])
    assert teff.std() == pytest.approx(400 * 0.8 / 3**0.5, rel=0.2) and teff.mean() == pytest.approx(5000, abs=50)
