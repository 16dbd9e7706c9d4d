"""The space of the embeddings: what differs between observations of one object counts for nothing in it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from hpcspec.adapt import embedding
from hpcspec.adapt.embedding import covariances, directions, fit_embedding, found_next, repeats, sampled
from hpcspec.adapt.heads import Adapted, Head, Task
from hpcspec.model.views import covered_as_another, observed_again
from hpcspec.stream.batch import Tokens, apart
from hpcspec.stream.index import open_index
from tests.adapt.toy_stars import ALONE
from tests.making import batch, make, shard, spectrum
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


def pairs_of(rng: np.random.Generator, count: int, mixing: np.ndarray, scale_of: np.ndarray, scale_in: np.ndarray) -> np.ndarray:
    """Noisy vectors (count, 2, D) of objects, with as much noise again."""
    seen = rng.normal(size=(count, 1, len(scale_of))) * scale_of + rng.normal(size=(count, 1, len(scale_of))) * scale_in
    return (seen + rng.normal(size=(count, 2, len(scale_of))) * scale_in) @ mixing


def test_what_is_noise_alone_is_no_direction() -> None:
    rng = np.random.default_rng(3)
    scale_of = np.where(np.arange(12) < 3, 3.0, 0.0)
    within, between = covariances(pairs_of(rng, 20_000, np.eye(12), scale_of, np.ones(12)))
    np.testing.assert_allclose(within, np.eye(12), atol=0.05)
    np.testing.assert_allclose(between, np.diag(scale_of**2), atol=0.4)
    weights = np.linalg.norm(directions(within, between, 0.0), axis=0)
    assert (weights[:3] > 0.85).all() and (weights[3:] < 0.1).all()


def test_repeats_find_each_other_where_the_largest_directions_are_of_the_observation() -> None:
    rng = np.random.default_rng(2)
    scale_of, scale_in = np.array([1.0, 1.0, 0.1, 0.1, 0.1]), np.array([5.0, 5.0, 0.001, 0.001, 0.001])
    mixing = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    found = covariances(pairs_of(rng, 2000, mixing, scale_of, scale_in))
    objects = rng.normal(size=(300, 5)) * scale_of
    vectors = np.concatenate([(objects + rng.normal(size=(300, 5)) * scale_in) @ mixing for _ in range(2)])
    of = np.tile(np.arange(300), 2)
    assert found_next(vectors, of) < 0.1 and found_next(vectors @ directions(*found, 0.0), of) > 0.9


def test_repeats_are_of_one_place_that_is_known(tmp_path: Path) -> None:
    arcsec = 1 / 3600
    ra = np.array([0.2 * arcsec, 10.0, 360 - 0.2 * arcsec, 10.0, 10.0, 77.0, 50.0, 50.0, np.nan, np.nan, 10.0])
    dec = np.array([0.0, 40.0, 0.0, 40 + arcsec, 40 + 2 * arcsec, 3.0, 5.0, 5.0, np.nan, np.nan, 40.01])
    roughly = np.isin(np.arange(11), (6, 7))
    ones = [spectrum(n, ra=ra[n], dec=dec[n], meta={"position": "field"} if roughly[n] else {}) for n in range(11)]
    index = open_index([shard(tmp_path / "sdss-00000.h5", ones)])
    place = {one: n for n, one in enumerate(index.column("id").tolist())}
    numbers = np.array([place[one.object_id] for one in ones])
    found = repeats(index, numbers)
    assert (found[[5, 6, 7, 8, 9, 10]] == -1).all() and found[0] == found[2] != found[1] == found[3] == found[4] and found[1] >= 0
    assert (repeats(index, numbers[:1]) == -1).all() and len(repeats(index, numbers[:0])) == 0


def test_of_many_a_sample_with_the_repeats_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "KNOWN", 100)
    monkeypatch.setattr(embedding, "REPEATED", 30)
    of = np.full(1000, -1)
    of[::10] = np.repeat(np.arange(50), 2)
    some = sampled(np.arange(1000), of, 1)
    counts = np.unique(of[some][of[some] >= 0], return_counts=True)[1]
    assert len(some) == 100 and (np.diff(some) > 0).all() and (counts[counts > 1] == 2).all() and (counts > 1).sum() >= 15
    assert np.array_equal(sampled(np.arange(60), of[:60], 1), np.arange(60))


@pytest.fixture
def adapted() -> Adapted:
    return Adapted(made(), Head(NOTHING, SMALL.width, SMALL.heads, 0.0)).eval()


COUNT = 160


def given_to(adapted: Adapted) -> tuple[dict[int, Tokens], np.ndarray]:
    """Tokens and summaries of spectra, twenty of them with the noise of another night too."""
    rng = np.random.default_rng(1)
    ones = []
    for n in range(COUNT):
        one = spectrum(n // 2 if n < 40 else n, pixels=64)
        arms = tuple(replace(arm, flux=arm.flux + rng.normal(0, 1, 64) / np.sqrt(arm.ivar.clip(0.01))) for arm in one.arms)
        ones.append(replace(one, arms=arms))
    given = batch(ones)
    with torch.no_grad():
        vectors = adapted.summary(given).numpy()
    return dict(apart(given)), vectors[np.argsort(given.objects)]


OF = np.where(np.arange(COUNT) < 40, np.arange(COUNT) // 2, -1)


def test_the_map_is_of_the_training_objects_and_draws_nothing(adapted: Adapted) -> None:
    items, vectors = given_to(adapted)
    state = torch.get_rng_state()
    fit_embedding(adapted, items, vectors, OF, ALONE)
    assert torch.equal(torch.get_rng_state(), state)
    first = adapted.embedding_map.clone()
    fit_embedding(adapted, items, vectors, OF, ALONE)
    assert torch.equal(adapted.embedding_map, first) and not torch.equal(first, torch.eye(SMALL.width))
    found = adapted.embedding(torch.tensor(vectors))
    assert torch.isfinite(found).all() and found.mean(0).abs().max() < 1e-2 * found.std()
    fit_embedding(adapted, {n: items[n] for n in range(40)}, vectors, OF, ALONE)
    assert torch.equal(adapted.embedding_map, first)  # too few to know


def test_repeats_choose_what_differs_beside_the_noise(adapted: Adapted, monkeypatch: pytest.MonkeyPatch) -> None:
    items, vectors = given_to(adapted)
    maps = {}
    for name, of in (("unknown", np.full(COUNT, -1)), ("few", np.where(np.arange(COUNT) < 8, OF, -1)), ("repeats", OF)):
        fit_embedding(adapted, items, vectors, of, ALONE)
        maps[name] = adapted.embedding_map.clone()
    assert torch.equal(maps["unknown"], maps["few"])
    monkeypatch.setattr(embedding, "SYSTEMATICS", (0.3,))
    fit_embedding(adapted, items, vectors, OF, ALONE)
    assert not torch.equal(adapted.embedding_map, maps["unknown"])
    shares = {name: found_next(vectors @ of.numpy(), OF) for name, of in maps.items()}
    assert shares["repeats"] >= shares["unknown"]


def test_objects_without_errors_are_published_as_they_are(adapted: Adapted) -> None:
    ones = [spectrum(n, (), scalars={"teff": (4900.0 + n, 0.0), "parallax": (1.0 + n / 50, 0.0)}) for n in range(COUNT)]
    given = batch(ones)
    with torch.no_grad():
        vectors = adapted.summary(given).numpy()
    fit_embedding(adapted, dict(apart(given)), vectors, np.full(COUNT, -1), ALONE)
    assert torch.equal(adapted.embedding_map, torch.eye(SMALL.width)) and adapted.embedding_mean.abs().max() > 0


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
