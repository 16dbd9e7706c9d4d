"""The space of the embeddings: what differs between observations of one object counts for nothing in it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from hpcspec.adapt.embedding import _found, _repeats, directions, fit_embedding
from hpcspec.adapt.heads import Adapted, Head, Task
from hpcspec.model.views import covered_as_another, observed_again
from hpcspec.stream.batch import apart
from tests.adapt.toy_stars import ALONE
from tests.making import batch, make, spectrum
from tests.model.small import OBJECTS, SMALL, made

NOTHING = Task((), (), (), (), (), (), ())


def test_the_map_is_of_known_covariances() -> None:
    rng = np.random.default_rng(1)
    mixing = rng.normal(size=(6, 6))
    ratios = np.array([400.0, 30.0, 4.0, 1.0, 0.1, 0.0])
    within, between = mixing @ mixing.T, mixing @ np.diag(ratios) @ mixing.T
    found = directions(within, between, 0.0)
    noise, signal = found.T @ within @ found, found.T @ between @ found
    shrunk = ratios / (1 + ratios)
    np.testing.assert_allclose(noise, np.diag(shrunk**2), atol=1e-3)
    np.testing.assert_allclose(signal, np.diag(ratios * shrunk**2), atol=2e-2)
    with_systematics = directions(within, between, 0.1)
    with np.errstate(invalid="ignore"):
        top = np.diag(with_systematics.T @ between @ with_systematics) / np.diag(with_systematics.T @ within @ with_systematics)
    assert top[0] > 300  # the directions stay, their weights are nearly equal now
    weights = np.sqrt(np.diag(with_systematics.T @ (within + 0.1 * (within + between)) @ with_systematics))
    np.testing.assert_allclose(weights[:3], [0.9, 0.88, 0.73], atol=0.03)


def test_repeats_find_each_other_where_the_largest_directions_are_of_the_observation() -> None:
    rng = np.random.default_rng(2)
    scale_of, scale_in = np.array([1.0, 1.0, 0.1, 0.1, 0.1]), np.array([5.0, 5.0, 0.001, 0.001, 0.001])
    mixing = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    objects = rng.normal(size=(300, 5)) * scale_of
    nights = [(objects + rng.normal(size=(300, 5)) * scale_in) @ mixing for _ in range(2)]
    same = np.stack([np.arange(600), (np.arange(600) + 300) % 600], 1)
    covariances = (mixing.T @ np.diag(scale**2) @ mixing for scale in (scale_in, scale_of))
    vectors = np.concatenate(nights)
    assert _found(vectors, same) < 0.1 and _found(vectors @ directions(*covariances, 0.0), same) > 0.9


def test_repeats_are_positions_that_are_the_same() -> None:
    arcsec = 1 / 3600
    ra = np.array([0.2 * arcsec, 10.0, 360 - 0.2 * arcsec, 10.0, np.nan, 10.0, np.nan])
    dec = np.array([0.0, 40.0, 0.0, 40 + arcsec, 3.0, 40.01, 3.0])
    assert sorted(map(tuple, _repeats(ra, dec).tolist())) == [(0, 2), (1, 3), (2, 0), (3, 1)]
    assert not len(_repeats(ra[4:], dec[4:])) and not len(_repeats(ra[:0], dec[:0]))


@pytest.fixture
def adapted() -> Adapted:
    return Adapted(made(), Head(NOTHING, SMALL.width, SMALL.heads, 0.0)).eval()


def test_it_is_of_the_training_objects_and_draws_nothing(adapted: Adapted) -> None:
    count = 160
    ones = [spectrum(n // 2 if n < 40 else n, pixels=64) for n in range(count)]  # twenty of them twice
    items = dict(apart(batch(ones)))
    given = batch(ones)
    with torch.no_grad():
        vectors = adapted.model.summary(adapted.model.encode(given))
    summaries = dict(zip(given.objects.tolist(), vectors.numpy(), strict=True))
    sky = tuple(np.array([getattr(one, name) for one in ones]) for name in ("ra", "dec"))
    state = torch.get_rng_state()
    fit_embedding(adapted, items, summaries, sky, ALONE)
    assert torch.equal(torch.get_rng_state(), state)
    first = adapted.embedding_map.clone()
    fit_embedding(adapted, items, summaries, sky, ALONE)
    assert torch.equal(adapted.embedding_map, first) and not torch.equal(first, torch.eye(SMALL.width))
    found = adapted.embedding(torch.tensor(np.array([summaries[n] for n in range(count)])))
    assert torch.isfinite(found).all() and found.mean(0).abs().max() < 1e-2 * found.std()
    fit_embedding(adapted, {n: items[n] for n in range(40)}, summaries, sky, ALONE)
    assert torch.equal(adapted.embedding_map, first)  # too few to know


def test_another_observation_covers_what_one_of_the_others_does_and_has_its_noise() -> None:
    whole = make("log10", 4000, (0,), "b")
    starts = range(0, 400, 40)
    arms = [replace(whole, first=whole.first + s, flux=whole.flux[s : s + 3200], ivar=whole.ivar[s : s + 3200]) for s in starts]
    given = batch([spectrum(n, arms=(arm,)) for n, arm in enumerate(arms)])
    found, again = (torch.manual_seed(0) and change(given) for change in (covered_as_another, observed_again))
    ends = {}
    for name, one in (("given", given), ("found", found)):
        where, owner = one.spectra.coordinates[:, 0], one.owners[1]
        ends[name] = torch.tensor([[where[owner == n].min(), where[owner == n].max()] for n in range(len(arms))])
    low, high = (set(ends["given"][:, k].tolist()) for k in range(2))
    assert set(ends["found"][:, 0].tolist()) <= low and set(ends["found"][:, 1].tolist()) <= high
    assert (ends["found"] != ends["given"]).any(1).float().mean() > 0.5
    good = torch.isfinite(again.spectra.sigma)
    assert torch.equal(again.spectra.coordinates, found.spectra.coordinates) and torch.isfinite(again.spectra.values).all()
    signal = [(one.spectra.values[..., 0] / one.spectra.sigma)[good] for one in (again, found)]
    assert (signal[0] / signal[1]).median() == pytest.approx(0.5**0.5, abs=0.02)


def test_another_observation_of_any_objects() -> None:
    for ones in (OBJECTS, [spectrum(1, pixels=8)], [spectrum(2, (), scalars={"teff": (5000.0, 30.0)})]):
        given = batch(ones)
        found = observed_again(given)
        assert len(found) == len(given) and all(a > 0 for a in found.lengths)
        for x in (found.spectra.values, found.curves.values[torch.isfinite(found.curves.sigma)], found.scalars.value):
            assert torch.isfinite(x).all()
