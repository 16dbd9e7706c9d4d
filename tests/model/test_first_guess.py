from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from hpcspec.model.first_guess import first_guess
from hpcspec.model.unified import FIRST_VARIANCE, Questions
from hpcspec.stream.batch import Batch
from hpcspec.surveys.grids import table_grid
from hpcspec.surveys.observation import Observation, make_arm
from tests.making import batch
from tests.model.small import made

PATCH = 8


def sloped(slope: float, arms: tuple[tuple[float, int], ...] = ((4000.0, 40),), name: str = "sloped") -> Observation:
    """Flux 1 + slope·ln(λ / 4000 Å) on logarithmic grids that begin at these wavelengths and have so many pixels."""
    made = []
    for i, (start, count) in enumerate(arms):
        grid = start * np.exp(1e-3 * np.arange(count))
        flux = 1 + slope * np.log(grid / 4000)
        made.append(make_arm(f"arm {i}", table_grid(grid), 0, flux, np.full(count, 1e4)))
    return Observation(name, "", np.nan, np.nan, tuple(made), "")


def asked_of(given: Batch, wavelengths: list[float], owner: int) -> np.ndarray:
    """First guesses (t, P) over the amplitude of patches of 8 pixels, each a thousandth from the next, about these."""
    coordinates = torch.tensor([[w, 1e-3 * w] for w in wavelengths]).reshape(-1, 2)
    return first_guess(given, coordinates, torch.full((len(wavelengths),), owner), PATCH).numpy()


def without_patches(given: Batch, which: list[int]) -> Batch:
    """Without these patches of its spectra."""
    rows = torch.zeros(len(given.spectra.sigma), dtype=torch.bool)
    rows[which] = True
    sizes = [len(given.scalars.name), len(rows), len(given.curves.band)]
    lost = torch.cat([torch.zeros(sizes[0], dtype=torch.bool), rows, torch.zeros(sizes[2], dtype=torch.bool)])[given.order]
    return given.take(~lost)


def amplitude(given: Batch) -> np.ndarray:
    """(N,) of the objects of a batch of one spectrum each."""
    value = given.scalars.value[given.scalars.name == 1]
    return 10.0 ** value.numpy()


@pytest.mark.parametrize("hidden", [[], [1], [2, 3]])
def test_between_what_is_seen_it_is_linear_in_log_wavelength(hidden: list[int]) -> None:
    given = batch([sloped(3.0)])
    middle = given.spectra.coordinates[1:4, 0].double().tolist()
    found = asked_of(without_patches(given, hidden), middle, 0) * amplitude(given)[0]
    pixel = np.array(middle)[:, None] * (1 + 1e-3 * (np.arange(PATCH) - 3.5))
    np.testing.assert_allclose(found, 1 + 3.0 * np.log(pixel / 4000), atol=3.0 * 6e-4)  # the lower of two medians


def test_outside_of_what_is_seen_it_is_its_end_and_of_nothing_one() -> None:
    given = batch([sloped(3.0), Observation("none", "", np.nan, np.nan, scalars={"teff": (5000.0, 1.0)})])
    owner = int(torch.nonzero(torch.tensor(given.lengths) > 4)[0])
    ends = asked_of(given, [3000.0, 9000.0], owner)
    flux = given.spectra.values[..., 0]
    for end, patch in zip(ends, (0, -1), strict=True):
        np.testing.assert_allclose(end, float(flux[patch].median()), rtol=1e-6)
    assert (asked_of(given, [3000.0, 4040.0], 1 - owner) == 1).all()
    assert (asked_of(given.take(given.kind == 0), [4040.0], owner) == 1).all()
    assert (first_guess(None, torch.tensor([[4000.0, 1.0]]), torch.tensor([0]), PATCH) == 1).all()
    assert asked_of(given, [], owner).shape == (0, PATCH)


def test_it_knows_neither_other_objects_nor_bad_pixels_nor_the_order_of_arms() -> None:
    arms = ((4000.0, 24), (4100.0, 24))
    one, other = sloped(3.0, arms), sloped(-2.0, name="other")
    turned = replace(one, arms=one.arms[::-1])
    alone = batch([one])
    wanted = asked_of(alone, [4030.0, 4110.0, 5000.0], 0)
    np.testing.assert_allclose(asked_of(batch([turned]), [4030.0, 4110.0, 5000.0], 0), wanted, rtol=1e-6)
    both = batch([other, one, other])
    number = both.objects.tolist().index(1)
    np.testing.assert_allclose(asked_of(both, [4030.0, 4110.0, 5000.0], number), wanted, rtol=1e-6)
    bad = alone.spectra._replace(sigma=alone.spectra.sigma.clone(), values=alone.spectra.values.clone())
    bad.sigma[2, 3:], bad.values[2, 3:, 0] = torch.inf, 99.0
    bad.sigma[0], bad.values[0, :, 0] = torch.inf, 99.0
    damaged = asked_of(replace(alone, spectra=bad), [4030.0, 4110.0, 5000.0], 0)
    np.testing.assert_allclose(damaged[1:], wanted[1:], rtol=0.02)
    assert damaged.max() < 2


def test_an_untrained_model_answers_it_with_errors_of_its_size() -> None:
    given, model = batch([sloped(-8.0)]), made()
    encoded, none = model.encode(given), torch.zeros(0, dtype=torch.long)
    where = given.spectra.coordinates
    empty = torch.zeros(0)
    asked = Questions(none, where, empty, empty, none, (none, torch.zeros(len(where), dtype=torch.long), none))
    mean, log_variance = model.answer(asked, encoded.tokens, encoded.packing, given).spectra
    guess = first_guess(given, where, asked.owners[1], PATCH)
    assert guess.max() > 1.15 * guess.min()
    torch.testing.assert_close(mean, guess, rtol=0.03, atol=0)
    torch.testing.assert_close(log_variance.exp(), guess.square() * math.exp(FIRST_VARIANCE), rtol=0.03, atol=0)
    mean, _ = model.answer(asked, encoded.tokens, encoded.packing).spectra
    torch.testing.assert_close(mean, torch.ones_like(mean), rtol=0.03, atol=0)
