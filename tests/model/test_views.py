"""What another night changes of a spectrum, and what it doesn't."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from hpcspec.model.views import CALIBRATION, CROP, LEAST_SIGNAL, NOISE, another_view, calibrated_otherwise, cropped, noisier
from hpcspec.stream.batch import Batch
from tests.making import batch, spectrum, star
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
    assert torch.equal(found.values[~good], old.values[~good]) and torch.equal(found.sigma, old.sigma)


def test_errors_of_the_calibration_are_smooth_and_leave_lines_and_signal_to_noise() -> None:
    given = batch([spectrum(i, pixels=4000) for i in range(12)])
    torch.manual_seed(0)
    found, old, owner = calibrated_otherwise(given).spectra, given.spectra, given.owners[1]
    good = torch.isfinite(old.sigma)
    off = (found.values / old.values)[..., 0].log()
    steps = []
    for n in range(12):
        mine = off[owner == n].nanmedian(1).values
        assert 0 < mine.abs().max() < 3 * CALIBRATION
        steps.append((mine.diff().abs().max() / mine.abs().max()).item())
    assert np.median(steps) < 0.2
    assert torch.equal(found.values[..., 2], old.values[..., 2]) and torch.equal(found.coordinates, old.coordinates)
    for x, y in ((found.values[..., 0], old.values[..., 0]), (10 ** found.values[..., 1], 10 ** old.values[..., 1])):
        torch.testing.assert_close((x / found.sigma)[good], (y / old.sigma)[good], rtol=1e-3, atol=1e-5)


def test_only_the_ends_are_cut_off() -> None:
    given = batch([spectrum(i, pixels=4000) for i in range(12)])
    torch.manual_seed(0)
    found = cropped(given)
    was, now = (torch.bincount(one.owners[1], minlength=12) for one in (given, found))
    share = now / was
    assert ((share > 1 - 2 * CROP - 0.05) & (share <= 1)).all() and share.min() < 0.75 and len(set(share.tolist())) > 6
    for n in range(12):
        before, after = (one.spectra.coordinates[one.owners[1] == n, 0] for one in (given, found))
        first = int(torch.searchsorted(before, after[0]))
        assert torch.equal(before[first : first + len(after)], after)


def test_every_object_stays_and_what_is_no_spectrum_as_it_was() -> None:
    for ones in (OBJECTS, [spectrum(1, pixels=8)], [star(1)]):
        given = batch(ones)
        found = another_view(given)
        assert len(found) == len(given) and torch.isfinite(found.spectra.values).all()
        assert [torch.equal(a, b) for a, b in zip(found.scalars, given.scalars, strict=True)] == [True] * 3
        assert torch.equal(found.curves.values, given.curves.values)
        assert (torch.bincount(found.owners[1], minlength=len(found)) > 0).equal(
            torch.bincount(given.owners[1], minlength=len(found)) > 0)  # fmt: skip
