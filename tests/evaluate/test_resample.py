"""Resampled spectra keep their flux, their errors, their bad pixels and their names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hpcspec.evaluate.resample import write_resampled
from hpcspec.surveys.grids import linear_grid
from hpcspec.surveys.observation import Arm, Observation, make_arm
from hpcspec.trained import observations

pytest.importorskip("specutils")


def arm(start: float, count: int, flux: np.ndarray | float, ivar: np.ndarray | float = 4.0) -> Arm:
    wavelength = start + 0.5 * np.arange(count)
    grid, first = linear_grid(wavelength, start, 0.5)
    return make_arm("b", grid, first, np.broadcast_to(flux, count).astype(float), np.broadcast_to(ivar, count).astype(float))


def back(folder: Path, *objects: Observation) -> list[Arm]:
    write_resampled(objects, folder, 2.0)
    found = {one.object_id: one for one in observations("generic", folder)}
    assert set(found) == {one.object_id for one in objects} and all(one.ra == 10.0 for one in found.values())
    return [found[one.object_id].arms[0] for one in objects]


def star(name: str, *arms: Arm) -> Observation:
    return Observation(name, "sdss", 10.0, -5.0, arms)


def test_a_line_keeps_its_flux_and_its_place(tmp_path: Path) -> None:
    wavelength = 5000.3 + 0.5 * np.arange(400)
    profile = np.exp(-0.5 * ((wavelength - 5100.7) / 1.5) ** 2)
    (made,) = back(tmp_path, star("a/1", arm(5000.3, 400, 1 + 5 * profile)))
    assert np.all(made.wavelength % 2 == 0) and np.all(np.diff(made.wavelength) == 2)
    excess = made.flux - 1
    assert 2 * excess.sum() == pytest.approx(0.5 * 5 * profile.sum(), rel=2e-3)
    assert (excess * made.wavelength).sum() / excess.sum() == pytest.approx(5100.7, abs=0.02)


def test_four_pixels_make_one_of_a_smaller_error_and_a_bad_one_spoils_it(tmp_path: Path) -> None:
    ivar = np.full(400, 4.0)
    ivar[200] = 0.0  # at 5100 Å
    whole, spoilt = back(tmp_path, star("1", arm(5000.0, 400, 1.0)), star("2", arm(5000.0, 400, 1.0, ivar)))
    inside = (whole.wavelength > 5002) & (whole.wavelength < 5196)
    np.testing.assert_allclose(whole.flux[inside], 1.0, rtol=1e-5)
    assert np.all((whole.ivar[inside] > 4 * 3.5) & (whole.ivar[inside] < 4 * 5))
    assert spoilt.wavelength[spoilt.ivar == 0].tolist() == [5100.0]


def test_arms_that_overlap_become_one(tmp_path: Path) -> None:
    (made,) = back(tmp_path, star("1", arm(5000.0, 400, 1.0, 4.0), arm(5150.0, 400, 3.0, 12.0)))
    both = (made.wavelength > 5152) & (made.wavelength < 5196)
    np.testing.assert_allclose(made.flux[both], (4 * 1.0 + 12 * 3.0) / 16, rtol=1e-4)
    assert made.wavelength[0] == 5000 and made.wavelength[-1] == 5348
