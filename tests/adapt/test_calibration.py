from __future__ import annotations

import numpy as np
import pytest

from hpcspec.adapt.calibration import Calibration, calibrated


def covered(residual: np.ndarray, error: np.ndarray, found: Calibration) -> list[float]:
    """Shares within one error, and within the interval that should hold 95 %."""
    z = np.abs(residual) / (found.scale * error**found.power)
    return [float((z < n).mean()) for n in (1, found.tail)]


@pytest.mark.parametrize("factor", [0.2, 1.0, 3.0])
@pytest.mark.parametrize("power", [0.5, 1.0, 1.5])
def test_errors_that_are_wrong_by_a_factor_and_a_power_are_mended(factor: float, power: float) -> None:
    rng = np.random.default_rng(0)
    error = np.exp(rng.normal(-2, 0.5, 4000))
    residual = rng.normal(0, factor * error**power)
    found = calibrated(residual, error)
    assert found.power == power and found.scale == pytest.approx(factor, rel=0.06)
    assert found.tail == pytest.approx(1.96, rel=0.06)


def test_errors_that_are_too_unlike_each_other_are_drawn_together() -> None:
    """True errors have a floor that the network doesn't see: a factor alone would leave too few within two errors."""
    rng = np.random.default_rng(1)
    said = np.exp(rng.normal(-1, 1, 4000))
    residual = rng.normal(0, np.hypot(said, 1.0))
    found = calibrated(residual[:2000], said[:2000])
    assert found.power < 1
    assert covered(residual[2000:], said[2000:], found) == pytest.approx([0.683, 0.95], abs=0.02)
    alone = Calibration(float(np.quantile(np.abs(residual[:2000]) / said[:2000], 0.6827)))
    assert abs(covered(residual[2000:], said[2000:], alone)[1] - 0.95) > 0.02


def test_heavy_tails_have_a_wider_interval_and_the_same_errors() -> None:
    rng = np.random.default_rng(4)
    residual, error = rng.standard_t(2, 6000), np.ones(6000)
    found = calibrated(residual[:3000], error[:3000])
    assert found.tail > 2.5
    assert covered(residual[3000:], error[3000:], found) == pytest.approx([0.683, 0.95], abs=0.02)


def test_wrong_labels_don_t_decide_on_the_power() -> None:
    rng = np.random.default_rng(2)
    error = np.exp(rng.normal(0, 0.5, 3000))
    residual = rng.normal(0, error) * np.where(rng.random(3000) < 0.02, 30, 1)
    found = calibrated(residual, error)
    assert found.power == 1.0 and 1.0 < found.scale < 1.1 and 1.9 < found.tail < 2.6


def test_few_objects_give_a_factor_and_very_few_nothing() -> None:
    assert calibrated(np.ones(4), np.ones(4)) == Calibration(1.0, 1.0, 1.96)
    found = calibrated(np.linspace(-2, 2, 40), np.ones(40))
    assert found.power == 1.0 and found.tail == 1.96 and found.scale == pytest.approx(2 * 0.6827, rel=0.1)
    nothing = calibrated(np.zeros(100), np.ones(100))
    assert nothing.scale > 0 and nothing.tail >= 1
