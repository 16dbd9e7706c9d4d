from __future__ import annotations

import numpy as np
import pytest

from hpcspec.adapt.calibration import calibrated


def covered(residual: np.ndarray, error: np.ndarray, scale: float, floor: float) -> list[float]:
    z = np.abs(residual) / (scale * np.hypot(error, floor))
    return [float((z <= n).mean()) for n in (1, 2)]


@pytest.mark.parametrize("factor", [0.4, 1.0, 3.0])
def test_errors_that_are_wrong_by_a_factor_only_get_no_floor(factor: float) -> None:
    rng = np.random.default_rng(0)
    error = rng.uniform(0.5, 2, 4000)
    scale, floor = calibrated(rng.normal(0, error), error / factor)
    assert floor <= 0.25 * np.median(error / factor) and scale == pytest.approx(factor, rel=0.06)


def test_errors_that_are_too_unlike_each_other_get_a_floor() -> None:
    """True errors have a floor that the network doesn't see: a factor alone would leave too few within two errors."""
    rng = np.random.default_rng(1)
    said = np.exp(rng.normal(-1, 1, 4000))
    residual = rng.normal(0, np.hypot(said, 1.0))
    scale, floor = calibrated(residual[:2000], said[:2000])
    assert floor > 0
    one, two = covered(residual[2000:], said[2000:], scale, floor)
    assert one == pytest.approx(0.683, abs=0.03) and two == pytest.approx(0.954, abs=0.02)
    alone = float(np.quantile(np.abs(residual[:2000]) / said[:2000], 0.6827))
    assert abs(covered(residual[2000:], said[2000:], alone, 0.0)[1] - 0.954) > abs(two - 0.954)


def test_few_objects_give_a_factor_and_very_few_nothing() -> None:
    assert calibrated(np.ones(4), np.ones(4)) == (1.0, 0.0)
    scale, floor = calibrated(np.linspace(-2, 2, 40), np.ones(40))
    assert floor == 0.0 and scale == pytest.approx(2 * 0.6827, rel=0.1)
