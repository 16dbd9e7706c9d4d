"""Native wavelength grids are recognised, and anything else is kept exactly as a table."""

from __future__ import annotations

import numpy as np
import pytest

from hpcspec.surveys.grids import Grid, linear_grid, log_grid
from hpcspec.surveys.observation import Arm, trimmed


def test_single_precision_multiples_are_a_slice_of_the_common_grid() -> None:
    loglam = (1e-4 * np.arange(35552, 40152)).astype("f4")
    grid, first = log_grid(loglam)
    assert (grid, first) == (Grid("log10", 0.0, 1e-4), 35552)
    assert np.allclose(grid.wavelength(first, len(loglam)), 10.0 ** loglam.astype("f8"), rtol=1e-6, atol=0)


def test_another_phase_is_kept() -> None:
    loglam = 3.5682 + 1.7e-6 + 1e-4 * np.arange(3820)
    grid, first = log_grid(loglam)
    assert grid.kind == "log10" and np.allclose(np.log10(grid.wavelength(first, 3820)), loglam, rtol=0, atol=1e-8)


@pytest.mark.parametrize("loglam", [np.linspace(3.5, 3.9, 100), np.array([3.5, 3.5001, np.nan]), np.array([])])
def test_other_spacings_become_tables(loglam: np.ndarray) -> None:
    grid, first = log_grid(loglam)
    assert grid.kind == "table" and first == 0
    assert np.array_equal(grid.wavelength(0, len(loglam)), 10.0**loglam, equal_nan=True)


def test_arms_of_one_linear_grid_share_it() -> None:
    blue, red = (linear_grid(start + 0.8 * np.arange(100), 3600.0, 0.8) for start in (3600.0, 5760.0))
    assert blue == (Grid("linear", 3600.0, 0.8), 0) and red == (blue[0], 2700)
    odd = 3600.0 + 0.8 * np.arange(100) + 0.01
    grid, _ = linear_grid(odd, 3600.0, 0.8)
    assert grid.kind == "table" and np.array_equal(grid.wavelength(0, 100), odd)


def test_trimmed_keeps_the_wavelengths_of_what_is_left() -> None:
    ivar = np.array([0, 0, 1, 0, 2, 0], np.float32)
    arm = Arm("a", Grid("linear", 100.0, 1.0), 5, np.arange(6, dtype=np.float32), ivar)
    cut = trimmed(arm)
    assert cut is not None and cut.wavelength.tolist() == [107, 108, 109] and cut.flux.tolist() == [2, 3, 4]
    assert trimmed(Arm("a", arm.grid, 0, arm.flux, np.zeros(6, np.float32))) is None
