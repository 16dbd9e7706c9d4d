from __future__ import annotations

import numpy as np
import pytest

from hpcspec.adapt.calibration import calibrated


def covered(residual: np.ndarray, error: np.ndarray, scale: float, power: float) -> list[float]:
    z = np.abs(residual) / (scale * error**power)
    return [float((z < n).mean()) for n in (1, 2)]


@pytest.mark.parametrize("factor", [0.2, 1.0, 3.0])
@pytest.mark.parametrize("power", [0.5, 1.0, 1.5])
def test_errors_that_are_wrong_by_a_factor_and_a_power_are_mended(factor: float, power: float) -> None:
    rng = np.random.default_rng(0)
    error = np.exp(rng.normal(-2, 0.5, 4000))
    residual = rng.normal(0, factor * error**power)
    scale, found = calibrated(residual, error)
    assert found == power and scale == pytest.approx(factor, rel=0.06)


def test_errors_that_are_too_unlike_each_other_are_drawn_together() -> None:
    """True errors have a floor that the network doesn't see: a factor alone would leave too few within two errors."""
    rng = np.random.default_rng(1)
    said = np.exp(rng.normal(-1, 1, 4000))
    residual = rng.normal(0, np.hypot(said, 1.0))
    scale, power = calibrated(residual[:2000], said[:2000])
    assert power < 1
    one, two = covered(residual[2000:], said[2000:], scale, power)
    assert one == pytest.approx(0.683, abs=0.03) and two == pytest.approx(0.954, abs=0.02)
    alone = float(np.quantile(np.abs(residual[:2000]) / said[:2000], 0.6827))
    assert abs(covered(residual[2000:], said[2000:], alone, 1.0)[1] - 0.954) > abs(two - 0.954)


def test_wrong_labels_don_t_decide_on_the_power() -> None:
    rng = np.random.default_rng(2)
    error = np.exp(rng.normal(0, 0.5, 3000))
    residual = rng.normal(0, error) * np.where(rng.random(3000) < 0.02, 30, 1)
    scale, power = calibrated(residual, error)
    assert power == 1.0 and 1.0 < scale < 1.3


def test_few_objects_give_a_factor_and_very_few_nothing() -> None:
    assert calibrated(np.ones(4), np.ones(4)) == (1.0, 1.0)
    scale, power = calibrated(np.linspace(-2, 2, 40), np.ones(40))
    assert power == 1.0 and scale == pytest.approx(2 * 0.6827, rel=0.1)
    assert calibrated(np.zeros(100), np.ones(100))[0] > 0
