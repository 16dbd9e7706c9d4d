"""Spectra moved to other labels are those of stars with these labels, noise and all else as it was."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hpcspec.adapt.heads import Task, make_task
from hpcspec.adapt.labels import LabelSet
from hpcspec.adapt.mean_spectra import there, wavelengths
from hpcspec.adapt.relabel import Relabel
from hpcspec.stream.batch import Tokens, apart
from tests.adapt.toy_stars import ALONE, COUNT, PIXELS, arm, labels_of, one, stars
from tests.making import WORDS, assert_same, batch, curve, tokens_of


@pytest.fixture(scope="module")
def learned() -> tuple[Relabel, LabelSet, Task, dict[int, Tokens]]:
    rng = np.random.default_rng(1)
    labels = labels_of(rng)
    items = dict(apart(batch(stars(labels, rng))))
    numbers = np.arange(COUNT)
    task = make_task(labels, numbers)
    return Relabel(items, labels, task, numbers, WORDS.kinds, ALONE), labels, task, items


def test_a_star_without_noise_becomes_the_star_with_the_new_labels(learned: tuple) -> None:
    relabel, labels, task, _ = learned
    rng, changes, errors = np.random.default_rng(5), [], []
    assert relabel.usable and task.parameters == ("teff", "logg")
    for n in range(40):
        now = labels.values["teff"][n], labels.values["logg"][n]
        before = tokens_of(one(n, arm(*now)))
        moved, by = relabel(n, before, rng)
        wanted = tokens_of(one(n, arm(now[0] + by[0], now[1] + by[1])))
        good = np.isfinite(moved.spectra.sigma)
        np.testing.assert_array_equal(good, np.isfinite(wanted.spectra.sigma))
        old, new, true = (t.spectra.values[good][:, [0, 2]] for t in (before, moved, wanted))
        changes.append(true - old)
        errors.append(new - true)
        np.testing.assert_allclose(moved.spectra.values[~good], wanted.spectra.values[~good], atol=0.02)
        np.testing.assert_array_equal(moved.spectra.coordinates, before.spectra.coordinates)
    change, error = (np.sqrt(np.mean(np.concatenate(x) ** 2, axis=0)) for x in (changes, errors))
    assert (change > 0.003).all() and (error < 0.3 * change).all(), (change, error)


def test_the_noise_stays(learned: tuple) -> None:
    relabel, labels, _, items = learned
    now = labels.values["teff"][3], labels.values["logg"][3]
    clean = tokens_of(one(3, arm(*now)))
    (moved, by), (without, same) = (relabel(3, tokens, np.random.default_rng(2)) for tokens in (items[3], clean))
    np.testing.assert_array_equal(by, same)
    good = np.isfinite(moved.spectra.sigma)
    noise = [(a.spectra.values - b.spectra.values)[good][:, 0] for a, b in ((items[3], clean), (moved, without))]
    assert np.corrcoef(noise[0], noise[1])[0, 1] > 0.99 and noise[1].std() == pytest.approx(noise[0].std(), rel=0.1)


def test_renewed_noise_is_as_the_errors_say_about_the_star_with_the_new_labels(learned: tuple) -> None:
    relabel, labels, _, items = learned
    residuals = []
    for seed, n in [(seed, n) for seed in range(2) for n in range(40)]:
        moved, by = relabel(n, items[n], np.random.default_rng([seed, n]), renew=True)
        wanted = tokens_of(one(n, arm(labels.values["teff"][n] + by[0], labels.values["logg"][n] + by[1])))
        good = np.isfinite(moved.spectra.sigma)
        residuals.append((moved.spectra.values - wanted.spectra.values)[good][:, [0, 2]] / moved.spectra.sigma[good][:, None])
        np.testing.assert_array_equal(moved.spectra.values[..., 1], items[n].spectra.values[..., 1])
    spread = np.sqrt(np.mean(np.concatenate(residuals) ** 2, axis=0))
    assert (0.95 < spread).all() and (spread < 1.6).all(), spread
    first, second = (np.concatenate(residuals[part])[:, 1] for part in (slice(40), slice(40, None)))
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.3


def test_labels_stay_within_the_neighbourhood_and_differ_each_time(learned: tuple) -> None:
    relabel, labels, _, items = learned
    rng = np.random.default_rng(4)
    moves = np.array([relabel(9, items[9], rng)[1] for _ in range(30)])
    assert len({tuple(m) for m in moves}) == 30
    teff, logg = (labels.values[p][9] + moves[:, k] for k, p in enumerate(("teff", "logg")))
    assert teff.min() >= 4500 and teff.max() <= 5500 and logg.min() >= 3 and logg.max() <= 5
    teffs, loggs = (labels.values[p] - labels.values[p][9] for p in ("teff", "logg"))
    distance = np.hypot(teffs / 300, loggs / 0.6)
    assert 0.1 < np.hypot(moves[:, 0] / 300, moves[:, 1] / 0.6).max() < 1.5 * np.sort(distance)[COUNT // 3]


def test_what_it_can_not_move_stays_as_it_is(learned: tuple) -> None:
    relabel, _, _, items = learned
    rng = np.random.default_rng(0)
    several = tokens_of(replace(one(3, arm(5000, 4)), curves=(curve(3),), scalars={"parallax": (1.0, 0.1)}))
    for number, tokens in ((3, several), (COUNT + 7, items[3])):
        same, by = relabel(number, tokens, rng)
        assert_same(same, tokens)
        assert (by == 0).all()


def test_too_few_labels_are_not_used() -> None:
    labels = labels_of(np.random.default_rng(0), 29)
    items = dict(apart(batch([one(n, arm(5000, 4)) for n in range(29)])))
    relabel = Relabel(items, labels, make_task(labels, np.arange(29)), np.arange(29), WORDS.kinds, ALONE)
    assert not relabel.usable and (relabel(3, items[3], np.random.default_rng(0))[1] == 0).all()


def test_pixels_are_where_they_are() -> None:
    made = one(0, arm(5000, 4))
    tokens = tokens_of(made)
    real = there(tokens.spectra)
    assert real.sum() == PIXELS and not real[-1].all()
    np.testing.assert_allclose(wavelengths(tokens.spectra)[real], made.arms[0].wavelength, rtol=3e-6)
