"""What another night changes of a spectrum, and what it doesn't."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from hpcspec.model.views import (
    CALIBRATION,
    CROP,
    LEAST_SIGNAL,
    NOISE,
    WAVES,
    another_view,
    calibrated_otherwise,
    cropped,
    noisier,
    rescaled,
)
from hpcspec.stream.batch import Batch
from hpcspec.stream.patches import LIMIT, LOCAL_LIMIT, LOG_ERROR
from hpcspec.stream.vocabulary import OF_SPECTRUM
from hpcspec.surveys.grids import Grid
from tests.making import batch, make, spectrum, star
from tests.model.small import OBJECTS


def with_signal(given: Batch, low: float, high: float) -> Batch:
    """The same spectra with errors that give them signal to noises from low to high, in the order of the objects."""
    levels = torch.logspace(np.log10(low), np.log10(high), len(given))[given.owners[1]][:, None]
    flux = given.spectra.values[..., 0].abs().clamp(min=0.01)
    sigma = torch.where(torch.isfinite(given.spectra.sigma), flux / levels, torch.inf)
    return replace(given, spectra=given.spectra._replace(sigma=sigma))


def test_noise_is_of_the_errors_and_said() -> None:
    given = with_signal(batch([spectrum(i, pixels=4000) for i in range(24)]), 2, 200)
    torch.manual_seed(0)
    found, owner = noisier(given).spectra, given.owners[1]
    old, good = given.spectra, torch.isfinite(given.spectra.sigma)
    added = ((found.values - old.values)[..., 0] / old.sigma)[good]
    raised, of = (found.values - old.values)[..., 1][good], owner[:, None].expand(good.shape)[good]
    sizes = np.array([added[of == n].std().item() for n in range(24)])
    levels = np.logspace(np.log10(2), np.log10(200), 24)
    assert (levels / np.hypot(1, sizes) > np.minimum(0.9 * LEAST_SIGNAL, 0.65 * levels)).all()
    assert sizes[levels < LEAST_SIGNAL].max() <= 1.05 * NOISE and sizes.max() > 5
    for n in range(24):
        np.testing.assert_allclose(raised[of == n], 0.5 * np.log10(1 + sizes[n] ** 2), atol=0.03)
        np.testing.assert_allclose((found.sigma / old.sigma)[good][of == n], np.hypot(1, sizes[n]), rtol=0.07)
    assert torch.equal(found.values[~good], old.values[~good])


def test_a_few_absurd_errors_change_nothing_of_the_noise_of_the_others() -> None:
    given = with_signal(batch([spectrum(i, pixels=4000) for i in range(24)]), 10, 10)
    sigma = given.spectra.sigma.clone()
    sigma[:, 3] /= 1e6
    torch.manual_seed(0)
    found = noisier(replace(given, spectra=given.spectra._replace(sigma=sigma))).spectra
    assert ((found.sigma / sigma)[torch.isfinite(sigma)] < 1.1 * 10 / LEAST_SIGNAL).all()


def test_noise_leaves_values_within_what_a_model_reads() -> None:
    given = with_signal(batch([spectrum(i, pixels=4000) for i in range(24)]), 100, 100)
    sigma = given.spectra.sigma.clone()
    sigma[:, ::50] *= 1e4
    torch.manual_seed(0)
    found = noisier(replace(given, spectra=given.spectra._replace(sigma=sigma))).spectra.values
    assert (found[..., 0].abs() <= LIMIT).all() and (found[..., 1] <= LOG_ERROR[1]).all()
    assert (found[..., 2].abs() <= LOCAL_LIMIT).all()


def test_noise_of_a_line_is_that_of_its_continuum() -> None:
    given = with_signal(batch([spectrum(i, pixels=4000) for i in range(24)]), 100, 100)
    values, sigma = torch.zeros_like(given.spectra.values), torch.full_like(given.spectra.sigma, 0.01)
    values[..., 0] = 1.0
    values[:, 20:24, 0], values[:, 20:24, 2] = 0.02, -0.98
    torch.manual_seed(0)
    found = noisier(replace(given, spectra=given.spectra._replace(values=values, sigma=sigma))).spectra.values - values
    torch.testing.assert_close(found[..., 2], found[..., 0], rtol=1e-4, atol=1e-5)


def test_the_unit_is_what_is_left_of_a_spectrum() -> None:
    given = batch([spectrum(i, pixels=4000) for i in range(12)])
    spectra, factor = given.spectra, torch.logspace(-0.5, 0.5, 12)[given.owners[1]][:, None]
    values = spectra.values.clone()
    values[..., 0] *= factor
    values[..., 1] += torch.where(torch.isfinite(spectra.sigma), factor.log10(), 0)
    other = replace(given, spectra=spectra._replace(values=values, sigma=spectra.sigma * factor))
    a, b = rescaled(given).spectra, rescaled(other).spectra
    for x, y in zip((a.values, a.sigma), (b.values, b.sigma), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4)
    middles = torch.stack([a.values[given.owners[1] == n][..., 0].median() for n in range(12)])
    assert ((middles > 0.8) & (middles < 1.25)).all()


def test_errors_of_the_calibration_are_smooth_and_leave_lines_and_signal_to_noise() -> None:
    given = batch([spectrum(i, pixels=4000) for i in range(12)])
    torch.manual_seed(0)
    found, old, owner = calibrated_otherwise(given).spectra, given.spectra, given.owners[1]
    good = torch.isfinite(old.sigma)
    off = (found.values / old.values)[..., 0].log()
    steps, sizes = [], []
    for n in range(12):
        mine = off[owner == n].nanmedian(1).values
        sizes.append(mine.abs().max().item())
        steps.append((mine.diff().abs().max() / mine.abs().max()).item())
    assert np.median(steps) < 0.2
    assert CALIBRATION / 5 < np.median(sizes) < CALIBRATION and min(sizes) > 0 and max(sizes) <= WAVES * CALIBRATION
    assert torch.equal(found.values[..., 2], old.values[..., 2]) and torch.equal(found.coordinates, old.coordinates)
    for x, y in ((found.values[..., 0], old.values[..., 0]), (10 ** found.values[..., 1], 10 ** old.values[..., 1])):
        torch.testing.assert_close((x / found.sigma)[good], (y / old.sigma)[good], rtol=1e-3, atol=1e-5)


def test_only_the_ends_are_cut_off() -> None:
    given = batch([spectrum(i, pixels=4000) for i in range(12)])
    torch.manual_seed(0)
    found = cropped(given)
    assert set(found.scalars.name.tolist()) == {0}  # the object's own: flux scale and S/N would tell what it was before
    was, now = (torch.bincount(one.owners[1], minlength=12) for one in (given, found))
    share = now / was
    assert ((share > 1 - 2 * CROP - 0.05) & (share <= 1)).all() and share.min() < 0.75 and len(set(share.tolist())) > 6
    for n in range(12):
        before, after = (one.spectra.coordinates[one.owners[1] == n, 0] for one in (given, found))
        first = int(torch.searchsorted(before, after[0]))
        assert torch.equal(before[first : first + len(after)], after)


def test_of_two_patches_one_stays() -> None:
    given = batch([spectrum(n, pixels=16) for n in range(400)])
    torch.manual_seed(0)
    found = cropped(given)
    counts = torch.bincount(found.owners[1], minlength=400)
    assert counts.min() == 1 and counts.max() >= 2


def test_no_instrument_is_cut_off_whole() -> None:
    infrared = replace(make("log10", 3000, (2,), "a"), grid=Grid("log10", 0.0, 6e-6), first=696700)
    arms = (make("log10", 3800, (1,), "SDSS"), infrared)
    given = batch([spectrum(i, arms=arms) for i in range(40)])
    torch.manual_seed(0)
    found = cropped(given)
    red, owner = found.spectra.coordinates[:, 0] > 15000, found.owners[1]
    for part in (red, ~red):
        assert (torch.bincount(owner[part], minlength=40) > 0).all()


def test_every_object_stays_and_what_is_no_spectrum_as_it_was() -> None:
    for ones in (OBJECTS, [spectrum(1, pixels=8)], [star(1)]):
        given = batch(ones)
        found = another_view(given)
        assert len(found) == len(given) and torch.isfinite(found.spectra.values).all()
        kept = (given.scalars.name < 1) | (given.scalars.name > len(OF_SPECTRUM))
        assert all(torch.equal(a, b[kept]) for a, b in zip(found.scalars, given.scalars, strict=True))
        assert torch.equal(found.curves.values, given.curves.values)
        assert (torch.bincount(found.owners[1], minlength=len(found)) > 0).equal(
            torch.bincount(given.owners[1], minlength=len(found)) > 0)  # fmt: skip
